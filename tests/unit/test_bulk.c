/* SPDX-License-Identifier: Apache-2.0 */
/* Pieces of all sizes: aligned as asked for, none over another, and all of it goes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/mem/bulk.h"
#include "daemon/mem/pieces.h"

#define PIECES 400u
#define LARGE  (5ull << 20) /* than a part */

static uint64_t seed = 1;

static size_t rnd(size_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (size_t)((seed >> 33) % below);
}

static void test_pieces(void **state)
{
	static uint8_t *piece[PIECES];
	static size_t bytes[PIECES];
	struct bulk b = {0};

	(void)state;
	for (unsigned i = 0; i < PIECES; i++) {
		const size_t align = (size_t)1 << rnd(13);

		bytes[i] = i % 100 == 99 ? LARGE : 1 + rnd(i % 10 ? 300 : 200000);
		piece[i] = bulk_alloc(&b, align, bytes[i]);
		assert_non_null(piece[i]);
		assert_int_equal((uintptr_t)piece[i] % align, 0);
		memset(piece[i], (int)i, bytes[i]);
	}
	for (unsigned i = 0; i < PIECES; i++)
		for (size_t k = 0; k < bytes[i]; k++)
			assert_int_equal(piece[i][k], (uint8_t)i);
	bulk_free(&b);
	bulk_free(&b); /* empty: nothing happens */
}

static size_t mapped(void)
{
	unsigned long pages = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu", &pages), 1);
	fclose(f);
	return pages;
}

static void test_nothing_is_left(void **state)
{
	size_t before = 0;

	(void)state;
	if (!PIECES_CUT) /* the sanitizer sees to that, and keeps what was freed for a while */
		skip();
	for (unsigned turn = 0; turn < 3; turn++) {
		struct bulk b = {0};

		for (unsigned i = 0; i < 20; i++)
			assert_non_null(bulk_alloc(&b, 64, LARGE));
		bulk_free(&b);
		if (turn)
			assert_true(mapped() < before + LARGE / 4096);
		before = mapped();
	}
}

static void test_no_memory(void **state)
{
	struct bulk b = {0};

	(void)state;
	assert_null(bulk_alloc(&b, 8, SIZE_MAX / 2 + 1));
	assert_null(bulk_alloc(&b, 8, SIZE_MAX));
	assert_non_null(bulk_alloc(&b, 8, 8)); /* and it goes on */
	bulk_free(&b);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_pieces),
		cmocka_unit_test(test_nothing_is_left),
		cmocka_unit_test(test_no_memory),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
