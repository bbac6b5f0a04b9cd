/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_private: the state of attention, and the step that each instruction set brings.
 * Thread: as attention.h. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_WORKER_ATTENTION_PRIVATE_H
#define KVGATE_WORKER_ATTENTION_PRIVATE_H

#include <float.h>

#include "client/worker/attention.h"

#define TILE         64 /* rows worked on at once: with a head of 128, K is two thirds of an L1 */
#define PAD          16 /* dimensions are padded with zeros to a multiple of the widest vector */
#define NOTHING_SEEN (-FLT_MAX)
#define SEEN_ALL     (INT64_MAX / 2)

/* Up to TILE rows, wherever they lie. Query i sees those below seen + i / group. */
struct tile {
	const void *k[TILE], *v[TILE];
	uint32_t n;
	uint32_t dtype;
	int64_t seen;
};

struct attention {
	uint32_t k_dim, v_dim; /* as they lie */
	uint32_t k_pad, v_pad; /* in the buffers below */
	uint32_t n, group;     /* queries */
	void (*step)(struct attention *a, const struct tile *t);
	float *q;      /* [n][k_pad], scaled */
	float *max;    /* [n] */
	float *sum;    /* [n] of exp(score - max) */
	float *acc;    /* [n][v_pad] */
	float *k_rows; /* [TILE][k_pad] */
	float *k_dims; /* [k_pad][TILE], the same turned */
	float *v_rows; /* [TILE][v_pad] */
};

static inline uint32_t tile_visible(const struct attention *a, const struct tile *t, uint32_t query)
{
	int64_t seen = t->seen + query / a->group;

	return seen >= t->n ? t->n : seen > 0 ? (uint32_t)seen : 0;
}

void attention_step_scalar(struct attention *a, const struct tile *t);
#if defined(__x86_64__)
void attention_step_avx2(struct attention *a, const struct tile *t);
void attention_step_avx512(struct attention *a, const struct tile *t);
#endif

#endif
