/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What needs the socket: pins by the daemon's own count (for blocks in lower tiers, and for control sessions), hints,
 * and events. Batches are cut to what one message may hold.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static void fill_keys(ProtobufCBinaryData *to, const struct kvg_key *keys, size_t n)
{
	for (size_t i = 0; i < n; i++)
		to[i] = (ProtobufCBinaryData){
			.len = sizeof(keys[i].b), .data = (uint8_t *)(uintptr_t)keys[i].b};
}

static size_t batch_of(size_t left)
{
	return left < KVG_BATCH_MAX ? left : KVG_BATCH_MAX;
}

/* Up to KVG_BATCH_MAX keys. Returns how many results came, counting acquired ones into *acquired. */
static ssize_t acquire_batch(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, int prefix, struct kvg_acquired *ret, size_t *acquired)
{
	Kvgate__V1__Acquire m = KVGATE__V1__ACQUIRE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	const Kvgate__V1__AcquireReply *a;
	ProtobufCBinaryData bytes[KVG_BATCH_MAX];
	struct reply reply;
	ssize_t r;

	fill_keys(bytes, keys, n);
	m.layout = l->id;
	m.keys = bytes;
	m.n_keys = n;
	m.min_retention = min_retention;
	m.prefix = prefix;
	q.body_case = KVGATE__V1__REQUEST__BODY_ACQUIRE;
	q.acquire = &m;
	r = client_call(l->client, &q, &reply);
	if (r < 0)
		return r;
	a = reply.msg->acquire;
	r = (ssize_t)a->n_blocks;
	if (a->n_blocks > n || (!prefix && a->n_blocks < n))
		r = client_end(l->client, -EPROTO, "an acquire reply of the wrong length");
	for (ssize_t i = 0; i < r; i++) {
		const Kvgate__V1__BlockResult *b = a->blocks[i];

		ret[i] = (struct kvg_acquired){
			.code = (int)b->code,
			.handle = kvg_handle_unpack(b->handle),
			.retention = b->retention,
			.held = b->held,
			.mapped = b->mapped,
		};
		*acquired += b->code == KVG_CODE_OK;
	}
	reply_fini(&reply);
	return r;
}

ssize_t kvg_acquire(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float min_retention,
	int prefix, struct kvg_acquired *ret)
{
	size_t acquired = 0;

	for (size_t i = 0; i < n; i++)
		ret[i] = (struct kvg_acquired){.code = KVG_CODE_NOT_FOUND};
	for (size_t done = 0; done < n;) {
		const size_t batch = batch_of(n - done);
		ssize_t got = acquire_batch(
			l, keys + done, batch, min_retention, prefix, ret + done, &acquired);

		if (got < 0)
			return acquired ? (ssize_t)acquired : got;
		done += batch;
		if (prefix && acquired < done)
			break;
	}
	return (ssize_t)acquired;
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

ssize_t kvg_prefetch(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float retention)
{
	ProtobufCBinaryData bytes[KVG_BATCH_MAX];
	ssize_t present = 0;

	for (size_t done = 0; done < n;) {
		Kvgate__V1__Prefetch m = KVGATE__V1__PREFETCH__INIT;
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		struct reply reply;
		int r;

		m.layout = l->id;
		m.n_keys = batch_of(n - done);
		fill_keys(bytes, keys + done, m.n_keys);
		m.keys = bytes;
		m.retention = retention;
		q.body_case = KVGATE__V1__REQUEST__BODY_PREFETCH;
		q.prefetch = &m;
		r = client_call(l->client, &q, &reply);
		if (r < 0)
			return r;
		present += reply.msg->prefetch->present;
		reply_fini(&reply);
		done += m.n_keys;
	}
	return present;
}

/* ---- events ---- */

int kvg_subscribe(struct kvg_client *c, uint32_t events, kvg_event_fn fn, void *userdata)
{
	Kvgate__V1__Subscribe m = KVGATE__V1__SUBSCRIBE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	int r;

	if (events && !fn)
		return client_fail(c, -EINVAL, 0, "events without a function to take them");
	m.events = events;
	q.body_case = KVGATE__V1__REQUEST__BODY_SUBSCRIBE;
	q.subscribe = &m;
	r = client_call(c, &q, &reply);
	if (r < 0)
		return r;
	reply_fini(&reply);
	c->events = events;
	c->event_fn = events ? fn : NULL;
	c->event_userdata = userdata;
	return 0;
}

int subscribe_again(struct kvg_client *c)
{
	return c->events ? kvg_subscribe(c, c->events, c->event_fn, c->event_userdata) : 0;
}

void event_deliver(struct kvg_client *c, const Kvgate__V1__Event *m)
{
	struct kvg_event e = {
		.kind = (int)m->kind,
		.tenant = m->tenant,
		.layout = m->layout,
		.held = m->held,
		.handle = kvg_handle_unpack(m->handle),
		.bytes = m->bytes,
		.count = m->count,
	};

	if (m->key.len)
		memcpy(e.key.b, m->key.data, sizeof(e.key.b));
	if (c->event_fn)
		c->event_fn(c->event_userdata, &e);
}
