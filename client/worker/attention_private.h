/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_private: the state of attention, and the step that each instruction set brings.
 * Thread: as attention.h. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_WORKER_ATTENTION_PRIVATE_H
#define KVGATE_WORKER_ATTENTION_PRIVATE_H

#include <float.h>

#include "client/worker/attention.h"
#include "proto/shape.h"

#define TILE         64  /* rows worked on at once: with a head of 128, their K in f32 is 32 KiB */
#define ROUND        512 /* rows of the longest head that are taken before it is the next's turn */
#define PAD          16  /* dimensions are padded with zeros to a multiple of the widest vector */
#define NOTHING_SEEN (-FLT_MAX)

/* Up to TILE rows of one head, wherever they lie. Query i sees those below seen + i / group. */
struct tile {
	const void *k[TILE], *v[TILE];
	uint32_t n;
	uint32_t dtype;
	uint32_t head;
	int64_t seen;
};

/* What one KV head's queries carry from tile to tile, and which of its rows are next. */
struct head {
	uint32_t n, group; /* queries */
	float *q;          /* [n][k_pad], scaled */
	float *max;        /* [n] */
	float *sum;        /* [n] of exp(score - max) */
	float *acc;        /* [n][v_pad] */

	uint32_t run, row;    /* row `row` of run `run` */
	uint64_t done, total; /* rows */
};

struct attention {
	uint32_t k_dim, v_dim; /* as they lie */
	uint32_t k_pad, v_pad; /* in the buffers */
	void (*step)(struct attention *a, const struct tile *t);
	float *k_rows; /* [TILE][k_pad], of the scalar step */
	float *k_dims; /* [k_pad][TILE], turned */
	float *v_rows; /* [TILE][v_pad] */

	const struct tile *next; /* whose rows are asked for .. */
	uint32_t ahead;          /* .. from this one on */
	uint32_t n_heads;
	struct head head[];
};

static inline uint32_t tile_visible(const struct head *h, const struct tile *t, uint32_t query)
{
	int64_t seen = t->seen + query / h->group;

	return seen >= t->n ? t->n : seen > 0 ? (uint32_t)seen : 0;
}

/*
 * Asks for one row more of the next tile. Rows come from memory, in runs too short for the
 * processor to see a stream; all of a tile at once would fill the few slots it has for misses,
 * and what is being computed, whose buffers are more than an L1, would wait for one. So steps
 * call this here and there all along.
 */
static inline void ahead_row(struct attention *a)
{
	const struct tile *t = a->next;
	const uint32_t j = a->ahead, size = t->dtype == KVG_DTYPE_F32 ? 4 : 2;

	if (j >= t->n)
		return;
	a->ahead = j + 1;
	for (uint32_t i = 0; i < a->k_dim * size; i += 64)
		__builtin_prefetch((const char *)t->k[j] + i);
	for (uint32_t i = 0; i < a->v_dim * size; i += 64)
		__builtin_prefetch((const char *)t->v[j] + i);
}

void attention_step_scalar(struct attention *a, const struct tile *t);
#if defined(__x86_64__)
void attention_step_avx2(struct attention *a, const struct tile *t);
void attention_step_avx512(struct attention *a, const struct tile *t);
#endif

#endif
