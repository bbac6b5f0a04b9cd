/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs are short (256 pairs) and keys have 16 significant bits, so a stable radix sort in two passes of eight bits is
 * the plain way; tokens come in ascending and stay so among equals.
 */
#include "daemon/cache/pack_order.h"

#include <math.h>
#include <string.h>

#include "proto/shape.h"

#define F16_MAX 65504.0f

bool order_keys(const float *scores, uint32_t n, uint32_t *ret_keys)
{
	bool good = true;

	for (uint32_t i = 0; i < n; i++) {
		float s = scores[i];
		uint16_t bits;

		good &= s > -INFINITY; /* NaN is not */
		if (s < -F16_MAX)
			s = -F16_MAX;
		else if (s > F16_MAX && s < INFINITY)
			s = F16_MAX;
		bits = f16_from_f32(s);
		if (bits == 0x8000u)
			bits = 0;
		ret_keys[i] = (uint32_t)order_flip(bits) << 16 | i;
	}
	return good;
}

static void radix_pass(const uint32_t *from, uint32_t *to, uint32_t n, unsigned shift, uint32_t *count)
{
	uint32_t at = 0;

	for (unsigned d = 0; d < 256; d++) {
		uint32_t c = count[d];

		count[d] = at;
		at += c;
	}
	for (uint32_t i = 0; i < n; i++)
		to[count[from[i] >> shift & 0xff]++] = from[i];
}

void order_sort(uint32_t *keys, uint32_t n, uint32_t *scratch)
{
	uint32_t low[256] = {0}, high[256] = {0};

	for (uint32_t i = 0; i < n; i++) {
		low[keys[i] >> 16 & 0xff]++;
		high[keys[i] >> 24]++;
	}
	radix_pass(keys, scratch, n, 16, low);
	radix_pass(scratch, keys, n, 24, high);
}

uint32_t order_bound(float edge)
{
	uint16_t bits = f16_from_f32(edge), flipped;

	flipped = order_flip(bits == 0x8000u ? 0 : bits);
	if (f16_to_f32(bits) < edge) /* rounded down: the next greater f16 */
		flipped--;
	return (uint32_t)flipped << 16 | 0xffffu;
}

uint32_t order_count(const uint32_t *keys, uint32_t n, uint32_t bound)
{
	uint32_t from = 0, to = n;

	while (from < to) {
		uint32_t mid = from + (to - from) / 2;

		if (keys[mid] <= bound)
			from = mid + 1;
		else
			to = mid;
	}
	return from;
}

double order_mass(const uint32_t *keys, uint32_t n, bool log_scores)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++) {
		float s = f16_to_f32(order_score(keys[i]));

		if (log_scores)
			s = expf(s);
		sum += s < 0 ? 0 : s > 1 ? 1 : s;
	}
	return sum;
}
