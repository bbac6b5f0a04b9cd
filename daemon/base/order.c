/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Least significant digit first, and only digits in which keys differ: keys that were counted up differ in few. What is in order
 * already costs one look.
 */
#include "daemon/base/order.h"

#include <stdbool.h>

#define DIGIT_BITS 11u
#define DIGITS     (1u << DIGIT_BITS)

static void sort_digit(const struct ordered *from, struct ordered *to, size_t n, unsigned shift)
{
	size_t at[DIGITS] = {0}, sum = 0;

	for (size_t i = 0; i < n; i++)
		at[from[i].key >> shift & (DIGITS - 1)]++;
	for (unsigned d = 0; d < DIGITS; d++) {
		const size_t here = at[d];

		at[d] = sum;
		sum += here;
	}
	for (size_t i = 0; i < n; i++)
		to[at[from[i].key >> shift & (DIGITS - 1)]++] = from[i];
}

struct ordered *order_sort(struct ordered *a, struct ordered *spare, size_t n)
{
	uint64_t differ = 0;
	bool sorted = true;

	for (size_t i = 1; i < n; i++) {
		differ |= a[i].key ^ a[0].key;
		sorted = sorted && a[i - 1].key <= a[i].key;
	}
	for (unsigned shift = 0; !sorted && shift < 64; shift += DIGIT_BITS) {
		struct ordered *to = spare;

		if (!(differ >> shift & (DIGITS - 1)))
			continue;
		sort_digit(a, to, n, shift);
		spare = a;
		a = to;
	}
	return a;
}
