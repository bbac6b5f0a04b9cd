/* SPDX-License-Identifier: Apache-2.0 */
/* Blocks: bits and shares of planes, the tree, what a floor keeps. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/block.h"
#include "daemon/cache/tenant.h"
#include "gates/select.h"
#include "tests/unit/cache_fixture.h"

static struct fixture f;

static struct cache_layout l;

/* A block of planes with these pairs; the second one is empty. */
static struct block *make(const uint32_t pairs[4])
{
	struct block *b = calloc(1, sizeof(*b) + 4 * sizeof(b->plane[0]));

	b->layout = &l;
	b->n_planes = 4;
	for (uint32_t p = 0; p < 4; p++) {
		b->plane[p].pairs = pairs[p];
		b->plane[p].bytes = 100 * pairs[p];
		b->plane[p].extent = (struct extent){.pages = pairs[p] != 0, .page_shift = 12};
		b->planes |= (uint8_t)((pairs[p] != 0) << p);
		b->pairs += pairs[p];
	}
	b->held = b->planes;
	return b;
}

static void test_shares(void **state)
{
	struct block *b = make((uint32_t[]){10, 0, 20, 70});

	(void)state;
	assert_int_equal(b->planes, 0xd);
	assert_int_equal(block_best(b, 0), 0);
	assert_int_equal(block_best(b, 1), 0x1);
	assert_int_equal(block_best(b, 2), 0x5);
	assert_int_equal(block_best(b, 3), 0xd);
	assert_int_equal(block_payload(b, 0x5), 3000);
	assert_int_equal(block_pages(b, 0xd), 3 * 4096);
	assert_true(block_retention(b) == 1.0f);
	b->held = 0x5;
	assert_true(block_retention(b) > .2999f && block_retention(b) < .3001f);
	/* node planes: 10 %, 30 %, 100 % */
	assert_int_equal(block_droppable_from(b, .01f), 1);
	assert_int_equal(block_droppable_from(b, .1f), 1);
	assert_int_equal(block_droppable_from(b, .11f), 2);
	assert_int_equal(block_droppable_from(b, .3f), 2);
	assert_int_equal(block_droppable_from(b, .31f), 3);
	assert_int_equal(block_droppable_from(b, 1.0f), 3);
	/* calibrated: what counts is where the band lies in the model, not what this block has in it */
	l.n_retained = 3;
	memcpy(l.retained, (float[]){.05f, .2f, .5f}, 3 * sizeof(float));
	assert_int_equal(block_droppable_from(b, .05f), 1);
	assert_int_equal(block_droppable_from(b, .06f), 1); /* plane 1 is empty */
	assert_int_equal(block_droppable_from(b, .3f), 2);
	assert_int_equal(block_droppable_from(b, .5f), 2);
	assert_int_equal(block_droppable_from(b, .51f), 3);
	assert_int_equal(block_droppable_from(b, 1.0f), 3);
	l.n_retained = 0;
	free(b);
	b = make((uint32_t[]){1, 0, 0, 0});
	b->pairs = b->plane[0].pairs = 0; /* opaque */
	assert_int_equal(block_droppable_from(b, 1.0f), 1);
	free(b);
}

/* Children before parents, every block once, in a forest. */
static void test_walk(void **state)
{
	struct kvg_key key[30];
	unsigned n = 0;

	(void)state;
	for (uint64_t i = 0; i < 30; i++) /* 0 and 1 are roots; i hangs on i / 3 */
		assert_int_equal(put_block(&f, f.layout, i, i < 2 ? NULL : &key[i / 3], &key[i]),
			KVG_CODE_OK);
	for (struct block *b = block_first(&f.tenant->roots); b; b = block_next(b)) {
		b->seen_stamp = 77;
		n++;
		for (struct block *child = b->children.first; child; child = child->next)
			assert_int_equal(child->seen_stamp, 77);
	}
	assert_int_equal(n, 30);
}

static void test_handles(void **state)
{
	struct kvg_key key;
	struct kvg_handle h;
	struct cache_purge_result r;
	struct block *b;

	(void)state;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	b = block_find(f.tenant, f.layout->id, &key);
	h = b->handle;
	assert_ptr_equal(block_get(f.tenant, h), b);
	assert_null(block_get(f.tenant, (struct kvg_handle){h.slot, h.gen + 1}));
	assert_null(block_get(f.tenant, (struct kvg_handle){h.slot + 1, h.gen}));
	assert_null(block_get(f.tenant, (struct kvg_handle){UINT32_MAX, UINT32_MAX}));
	cache_purge(f.tenant, 0, &key, 0, &r);
	assert_null(block_get(f.tenant, h));
	assert_int_equal(put_block(&f, f.layout, 2, NULL, &key), KVG_CODE_OK);
	b = block_find(f.tenant, f.layout->id, &key);
	assert_int_equal(b->handle.slot, h.slot); /* the slot again, under another name */
	assert_null(block_get(f.tenant, h));
}

/* A reader's absolute threshold at the edge of a band takes the planes down to it, whole, and nothing else. */
static void test_bands_are_the_absolute_rule(void **state)
{
	const uint32_t runs = FIXTURE_LAYERS * FIXTURE_HEADS;
	uint32_t len[KVG_PLANES_MAX * FIXTURE_LAYERS * FIXTURE_HEADS];
	struct select_block in = {.n_planes = FIXTURE_PLANES};
	struct kvg_key key;
	struct block *b;

	(void)state;
	for (uint64_t seed = 0; seed < 20; seed++) {
		assert_int_equal(put_block(&f, f.layout, seed, NULL, &key), KVG_CODE_OK);
		b = block_find(f.tenant, f.layout->id, &key);
		for (uint32_t p = 0; p < FIXTURE_PLANES; p++)
			assert_int_equal(plane_open(b->plane[p].extent.addr, b->plane[p].bytes,
						 &in.plane[p]),
				0);
		for (uint32_t e = 0; e + 1 < FIXTURE_PLANES; e++) {
			const struct select_params rule = {
				.rule = SELECT_ABSOLUTE,
				.threshold = f.layout->identity.edges[e],
				.floor = f.layout->floor_pairs,
			};

			assert_int_equal(
				select_planes(&rule, &in, 1, FIXTURE_LAYERS, FIXTURE_HEADS, len),
				0);
			for (uint32_t p = 0; p < FIXTURE_PLANES; p++)
				for (uint32_t r = 0; r < runs; r++) {
					const uint32_t *cu = in.plane[p].cu;

					assert_int_equal(
						len[p * runs + r], p <= e ? cu[r + 1] - cu[r] : 0);
				}
		}
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_shares),
		FIXTURE_TEST(test_walk),
		FIXTURE_TEST(test_handles),
		FIXTURE_TEST(test_bands_are_the_absolute_rule),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
