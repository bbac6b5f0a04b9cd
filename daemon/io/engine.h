/* SPDX-License-Identifier: Apache-2.0 */
/*
 * engine: what io.c has in common with those that do the work - ring.c, threads.c, and fault.c behind threads.c.
 * Thread: as said at each. Locks: io->lock, around the queue and what has ended. Blocks: _free(). Errors: negative errno.
 *
 * An engine takes parts from the queue under the lock, does them without it, and tells the queue under the lock. A
 * request that ended as a whole goes to io_finish().
 */
#ifndef KVGATE_DAEMON_IO_ENGINE_H
#define KVGATE_DAEMON_IO_ENGINE_H

#include <pthread.h>

#include "daemon/io/queue.h"

struct io_ring;
struct io_threads;
struct io_faulty;

struct io {
	/* The loop's thread. */
	struct loop_source *source;
	uint64_t outstanding; /* submitted, not reported */
	/* Constant. */
	int fd, event;
	struct io_ring *ring;
	struct io_threads *threads;
	struct io_faulty *faulty;
	/* Any thread, under the lock. */
	pthread_mutex_t lock;
	struct io_queue queue;
	struct io_list finished;
	struct io_stat stat;
	bool stop; /* nothing is in the queue then */
};

/* On the engine's thread, without the lock: checks it, and hands it to the loop's thread. */
void io_finish(struct io *io, struct io_request *r);
/* Under the lock, after a change: wakes who has something to start. True: io_ring_kick() does it, best without the lock. */
bool io_wake(struct io *io);
/* A thread that gets no signals. */
int io_thread_start(pthread_t *ret, const char *name, void *(*main)(void *), void *arg);

/* -EPERM, -ENOSYS, -ENOMEM and others: io_uring cannot be had. ops: the bits of what it takes. */
int io_ring_new(struct io *io, const struct io_options *o, unsigned ops, struct io_ring **ret);
struct io_ring *io_ring_free(struct io_ring *g); /* io->stop is set, io_wake() was called */
bool io_ring_wake(struct io_ring *g); /* under the lock, after a change; true: to be kicked */
void io_ring_kick(struct io_ring *g);
const char *io_ring_name(const struct io_ring *g);
#define IO_RING_SLOTS 128u

/* As preadv(2) and its like: does what is left of the part, or a piece of it. Returns bytes, or negative errno. */
typedef int64_t (*io_run_fn)(struct io *io, struct io_part *p);
int64_t io_run(struct io *io, struct io_part *p); /* on io->fd */
int64_t io_discard(int fd, uint64_t offset, uint64_t bytes);
int io_threads_new(struct io *io, unsigned n, unsigned ops, io_run_fn run, struct io_threads **ret);
struct io_threads *io_threads_free(struct io_threads *t);
void io_threads_wake(struct io_threads *t); /* under the lock, after a change */

int io_faulty_new(const struct io_fault *f, struct io_faulty **ret);
struct io_faulty *io_faulty_free(struct io_faulty *f);
void io_faulty_submit(
	struct io *io, struct io_request *r); /* on the loop's thread, before the queue has it */
int64_t io_faulty_run(struct io *io, struct io_part *p);

#endif
