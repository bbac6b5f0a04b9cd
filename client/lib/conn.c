/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One socket, many requests in flight, no threads. Every request has a `struct call` until its reply is in:
 *
 *   client_send ──> calls ──reply──> BLOCKING: marked done, the waiter takes it
 *                                    COMMIT: queue ──kvg_dispatch──> its function
 *                                    ABANDONED: what the reply gives us is given back
 *
 * A call whose waiter ran out of time is not forgotten but abandoned, because its reply may still bring a stage,
 * a pin or an fd. So a reply without a call is always a broken peer, and ends the connection.
 *
 * Functions of the caller run in kvg_dispatch() only; what arrives while a blocking call waits is queued.
 * kvg_fd() is an epoll fd over the socket and an eventfd that is up while the queue is not empty; it is made
 * when it is first asked for, since most programs never do.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A caller that never dispatches loses events, as a slow reader of the socket does. */
#define EVENTS_QUEUED_MAX     4096u
/* Taken from the socket in one kvg_dispatch(), so that it returns. */
#define DISPATCH_MESSAGES_MAX 64u

static uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

static uint64_t deadline_after(int timeout_ms)
{
	return timeout_ms < 0 ? UINT64_MAX : now_ms() + (uint64_t)timeout_ms;
}

int client_end(struct kvg_client *c, int r, const char *what)
{
	if (!c->dead) {
		c->dead = r;
		c->lookup_error = -ENOTCONN;
		shutdown(c->sock, SHUT_RDWR);
	}
	return client_fail(c, c->dead, 0, "%s; open a new connection", what);
}

/* ---- what kvg_dispatch() will hand out ---- */

static void wake(struct kvg_client *c)
{
	if (c->wake_fd >= 0 && c->queue)
		eventfd_write(c->wake_fd, 1);
}

static void unwake(struct kvg_client *c)
{
	eventfd_t v;

	if (c->wake_fd >= 0 && !c->queue)
		eventfd_read(c->wake_fd, &v);
}

static void enqueue(struct kvg_client *c, struct call *call, int error, struct reply *r)
{
	struct delivery *d = calloc(1, sizeof(*d));

	if (!d) { /* out of memory: an event is lost and counted, the end of a commit must not be */
		reply_fini(r);
		if (call)
			commit_deliver(c, call, -ENOMEM, NULL);
		else
			c->lost_events++;
		free(call);
		return;
	}
	*d = (struct delivery){.call = call, .error = error, .reply = *r};
	*c->queue_end = d;
	c->queue_end = &d->next;
	c->n_events += !call;
	wake(c);
}

static struct delivery *dequeue(struct kvg_client *c)
{
	struct delivery *d = c->queue;

	if (!d)
		return NULL;
	c->queue = d->next;
	if (!c->queue)
		c->queue_end = &c->queue;
	c->n_events -= !d->call;
	return d;
}

/* ---- replies ---- */

static void give_back(struct kvg_client *c, Kvgate__V1__Request *q)
{
	if (!c->dead)
		client_send(c, q, CALL_ABANDONED, NULL);
}

/* A reply that nobody waits for any more: stages and pins that it grants go back at once. */
static void late_reply(struct kvg_client *c, struct reply *r)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Abort abort_ = KVGATE__V1__ABORT__INIT;
	Kvgate__V1__Release release = KVGATE__V1__RELEASE__INIT;
	uint64_t ids[KVG_BATCH_MAX];
	size_t n = 0;

	if (r->msg->body_case == KVGATE__V1__REPLY__BODY_STAGE && stage_adopt(c, r) == 0) {
		const Kvgate__V1__StageReply *s = r->msg->stage;

		for (; n < s->n_slots && n < KVG_BATCH_MAX; n++)
			ids[n] = s->slots[n]->stage;
		abort_.stages = ids;
		abort_.n_stages = n;
		q.body_case = KVGATE__V1__REQUEST__BODY_ABORT;
		q.abort = &abort_;
	} else if (r->msg->body_case == KVGATE__V1__REPLY__BODY_ACQUIRE &&
		arrival_adopt(c, r) == 0) {
		const Kvgate__V1__AcquireReply *a = r->msg->acquire;

		for (size_t i = 0; i < a->n_blocks && n < KVG_BATCH_MAX; i++)
			if (a->blocks[i]->code == KVG_CODE_OK)
				ids[n++] = a->blocks[i]->handle;
		release.handles = ids;
		release.n_handles = n;
		q.body_case = KVGATE__V1__REQUEST__BODY_RELEASE;
		q.release = &release;
	}
	if (n)
		give_back(c, &q);
}

static struct call **find_call(struct kvg_client *c, uint64_t id)
{
	struct call **p = &c->calls;

	while (*p && (*p)->id != id)
		p = &(*p)->next;
	return p;
}

static struct call *take_call(struct kvg_client *c, uint64_t id)
{
	struct call **p = find_call(c, id), *call = *p;

	if (call)
		*p = call->next;
	return call;
}

static void accept_event(struct kvg_client *c, struct reply *r)
{
	if (c->n_events < EVENTS_QUEUED_MAX) {
		enqueue(c, NULL, 0, r);
	} else {
		c->lost_events++;
		reply_fini(r);
	}
}

static int accept_reply(struct kvg_client *c, struct reply *r)
{
	struct call *call = *find_call(c, r->msg->id);

	if (!call || call->done ||
		(r->msg->code == KVG_CODE_OK && r->msg->body_case != call->body)) {
		reply_fini(r);
		return client_end(c, -EPROTO, "the daemon answered what was not asked");
	}
	switch (call->kind) {
	case CALL_BLOCKING: /* stays in the list until its waiter takes it */
		call->reply = *r;
		call->done = true;
		break;
	case CALL_COMMIT:
		enqueue(c, take_call(c, call->id), 0, r);
		break;
	case CALL_ABANDONED:
		free(take_call(c, call->id));
		late_reply(c, r);
		reply_fini(r);
		break;
	}
	return 0;
}

/* Its last message: what it says is what the caller is told, as of a request that was refused. */
static int ended_by_daemon(struct kvg_client *c, struct reply *r)
{
	int error = code_errno(r->msg->code);

	client_end(c, error ? error : -EPROTO, "the daemon ended the connection");
	reply_refused(c, r);
	reply_fini(r);
	return c->dead;
}

/* Takes one message if there is one. 1: took one; 0: nothing there; negative: the connection is over. */
static int receive_one(struct kvg_client *c)
{
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds = 0;
	struct reply reply;
	ssize_t n;
	int r;

	n = wire_recv(c->sock, c->in, sizeof(c->in), fds, KVG_MESSAGE_FDS_MAX, &n_fds);
	if (n == -EAGAIN)
		return 0;
	if (n == 0)
		return client_end(c, -ECONNRESET, "the daemon closed the connection");
	if (n < 0)
		return client_end(c, (int)n, "receiving from the daemon failed");
	r = reply_parse(c->in, (size_t)n, fds, n_fds, &reply);
	if (r < 0)
		return client_end(c, -EPROTO, "the daemon sent a message that cannot be");
	if (reply_is_end(reply.msg))
		r = ended_by_daemon(c, &reply);
	else if (reply.msg->id == 0)
		accept_event(c, &reply);
	else
		r = accept_reply(c, &reply);
	return r < 0 ? r : 1;
}

/* Waits until the socket can do `events`, and takes in what arrives meanwhile. -ETIMEDOUT. */
static int wait_socket(struct kvg_client *c, short events, uint64_t deadline)
{
	struct pollfd p = {.fd = c->sock, .events = events | POLLIN};
	int timeout = -1, n;

	if (deadline != UINT64_MAX) {
		uint64_t now = now_ms();

		timeout = now < deadline
			? (int)(deadline - now < INT32_MAX ? deadline - now : INT32_MAX)
			: 0;
	}
	n = poll(&p, 1, timeout);
	if (n < 0)
		return errno == EINTR ? 0 : client_end(c, -errno, "poll failed");
	if (n == 0)
		return -ETIMEDOUT;
	if (p.revents & (POLLIN | POLLHUP | POLLERR)) {
		n = receive_one(c);
		return n < 0 ? n : 0;
	}
	return 0;
}

/* ---- requests ---- */

/* The daemon is gone. What it said before, and why it went, may still lie in the socket. */
static int hung_up(struct kvg_client *c)
{
	while (!c->dead && receive_one(c) > 0)
		;
	return c->dead ? c->dead : client_end(c, -ECONNRESET, "the daemon closed the connection");
}

static int send_packed(struct kvg_client *c, const Kvgate__V1__Request *q, uint64_t deadline)
{
	size_t n = kvgate__v1__request__get_packed_size(q);
	uint8_t *data;
	int r;

	if (n > KVG_MESSAGE_MAX)
		return client_fail(c, -EMSGSIZE, KVG_CODE_TOO_LARGE,
			"the request has %zu bytes, a message at most %u; use shorter strings or "
			"smaller batches",
			n, KVG_MESSAGE_MAX);
	data = malloc(n);
	if (!data)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	kvgate__v1__request__pack(q, data);
	do {
		r = c->dead ? c->dead : wire_send(c->sock, data, n, NULL, 0);
		if (r != -EAGAIN)
			break;
		r = wait_socket(c, POLLOUT, deadline);
	} while (r == 0);
	free(data);
	if (r == -ETIMEDOUT)
		return client_fail(c, r, 0, "the daemon does not read; the request was not sent");
	if (r == -EPIPE || r == -ECONNRESET)
		return hung_up(c);
	return r < 0 ? client_end(c, r, "sending to the daemon failed") : 0;
}

static int send_once(
	struct kvg_client *c, Kvgate__V1__Request *q, enum call_kind kind, struct call **ret)
{
	struct call *call;
	int r;

	r = client_revive(c);
	if (r < 0)
		return r;
	call = calloc(1, sizeof(*call));
	if (!call)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	q->id = ++c->next_id;
	q->fds = 0;
	*call = (struct call){
		.next = c->calls,
		.id = q->id,
		.kind = kind,
		.body = (Kvgate__V1__Reply__BodyCase)q->body_case, /* the same numbers */
	};
	c->calls = call;
	r = send_packed(c, q, deadline_after(c->timeout_ms));
	if (r < 0) {
		free(take_call(c, q->id));
		return r;
	}
	if (ret)
		*ret = call;
	return 0;
}

/* That the daemon is gone is often noticed only here, before anything was said: then it can be said to the next one. */
int client_send(
	struct kvg_client *c, Kvgate__V1__Request *q, enum call_kind kind, struct call **ret)
{
	const bool lived = !c->dead;
	int r = send_once(c, q, kind, ret);

	if (r < 0 && lived && c->dead && c->resume_ms > 0 && !c->resuming && client_revive(c) == 0)
		r = send_once(c, q, kind, ret);
	return r;
}

int reply_refused(struct kvg_client *c, const struct reply *reply)
{
	const Kvgate__V1__Reply *m = reply->msg;
	int r = code_errno(m->code);

	if (m->code == KVG_CODE_OK)
		return 0;
	return client_fail(c, r ? r : -EPROTO, (int)m->code, "%s",
		m->error && m->error[0] ? m->error : kvg_code_prose((int)m->code));
}

static int call_once(struct kvg_client *c, Kvgate__V1__Request *q, struct reply *ret)
{
	uint64_t deadline = deadline_after(c->timeout_ms);
	struct call *call;
	struct reply reply;
	int r;

	r = client_send(c, q, CALL_BLOCKING, &call);
	if (r < 0)
		return r;
	while (!call->done && r == 0)
		r = wait_socket(c, 0, deadline);
	if (!call->done) {
		if (r == -ETIMEDOUT) {
			call->kind = CALL_ABANDONED;
			return client_fail(c, r, 0,
				"no answer within %d ms; is the daemon overloaded or stopped?",
				c->timeout_ms);
		}
		free(take_call(c, q->id));
		return r;
	}
	reply = call->reply;
	free(take_call(c, q->id));
	r = reply_refused(c, &reply);
	if (r < 0)
		reply_fini(&reply);
	else
		*ret = reply;
	return r;
}

/*
 * A daemon that dies takes the answer with it, and whether it did what was asked does not matter to the next one: all these
 * requests ask for something, or say what is to be from then on. But for commits: their stages are gone, and the blocks
 * may be there.
 */
int client_call(struct kvg_client *c, Kvgate__V1__Request *q, struct reply *ret)
{
	const bool lived = !c->dead;
	int r = call_once(c, q, ret);

	if (q->body_case == KVGATE__V1__REQUEST__BODY_COMMIT)
		return r;
	if (r < 0 && lived && c->dead && c->resume_ms > 0 && !c->resuming && client_revive(c) == 0)
		r = call_once(c, q, ret);
	return r;
}

static void fail_commits(struct kvg_client *c)
{
	for (struct call **p = &c->calls; *p;) {
		struct call *call = *p;
		struct reply none = {0};

		if (call->kind != CALL_COMMIT) {
			p = &call->next;
			continue;
		}
		*p = call->next;
		enqueue(c, call, c->dead, &none);
	}
}

static void drop_calls(struct kvg_client *c)
{
	while (c->calls) {
		struct call *call = c->calls;

		c->calls = call->next;
		reply_fini(&call->reply);
		free(call);
	}
}

void client_hang_up(struct kvg_client *c)
{
	fail_commits(c);
	drop_calls(c);
	close(c->sock); /* and so out of poll_fd */
	c->sock = -1;
}

int client_watch_again(struct kvg_client *c)
{
	struct epoll_event in = {.events = EPOLLIN};

	if (c->poll_fd >= 0 && epoll_ctl(c->poll_fd, EPOLL_CTL_ADD, c->sock, &in) < 0)
		return client_fail(c, -errno, 0, "epoll: %s", strerror(errno));
	return 0;
}

void client_drop_calls(struct kvg_client *c)
{
	struct delivery *d;

	while ((d = dequeue(c))) {
		reply_fini(&d->reply);
		free(d->call);
		free(d);
	}
	drop_calls(c);
}

/* ---- the event loop's side ---- */

int kvg_fd(const struct kvg_client *cc)
{
	struct kvg_client *c = (struct kvg_client *)(uintptr_t)cc; /* the fds are made on demand */
	struct epoll_event in = {.events = EPOLLIN};
	int poll_fd, wake_fd;

	if (c->poll_fd >= 0)
		return c->poll_fd;
	poll_fd = epoll_create1(EPOLL_CLOEXEC);
	wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (poll_fd < 0 || wake_fd < 0 || epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->sock, &in) < 0 ||
		epoll_ctl(poll_fd, EPOLL_CTL_ADD, wake_fd, &in) < 0) {
		int r = client_fail(c, -errno, 0, "no file descriptors left for kvg_fd()");

		if (poll_fd >= 0)
			close(poll_fd);
		if (wake_fd >= 0)
			close(wake_fd);
		return r;
	}
	c->poll_fd = poll_fd;
	c->wake_fd = wake_fd;
	wake(c);
	return poll_fd;
}

int kvg_dispatch(struct kvg_client *c)
{
	struct delivery *d;

	for (unsigned n = 0; n < DISPATCH_MESSAGES_MAX && !c->dead; n++)
		if (receive_one(c) <= 0)
			break;
	if (c->dead)
		fail_commits(c);
	while ((d = dequeue(c))) {
		if (d->call)
			commit_deliver(c, d->call, d->error, &d->reply);
		else
			event_deliver(c, d->reply.msg->event);
		reply_fini(&d->reply);
		free(d->call);
		free(d);
	}
	if (c->lost_events) {
		Kvgate__V1__Event lost = KVGATE__V1__EVENT__INIT;

		lost.count = c->lost_events;
		c->lost_events = 0;
		event_deliver(c, &lost);
	}
	unwake(c);
	return c->dead;
}
