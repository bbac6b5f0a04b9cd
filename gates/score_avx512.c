/* SPDX-License-Identifier: Apache-2.0 */
/*
 * AVX-512: twelve tokens by two blocks of 16 rows, 24 sums in registers. A 64-byte load has 16 rows' weights of
 * two columns in bf16; shifted up they are the even column in f32, masked they are the odd one. Wide weights are f32
 * already.
 */
#define LANES        16
#define SCORE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))

#include "gates/score_lanes.h"
#include "gates/score_zmm.h"

#define COLUMNS 256u

SCORE_TARGET static void pack(const struct score_x *x, uint32_t token, uint32_t tokens,
	uint32_t first, uint32_t used, uint32_t columns, void *ret_panel)
{
	(void)columns;
	lanes_pack(x, token, tokens, first, used, COLUMNS, TILE, ret_panel);
}

/* Two columns of 16 rows' weights. */
SCORE_TARGET __attribute__((always_inline)) static inline void two_columns(
	const char *weights, const bool wide, __m512 *ret_even, __m512 *ret_odd)
{
	if (wide) {
		*ret_even = _mm512_load_ps(weights);
		*ret_odd = _mm512_load_ps(weights + sizeof(__m512));
	} else {
		const __m512i odd = _mm512_set1_epi32((int)0xffff0000);
		__m512i pair = _mm512_load_si512(weights);

		*ret_even = _mm512_castsi512_ps(_mm512_slli_epi32(pair, 16));
		*ret_odd = _mm512_castsi512_ps(_mm512_and_si512(pair, odd));
	}
}

SCORE_TARGET __attribute__((always_inline)) static inline void add_f32_products(
	const struct score_w *w, const unsigned blocks, const bool wide, const float *x,
	uint32_t columns, __m512 sum[TILE][2])
{
	const char *weights = w->blocks;
	const size_t step = wide ? 2 * sizeof(__m512) : sizeof(__m512i);

	for (uint32_t k = 0; k < columns; k += 2, weights += step) {
		__m512 w0[2], w1[2];

#pragma GCC unroll 2
		for (unsigned b = 0; b < blocks; b++)
			two_columns(weights + b * w->next, wide, &w0[b], &w1[b]);
#pragma GCC unroll 12
		for (unsigned t = 0; t < TILE; t++) {
			__m512 x0 = _mm512_set1_ps(x[t * COLUMNS + k]);
			__m512 x1 = _mm512_set1_ps(x[t * COLUMNS + k + 1]);

#pragma GCC unroll 2
			for (unsigned b = 0; b < blocks; b++) {
				sum[t][b] = _mm512_fmadd_ps(w0[b], x0, sum[t][b]);
				sum[t][b] = _mm512_fmadd_ps(w1[b], x1, sum[t][b]);
			}
		}
	}
}

SCORE_TARGET __attribute__((always_inline)) static inline void add_products(const struct score_w *w,
	const unsigned blocks, const void *panel, uint32_t columns, __m512 sum[TILE][2])
{
	if (w->wide)
		add_f32_products(w, blocks, true, panel, columns, sum);
	else
		add_f32_products(w, blocks, false, panel, columns, sum);
}

const struct score_ops score_avx512 = {
	.tile = TILE,
	.columns = COLUMNS,
	.blocks = 2,
	.panel_bytes = sizeof(float) * TILE * COLUMNS,
	.pack = pack,
	.multiply = multiply,
	.fast_kvzip = lanes_fast_kvzip,
	.gelu = lanes_gelu_rows,
};
