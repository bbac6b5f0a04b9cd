/* SPDX-License-Identifier: Apache-2.0 */
/*
 * lookup_pin_unpin_us, lookup_pin_unpin_p99_us, prefix_lookup_128_us, lookup_system_calls: the client's own code over an
 * index of 2^20 live blocks that the daemon's own code filled. Keys are random, so every lookup misses the caches as
 * it would in life. Each operation is timed by itself with the time stamp counter, its cost included. The rival of
 * the same run is what a lookup would cost if it asked: a round trip over a SEQPACKET pair between two processes.
 *
 * That there is no system call is shown by the kernel: a child runs the same loop under SECCOMP_MODE_STRICT, where any
 * call but read, write and exit kills it. A second child that makes one harmless call must die, or the first proves
 * nothing.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <linux/seccomp.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <x86intrin.h>

#include "client/lib/client.h"
#include "daemon/cache/index.h"
#include "tests/bench/figure.h"

#define BLOCKS     (1u << 20)
#define OPS        200000u
#define ROUNDS     5
#define PREFIX     128u
#define PREFIXES   2000u
#define ROUNDTRIPS 20000u

static struct kvg_client client;
static struct kvg_layout layout = {.client = &client, .id = 1};
static struct kvg_key *keys; /* [BLOCKS], in random order of slots */
static double ticks_per_us;

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t ticks(void)
{
	unsigned aux;
	uint64_t t = __rdtscp(&aux);

	_mm_lfence();
	return t;
}

static void calibrate(void)
{
	uint64_t t0 = ticks(), n0 = now_ns();

	while (now_ns() - n0 < 50000000)
		;
	ticks_per_us = (double)(ticks() - t0) / ((double)(now_ns() - n0) / 1e3);
}

static uint64_t random_next(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

/* ---- the daemon's side ---- */

static struct index *fill_index(void)
{
	struct index_block b = {
		.layout = 1, .parent = KVG_SLOT_NONE, .tokens = 256, .n_planes = 7, .held = 0x7f};
	uint64_t seed = 1;
	struct index *x;

	assert(index_new(BLOCKS, &x) == 0);
	keys = malloc(BLOCKS * sizeof(*keys));
	assert(keys && getrandom(keys, 32, 0) == 32);
	b.mapped = b.held;
	for (unsigned p = 0; p < b.n_planes; p++)
		b.plane[p] = (struct kvg_shm_plane_ref){.bytes = 65536,
			.segment = 1,
			.page = p,
			.pairs = 1000,
			.tier = KVG_TIER_HOST,
			.page_shift = 16};
	for (uint32_t i = 0; i < BLOCKS; i++) {
		struct kvg_handle h;

		for (unsigned w = 0; w < 4; w++) {
			uint64_t v = random_next(&seed);

			memcpy(keys[i].b + 8 * w, &v, 8);
		}
		b.key = keys[i];
		assert(index_insert(x, &b, &h) == 0);
	}
	for (uint32_t i = BLOCKS - 1; i > 0; i--) { /* keys in another order than slots */
		uint32_t k = (uint32_t)(random_next(&seed) % (i + 1));
		struct kvg_key t = keys[i];

		keys[i] = keys[k];
		keys[k] = t;
	}
	return x;
}

static void attach(struct index *x)
{
	struct kvg_shm_pins h = {
		.magic = KVG_PIN_MAGIC,
		.version = KVG_SHM_VERSION,
		.n_pins = 1024,
		.n_touch = 4096,
		.pins_off = 128,
		.touch_off = 128 + 1024 * 8,
		.total_bytes = 128 + 1024 * 8 + 4096 * 8,
	};
	int fd = memfd_create("pins", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	const char *why = "";

	assert(fd >= 0 && ftruncate(fd, h.total_bytes) == 0 &&
		pwrite(fd, &h, sizeof(h), 0) == sizeof(h));
	assert(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0);
	if (index_map_init(&client.index, index_fd(x), &why) < 0 ||
		pin_map_init(&client.pins, fd, &why) < 0) {
		fprintf(stderr, "bench_lookup: %s\n", why);
		exit(1);
	}
	close(fd);
}

/* ---- what is measured ---- */

static void lookup_pin_unpin(const struct kvg_key *key)
{
	struct kvg_pin pin;

	if (kvg_lookup_pin(&layout, key, 1.0f, &pin) < 0)
		abort();
	kvg_unpin(&client, &pin, 1);
}

/* Microseconds of each of OPS operations. */
static void measure_ops(uint32_t first, double *ret)
{
	for (uint32_t i = 0; i < OPS; i++) {
		const struct kvg_key *key = &keys[(first + i) % BLOCKS];
		uint64_t t0;

		__builtin_prefetch(
			keys + (first + i + 8) % BLOCKS); /* the key is given: it is at hand */
		t0 = ticks();
		lookup_pin_unpin(key);
		ret[i] = (double)(ticks() - t0) / ticks_per_us;
	}
}

static double measure_prefix(uint32_t first, double *us, bool pin)
{
	struct kvg_pin pins[PREFIX];

	for (uint32_t i = 0; i < PREFIXES; i++) {
		const struct kvg_key *k = &keys[(first + i * PREFIX) % (BLOCKS - PREFIX)];
		uint64_t t0;

		for (unsigned n = 0; n < PREFIX; n++)
			__builtin_prefetch(&k[n]);
		t0 = ticks();
		if (pin) {
			if (kvg_prefix_pin(&layout, k, PREFIX, 1.0f, pins) != PREFIX)
				abort();
			kvg_unpin(&client, pins, PREFIX);
		} else if (kvg_prefix_lookup(&layout, k, PREFIX) != PREFIX) {
			abort();
		}
		us[i] = (double)(ticks() - t0) / ticks_per_us;
	}
	return figure_quantile(us, PREFIXES, 0.5);
}

static double measure_roundtrip(void)
{
	static double us[ROUNDTRIPS];
	char msg[64] = {0};
	int s[2], status;
	pid_t pid;

	assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s) == 0);
	pid = fork();
	assert(pid >= 0);
	if (pid == 0) {
		close(s[0]);
		while (recv(s[1], msg, sizeof(msg), 0) > 0)
			if (send(s[1], msg, sizeof(msg), 0) < 0)
				break;
		_exit(0);
	}
	close(s[1]);
	for (uint32_t i = 0; i < ROUNDTRIPS; i++) {
		uint64_t t0 = ticks();

		assert(send(s[0], msg, sizeof(msg), 0) == sizeof(msg) &&
			recv(s[0], msg, sizeof(msg), 0) == sizeof(msg));
		us[i] = (double)(ticks() - t0) / ticks_per_us;
	}
	close(s[0]);
	waitpid(pid, &status, 0);
	return figure_quantile(us, ROUNDTRIPS, 0.5);
}

/* Status of a child that runs the loop under strict seccomp, and then `extra` calls more. */
static int strict_child(int extra)
{
	int status;
	pid_t pid = fork();

	assert(pid >= 0);
	if (pid == 0) {
		struct kvg_pin pins[PREFIX];

		prctl(PR_SET_DUMPABLE, 0); /* it may be killed: no core */
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
			_exit(2);
		for (uint32_t i = 0; i < 100000; i++)
			lookup_pin_unpin(&keys[i]);
		for (uint32_t i = 0; i < 1000; i++) {
			if (kvg_prefix_lookup(&layout, &keys[i], PREFIX) != PREFIX ||
				kvg_prefix_pin(&layout, &keys[i], PREFIX, 1.0f, pins) != PREFIX)
				syscall(SYS_exit, 3);
			kvg_unpin(&client, pins, PREFIX);
		}
		while (extra--)
			syscall(SYS_getpid);
		syscall(SYS_exit, 0); /* exit_group is not allowed */
	}
	waitpid(pid, &status, 0);
	return status;
}

static void print(const char *name, double value, const char *unit, double limit, const char *what)
{
	figure_print(
		&(struct figure_line){"core", name, unit, value, limit, FIGURE_NONE}, "%s", what);
}

int main(void)
{
	static double p50[ROUNDS], p99[ROUNDS], prefix[ROUNDS], prefix_pin[ROUNDS];
	double *us = malloc(OPS * sizeof(*us)), rtt;
	struct index *x;
	int clean, dirty;

	assert(us);
	calibrate();
	x = fill_index();
	attach(x);
	for (uint32_t i = 0; i < BLOCKS;
		i++) /* page tables of the mapping, as in a client that has run for a while */
		lookup_pin_unpin(&keys[i]);
	rtt = measure_roundtrip();
	for (unsigned r = 0; r < ROUNDS; r++) {
		measure_ops(r * OPS, us);
		p50[r] = figure_quantile(us, OPS, 0.5);
		p99[r] = us[(size_t)(0.99 * OPS)];
		prefix[r] = measure_prefix(r * 77777, us, false);
		prefix_pin[r] = measure_prefix(r * 55555, us, true);
	}
	clean = strict_child(0);
	dirty = strict_child(1);
	print("lookup_pin_unpin_us", figure_quantile(p50, ROUNDS, 0.5), "us", rtt,
		"socket round trip; p50, 2^20 blocks");
	print("lookup_pin_unpin_p99_us", figure_quantile(p99, ROUNDS, 0.5), "us", FIGURE_NONE,
		"p99, 2^20 blocks");
	print("prefix_lookup_128_us", figure_quantile(prefix, ROUNDS, 0.5), "us", FIGURE_NONE,
		"keys given");
	print("prefix_pin_unpin_128_us", figure_quantile(prefix_pin, ROUNDS, 0.5), "us",
		PREFIX * rtt, "128 socket round trips");
	if (!WIFSIGNALED(dirty)) {
		fprintf(stderr,
			"bench_lookup: strict seccomp lets system calls through here; nothing is "
			"shown\n");
		return 1;
	}
	print("lookup_system_calls", WIFEXITED(clean) && WEXITSTATUS(clean) == 0 ? 0 : 1, "calls",
		FIGURE_NONE, "100,000 lookups and 2,000 prefixes under SECCOMP_MODE_STRICT");
	pin_map_fini(&client.pins);
	index_map_fini(&client.index);
	index_free(x);
	free(keys);
	free(us);
	return figure_status();
}
