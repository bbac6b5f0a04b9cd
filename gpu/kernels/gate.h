/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate: what the kernels that score take, and the form they want a gate's weights in.
 * Thread: any. Locks: none. Blocks: never. Errors: none.
 *
 * A weight matrix is cut into tiles of `columns` rows (columns of the product) by GATE_STEP of the hidden state, in the
 * order [tile][step], each of which is what lies in shared memory while it is used: bf16 [columns][GATE_STEP], the 16-byte
 * pieces of row r permuted by XOR with r % 8. Rows that are missing, and columns beyond the hidden size, are zero.
 *
 * Of Fast KVzip a tile holds whole heads: of each its queries, then its key, 16 rows each. All else is f32 and lies in
 * one piece a layer, `small` floats:
 *
 *	bias [tiles][columns] | q_norm [16] | k_norm [16] | k_base [heads][sinks][16] | b [heads][groups]
 */
#ifndef KVGATE_GPU_KERNELS_GATE_H
#define KVGATE_GPU_KERNELS_GATE_H

#include <cuda.h>
#include <stdint.h>

#define GATE_STEP                                                                                  \
	64u /* columns of the hidden state that go through together: a swizzled line of 128 bytes */
#define GATE_DIM     16u  /* gate width */
#define GATE_COLUMNS 320u /* the widest tile */
#define GATE_SINKS   64u  /* at most */
#define GATE_M       128u /* tokens of a block, by wgmma */
#define GATE_M_MMA   64u  /* by mma.sync */
#define GATE_STAGES  4u
#define GATE_LINEAR  64u  /* columns of a tile of a matrix that gives scores, a row a head */
#define GATE_MLP     256u /* columns of a tile of an MLP's first matrix */

enum gate_output {
	GATE_OUT_ZIP = 0, /* Fast KVzip: scores */
	GATE_OUT_LINEAR,  /* scores */
	GATE_OUT_GELU,    /* hidden states of the second matrix */
};

struct gate_args {
	/* For wgmma: of x, in boxes of GATE_M by GATE_STEP; of all layers' weights, by half a tile's columns. */
	CUtensorMap x_map, w_map;
	uint64_t x; /* bf16 [layers][tokens][hidden], strides in elements */
	uint64_t x_stride, x_layer;
	uint64_t w, w_layer; /* bf16, of the first layer scored; elements from layer to layer */
	uint64_t small, small_layer; /* f32; see above */
	uint64_t out; /* f32 scores [layers][heads][..]; GELU: bf16 [layers][tokens][rows] */
	uint64_t out_stride, out_layer;
	uint32_t tokens, hidden, rows;
	uint32_t steps, tiles;
	uint32_t w_row; /* of w_map, where the first layer scored begins */
	uint32_t heads, groups, sinks, tile_heads;
	uint32_t exact, stages;
};

#endif
