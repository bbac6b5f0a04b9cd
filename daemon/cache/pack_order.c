/* SPDX-License-Identifier: Apache-2.0 */
#include "daemon/cache/pack_order.h"

#include <math.h>

#include "gates/select.h"
#include "proto/shape.h"

uint32_t order_bound(float edge)
{
	return (uint32_t)order_flip(select_f16_at_least(edge)) << 16 | 0xffffu;
}

/* Halves without a branch: which way it goes is a coin toss. */
uint32_t order_count(const uint32_t *keys, uint32_t n, uint32_t bound)
{
	const uint32_t *at = keys;

	if (n == 0)
		return 0;
	while (n > 1) {
		uint32_t half = n / 2;

		at += at[half - 1] <= bound ? half : 0;
		n -= half;
	}
	return (uint32_t)(at - keys) + (*at <= bound);
}

double order_log_mass(const uint32_t *keys, uint32_t n)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += fmin(exp((double)f16_to_f32(order_score(keys[i]))), 1);
	return sum;
}
