/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packing with AVX2. Keys sort in a bitonic network of up to 32 vectors of 8, numbered down the columns: lane by lane,
 * and in a lane vector by vector. So of 36 steps all but 6 compare whole vectors and move nothing between lanes:
 *
 *	columns		every lane sorts its own 32 keys; in what order they came does not matter
 *	lanes		sorted lanes are merged 2, 4, 8 at a time: each key is compared with its mirror image in the
 *			other half, then with the one half, a quarter, ... of the size away
 *	transpose	columns become rows, as they are stored
 *
 * All comparisons put the smaller key in front. Runs of more than 256 take the radix sort.
 *
 * Rows of whole lines go from staging to their plane through registers, and are folded into the checksum on the way:
 * four remainders of 128 bits stand for all that came before, 64 bytes on they are what carryless products with
 * x^(512+64) and x^512 make of them (Gopal et al., "Fast CRC Computation Using PCLMULQDQ", Intel 2009). That needs
 * VPCLMULQDQ; without it rows go through a buffer.
 */
#include "daemon/cache/pack_kernels.h"

#ifdef __x86_64__
#include <cpuid.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "daemon/cache/pack_order.h"

#define AVX2        __attribute__((target("avx2,f16c")))
#define AVX2_INLINE AVX2 __attribute__((always_inline)) static inline
#define FOLD        __attribute__((target("avx2,f16c,sse4.2,pclmul,vpclmulqdq")))
#define FOLD_INLINE FOLD __attribute__((always_inline)) static inline
#define LANES       8u
#define VECTORS     32u
#define GROUP       8u /* vectors that fit the registers together */
#define LINE        64u

/* All ones in the first n lanes (n may be more than there are). */
AVX2_INLINE __m256i first_lanes(uint32_t n)
{
	const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);

	return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane);
}

AVX2_INLINE __m256i load_first(const uint32_t *from, uint32_t n)
{
	if (n >= LANES)
		return _mm256_loadu_si256((const void *)from);
	return _mm256_maskload_epi32((const int *)from, first_lanes(n));
}

AVX2_INLINE void store_first(uint32_t *to, uint32_t n, __m256i v)
{
	if (n >= LANES)
		_mm256_storeu_si256((void *)to, v);
	else
		_mm256_maskstore_epi32((int *)to, first_lanes(n), v);
}

/* order_flip() of 16-bit lanes. */
AVX2_INLINE __m128i flip(__m128i bits)
{
	__m128i positive = _mm_cmpgt_epi16(bits, _mm_set1_epi16(-1));

	return _mm_xor_si128(bits, _mm_srli_epi16(positive, 1));
}

AVX2 static bool keys_avx2(const float *scores, uint32_t n, uint32_t *ret_keys)
{
	const __m256 inf = _mm256_set1_ps(INFINITY), minus_inf = _mm256_set1_ps(-INFINITY);
	const __m256 max = _mm256_set1_ps(65504.0f), min = _mm256_set1_ps(-65504.0f);
	const __m128i minus0 = _mm_set1_epi16(-0x8000);
	__m256i token = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	__m256 bad = _mm256_setzero_ps();

	for (uint32_t i = 0; i < n; i += LANES) {
		/* lanes beyond the last are 0 */
		__m256i raw = load_first((const uint32_t *)scores + i, n - i);
		__m256 s = _mm256_castsi256_ps(raw);
		__m128i bits;

		bad = _mm256_or_ps(bad, _mm256_cmp_ps(s, minus_inf, _CMP_NGT_UQ));
		s = _mm256_blendv_ps(_mm256_min_ps(s, max), inf, _mm256_cmp_ps(s, inf, _CMP_EQ_OQ));
		s = _mm256_max_ps(s, min);
		bits = _mm256_cvtps_ph(s, _MM_FROUND_TO_NEAREST_INT);
		bits = flip(_mm_andnot_si128(_mm_cmpeq_epi16(bits, minus0), bits));
		raw = _mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
		store_first(ret_keys + i, n - i, _mm256_or_si256(raw, token));
		token = _mm256_add_epi32(token, _mm256_set1_epi32(LANES));
	}
	return _mm256_testz_ps(bad, bad);
}

/* ---- sort ---------------------------------------------------------------------------------- */

AVX2_INLINE void exchange(__m256i *a, __m256i *b)
{
	__m256i low = _mm256_min_epu32(*a, *b);

	*b = _mm256_max_epu32(*a, *b);
	*a = low;
}

/* Into registers, and back: the loops that use these are unrolled. */
AVX2_INLINE void copy_group(__m256i *r, const __m256i *v)
{
#pragma GCC unroll 8
	for (unsigned i = 0; i < GROUP; i++)
		r[i] = v[i];
}

/* Eight vectors, column by column: the network of 19 comparisons. */
AVX2 static void sort_group(__m256i *v)
{
	static const uint8_t network[19][2] = {{0, 2}, {1, 3}, {4, 6}, {5, 7}, {0, 4}, {1, 5},
		{2, 6}, {3, 7}, {0, 1}, {2, 3}, {4, 5}, {6, 7}, {2, 4}, {3, 5}, {1, 4}, {3, 6},
		{1, 2}, {3, 4}, {5, 6}};
	__m256i r[GROUP];

	copy_group(r, v);
#pragma GCC unroll 19
	for (unsigned i = 0; i < 19; i++)
		exchange(&r[network[i][0]], &r[network[i][1]]);
	copy_group(v, r);
}

/* The last three steps of a merge: vectors 4, 2, 1 apart. */
AVX2 static void merge_group(__m256i *v)
{
	__m256i r[GROUP];

	copy_group(r, v);
#pragma GCC unroll 3
	for (unsigned d = GROUP / 2; d; d /= 2)
#pragma GCC unroll 8
		for (unsigned i = 0; i < GROUP; i++)
			if (!(i & d))
				exchange(&r[i], &r[i | d]);
	copy_group(v, r);
}

/* The steps of a merge from vectors `distance` apart down to neighbours. */
AVX2 static void merge_vectors(__m256i *v, uint32_t vectors, uint32_t distance)
{
	for (uint32_t d = distance; d >= GROUP; d /= 2)
		for (uint32_t at = 0; at < vectors; at += 2 * d)
			for (uint32_t i = at; i < at + d; i++)
				exchange(&v[i], &v[i + d]);
	for (uint32_t at = 0; at < vectors; at += GROUP)
		merge_group(v + at);
}

AVX2 static void sort_columns(__m256i *v, uint32_t vectors)
{
	for (uint32_t at = 0; at < vectors; at += GROUP)
		sort_group(v + at);
	for (uint32_t size = 2 * GROUP; size <= vectors; size *= 2) {
		for (uint32_t at = 0; at < vectors; at += size)
			for (uint32_t i = 0; i < size / 2; i++)
				exchange(&v[at + i], &v[at + size - 1 - i]);
		merge_vectors(v, vectors, size / 4);
	}
}

/* All ones in the lanes whose number has this bit. */
AVX2_INLINE __m256i lanes_with(uint32_t bit)
{
	const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	__m256i bits = _mm256_set1_epi32((int)bit);

	return _mm256_cmpeq_epi32(_mm256_and_si256(lane, bits), bits);
}

/* Merges pairs of sorted groups of half as many lanes. */
AVX2 static void merge_lanes(__m256i *v, uint32_t vectors, uint32_t group)
{
	const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
	__m256i mirror = _mm256_xor_si256(lane, _mm256_set1_epi32((int)group - 1));
	__m256i high = lanes_with(group / 2);

	for (uint32_t i = 0; i < vectors / 2; i++) {
		__m256i *a = &v[i], *b = &v[vectors - 1 - i];
		__m256i other = _mm256_permutevar8x32_epi32(*b, mirror);
		__m256i low = _mm256_min_epu32(*a, other), top = _mm256_max_epu32(*a, other);

		*a = _mm256_blendv_epi8(low, top, high);
		*b = _mm256_permutevar8x32_epi32(_mm256_blendv_epi8(top, low, high), mirror);
	}
	for (uint32_t d = group / 4; d; d /= 2) {
		__m256i with = _mm256_xor_si256(lane, _mm256_set1_epi32((int)d));

		high = lanes_with(d);
		for (uint32_t i = 0; i < vectors; i++) {
			__m256i other = _mm256_permutevar8x32_epi32(v[i], with);

			v[i] = _mm256_blendv_epi8(
				_mm256_min_epu32(v[i], other), _mm256_max_epu32(v[i], other), high);
		}
	}
	merge_vectors(v, vectors, vectors / 2);
}

/* Lane l of v[i] becomes lane i of v[l]. */
AVX2 static void transpose_group(__m256i *v)
{
	__m256i a[GROUP], b[GROUP];

#pragma GCC unroll 4
	for (unsigned i = 0; i < GROUP; i += 2) { /* pairs of v[i] and v[i + 1] */
		a[i] = _mm256_unpacklo_epi32(v[i], v[i + 1]);
		a[i + 1] = _mm256_unpackhi_epi32(v[i], v[i + 1]);
	}
#pragma GCC unroll 2
	for (unsigned i = 0; i < GROUP; i += 4) { /* fours */
		b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
		b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
		b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
		b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
	}
#pragma GCC unroll 4
	for (unsigned i = 0; i < GROUP / 2; i++) {
		v[i] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x20);
		v[i + 4] = _mm256_permute2x128_si256(b[i], b[i + 4], 0x31);
	}
}

AVX2 static void sort_avx2(uint32_t *keys, uint32_t n, uint32_t *scratch)
{
	uint32_t vectors = GROUP;
	__m256i v[VECTORS];

	if (n > LANES * VECTORS) {
		pack_kernels_plain.sort(keys, n, scratch);
		return;
	}
	while (vectors * LANES < n)
		vectors *= 2;
	for (uint32_t i = 0; i < vectors; i++) {
		uint32_t at = i * LANES, left = n > at ? n - at : 0;

		v[i] = _mm256_set1_epi32(-1); /* behind all keys */
		if (left)
			v[i] = _mm256_blendv_epi8(
				v[i], load_first(keys + at, left), first_lanes(left));
	}
	sort_columns(v, vectors);
	for (uint32_t group = 2; group <= LANES; group *= 2)
		merge_lanes(v, vectors, group);
	for (uint32_t i = 0; i < vectors; i += GROUP) {
		transpose_group(v + i);
		for (uint32_t l = 0; l < LANES; l++) {
			uint32_t at = l * vectors + i;

			if (at < n)
				store_first(keys + at, n - at, v[i + l]);
		}
	}
}

/* ---- tokens, scores, mass ------------------------------------------------------------------ */

/* Lower halves of the lanes. */
AVX2_INLINE __m128i lower_halves(__m256i v)
{
	v = _mm256_and_si256(v, _mm256_set1_epi32(0xffff));
	return _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
}

AVX2_INLINE __m128i score_bits(__m256i keys)
{
	return flip(lower_halves(_mm256_srli_epi32(keys, 16)));
}

AVX2 static void tokens_avx2(const uint32_t *keys, uint32_t n, uint16_t *ret)
{
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		_mm_storeu_si128((void *)(ret + i), lower_halves(load_first(keys + i, LANES)));
	for (; i < n; i++)
		ret[i] = order_token(keys[i]);
}

AVX2 static void scores_avx2(const uint32_t *keys, uint32_t n, uint16_t *ret)
{
	uint32_t i = 0;

	for (; i + LANES <= n; i += LANES)
		_mm_storeu_si128((void *)(ret + i), score_bits(load_first(keys + i, LANES)));
	for (; i < n; i++)
		ret[i] = order_score(keys[i]);
}

AVX2 static double mass_avx2(const uint32_t *keys, uint32_t n)
{
	const __m256 zero = _mm256_setzero_ps(), one = _mm256_set1_ps(1);
	__m256 sum = zero;
	__m128 half;

	for (uint32_t i = 0; i < n; i += LANES) {
		__m256 s = _mm256_cvtph_ps(score_bits(load_first(keys + i, n - i)));

		/* lanes beyond the last are key 0, which is NaN, which max() makes 0 */
		s = _mm256_min_ps(_mm256_max_ps(s, zero), one);
		sum = _mm256_add_ps(sum, s);
	}
	half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
	half = _mm_add_ps(half, _mm_movehl_ps(half, half));
	return (double)_mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* ---- rows ---------------------------------------------------------------------------------- */

AVX2_INLINE __m256i load(const uint8_t *from)
{
	return _mm256_loadu_si256((const void *)from);
}

AVX2_INLINE void prefetch(const uint8_t *ahead, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += LINE)
		_mm_prefetch((const char *)ahead + at, _MM_HINT_T0);
}

AVX2 static void rows_avx2(uint8_t *to, const uint8_t *base, size_t row, const uint32_t *keys,
	uint32_t n, const uint8_t *ahead)
{
	const size_t vector = sizeof(__m256i);

	for (uint32_t i = 0; i < n; i++, to += row) {
		const uint8_t *from = base + order_token(keys[i]) * row;

		if (row < vector) {
			memcpy(to, from, row);
		} else { /* the last vector lies over the one before */
			for (size_t at = 0; at < row - vector; at += vector)
				_mm256_storeu_si256((void *)(to + at), load(from + at));
			_mm256_storeu_si256((void *)(to + row - vector), load(from + row - vector));
		}
		if (ahead)
			prefetch(ahead + i * row, row);
	}
}

AVX2 static void store_avx2(uint8_t *to, const uint8_t *from, size_t bytes)
{
	for (size_t at = 0; at < bytes; at += sizeof(__m256i))
		_mm256_stream_si256((void *)(to + at), load(from + at));
}

static void store_end_avx2(void)
{
	_mm_sfence();
}

/* ---- rows with their checksum -------------------------------------------------------------- */

/*
 * What two remainders of 128 bits are, 64 bytes on, and the data there. Bits are reflected, which multiplies by x^33 on
 * the way: the constants are x^543 and x^479, modulo the Castagnoli polynomial.
 */
FOLD_INLINE __m256i fold(__m256i crc, __m256i data)
{
	const __m256i by = _mm256_setr_epi64x(0x740eef02, 0x9e4addf8, 0x740eef02, 0x9e4addf8);
	__m256i low = _mm256_clmulepi64_epi128(crc, by, 0x00);
	__m256i high = _mm256_clmulepi64_epi128(crc, by, 0x11);

	return _mm256_xor_si256(_mm256_xor_si256(low, high), data);
}

FOLD_INLINE uint32_t remainder_of(__m256i a, __m256i b)
{
	uint64_t crc = 0;

	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(a, 0));
	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(a, 1));
	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(a, 2));
	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(a, 3));
	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(b, 0));
	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(b, 1));
	crc = _mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(b, 2));
	return (uint32_t)_mm_crc32_u64(crc, (uint64_t)_mm256_extract_epi64(b, 3));
}

FOLD_INLINE uint32_t lines(uint32_t crc, uint8_t *to, const uint8_t *base, size_t row,
	const uint32_t *keys, uint32_t n, const uint8_t *ahead, bool stream)
{
	const uint8_t *next = ahead ? ahead : base; /* as many lines as are copied */
	const size_t step = ahead ? LINE : 0;
	__m256i a = _mm256_setzero_si256(), b = a;
	__m256i start = _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)~crc));

	if (n == 0 || row == 0)
		return crc;
	for (uint32_t i = 0; i < n; i++) {
		const uint8_t *from = base + (keys ? order_token(keys[i]) : i) * row;

		for (size_t at = 0; at < row; at += LINE, to += LINE, next += step) {
			__m256i x = load(from + at), y = load(from + at + LINE / 2);

			if (stream) {
				_mm256_stream_si256((void *)to, x);
				_mm256_stream_si256((void *)(to + LINE / 2), y);
			} else {
				_mm256_store_si256((void *)to, x);
				_mm256_store_si256((void *)(to + LINE / 2), y);
			}
			a = fold(a, _mm256_xor_si256(x, start));
			b = fold(b, y);
			start = _mm256_setzero_si256();
			_mm_prefetch((const char *)next, _MM_HINT_T0);
		}
	}
	return ~remainder_of(a, b);
}

FOLD static uint32_t lines_avx2(uint32_t crc, uint8_t *to, const uint8_t *base, size_t row,
	const uint32_t *keys, uint32_t n, const uint8_t *ahead, bool stream)
{
	return stream ? lines(crc, to, base, row, keys, n, ahead, true)
		      : lines(crc, to, base, row, keys, n, ahead, false);
}

static bool has_avx2(void)
{
	unsigned a, b, c, d; /* not every compiler knows F16C by name */

	return __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}

static bool has_vpclmul(void)
{
	return has_avx2() && __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") &&
		__builtin_cpu_supports("vpclmulqdq");
}

const struct pack_kernels pack_kernels_avx2 = {
	.name = "AVX2",
	.runs_here = has_avx2,
	.keys = keys_avx2,
	.sort = sort_avx2,
	.tokens = tokens_avx2,
	.scores = scores_avx2,
	.mass = mass_avx2,
	.rows = rows_avx2,
	.store = store_avx2,
	.store_end = store_end_avx2,
};

const struct pack_kernels pack_kernels_vpclmul = {
	.name = "AVX2 and VPCLMULQDQ",
	.runs_here = has_vpclmul,
	.keys = keys_avx2,
	.sort = sort_avx2,
	.tokens = tokens_avx2,
	.scores = scores_avx2,
	.mass = mass_avx2,
	.rows = rows_avx2,
	.lines = lines_avx2,
	.store = store_avx2,
	.store_end = store_end_avx2,
};

#endif
