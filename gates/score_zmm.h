/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score_zmm: the frame of a product of 12 tokens by one or two blocks of 16 rows, 24 sums in registers. Included
 * once by each path that adds its own kind of products, after it says how (add_products).
 * Thread: any, pure. Locks: none. Blocks: never. Errors: none.
 *
 * Tokens and blocks are constants wherever the sums are touched, so that these are registers and no array.
 */
#ifndef KVGATE_GATES_SCORE_ZMM_H
#define KVGATE_GATES_SCORE_ZMM_H

#include <immintrin.h>

#include "gates/score.h"

#define TILE 12

/* sum[token][block] += panel times weights, over all columns: what the path that includes this defines. */
SCORE_TARGET __attribute__((always_inline)) static inline void add_products(const struct score_w *w,
	const unsigned blocks, const void *panel, uint32_t columns, __m512 sum[TILE][2]);

SCORE_TARGET __attribute__((always_inline)) static inline void multiply_blocks(
	const struct score_w *w, const unsigned blocks, const void *panel, uint32_t columns,
	float *c, size_t c_stride, bool add)
{
	__m512 sum[TILE][2];

#pragma GCC unroll 12
	for (unsigned t = 0; t < TILE; t++)
#pragma GCC unroll 2
		for (unsigned b = 0; b < blocks; b++)
			sum[t][b] = add ? _mm512_loadu_ps(c + t * c_stride + b * GATE_ROWS)
					: _mm512_setzero_ps();
	add_products(w, blocks, panel, columns, sum);
#pragma GCC unroll 12
	for (unsigned t = 0; t < TILE; t++)
#pragma GCC unroll 2
		for (unsigned b = 0; b < blocks; b++)
			_mm512_storeu_ps(c + t * c_stride + b * GATE_ROWS, sum[t][b]);
}

SCORE_TARGET static void multiply(const struct score_w *w, unsigned blocks, const void *panel,
	uint32_t columns, float *c, size_t c_stride, bool add)
{
	if (blocks == 2)
		multiply_blocks(w, 2, panel, columns, c, c_stride, add);
	else
		multiply_blocks(w, 1, panel, columns, c, c_stride, add);
}

#endif
