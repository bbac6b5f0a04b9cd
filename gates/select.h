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

/*
 * N is the number of pairs that are ranked. Protected ones (+inf) are not: they are always kept, and no
 * rule or floor counts them. int() truncates a double product.
 */
enum select_rule {
	SELECT_PAIR = 1,    /* above the int(N r)-th best of all, strictly: ties at it all drop */
	SELECT_LAYER,       /* the same inside each layer */
	SELECT_HEAD,        /* the int(N r) best of each head, the lower token wins a tie */
	SELECT_ADAKV_LAYER, /* int(int(N r) * .2) best of each head are above all; then as layer */
	SELECT_KVPRESS, /* removes exactly int(N (1 - r)); the lower [L][H][N] index wins a tie */
	SELECT_ABSOLUTE, /* score >= threshold; KVzap's, with a window of 128 protected by the caller */
};

/*
 * The least f16 that is >= threshold: how the absolute rule meets stored scores. The daemon cuts its planes with it, so a
 * reader's threshold at an edge takes whole planes and nothing else.
 */
uint16_t select_f16_at_least(float threshold);

struct select_params {
	enum select_rule rule;
	double retained; /* r >= 0, from 1 on everything is kept; unused by SELECT_ABSOLUTE */
	float threshold; /* SELECT_ABSOLUTE */
	uint32_t floor;  /* at least so many ranked pairs of every (block or chunk, layer, head) */
};

/* "pair", "layer", "head", "adakv-layer", "kvpress", "absolute"; 0 when unknown. */
int select_rule_from_name(const char *name);

/*
 * Dense: scores [layers][heads][tokens] f32 -> ret_keep of the same shape, 1 = kept. The floor is one of
 * each (layer, head). NaN is refused.
 */
int select_dense(const struct select_params *p, const float *scores, uint32_t layers,
	uint32_t heads, uint32_t tokens, uint8_t *ret_keep);

/*
 * Planes: a context of blocks in their order, each given by its planes' views, opened and their runs checked,
 * best first; a plane that is missing has runs 0 and counts as not there. Answers with prefix lengths:
 * ret_len[(block * KVG_PLANES_MAX + plane) * runs + run] leading pairs of that run are kept, 0 where there is
 * no such plane. Scores compare as the f16 they are stored in. Equal to select_dense on the same f16 scores
 * when every plane is there and there is one block, or no floor.
 */
struct select_block {
	struct plane_view plane[KVG_PLANES_MAX];
	uint32_t n_planes;
};
int select_planes(const struct select_params *p, const struct select_block *blocks,
	uint32_t n_blocks, uint32_t layers, uint32_t heads, uint32_t *ret_len);

/*
 * The paper's window rule of chunked prefill: ids = system + context, chunk 16000, window 4096 by
 * default. ret_window: tokens at the end that are always kept; ret_retained: r' for the rest.
 */
void select_window(uint64_t context, uint64_t chunk, uint64_t window, double r,
	uint64_t *ret_window, double *ret_retained);

/*
 * The paper's decode rule over the rows of all layers and heads, the last 128 of each head given as 1.0:
 * rows that score at least what is returned stay. -inf when n_rows <= budget_rows, +inf for a budget of 0.
 */
float select_decode_threshold(const float *scores, uint64_t n_rows, uint64_t budget_rows);

#endif
