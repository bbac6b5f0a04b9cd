/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device: a queue under one lock, an engine that empties it, and the way back to the loop.
 *
 *	io_submit() -> queue -> ring, or threads -> check() -> finished -> eventfd -> loop -> done()
 *
 * `finished` is taken as a whole when the eventfd wakes the loop; the eventfd is written only when the list was empty. It is
 * one of our own, and not loop_post(), so that nothing of a device that was freed is left in the loop's queue.
 */
#include "daemon/io/io.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/io/engine.h"

#define ALIGNED         4096u
#define PART_BYTES      (1u << 20) /* larger ones are not faster, and others wait longer behind them */
#define THREADS_DEFAULT 4u

int io_thread_start(pthread_t *ret, const char *name, void *(*main)(void *), void *arg)
{
	sigset_t all, old;
	int r;

	sigfillset(&all); /* signals are the loop's */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = -pthread_create(ret, NULL, main, arg);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	if (r == 0)
		pthread_setname_np(*ret, name);
	return r;
}

bool io_wake(struct io *io)
{
	if (io->threads)
		io_threads_wake(io->threads);
	return io->ring && io_ring_wake(io->ring);
}

static void count(struct io_stat *st, const struct io_request *r)
{
	if (r->result < 0) {
		st->errors++;
		return;
	}
	st->reads += r->op == IO_READ;
	st->writes += r->op == IO_WRITE;
	st->syncs += r->op == IO_SYNC;
	st->read_bytes += r->op == IO_READ ? r->bytes : 0;
	st->written_bytes += r->op == IO_WRITE ? r->bytes : 0;
}

void io_finish(struct io *io, struct io_request *r)
{
	bool first;

	if (r->result == 0 && r->check)
		r->check(r);
	pthread_mutex_lock(&io->lock);
	count(&io->stat, r);
	first = !io->finished.first;
	io_list_push(&io->finished, r);
	pthread_mutex_unlock(&io->lock);
	if (first) /* not under the lock, which is the first thing that who wakes up wants */
		eventfd_write(io->event, 1);
}

static void report(struct io *io)
{
	struct io_request *r, *next;

	pthread_mutex_lock(&io->lock);
	r = io->finished.first;
	io_list_init(&io->finished);
	pthread_mutex_unlock(&io->lock);
	for (; r; r = next) {
		next = r->next;
		io->outstanding--;
		r->done(r);
	}
}

static void on_event(void *userdata, uint32_t events)
{
	struct io *io = userdata;
	eventfd_t n;

	(void)events;
	eventfd_read(io->event, &n);
	report(io);
}

/* What the administrator can do about it. */
static const char *remedy(int error)
{
	char disabled = '0';
	FILE *f = fopen("/proc/sys/kernel/io_uring_disabled", "re");

	if (f) {
		if (fread(&disabled, 1, 1, f) != 1)
			disabled = '0';
		fclose(f);
	}
	if (error == -EPERM && disabled == '2')
		return "set kernel.io_uring_disabled to 0 with sysctl";
	if (error == -EPERM && disabled == '1')
		return "set kernel.io_uring_disabled to 0 with sysctl, or kernel.io_uring_group to "
		       "a group of "
		       "the daemon's user";
	if (error == -EPERM || error == -EACCES)
		return "admit @aio in SystemCallFilter= of the unit, or io_uring in the "
		       "container's profile";
	if (error == -ENOSYS)
		return "a kernel with CONFIG_IO_URING; or a filter of system calls answers so: "
		       "admit @aio";
	if (error == -ENOMEM)
		return "raise LimitMEMLOCK= of the unit, or ulimit -l";
	if (error == -EMFILE || error == -ENFILE)
		return "raise LimitNOFILE= of the unit, or ulimit -n";
	return "a newer kernel";
}

static int start_ring(struct io *io, const struct io_options *o)
{
	struct stat st;
	bool block = fstat(io->fd, &st) == 0 && S_ISBLK(st.st_mode);
	unsigned discard = 1u << IO_DISCARD;
	int r;

	if (!o->uring)
		return -EOPNOTSUPP;
	r = io_ring_new(io, o, block ? IO_OPS_ALL & ~discard : IO_OPS_ALL, &io->ring);
	if (r < 0) {
		log_warning("no io_uring for the disk, threads read and write: slower",
			"error=\"%s\" fix=\"%s\"", strerror(-r), remedy(r));
		return r;
	}
	return block ? io_threads_new(io, 1, discard, io_run, &io->threads) : 0;
}

static int start_threads(struct io *io, unsigned n, io_run_fn run)
{
	return io_threads_new(io, n, IO_OPS_ALL, run, &io->threads);
}

static int device_new(const struct io_options *o, struct io **ret)
{
	struct io *io = calloc(1, sizeof(*io));
	int r;

	if (!io)
		return -ENOMEM;
	io->fd = o->fd;
	pthread_mutex_init(&io->lock, NULL);
	io_list_init(&io->finished);
	io->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	r = io->event < 0 ? -errno
			  : loop_add_fd(o->loop, io->event, EPOLLIN, on_event, io, &io->source);
	if (r < 0) {
		io_free(io);
		return r;
	}
	*ret = io;
	return 0;
}

int io_new(const struct io_options *o, struct io **ret)
{
	unsigned n = o->threads ? o->threads : THREADS_DEFAULT;
	struct io *io;
	int r;

	if (fcntl(o->fd, F_GETFD) < 0)
		return -errno;
	r = device_new(o, &io);
	if (r < 0)
		return r;
	io_queue_init(&io->queue, o->in_flight_bytes, PART_BYTES, IO_RING_SLOTS);
	r = start_ring(io, o);
	if (!io->ring) {
		io->queue.slots = n;
		r = start_threads(io, n, io_run);
	}
	if (r < 0) {
		io_free(io);
		return r;
	}
	*ret = io;
	return 0;
}

int io_new_faulty(const struct io_options *o, const struct io_fault *f, struct io **ret)
{
	struct io *io;
	int r;

	r = device_new(o, &io);
	if (r < 0)
		return r;
	/* One thread, and requests as they are: what happens depends on nothing but the seed and the order of submission. */
	io_queue_init(&io->queue, o->in_flight_bytes, UINT64_MAX - UINT64_MAX % ALIGNED, 1);
	r = io_faulty_new(f, &io->faulty);
	if (r == 0)
		r = start_threads(io, 1, io_faulty_run);
	if (r < 0) {
		io_free(io);
		return r;
	}
	*ret = io;
	return 0;
}

struct io *io_free(struct io *io)
{
	bool kick;

	if (!io)
		return NULL;
	while (io->outstanding) { /* done() may submit more */
		poll(&(struct pollfd){.fd = io->event, .events = POLLIN}, 1, -1);
		on_event(io, 0);
	}
	pthread_mutex_lock(&io->lock);
	io->stop = true;
	kick = io_wake(io);
	pthread_mutex_unlock(&io->lock);
	if (kick)
		io_ring_kick(io->ring);
	io_ring_free(io->ring);
	io_threads_free(io->threads);
	io_faulty_free(io->faulty);
	loop_del_fd(io->source);
	if (io->event >= 0)
		close(io->event);
	pthread_mutex_destroy(&io->lock);
	free(io);
	return NULL;
}

static void check_request(const struct io_request *r)
{
	uint64_t sum = 0;

	assert(r->op < IO_OPS && r->done);
	if (r->op == IO_SYNC)
		return;
	assert(r->bytes && r->bytes % ALIGNED == 0 && r->offset % ALIGNED == 0);
	if (r->op == IO_DISCARD)
		return;
	assert(r->n_iov <= IO_VECTORS_MAX);
	for (unsigned i = 0; i < r->n_iov; i++)
		sum += r->iov[i].iov_len;
	assert(sum == r->bytes);
}

void io_submit(struct io *io, struct io_request *r)
{
	bool kick;

	check_request(r);
	io->outstanding++;
	if (io->faulty)
		io_faulty_submit(io, r);
	pthread_mutex_lock(&io->lock);
	io_queue_push(&io->queue, r);
	kick = io_wake(io);
	pthread_mutex_unlock(&io->lock);
	if (kick)
		io_ring_kick(io->ring);
}

const char *io_engine(const struct io *io)
{
	if (io->faulty)
		return "threads, faulty";
	return io->ring ? io_ring_name(io->ring) : "threads";
}

void io_stat(struct io *io, struct io_stat *ret)
{
	pthread_mutex_lock(&io->lock);
	*ret = io->stat;
	ret->in_flight_bytes = io->queue.in_flight;
	ret->queued = io->queue.n_waiting;
	pthread_mutex_unlock(&io->lock);
}
