/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon that was restarted has the same index, the same segments, and this session's pin page with every pin in it: so
 * what is pinned here stays pinned, and pointers into planes stay good, whether anybody connects or not. Only the connection
 * is new:
 *
 *	connect, hello {resume = our session}	the same session, the index of the same instance, another epoch
 *	register each layout again		under the id it had
 *	subscribe again
 *
 * What hung on the old connection is gone: stages (their memory stays mapped, for whoever is still writing to it), pins through
 * the socket and the planes that were on their way for them, calls without an answer. Where the daemon does not have our session, or another index, nothing is as it was:
 * that is -ESTALE, and a matter for a new client.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <time.h>

#define PAUSE_MS 10 /* between two tries */

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

/* Is it the memory that we have? Its epoch is the new session's. */
static int same_index(struct kvg_client *c, int fd)
{
	struct index_map m;
	const char *why = "";
	int r = index_map_init(&m, fd, &why);

	if (r < 0)
		return client_fail(c, r, 0, "hello: %s", why);
	if (memcmp(m.head->instance, c->index.head->instance, sizeof(m.head->instance)))
		r = client_fail(c, -ESTALE, 0,
			"the daemon lost what it had: close this client and open a new one");
	else
		c->epoch = atomic_load_explicit(&m.head->epoch, memory_order_relaxed);
	index_map_fini(&m);
	return r;
}

static int resume_session(struct kvg_client *c)
{
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;
	struct reply reply;
	int r;

	h.resume = c->info.session;
	r = client_hello(c, &h, &reply);
	if (r < 0)
		return c->code == KVG_CODE_NO_SESSION ? -ESTALE : r;
	if (reply.msg->hello->session != c->info.session)
		r = client_fail(c, -EPROTO, 0, "the daemon resumed another session");
	else
		r = same_index(c, reply.fds[0]);
	reply_fini(&reply);
	return r;
}

static int connect_anew(struct kvg_client *c)
{
	int r;

	if (c->sock >= 0)
		client_hang_up(c);
	r = client_connect(c);
	if (r == 0) {
		c->dead = 0;
		r = resume_session(c);
	}
	if (r == 0) {
		stage_retire(c);
		c->arrival_old = true;
		r = client_watch_again(c);
	}
	for (struct kvg_layout *l = c->layouts; l && r == 0; l = l->next)
		r = layout_register_again(l);
	if (r == 0)
		r = devices_open_again(c);
	if (r == 0)
		r = subscribe_again(c);
	if (r == 0) {
		c->lookup_error = 0;
		return 0;
	}
	c->dead = r;
	c->lookup_error = -ENOTCONN;
	return r;
}

static bool hung_up(const struct kvg_client *c)
{
	struct pollfd p = {.fd = c->sock};

	return poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR));
}

int kvg_resume(struct kvg_client *c)
{
	int r;

	if (!c->index.head)
		return client_fail(c, -EOPNOTSUPP, 0,
			"a control session holds nothing: close it and open another");
	if (!c->dead && !c->lookup_error && !hung_up(c) &&
		atomic_load_explicit(&c->index.head->epoch, memory_order_relaxed) == c->epoch)
		return 0;
	if (c->dead == -ESTALE)
		return client_fail(
			c, c->dead, 0, "the session is lost: close this client and open a new one");
	if (!c->dead)
		client_end(c, -ECONNRESET, "the daemon was restarted");
	c->resuming = true;
	r = connect_anew(c);
	c->resuming = false;
	return r;
}

/* Worth another try: there is no daemon yet. */
static bool may_come(int r)
{
	return r == -ECONNREFUSED || r == -ENOENT || r == -ECONNRESET || r == -EPIPE ||
		r == -ETIMEDOUT || r == -EAGAIN;
}

int client_revive(struct kvg_client *c)
{
	const bool other = c->index.head && !c->lookup_error &&
		atomic_load_explicit(&c->index.head->epoch, memory_order_relaxed) != c->epoch;
	uint64_t until;
	int r;

	if (!c->dead && !other)
		return 0;
	if (c->resume_ms <= 0 || c->resuming || !c->index.head)
		return other
			? 0
			: client_fail(c, c->dead, 0, "the connection has ended; open a new one");
	until = now_ms() + (uint64_t)c->resume_ms;
	while ((r = kvg_resume(c)) < 0 && may_come(r) && now_ms() < until)
		poll(NULL, 0, PAUSE_MS);
	return r;
}
