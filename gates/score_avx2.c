/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX2 and FMA: six tokens by one block of 16 rows, as 12 sums of 8 rows. A 32-byte load has 8 rows' weights
 * of two columns; shifted up they are the even column in f32, masked they are the odd one.
 */
#define LANES        8
#define SCORE_TARGET __attribute__((target("avx2,fma")))

#include <immintrin.h>

#include "gates/score_lanes.h"

#define TILE    6
#define COLUMNS 256u

SCORE_TARGET static void pack(const struct score_x *x, uint32_t token, uint32_t tokens,
	uint32_t first, uint32_t used, uint32_t columns, void *ret_panel)
{
	(void)columns;
	lanes_pack(x, token, tokens, first, used, COLUMNS, TILE, ret_panel);
}

SCORE_TARGET static inline void multiply_block(
	const uint16_t *w, const float *x, uint32_t columns, float *c, size_t c_stride, bool add)
{
	const __m256i odd = _mm256_set1_epi32((int)0xffff0000);
	__m256 sum[TILE][2];

#pragma GCC unroll 6
	for (unsigned t = 0; t < TILE; t++) {
		sum[t][0] = add ? _mm256_loadu_ps(c + t * c_stride) : _mm256_setzero_ps();
		sum[t][1] = add ? _mm256_loadu_ps(c + t * c_stride + 8) : _mm256_setzero_ps();
	}
	for (uint32_t k = 0; k < columns; k += 2, w += 2 * GATE_ROWS) {
#pragma GCC unroll 2
		for (unsigned half = 0; half < 2; half++) {
			__m256i pair = _mm256_load_si256((const __m256i *)w + half);
			__m256 w0 = _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16));
			__m256 w1 = _mm256_castsi256_ps(_mm256_and_si256(pair, odd));

#pragma GCC unroll 6
			for (unsigned t = 0; t < TILE; t++) {
				const float *p = x + t * COLUMNS + k;

				sum[t][half] =
					_mm256_fmadd_ps(w0, _mm256_broadcast_ss(p), sum[t][half]);
				sum[t][half] = _mm256_fmadd_ps(
					w1, _mm256_broadcast_ss(p + 1), sum[t][half]);
			}
		}
	}
#pragma GCC unroll 6
	for (unsigned t = 0; t < TILE; t++) {
		_mm256_storeu_ps(c + t * c_stride, sum[t][0]);
		_mm256_storeu_ps(c + t * c_stride + 8, sum[t][1]);
	}
}

SCORE_TARGET static void multiply(const uint16_t *w, unsigned blocks, size_t block_stride,
	const void *panel, uint32_t columns, float *c, size_t c_stride, bool add)
{
	for (unsigned b = 0; b < blocks; b++)
		multiply_block(
			w + b * block_stride, panel, columns, c + b * GATE_ROWS, c_stride, add);
}

const struct score_ops score_avx2 = {
	.tile = TILE,
	.columns = COLUMNS,
	.panel_bytes = sizeof(float) * TILE * COLUMNS,
	.pack = pack,
	.multiply = multiply,
	.fast_kvzip = lanes_fast_kvzip,
	.gelu = lanes_gelu_rows,
};
