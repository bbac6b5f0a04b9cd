/* SPDX-License-Identifier: Apache-2.0 */
/* Making room takes the kernel its time: nobody waits for that behind the lock, and nobody is given what goes. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/mem/pool_private.h"
#include "tests/unit/pool_fixture.h"

/* A tier that looks round while pages are given back. */
static struct watch {
	struct pool *pool;
	uint64_t largest, sum;
	unsigned calls, locked;
	bool probe; /* the thread below is to allocate */
	pthread_t thread;
	struct pool_tenant *tenant;
	struct extent e;
} watch;

static void *allocate(void *arg)
{
	(void)arg;
	assert_int_equal(pool_alloc(watch.tenant, PAGE, SHIFT, &watch.e), 0);
	memset(watch.e.addr, 5, PAGE);
	return NULL;
}

static int watched_punch(
	const struct tier_ops *t, const struct tier_memory *m, uint64_t offset, uint64_t bytes)
{
	watch.calls++;
	watch.sum += bytes;
	watch.largest = bytes > watch.largest ? bytes : watch.largest;
	if (pthread_mutex_trylock(&watch.pool->lock))
		watch.locked++;
	else
		pthread_mutex_unlock(&watch.pool->lock);
	if (watch.probe) { /* he may not be given what is on its way out */
		watch.probe = false;
		assert_int_equal(pthread_create(&watch.thread, NULL, allocate, NULL), 0);
		usleep(30000);
	}
	return tier_host.punch(t, m, offset, bytes);
}

static struct pool *watched_pool(struct tier_ops *tier, uint64_t budget, uint64_t segment)
{
	const struct pool_options o = {
		.tier = tier, .budget = budget, .segment_bytes = segment, .numa_node = -1};

	*tier = tier_host;
	tier->punch = watched_punch;
	watch = (struct watch){0};
	assert_int_equal(pool_new(&o, &watch.pool), 0);
	return watch.pool;
}

/* However much room is to be made: in pieces, and the lock is free meanwhile. */
static void test_punched_in_pieces(void **state)
{
	struct tier_ops tier;
	struct pool *p = watched_pool(&tier, 64 * MIB, 64 * MIB);
	struct pool_tenant *a = tenant(p), *b = tenant(p);
	struct pool_segment s;
	struct extent e, kept, f;

	(void)state;
	assert_int_equal(pool_alloc(a, 60 * MIB, SHIFT, &e), 0);
	assert_int_equal(pool_alloc(a, PAGE, SHIFT, &kept), 0);
	memset(kept.addr, 9, PAGE);
	pool_release(a, &e);
	assert_int_equal(pool_alloc(b, 50 * MIB, SHIFT, &f), 0);
	assert_true(watch.calls >= 12 && watch.sum >= 46 * MIB && watch.largest <= 4 * MIB);
	assert_int_equal(watch.locked, 0);
	assert_true(stat_of(p).resident <= 64 * MIB);
	assert_int_equal(kernel_bytes(a) + kernel_bytes(b), stat_of(p).resident);

	/* and so is what clients made the kernel give */
	watch.calls = 0;
	watch.sum = 0;
	assert_int_equal(pool_segment_get(a, kept.segment, &s), 0);
	read_everywhere(&s);
	assert_int_equal(kernel_of(s.fd), 64 * MIB);
	for (unsigned i = 0; pool_sweep(p); i++)
		assert_true(i < 5);
	assert_int_equal(watch.locked, 0);
	assert_int_equal(kernel_bytes(a) + kernel_bytes(b), stat_of(p).resident);
	for (uint32_t i = 0; i < PAGE; i++)
		assert_int_equal(((uint8_t *)kept.addr)[i], 9);
	pool_tenant_free(
		a); /* punches what is given back as a whole, perhaps; not looked at here */
	pool_tenant_free(b);
	pool_free(p);
}

/* Many small holes: some of them in a call, and the next call goes on. */
static void test_swept_in_pieces(void **state)
{
	struct tier_ops tier;
	struct pool *p = watched_pool(&tier, 8 * MIB, 8 * MIB);
	struct pool_tenant *t = tenant(p);
	struct extent e[128];
	struct pool_segment s;
	unsigned calls = 1;

	(void)state;
	for (int i = 0; i < 128; i++)
		assert_int_equal(pool_alloc(t, PAGE, SHIFT, &e[i]), 0);
	for (int i = 0; i < 128; i += 2)
		pool_release(t, &e[i]);
	pool_set_budget(p, 4 * MIB);
	assert_int_equal(kernel_bytes(t), 4 * MIB);
	assert_int_equal(pool_segment_get(t, e[0].segment, &s), 0);
	read_everywhere(&s);
	assert_int_equal(kernel_bytes(t), 8 * MIB);
	while (pool_sweep(p))
		calls++;
	assert_in_range(calls, 2, 3);
	assert_int_equal(kernel_bytes(t), 4 * MIB);
	pool_tenant_free(t);
	pool_free(p);
}

/* While pages of a segment go, nobody comes to use them: he finds room elsewhere, or waits. */
static void test_nobody_gets_what_goes(void **state)
{
	(void)state;
	for (int swept = 0; swept < 2; swept++) {
		struct tier_ops tier;
		struct pool *p = watched_pool(&tier, 8 * MIB, 8 * MIB);
		struct pool_tenant *a = tenant(p), *b = tenant(p);
		struct pool_segment s;
		struct extent e, kept, hole, last, f;

		assert_int_equal(pool_alloc(a, PAGE, SHIFT, &kept), 0);
		watch.tenant = a;
		watch.probe = true;
		if (swept) {
			assert_int_equal(pool_segment_get(a, kept.segment, &s), 0);
			read_everywhere(&s);
			pool_sweep(p);
		} else {
			assert_int_equal(pool_alloc(a, 6 * MIB, SHIFT, &e), 0);
			assert_int_equal(pool_alloc(a, PAGE, SHIFT, &hole), 0);
			assert_int_equal(pool_alloc(a, PAGE, SHIFT, &last), 0);
			pool_release(a, &e);
			pool_release(a, &hole); /* what fits best, and is punched first */
			assert_int_equal(pool_alloc(b, 8 * MIB - 4 * PAGE, SHIFT, &f), 0);
		}
		assert_false(watch.probe);
		pthread_join(watch.thread, NULL);
		for (uint32_t i = 0; i < PAGE; i++)
			assert_int_equal(((uint8_t *)watch.e.addr)[i], 5);
		assert_int_equal(kernel_bytes(a) + kernel_bytes(b), stat_of(p).resident);
		pool_tenant_free(a);
		pool_tenant_free(b);
		pool_free(p);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_punched_in_pieces),
		cmocka_unit_test(test_swept_in_pieces),
		cmocka_unit_test(test_nobody_gets_what_goes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
