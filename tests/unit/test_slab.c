/* SPDX-License-Identifier: Apache-2.0 */
/* Things come zeroed, keep what is written to them whatever else comes and goes, and their memory goes when they have gone. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "daemon/mem/pieces.h"
#include "daemon/mem/slab.h"
#include "proto/map.h"

#define THINGS 20000u

static uint64_t seed = 1;

static uint32_t rnd(uint32_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed >> 33) % below);
}

static uint8_t *thing[THINGS];

static void take(struct slab *s, uint32_t i)
{
	thing[i] = slab_alloc(s);
	assert_non_null(thing[i]);
	for (size_t k = 0; k < s->size; k++)
		assert_int_equal(thing[i][k], 0);
	memset(thing[i], (int)i | 1, s->size);
}

static void give(struct slab *s, uint32_t i)
{
	for (size_t k = 0; k < s->size; k++)
		assert_int_equal(thing[i][k], (uint8_t)(i | 1));
	slab_free(s, thing[i]);
	thing[i] = NULL;
}

static void test_come_and_go(void **state)
{
	static const size_t sizes[] = {16, 100, 896, 5000, 65536};

	(void)state;
	for (size_t n = 0; n < sizeof(sizes) / sizeof(sizes[0]); n++) {
		const uint32_t things = sizes[n] > 1000 ? THINGS / 100 : THINGS / 4;
		struct slab s = {.size = sizes[n]};

		for (uint32_t i = 0; i < 4 * things; i++) {
			const uint32_t at = rnd(things);

			if (thing[at])
				give(&s, at);
			else
				take(&s, at);
		}
		for (uint32_t i = 0; i < things; i++)
			if (thing[i])
				give(&s, i);
		slab_free(&s, NULL);
		slab_fini(&s);
	}
}

/* Parts are as few as they can be, and the last one that is empty stays. */
static void test_parts(void **state)
{
	struct slab s = {.size = 1024};
	const uint32_t each = MAP_HUGE_BYTES / 1024 - 1; /* beside the header */
	unsigned char resident[MAP_HUGE_BYTES / 4096];
	void *last;

	(void)state;
	if (!PIECES_CUT)
		skip();
	for (uint32_t i = 0; i < 5 * each; i++)
		take(&s, i);
	assert_int_equal(s.parts, 5);
	assert_null(s.room);
	give(&s, 7);
	take(&s, 7);
	assert_int_equal(s.parts, 5);
	for (uint32_t i = 0; i < 5 * each; i++) {
		give(&s, i);
		assert_true(s.parts <= 6 - (i + 1) / each); /* one may be empty */
	}
	assert_int_equal(s.parts, 1);
	take(&s, 0);
	assert_int_equal(s.parts, 1);
	give(&s, 0);
	last = s.room;
	slab_fini(&s);
	assert_int_equal(s.parts, 0);
	assert_true(mincore(last, MAP_HUGE_BYTES, resident) < 0 && errno == ENOMEM); /* unmapped */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_come_and_go),
		cmocka_unit_test(test_parts),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
