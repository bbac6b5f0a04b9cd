/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sequence: what one prompt has behind it - rows that lie in shared planes, and rows of its own.
 * Thread: one at a time. Locks: none. Blocks: never. Errors: -ENOMEM.
 *
 * The logical length (the next token's position) is not the number of rows: cached context may be
 * pruned, and each (layer, head) of the own rows may have been evicted to a length of its own.
 */
#ifndef KVGATE_WORKER_SEQUENCE_H
#define KVGATE_WORKER_SEQUENCE_H

#include <stddef.h>
#include <stdint.h>

#include "client/worker/attention.h"
#include "client/worker/model.h"

/* Rows that lie elsewhere: run r = (layer, head) has run[first[r]] .. run[first[r + 1] - 1]. */
struct context {
	uint32_t *first;    /* [runs + 1] */
	struct kv_run *run; /* none of them empty */
	uint32_t dtype;     /* enum kvg_dtype */
	uint32_t tokens;    /* positions they stand for: 0 .. tokens - 1 */
	uint64_t pairs;     /* rows in all */
};
void context_fini(struct context *c);

/*
 * What one layer made of a sequence's new tokens, before attention. K and V are among its rows
 * already.
 */
struct observation {
	uint32_t layer, n;
	const float *x; /* [n][hidden], the attention block's input after its norm */
	const float *q; /* [n] rows of [heads][head_dim] after norm and rotation, `stride` apart */
	uint32_t stride;
};

struct sequence {
	const struct model_config *config;
	const struct context *context; /* NULL: none; the caller's, and outlives the sequence */
	uint32_t position;             /* of the next token */
	uint32_t capacity;             /* own rows of one (layer, head) */
	uint32_t *n;                   /* [runs] own rows */
	float *k, *v;                  /* [runs][capacity][head_dim] */
	float *score;                  /* [runs][capacity] of a gate, where there is one */
	int (*observe)(void *userdata, struct sequence *s, const struct observation *o);
	void *userdata;
};

int sequence_new(const struct model_config *c, const struct context *context, uint32_t capacity,
	struct sequence **ret);
struct sequence *sequence_free(struct sequence *s);

static inline float *sequence_k(const struct sequence *s, uint32_t run, uint32_t row)
{
	return s->k + ((size_t)run * s->capacity + row) * s->config->head_dim;
}
static inline float *sequence_v(const struct sequence *s, uint32_t run, uint32_t row)
{
	return s->v + ((size_t)run * s->capacity + row) * s->config->head_dim;
}
static inline float *sequence_score(const struct sequence *s, uint32_t run)
{
	return s->score + (size_t)run * s->capacity;
}

/* Own rows that are held, over all layers and heads. */
uint64_t sequence_rows(const struct sequence *s);
/*
 * Keeps own rows from .. n - 1 of a run for which keep[row - from]; the others close up behind
 * them.
 */
void sequence_keep(
	struct sequence *s, uint32_t run, uint32_t from, uint32_t n, const uint8_t *keep);

#endif
