/* SPDX-License-Identifier: Apache-2.0 */
/* The log store on real files: what goes in comes out, also after a restart, and nothing else does. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/unit/disk_fixture.h"

static struct fixture f;

static void test_store_load(void **state)
{
	(void)state;
	fix_new(&f, 1, 16);
	fix_open(&f);
	for (uint32_t i = 0; i < 40; i++)
		assert_int_equal(plane_store(plane_of(&f, i, i % 3, 500 + i * 300)), 0);
	fix_wait(&f);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	fix_close(&f);
	fix_open(&f);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	fix_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_store_load),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
