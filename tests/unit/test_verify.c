/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes against their checksums: read beside the control thread, of blocks that stay meanwhile; damage is hidden, and goes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "tests/unit/cache_fixture.h"

#define MIB (1u << 20)

static struct fixture f;

static int setup(void **state)
{
	(void)state;
	fixture_options(&f);
	f.o.host_bytes = 64 * MIB;
	f.o.segment_bytes = 32 * MIB;
	fixture_start(&f);
	return 0;
}

static struct block *find(const struct kvg_key *key)
{
	return block_find(f.tenant, f.layout->id, key);
}

static void damage(struct block *b, uint32_t plane)
{
	((uint8_t *)b->plane[plane].extent.addr)[2000] ^= 4;
}

/* A chain of two. */
static void put_two(struct kvg_key key[2])
{
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(
			put_block(&f, f.layout, i, i ? &key[0] : NULL, &key[i]), KVG_CODE_OK);
}

static void test_damage_goes(void **state)
{
	struct cache_block_info info;
	struct kvg_key key[2];

	(void)state;
	put_two(key);
	damage(find(&key[1]), 2);
	assert_int_equal(inspect_block(&f, f.tenant, &key[1], true, &info), KVG_CODE_OK);
	assert_true(info.plane[1].verified && !info.plane[2].verified && info.plane[3].verified);
	assert_true(info.retention == 1.0f);
	run_loop(&f, 5);
	assert_int_equal(find(&key[1])->held, 3);
	damage(find(&key[0]), 0);
	assert_int_equal(inspect_block(&f, f.tenant, &key[0], true, &info), KVG_CODE_OK);
	run_loop(&f, 5);
	assert_true(!find(&key[0]) && !find(&key[1]) && !f.tenant->n_blocks);
	assert_int_equal(counter_get(f.layout->counters, COUNTER_CORRUPT, 0), 2);
}

/* A pin keeps the bytes for whoever has it, and for nobody else; the key is free for a whole block. */
static void test_damaged_and_pinned(void **state)
{
	struct pin_page *page = pin_page_new();
	struct cache_block_result again;
	struct cache_block_info info;
	struct cache_purge_result r;
	struct kvg_key key[2];
	struct block *b;

	(void)state;
	put_two(key);
	cache_pins_attach(f.tenant, page);
	b = find(&key[0]);
	page_pin(page, 3, b->handle);
	damage(b, 2);
	assert_int_equal(inspect_block(&f, f.tenant, &key[0], true, &info), KVG_CODE_OK);
	run_loop(&f, 5);
	assert_true(b->held == 15 && block_shown(b) == 3 && block_retention(b) < .6f);
	assert_int_equal(index_entry(f.tenant->index, b->handle.slot)->n_planes, 4);
	assert_int_equal(
		cache_acquire(f.tenant, f.layout, &key[0], 1.f, &again), KVG_CODE_BELOW_RETENTION);
	assert_int_equal(again.held, 3);

	damage(b, 0);
	assert_int_equal(inspect_block(&f, f.tenant, &key[0], true, &info), KVG_CODE_OK);
	run_loop(&f, 5);
	assert_ptr_equal(block_get(f.tenant, b->handle), b);
	assert_true(!find(&key[0]) && !find(&key[1]) && b->held == 15);
	assert_int_equal(
		cache_acquire(f.tenant, f.layout, &key[0], 0.f, &again), KVG_CODE_NOT_FOUND);
	assert_int_equal(cache_check(f.cache), 0);

	assert_int_equal(put_block(&f, f.layout, 0, NULL, &key[0]), KVG_CODE_OK);
	assert_true(find(&key[0]) && find(&key[0]) != b);
	assert_int_equal(inspect_block(&f, f.tenant, &key[0], true, &info), KVG_CODE_OK);
	assert_true(info.plane[0].verified && info.plane[3].verified);
	cache_pins_detach(f.tenant, page);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.blocks == 2 && !f.tenant->n_blocks);
	pin_page_free(page);
}

/* Pressure takes what is hidden as it takes anything. */
static void test_pressure_takes_hidden(void **state)
{
	struct cache_block_result mine;
	struct cache_block_info info;
	struct kvg_key key[2];

	(void)state;
	put_two(key);
	assert_int_equal(cache_acquire(f.tenant, f.layout, &key[1], 1.f, &mine), KVG_CODE_OK);
	damage(find(&key[1]), 1);
	assert_int_equal(inspect_block(&f, f.tenant, &key[1], true, &info), KVG_CODE_OK);
	run_loop(&f, 5);
	assert_int_equal(cache_release(f.tenant, mine.handle), KVG_CODE_OK);
	for (unsigned i = 0; i < 20 && f.tenant->n_blocks; i++)
		evict_round(f.tenant, MIB, 0);
	assert_int_equal(f.tenant->n_blocks, 0);
}

struct told {
	unsigned calls;
	struct cache_block_info info;
};

static void on_verified(void *userdata, const struct cache_block_info *info)
{
	struct told *t = userdata;

	t->info = *info;
	t->calls++;
}

/* As long as it is read, nothing takes any of it. */
static void test_stays_while_it_is_read(void **state)
{
	struct cache_purge_result r;
	struct told t = {.calls = 0};
	struct kvg_key key[2];

	(void)state;
	put_two(key);
	assert_int_equal(cache_verify(f.tenant, 0, &key[1], on_verified, &t), KVG_CODE_OK);
	assert_int_equal(cache_verify(f.tenant, 0, &key[1], on_verified, &t), KVG_CODE_OK);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.blocks == 0 && r.pinned == 2);
	cache_purge(f.tenant, 0, &key[1], 1, &r);
	assert_true(r.planes == 0 && r.pinned == 1);
	assert_false(evict_round(f.tenant, MIB, 0));
	assert_int_equal(t.calls, 0);
	while (t.calls < 2)
		run_loop(&f, 1);
	for (unsigned p = 0; p < FIXTURE_PLANES; p++)
		assert_true(t.info.plane[p].verified);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.blocks == 2 && r.pinned == 0);
	assert_int_equal(cache_verify(f.tenant, 0, &key[1], on_verified, &t), KVG_CODE_NOT_FOUND);
}

static uint64_t cpu_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static struct cache_layout *opaque_layout(uint64_t bytes)
{
	struct cache_layout_spec s = fixture_spec("large");
	struct cache_layout *l;
	char why[160];

	s.id.shape = (struct kv_shape){.tokens = 64, .opaque_bytes = bytes};
	s.id.key_namespace = "engine";
	assert_int_equal(cache_layout_register(f.tenant, &s, &l, why, sizeof(why)), KVG_CODE_OK);
	return l;
}

/* The processor time goes into a worker, not into the control thread. */
static void test_not_on_the_control_thread(void **state)
{
	struct cache_layout *l = opaque_layout(24 * MIB);
	struct kvg_key key = {{9}};
	struct cache_block_info info;
	uint64_t mine, all;
	struct put p;

	(void)state;
	put_stage(&f, l, 3, NULL, &p);
	p.q.input = STAGE_INPUT_NONE;
	p.q.token_ids = false;
	p.q.key = key;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_OK);
	mine = cpu_ns(CLOCK_THREAD_CPUTIME_ID);
	all = cpu_ns(CLOCK_PROCESS_CPUTIME_ID);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(inspect_block(&f, f.tenant, &key, true, &info), KVG_CODE_OK);
		assert_true(info.plane[0].verified);
	}
	mine = cpu_ns(CLOCK_THREAD_CPUTIME_ID) - mine;
	all = cpu_ns(CLOCK_PROCESS_CPUTIME_ID) - all;
	print_message("20 times 24 MiB: %.2f ms, of which on the control thread %.2f\n", all / 1e6,
		mine / 1e6);
	assert_true(mine * 4 < all);
}

/* The cache goes while some are read and some wait. */
static void test_torn_down(void **state)
{
	struct told t = {.calls = 0};
	struct kvg_key key[2];

	(void)state;
	put_two(key);
	damage(find(&key[0]), 0);
	for (unsigned i = 0; i < 6; i++)
		assert_int_equal(
			cache_verify(f.tenant, 0, &key[i % 2], on_verified, &t), KVG_CODE_OK);
	cache_silence(f.cache);
	run_loop(&f, 1);
	assert_int_equal(t.calls, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FIXTURE_TEST_WITH(test_damage_goes, setup),
		FIXTURE_TEST_WITH(test_damaged_and_pinned, setup),
		FIXTURE_TEST_WITH(test_pressure_takes_hidden, setup),
		FIXTURE_TEST_WITH(test_stays_while_it_is_read, setup),
		FIXTURE_TEST_WITH(test_not_on_the_control_thread, setup),
		FIXTURE_TEST_WITH(test_torn_down, setup),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
