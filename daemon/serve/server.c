/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The list of sessions and what concerns all of them: accepting, reloading, draining.
 *
 * Draining: the socket is closed for newcomers, stages and commits are refused; commits in flight, purges and
 * verifications go on and are answered, those who wait for planes are told that none come any more; when there is none left and every client has taken what waited for it, done
 * runs. Sessions stay until server_free(), so that clients may read on.
 */
#include "daemon/serve/server.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/serve/listener.h"
#include "daemon/serve/request.h"
#include "daemon/serve/sweeper.h"

/* Above max_sessions a client is still told why; above this it finds the door shut. */
#define CONNECTIONS_SPARE 64
/* Sessions are looked at by turns: some each time, a system call for each that stages. */
#define WATCH_NS          100000000
#define WATCH_SESSIONS    64

static void on_watch(void *userdata)
{
	struct server *s = userdata;
	struct session *session = s->watched ? s->watched : s->sessions;

	for (unsigned n = 0; session && n < WATCH_SESSIONS; n++) {
		session_watch(session);
		session = session->next;
	}
	s->watched = session;
}

int server_new(const struct server_parts *p, struct server **ret)
{
	struct server *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->parts = *p;
	s->buffers = request_buffers_new();
	r = s->buffers ? counters_scope(p->counters, "", "", &s->scope) : -ENOMEM;
	if (r == 0)
		r = loop_add_timer(p->loop, on_watch, s, &s->watch);
	if (r == 0)
		r = loop_arm(s->watch, WATCH_NS, WATCH_NS);
	if (r == 0)
		r = sweeper_new(p->loop, &s->sweeper);
	if (r < 0) {
		loop_del_timer(s->watch);
		request_buffers_free(s->buffers);
		free(s);
		return r;
	}
	cache_on_event(p->cache, events_deliver, s);
	*ret = s;
	return 0;
}

struct server *server_free(struct server *s)
{
	if (!s)
		return NULL;
	s->done = NULL;
	listener_free(s->listener);
	loop_del_timer(s->watch);
	commits_cancel(s);
	later_cancel(s);
	for (struct session *session = s->sessions; session; session = session->next)
		acquires_cancel(session);
	cache_on_event(s->parts.cache, NULL, NULL);
	loop_run_posted(s->parts.loop); /* sessions that are ending already */
	while (s->sessions)
		session_free(s->sessions);
	sweeper_free(s->sweeper);
	tenants_fini(&s->tenants);
	request_buffers_free(s->buffers);
	free(s);
	return NULL;
}

static void on_connection(void *userdata, int sock)
{
	struct server *s = userdata;
	struct session *session;

	if (s->n_sessions >= s->parts.options->max_sessions + CONNECTIONS_SPARE)
		close(sock);
	else
		session_new(s, sock,
			&session); /* what fails there is logged there; the next one may fare better */
}

int server_listen(struct server *s, char *ret_why, size_t why_size)
{
	const struct options *o = s->parts.options;

	return listener_new(s->parts.loop, s->parts.park, o->socket, (mode_t)o->socket_mode,
		on_connection, s, &s->listener, ret_why, why_size);
}

void server_reload(struct server *s, const struct options *o)
{
	tenants_reload(&s->tenants, s->parts.cache, o, s->parts.options);
	cache_set_watermarks(s->parts.cache, (float)o->high_watermark, (float)o->low_watermark);
	s->parts.options = o;
}

static void drained(struct server *s)
{
	server_done_fn done = s->done;

	if (!s->draining || s->n_batches || s->n_waiting || !done)
		return;
	s->done = NULL;
	done(s->done_userdata);
}

void server_drain(struct server *s, server_done_fn done, void *userdata)
{
	if (s->listener)
		listener_close(s->listener);
	s->draining = true;
	s->done = done;
	s->done_userdata = userdata;
	acquires_shut_down(s);
	drained(s);
}

void server_batch_done(struct server *s)
{
	assert(s->n_batches > 0);
	s->n_batches--;
	drained(s);
}

void server_waiting(struct server *s, int change)
{
	s->n_waiting += change;
	assert(s->n_waiting >= 0);
	drained(s);
}

void server_status(const struct server *s, char *ret, size_t size)
{
	snprintf(ret, size, "%lld sessions of %lld tenants, %lld requests under way%s",
		(long long)s->n_sessions, (long long)s->tenants.n, (long long)s->n_batches,
		s->draining ? ", going down" : "");
}
