/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pins by the daemon's own count, for what lies in lower tiers: the daemon brings it up. What was acquired is read through a
 * pin of the pin page, as everything is:
 *
 *	acquire --> mapped, and stays --> kvg_lookup_pin --> read --> unpin --> release
 *
 * kvg_prefix_fetch() does all of it but the reading: with its pins taken, those of the daemon's count have done their
 * part. Without waiting, planes come one after another, best first; the index says which are there, and a pipe that there is
 * something to look at.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Of one request that waits: much for a disk to do at once, and an answer well within the time that calls have. */
#define FETCH_KEYS 64u
/* Of the pipe: more than the largest that the kernel makes unasked. */
#define READS_MAX  32u

void keys_to_bytes(const struct kvg_key *keys, size_t n, ProtobufCBinaryData *ret)
{
	for (size_t i = 0; i < n; i++)
		ret[i] = (ProtobufCBinaryData){
			.len = sizeof(keys[i].b), .data = (uint8_t *)(uintptr_t)keys[i].b};
}

/* ---- the pipe ---- */

int arrival_adopt(struct kvg_client *c, struct reply *r)
{
	if (r->n_fds == 0)
		return 0;
	if (r->n_fds > 1 || (c->arrival_fd >= 0 && !c->arrival_old))
		return client_end(c, -EPROTO, "an acquire reply with file descriptors too many");
	if (c->arrival_fd < 0) {
		c->arrival_fd = r->fds[0];
		r->fds[0] = -1;
	} else if (dup3(r->fds[0], c->arrival_fd, O_CLOEXEC) < 0) { /* it is being polled */
		return client_end(c, -errno, "no file descriptor for arrivals");
	}
	c->arrival_old = false;
	return 0;
}

void arrival_fini(struct kvg_client *c)
{
	if (c->arrival_fd >= 0)
		close(c->arrival_fd);
	c->arrival_fd = -1;
}

int kvg_arrival_fd(const struct kvg_client *c)
{
	return c->arrival_fd >= 0 ? c->arrival_fd : -ENOENT;
}

int kvg_arrival_wait(struct kvg_client *c, int timeout_ms)
{
	struct pollfd p = {.fd = c->arrival_fd, .events = POLLIN};
	char bytes[4096];
	unsigned reads = 0;
	ssize_t n;
	int r;

	if (c->arrival_fd < 0)
		return client_fail(c, -ENOENT, 0, "nothing was acquired with kvg_acquire_start()");
	r = poll(&p, 1, timeout_ms);
	if (r < 0)
		return errno == EINTR ? 0 : client_fail(c, -errno, 0, "poll failed");
	if (r == 0)
		return 0;
	do {
		n = read(c->arrival_fd, bytes, sizeof(bytes));
	} while ((n == (ssize_t)sizeof(bytes) || (n < 0 && errno == EINTR)) && ++reads < READS_MAX);
	if (n == 0)
		return client_fail(c, -ENOTCONN, 0,
			"the daemon is gone, and with it what was acquired: acquire again");
	return 1;
}

/* ---- acquire ---- */

/* Up to KVG_BATCH_MAX keys. Returns how many results came, counting acquired ones into *acquired. */
static ssize_t acquire_batch(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	const struct wish *w, struct kvg_acquired *ret, uint8_t *ret_coming, size_t *acquired)
{
	Kvgate__V1__Acquire m = KVGATE__V1__ACQUIRE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	const Kvgate__V1__AcquireReply *a;
	ProtobufCBinaryData bytes[KVG_BATCH_MAX];
	struct reply reply;
	ssize_t r;

	keys_to_bytes(keys, n, bytes);
	m.layout = l->id;
	m.keys = bytes;
	m.n_keys = n;
	m.min_retention = w->min_retention;
	m.want = w->want;
	m.prefix = w->prefix;
	m.no_wait = w->no_wait;
	m.device = w->device;
	q.body_case = KVGATE__V1__REQUEST__BODY_ACQUIRE;
	q.acquire = &m;
	r = client_call(l->client, &q, &reply);
	if (r < 0)
		return r;
	a = reply.msg->acquire;
	r = (ssize_t)a->n_blocks;
	if (a->n_blocks > n || (!w->prefix && a->n_blocks < n))
		r = client_end(l->client, -EPROTO, "an acquire reply of the wrong length");
	if (r >= 0 && arrival_adopt(l->client, &reply) < 0)
		r = l->client->dead;
	for (ssize_t i = 0; i < r; i++) {
		const Kvgate__V1__BlockResult *b = a->blocks[i];

		ret[i] = (struct kvg_acquired){
			.code = (int)b->code,
			.handle = kvg_handle_unpack(b->handle),
			.retention = b->retention,
			.held = b->held,
			.mapped = b->mapped,
		};
		if (ret_coming)
			ret_coming[i] = (uint8_t)b->coming;
		*acquired += b->code == KVG_CODE_OK;
	}
	reply_fini(&reply);
	return r;
}

ssize_t acquire_all(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	const struct wish *w, struct kvg_acquired *ret, uint8_t *ret_coming)
{
	size_t acquired = 0;

	for (size_t i = 0; i < n; i++)
		ret[i] = (struct kvg_acquired){.code = KVG_CODE_NOT_FOUND};
	if (ret_coming)
		memset(ret_coming, 0, n);
	for (size_t done = 0; done < n;) {
		const size_t batch = n - done < KVG_BATCH_MAX ? n - done : KVG_BATCH_MAX;
		ssize_t got = acquire_batch(l, keys + done, batch, w, ret + done,
			ret_coming ? ret_coming + done : NULL, &acquired);

		if (got < 0)
			return acquired ? (ssize_t)acquired : got;
		done += batch;
		if (w->prefix && acquired < done)
			break;
	}
	return (ssize_t)acquired;
}

ssize_t kvg_acquire(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float min_retention,
	int prefix, struct kvg_acquired *ret)
{
	const struct wish w = {.min_retention = min_retention, .prefix = prefix};

	return acquire_all(l, keys, n, &w, ret, NULL);
}

ssize_t kvg_acquire_start(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, float want, int prefix, struct kvg_acquired *ret, uint8_t *ret_coming)
{
	const struct wish w = {min_retention, want, prefix, true, 0};

	return acquire_all(l, keys, n, &w, ret, ret_coming);
}

int kvg_release(struct kvg_client *c, const struct kvg_handle *handles, size_t n)
{
	uint64_t packed[KVG_BATCH_MAX];

	for (size_t done = 0; done < n;) {
		Kvgate__V1__Release m = KVGATE__V1__RELEASE__INIT;
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		struct reply reply;
		int r;

		for (m.n_handles = 0; m.n_handles < KVG_BATCH_MAX && done < n; done++)
			packed[m.n_handles++] = kvg_handle_pack(handles[done]);
		m.handles = packed;
		q.body_case = KVGATE__V1__REQUEST__BODY_RELEASE;
		q.release = &m;
		r = client_call(c, &q, &reply);
		if (r < 0)
			return r;
		reply_fini(&reply);
	}
	return 0;
}

/* ---- a prefix that is partly below ---- */

/*
 * The first of these keys is there, and not enough of it mapped. What a fetch cannot do - a quota, no room, no connection - is
 * no reason not to take what can be read.
 */
static ssize_t fetch_some(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	const struct wish *w, struct kvg_pin *ret_pins)
{
	struct kvg_acquired got[FETCH_KEYS];
	struct kvg_handle handle[FETCH_KEYS];
	size_t acquired = 0, pinned;
	int why, released = 0;
	ssize_t r;

	if (n > FETCH_KEYS)
		n = FETCH_KEYS;
	if (n > pins_left(l->client))
		n = pins_left(l->client);
	n = kvg_prefix_lookup(l, keys, n);
	if (n == 0)
		return 0;
	r = acquire_batch(l, keys, n, w, got, NULL, &acquired);
	pinned = prefix_pin(l, keys, n, w->min_retention, 0, ret_pins, &why);
	for (size_t i = 0; i < acquired; i++) /* of a prefix, the first ones */
		handle[i] = got[i].handle;
	if (r > 0 && acquired)
		released = kvg_release(l->client, handle, acquired);
	if (pinned == 0)
		return r < 0 ? r : released;
	return (ssize_t)pinned;
}

ssize_t kvg_prefix_fetch(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, float want, struct kvg_pin *ret_pins)
{
	const struct wish w = {.min_retention = min_retention, .want = want, .prefix = 1};
	size_t done = 0;

	while (done < n) {
		ssize_t r;
		int why;

		done += prefix_pin(
			l, keys + done, n - done, min_retention, want, ret_pins + done, &why);
		if (why != -ENODATA)
			break;
		r = fetch_some(l, keys + done, n - done, &w, ret_pins + done);
		if (r <= 0)
			return done ? (ssize_t)done : r;
		done += (size_t)r;
	}
	return (ssize_t)done;
}
