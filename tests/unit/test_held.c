/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/serve/held.h"

#define SLOTS 500

/* Against an array of counts, with handles that crowd the same places of the table. */
static void test_against_counts(void **state)
{
	static uint32_t count[SLOTS];
	uint32_t cursor = 0, total = 0, n;
	struct kvg_handle handle;
	struct held h = {0};

	(void)state;
	srand(7);
	for (int step = 0; step < 200000; step++) {
		uint32_t slot = (uint32_t)rand() % SLOTS;

		handle = (struct kvg_handle){.slot = slot, .gen = slot % 3 + 1};
		if (rand() % 100 < (step < 100000 ? 60 : 40)) {
			assert_int_equal(held_reserve(&h), 0);
			held_add(&h, handle);
			count[slot]++;
		} else {
			assert_int_equal(held_remove(&h, handle), count[slot] > 0);
			count[slot] -= count[slot] > 0;
		}
	}
	for (uint32_t i = 0; i < SLOTS; i++) {
		/* another generation of the same slot is another block */
		assert_false(held_remove(&h, (struct kvg_handle){.slot = i, .gen = 9}));
		total += count[i];
	}
	while (held_take_any(&h, &cursor, &handle, &n)) {
		assert_int_equal(n, count[handle.slot]);
		total -= n;
	}
	assert_int_equal(total, 0);
	assert_int_equal(h.used, 0);
	held_fini(&h);
}

static void test_empty(void **state)
{
	struct kvg_handle handle = {.slot = 1, .gen = 1};
	uint32_t cursor = 0, n;
	struct held h = {0};

	(void)state;
	assert_false(held_remove(&h, handle));
	assert_false(held_remove(&h, (struct kvg_handle){0}));
	assert_false(held_take_any(&h, &cursor, &handle, &n));
	held_fini(&h);
	assert_int_equal(held_reserve(&h), 0);
	held_add(&h, handle);
	assert_false(held_remove(&h, (struct kvg_handle){0})); /* an empty place is no handle */
	assert_true(held_remove(&h, handle));
	assert_false(held_remove(&h, handle));
	held_fini(&h);
	held_fini(&h);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_counts),
		cmocka_unit_test(test_empty),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
