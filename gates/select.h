/* SPDX-License-Identifier: Apache-2.0 */
/*
 * select: which pairs of a context are kept, by every rule of the field, bit for bit.
 * Thread: pure, any. Locks: none. Blocks: never. Errors: -EINVAL, -ENOMEM.
 *
 * Source: Fast KVzip (arXiv 2601.17668), AdaKV, NVIDIA kvpress; see gates/README.md.
 */
#ifndef KVGATE_GATES_SELECT_H
#define KVGATE_GATES_SELECT_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/plane.h"

enum select_rule {
	SELECT_PAIR = 1,	/* one threshold over everything, strictly greater */
	SELECT_LAYER,		/* the same inside each layer */
	SELECT_HEAD,		/* top int(N * r) of each head, lower token wins a tie */
	SELECT_ADAKV_LAYER,	/* 20 % of each head's share is safe, then the layer rule */
	SELECT_KVPRESS,		/* removes exactly int(L * H * N * (1 - r)) of the lowest */
	SELECT_ABSOLUTE,	/* score >= threshold */
};

struct select_params {
	enum select_rule rule;
	double retained;	/* r; unused by SELECT_ABSOLUTE */
	float threshold;	/* SELECT_ABSOLUTE */
	uint32_t floor;		/* at least so many pairs of every (block or chunk, layer, head) */
};

int select_rule_from_name(const char *name);	/* "pair", "layer", "head", "adakv-layer", "kvpress", "absolute"; 0 unknown */

/* Dense: scores [layers][heads][tokens] f32 -> ret_keep of the same shape, 1 = kept. floor per (layer, head). */
int select_dense(const struct select_params *p, const float *scores, uint32_t layers, uint32_t heads,
	uint32_t tokens, uint8_t *ret_keep);

/*
 * Planes: a context of blocks in their order, each given by its planes' views (best first; a missing
 * plane has runs 0 and counts as not there). Answers with prefix lengths: ret_len[block][plane][run],
 * the number of leading pairs of that run that are kept, at index (block * KVG_PLANES_MAX + plane) * runs + run.
 * Protected pairs (score bits KVG_SCORE_PROTECTED) are always kept and not counted. Scores compare as
 * the f16 they are stored in. Equal to select_dense on the same f16 scores when every plane is there.
 */
struct select_block {
	struct plane_view plane[KVG_PLANES_MAX];
	uint32_t n_planes;
};
int select_planes(const struct select_params *p, const struct select_block *blocks, uint32_t n_blocks,
	uint32_t layers, uint32_t heads, uint32_t *ret_len);

/*
 * The paper's window rule of chunked prefill: ids = system + context, chunk 16000, window 4096 by
 * default. ret_window: tokens at the end that are always kept; ret_retained: r' for the rest.
 */
void select_window(uint64_t context, uint64_t chunk, uint64_t window, double r, uint64_t *ret_window,
	double *ret_retained);

/* The paper's decode rule over rows of all layers and heads: threshold that leaves budget_rows; see gates/README.md. */
float select_decode_threshold(const float *scores, uint64_t n_rows, uint64_t budget_rows);

#endif
