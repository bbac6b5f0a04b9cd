/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plain kernels. Runs are short (256 pairs) and keys have 16 significant bits, so a stable radix sort in two
 * passes of eight bits is the plain way; tokens come in ascending and stay so among equals.
 */
#include "daemon/cache/pack_kernels.h"

#include <math.h>
#include <string.h>

#include "daemon/cache/pack_order.h"
#include "proto/shape.h"

#define F16_MAX 65504.0f

static bool keys_plain(const float *scores, uint32_t n, uint32_t *ret_keys)
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

static void radix_pass(
	const uint32_t *from, uint32_t *to, uint32_t n, unsigned shift, uint32_t *count)
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

static void sort_plain(uint32_t *keys, uint32_t n, uint32_t *scratch)
{
	uint32_t low[256] = {0}, high[256] = {0};

	for (uint32_t i = 0; i < n; i++) {
		low[keys[i] >> 16 & 0xff]++;
		high[keys[i] >> 24]++;
	}
	radix_pass(keys, scratch, n, 16, low);
	radix_pass(scratch, keys, n, 24, high);
}

static void tokens_plain(const uint32_t *keys, uint32_t n, uint16_t *ret)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = order_token(keys[i]);
}

static void scores_plain(const uint32_t *keys, uint32_t n, uint16_t *ret)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = order_score(keys[i]);
}

static double mass_plain(const uint32_t *keys, uint32_t n)
{
	double sum = 0;

	for (uint32_t i = 0; i < n; i++) {
		float s = f16_to_f32(order_score(keys[i]));

		sum += s < 0 ? 0 : s > 1 ? 1 : s;
	}
	return sum;
}

static void rows_plain(uint8_t *to, const uint8_t *base, size_t row, const uint32_t *keys,
	uint32_t n, const uint8_t *ahead)
{
	(void)ahead; /* the processor's own prefetching has to do */
	for (uint32_t i = 0; i < n; i++)
		memcpy(to + i * row, base + order_token(keys[i]) * row, row);
}

static void store_plain(uint8_t *to, const uint8_t *from, size_t bytes)
{
	memcpy(to, from, bytes);
}

static void store_end_plain(void)
{
}

static bool runs_here(void)
{
	return true;
}

const struct pack_kernels pack_kernels_plain = {
	.name = "plain",
	.runs_here = runs_here,
	.keys = keys_plain,
	.sort = sort_plain,
	.tokens = tokens_plain,
	.scores = scores_plain,
	.mass = mass_plain,
	.rows = rows_plain,
	.store = store_plain,
	.store_end = store_end_plain,
};

const struct pack_kernels *pack_kernels_best(unsigned n)
{
	static const struct pack_kernels *const all[] = {
#ifdef __x86_64__
		&pack_kernels_avx512,
		&pack_kernels_vpclmul,
		&pack_kernels_avx2,
#endif
		&pack_kernels_plain,
	};

	for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
		if (all[i]->runs_here() && n-- == 0)
			return all[i];
	return NULL;
}
