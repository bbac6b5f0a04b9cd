/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Products of bf16 pairs that add up in f32: AVX-512's vdpbf16ps and AMX's tdpbf16ps. Packed weights are
 * their operand as they lie. A panel is bf16; f32 hidden states are rounded on the way in.
 *
 *     AVX-512 BF16   panel [12 tokens][columns]; 12 tokens by two blocks of rows, 24 sums
 *     AMX            panel [columns / 32][2][16 tokens][32]: each [16][32] is one tile of 1 KiB, as are 32
 *                    columns of a block of weights; 2 by 2 tiles of sums, two tiles of each operand
 */
#define LANES        16
#define SCORE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16")))

#include <string.h>

#include "gates/score_lanes.h"
#include "gates/score_zmm.h"

#define AMX_TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16")))

#define COLUMNS 512u

#define AMX_TILE    32u /* tokens */
#define AMX_COLUMNS 1024u
#define TILE_VALUES 512u /* bf16 in one AMX tile */
#define TILE_BYTES  (TILE_VALUES * sizeof(uint16_t))

/* Copies up to 32 columns of one row, zero where there are none. */
SCORE_TARGET static inline void copy_columns(
	const struct score_x *x, size_t at, uint32_t n, uint16_t *ret)
{
	__mmask32 mask = n >= 32 ? 0xffffffffu : (1u << n) - 1;

	if (x->dtype == KVG_DTYPE_BF16) {
		const uint16_t *from = (const uint16_t *)x->data + at;

		_mm512_storeu_si512(ret, _mm512_maskz_loadu_epi16(mask, from));
	} else {
		const float *from = (const float *)x->data + at;
		__m512 low = _mm512_maskz_loadu_ps((__mmask16)mask, from);
		__m512 high = _mm512_maskz_loadu_ps((__mmask16)(mask >> 16), from + 16);

		_mm512_storeu_si512(ret, (__m512i)_mm512_cvtne2ps_pbh(high, low));
	}
}

SCORE_TARGET static void pack(const struct score_x *x, uint32_t token, uint32_t tokens,
	uint32_t first, uint32_t used, uint32_t columns, void *ret_panel)
{
	uint16_t *panel = ret_panel;

	for (uint32_t t = 0; t < TILE; t++) {
		size_t row = (token + t) * x->stride + first;

		for (uint32_t k = 0; k < columns; k += 32)
			copy_columns(x, row + k, t < tokens && k < used ? used - k : 0,
				panel + t * COLUMNS + k);
	}
}

SCORE_TARGET static inline __m512bh pair_of(const uint16_t *x)
{
	int pair;

	memcpy(&pair, x, sizeof(pair));
	return (__m512bh)_mm512_set1_epi32(pair);
}

SCORE_TARGET __attribute__((always_inline)) static inline void add_products(const struct score_w *w,
	const unsigned blocks, const void *panel, uint32_t columns, __m512 sum[TILE][2])
{
	const char *at = w->blocks;
	const uint16_t *x = panel;

	for (uint32_t k = 0; k < columns; k += 2, at += sizeof(__m512i)) {
		__m512bh weights[2];

#pragma GCC unroll 2
		for (unsigned b = 0; b < blocks; b++)
			weights[b] = (__m512bh)_mm512_load_si512(at + b * w->next);
#pragma GCC unroll 12
		for (unsigned t = 0; t < TILE; t++)
#pragma GCC unroll 2
			for (unsigned b = 0; b < blocks; b++)
				sum[t][b] = _mm512_dpbf16_ps(
					sum[t][b], weights[b], pair_of(x + t * COLUMNS + k));
	}
}

const struct score_ops score_avx512_bf16 = {
	.tile = TILE,
	.columns = COLUMNS,
	.blocks = 2,
	.panel_bytes = sizeof(uint16_t) * TILE * COLUMNS,
	.bf16 = true,
	.pack = pack,
	.multiply = multiply,
	.fast_kvzip = lanes_fast_kvzip,
	.gelu = lanes_gelu_rows,
};

/* ---- AMX ---- */

static const struct {
	uint8_t palette, start_row, reserved[14];
	uint16_t row_bytes[16];
	uint8_t rows[16];
} tiles_of_1kib __attribute__((aligned(64))) = {
	.palette = 1,
	.row_bytes = {64, 64, 64, 64, 64, 64, 64, 64},
	.rows = {16, 16, 16, 16, 16, 16, 16, 16},
};

AMX_TARGET static void amx_begin(void)
{
	_tile_loadconfig(&tiles_of_1kib);
}

AMX_TARGET static void amx_end(void)
{
	_tile_release();
}

SCORE_TARGET static void amx_pack(const struct score_x *x, uint32_t token, uint32_t tokens,
	uint32_t first, uint32_t used, uint32_t columns, void *ret_panel)
{
	uint16_t *panel = ret_panel;

	for (uint32_t t = 0; t < AMX_TILE; t++) {
		size_t row = (token + t) * x->stride + first;
		uint16_t *to = panel + t / 16 * TILE_VALUES + t % 16 * 32;

		for (uint32_t k = 0; k < columns; k += 32, to += 2 * TILE_VALUES)
			copy_columns(x, row + k, t < tokens && k < used ? used - k : 0, to);
	}
}

/* Tiles 0 to 3: sums [tokens][rows]; 4, 5: hidden states; 6, 7: weights. */
AMX_TARGET static void amx_multiply(const struct score_w *w, unsigned blocks, const void *panel,
	uint32_t columns, float *c, size_t c_stride, bool add)
{
	const size_t row = c_stride * sizeof(*c);
	const char *weights = w->blocks;
	const uint16_t *x = panel;
	float *below = c + 16 * c_stride;

	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	if (add) {
		_tile_loadd(0, c, row);
		_tile_loadd(2, below, row);
	}
	if (add && blocks == 2) {
		_tile_loadd(1, c + GATE_ROWS, row);
		_tile_loadd(3, below + GATE_ROWS, row);
	}
	for (uint32_t k = 0; k < columns; k += 32, x += 2 * TILE_VALUES, weights += TILE_BYTES) {
		_tile_loadd(4, x, 64);
		_tile_loadd(5, x + TILE_VALUES, 64);
		_tile_loadd(6, weights, 64);
		_tile_dpbf16ps(0, 4, 6);
		_tile_dpbf16ps(2, 5, 6);
		if (blocks == 2) {
			_tile_loadd(7, weights + w->next, 64);
			_tile_dpbf16ps(1, 4, 7);
			_tile_dpbf16ps(3, 5, 7);
		}
	}
	_tile_stored(0, c, row);
	_tile_stored(2, below, row);
	if (blocks == 2) {
		_tile_stored(1, c + GATE_ROWS, row);
		_tile_stored(3, below + GATE_ROWS, row);
	}
}

const struct score_ops score_amx_bf16 = {
	.tile = AMX_TILE,
	.columns = AMX_COLUMNS,
	.blocks = 2,
	.panel_bytes = sizeof(uint16_t) * AMX_TILE * AMX_COLUMNS,
	.bf16 = true,
	.begin = amx_begin,
	.end = amx_end,
	.pack = amx_pack,
	.multiply = amx_multiply,
	.fast_kvzip = lanes_fast_kvzip,
	.gelu = lanes_gelu_rows,
};
