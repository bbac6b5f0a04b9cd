/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The connection is the lock: whatever a session holds hangs on this struct, and session_free() takes all of it back.
 *
 *   connected --> GREETING --hello--> OPEN --+--> ENDING --> freed
 *                    +---------------------- + end of file, death of the process (pidfd), a message that cannot
 *                                              be, a socket that nobody reads
 *   of the last daemon --> AWAY --resumed by another session, or its process is gone--> freed          (away.c)
 *
 * A session can come to its end anywhere, also while an event is delivered to it or one of its commits is answered.
 * So session_end() only silences it, and posts the rest to the loop: then nobody is in the middle of anything.
 *
 * One wake-up takes one message, answers it, and goes back to sleep: a second recvmsg() to learn that nothing more
 * is there would cost every lone request one more system call, and the loop comes back anyway when there is more.
 */
#include "daemon/serve/session.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/serve/away.h"
#include "daemon/serve/request.h"

struct counter_scope *session_scope(const struct session *s)
{
	return s->tenant ? s->tenant->scope : s->server->scope;
}

static const char *tenant_name(const struct session *s)
{
	return s->tenant ? s->tenant->name : "";
}

static void end_greeting(struct session *s)
{
	if (!s->link_greeting)
		return;
	*s->link_greeting = s->next_greeting;
	if (s->next_greeting)
		s->next_greeting->link_greeting = s->link_greeting;
	s->link_greeting = NULL;
}

void session_greeted(struct session *s, struct tenant *t)
{
	end_greeting(s);
	s->tenant = t;
	t->users++;
}

static bool holds_something(const struct session *s)
{
	return s->stages.used || s->held.used || s->acquires || s->batches ||
		pinpage_holds(&s->pinpage);
}

static void release_held(struct session *s)
{
	struct kvg_handle handle;
	uint32_t cursor = 0, count;

	while (held_take_any(&s->held, &cursor, &handle, &count))
		while (count--)
			cache_release(s->tenant->cache, handle);
	held_fini(&s->held);
	charge_fini(&s->held_charge);
}

static void silence(struct session *s)
{
	s->on_sock = loop_del_fd(s->on_sock);
	s->on_death = loop_del_fd(s->on_death);
	if (s->waiting)
		server_waiting(s->server, -1);
	s->waiting = false;
}

/*
 * What the client has not read yet it can still read after the end, but only if nothing that it sent lies here unread: else
 * the kernel tells it of a connection reset first.
 */
static void shut(int sock)
{
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds = 0;
	ssize_t n;
	char byte;

	shutdown(sock, SHUT_RDWR);
	while ((n = wire_recv(sock, &byte, 1, fds, KVG_MESSAGE_FDS_MAX, &n_fds)) > 0 ||
		n == -EMSGSIZE || n == -ETOOMANYREFS)
		for (; n_fds; n_fds--)
			close(fds[n_fds - 1]);
	close(sock);
}

int session_hold_layout(struct session *s, struct cache_layout *l)
{
	struct cache_layout **more;

	for (uint32_t i = 0; i < s->n_layouts; i++)
		if (s->layouts[i] == l)
			return 0;
	more = reallocarray(s->layouts, s->n_layouts + 1, sizeof(*more));
	if (!more)
		return -ENOMEM;
	s->layouts = more;
	s->layouts[s->n_layouts++] = l;
	cache_layout_hold(l);
	return 0;
}

static void drop_layouts(struct session *s)
{
	while (s->n_layouts)
		cache_layout_drop(s->layouts[--s->n_layouts]);
	free(s->layouts);
	s->layouts = NULL;
}

void session_free(struct session *s)
{
	if (!s)
		return;
	silence(s);
	if (s->state != SESSION_GREETING && s->tenant && holds_something(s))
		counter_add(s->tenant->scope, COUNTER_RECLAIMED, 0, 1);
	events_unsubscribe(s);
	commits_orphan(s);
	later_orphan(s);
	acquires_cancel(s);
	arrivals_fini(&s->arrivals);
	release_held(s);
	stages_fini(&s->stages);
	drop_layouts(s);
	pinpage_fini(&s->pinpage);
	away_forget(s);
	charge_fini(&s->page_pins);
	outbox_fini(&s->outbox);
	charge_fini(&s->presence);
	end_greeting(s);
	if (s->tenant)
		s->tenant->users--;
	peer_fini(&s->peer);
	if (s->sock >= 0)
		shut(s->sock);
	if (s->server->watched == s)
		s->server->watched = s->next;
	*s->link = s->next;
	if (s->next)
		s->next->link = s->link;
	s->server->n_sessions--;
	free(s);
}

static void on_end(struct loop_work *w)
{
	session_free((struct session *)((char *)w - offsetof(struct session, end)));
}

void session_end(struct session *s, const char *why)
{
	if (s->state == SESSION_ENDING)
		return;
	log_debug("session ends", "session=%llu tenant=%s pid=%d client=\"%s\" why=\"%s\"",
		(unsigned long long)s->id, tenant_name(s), (int)s->peer.pid, s->client, why);
	s->state = SESSION_ENDING;
	silence(s);
	s->end.fn = on_end;
	loop_post(s->server->parts.loop, &s->end);
}

/* The 1st, 2nd, 4th, 8th ... of a tenant: nobody fills the log by what he may do again and again. */
static bool worth_a_line(int64_t n)
{
	return !(n & (n - 1));
}

static void cut_off(struct session *s, int error)
{
	int64_t n;

	if (error == -EPIPE || error == -ECONNRESET) {
		session_end(s, "hung up");
		return;
	}
	counter_add(session_scope(s), COUNTER_CUT_OFF, 0, 1);
	n = counter_get(session_scope(s), COUNTER_CUT_OFF, 0);
	if (worth_a_line(n))
		log_warning("client cut off",
			"session=%llu tenant=%s pid=%d client=\"%s\" why=\"%s\" so_far=%lld",
			(unsigned long long)s->id, tenant_name(s), (int)s->peer.pid, s->client,
			error == -ENOBUFS || error == -EDQUOT ? "does not read its replies"
							      : strerror(-error),
			(long long)n);
	session_end(s, "cut off");
}

void session_watch(struct session *s)
{
	bool enough;
	uint64_t excess = stages_watch(&s->stages, loop_now_ns(), &enough);

	if (!excess || s->state == SESSION_ENDING)
		return;
	counter_add(s->tenant->scope, COUNTER_STAGING_OUTSIDE, 0, 1);
	if (!enough)
		return;
	log_warning("client cut off",
		"session=%llu tenant=%s pid=%d client=\"%s\" why=\"writes outside its stages\" "
		"bytes=%llu",
		(unsigned long long)s->id, s->tenant->name, (int)s->peer.pid, s->client,
		(unsigned long long)excess);
	session_end(s, "wrote outside its stages");
}

/* A subscriber that lost events is told so as soon as it has read what it got, whether more happens or not. */
static int wait_for_room(struct session *s, bool waiting)
{
	waiting |= s->events_lost != 0;
	if (waiting == s->waiting)
		return 0;
	s->waiting = waiting;
	server_waiting(s->server, waiting ? 1 : -1);
	return loop_set_events(s->on_sock, waiting ? EPOLLIN | EPOLLOUT : EPOLLIN);
}

void session_send(struct session *s, const void *data, size_t n, const int *fds, unsigned n_fds)
{
	bool waiting = s->waiting;
	int r;

	if (s->state == SESSION_ENDING)
		return;
	r = outbox_send(
		&s->outbox, s->tenant ? &s->tenant->account : NULL, data, n, fds, n_fds, &waiting);
	if (r == 0)
		r = wait_for_room(s, waiting);
	if (r < 0)
		cut_off(s, r);
}

bool session_offer(struct session *s, const void *data, size_t n)
{
	bool waiting = s->waiting;
	int r;

	if (s->state == SESSION_ENDING)
		return true;
	r = outbox_offer(&s->outbox, &s->tenant->account, data, n, &waiting);
	if (r == -ENOBUFS)
		return false;
	if (r == 0)
		r = wait_for_room(s, waiting);
	if (r < 0)
		cut_off(s, r);
	return true;
}

void session_lost_event(struct session *s)
{
	int r;

	s->events_lost++;
	counter_add(s->tenant->scope, COUNTER_EVENTS_LOST, 0, 1);
	r = wait_for_room(s, true);
	if (r < 0)
		cut_off(s, r);
}

void session_bad_message(struct session *s, const char *what, const char *why)
{
	int64_t n;

	counter_add(session_scope(s), COUNTER_BAD_MESSAGES, 0, 1);
	n = counter_get(session_scope(s), COUNTER_BAD_MESSAGES, 0);
	if (!worth_a_line(n))
		return;
	log_warning("bad message",
		"session=%llu tenant=%s pid=%d client=\"%s\" code=%s why=\"%s\" so_far=%lld",
		(unsigned long long)s->id, tenant_name(s), (int)s->peer.pid, s->client, what, why,
		(long long)n);
}

static void receive(struct session *s)
{
	void *buf = request_buffers_in(s->server->buffers);
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds = 0;
	ssize_t n = wire_recv(s->sock, buf, KVG_MESSAGE_MAX, fds, KVG_MESSAGE_FDS_MAX, &n_fds);

	if (n > 0) {
		for (unsigned i = 0; i < n_fds; i++) /* no request of this version takes any */
			close(fds[i]);
		request_serve(s, buf, (size_t)n, n_fds);
	} else if (n == 0 || n == -ECONNRESET) {
		session_end(s, "end of file");
	} else if (n == -EMSGSIZE) {
		request_end(s, KVG_CODE_BAD_MESSAGE, "the message was longer than %u bytes",
			KVG_MESSAGE_MAX);
	} else if (n == -ETOOMANYREFS) {
		request_end(s, KVG_CODE_BAD_FDS,
			"more file descriptors came than the %u of a message, or than can be "
			"opened",
			KVG_MESSAGE_FDS_MAX);
	} else if (n != -EAGAIN) {
		cut_off(s, (int)n);
	}
}

static int flush(struct session *s)
{
	bool waiting = s->waiting;
	int r = outbox_flush(&s->outbox, &waiting);

	if (r == 0 && !waiting)
		events_catch_up(s);
	if (r == 0 && s->state != SESSION_ENDING)
		r = wait_for_room(s, s->outbox.first != NULL);
	return r;
}

static void on_socket(void *userdata, uint32_t events)
{
	struct session *s = userdata;

	if (events & EPOLLOUT) {
		int r = flush(s);

		if (r < 0)
			cut_off(s, r);
		if (s->state == SESSION_ENDING)
			return;
	}
	if (events & (EPOLLIN | EPOLLHUP | EPOLLERR))
		receive(s);
}

static void on_pidfd(void *userdata, uint32_t events)
{
	(void)events;
	session_end(userdata, "its process is gone");
}

/*
 * Whoever connects has said nothing yet and gets nothing but this: so it makes no tenant, and one user cannot take all
 * connections by saying nothing.
 */
static int begin_greeting(struct session *s)
{
	struct server *server = s->server;
	unsigned n = 0;

	for (const struct session *o = server->greetings; o; o = o->next_greeting)
		n += o->peer.uid == s->peer.uid;
	if (n >= SESSION_GREETINGS_MAX) {
		if (!server->refusing)
			log_warning("connections are refused",
				"uid=%u why=\"too many that have not said hello\"",
				(unsigned)s->peer.uid);
		server->refusing = true;
		request_farewell(s, KVG_CODE_QUOTA,
			"user %u has %u connections that have not said hello: close them",
			(unsigned)s->peer.uid, n);
		return -EDQUOT;
	}
	server->refusing = false;
	s->next_greeting = server->greetings;
	s->link_greeting = &server->greetings;
	if (s->next_greeting)
		s->next_greeting->link_greeting = &s->next_greeting;
	server->greetings = s;
	return 0;
}

static struct session *make(struct server *server, int sock)
{
	struct session *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	*s = (struct session){.server = server, .sock = sock, .peer.pidfd = -1};
	outbox_init(&s->outbox, sock);
	pinpage_init(&s->pinpage);
	arrivals_init(&s->arrivals);
	stages_init(&s->stages, server->sweeper);
	s->next = server->sessions;
	s->link = &server->sessions;
	if (s->next)
		s->next->link = &s->next;
	server->sessions = s;
	server->n_sessions++;
	return s;
}

int session_new_away(struct server *server, struct tenant *t, uint64_t id, const struct peer *peer,
	struct session **ret)
{
	struct session *s = make(server, -1);
	int r;

	if (!s)
		return -ENOMEM;
	s->state = SESSION_AWAY;
	s->id = id;
	s->tenant = t;
	t->users++;
	s->peer = *peer;
	r = loop_add_fd(server->parts.loop, s->peer.pidfd, EPOLLIN, on_pidfd, s, &s->on_death);
	if (r < 0) {
		s->peer.pidfd = -1; /* the caller's still */
		session_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int session_new(struct server *server, int sock, struct session **ret)
{
	struct session *s = make(server, sock);
	int r;

	if (!s) {
		close(sock);
		return -ENOMEM;
	}
	s->id = ++server->last_session;
	r = peer_init(&s->peer, sock);
	if (r == 0)
		r = begin_greeting(s);
	if (r == 0)
		r = loop_add_fd(server->parts.loop, sock, EPOLLIN, on_socket, s, &s->on_sock);
	if (r == 0 && s->peer.pidfd >= 0)
		r = loop_add_fd(
			server->parts.loop, s->peer.pidfd, EPOLLIN, on_pidfd, s, &s->on_death);
	if (r < 0) {
		session_free(s);
		return r;
	}
	s->admin = s->peer.uid == 0 || s->peer.uid == geteuid();
	*ret = s;
	return 0;
}
