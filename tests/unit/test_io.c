/* SPDX-License-Identifier: Apache-2.0 */
/* Every test of a device runs with io_uring, with its options, and with threads: the results are the same. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/base/loop.h"
#include "daemon/io/io.h"

#define PAGE 4096u
#define MIB  (1u << 20)

struct device {
	struct loop *loop;
	struct io *io;
	int fd;
};

static const struct io_options engines[] = {
	{.uring = true},
	{.uring = true, .sqpoll = true},
	{.uring = true, .iopoll = true},
	{.uring = false},
	{.uring = false, .threads = 1},
};
#define N_ENGINES (sizeof(engines) / sizeof(engines[0]))

static int file(uint64_t bytes, int flags)
{
	char name[] = KVG_BINARY_DIR "/test_io_XXXXXX";
	int made = mkstemp(name), fd;

	assert_true(made >= 0);
	assert_int_equal(ftruncate(made, (off_t)bytes), 0);
	fd = open(name, flags | O_DIRECT | O_CLOEXEC);
	if (fd < 0 && errno == EINVAL) /* a file system without it */
		fd = open(name, flags | O_CLOEXEC);
	assert_true(fd >= 0);
	close(made);
	unlink(name);
	return fd;
}

static void device_open(struct device *d, const struct io_options *engine, int fd, uint64_t limit)
{
	struct io_options o = *engine;

	assert_int_equal(loop_new(&d->loop), 0);
	d->fd = fd;
	o.loop = d->loop;
	o.fd = fd;
	o.in_flight_bytes = limit;
	assert_int_equal(io_new(&o, &d->io), 0);
}

static void device_close(struct device *d)
{
	d->io = io_free(d->io);
	loop_free(d->loop);
	close(d->fd);
}

struct one {
	struct io_request r;
	struct iovec iov;
	unsigned ended;
	struct device *device;
};

static void one_done(struct io_request *r)
{
	struct one *o = (struct one *)r;

	assert_int_equal(o->ended++, 0);
}

static void one_init(struct one *o, enum io_op op, uint64_t offset, void *addr, uint64_t bytes)
{
	*o = (struct one){
		.r = {.op = op, .offset = offset, .bytes = bytes, .n_iov = 1, .done = one_done},
		.iov = {addr, bytes},
	};
	o->r.iov = &o->iov;
}

static void one_wait(struct device *d, struct one *o)
{
	while (!o->ended)
		assert_int_equal(loop_run_once(d->loop, -1), 0);
}

static int one_run(struct device *d, enum io_op op, uint64_t offset, void *addr, uint64_t bytes)
{
	struct one o;

	one_init(&o, op, offset, addr, bytes);
	io_submit(d->io, &o.r);
	assert_int_equal(o.ended, 0); /* never from within */
	one_wait(d, &o);
	return o.r.result;
}

static void *pages(uint64_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	assert_ptr_not_equal(p, MAP_FAILED);
	return p;
}

static void fill(void *addr, uint64_t bytes, uint64_t seed)
{
	uint64_t *p = addr;

	for (uint64_t i = 0; i < bytes / 8; i++)
		p[i] = (seed + i) * 0x9e3779b97f4a7c15u;
}

/* ---- bytes ---------------------------------------------------------------------------------------- */

#define MODEL_BYTES (64u * MIB)
#define REGIONS     16u /* one request in each at a time, so that what it has to see is known */
#define REGION      (MODEL_BYTES / REGIONS)
#define OPERATIONS  400u

struct model {
	struct device d;
	unsigned char *bytes; /* what the file has to have */
	uint64_t random;
	unsigned started, ended;
	struct region {
		struct io_request r;
		struct model *model;
		unsigned char *memory;
		struct iovec iov[IO_VECTORS_MAX];
	} region[REGIONS];
};

static uint64_t draw(uint64_t *state)
{
	*state = *state * 6364136223846793005u + 1442695040888963407u;
	return *state >> 33;
}

/* Pieces of odd sizes from all over the memory, none twice: the last pieces first. */
static void scatter(struct region *g, uint64_t bytes)
{
	unsigned char *end = g->memory + REGION;
	uint64_t most = 1 + draw(&g->model->random) % 64;

	g->r.n_iov = 0;
	g->r.bytes = bytes;
	g->r.iov = g->iov;
	while (bytes) {
		uint64_t n = (1 + draw(&g->model->random) % most) * PAGE;

		if (n > bytes || g->r.n_iov == IO_VECTORS_MAX - 1)
			n = bytes;
		end -= n;
		g->iov[g->r.n_iov++] = (struct iovec){end, n};
		bytes -= n;
	}
}

static void region_start(struct region *g)
{
	struct model *m = g->model;
	unsigned i = (unsigned)(g - m->region);
	uint64_t from = draw(&m->random) % (REGION / PAGE), to = draw(&m->random) % (REGION / PAGE);
	uint64_t t = from < to ? from : to, bytes = ((from < to ? to : from) - t + 1) * PAGE;
	unsigned char *at;

	m->started++;
	g->r.op = draw(&m->random) % 8 == 0 ? IO_SYNC : draw(&m->random) % 2 ? IO_READ : IO_WRITE;
	g->r.offset = i * REGION + t * PAGE;
	at = m->bytes + g->r.offset;
	scatter(g, bytes);
	for (unsigned k = 0; g->r.op == IO_WRITE && k < g->r.n_iov; at += g->iov[k++].iov_len) {
		fill(at, g->iov[k].iov_len, m->random + k);
		memcpy(g->iov[k].iov_base, at, g->iov[k].iov_len);
	}
	io_submit(m->d.io, &g->r);
}

static void region_done(struct io_request *r)
{
	struct region *g = (struct region *)r;
	struct model *m = g->model;
	const unsigned char *at = m->bytes + r->offset;

	assert_int_equal(r->result, 0);
	for (unsigned k = 0; r->op == IO_READ && k < r->n_iov; at += g->iov[k++].iov_len)
		assert_memory_equal(g->iov[k].iov_base, at, g->iov[k].iov_len);
	m->ended++;
	if (m->started < OPERATIONS)
		region_start(g);
}

static void run_model(const struct io_options *engine, int fd, const struct io_fault *fault)
{
	struct model *m = calloc(1, sizeof(*m));
	struct io_stat st;

	assert_non_null(m);
	device_open(&m->d, engine, fd, 8 * MIB);
	if (fault) {
		struct io_options o = *engine;

		o.loop = m->d.loop;
		o.fd = fd;
		o.in_flight_bytes = 8 * MIB;
		io_free(m->d.io);
		assert_int_equal(io_new_faulty(&o, fault, &m->d.io), 0);
	}
	m->bytes = pages(MODEL_BYTES);
	m->random = 7;
	for (unsigned i = 0; i < REGIONS; i++) {
		m->region[i].model = m;
		m->region[i].memory = pages(REGION);
		m->region[i].r.done = region_done;
		region_start(&m->region[i]);
	}
	while (m->ended < m->started) {
		loop_run_once(m->d.loop, -1);
		io_stat(m->d.io, &st);
		assert_true(st.in_flight_bytes <= 8 * MIB || fault);
	}
	io_stat(m->d.io, &st);
	assert_int_equal(st.reads + st.writes + st.syncs, OPERATIONS);
	assert_int_equal(st.errors + st.queued + st.in_flight_bytes, 0);
	for (unsigned i = 0; i < REGIONS; i++)
		munmap(m->region[i].memory, REGION);
	munmap(m->bytes, MODEL_BYTES);
	device_close(&m->d);
	free(m);
}

static void test_bytes(void **state)
{
	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++)
		run_model(&engines[i], file(MODEL_BYTES, O_RDWR), NULL);
}

/* Shared memory, which has no O_DIRECT, cannot be polled, and may be a device all the same. */
static void test_bytes_of_memfd(void **state)
{
	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++) {
		int fd = memfd_create("test", MFD_CLOEXEC);

		assert_int_equal(ftruncate(fd, MODEL_BYTES), 0);
		run_model(&engines[i], fd, NULL);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_bytes_of_memfd),
	};

	(void)one_run;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
