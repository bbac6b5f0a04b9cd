/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The only user of liburing. One thread owns the ring, and each turn of it is
 *
 *	start what the queue lets start -> enter: submit, wait for one end -> tell the queue -> check() of one request -> ...
 *
 * so that the device has its next work before time goes into checksums. When there is nothing else to do the thread sleeps in
 * io_uring_enter(); io_submit() wakes it through an eventfd that the ring reads, once for all that is submitted until
 * it runs.
 *
 * No registered buffers, although the pool's pages are always the same: pages of a memfd are punched out under pressure,
 * and a registered buffer keeps the page it was registered with. After the hole was filled again the device would go on
 * reading from and writing to the old page, which nobody sees: wrong bytes. O_DIRECT pins pages for one request, and
 * moves straight into them all the same.
 *
 * A ring with IOPOLL takes nothing but reads and writes, and waits by asking the device over and over. So with that option there
 * are two: `polled` for those, while there are any, and `plain` for all else. A device or a file that cannot be polled answers
 * EOPNOTSUPP: then `plain` does everything.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <liburing.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/io/engine.h"

#define ENTRIES     (2 * IO_RING_SLOTS) /* a part each, the eventfd, and some room */
#define SQ_IDLE_MS  50                  /* SQPOLL: the kernel's thread sleeps after that */
#define FILE_DEVICE 0                   /* registered files */
#define FILE_EVENT  1

struct slot {
	struct io_part part;
	struct slot *next; /* of the free ones */
	bool polled;
};

struct io_ring {
	struct io *io;
	unsigned ops;
	bool sqpoll, iopoll; /* iopoll: and it works */
	char name[32];
	pthread_t thread;
	bool running;
	sem_t started;
	int start_error;
	int event;
	bool asleep; /* under io->lock: the eventfd has to be written */
	/* The thread's own. */
	bool has_plain, has_polled, complained;
	struct io_uring plain, polled;
	unsigned n_polled; /* in flight there */
	uint64_t event_value;
	struct io_list whole; /* ended, to be checked */
	struct slot *free_slots;
	struct slot slot[IO_RING_SLOTS];
	struct iovec iov[IO_RING_SLOTS][IO_VECTORS_MAX];
};

/* ---- starting ------------------------------------------------------------------------------------ */

static void prepare(struct io_ring *g, struct slot *s)
{
	struct io_part *p = &s->part;
	const struct io_request *r = p->request;
	struct io_uring_sqe *sqe;
	uint64_t offset = io_part_offset(p);

	s->polled = g->iopoll && (r->op == IO_READ || r->op == IO_WRITE);
	g->n_polled += s->polled;
	sqe = io_uring_get_sqe(s->polled ? &g->polled : &g->plain);
	assert(sqe); /* a slot is free again only after its entry was consumed */
	switch (r->op) {
	case IO_READ:
		io_part_vectors(p);
		io_uring_prep_readv(sqe, FILE_DEVICE, p->iov, p->n_iov, offset);
		break;
	case IO_WRITE:
		io_part_vectors(p);
		io_uring_prep_writev(sqe, FILE_DEVICE, p->iov, p->n_iov, offset);
		break;
	case IO_SYNC:
		io_uring_prep_fsync(sqe, FILE_DEVICE, IORING_FSYNC_DATASYNC);
		break;
	case IO_DISCARD:
		io_uring_prep_fallocate(sqe, FILE_DEVICE,
			FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)p->bytes);
		break;
	}
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, s);
}

static void arm_event(struct io_ring *g)
{
	struct io_uring_sqe *sqe = io_uring_get_sqe(&g->plain);

	assert(sqe);
	io_uring_prep_read(sqe, FILE_EVENT, &g->event_value, sizeof(g->event_value), 0);
	sqe->flags |= IOSQE_FIXED_FILE;
	io_uring_sqe_set_data(sqe, NULL);
}

/* False: nothing will ever come any more. May say that the thread is asleep from now on. */
static bool start(struct io_ring *g)
{
	struct io *io = g->io;
	uint64_t now = loop_now_ns();
	bool stop;

	pthread_mutex_lock(&io->lock);
	while (g->free_slots) {
		struct slot *s = g->free_slots;

		if (!io_queue_next(&io->queue, g->ops, now, &s->part))
			break;
		g->free_slots = s->next;
		prepare(g, s);
	}
	stop = io->stop;
	g->asleep = !stop && !g->whole.first && !g->n_polled;
	pthread_mutex_unlock(&io->lock);
	return !stop;
}

/* ---- ends ---------------------------------------------------------------------------------------- */

static void no_polling(struct io_ring *g)
{
	if (!g->iopoll)
		return;
	g->iopoll = false;
	log_warning("the disk cannot be polled, iopoll is off",
		"fix=\"poll queues of the driver (nvme.poll_queues, virtio_blk.poll_queues) and "
		"O_DIRECT\"");
}

static void on_part(struct io_ring *g, struct slot *s, int n)
{
	struct io *io = g->io;
	struct io_request *r = s->part.request;
	bool unpollable = s->polled && n == -EOPNOTSUPP;
	int result;

	g->n_polled -= s->polled;
	if (unpollable)
		no_polling(g);
	result = unpollable ? 1 : io_part_advance(&s->part, n);
	if (result > 0) {
		prepare(g, s);
		return;
	}
	pthread_mutex_lock(&io->lock);
	if (io_queue_ended(&io->queue, &s->part, result, loop_now_ns()))
		io_list_push(&g->whole, r);
	g->asleep = false;
	io_wake(io);
	pthread_mutex_unlock(&io->lock);
	s->next = g->free_slots;
	g->free_slots = s;
}

static void reap(struct io_ring *g, struct io_uring *ring)
{
	struct io_uring_cqe *cqe[16];
	unsigned n;

	while ((n = io_uring_peek_batch_cqe(ring, cqe, 16))) {
		for (unsigned i = 0; i < n; i++) {
			struct slot *s = io_uring_cqe_get_data(cqe[i]);

			if (s)
				on_part(g, s, cqe[i]->res);
			else
				arm_event(g);
		}
		io_uring_cq_advance(ring, n);
	}
}

static void complain(struct io_ring *g, int r)
{
	if (r >= 0 || r == -EINTR || r == -EAGAIN || r == -EBUSY || r == -ETIME)
		return;
	if (!g->complained)
		log_error("io_uring_enter failed, it is tried again and again", "error=\"%s\"",
			strerror(-r));
	g->complained = true;
	nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
}

/* Submits; waits for an end unless there is something else to do. */
static void enter(struct io_ring *g)
{
	bool wait = !g->whole.first;

	if (g->n_polled)
		complain(g,
			wait ? io_uring_submit_and_wait(&g->polled, 1)
			     : io_uring_submit_and_get_events(&g->polled));
	if (wait && !g->n_polled)
		complain(g, io_uring_submit_and_wait(&g->plain, 1));
	else
		complain(g, io_uring_submit_and_get_events(&g->plain));
}

bool io_ring_wake(struct io_ring *g)
{
	const struct io *io = g->io;

	if (!g->asleep || !(io->stop || io_queue_ready(&io->queue, g->ops, loop_now_ns())))
		return false;
	g->asleep = false;
	return true;
}

void io_ring_kick(struct io_ring *g)
{
	eventfd_write(g->event, 1);
}

/* ---- beginning and end --------------------------------------------------------------------------- */

/* The kernel knows all that is used here: 5.6 or newer. */
static int probe(struct io_uring *ring)
{
	static const int ops[] = {IORING_OP_READV, IORING_OP_WRITEV, IORING_OP_READ,
		IORING_OP_FSYNC, IORING_OP_FALLOCATE};
	struct io_uring_probe *p = io_uring_get_probe_ring(ring);
	int r = p ? 0 : -EOPNOTSUPP;

	for (unsigned i = 0; p && i < sizeof(ops) / sizeof(ops[0]); i++)
		if (!io_uring_opcode_supported(p, ops[i]))
			r = -EOPNOTSUPP;
	io_uring_free_probe(p);
	return r;
}

/* With as much of what makes it cheaper as the kernel has: 6.1, 5.19, older. */
static int ring_init(struct io_ring *g, struct io_uring *ring, unsigned flags)
{
	const unsigned better[] = {g->sqpoll
			? IORING_SETUP_SINGLE_ISSUER
			: IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
		g->sqpoll ? 0 : IORING_SETUP_COOP_TASKRUN, 0};
	const int files[2] = {g->io->fd, g->event};
	int r = -EINVAL;

	for (unsigned i = 0; r == -EINVAL && i < 3; i++) {
		struct io_uring_params p = {.flags = IORING_SETUP_CLAMP | flags | better[i]};

		p.sq_thread_idle = SQ_IDLE_MS;
		r = io_uring_queue_init_params(ENTRIES, ring, &p);
	}
	if (r < 0)
		return r;
	r = probe(ring);
	if (r == 0)
		r = io_uring_register_files(ring, files, 2);
	if (r < 0)
		io_uring_queue_exit(ring);
	return r;
}

static int rings_init(struct io_ring *g)
{
	unsigned flags = g->sqpoll ? IORING_SETUP_SQPOLL : 0;
	int r;

	r = ring_init(g, &g->plain, flags);
	if (r < 0)
		return r;
	g->has_plain = true;
	if (!g->iopoll)
		return 0;
	r = ring_init(g, &g->polled, flags | IORING_SETUP_IOPOLL);
	if (r < 0)
		return r;
	g->has_polled = true;
	return 0;
}

/* The thread makes the rings: a ring that is cheaper for one thread has to be that thread's own. */
static void *ring_main(void *arg)
{
	struct io_ring *g = arg;
	struct io_request *r;

	g->start_error = rings_init(g);
	if (g->start_error == 0) {
		arm_event(g);
		g->start_error = io_uring_submit(&g->plain);
	}
	sem_post(&g->started);
	if (g->start_error < 0)
		return NULL;
	while (start(g)) {
		enter(g);
		reap(g, &g->plain);
		if (g->has_polled)
			reap(g, &g->polled);
		r = io_list_pop(&g->whole);
		if (r)
			io_finish(g->io, r);
	}
	return NULL;
}

static void name(struct io_ring *g)
{
	strcpy(g->name, "io_uring");
	if (g->sqpoll)
		strcat(g->name, ", sqpoll");
	if (g->iopoll)
		strcat(g->name, ", iopoll");
}

int io_ring_new(struct io *io, const struct io_options *o, unsigned ops, struct io_ring **ret)
{
	struct io_ring *g = calloc(1, sizeof(*g));
	int r;

	if (!g)
		return -ENOMEM;
	g->io = io;
	g->ops = ops;
	g->sqpoll = o->sqpoll;
	g->iopoll = o->iopoll;
	io_list_init(&g->whole);
	sem_init(&g->started, 0, 0);
	for (unsigned i = 0; i < IO_RING_SLOTS; i++) {
		g->slot[i].part.iov = g->iov[i];
		g->slot[i].next = g->free_slots;
		g->free_slots = &g->slot[i];
	}
	g->event = eventfd(0, EFD_CLOEXEC);
	r = g->event < 0 ? -errno : 0;
	name(g);
	if (r == 0)
		r = io_thread_start(&g->thread, "kvg-ring", ring_main, g);
	if (r == 0) {
		g->running = true;
		while (sem_wait(&g->started) < 0)
			;
		r = g->start_error < 0 ? g->start_error : 0;
	}
	if (r < 0) {
		io_ring_free(g);
		return r;
	}
	*ret = g;
	return 0;
}

struct io_ring *io_ring_free(struct io_ring *g)
{
	if (!g)
		return NULL;
	if (g->running)
		pthread_join(g->thread, NULL);
	if (g->has_polled)
		io_uring_queue_exit(&g->polled);
	if (g->has_plain)
		io_uring_queue_exit(&g->plain);
	if (g->event >= 0)
		close(g->event);
	sem_destroy(&g->started);
	free(g);
	return NULL;
}

const char *io_ring_name(const struct io_ring *g)
{
	return g->name;
}
