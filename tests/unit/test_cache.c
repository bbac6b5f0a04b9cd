/* SPDX-License-Identifier: Apache-2.0 */
/* The cache as the sessions use it: put, find, list, look, shrink, purge, tenants apart. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "tests/unit/cache_fixture.h"
#include "tests/unit/fake_gate.h"

static struct fixture f;

static void test_put_and_find(void **state)
{
	struct cache_block_result r;
	struct cache_block_info info;
	struct kvg_key key, child;

	(void)state;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	assert_int_equal(put_block(&f, f.layout, 2, &key, &child), KVG_CODE_OK);
	assert_int_equal(put_block(&f, f.layout, 1, NULL, NULL), KVG_CODE_EXISTS);
	assert_int_equal(cache_acquire(f.tenant, f.layout, &child, 1.0f, &r), KVG_CODE_OK);
	assert_true(r.handle.gen > 0 && r.held == 15 && r.mapped == 15 && r.retention == 1.0f);
	assert_true(cache_present(f.tenant, &key));
	assert_int_equal(inspect_block(&f, f.tenant, &child, true, &info), KVG_CODE_OK);
	assert_memory_equal(&info.parent, &key, sizeof(key));
	assert_true(info.pins == 1 && info.depth == 1 && info.n_planes == FIXTURE_PLANES);
	for (int p = 0; p < FIXTURE_PLANES; p++) {
		struct cache_segment_info seg;
		const uint8_t *map;

		assert_true(info.plane[p].verified && info.plane[p].pairs);
		assert_int_equal(cache_segment_get(f.tenant, info.plane[p].segment, &seg), 0);
		map = mmap(NULL, seg.bytes, PROT_READ, MAP_SHARED, seg.fd, 0);
		assert_ptr_not_equal(map, MAP_FAILED);
		assert_int_equal(
			content_check(2, map + ((size_t)info.plane[p].page << seg.page_shift),
				info.plane[p].bytes, (uint32_t)p),
			info.plane[p].pairs);
		munmap((void *)map, seg.bytes);
	}
	assert_int_equal(cache_release(f.tenant, r.handle), KVG_CODE_OK);
	assert_int_equal(cache_release(f.tenant, r.handle), KVG_CODE_NOT_FOUND);
}

/* Tenants share names, keys and contents, and nothing else. */
static void test_tenants_apart(void **state)
{
	struct cache_tenant *other = fixture_tenant(&f, "two", f.o.host_bytes, 1.0f);
	struct cache_layout *l = fixture_layout(&f, other, "model", "");
	struct cache_block_info mine, theirs;
	struct cache_segment_info seg;
	struct kvg_key key;
	struct put p;

	(void)state;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	assert_false(cache_present(other, &key));
	assert_int_equal(inspect_block(&f, other, &key, false, &theirs), KVG_CODE_NOT_FOUND);
	put_stage(&f, l, 1, NULL, &p);
	assert_memory_equal(&p.q.key, &key, sizeof(key));
	put_start(&f, other, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_OK); /* not EXISTS: it is not theirs to know */
	assert_int_equal(inspect_block(&f, f.tenant, &key, true, &mine), KVG_CODE_OK);
	assert_int_equal(inspect_block(&f, other, &key, true, &theirs), KVG_CODE_OK);
	assert_int_not_equal(mine.plane[0].segment, theirs.plane[0].segment);
	assert_int_equal(cache_segment_get(other, mine.plane[0].segment, &seg), -ENOENT);
	assert_int_equal(cache_segment_get(f.tenant, mine.plane[0].segment, &seg), 0);
	assert_int_not_equal(cache_tenant_index_fd(f.tenant), cache_tenant_index_fd(other));
	assert_ptr_equal(cache_tenant_find(f.cache, "two"), other);
	assert_null(cache_tenant_find(f.cache, "three"));
	assert_ptr_equal(cache_tenant_next(f.cache, cache_tenant_next(f.cache, NULL)), other);
}

/* The same hash of two engines in two namespaces: two blocks. */
static void test_foreign_keys(void **state)
{
	struct cache_layout *a = fixture_layout(&f, f.tenant, "model", "engine a");
	struct cache_layout *b = fixture_layout(&f, f.tenant, "model", "engine b");
	struct cache_block_result ra, rb;
	struct put p;

	(void)state;
	for (int i = 0; i < 2; i++) {
		put_stage(&f, i ? b : a, 1 + (uint64_t)i, NULL, &p);
		memset(&p.q.key, 0x11, sizeof(p.q.key));
		put_start(&f, f.tenant, &p);
		put_wait(&f, &p);
		assert_int_equal(p.result.code, KVG_CODE_OK);
	}
	assert_int_equal(cache_acquire(f.tenant, a, &p.q.key, 0, &ra), KVG_CODE_OK);
	assert_int_equal(cache_acquire(f.tenant, b, &p.q.key, 0, &rb), KVG_CODE_OK);
	assert_int_not_equal(ra.handle.slot, rb.handle.slot);
	struct cache_block_info info;
	assert_int_equal(cache_inspect(f.tenant, 3, &p.q.key, &info), KVG_CODE_OK);
	assert_int_equal(info.layout, 3);
	assert_int_equal(cache_acquire(f.tenant, f.layout, &p.q.key, 0, &rb), KVG_CODE_NOT_FOUND);
	assert_false(cache_present_in(f.tenant, f.layout, &p.q.key));
	assert_true(cache_present_in(f.tenant, a, &p.q.key));
	assert_true(cache_present(f.tenant, &p.q.key));
}

static void test_opaque_and_short(void **state)
{
	struct cache_layout_spec s = fixture_spec("engine's own");
	struct cache_block_info info;
	struct cache_layout *l;
	struct kvg_key short_key;
	uint32_t ids[10];
	char why[160];
	struct put p;

	(void)state;
	s.id.shape = (struct kv_shape){.tokens = 64, .opaque_bytes = 10000};
	s.id.key_namespace = "engine";
	assert_int_equal(cache_layout_register(f.tenant, &s, &l, why, sizeof(why)), KVG_CODE_OK);
	put_stage(&f, l, 3, NULL, &p); /* the fixture's bytes, as many as fit */
	p.q.input = STAGE_INPUT_NONE;
	p.q.token_ids = false;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_OK);
	assert_int_equal(inspect_block(&f, f.tenant, &p.q.key, true, &info), KVG_CODE_OK);
	assert_true(info.n_planes == 1 && info.plane[0].verified && info.plane[0].pairs == 0);
	assert_true(info.plane[0].bytes > 10000 && info.plane[0].bytes < 11000 &&
		info.retention == 1.0f);

	put_stage(&f, f.layout, 4, NULL,
		&p); /* ten tokens of a block of 64: all of its own geometry */
	p.q.tokens = 10;
	p.q.input = STAGE_INPUT_NONE;
	content_ids(4, 10, ids);
	struct stage_geometry g;
	cache_layout_stage(f.layout, STAGE_INPUT_NONE, 10, &g);
	memcpy((uint8_t *)put_memory(&f, &p) + g.tokens_off, ids, sizeof(ids));
	struct cache_layout_info li;
	cache_layout_describe(f.layout, &li);
	key_block(f.hasher, NULL, li.fingerprint, ids, 10, &short_key);
	p.q.key = short_key;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_OK);
	assert_int_equal(inspect_block(&f, f.tenant, &short_key, true, &info), KVG_CODE_OK);
	assert_true(
		info.tokens == 10 && info.plane[0].pairs == 10 * FIXTURE_LAYERS * FIXTURE_HEADS);
	assert_true(info.plane[1].pairs == 0 &&
		info.plane[1].tier == KVG_TIER_NONE); /* no scores: all protected */
}

static void test_hidden_states(void **state)
{
	const struct kv_shape shape = {.layers = 3,
		.heads = 2,
		.tokens = 16,
		.k_dim = 8,
		.v_dim = 8,
		.dtype = KVG_DTYPE_F16};
	struct cache_layout_spec s = fixture_spec("gated");
	struct cache_layout_info li;
	struct cache_block_info info;
	struct cache_layout *l;
	struct stage_geometry g;
	uint32_t ids[16] = {0};
	char why[160];
	struct put p = {.staging = f.staging};

	(void)state;
	s.id.shape = shape;
	s.gate = "fake";
	s.hidden_dtype = KVG_DTYPE_F32;
	s.ungated_layers = (uint32_t[]){1};
	s.n_ungated = 1;
	assert_int_equal(cache_add_gate(f.cache, "fake", fake_gate_new(2, 2, 4)), 0);
	assert_int_equal(cache_layout_register(f.tenant, &s, &l, why, sizeof(why)), KVG_CODE_OK);
	cache_layout_stage(l, STAGE_INPUT_HIDDEN, 16, &g);
	assert_int_equal(g.aux_bytes, 2 * 16 * 4 * 4);
	p.bytes = g.total;
	p.q = (struct cache_commit){.layout = l,
		.staging = f.staging,
		.input = STAGE_INPUT_HIDDEN,
		.tokens = 16,
		.token_ids = true};
	assert_int_equal(staging_alloc(f.staging, g.total, &p.q.offset), 0);
	for (int i = 0; i < 2 * 16 * 4; i++)
		((float *)((uint8_t *)put_memory(&f, &p) + g.aux_off))[i] = (float)i / 128;
	cache_layout_describe(l, &li);
	key_block(f.hasher, NULL, li.fingerprint, ids, 16, &p.q.key);
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_OK);
	assert_int_equal(inspect_block(&f, f.tenant, &p.q.key, true, &info), KVG_CODE_OK);
	assert_int_equal(
		info.plane[0].pairs, 3 * 2 * 16); /* the fake gate is not calibrated: one plane */
}

/* Limits come with every session; only what the configuration changed is taken over. */
static void test_limits(void **state)
{
	struct cache_policy p = {.floor = .5f};
	char why[80];

	(void)state;
	assert_int_equal(cache_policy_set(f.tenant, "", &p, why, sizeof(why)), KVG_CODE_OK);
	assert_ptr_equal(fixture_tenant(&f, "one", f.o.host_bytes, 1.0f), f.tenant);
	cache_policy_get(f.tenant, "", &p);
	assert_true(p.floor == .5f);
	fixture_tenant(&f, "one", 2 << 20, .25f);
	cache_policy_get(f.tenant, "", &p);
	assert_true(p.floor == .25f && p.host_bytes == 2 << 20);
}

/* What is due with a tick is spread over turns of the loop: some tenants in each. */
static void test_tick(void **state)
{
	enum {
		TENANTS = 14
	};
	struct cache_tenant *t[TENANTS];
	struct pin_page *page[TENANTS];
	struct counter_scope *scope[TENANTS];
	unsigned seen = 0;

	(void)state;
	for (unsigned i = 0; i < TENANTS; i++) {
		char name[8];

		snprintf(name, sizeof(name), "t%u", i);
		t[i] = fixture_tenant(&f, name, f.o.host_bytes, 1.0f);
		page[i] = pin_page_new();
		((struct kvg_shm_pins *)(uintptr_t)page[i]->map)->touch_head = 1;
		cache_pins_attach(t[i], page[i]);
		assert_int_equal(counters_scope(f.counters, name, "", &scope[i]), 0);
	}
	for (unsigned turns = 0; seen < TENANTS; turns++) {
		unsigned now = 0;

		assert_true(turns < 1000);
		run_loop(&f, 1);
		for (unsigned i = 0; i < TENANTS; i++)
			now += counter_get(scope[i], COUNTER_TOUCHES, 0) > 0;
		assert_in_range(now - seen, 0, 4);
		seen = now;
	}
	for (unsigned i = 0; i < TENANTS; i++) {
		cache_pins_detach(t[i], page[i]);
		pin_page_free(page[i]);
	}
}

static void test_options(void **state)
{
	struct cache_options o = f.o;
	struct cache *c = NULL;

	(void)state;
#define IMPOSSIBLE(change)                                                                         \
	do {                                                                                       \
		o = f.o;                                                                           \
		change;                                                                            \
		assert_int_equal(cache_new(&o, &c), -EINVAL);                                      \
	} while (0)
	IMPOSSIBLE(o.host_bytes = 0);
	IMPOSSIBLE(o.segment_bytes = 3 << 20);
	IMPOSSIBLE(o.index_slots = 0);
	IMPOSSIBLE(o.index_slots = 1ull << 40);
	IMPOSSIBLE(o.high_watermark = 1.5f);
	IMPOSSIBLE((o.low_watermark = .9f, o.high_watermark = .5f));
	IMPOSSIBLE(o.pack_workers = 0);
#undef IMPOSSIBLE
	assert_null(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FIXTURE_TEST(test_put_and_find),
		FIXTURE_TEST(test_tenants_apart),
		FIXTURE_TEST(test_foreign_keys),
		FIXTURE_TEST(test_opaque_and_short),
		FIXTURE_TEST(test_hidden_states),
		FIXTURE_TEST(test_limits),
		FIXTURE_TEST(test_tick),
		FIXTURE_TEST(test_options),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
