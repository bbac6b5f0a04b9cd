/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score: the operations a processor's instruction set brings to scoring.
 * Thread: any; AMX tiles are a thread's own between begin and end. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_GATES_SCORE_H
#define KVGATE_GATES_SCORE_H

#include "gates/gate_private.h"

#define SCORE_CHUNK 288u /* tokens that go through together; a multiple of every tile */

/* Some rows of hidden states. */
struct score_x {
	const void *data;
	uint32_t dtype; /* KVG_DTYPE_BF16 or KVG_DTYPE_F32 */
	size_t stride;  /* elements from row to row */
	uint32_t round; /* f32 values are rounded to this dtype on the way in */
};

/* Projections of one chunk: c[token][row], f32, without bias. */
struct score_c {
	float *values;
	size_t stride; /* a multiple of GATE_ROWS */
	uint32_t tokens;
};

/* One or two blocks of 16 rows of weights, `next` bytes apart, from some column on. */
struct score_w {
	const void *blocks;
	size_t next;
	bool wide; /* f32 [column][row]; else bf16, as struct gate_matrix has it */
};

/*
 * x goes in panels: `tile` tokens by up to `columns` columns, the way the kernel reads them, zero where
 * there is no token or column.
 */
struct score_ops {
	uint32_t tile, columns;
	uint32_t blocks; /* of rows that one multiply takes, 1 or 2 */
	size_t panel_bytes;
	bool bf16; /* its products take nothing else, on either side */
	void (*begin)(void);
	void (*end)(void);
	/* `used` <= `columns` columns of `tokens` <= tile rows, from column `first`. */
	void (*pack)(const struct score_x *x, uint32_t token, uint32_t tokens, uint32_t first,
		uint32_t used, uint32_t columns, void *ret_panel);
	/* One block of bf16 weights as f32, for a multiply that takes no others; NULL where it does. */
	void (*widen)(const uint16_t *w, uint32_t columns, float *ret);
	/* c (+)= panel times the transpose of `blocks` blocks, `columns` columns of them. */
	void (*multiply)(const struct score_w *w, unsigned blocks, const void *panel,
		uint32_t columns, float *c, size_t c_stride, bool add);
	/* Scores of Fast KVzip from its projections; `v` has room for score_lanes_floats(). */
	void (*fast_kvzip)(const struct gate *g, const struct gate_layer *y,
		const struct score_c *c, uint32_t round, float *v, float *ret_scores,
		size_t score_stride);
	/* In place: bias, then GELU with the exact erf. */
	void (*gelu)(const struct gate_matrix *m, const struct score_c *c, uint32_t round);
};

/* Room for the rows of one query and one key of a head, for as many tokens as a vector has lanes. */
static inline size_t score_lanes_floats(const struct gate_info *i)
{
	return (size_t)2 * i->dim * 16;
}

extern const struct score_ops score_scalar;
#ifdef SCORE_X86
extern const struct score_ops score_avx2, score_avx512, score_avx512_bf16, score_amx_bf16;
#endif

/* For a gate of this dtype. */
enum gate_isa score_best_isa(uint32_t dtype);

#endif
