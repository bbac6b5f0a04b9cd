/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Acquire and prefetch: what lies in a lower tier comes up, and stays for who asked.
 *
 *	run --> each key: pinned, and fetched --> nothing to wait for ----------------------------> the reply
 *	                                     \--> struct acquire, in the session's list --arrived--> the reply
 *	no_wait: the reply first, then a byte in the pipe with every plane that comes, or does not
 *
 * A request that waits keeps its pins to itself: they become the session's with the reply. So a client can give back nothing
 * that is still being fetched for it, except what a reply without waiting has given it: that fetch ends with the last
 * pin. When the session goes, or the daemon goes down, nobody waits any more, and what is under way goes on by itself.
 *
 * The pipe is no eventfd. Whoever is given an eventfd has the same open file as we do: he could take its O_NONBLOCK away and
 * fill it, and the control thread would sleep in its next write. The two ends of a pipe are two files, and the end that is
 * written to never leaves this process. A pipe that is full is fine: it says that there is something to look at.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "daemon/serve/request.h"

/*
 * Of one session, those whose planes are not all there yet: 8192 blocks on their way. More only queue up behind the
 * disk, and each costs some 30 KiB here.
 */
#define ACQUIRES_MAX    32
/* Of any block: less than its best plane holds. */
#define RETENTION_LEAST 1e-9f

struct wanted { /* a key of the request */
	struct acquire *acquire;
	struct kvg_key key;
	struct cache_block_result result;
	struct cache_fetch fetch;
	int code, error; /* why a plane did not come up */
	uint8_t coming;
	bool pinned;   /* by the request: the session does not have it yet, or never will */
	bool fetching; /* arrived() will be called */
};

struct acquire {
	struct acquire *next, **link; /* of the session's */
	struct session *session;      /* NULL: it is gone, and so is all else but this memory */
	uint64_t id;                  /* of the request */
	uint32_t layout;
	float min_retention, want;
	uint32_t device; /* 0: none */
	bool prefix, no_wait;
	bool copying;         /* to the device: what had to come up before has */
	bool waiting, posted; /* a reply is owed; work will run */
	struct loop_work work;
	size_t n, fetching;
	struct wanted wanted[];
};

struct acquire_args {
	uint32_t layout;
	size_t n;
	struct kvg_key *keys;
	float retention, want;
	uint32_t device;
	bool prefix, no_wait;
};

static int check_retention(struct request *r, float retention)
{
	if (isfinite(retention) && retention >= 0 && retention <= 1)
		return KVG_CODE_OK;
	return request_refuse(
		r, KVG_CODE_BAD_ARGUMENT, "retention %g: use 0 to 1", (double)retention);
}

/* ---- the pipe ---- */

void arrivals_init(struct arrivals *a)
{
	*a = (struct arrivals){-1, -1, false};
}

void arrivals_fini(struct arrivals *a)
{
	if (a->read_fd >= 0) {
		close(a->read_fd);
		close(a->write_fd);
	}
	arrivals_init(a);
}

/* Both ends stay open here, so that there is always a reader, and no signal. */
static int arrivals_open(struct arrivals *a)
{
	int fd[2];

	if (a->read_fd >= 0)
		return 0;
	if (pipe2(fd, O_CLOEXEC | O_NONBLOCK) < 0)
		return -errno;
	fcntl(fd[1], F_SETPIPE_SZ,
		4096); /* the least there is; it may be more, which does no harm */
	a->read_fd = fd[0];
	a->write_fd = fd[1];
	return 0;
}

static void arrivals_signal(const struct arrivals *a)
{
	if (write(a->write_fd, "", 1) < 0)
		assert(errno == EAGAIN || errno == EINTR);
}

/* ---- a request's life ---- */

static void unlink_acquire(struct acquire *a)
{
	*a->link = a->next;
	if (a->next)
		a->next->link = a->link;
	a->session->n_acquires--;
}

static void drop_pin(struct wanted *w)
{
	struct session *s = w->acquire->session;

	w->pinned = false;
	cache_release(s->tenant->cache, w->result.handle);
	charge_sub(&s->held_charge, 1);
}

static void stop_fetch(struct wanted *w)
{
	w->fetching = false;
	w->acquire->fetching--;
	cache_fetch_cancel(&w->fetch);
}

/* What the session does not have: nobody waits for it, and then nobody has it pinned. */
static void let_go(struct wanted *w)
{
	if (w->fetching)
		stop_fetch(w);
	if (w->pinned)
		drop_pin(w);
}

/* Whatever state it is in. */
static void acquire_end(struct acquire *a)
{
	struct server *server = a->session->server;

	for (size_t i = 0; i < a->n; i++)
		let_go(&a->wanted[i]);
	unlink_acquire(a);
	a->session = NULL;
	if (a->waiting)
		server_batch_done(server);
	if (!a->posted)
		free(a); /* else on_ended() does */
}

void acquires_cancel(struct session *s)
{
	while (s->acquires)
		acquire_end(s->acquires);
}

void acquires_released(struct session *s, struct kvg_handle h)
{
	struct acquire *a, *next;

	for (a = s->acquires; a; a = next) {
		next = a->next;
		if (a->waiting)
			continue; /* has pins of its own */
		for (size_t i = 0; i < a->n; i++) {
			struct wanted *w = &a->wanted[i];

			if (w->fetching && kvg_handle_pack(w->result.handle) == kvg_handle_pack(h))
				stop_fetch(w);
		}
		if (!a->fetching)
			acquire_end(a);
	}
}

/* ---- what became of it ---- */

/* Share of its pairs that can be read now; negative: it was found damaged, and is hidden from everybody. */
static double mapped_share(const struct acquire *a, const struct wanted *w)
{
	struct cache_block_info info;
	uint64_t all = 0, there = 0;

	if (w->result.mapped == w->result.held)
		return (double)w->result.retention;
	if (cache_inspect(a->session->tenant->cache, a->layout, &w->key, &info) != KVG_CODE_OK ||
		kvg_handle_pack(info.handle) != kvg_handle_pack(w->result.handle))
		return -1;
	for (uint32_t p = 0; p < info.n_planes; p++) {
		all += info.plane[p].pairs;
		there += w->result.mapped >> p & 1 ? info.plane[p].pairs : 0;
	}
	return all ? (double)there / (double)all : 0;
}

static int code_of_error(int error)
{
	switch (error) {
	case 0:
		return KVG_CODE_BELOW_RETENTION;
	case -ENOSPC:
		return KVG_CODE_NO_SPACE;
	case -ENOMEM:
		return KVG_CODE_NO_MEMORY;
	case -ESHUTDOWN:
		return KVG_CODE_SHUTTING_DOWN;
	default:
		return KVG_CODE_CORRUPT;
	}
}

/* All that can come has come: is it what was asked for? */
static int judge(const struct acquire *a, struct wanted *w)
{
	double share;

	if (cache_look(a->session->tenant->cache, w->result.handle, &w->result) != KVG_CODE_OK)
		return KVG_CODE_CORRUPT;
	if (a->no_wait)
		return KVG_CODE_OK;
	share = mapped_share(a, w);
	if (share < 0)
		return KVG_CODE_CORRUPT;
	if (w->result.mapped && (float)share >= a->min_retention)
		return KVG_CODE_OK;
	return code_of_error(a->copying ? w->error : w->fetch.error);
}

/* The session's from here on, if it is good. */
static void settle(struct acquire *a, struct wanted *w)
{
	if (w->code == KVG_CODE_OK)
		w->code = judge(a, w);
	if (w->code == KVG_CODE_OK && held_reserve(&a->session->held) < 0)
		w->code = KVG_CODE_NO_MEMORY;
	if (w->code == KVG_CODE_OK) {
		held_add(&a->session->held, w->result.handle);
		w->pinned = false;
	} else {
		let_go(w);
	}
}

static void fill_reply(struct request *r, struct acquire *a)
{
	Kvgate__V1__AcquireReply *m = request_new(r, 1, Kvgate__V1__AcquireReply);
	bool cut = false;

	kvgate__v1__acquire_reply__init(m);
	m->blocks = request_new(r, a->n, Kvgate__V1__BlockResult *);
	for (size_t i = 0; i < a->n; i++) {
		struct wanted *w = &a->wanted[i];
		Kvgate__V1__BlockResult *b;

		if (cut) {
			let_go(w);
			continue;
		}
		settle(a, w);
		b = m->blocks[m->n_blocks++] = request_new(r, 1, Kvgate__V1__BlockResult);
		kvgate__v1__block_result__init(b);
		b->code = (uint32_t)w->code;
		b->handle = w->code == KVG_CODE_OK ? kvg_handle_pack(w->result.handle) : 0;
		b->retention = w->result.retention;
		b->held = w->result.held;
		b->mapped = w->result.mapped;
		b->coming = a->no_wait && w->fetching && !a->copying ? w->coming : 0;
		if (a->device && w->code == KVG_CODE_OK)
			b->replicas = cache_replicas(
				a->session->tenant->cache, w->result.handle, a->device - 1);
		cut = a->prefix && w->code != KVG_CODE_OK;
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_ACQUIRE;
	r->reply->acquire = m;
}

static void copy(struct acquire *a, struct wanted *w);

/* What is to come up has, or has not: the device gets its copies of what there is. Once. */
static void copy_all(struct acquire *a)
{
	if (!a->device || a->copying)
		return;
	a->copying = true;
	for (size_t i = 0; i < a->n; i++)
		if (a->wanted[i].code == KVG_CODE_OK)
			copy(a, &a->wanted[i]);
}

static void on_ended(struct loop_work *work)
{
	struct acquire *a = (struct acquire *)((char *)work - offsetof(struct acquire, work));
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;
	struct request r;

	a->posted = false;
	if (!a->session) {
		free(a);
		return;
	}
	copy_all(a);
	if (a->fetching)
		return;
	if (a->waiting) {
		request_resume(&r, a->session->server, a->session->tenant, a->id, &reply);
		fill_reply(&r, a);
		request_send(a->session, &reply, NULL, 0);
	}
	acquire_end(a);
}

/* In the middle of the cache's work: the rest is for later. */
static void on_arrived(struct cache_fetch *f, uint8_t planes)
{
	struct wanted *w = (struct wanted *)((char *)f - offsetof(struct wanted, fetch));
	struct acquire *a = w->acquire;

	(void)planes;
	if (a->no_wait)
		arrivals_signal(&a->session->arrivals);
	if (f->waiting || !w->fetching)
		return;
	w->fetching = false;
	if (--a->fetching == 0 && !a->posted) {
		a->posted = true;
		loop_post(a->session->server->parts.loop, &a->work);
	}
}

void acquires_shut_down(struct server *server)
{
	for (struct session *s = server->sessions; s; s = s->next)
		for (struct acquire *a = s->acquires, *next; a; a = next) {
			Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;

			next = a->next;
			if (!a->waiting)
				continue;
			reply.id = a->id;
			reply.code = KVG_CODE_SHUTTING_DOWN;
			reply.error = (char *)(uintptr_t)kvg_code_prose(KVG_CODE_SHUTTING_DOWN);
			request_send(s, &reply, NULL, 0);
			acquire_end(a);
		}
}

/* ---- acquire ---- */

int prep_acquire(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Acquire *m = q->acquire;
	struct acquire_args *a = r->args = request_new(r, 1, struct acquire_args);

	*a = (struct acquire_args){.layout = m->layout,
		.n = m->n_keys,
		.retention = m->min_retention,
		.want = m->want,
		.device = m->device,
		.prefix = m->prefix,
		.no_wait = m->no_wait};
	if (check_retention(r, m->min_retention) || check_retention(r, m->want))
		return KVG_CODE_BAD_ARGUMENT;
	if (m->no_wait && r->session->control)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"no_wait gives a descriptor out, and a control session gets none: wait, or "
			"open a "
			"session without `control`");
	return request_keys(r, m->n_keys, m->keys, &a->keys);
}

static int acquire_new(struct request *r, const struct acquire_args *args, struct acquire **ret)
{
	struct session *s = r->session;
	struct acquire *a;

	if (s->n_acquires == ACQUIRES_MAX)
		return request_refuse(r, KVG_CODE_BUSY,
			"%d acquires of this session have planes on their way: wait for one",
			ACQUIRES_MAX);
	a = calloc(1, sizeof(*a) + args->n * sizeof(a->wanted[0]));
	if (!a)
		return request_errno(r, -ENOMEM);
	*a = (struct acquire){.session = s,
		.next = s->acquires,
		.link = &s->acquires,
		.id = r->id,
		.layout = args->layout,
		.min_retention = args->retention,
		.want = fmaxf(fmaxf(args->want, args->retention), RETENTION_LEAST),
		.device = args->device,
		.prefix = args->prefix,
		.no_wait = args->no_wait,
		.work.fn = on_ended};
	if (a->next)
		a->next->link = &a->next;
	s->acquires = a;
	s->n_acquires++;
	*ret = a;
	return KVG_CODE_OK;
}

/* Of the cache or the account; what is the daemon's own trouble is in its log. */
static int pin(struct request *r, struct acquire *a, const struct cache_layout *l, struct wanted *w)
{
	struct session *s = a->session;
	int code;

	if (charge_add(&s->held_charge, &s->tenant->account, ACCOUNT_PINS, 1) < 0)
		return KVG_CODE_QUOTA;
	code = cache_acquire(s->tenant->cache, l, &w->key, a->min_retention, &w->result);
	w->pinned = code == KVG_CODE_OK;
	if (!w->pinned)
		charge_sub(&s->held_charge, 1);
	return code < 0 ? request_errno(r, code) : code;
}

static void fetch(struct acquire *a, struct wanted *w)
{
	w->fetch.arrived = on_arrived;
	w->fetching = true;
	a->fetching++;
	w->coming = cache_fetch(a->session->tenant->cache, w->result.handle, a->want, &w->fetch);
	if (!w->coming && w->fetching) {
		w->fetching = false;
		a->fetching--;
	}
}

/* Copies are told of as planes from below are; that one did not come is no reason to refuse the block. */
static void copy(struct acquire *a, struct wanted *w)
{
	const int error = w->fetch.error;
	struct cache_fetch *f = &w->fetch;

	f->arrived = on_arrived;
	w->fetching = true;
	a->fetching++;
	if (!cache_replicate(
		    a->session->tenant->cache, w->result.handle, a->device - 1, a->want, f)) {
		w->fetching = false;
		a->fetching--;
	}
	w->error = error;
}

static void begin(struct request *r, struct acquire *a, const struct cache_layout *l,
	const struct kvg_key *keys, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		struct wanted *w = &a->wanted[a->n++];

		w->acquire = a;
		w->key = keys[i];
		w->code = pin(r, a, l, w);
		if (w->code == KVG_CODE_OK)
			fetch(a, w);
		else if (a->prefix)
			break;
	}
	if (!a->fetching)
		copy_all(a);
}

static int open_pipe(struct request *r)
{
	int error = arrivals_open(&r->session->arrivals);

	return error < 0 ? request_errno(r, error) : KVG_CODE_OK;
}

static void give_pipe(struct request *r, struct arrivals *arrivals)
{
	if (!arrivals->sent)
		r->fds[r->n_fds++] = arrivals->read_fd;
	arrivals->sent = true;
}

/* The planes of some are on their way. Without waiting, the reply is made already. */
static int wait_for(struct request *r, struct acquire *a)
{
	if (a->no_wait)
		return KVG_CODE_OK;
	if (r->server->draining) {
		acquire_end(a);
		return KVG_CODE_SHUTTING_DOWN;
	}
	a->waiting = r->later = true;
	r->server->n_batches++;
	return KVG_CODE_OK;
}

int run_acquire(struct request *r)
{
	const struct acquire_args *args = r->args;
	struct acquire *a = NULL;
	struct cache_layout *l;
	unsigned device;
	int code = request_layout(r, r->tenant, args->layout, &l);

	if (!code)
		code = request_device(r, args->device, &device);
	if (!code && args->no_wait)
		code = open_pipe(r);
	if (!code)
		code = acquire_new(r, args, &a);
	if (code)
		return code;
	if (args->no_wait)
		give_pipe(r, &r->session->arrivals);
	begin(r, a, l, args->keys, args->n);
	if (args->no_wait || !a->fetching)
		fill_reply(r, a);
	if (a->fetching)
		return wait_for(r, a);
	acquire_end(a);
	return KVG_CODE_OK;
}

/* ---- prefetch ---- */

int prep_prefetch(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Prefetch *m = q->prefetch;
	struct acquire_args *a = r->args = request_new(r, 1, struct acquire_args);

	*a = (struct acquire_args){
		.layout = m->layout, .n = m->n_keys, .want = m->retention, .device = m->device};
	if (check_retention(r, m->retention))
		return KVG_CODE_BAD_ARGUMENT;
	return request_keys(r, m->n_keys, m->keys, &a->keys);
}

int run_prefetch(struct request *r)
{
	const struct acquire_args *a = r->args;
	const float want = fmaxf(a->want, RETENTION_LEAST);
	struct cache_tenant *t = r->tenant->cache;
	Kvgate__V1__PrefetchReply *m = request_new(r, 1, Kvgate__V1__PrefetchReply);
	struct cache_layout *l;
	unsigned device;
	int code = request_layout(r, r->tenant, a->layout, &l);

	if (!code)
		code = request_device(r, a->device, &device);
	if (code)
		return code;
	kvgate__v1__prefetch_reply__init(m);
	for (size_t i = 0; i < a->n; i++) {
		struct cache_block_info info;

		if (!cache_present_in(t, l, &a->keys[i]))
			continue;
		m->present++;
		if (cache_inspect(t, a->layout, &a->keys[i], &info) == KVG_CODE_OK)
			m->moving += cache_fetch(t, info.handle, want, NULL) != 0 ||
				(a->device && cache_replicate(t, info.handle, device, want, NULL));
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_PREFETCH;
	r->reply->prefetch = m;
	return KVG_CODE_OK;
}
