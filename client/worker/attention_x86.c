/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The vector step, compiled for AVX2 and for AVX-512 whatever the rest is compiled for;
 * attention.c calls what the processor has. Query counts are what fills the registers: 2 x 4 sums
 * of 16, and 4 x 4 of 32.
 */
#include "client/worker/attention_private.h"

#if defined(__x86_64__)
#include <immintrin.h>
#include <string.h>

#include "proto/shape.h"

#define LANES   8
#define QUERIES 2
#define TARGET  __attribute__((target("avx2,fma,f16c")))
#define NAME(x) x##_avx2
static inline TARGET __m256 from_f16_avx2(const uint16_t *p)
{
	return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)p));
}
static inline TARGET __m256 from_bf16_avx2(const uint16_t *p)
{
	const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i_u *)p));

	return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
#include "client/worker/attention_vector.h"
#undef LANES
#undef QUERIES
#undef TARGET
#undef NAME

#define LANES   16
#define QUERIES 4
#define TARGET  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")))
#define NAME(x) x##_avx512
static inline TARGET __m512 from_f16_avx512(const uint16_t *p)
{
	return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i_u *)p));
}
static inline TARGET __m512 from_bf16_avx512(const uint16_t *p)
{
	const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i_u *)p));

	return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
#include "client/worker/attention_vector.h"

#endif
