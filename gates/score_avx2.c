/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX2 and FMA: six tokens by one block of 16 rows, as 12 sums of 8 rows: with two vectors of weights and one value
 * of x they fill the 16 registers. For each column, two loads of weights and six of x feed 12 multiply-adds,
 * which leaves the two load ports time to spare; weights that were still bf16 would have to be taken apart
 * again for every six tokens, by the ports that multiply. So they are widened once for all tokens of a chunk, 16
 * rows by 256 columns at a time: 16 KiB, half of the first-level cache.
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

/* 32 bytes are 8 rows of two columns: shifted up they are the even column in f32, masked the odd one. */
SCORE_TARGET static void widen(const uint16_t *w, uint32_t columns, float *ret)
{
	const __m256i odd = _mm256_set1_epi32((int)0xffff0000);

	for (uint32_t k = 0; k < columns; k += 2, w += 2 * GATE_ROWS, ret += 2 * GATE_ROWS) {
		for (unsigned half = 0; half < 2; half++) {
			__m256i pair = _mm256_load_si256((const __m256i *)w + half);
			float *to = ret + half * 8;

			_mm256_store_ps(to, _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)));
			_mm256_store_ps(
				to + GATE_ROWS, _mm256_castsi256_ps(_mm256_and_si256(pair, odd)));
		}
	}
}

SCORE_TARGET static void multiply(const struct score_w *w, unsigned blocks, const void *panel,
	uint32_t columns, float *c, size_t c_stride, bool add)
{
	const float *weights = w->blocks, *x = panel;
	__m256 sum[TILE][2];

	(void)blocks; /* always one */
#pragma GCC unroll 6
	for (unsigned t = 0; t < TILE; t++) {
		sum[t][0] = add ? _mm256_loadu_ps(c + t * c_stride) : _mm256_setzero_ps();
		sum[t][1] = add ? _mm256_loadu_ps(c + t * c_stride + 8) : _mm256_setzero_ps();
	}
#pragma GCC unroll 2
	for (uint32_t k = 0; k < columns; k++, weights += GATE_ROWS) {
		__m256 w0 = _mm256_load_ps(weights), w1 = _mm256_load_ps(weights + 8);

#pragma GCC unroll 6
		for (unsigned t = 0; t < TILE; t++) {
			__m256 value = _mm256_broadcast_ss(x + t * COLUMNS + k);

			sum[t][0] = _mm256_fmadd_ps(w0, value, sum[t][0]);
			sum[t][1] = _mm256_fmadd_ps(w1, value, sum[t][1]);
		}
	}
#pragma GCC unroll 6
	for (unsigned t = 0; t < TILE; t++) {
		_mm256_storeu_ps(c + t * c_stride, sum[t][0]);
		_mm256_storeu_ps(c + t * c_stride + 8, sum[t][1]);
	}
}

const struct score_ops score_avx2 = {
	.tile = TILE,
	.columns = COLUMNS,
	.blocks = 1,
	.panel_bytes = sizeof(float) * TILE * COLUMNS,
	.pack = pack,
	.widen = widen,
	.multiply = multiply,
	.fast_kvzip = lanes_fast_kvzip,
	.gelu = lanes_gelu_rows,
};
