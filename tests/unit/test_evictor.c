/* SPDX-License-Identifier: Apache-2.0 */
/* Pressure: least valuable first, leaf before root, never below a floor, never what is pinned; all of it comes back. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "tests/unit/cache_fixture.h"

static struct fixture f;
static struct heard {
	unsigned committed, shrunk, evicted;
	uint64_t bytes;
	uint32_t held;
} heard;

static void hear(void *userdata, const struct cache_event *e)
{
	struct heard *h = userdata;

	h->committed += e->kind == CACHE_EVENT_COMMITTED;
	h->shrunk += e->kind == CACHE_EVENT_SHRUNK;
	h->evicted += e->kind == CACHE_EVENT_EVICTED;
	h->bytes += e->kind == CACHE_EVENT_COMMITTED ? 0 : e->bytes;
	h->held = e->held;
}

static void start(float floor, uint64_t slots)
{
	fixture_options(&f);
	if (slots)
		f.o.index_slots = slots;
	fixture_start(&f);
	f.tenant->floor = f.layout->floor = floor;
	heard = (struct heard){0};
	cache_on_event(f.cache, hear, &heard);
}

static void stop(void)
{
	assert_int_equal(cache_check(f.cache), 0);
	fixture_stop(&f);
}

static struct block *find(const struct kvg_key *key)
{
	return block_find(f.tenant, f.layout->id, key);
}

/* A child never stays without its parent. */
static void check_chains(const struct kvg_key *key, unsigned chains, unsigned length)
{
	for (unsigned c = 0; c < chains; c++)
		for (unsigned i = 1; i < length; i++)
			assert_true(!find(&key[c * length + i]) || find(&key[c * length + i - 1]));
}

static void test_lossless(void **state)
{
	static struct kvg_key key[400];
	unsigned there = 0;

	(void)state;
	start(1.0f, 0);
	for (unsigned i = 0; i < 400; i++)
		assert_int_equal(put_block(&f, f.layout, i, i % 8 ? &key[i - 1] : NULL, &key[i]),
			KVG_CODE_OK);
	check_chains(key, 50, 8);
	for (unsigned i = 0; i < 400; i++) {
		struct block *b = find(&key[i]);

		there += b != NULL;
		assert_true(!b || block_retention(b) == 1.0f);
	}
	assert_true(there > 40 && there < 400 && heard.shrunk == 0);
	assert_int_equal(heard.committed, 400);
	assert_int_equal(heard.evicted, 400 - there);
	assert_int_equal(counter_get(f.layout->counters, COUNTER_EVICTED_BLOCKS, 0), heard.evicted);
	assert_int_equal(counter_get(f.layout->counters, COUNTER_BLOCKS, 0), there);
	assert_int_equal(
		counter_get(f.layout->counters, COUNTER_BYTES, KVG_TIER_HOST), f.tenant->used);
	stop();
}

static void test_floor(void **state)
{
	static struct kvg_key key[160];
	unsigned there = 0, partial = 0;

	(void)state;
	start(.3f, 0);
	for (unsigned i = 0; i < 160; i++)
		assert_int_equal(put_block(&f, f.layout, i, i % 8 ? &key[i - 1] : NULL, &key[i]),
			KVG_CODE_OK);
	check_chains(key, 20, 8);
	for (unsigned i = 0; i < 160; i++) {
		struct block *b = find(&key[i]);

		if (!b)
			continue;
		there++;
		partial += block_retention(b) < 1.0f;
		assert_true(block_retention(b) >= .3f - 1e-4f);
	}
	assert_true(partial > 0 && there > 100); /* lossless holds about 120 at most */
	assert_int_equal(heard.shrunk >= partial, 1);
	stop();
}

/* A floor that is raised holds at once, whatever the order still believes; one that is lowered is walked in. */
static void test_floor_changes(void **state)
{
	struct kvg_key key[20];
	struct cache_policy p = {.floor = 1.0f};
	char why[80];

	(void)state;
	start(.2f, 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(put_block(&f, f.layout, i, NULL, &key[i]), KVG_CODE_OK);
	assert_int_equal(cache_policy_set(f.tenant, "", &p, why, sizeof(why)), KVG_CODE_OK);
	assert_true(evict_round(f.tenant, 1, 0));
	assert_true(heard.shrunk == 0 && heard.evicted == 1);
	p.floor = .25f;
	assert_int_equal(cache_policy_set(f.tenant, "model", &p, why, sizeof(why)), KVG_CODE_OK);
	tenant_tick(f.tenant);
	assert_true(evict_round(f.tenant, 1, 0));
	assert_true(heard.shrunk == 1 && heard.evicted == 1);
	p.floor = 1.5f;
	assert_int_equal(
		cache_policy_set(f.tenant, "", &p, why, sizeof(why)), KVG_CODE_BAD_ARGUMENT);
	cache_policy_get(f.tenant, "model", &p);
	assert_true(
		p.floor == .25f && p.host_bytes == f.o.host_bytes && p.host_used == f.tenant->used);
	cache_policy_get(f.tenant, "other", &p);
	assert_true(p.floor == 1.0f);
	assert_string_equal(cache_policy_model(f.tenant, 0, &p.floor), "model");
	assert_null(cache_policy_model(f.tenant, 1, &p.floor));
	stop();
}

static void test_pins_in_pages(void **state)
{
	enum {
		N = 40
	};
	struct kvg_key key[N];
	struct pin_page *page = pin_page_new();
	struct cache_purge_result r;

	(void)state;
	start(.2f, 0);
	cache_pins_attach(f.tenant, page);
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(put_block(&f, f.layout, i, i % 4 ? &key[i - 1] : NULL, &key[i]),
			KVG_CODE_OK);
	for (unsigned i = 0; i < N;
		i += 8) /* third of every other chain: keeps its two ancestors as well */
		page_pin(page, i, find(&key[i + 2])->handle);
	for (unsigned i = 0; i < 100 && evict_round(f.tenant, 1 << 20, 0); i++)
		;
	for (unsigned i = 0; i < N; i += 8) {
		assert_true(find(&key[i]) && find(&key[i + 1]) && !find(&key[i + 3]));
		assert_true(block_retention(find(&key[i + 2])) == 1.0f);
		for (unsigned j = 4; j < 8; j++)
			assert_null(find(&key[i + j]));
	}
	assert_int_equal(cache_check(f.cache), 0);
	assert_int_equal(f.tenant->n_blocks, 3 * N / 8);
	assert_true(counter_get(f.layout->counters, COUNTER_EVICT_PINNED, 0) > 0);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.blocks == 0 && r.pinned == 3 * N / 8);
	cache_purge(f.tenant, 0, NULL, 1, &r);
	assert_int_equal(r.pinned, N / 8);
	cache_pins_detach(f.tenant, page);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.blocks == 3 * N / 8 && r.pinned == 0 && f.tenant->used == 0);
	pin_page_free(page);
	stop();
}

static void test_touch_saves(void **state)
{
	struct kvg_key key[30];
	struct pin_page *page = pin_page_new();
	struct kvg_shm_pins *head = (struct kvg_shm_pins *)(uintptr_t)page->map;
	_Atomic uint64_t *ring =
		(_Atomic uint64_t *)((uint8_t *)head + pin_page_touch_off(FIXTURE_PINS));

	(void)state;
	start(1.0f, 0);
	cache_pins_attach(f.tenant, page);
	for (unsigned i = 0; i < 30; i++)
		assert_int_equal(put_block(&f, f.layout, i, NULL, &key[i]), KVG_CODE_OK);
	for (unsigned i = 0; i < 3; i++)
		ring[head->touch_head++] = kvg_handle_pack(find(&key[i])->handle);
	ring[head->touch_head++] = ~0ull; /* nonsense is counted and ignored */
	assert_true(evict_round(f.tenant, 24 * block_pages(find(&key[0]), 15), 0));
	for (unsigned i = 0; i < 3; i++)
		assert_non_null(find(&key[i]));
	assert_int_equal(counter_get(f.tenant->counters, COUNTER_TOUCHES, 0), 4);
	cache_pins_detach(f.tenant, page);
	pin_page_free(page);
	stop();
}

/* The budget has room, the index has not: whole blocks go although planes could. */
static void test_slots(void **state)
{
	struct kvg_key key[40];

	(void)state;
	start(.2f, 16);
	for (unsigned i = 0; i < 40; i++)
		assert_int_equal(put_block(&f, f.layout, i, NULL, &key[i]), KVG_CODE_OK);
	assert_true(f.tenant->n_blocks <= 16 && f.tenant->n_blocks >= 15);
	assert_int_equal(heard.shrunk, 0);
	stop();
}

static void test_watermarks(void **state)
{
	struct cache_policy p = {.high_watermark = .5f, .low_watermark = .25f};
	char why[80];

	(void)state;
	start(1.0f, 0);
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(put_block(&f, f.layout, i, NULL, NULL), KVG_CODE_OK);
	run_loop(&f, 10);
	assert_true(f.tenant->n_blocks == 60 && f.tenant->used < f.tenant->quota);
	p.low_watermark = .7f;
	assert_int_equal(
		cache_policy_set(f.tenant, "", &p, why, sizeof(why)), KVG_CODE_BAD_ARGUMENT);
	p.low_watermark = .25f;
	p.host_bytes = f.tenant->used + f.tenant->used / 4; /* .8 */
	assert_int_equal(cache_policy_set(f.tenant, "", &p, why, sizeof(why)), KVG_CODE_OK);
	run_loop(&f, 20);
	assert_true(f.tenant->used <= (uint64_t)(.25 * (double)p.host_bytes));
	assert_true(f.tenant->used > (uint64_t)(.1 * (double)p.host_bytes));
	assert_false(f.tenant->evicting);
	stop();
}

/* Short of the common budget, the one who uses most of its quota gives. */
static void test_tenants(void **state)
{
	struct cache_tenant *big, *small;
	struct cache_layout *lb, *ls;

	(void)state;
	start(1.0f, 0);
	big = fixture_tenant(&f, "big", 4 << 20, 1.0f);
	small = fixture_tenant(&f, "small", 4 << 20, 1.0f);
	lb = fixture_layout(&f, big, "model", "");
	ls = fixture_layout(&f, small, "model", "");
	for (unsigned i = 0; i < 300; i++) {
		struct put p;
		bool few = i % 10 == 0 && i < 200;

		put_stage(&f, few ? ls : lb, i, NULL, &p);
		put_start(&f, few ? small : big, &p);
		put_wait(&f, &p);
		assert_int_equal(p.result.code, KVG_CODE_OK);
	}
	assert_int_equal(small->n_blocks, 20);
	assert_true(big->n_blocks < 280);
	stop();
}

/* A turn of the loop has so many rounds, and who was not asked in it is asked in the next. */
static void test_rounds_of_a_turn(void **state)
{
	enum {
		TENANTS = 10
	};
	struct cache_tenant *t[TENANTS];
	struct kvg_handle pinned[TENANTS];
	unsigned turns = 0, n = 0;

	(void)state;
	start(1.0f, 0);
	for (unsigned i = 0; i < TENANTS; i++) {
		struct cache_block_result r;
		struct cache_layout *l;
		char name[8];
		struct put p;

		snprintf(name, sizeof(name), "t%u", i);
		t[i] = fixture_tenant(&f, name, f.o.host_bytes, 1.0f);
		l = fixture_layout(&f, t[i], "model", "");
		put_stage(&f, l, i, NULL, &p);
		put_start(&f, t[i], &p);
		put_wait(&f, &p);
		assert_int_equal(cache_acquire(t[i], l, &p.q.key, 0.f, &r), KVG_CODE_OK);
		pinned[i] = r.handle;
	}
	run_loop(&f, 1);
	while (evict_may(f.cache)) {
		evict_round(t[0], 1, 0);
		n++;
	}
	assert_int_equal(n, 4);
	do {
		run_loop(&f, 1);
		turns++;
	} while (evict_anyone(f.cache, 1)); /* in the end: nobody can */
	assert_int_equal(turns, (TENANTS + n - 1) / n);
	for (unsigned i = 0; i < TENANTS; i++)
		assert_int_equal(t[i]->n_blocks, 1);
	/* one that was asked already has something, while others are still to be asked: never "nobody" */
	run_loop(&f, 1);
	assert_true(evict_anyone(f.cache, 1));
	assert_int_equal(cache_release(t[0], pinned[0]), KVG_CODE_OK);
	for (turns = 0; t[0]->n_blocks; turns++) {
		assert_true(turns < 20);
		run_loop(&f, 1);
		assert_true(evict_anyone(f.cache, 1));
	}
	stop();
}

/* 10,000 operations; after each thousand every page is accounted for. */
static void test_random(void **state)
{
	enum {
		N = 300
	};
	static struct kvg_key key[N];
	static struct kvg_handle held[N];
	struct pin_page *page = pin_page_new();
	unsigned pins[N] = {0}, done = 0;

	(void)state;
	srand(7);
	start(.3f, 0);
	cache_pins_attach(f.tenant, page);
	for (unsigned step = 0; step < 10000; step++) {
		unsigned i = (unsigned)rand() % N;
		struct cache_purge_result r;
		struct cache_block_result a;
		const struct kvg_key *parent = i % 10 && find(&key[i - 1]) ? &key[i - 1] : NULL;

		switch (rand() % 12) {
		case 0 ... 5:
			if (i % 10 && !parent)
				break;
			assert_int_not_equal(
				put_block(&f, f.layout, i, parent, &key[i]), KVG_CODE_BAD_KEY);
			done++;
			break;
		case 6:
			if (cache_acquire(f.tenant, f.layout, &key[i], 0, &a) == KVG_CODE_OK) {
				held[i] = a.handle;
				pins[i]++;
			}
			break;
		case 7:
			if (pins[i]) {
				assert_int_equal(cache_release(f.tenant, held[i]), KVG_CODE_OK);
				pins[i]--;
			}
			break;
		case 8:
			page_pin(page, i,
				(struct kvg_handle){
					(uint32_t)rand() % 300, 1 + (uint32_t)rand() % 9});
			break;
		case 9:
			cache_purge(f.tenant, 0, &key[i], (uint32_t)rand() % 5, &r);
			break;
		default:
			evict_round(f.tenant, (uint64_t)rand() % 100000, rand() % 3 == 0);
		}
		if (pins[i])
			assert_non_null(block_get(f.tenant, held[i]));
		if (step % 100 == 0)
			assert_int_equal(cache_check(f.cache), 0);
	}
	assert_true(done > 500);
	for (unsigned i = 0; i < N; i++)
		while (pins[i]--)
			assert_int_equal(cache_release(f.tenant, held[i]), KVG_CODE_OK);
	cache_pins_detach(f.tenant, page);
	pin_page_free(page);
	struct cache_purge_result r;
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(f.tenant->used == 0 && f.tenant->n_blocks == 0);
	assert_int_equal(index_slots_free(f.tenant->index), 1024);
	stop();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lossless),
		cmocka_unit_test(test_floor),
		cmocka_unit_test(test_floor_changes),
		cmocka_unit_test(test_pins_in_pages),
		cmocka_unit_test(test_touch_saves),
		cmocka_unit_test(test_slots),
		cmocka_unit_test(test_watermarks),
		cmocka_unit_test(test_tenants),
		cmocka_unit_test(test_rounds_of_a_turn),
		cmocka_unit_test(test_random),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
