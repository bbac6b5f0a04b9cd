/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing with AVX-512. Keys sort in a bitonic network of 16 vectors of 16: to merge two sorted halves, each key is
 * compared with its mirror image in the other half, then with the one half, a quarter, ... of the size away. All
 * comparisons put the smaller key in front, so that a mask says it all. Runs of more than 256 take the radix sort.
 *
 * Stores go around the caches: what is packed is read later, by others, and reading lines only to overwrite them
 * would cost as much as the copy itself.
 */
#include "daemon/cache/pack_kernels.h"

#include <math.h>
#include <string.h>

#ifdef __x86_64__
#include <immintrin.h>

#define AVX512  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi2")))
#define LANES   16u
#define VECTORS 16u

AVX512 static inline __mmask16 first_lanes(uint32_t n)
{
	return (__mmask16)_bzhi_u32(0xffff, n);
}

/* order_flip() of the lower halves of all lanes. */
AVX512 static inline __m512i flip(__m512i bits)
{
	__mmask16 positive = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x8000));

	return _mm512_mask_xor_epi32(bits, positive, bits, _mm512_set1_epi32(0x7fff));
}

AVX512 static bool keys_avx512(const float *scores, uint32_t n, uint32_t *ret_keys)
{
	const __m512 inf = _mm512_set1_ps(INFINITY), max = _mm512_set1_ps(65504.0f);
	const __m512i step = _mm512_set1_epi32(LANES), minus0 = _mm512_set1_epi32(0x8000);
	__m512i token = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
	__mmask16 bad = 0;

	for (uint32_t i = 0; i < n; i += LANES) {
		__mmask16 lanes = first_lanes(n - i < LANES ? n - i : LANES);
		__m512 s = _mm512_maskz_loadu_ps(lanes, scores + i);
		__m512i bits;

		bad |= _mm512_cmp_ps_mask(s, _mm512_sub_ps(_mm512_setzero_ps(), inf), _CMP_NGT_UQ);
		s = _mm512_mask_min_ps(s, _mm512_cmp_ps_mask(s, inf, _CMP_NEQ_UQ), s, max);
		s = _mm512_max_ps(s, _mm512_sub_ps(_mm512_setzero_ps(), max));
		bits = _mm512_cvtepu16_epi32(_mm512_cvtps_ph(s, _MM_FROUND_TO_NEAREST_INT));
		bits = _mm512_mask_mov_epi32(
			bits, _mm512_cmpeq_epi32_mask(bits, minus0), _mm512_setzero_si512());
		bits = _mm512_or_si512(_mm512_slli_epi32(flip(bits), 16), token);
		_mm512_mask_storeu_epi32(ret_keys + i, lanes, bits);
		token = _mm512_add_epi32(token, step);
	}
	return bad == 0;
}

/* Each lane with the one whose number is `lane ^ with`; the lanes of `high` keep the greater. */
AVX512 static inline __m512i exchange_lanes(__m512i v, uint32_t with, __mmask16 high)
{
	const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
	__m512i other =
		_mm512_permutexvar_epi32(_mm512_xor_si512(lane, _mm512_set1_epi32((int)with)), v);

	return _mm512_mask_max_epu32(_mm512_min_epu32(v, other), high, v, other);
}

/* Lanes whose number has the bit `distance`. */
static inline __mmask16 high_lanes(uint32_t distance)
{
	return distance == 8 ? 0xff00 : distance == 4 ? 0xf0f0 : distance == 2 ? 0xcccc : 0xaaaa;
}

AVX512 static inline __m512i reverse(__m512i v)
{
	return _mm512_permutexvar_epi32(
		_mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), v);
}

/* Merges pairs of sorted groups of half as many vectors. */
AVX512 static void merge_groups(__m512i *v, uint32_t vectors, uint32_t group)
{
	for (uint32_t i = 0; i < vectors; i++) {
		uint32_t j = i ^ (group - 1);
		__m512i mirror;

		if (j < i)
			continue;
		mirror = reverse(v[j]);
		v[j] = reverse(_mm512_max_epu32(v[i], mirror));
		v[i] = _mm512_min_epu32(v[i], mirror);
	}
	for (uint32_t d = group / 4; d; d /= 2)
		for (uint32_t i = 0; i < vectors; i++) {
			__m512i low;

			if (i & d)
				continue;
			low = _mm512_min_epu32(v[i], v[i + d]);
			v[i + d] = _mm512_max_epu32(v[i], v[i + d]);
			v[i] = low;
		}
}

AVX512 static void sort_avx512(uint32_t *keys, uint32_t n, uint32_t *scratch)
{
	uint32_t vectors = 1;
	__m512i v[VECTORS];

	if (n > LANES * VECTORS) {
		pack_kernels_plain.sort(keys, n, scratch);
		return;
	}
	while (vectors * LANES < n)
		vectors *= 2;
	for (uint32_t i = 0; i < vectors; i++) {
		uint32_t left = n > i * LANES ? n - i * LANES : 0;
		__m512i x = _mm512_mask_loadu_epi32(_mm512_set1_epi32(-1),
			first_lanes(left < LANES ? left : LANES), keys + i * LANES);

		x = exchange_lanes(x, 1, high_lanes(1));
		x = exchange_lanes(x, 3, high_lanes(2));
		x = exchange_lanes(x, 1, high_lanes(1));
		x = exchange_lanes(x, 7, high_lanes(4));
		x = exchange_lanes(x, 2, high_lanes(2));
		x = exchange_lanes(x, 1, high_lanes(1));
		x = exchange_lanes(x, 15, high_lanes(8));
		x = exchange_lanes(x, 4, high_lanes(4));
		x = exchange_lanes(x, 2, high_lanes(2));
		v[i] = exchange_lanes(x, 1, high_lanes(1));
	}
	for (uint32_t group = 2; group <= vectors; group *= 2) {
		merge_groups(v, vectors, group);
		for (uint32_t i = 0; i < vectors; i++) {
			__m512i x = exchange_lanes(v[i], 8, high_lanes(8));

			x = exchange_lanes(x, 4, high_lanes(4));
			x = exchange_lanes(x, 2, high_lanes(2));
			v[i] = exchange_lanes(x, 1, high_lanes(1));
		}
	}
	for (uint32_t i = 0; i * LANES < n; i++)
		_mm512_mask_storeu_epi32(keys + i * LANES,
			first_lanes(n - i * LANES < LANES ? n - i * LANES : LANES), v[i]);
}

AVX512 static void tokens_avx512(const uint32_t *keys, uint32_t n, uint16_t *ret)
{
	for (uint32_t i = 0; i < n; i += LANES) {
		__mmask16 lanes = first_lanes(n - i < LANES ? n - i : LANES);

		_mm512_mask_cvtepi32_storeu_epi16(
			ret + i, lanes, _mm512_maskz_loadu_epi32(lanes, keys + i));
	}
}

AVX512 static inline __m512i score_bits(const uint32_t *keys, __mmask16 lanes)
{
	return flip(_mm512_srli_epi32(_mm512_maskz_loadu_epi32(lanes, keys), 16));
}

AVX512 static void scores_avx512(const uint32_t *keys, uint32_t n, uint16_t *ret)
{
	for (uint32_t i = 0; i < n; i += LANES) {
		__mmask16 lanes = first_lanes(n - i < LANES ? n - i : LANES);

		_mm512_mask_cvtepi32_storeu_epi16(ret + i, lanes, score_bits(keys + i, lanes));
	}
}

AVX512 static double mass_avx512(const uint32_t *keys, uint32_t n)
{
	const __m512 zero = _mm512_setzero_ps(), one = _mm512_set1_ps(1);
	__m512 sum = zero;

	for (uint32_t i = 0; i < n; i += LANES) {
		__mmask16 lanes = first_lanes(n - i < LANES ? n - i : LANES);
		__m512 s = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(score_bits(keys + i, lanes)));

		s = _mm512_min_ps(_mm512_max_ps(s, zero), one);
		sum = _mm512_mask_add_ps(sum, lanes, sum, s);
	}
	return (double)_mm512_reduce_add_ps(sum);
}

AVX512 static void rows_avx512(uint8_t *to, const uint8_t *base, size_t row, const uint32_t *keys,
	uint32_t n, const uint8_t *ahead)
{
	const size_t whole = row & ~(size_t)63;
	const __mmask64 rest = _bzhi_u64(~0ull, (uint32_t)(row - whole));

	for (uint32_t i = 0; i < n; i++, to += row) {
		const uint8_t *from = base + (uint16_t)keys[i] * row;

		for (size_t at = 0; at < whole; at += 64)
			_mm512_storeu_si512(to + at, _mm512_loadu_si512(from + at));
		if (rest)
			_mm512_mask_storeu_epi8(
				to + whole, rest, _mm512_maskz_loadu_epi8(rest, from + whole));
		if (ahead)
			for (size_t at = 0; at < row; at += 64)
				_mm_prefetch((const char *)ahead + i * row + at, _MM_HINT_T1);
	}
}

AVX512 static void store_avx512(uint8_t *to, const uint8_t *from, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += 64)
		_mm512_stream_si512((void *)(to + at), _mm512_load_si512(from + at));
}

static void store_end_avx512(void)
{
	_mm_sfence();
}

static bool runs_here(void)
{
	return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
		__builtin_cpu_supports("bmi2");
}

const struct pack_kernels pack_kernels_avx512 = {
	.name = "AVX-512",
	.runs_here = runs_here,
	.keys = keys_avx512,
	.sort = sort_avx512,
	.tokens = tokens_avx512,
	.scores = scores_avx512,
	.mass = mass_avx512,
	.rows = rows_avx512,
	.store = store_avx512,
	.store_end = store_end_avx512,
};

#endif
