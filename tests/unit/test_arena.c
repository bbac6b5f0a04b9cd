/* SPDX-License-Identifier: Apache-2.0 */
/* The arena against the plainest model there is: a byte per page. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/mem/arena.h"
#include "daemon/mem/bitmap.h"

static uint64_t seed = 1;

static uint32_t rnd(uint32_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed >> 33) % below);
}

/* What best fit has to answer: the lowest of the shortest runs that are long enough. */
static uint32_t model_best(const uint8_t *used, uint32_t n, uint32_t pages, uint32_t *ret_largest)
{
	uint32_t best = ARENA_NONE, best_run = UINT32_MAX;

	*ret_largest = 0;
	for (uint32_t i = 0; i < n;) {
		uint32_t run = 0;

		while (i + run < n && !used[i + run])
			run++;
		if (run >= pages && run < best_run) {
			best = i;
			best_run = run;
		}
		if (run > *ret_largest)
			*ret_largest = run;
		i += run ? run : 1;
	}
	return best;
}

struct live {
	uint32_t page, pages;
};

static void check(struct arena *a, const uint8_t *used)
{
	uint32_t largest, n = 0;

	for (uint32_t i = 0; i < a->pages; i++) {
		assert_int_equal(bitmap_test(a->used, i), used[i]);
		n += !used[i];
	}
	assert_int_equal(a->free, n);
	model_best(used, a->pages, 1, &largest);
	assert_int_equal(arena_largest(a), largest);
}

static void random_ops(uint32_t pages, uint32_t longest, int ops)
{
	struct arena a;
	uint8_t *used = calloc(pages, 1);
	struct live *live = calloc(pages, sizeof(*live));
	uint32_t n_live = 0;

	assert_int_equal(arena_init(&a, pages), 0);
	for (int i = 0; i < ops; i++) {
		/* fill up and drain in waves, so that both full and fragmented states are met */
		if (rnd(100) < ((i / 500) % 2 ? 35u : 65u)) {
			uint32_t want = 1 + rnd(rnd(8) ? longest / 8 + 1 : longest), largest,
				 page = 0;
			uint32_t expect = model_best(used, pages, want, &largest);
			int r = arena_alloc(&a, want, &page);

			assert_int_equal(r, expect == ARENA_NONE ? -ENOSPC : 0);
			if (r == 0) {
				assert_int_equal(page, expect);
				memset(used + page, 1, want);
				live[n_live++] = (struct live){page, want};
			}
		} else if (n_live) {
			uint32_t k = rnd(n_live);
			struct live l = live[k];

			if (l.pages > 2 && rnd(4) == 0) { /* a part may be freed by itself */
				uint32_t part = 1 + rnd(l.pages - 1);

				arena_free(&a, l.page, part);
				memset(used + l.page, 0, part);
				live[k] = (struct live){l.page + part, l.pages - part};
			} else {
				arena_free(&a, l.page, l.pages);
				memset(used + l.page, 0, l.pages);
				live[k] = live[--n_live];
			}
		}
		if (i % 97 == 0)
			check(&a, used);
	}
	while (n_live) {
		arena_free(&a, live[n_live - 1].page, live[n_live - 1].pages);
		n_live--;
	}
	assert_int_equal(arena_largest(&a), pages);
	assert_int_equal(a.free, pages);
	arena_fini(&a);
	arena_fini(&a); /* twice is fine */
	free(live);
	free(used);
}

static void test_model(void **state)
{
	(void)state;
	random_ops(1, 1, 200);
	random_ops(2, 2, 500);
	random_ops(63, 9, 20000);
	random_ops(64, 64, 20000);
	random_ops(65, 20, 20000);
	random_ops(1000, 100, 20000);
	random_ops(4096, 300, 20000);
}

static void test_exact(void **state)
{
	struct arena a;
	uint32_t page = 77;

	(void)state;
	assert_int_equal(arena_init(&a, 10), 0);
	assert_int_equal(arena_alloc(&a, 11, &page), -ENOSPC);
	assert_int_equal(page, 77);
	assert_int_equal(arena_alloc(&a, 10, &page), 0);
	assert_int_equal(page, 0);
	assert_int_equal(arena_largest(&a), 0);
	assert_int_equal(arena_alloc(&a, 1, &page), -ENOSPC);
	arena_free(&a, 7, 2); /* runs of 2 and of 3: the shorter one serves 2 */
	arena_free(&a, 2, 3);
	assert_int_equal(arena_alloc(&a, 2, &page), 0);
	assert_int_equal(page, 7);
	arena_fini(&a);
}

static void test_bitmap(void **state)
{
	uint64_t map[4], plain[256];

	(void)state;
	for (int i = 0; i < 20000; i++) {
		uint32_t from = rnd(256), n = rnd(257 - from), count = 0, set, clear;
		bool value = rnd(2);

		if (i % 50 == 0) {
			memset(map, 0, sizeof(map));
			memset(plain, 0, sizeof(plain));
		}
		if (value)
			bitmap_set(map, from, n);
		else
			bitmap_clear(map, from, n);
		for (uint32_t b = from; b < from + n; b++)
			plain[b] = value;
		from = rnd(256);
		n = rnd(257 - from);
		set = clear = from + n;
		for (uint32_t b = from + n; b-- > from;) {
			count += plain[b];
			if (plain[b])
				set = b;
			else
				clear = b;
		}
		assert_int_equal(bitmap_count(map, from, n), count);
		assert_int_equal(bitmap_next_set(map, from, from + n), set);
		assert_int_equal(bitmap_next_clear(map, from, from + n), clear);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_model),
		cmocka_unit_test(test_exact),
		cmocka_unit_test(test_bitmap),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
