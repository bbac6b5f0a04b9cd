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

/* ---- order ---------------------------------------------------------------------------------------- */

struct gate {
	struct one one;
	sem_t entered, open;
};

static void gate_check(struct io_request *r)
{
	struct gate *g = (struct gate *)r;

	sem_post(&g->entered);
	while (sem_wait(&g->open) < 0)
		;
}

static unsigned order[8], n_order;

static void order_done(struct io_request *r)
{
	one_done(r);
	order[n_order++] = (unsigned)(r->offset / PAGE);
}

/* With room for one page at a time they end as they were started: what was queued while the device's thread was held up. */
static void test_reads_go_first(void **state)
{
	static const enum io_op op[] = {IO_WRITE, IO_WRITE, IO_READ, IO_WRITE, IO_READ};
	static const unsigned expected[] = {2, 4, 0, 1, 3};
	unsigned char *memory = pages(8 * PAGE);
	struct one one[5];

	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct device d;
		struct gate g;

		if (!engines[i].uring && engines[i].threads != 1)
			continue; /* the other threads go on */
		device_open(&d, &engines[i], file(MIB, O_RDWR), PAGE);
		one_init(&g.one, IO_READ, 0, memory + 5 * PAGE, PAGE);
		g.one.r.check = gate_check;
		sem_init(&g.entered, 0, 0);
		sem_init(&g.open, 0, 0);
		io_submit(d.io, &g.one.r);
		while (sem_wait(&g.entered) < 0)
			;
		n_order = 0;
		for (unsigned k = 0; k < 5; k++) {
			one_init(&one[k], op[k], k * PAGE, memory + k * PAGE, PAGE);
			one[k].r.done = order_done;
			io_submit(d.io, &one[k].r);
		}
		sem_post(&g.open);
		for (unsigned k = 0; k < 5; k++)
			one_wait(&d, &one[k]);
		for (unsigned k = 0; k < 5; k++)
			assert_int_equal(order[k], expected[k]);
		device_close(&d);
		sem_destroy(&g.entered);
		sem_destroy(&g.open);
	}
	munmap(memory, 8 * PAGE);
}

/* ---- single requests ------------------------------------------------------------------------------ */

static void test_sync_and_discard(void **state)
{
	unsigned char *a = pages(8 * PAGE), *b = pages(8 * PAGE);

	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct device d;

		device_open(&d, &engines[i], file(MIB, O_RDWR), MIB);
		fill(a, 8 * PAGE, i);
		assert_int_equal(one_run(&d, IO_WRITE, PAGE, a, 8 * PAGE), 0);
		assert_int_equal(one_run(&d, IO_SYNC, 0, NULL, 0), 0);
		assert_int_equal(one_run(&d, IO_DISCARD, 2 * PAGE, NULL, 4 * PAGE), 0);
		assert_int_equal(one_run(&d, IO_READ, PAGE, b, 8 * PAGE), 0);
		memset(a + PAGE, 0, 4 * PAGE);
		assert_memory_equal(a, b, 8 * PAGE);
		device_close(&d);
	}
	munmap(a, 8 * PAGE);
	munmap(b, 8 * PAGE);
}

/* A block device forgets by another call, which io_uring does not have. */
static void test_block_device(void **state)
{
	char name[] = KVG_BINARY_DIR "/test_io_XXXXXX", command[sizeof(name) + 64], loop[64] = "";
	int made = mkstemp(name), fd;
	unsigned char *a = pages(8 * MIB);
	FILE *f;

	(void)state;
	assert_true(made >= 0);
	assert_int_equal(ftruncate(made, 8 * MIB), 0);
	snprintf(command, sizeof(command), "losetup --find --show %s 2>/dev/null", name);
	f = popen(command, "r");
	if (!f || !fgets(loop, sizeof(loop), f) || pclose(f) != 0) {
		unlink(name);
		skip();
	}
	loop[strcspn(loop, "\n")] = '\0';
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct device d;

		fd = open(loop, O_RDWR | O_DIRECT | O_CLOEXEC);
		assert_true(fd >= 0);
		device_open(&d, &engines[i], fd, 4 * MIB);
		fill(a, 8 * MIB, i);
		assert_int_equal(one_run(&d, IO_WRITE, 0, a, 8 * MIB), 0);
		assert_int_equal(one_run(&d, IO_SYNC, 0, NULL, 0), 0);
		assert_int_equal(one_run(&d, IO_DISCARD, 4 * MIB, NULL, 4 * MIB), 0);
		assert_int_equal(one_run(&d, IO_READ, MIB, a, 7 * MIB), 0);
		for (unsigned k = 3 * MIB; k < 7 * MIB; k++)
			assert_int_equal(a[k], 0);
		assert_int_equal(one_run(&d, IO_READ, 7 * MIB, a, 2 * MIB), -EIO);
		device_close(&d);
	}
	snprintf(command, sizeof(command), "losetup --detach %s", loop);
	assert_int_equal(system(command), 0);
	close(made);
	unlink(name);
	munmap(a, 8 * MIB);
}

static void test_errors(void **state)
{
	unsigned char *a = pages(4 * MIB);

	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct io_options o = engines[i];
		struct device d;
		struct io_stat st;

		device_open(&d, &engines[i], file(MIB, O_RDONLY), 8 * MIB);
		assert_int_equal(one_run(&d, IO_WRITE, 0, a, PAGE), -EBADF);
		assert_int_equal(one_run(&d, IO_READ, MIB - PAGE, a, PAGE), 0);
		assert_int_equal(one_run(&d, IO_READ, MIB - PAGE, a, 2 * PAGE), -EIO);
		assert_int_equal(one_run(&d, IO_READ, 8 * MIB, a, 4 * MIB), -EIO);
		assert_int_equal(one_run(&d, IO_READ, 0, (void *)(uintptr_t)PAGE, PAGE), -EFAULT);
		io_stat(d.io, &st);
		assert_int_equal(st.errors, 4);
		assert_int_equal(st.reads, 1);
		assert_int_equal(st.read_bytes, PAGE);
		assert_int_equal(st.in_flight_bytes + st.queued, 0);
		device_close(&d);

		device_open(&d, &engines[i], file(MIB + 512, O_RDONLY), 8 * MIB);
		assert_int_equal(one_run(&d, IO_READ, MIB, a, 2 * PAGE), -EIO);
		o.loop = d.loop;
		o.fd = -1;
		d.io = io_free(d.io);
		assert_int_equal(io_new(&o, &d.io), -EBADF);
		device_close(&d);
	}
	munmap(a, 4 * MIB);
}

static pthread_t loop_thread;

static void refuse(struct io_request *r)
{
	assert_false(pthread_equal(loop_thread, pthread_self()));
	r->result = -EBADMSG;
}

static void must_not_check(struct io_request *r)
{
	(void)r;
	abort();
}

static void test_check(void **state)
{
	unsigned char *a = pages(PAGE);

	(void)state;
	loop_thread = pthread_self();
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct device d;
		struct one one;

		device_open(&d, &engines[i], file(MIB, O_RDONLY), MIB);
		one_init(&one, IO_READ, 0, a, PAGE);
		one.r.check = refuse;
		io_submit(d.io, &one.r);
		one_wait(&d, &one);
		assert_int_equal(one.r.result, -EBADMSG);
		one_init(&one, IO_WRITE, 0, a, PAGE);
		one.r.check = must_not_check;
		io_submit(d.io, &one.r);
		one_wait(&d, &one);
		assert_int_equal(one.r.result, -EBADF);
		device_close(&d);
	}
	munmap(a, PAGE);
}

static void submit_next(struct io_request *r)
{
	struct one *o = (struct one *)r;

	assert_int_equal(r->result, 0);
	if (++o->ended < 10)
		io_submit(o->device->io, r);
}

/* All that was submitted is done, and what its done() submits. */
static void test_free_in_flight(void **state)
{
	unsigned char *a = pages(64 * MIB);
	struct one one[64], chain;

	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct device d;

		device_open(&d, &engines[i], file(64 * MIB, O_RDWR), 4 * MIB);
		for (unsigned k = 0; k < 64; k++) {
			one_init(&one[k], k % 2 ? IO_READ : IO_WRITE, k * MIB, a + k * MIB, MIB);
			io_submit(d.io, &one[k].r);
		}
		one_init(&chain, IO_SYNC, 0, NULL, 0);
		chain.r.done = submit_next;
		chain.device = &d;
		io_submit(d.io, &chain.r);
		device_close(&d);
		for (unsigned k = 0; k < 64; k++) {
			assert_int_equal(one[k].ended, 1);
			assert_int_equal(one[k].r.result, 0);
		}
		assert_int_equal(chain.ended, 10);
	}
	munmap(a, 64 * MIB);
}

/* ---- no io_uring ---------------------------------------------------------------------------------- */

static void forbid_io_uring(int error)
{
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)error),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	const struct sock_fprog program = {4, filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
		prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		_exit(77);
}

static int without_io_uring(int error, int log)
{
	unsigned char *a = pages(PAGE), *b = pages(PAGE);
	struct device d;

	forbid_io_uring(error);
	dup2(log, STDERR_FILENO);
	device_open(&d, &engines[0], file(MIB, O_RDWR), MIB);
	fill(a, PAGE, 1);
	if (strcmp(io_engine(d.io), "threads") != 0 || one_run(&d, IO_WRITE, PAGE, a, PAGE) != 0 ||
		one_run(&d, IO_READ, PAGE, b, PAGE) != 0 || memcmp(a, b, PAGE) != 0)
		return 1;
	device_close(&d);
	return 0;
}

static void check_fallback(int error, const char *fix)
{
	int log[2], status;
	char text[1000] = "";
	pid_t pid;

	assert_int_equal(pipe(log), 0);
	pid = fork();
	if (pid == 0)
		_exit(without_io_uring(error, log[1]));
	close(log[1]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77) {
		close(log[0]);
		skip();
	}
	assert_int_equal(WEXITSTATUS(status), 0);
	assert_true(read(log[0], text, sizeof(text) - 1) > 0);
	close(log[0]);
	assert_non_null(strstr(text, "no io_uring"));
	assert_non_null(strstr(text, fix));
	assert_null(strstr(strchr(text, '\n'), "io_uring")); /* once */
}

static void test_io_uring_forbidden(void **state)
{
	(void)state;
	check_fallback(EPERM, "@aio in SystemCallFilter=");
	check_fallback(ENOSYS, "CONFIG_IO_URING");
	check_fallback(ENOMEM, "LimitMEMLOCK=");
}

static void test_engine_names(void **state)
{
	static const char *const names[N_ENGINES] = {
		"io_uring", "io_uring, sqpoll", "io_uring, iopoll", "threads", "threads"};
	const bool have = syscall(SYS_io_uring_setup, 0, NULL) < 0 && errno != EPERM &&
		errno != ENOSYS;

	(void)state;
	for (unsigned i = 0; i < N_ENGINES; i++) {
		struct device d;

		device_open(&d, &engines[i], file(MIB, O_RDWR), MIB);
		assert_string_equal(io_engine(d.io), have ? names[i] : "threads");
		device_close(&d);
	}
}

/* ---- a device that misbehaves --------------------------------------------------------------------- */

static void faulty_open(struct device *d, int fd, const struct io_fault *f)
{
	struct io_options o = {.fd = fd, .in_flight_bytes = MIB};

	assert_int_equal(loop_new(&d->loop), 0);
	o.loop = d->loop;
	d->fd = fd;
	assert_int_equal(io_new_faulty(&o, f, &d->io), 0);
}

static void test_faulty_bytes(void **state)
{
	(void)state;
	run_model(&engines[0], file(MODEL_BYTES, O_RDWR), &(struct io_fault){.seed = 1});
	run_model(&engines[0], file(MODEL_BYTES, O_RDWR),
		&(struct io_fault){.seed = 1, .hold_writes = true});
}

#define CUT_PAGES 64u

/* Durable pages first, then as many that are not; after the cut the file is read, and the device gives errors. */
static void cut(uint64_t seed, unsigned char *ret_after)
{
	unsigned char *a = pages(2 * CUT_PAGES * PAGE);
	struct device d;
	unsigned i;

	faulty_open(&d, file(2 * CUT_PAGES * PAGE, O_RDWR),
		&(struct io_fault){.seed = seed, .hold_writes = true});
	fill(a, 2 * CUT_PAGES * PAGE, 1);
	for (i = 0; i < CUT_PAGES; i += 4)
		assert_int_equal(one_run(&d, IO_WRITE, i * PAGE, a + i * PAGE, 4 * PAGE), 0);
	assert_int_equal(pread(d.fd, ret_after, PAGE, 0), PAGE);
	assert_memory_not_equal(ret_after, a, PAGE); /* not on the file yet */
	assert_int_equal(one_run(&d, IO_SYNC, 0, NULL, 0), 0);
	for (; i < 2 * CUT_PAGES; i += 4)
		assert_int_equal(one_run(&d, IO_WRITE, i * PAGE, a + i * PAGE, 4 * PAGE), 0);
	assert_int_equal(one_run(&d, IO_READ, 0, ret_after, 2 * CUT_PAGES * PAGE), 0);
	assert_memory_equal(ret_after, a, 2 * CUT_PAGES * PAGE); /* what is held is seen */
	io_fault_cut(d.io);
	assert_int_equal(one_run(&d, IO_READ, 0, ret_after, PAGE), -EIO);
	assert_int_equal(one_run(&d, IO_WRITE, 0, a, PAGE), -EIO);
	assert_int_equal(one_run(&d, IO_SYNC, 0, NULL, 0), -EIO);
	assert_int_equal(pread(d.fd, ret_after, 2 * CUT_PAGES * PAGE, 0), 2 * CUT_PAGES * PAGE);
	assert_memory_equal(ret_after, a, CUT_PAGES * PAGE);
	device_close(&d);
	munmap(a, 2 * CUT_PAGES * PAGE);
}

static void test_power_cut(void **state)
{
	unsigned char *after = pages(2 * CUT_PAGES * PAGE), *again = pages(2 * CUT_PAGES * PAGE);
	unsigned char *a = pages(2 * CUT_PAGES * PAGE);
	unsigned kept = 0, torn = 0, forgotten = 0;

	(void)state;
	fill(a, 2 * CUT_PAGES * PAGE, 1);
	cut(5, after);
	cut(5, again);
	assert_memory_equal(after, again, 2 * CUT_PAGES * PAGE);
	cut(6, again);
	assert_memory_not_equal(after, again, 2 * CUT_PAGES * PAGE);
	for (unsigned i = CUT_PAGES; i < 2 * CUT_PAGES; i += 4) {
		unsigned n = 0;

		for (unsigned k = i; k < i + 4; k++)
			n += memcmp(after + k * PAGE, a + k * PAGE, PAGE) == 0;
		kept += n == 4;
		forgotten += n == 0;
		torn += n > 0 && n < 4;
	}
	assert_true(kept && torn && forgotten);
	munmap(after, 2 * CUT_PAGES * PAGE);
	munmap(again, 2 * CUT_PAGES * PAGE);
	munmap(a, 2 * CUT_PAGES * PAGE);
}

#define TRIES 400u

struct outcome {
	unsigned failed_writes, no_space, failed_reads, bad;
	uint64_t which; /* hash of what happened to each */
};

static struct outcome misfortune(const struct io_fault *f)
{
	unsigned char *a = pages(4 * PAGE), *b = pages(4 * PAGE);
	struct outcome o = {0};
	struct device d;

	faulty_open(&d, file(MIB, O_RDWR), f);
	for (unsigned i = 0; i < TRIES; i++) {
		int w, r, bad;

		fill(a, 4 * PAGE, i);
		w = one_run(&d, IO_WRITE, 0, a, 4 * PAGE);
		r = one_run(&d, IO_READ, 0, b, 4 * PAGE);
		bad = w == 0 && r == 0 && memcmp(a, b, 4 * PAGE) != 0;
		o.failed_writes += w == -EIO;
		o.no_space += w == -ENOSPC;
		o.failed_reads += r == -EIO;
		o.bad += (unsigned)bad;
		o.which = o.which * 31 + (uint64_t)(w * 3 + r * 5 + bad);
	}
	device_close(&d);
	munmap(a, 4 * PAGE);
	munmap(b, 4 * PAGE);
	return o;
}

/* Each kind of misfortune alone, about as often as was asked for, and the same with the same seed. */
static void test_misfortune(void **state)
{
	const struct io_fault kinds[] = {
		{.seed = 9, .write_error = 250000},
		{.seed = 9, .no_space = 250000},
		{.seed = 9, .read_error = 250000},
		{.seed = 9, .write_flip = 250000},
		{.seed = 9, .read_flip = 250000},
	};

	(void)state;
	for (unsigned i = 0; i < 5; i++) {
		struct outcome o = misfortune(&kinds[i]), again = misfortune(&kinds[i]);
		const unsigned n[4] = {o.failed_writes, o.no_space, o.failed_reads, o.bad};

		assert_memory_equal(&o, &again, sizeof(o));
		for (unsigned k = 0; k < 4; k++)
			if (k == (i < 3 ? i : 3))
				assert_in_range(n[k], TRIES / 8, TRIES / 2);
			else
				assert_int_equal(n[k], 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_engine_names),
		cmocka_unit_test(test_bytes),
		cmocka_unit_test(test_bytes_of_memfd),
		cmocka_unit_test(test_reads_go_first),
		cmocka_unit_test(test_sync_and_discard),
		cmocka_unit_test(test_block_device),
		cmocka_unit_test(test_errors),
		cmocka_unit_test(test_check),
		cmocka_unit_test(test_free_in_flight),
		cmocka_unit_test(test_io_uring_forbidden),
		cmocka_unit_test(test_faulty_bytes),
		cmocka_unit_test(test_power_cut),
		cmocka_unit_test(test_misfortune),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
