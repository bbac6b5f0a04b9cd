/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reclaim_ms: from SIGKILL of a client that has 1 GiB staged (every page written), 10,000 pins in its pin page and as
 * many as fit through the socket, until the daemon grants all of it again: no staging is charged, the session is gone, and
 * a purge of the blocks that were pinned takes every one of them, which it refuses while a single pin is left. Other blocks
 * that were pinned as well are compared byte for byte after every round.
 *
 * reclaim_memory_ms goes on until the kernel has the gigabyte back (Shmem of /proc/meminfo). Its limit is what the kernel
 * alone needs, every tenth round: the same process killed with nobody else holding its memory.
 */
#include <assert.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/map.h"
#include "tests/bench/figure.h"
#include "tests/lib/harness.h"

#define STAGED       (1ull << 30) /* 256 stages of 4 MiB */
#define PINS         10000
#define BLOCKS       100             /* that are pinned: */
#define KEPT         50              /* in every round, */
#define PURGED       (BLOCKS - KEPT) /* at its end */
#define KERNEL_EVERY 10
#define NEARLY_ALL   (STAGED - STAGED / 32) /* what else the machine does moves Shmem, too */
#define BACK_MS      10000

static double now_ms(void)
{
	return figure_now_us() * 1e-3;
}

/* Bytes of shared memory on the machine. */
static uint64_t shmem(void)
{
	char text[4096];
	const char *at;
	int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
	ssize_t n = read(fd, text, sizeof(text) - 1);

	assert(n > 0);
	close(fd);
	text[n] = 0;
	at = strstr(text, "Shmem:");
	assert(at);
	return strtoull(at + strlen("Shmem:"), NULL, 10) << 10;
}

/* Until all but NEARLY_ALL of what was there is back. */
static void wait_memory(uint64_t before)
{
	const double start = now_ms();

	while (shmem() + NEARLY_ALL > before) {
		if (now_ms() - start > BACK_MS) {
			fprintf(stderr, "bench_reclaim: the memory does not come back\n");
			exit(1);
		}
		usleep(200);
	}
}

struct task {
	const struct daemon_process *d;
	const struct kvg_key *keys;
	int ready;
};

static int hold(void *arg)
{
	const struct task *t = arg;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_wide),
			  *small = model_register(c, &model_small);
	struct kvg_acquired acquired[BLOCKS];
	struct kvg_stage s[64];
	uint64_t staged = 0;

	while (staged < STAGED) {
		ssize_t n = kvg_stage(l, KVG_INPUT_SCORES, 64, s);

		assert(n > 0);
		for (ssize_t i = 0; i < n; i++) {
			memset(s[i].kv, 1, s[i].kv_bytes);
			memset(s[i].aux, 0, s[i].aux_bytes);
			staged += s[i].kv_bytes;
		}
	}
	for (int i = 0; i < PINS; i++) {
		struct kvg_pin pin;

		assert(kvg_lookup_pin(small, &t->keys[i % BLOCKS], 0.f, &pin) == 0);
	}
	assert(kvg_acquire(small, t->keys, BLOCKS, 0.f, 0, acquired) == BLOCKS);
	assert(write(t->ready, "x", 1) == 1);
	pause();
	return 0;
}

struct round {
	double granted, memory; /* ms after the kill */
};

/* Starts fn and returns when it has said that everything is held. */
static pid_t start_holding(child_fn fn, void *arg, int *ready)
{
	int p[2];
	char b;
	pid_t pid;

	assert(pipe(p) == 0);
	*ready = p[1];
	pid = child_start(0, fn, arg);
	close(p[1]);
	assert(read(p[0], &b, 1) == 1);
	close(p[0]);
	return pid;
}

static void purge_all(struct kvg_client *c, const struct kvg_key *keys, uint32_t n)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	o.keys = keys;
	o.n_keys = n;
	assert(kvg_purge(c, &o, &r) == 0);
	if (r.pinned || r.blocks != n) {
		fprintf(stderr, "bench_reclaim: %llu blocks are still pinned, %llu of %u went\n",
			(unsigned long long)r.pinned, (unsigned long long)r.blocks, n);
		exit(1);
	}
}

static void check_kept(struct kvg_client *c, struct kvg_layout *l, const struct kvg_key *keys)
{
	struct kvg_pin pins[KEPT];

	assert(kvg_prefix_pin(l, keys, KEPT, 1.f, pins) == KEPT);
	for (int i = 0; i < KEPT; i++)
		content_compare(&model_small, 1 + (uint64_t)i, l, &pins[i]);
	kvg_unpin(c, pins, KEPT);
}

/* keys: KEPT that are there, then room for those of this round. */
static struct round one_round(const struct daemon_process *d, struct kvg_client *c,
	struct kvg_layout *l, struct kvg_key *keys)
{
	struct task t = {.d = d, .keys = keys};
	struct round r;
	uint64_t before;
	double start;
	pid_t pid;

	assert(chain_put(c, l, &model_small, 1000, PURGED, keys + KEPT) == KVG_CODE_OK);
	pid = start_holding(hold, &t, &t.ready);
	assert(client_counter(c, "kvgate_staging_bytes") >= (double)STAGED);
	before = shmem();
	start = now_ms();
	kill(pid, SIGKILL);
	/* asking without a pause would take the processor from the process that is being torn down */
	while (client_counter(c, "kvgate_staging_bytes") != 0 ||
		client_counter(c, "kvgate_sessions") != 1)
		usleep(200);
	purge_all(c, keys + KEPT, PURGED);
	r.granted = now_ms() - start;
	wait_memory(before);
	r.memory = now_ms() - start;
	child_wait(pid);
	check_kept(c, l, keys);
	return r;
}

struct alone {
	int ready, memory;
};

static int hold_alone(void *arg)
{
	const struct alone *t = arg;
	void *m;

	assert(map_shared(t->memory, STAGED, PROT_READ | PROT_WRITE, &m) == 0);
	map_huge(m, STAGED);
	memset(m, 1, STAGED);
	assert(write(t->ready, "x", 1) == 1);
	pause();
	return 0;
}

/* The same by hand: a process with 1 GiB of shared memory and a socket, whose end the other holder of the memory sees. */
static struct round kernel_round(void)
{
	struct alone t = {.memory = memfd_create("limit", MFD_CLOEXEC)};
	struct pollfd p = {.events = POLLIN};
	struct round r;
	uint64_t before;
	double start;
	int sv[2];
	pid_t pid;

	assert(t.memory >= 0 && ftruncate(t.memory, (off_t)STAGED) == 0);
	assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) == 0);
	pid = start_holding(hold_alone, &t, &t.ready);
	close(sv[1]);
	before = shmem();
	start = now_ms();
	kill(pid, SIGKILL);
	p.fd = sv[0];
	poll(&p, 1, -1);
	r.granted = now_ms() - start;
	close(t.memory);
	wait_memory(before);
	r.memory = now_ms() - start;
	child_wait(pid);
	close(sv[0]);
	return r;
}

static void report(const struct round *ours, size_t n, const struct round *kernel, size_t n_kernel)
{
	double *granted = calloc(n, sizeof(*granted)), *memory = calloc(n, sizeof(*memory)),
	       *eof = calloc(n_kernel, sizeof(*eof)), *freed = calloc(n_kernel, sizeof(*freed));
	double m, k;

	assert(granted && memory && eof && freed);
	for (size_t i = 0; i < n; i++) {
		granted[i] = ours[i].granted;
		memory[i] = ours[i].memory;
	}
	for (size_t i = 0; i < n_kernel; i++) {
		eof[i] = kernel[i].granted;
		freed[i] = kernel[i].memory;
	}
	m = figure_median(granted, n);
	figure_print(&(struct figure_line){"core", "reclaim_ms", "ms", m, FIGURE_NONE, FIGURE_NONE},
		"median of %zu rounds; the kernel alone until end of file: %.1f ms", n,
		figure_median(eof, n_kernel));
	figure_print(&(struct figure_line){"core", "reclaim_worst_ms", "ms", granted[n - 1],
			     FIGURE_NONE, granted[n - 1] / m},
		"slowest of %zu rounds; the ratio is to the median", n);
	m = figure_median(memory, n);
	k = figure_median(freed, n_kernel);
	figure_print(&(struct figure_line){"core", "reclaim_memory_ms", "ms", m, k, FIGURE_NONE},
		"the kernel alone: the same process without a daemon; until 1 GiB is free again, "
		"slowest %.1f ms",
		memory[n - 1]);
	free(granted);
	free(memory);
	free(eof);
	free(freed);
}

int main(int argc, char **argv)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key keys[BLOCKS];
	struct round *ours, *kernel;
	int rounds = 200;
	size_t n_kernel = 0;

	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "--rounds"))
			rounds = atoi(argv[i + 1]);
	if (rounds < 1) {
		fprintf(stderr, "bench_reclaim: --rounds must be at least 1\n");
		return 2;
	}
	ours = calloc((size_t)rounds, sizeof(*ours));
	kernel = calloc((size_t)rounds / KERNEL_EVERY + 1, sizeof(*kernel));
	assert(ours && kernel);
	daemon_start(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 8MiB\nindex_slots = 4096\n"
		"[limits]\nstaging_bytes = 2GiB\nsession_pins = 16384\n");
	c = client_open(&d);
	l = model_register(c, &model_small);
	assert(chain_put(c, l, &model_small, 1, KEPT, keys) == KVG_CODE_OK);
	for (int i = 0; i < rounds; i++) {
		if (i % KERNEL_EVERY == 0)
			kernel[n_kernel++] = kernel_round();
		ours[i] = one_round(&d, c, l, keys);
	}
	kvg_close(c);
	assert(daemon_stop(&d) == 0);
	daemon_cleanup(&d);
	report(ours, (size_t)rounds, kernel, n_kernel);
	free(ours);
	free(kernel);
	return figure_status();
}
