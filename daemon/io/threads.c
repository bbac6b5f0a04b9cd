/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The engine for where io_uring may not be used: each thread takes a part and does it with the plain system calls. So
 * many parts are in flight as there are threads. It also does for a ring what io_uring cannot: discards of block devices.
 *
 * A thread that has taken a part looks whether there is another, and then wakes the next thread; so one signal is enough
 * for many requests, and for an end of one that lets several start.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/loop.h"
#include "daemon/io/engine.h"

struct io_threads {
	struct io *io;
	io_run_fn run;
	unsigned ops, n;
	pthread_cond_t wake; /* with io->lock */
	struct thread {
		struct io_threads *threads;
		pthread_t thread;
		struct io_part part;
		struct iovec iov[IO_VECTORS_MAX];
	} thread[];
};

int64_t io_discard(int fd, uint64_t offset, uint64_t bytes)
{
	uint64_t range[2] = {offset, bytes};
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -errno;
	if (S_ISBLK(st.st_mode))
		return ioctl(fd, BLKDISCARD, range) < 0 ? -errno : 0;
	return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		       (off_t)bytes) < 0
		? -errno
		: 0;
}

int64_t io_run(struct io *io, struct io_part *p)
{
	off_t offset = (off_t)io_part_offset(p);
	ssize_t n;

	switch (p->request->op) {
	case IO_READ:
		io_part_vectors(p);
		n = preadv2(io->fd, p->iov, (int)p->n_iov, offset, 0);
		break;
	case IO_WRITE:
		io_part_vectors(p);
		n = pwritev2(io->fd, p->iov, (int)p->n_iov, offset, 0);
		break;
	case IO_SYNC:
		n = fdatasync(io->fd);
		break;
	default:
		return io_discard(io->fd, (uint64_t)offset, p->bytes);
	}
	return n < 0 ? -errno : n;
}

static void *thread_main(void *arg)
{
	struct thread *me = arg;
	struct io_threads *t = me->threads;
	struct io *io = t->io;

	me->part.iov = me->iov;
	pthread_mutex_lock(&io->lock);
	for (;;) {
		struct io_request *r;
		bool whole;
		int result;

		if (!io_queue_next(&io->queue, t->ops, loop_now_ns(), &me->part)) {
			if (io->stop)
				break;
			pthread_cond_wait(&t->wake, &io->lock);
			continue;
		}
		io_threads_wake(t);
		pthread_mutex_unlock(&io->lock);
		do
			result = io_part_advance(&me->part, t->run(io, &me->part));
		while (result > 0);
		r = me->part.request;
		pthread_mutex_lock(&io->lock);
		whole = io_queue_ended(&io->queue, &me->part, result, loop_now_ns());
		if (io_wake(io)) /* somebody else may start what there is room for now */
			io_ring_kick(io->ring);
		if (!whole)
			continue;
		pthread_mutex_unlock(&io->lock);
		io_finish(io, r);
		pthread_mutex_lock(&io->lock);
	}
	pthread_mutex_unlock(&io->lock);
	return NULL;
}

void io_threads_wake(struct io_threads *t)
{
	if (t->io->stop)
		pthread_cond_broadcast(&t->wake);
	else if (io_queue_ready(&t->io->queue, t->ops, loop_now_ns()))
		pthread_cond_signal(&t->wake);
}

int io_threads_new(struct io *io, unsigned n, unsigned ops, io_run_fn run, struct io_threads **ret)
{
	struct io_threads *t = calloc(1, sizeof(*t) + n * sizeof(t->thread[0]));
	int r = 0;

	assert(n);
	if (!t)
		return -ENOMEM;
	t->io = io;
	t->ops = ops;
	t->run = run;
	pthread_cond_init(&t->wake, NULL);
	while (t->n < n) {
		t->thread[t->n].threads = t;
		r = io_thread_start(
			&t->thread[t->n].thread, "kvg-io", thread_main, &t->thread[t->n]);
		if (r < 0)
			break;
		t->n++;
	}
	if (r < 0) {
		pthread_mutex_lock(&io->lock);
		io->stop = true;
		io_threads_wake(t);
		pthread_mutex_unlock(&io->lock);
		io_threads_free(t);
		return r;
	}
	*ret = t;
	return 0;
}

struct io_threads *io_threads_free(struct io_threads *t)
{
	if (!t)
		return NULL;
	for (unsigned i = 0; i < t->n; i++)
		pthread_join(t->thread[i].thread, NULL);
	pthread_cond_destroy(&t->wake);
	free(t);
	return NULL;
}
