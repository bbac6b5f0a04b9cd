/* SPDX-License-Identifier: Apache-2.0 */
/* order_sort() against the definition: keys do not fall, equal ones stand as they were, nothing is lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/base/order.h"

#define N 5000u

static uint64_t seed = 1;

static uint64_t rnd(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return seed ^ seed >> 33;
}

static struct ordered a[N], spare[N], was[N];

static const struct ordered *sort(size_t n)
{
	const struct ordered *got;
	static bool seen[N];

	memcpy(was, a, n * sizeof(a[0]));
	memset(seen, 0, sizeof(seen));
	got = order_sort(a, spare, n);
	assert_true(got == a || got == spare);
	for (size_t i = 0; i < n; i++) {
		assert_true(got[i].number < n && !seen[got[i].number]);
		seen[got[i].number] = true;
		assert_true(got[i].key == was[got[i].number].key);
		if (i && got[i - 1].key == got[i].key)
			assert_true(got[i - 1].number < got[i].number);
		else if (i)
			assert_true(got[i - 1].key < got[i].key);
	}
	return got;
}

static void test_random(void **state)
{
	(void)state;
	for (unsigned bits = 0; bits <= 64; bits++)
		for (size_t n = 0; n <= N; n = n ? n * 5 : 1) {
			const uint64_t top = rnd();

			for (size_t i = 0; i < n; i++)
				a[i] = (struct ordered){
					.key = bits == 64
						? rnd()
						: top << bits | (rnd() & ((1ull << bits) - 1)),
					.number = (uint32_t)i,
				};
			sort(n);
		}
}

/* A bit that no digit shares with another one: each digit is looked at. */
static void test_each_bit(void **state)
{
	(void)state;
	for (unsigned bit = 0; bit < 64; bit++) {
		for (uint32_t i = 0; i < 64; i++)
			a[i] = (struct ordered){.key = (uint64_t)(~i & 1) << bit, .number = i};
		sort(64);
	}
}

static void test_in_order_already(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < N; i++)
		a[i] = (struct ordered){.key = i / 2, .number = i};
	assert_ptr_equal(sort(N), a);
	for (uint32_t i = 0; i < N; i++)
		a[i] = (struct ordered){.key = N - i, .number = i};
	sort(N);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_random),
		cmocka_unit_test(test_each_bit),
		cmocka_unit_test(test_in_order_already),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
