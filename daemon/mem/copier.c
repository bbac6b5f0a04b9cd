/* SPDX-License-Identifier: Apache-2.0 */
/*
 *	DOWN --spawn--> STARTING --READY--> READY
 *	  ^ <-------- its pidfd is readable ---'		after a pause that doubles, and is forgotten at READY
 *
 * A job waits in `queue`, and is in `sent` from its COPY to its DONE. When a mover ends, what was sent goes back to the front
 * of the queue, in its order, and is done again by the next: from nothing, since of a half done copy nothing is known. The next
 * mover is started only when the kernel says that the last one is no more, so that no two write to the same pages, and
 * a job's pages are its own until done().
 *
 * A mover knows no segments when it starts. Each is sent before the first job that names it, with a descriptor from the pool; a GPU
 * segment that nobody has written to yet is zeroed first, because what a device had there was somebody's.
 *
 * Who waits for ever for a device that does not come up gains nothing: after STARTS_VAIN starts in vain every job ends with
 * -ENODEV, until a mover is ready again. A job over which JOB_TRIES movers ended is not tried again.
 */
#include "daemon/mem/copier.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/mem/pool.h"

#define PAUSE_MIN_NS 100000000ull /* the first, unless the longest is shorter */
#define PAUSE_MAX_NS 10000000000ull
#define SILENCE_NS   30000000000ull /* far beyond what a driver takes to start, or a job */
#define STARTS_VAIN  3
#define JOB_TRIES    5
#define SENT_BYTES                                                                                 \
	(64ull << 20) /* on their way: a few ms of the link, so that the queue's order still counts */
#define SWEEP_MAX 64 /* segments looked at in one sweep */

extern char **environ;

struct known { /* to the mover that is there */
	uint32_t id;
	uint8_t tier;
	bool zeroing; /* fresh, and no job that came behind its import is done yet */
};

struct job_queue {
	struct copier_job *first, **end;
	uint64_t n;
};

enum state {
	DOWN,
	STARTING,
	READY
};

struct copier {
	struct copier_options o;
	enum state state;
	pid_t pid;
	int pidfd, sock;
	struct loop_source *on_sock, *on_death;
	struct loop_timer *again;
	struct loop_work fail;
	uint64_t heard_ns; /* when it last said something, or came to owe it */
	uint64_t pause_ns, starts, last_job, sent_bytes;
	unsigned vain;                      /* starts in a row without a READY */
	bool failing;                       /* `fail` is posted */
	struct job_queue queue, sent, lost; /* lost: to be told so */
	struct known *known;
	uint32_t n_known, cap_known, swept;
	char why[COPIER_TEXT];
};

static uint64_t shorter(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* ---- queues ---- */

static void queue_init(struct job_queue *q)
{
	q->first = NULL;
	q->end = &q->first;
	q->n = 0;
}

static void queue_add(struct job_queue *q, struct copier_job *j)
{
	j->next = NULL;
	*q->end = j;
	q->end = &j->next;
	q->n++;
}

static struct copier_job *queue_take(struct job_queue *q)
{
	struct copier_job *j = q->first;

	q->first = j->next;
	if (!q->first)
		q->end = &q->first;
	q->n--;
	return j;
}

static struct copier_job *queue_take_id(struct job_queue *q, uint64_t id)
{
	struct copier_job **at = &q->first, *j;

	while (*at && (*at)->id != id)
		at = &(*at)->next;
	j = *at;
	if (!j)
		return NULL;
	*at = j->next;
	if (!*at)
		q->end = at;
	q->n--;
	return j;
}

/* All of `from`, before what is in `to`. */
static void queue_prepend(struct job_queue *to, struct job_queue *from)
{
	if (!from->n)
		return;
	*from->end = to->first;
	if (!to->n)
		to->end = from->end;
	to->first = from->first;
	to->n += from->n;
	queue_init(from);
}

/* ---- jobs that come to nothing ---- */

static void fail_all(struct loop_work *w)
{
	struct copier *c = (struct copier *)((char *)w - offsetof(struct copier, fail));

	c->failing = false;
	while (c->lost.n) {
		struct copier_job *j = queue_take(&c->lost);

		j->done(j, j->error);
	}
}

/* Whoever started it is in the middle of something, so he is told later. */
static void lose(struct copier *c, struct copier_job *j, int error)
{
	j->error = error;
	queue_add(&c->lost, j);
	if (c->failing)
		return;
	c->failing = true;
	loop_post(c->o.loop, &c->fail);
}

static void check_vain(struct copier *c)
{
	while (c->vain >= STARTS_VAIN && c->queue.n)
		lose(c, queue_take(&c->queue), -ENODEV);
}

/* ---- segments ---- */

static struct known *known(struct copier *c, uint8_t tier, uint32_t id)
{
	for (uint32_t i = 0; i < c->n_known; i++)
		if (c->known[i].id == id && c->known[i].tier == tier)
			return &c->known[i];
	return NULL;
}

/* 0; -EAGAIN: the socket is full; else the mover is lost, or going to be. */
static int tell(struct copier *c, const void *message, size_t n, int fd)
{
	union {
		struct cmsghdr head;
		char room[CMSG_SPACE(sizeof(int))];
	} control = {.head = {.cmsg_level = SOL_SOCKET,
			     .cmsg_type = SCM_RIGHTS,
			     .cmsg_len = CMSG_LEN(sizeof(int))}};
	struct iovec io = {(void *)(uintptr_t)message, n};
	struct msghdr h = {.msg_iov = &io, .msg_iovlen = 1};

	if (fd >= 0) {
		memcpy(CMSG_DATA(&control.head), &fd, sizeof(fd));
		h.msg_control = &control;
		h.msg_controllen = sizeof(control);
	}
	if (sendmsg(c->sock, &h, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0)
		return 0;
	return errno == ETOOMANYREFS || errno == ENOBUFS ? -EAGAIN : -errno;
}

static int introduce(struct copier *c, uint8_t tier, uint32_t id)
{
	struct mover_import m = {
		.head = {MOVER_VERSION, MOVER_IMPORT}, .segment = id, .tier = tier};
	struct pool_segment s;
	int r;

	if (known(c, tier, id))
		return 0;
	if (c->n_known == c->cap_known) {
		const uint32_t cap = c->cap_known ? 2 * c->cap_known : 64;
		struct known *more = reallocarray(c->known, cap, sizeof(*more));

		if (!more)
			return -ENOMEM;
		c->known = more;
		c->cap_known = cap;
	}
	r = c->o.segment(c->o.userdata, tier, id, &s);
	if (r < 0)
		return r;
	m.bytes = s.bytes;
	m.whole = s.whole;
	m.fresh = tier == KVG_TIER_GPU && s.fresh;
	r = tell(c, &m, sizeof(m), s.fd);
	if (r == 0)
		c->known[c->n_known++] = (struct known){.id = id, .tier = tier, .zeroing = m.fresh};
	return r;
}

/* Its end is told as any other. */
static void check_silence(struct copier *c)
{
	if (!c->pid || (c->state == READY && !c->sent.n) ||
		loop_now_ns() - c->heard_ns < c->o.silence_ns)
		return;
	snprintf(c->why, sizeof(c->why), "kvgate-mover did not answer any more");
	c->heard_ns = loop_now_ns();
	kill(c->pid, SIGKILL);
}

void copier_sweep(struct copier *c)
{
	struct mover_forget m = {.head = {MOVER_VERSION, MOVER_FORGET}};
	struct pool_segment s;

	check_silence(c);
	for (unsigned i = 0; i < SWEEP_MAX && c->state == READY && c->n_known; i++) {
		struct known *k;

		c->swept = c->swept < c->n_known ? c->swept : 0;
		k = &c->known[c->swept];
		if (c->o.segment(c->o.userdata, k->tier, k->id, &s) == 0) {
			c->swept++;
			if (i + 1 >= c->n_known)
				return;
			continue;
		}
		m.segment = k->id;
		m.tier = k->tier;
		if (tell(c, &m, sizeof(m), -1) < 0)
			return;
		*k = c->known[--c->n_known];
	}
}

/* ---- sending ---- */

static int send_job(struct copier *c, struct copier_job *j)
{
	struct mover_copy m = {.head = {MOVER_VERSION, MOVER_COPY},
		.job = j->id,
		.n = j->n,
		.page_shift = j->page_shift};
	int r = 0;

	for (uint32_t i = 0; i < j->n && r == 0; i++) {
		r = introduce(c, j->range[i].from_tier, j->range[i].from_segment);
		if (r == 0)
			r = introduce(c, j->range[i].to_tier, j->range[i].to_segment);
	}
	memcpy(m.range, j->range, j->n * sizeof(m.range[0]));
	return r < 0
		? r
		: tell(c, &m, offsetof(struct mover_copy, range) + j->n * sizeof(m.range[0]), -1);
}

static void pump(struct copier *c)
{
	bool full = false;

	while (c->state == READY && c->queue.n && !full &&
		(!c->sent.n || c->sent_bytes + c->queue.first->bytes <= SENT_BYTES)) {
		struct copier_job *j = c->queue.first;
		const int r = send_job(c, j);

		if (r == -EPIPE || r == -ECONNRESET)
			return; /* its end is told by the pidfd */
		full = r == -EAGAIN;
		if (full)
			break;
		queue_take(&c->queue);
		if (r < 0) {
			lose(c, j, r);
			continue;
		}
		if (!c->sent.n)
			c->heard_ns = loop_now_ns();
		queue_add(&c->sent, j);
		c->sent_bytes += j->bytes;
	}
	if (c->on_sock)
		loop_set_events(c->on_sock, EPOLLIN | (full ? (uint32_t)EPOLLOUT : 0));
}

static void on_done(struct copier *c, const struct mover_done *d)
{
	struct copier_job *j = queue_take_id(&c->sent, d->job);

	if (!j)
		return;
	c->sent_bytes -= j->bytes;
	if (d->error)
		log_warning("a copy to a GPU failed", "device=%d why=\"%.*s\"", c->o.ordinal,
			(int)sizeof(d->text) - 1, d->text);
	for (uint32_t i = 0; i < j->n && !d->error; i++) {
		struct known *k = known(c, j->range[i].to_tier, j->range[i].to_segment);

		if (!k || !k->zeroing)
			continue;
		k->zeroing = false;
		c->o.filled(c->o.userdata, k->tier, k->id);
	}
	j->done(j, d->error < 0 ? d->error : d->error ? -EIO : 0);
}

/* ---- the mover's life ---- */

static void start_later(struct copier *c)
{
	loop_arm(c->again, c->pause_ns, 0);
	c->pause_ns = shorter(c->pause_ns * 2, c->o.pause_ns);
}

static void on_state(struct copier *c, const struct mover_state *m)
{
	if (m->head.kind == MOVER_FAILED) {
		snprintf(c->why, sizeof(c->why), "%.*s", (int)sizeof(m->text) - 1, m->text);
		return;
	}
	c->state = READY;
	c->vain = 0;
	c->pause_ns = shorter(PAUSE_MIN_NS, c->o.pause_ns);
	c->why[0] = '\0';
	log_info("a GPU is served", "device=%d name=\"%.*s\" pid=%d", c->o.ordinal,
		(int)sizeof(m->text) - 1, m->text, (int)c->pid);
}

/* False: nothing there, or nothing more. */
static bool hear(struct copier *c)
{
	static union mover_message m;
	const ssize_t n = recv(c->sock, &m, sizeof(m), MSG_DONTWAIT);

	c->heard_ns = loop_now_ns();
	if (n < (ssize_t)sizeof(m.head) || m.head.version != MOVER_VERSION)
		return false;
	if (m.head.kind == MOVER_DONE && n == sizeof(m.done))
		on_done(c, &m.done);
	else if ((m.head.kind == MOVER_READY || m.head.kind == MOVER_FAILED) &&
		n == sizeof(m.state))
		on_state(c, &m.state);
	return true;
}

static void on_sock(void *userdata, uint32_t events)
{
	struct copier *c = userdata;

	while (hear(c))
		;
	if (events & EPOLLHUP) {
		c->on_sock = loop_del_fd(c->on_sock); /* the rest is the pidfd's to tell */
		return;
	}
	pump(c);
}

/* The process is no more. */
static void let_go(struct copier *c)
{
	while (c->sock >= 0 && hear(c)) /* what it said last */
		;
	c->on_sock = loop_del_fd(c->on_sock);
	c->on_death = loop_del_fd(c->on_death);
	close(c->sock);
	close(c->pidfd);
	c->sock = c->pidfd = -1;
	c->pid = 0;
	c->n_known = c->swept = 0;
	c->sent_bytes = 0;
	if (c->o.process)
		c->o.process(c->o.userdata, -1);
}

static void requeue(struct copier *c)
{
	struct job_queue again;

	queue_init(&again);
	while (c->sent.n) {
		struct copier_job *j = queue_take(&c->sent);

		if (++j->tries < JOB_TRIES)
			queue_add(&again, j);
		else
			lose(c, j, -EIO);
	}
	queue_prepend(&c->queue, &again);
}

static void on_death(void *userdata, uint32_t events)
{
	struct copier *c = userdata;
	siginfo_t how = {0};

	(void)events;
	waitid(P_PIDFD, (id_t)c->pidfd, &how, WEXITED);
	let_go(c);
	if (!c->why[0])
		snprintf(c->why, sizeof(c->why), "kvgate-mover ended (%s %d)",
			how.si_code == CLD_EXITED ? "status" : "signal", how.si_status);
	log_warning("the process that serves a GPU ended: another is started",
		"device=%d why=\"%s\" jobs=%llu", c->o.ordinal, c->why,
		(unsigned long long)(c->sent.n + c->queue.n));
	c->vain += c->state == STARTING;
	c->state = DOWN;
	requeue(c);
	check_vain(c);
	start_later(c);
}

/* Its end of the socket is MOVER_FD, whatever that was here; signals are as a new process wants them. */
static int start_process(struct copier *c, int theirs)
{
	char ordinal[16], parent[24];
	char *argv[] = {(char *)(uintptr_t)c->o.program, (char *)(uintptr_t)c->o.library, ordinal,
		parent, NULL};
	posix_spawn_file_actions_t files;
	posix_spawnattr_t how;
	sigset_t none, all;
	int r;

	snprintf(ordinal, sizeof(ordinal), "%d", c->o.ordinal);
	snprintf(parent, sizeof(parent), "%ld", (long)getpid());
	sigemptyset(&none);
	sigfillset(&all);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, theirs, MOVER_FD);
	posix_spawnattr_init(&how);
	posix_spawnattr_setflags(&how, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
	posix_spawnattr_setsigmask(&how, &none);
	posix_spawnattr_setsigdefault(&how, &all);
	r = -posix_spawn(&c->pid, c->o.program, &files, &how, argv, environ);
	posix_spawn_file_actions_destroy(&files);
	posix_spawnattr_destroy(&how);
	return r;
}

static int watch(struct copier *c)
{
	int r;

	c->pidfd = (int)syscall(SYS_pidfd_open, c->pid, 0);
	if (c->pidfd < 0)
		return -errno;
	r = loop_add_fd(c->o.loop, c->pidfd, EPOLLIN, on_death, c, &c->on_death);
	return r < 0 ? r : loop_add_fd(c->o.loop, c->sock, EPOLLIN, on_sock, c, &c->on_sock);
}

static int try_spawn(struct copier *c)
{
	int pair[2], r;

	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
		return -errno;
	c->sock = pair[0];
	r = start_process(c, pair[1]);
	close(pair[1]);
	if (r < 0) {
		c->pid = 0;
		return r;
	}
	c->starts++;
	r = watch(c);
	if (r < 0) {
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0);
	}
	return r;
}

static void spawn(void *userdata)
{
	struct copier *c = userdata;
	const int r = try_spawn(c);

	c->why[0] = '\0';
	if (r == 0) {
		c->state = STARTING;
		c->heard_ns = loop_now_ns();
		if (c->o.process)
			c->o.process(c->o.userdata, c->pidfd);
		return;
	}
	let_go(c);
	snprintf(c->why, sizeof(c->why), "%.180s: %s", c->o.program, strerror(-r));
	log_error("the process that serves a GPU cannot be started", "program=\"%s\" error=\"%s\"",
		c->o.program, strerror(-r));
	c->vain++;
	check_vain(c);
	start_later(c);
}

int copier_new(const struct copier_options *o, struct copier **ret)
{
	struct copier *c = calloc(1, sizeof(*c));
	int r;

	if (!c)
		return -ENOMEM;
	c->o = *o;
	c->sock = c->pidfd = -1;
	c->o.silence_ns = o->silence_ns ? o->silence_ns : SILENCE_NS;
	c->o.pause_ns = o->pause_ns ? o->pause_ns : PAUSE_MAX_NS;
	c->pause_ns = shorter(PAUSE_MIN_NS, c->o.pause_ns);
	c->fail.fn = fail_all;
	queue_init(&c->queue);
	queue_init(&c->sent);
	queue_init(&c->lost);
	r = loop_add_timer(o->loop, spawn, c, &c->again);
	if (r < 0) {
		free(c);
		return r;
	}
	spawn(c);
	*ret = c;
	return 0;
}

struct copier *copier_free(struct copier *c)
{
	if (!c)
		return NULL;
	if (c->pid) {
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0);
		queue_init(&c->sent);
		let_go(c);
	}
	queue_init(&c->lost);
	if (c->failing)
		loop_run_posted(c->o.loop);
	loop_del_timer(c->again);
	free(c->known);
	free(c);
	return NULL;
}

void copier_start(struct copier *c, struct copier_job *j)
{
	assert(j->n && j->n <= KVG_PLANES_MAX);
	j->id = ++c->last_job;
	j->tries = 0;
	queue_add(&c->queue, j);
	check_vain(c);
	pump(c);
}

void copier_stat(const struct copier *c, struct copier_stat *ret)
{
	*ret = (struct copier_stat){
		.pid = c->pid,
		.pidfd = c->pidfd,
		.ready = c->state == READY,
		.starts = c->starts,
		.jobs = c->queue.n + c->sent.n,
	};
	memcpy(ret->why, c->why, sizeof(ret->why));
}
