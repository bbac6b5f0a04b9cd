/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention: softmax(q K^T) V of a layer's KV heads over runs of rows that lie anywhere, in any
 * order.
 * Thread: one state per thread; runs are only read. Locks: none. Blocks: never. Errors: -ENOMEM
 * at _new.
 *
 * A state holds the queries of all KV heads and what online softmax carries: maximum, sum and
 * weighted rows of each. Runs are fed in as many calls as the caller likes; their order changes
 * rounding only, and what one head is fed changes nothing in another.
 */
#ifndef KVGATE_WORKER_ATTENTION_H
#define KVGATE_WORKER_ATTENTION_H

#include <stdbool.h>
#include <stdint.h>

#define ATTENTION_QUERIES_MAX 64 /* of one KV head; more gain nothing */

/* n rows of K and n rows of V, each contiguous. */
struct kv_run {
	const void *k, *v;
	uint32_t n;
};

/* Runs of one KV head, all of one dtype: enum kvg_dtype, bf16, f16 or f32. */
struct kv_rows {
	const struct kv_run *run;
	uint32_t n_runs;
	uint32_t dtype;
};

enum attention_isa {
	ATTENTION_SCALAR = 1,
	ATTENTION_AVX2,
	ATTENTION_AVX512,
};
bool attention_isa_supported(enum attention_isa isa);
enum attention_isa attention_isa_best(void);

struct attention;
int attention_new(uint32_t heads, uint32_t k_dim, uint32_t v_dim, enum attention_isa isa,
	struct attention **ret);
struct attention *attention_free(struct attention *a);

/*
 * Takes n queries of each head (1 .. ATTENTION_QUERIES_MAX): query i of KV head h is row
 * i / group, query head h * group + i % group, at
 * q + (i / group) * stride + (h * group + i % group) * k_dim.
 */
void attention_begin(
	struct attention *a, const float *q, uint32_t n, uint32_t group, uint32_t stride);
/* rows is [heads], here and below. */
/* Every query sees every row. */
void attention_rows(struct attention *a, const struct kv_rows *rows);
/*
 * Of each head, query i sees all rows but the last `unseen` - i / group: its own past, of which
 * each query is one row further.
 */
void attention_rows_causal(struct attention *a, const struct kv_rows *rows, uint32_t unseen);
/*
 * Writes the results where attention_begin() says the queries are, with v_dim in the place of
 * k_dim.
 */
void attention_end(const struct attention *a, float *ret, uint32_t stride);

#endif
