/* SPDX-License-Identifier: Apache-2.0 */
/* The memory of evicted blocks against a plain list; its limit, also when that falls. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "daemon/cache/policy_ghost.h"

enum {
	KEYS = 4000
};

static uint64_t added[KEYS]; /* by key: when it was added, 0 = not there */

static uint64_t oldest(void)
{
	uint64_t key = 0;

	for (uint64_t k = 0; k < KEYS; k++)
		if (added[k] && (!added[key] || added[k] < added[key]))
			key = k;
	return key;
}

static void test_against_a_list(void **state)
{
	struct ghosts g;
	struct ghost ghost;
	size_t n = 0, limit = 1500;

	(void)state;
	srand(5);
	ghosts_init(&g);
	assert_false(ghosts_take(&g, 1, &ghost));
	assert_false(ghosts_forget(&g, 0, &ghost));
	for (uint64_t now = 1; now < 30000; now++) {
		uint64_t key = (uint64_t)rand() % KEYS;

		if (now == 15000)
			limit = 200;
		if (added[key]) {
			assert_true(ghosts_take(&g, key, &ghost));
			assert_true(ghost.key_hash == key && ghost.last_use == added[key] &&
				ghost.class == key % 7);
			assert_false(ghosts_take(&g, key, &ghost));
			added[key] = 0;
			n--;
			continue;
		}
		for (unsigned i = 0; i < 2 && ghosts_forget(&g, limit - 1, &ghost); i++) {
			assert_int_equal(ghost.key_hash, oldest());
			added[ghost.key_hash] = 0;
			n--;
		}
		ghost = (struct ghost){
			.key_hash = key, .last_use = now, .class = (uint16_t)(key % 7)};
		assert_true(ghosts_add(&g, &ghost));
		added[key] = now;
		n++;
		assert_int_equal(g.alive, n);
		assert_true(n <= (now < 15000 || now > 20000 ? limit : 1500));
		assert_true(g.size <= 4096);
	}
	ghosts_fini(&g);
	ghosts_fini(&g);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_against_a_list)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
