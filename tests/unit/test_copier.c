/* SPDX-License-Identifier: Apache-2.0 */
/* Pages that kvgate-mover copies, over a driver that is not real, while movers are killed; and those that do not come up. */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/loop.h"
#include "daemon/mem/copier.h"
#include "daemon/mem/pool.h"
#include "daemon/mem/tier_gpu.h"
#include "tests/lib/fake_cuda.h"

#define MIB   (1ull << 20)
#define SHIFT 14
#define PAGE  (1ull << SHIFT)
#define KILLS 200

static struct loop *loop;
static struct tier_gpu gpu;
static struct gpu_driver *driver;
static struct pool *host, *device;
static struct pool_tenant *host_t, *device_t;
static unsigned filled;
static uint64_t silence_ns;

static int segment(void *userdata, uint8_t tier, uint32_t id, struct pool_segment *ret)
{
	(void)userdata;
	return pool_segment_get(tier == KVG_TIER_GPU ? device_t : host_t, id, ret);
}

static void on_filled(void *userdata, uint8_t tier, uint32_t id)
{
	(void)userdata;
	assert_int_equal(tier, KVG_TIER_GPU);
	pool_segment_filled(device_t, id);
	filled++;
}

static struct copier *start(const char *program)
{
	const struct copier_options o = {.loop = loop,
		.program = program,
		.library = FAKE_CUDA,
		.ordinal = 0,
		.pause_ns = 20000000,
		.silence_ns = silence_ns,
		.segment = segment,
		.filled = on_filled};
	struct copier *c;

	assert_int_equal(copier_new(&o, &c), 0);
	return c;
}

static int setup(void **state)
{
	struct pool_options o = {
		.tier = &tier_host, .budget = 64 * MIB, .segment_bytes = 8 * MIB, .numa_node = -1};
	char why[TIER_GPU_TEXT];
	int n;

	(void)state;
	assert_int_equal(loop_new(&loop), 0);
	assert_int_equal(tier_gpu_open_driver(FAKE_CUDA, &driver, &n, why, sizeof(why)), 0);
	assert_int_equal(tier_gpu_init(&gpu, driver, 0, 64 * MIB, why, sizeof(why)), 0);
	assert_int_equal(pool_new(&o, &host), 0);
	o.tier = &gpu.ops;
	assert_int_equal(pool_new(&o, &device), 0);
	assert_int_equal(pool_tenant_new(host, &host_t), 0);
	assert_int_equal(pool_tenant_new(device, &device_t), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	pool_tenant_free(host_t);
	pool_tenant_free(device_t);
	pool_free(host);
	pool_free(device);
	tier_gpu_close_driver(driver);
	loop_free(loop);
	return 0;
}

struct work {
	struct copier_job job;
	struct extent from, to;
	uint8_t *seen; /* the device's segment */
	uint64_t seen_bytes;
	bool ended;
	int error;
};

static void ended(struct copier_job *j, int error)
{
	struct work *w = (struct work *)j;

	assert_false(w->ended);
	w->ended = true;
	w->error = error;
}

static void work_init(struct work *w, unsigned pages, unsigned seed)
{
	struct pool_segment s;

	memset(w, 0, sizeof(*w));
	assert_int_equal(pool_alloc(host_t, pages * PAGE, SHIFT, &w->from), 0);
	assert_int_equal(pool_alloc(device_t, pages * PAGE, SHIFT, &w->to), 0);
	for (uint64_t i = 0; i < pages * PAGE / 4; i++)
		((uint32_t *)w->from.addr)[i] = (uint32_t)i * 2654435761u + seed;
	assert_int_equal(pool_segment_get(device_t, w->to.segment, &s), 0);
	w->seen = fake_cuda_look(s.fd, s.bytes);
	w->seen_bytes = s.bytes;
	w->job = (struct copier_job){.bytes = pages * PAGE,
		.page_shift = SHIFT,
		.n = 1,
		.done = ended,
		.range = {{.from = (uint64_t)w->from.page << SHIFT,
			.to = (uint64_t)w->to.page << SHIFT,
			.bytes = pages * PAGE,
			.from_segment = w->from.segment,
			.to_segment = w->to.segment,
			.from_tier = KVG_TIER_HOST,
			.to_tier = KVG_TIER_GPU}}};
}

static uint8_t *at_device(const struct work *w)
{
	return w->seen + ((uint64_t)w->to.page << SHIFT);
}

static void work_fini(struct work *w)
{
	munmap(w->seen, w->seen_bytes);
	pool_release(host_t, &w->from);
	pool_release(device_t, &w->to);
}

static void wait_for(struct work *w)
{
	const uint64_t end = loop_now_ns() + 20000000000ull;

	while (!w->ended) {
		assert_true(loop_now_ns() < end);
		loop_run_once(loop, 100);
	}
}

static void test_copy(void **state)
{
	struct copier *c = start(KVG_BINARY_DIR "/gpu/kvgate-mover");
	struct copier_stat s;
	struct work a, b;

	(void)state;
	filled = 0;
	work_init(&a, 3, 1);
	work_init(&b, 300, 2); /* longer than what the mover holds of it at once */
	copier_start(c, &a.job);
	copier_start(c, &b.job);
	assert_false(a.ended || b.ended);
	wait_for(&a);
	wait_for(&b);
	assert_true(a.error == 0 && b.error == 0);
	assert_memory_equal(at_device(&a), a.from.addr, 3 * PAGE);
	assert_memory_equal(at_device(&b), b.from.addr, 300 * PAGE);
	assert_true(filled >= 1);
	copier_stat(c, &s);
	assert_true(s.ready && s.pid && s.starts == 1 && s.jobs == 0 && !s.why[0]);

	/* what is not there, or does not lie in its segment, is refused and harms nothing */
	a.ended = false;
	a.job.range[0].to = b.seen_bytes;
	copier_start(c, &a.job);
	wait_for(&a);
	assert_int_equal(a.error, -EINVAL);
	a.ended = false;
	a.job.range[0].from_segment = 999;
	copier_start(c, &a.job);
	assert_false(a.ended);
	wait_for(&a);
	assert_int_equal(a.error, -ENOENT);
	copier_stat(c, &s);
	assert_int_equal(s.starts, 1);
	copier_sweep(c);
	work_fini(&a);
	work_fini(&b);
	copier_free(c);
}

/* What nobody wrote to is zeros and not what the device had there. */
static void test_fresh(void **state)
{
	struct copier *c = start(KVG_BINARY_DIR "/gpu/kvgate-mover");
	struct pool_tenant *mine = device_t;
	struct extent first;
	struct work w;

	(void)state;
	assert_int_equal(pool_tenant_new(device, &device_t), 0);
	assert_int_equal(pool_alloc(device_t, PAGE, SHIFT, &first), 0);
	work_init(&w, 1, 3);
	assert_int_equal(w.to.segment, first.segment);
	assert_int_equal(w.seen[0], 0xdb);
	copier_start(c, &w.job);
	wait_for(&w);
	for (uint64_t i = 0; i < PAGE; i++)
		assert_int_equal(w.seen[i], 0);
	copier_free(c);
	work_fini(&w);
	pool_release(device_t, &first);
	pool_tenant_free(device_t);
	device_t = mine;
}

/* At any moment: while it starts, waits, maps, copies. Every job ends, and is whole when it does. */
static void test_kills(void **state)
{
	struct copier *c;
	struct copier_stat s;
	struct work w[4];
	unsigned kills = 0, seed = 1, whole = 0;

	(void)state;
	setenv("KVGATE_FAKE_CUDA_SLOW", "300", 1);
	c = start(KVG_BINARY_DIR "/gpu/kvgate-mover");
	for (unsigned i = 0; i < 4; i++) {
		work_init(&w[i], 1 + 40 * i, i);
		copier_start(c, &w[i].job);
	}
	while (kills < KILLS) {
		loop_run_once(loop, (int)(rand_r(&seed) % 3));
		copier_stat(c, &s);
		if (s.pid && rand_r(&seed) % 4 == 0) {
			usleep((useconds_t)(rand_r(&seed) % 2000));
			kills += kill(s.pid, SIGKILL) == 0;
			while (copier_stat(c, &s), s.pid) /* its end is seen before the next */
				loop_run_once(loop, 10);
		}
		for (unsigned i = 0; i < 4; i++) {
			if (!w[i].ended)
				continue;
			if (w[i].error == 0) {
				whole++;
				assert_memory_equal(
					at_device(&w[i]), w[i].from.addr, extent_bytes(&w[i].from));
			} else {
				assert_true(w[i].error == -EIO || w[i].error == -ENODEV);
			}
			memset(at_device(&w[i]), 0xee, extent_bytes(&w[i].to));
			w[i].ended = false;
			copier_start(c, &w[i].job);
		}
	}
	unsetenv("KVGATE_FAKE_CUDA_SLOW");
	for (unsigned i = 0; i < 4; i++) {
		wait_for(&w[i]);
		work_fini(&w[i]);
	}
	copier_stat(c, &s);
	assert_true(s.starts >= KILLS);
	print_message("%u kills, %u jobs whole\n", kills, whole);
	copier_free(c);
}

static void test_none(void **state)
{
	struct copier *c;
	struct copier_stat s;
	struct work w;

	(void)state;
	work_init(&w, 2, 5);
	c = start(KVG_BINARY_DIR "/gpu/kvgate-is-not-here");
	copier_start(c, &w.job);
	wait_for(&w);
	assert_int_equal(w.error, -ENODEV);
	copier_stat(c, &s);
	assert_true(!s.ready && !s.pid && strstr(s.why, "kvgate-is-not-here"));
	copier_free(c);

	w.ended = false;
	setenv("KVGATE_FAKE_CUDA_FAIL", "cuDevicePrimaryCtxRetain", 1);
	c = start(KVG_BINARY_DIR "/gpu/kvgate-mover");
	copier_start(c, &w.job);
	wait_for(&w);
	assert_int_equal(w.error, -ENODEV);
	copier_stat(c, &s);
	assert_non_null(strstr(s.why, "cuDevicePrimaryCtxRetain"));
	unsetenv("KVGATE_FAKE_CUDA_FAIL"); /* the device is back */
	while (copier_stat(c, &s), !s.ready)
		loop_run_once(loop, 100);
	w.ended = false;
	copier_start(c, &w.job);
	wait_for(&w);
	assert_int_equal(w.error, 0);
	copier_free(c);
	work_fini(&w);
}

/* A device that dies half way through a copy, again and again: the job is given up, and not said to be there. */
static void test_lost(void **state)
{
	struct copier *c;
	struct work w;

	(void)state;
	setenv("KVGATE_FAKE_CUDA_DIE", "1", 1);
	c = start(KVG_BINARY_DIR "/gpu/kvgate-mover");
	work_init(&w, 8, 6);
	copier_start(c, &w.job);
	wait_for(&w);
	assert_int_equal(w.error, -EIO);
	unsetenv("KVGATE_FAKE_CUDA_DIE");
	copier_free(c);
	work_fini(&w);
}

/* A driver that does not come back: the mover goes, and with the last of these tries the job. */
static void test_hangs(void **state)
{
	const uint64_t end = loop_now_ns() + 20000000000ull;
	struct copier *c;
	struct copier_stat s;
	struct work w;

	(void)state;
	setenv("KVGATE_FAKE_CUDA_SLOW", "900000", 1);
	silence_ns = 200000000;
	c = start(KVG_BINARY_DIR "/gpu/kvgate-mover");
	work_init(&w, 2, 7);
	copier_start(c, &w.job);
	while (!w.ended) {
		assert_true(loop_now_ns() < end);
		loop_run_once(loop, 20);
		copier_sweep(c);
	}
	assert_int_equal(w.error, -EIO);
	copier_stat(c, &s);
	assert_true(s.starts >= 5 && strstr(s.why, "did not answer"));
	unsetenv("KVGATE_FAKE_CUDA_SLOW");
	silence_ns = 0;
	copier_free(c);
	work_fini(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_copy),
		cmocka_unit_test(test_fresh),
		cmocka_unit_test(test_none),
		cmocka_unit_test(test_lost),
		cmocka_unit_test(test_hangs),
		cmocka_unit_test(test_kills),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
