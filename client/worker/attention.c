/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs are cut into tiles of up to 64 rows; a tile may take rows of several runs, since all it
 * holds is where each row lies. So short runs, of which planes have many, cost no more than long
 * ones. A step takes one tile through online softmax (Milakov and Gimelshein, arXiv 1805.02867)
 * for all queries:
 *
 *	s = q . k of each row	 m' = max(m, s)	    c = exp(m - m')
 *	p = exp(s - m')		 sum = c sum + p    acc = c acc + p v
 *
 * and at the end the result is acc / sum. The scalar step below is the plain form of what
 * attention_vector.h does.
 *
 * All heads of a layer go through their rows side by side, in rounds: in a round each takes its
 * share of its rows, 512 of the longest. In a plane the rows of the heads lie
 * behind each other, 18 of 256 bytes a head on the average, so that most pages hold rows of two
 * heads. Taken head by head, the whole context would lie between the one and the other, and the
 * processor would have to look up each page's address twice, in tables that are out of its caches
 * by then; and what it reads ahead of its own accord behind the end of a run would be for nothing.
 * Shares, not counts: heads that keep few rows stay in the same blocks as those that keep many.
 *
 * Which rows are next is known, so each step is given the next tile too and asks for its rows
 * while it works: ahead_row().
 */
#include "client/worker/attention_private.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/shape.h"

static void load_row(float *dst, const void *src, uint32_t n, uint32_t dtype)
{
	const uint16_t *half = src;

	if (dtype == KVG_DTYPE_F32)
		memcpy(dst, src, n * sizeof(*dst));
	else if (dtype == KVG_DTYPE_BF16)
		for (uint32_t i = 0; i < n; i++)
			dst[i] = bf16_to_f32(half[i]);
	else
		for (uint32_t i = 0; i < n; i++)
			dst[i] = f16_to_f32(half[i]);
}

static float dot(const float *a, const float *b, uint32_t n)
{
	float sum = 0.0f;

	for (uint32_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

static void step_query(struct attention *a, const struct tile *t, uint32_t query)
{
	struct head *h = &a->head[t->head];
	const uint32_t visible = tile_visible(h, t, query);
	float *acc = h->acc + (size_t)query * a->v_pad;
	float p[TILE], max = h->max[query], scale;

	for (uint32_t j = 0; j < visible; j++) {
		p[j] = dot(h->q + (size_t)query * a->k_pad, a->k_rows + (size_t)j * a->k_pad,
			a->k_dim);
		max = fmaxf(max, p[j]);
	}
	scale = expf(h->max[query] - max);
	h->max[query] = max;
	h->sum[query] *= scale;
	for (uint32_t c = 0; c < a->v_dim; c++)
		acc[c] *= scale;
	for (uint32_t j = 0; j < visible; j++) {
		const float *v = a->v_rows + (size_t)j * a->v_pad;

		p[j] = expf(p[j] - max);
		h->sum[query] += p[j];
		for (uint32_t c = 0; c < a->v_dim; c++)
			acc[c] += p[j] * v[c];
	}
}

void attention_step_scalar(struct attention *a, const struct tile *t)
{
	for (uint32_t j = 0; j < t->n; j++) {
		load_row(a->k_rows + (size_t)j * a->k_pad, t->k[j], a->k_dim, t->dtype);
		load_row(a->v_rows + (size_t)j * a->v_pad, t->v[j], a->v_dim, t->dtype);
	}
	for (uint32_t query = 0; query < a->head[t->head].n; query++)
		step_query(a, t, query);
}

bool attention_isa_supported(enum attention_isa isa)
{
#if defined(__x86_64__)
	if (isa == ATTENTION_AVX2)
		return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
	if (isa == ATTENTION_AVX512)
		return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
			__builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#endif
	return isa == ATTENTION_SCALAR;
}

enum attention_isa attention_isa_best(void)
{
	if (attention_isa_supported(ATTENTION_AVX512))
		return ATTENTION_AVX512;
	return attention_isa_supported(ATTENTION_AVX2) ? ATTENTION_AVX2 : ATTENTION_SCALAR;
}

static void choose_step(struct attention *a, enum attention_isa isa)
{
	a->step = attention_step_scalar;
#if defined(__x86_64__)
	if (isa == ATTENTION_AVX2)
		a->step = attention_step_avx2;
	else if (isa == ATTENTION_AVX512)
		a->step = attention_step_avx512;
#endif
}

int attention_new(uint32_t heads, uint32_t k_dim, uint32_t v_dim, enum attention_isa isa,
	struct attention **ret)
{
	const uint32_t k_pad = (k_dim + PAD - 1) / PAD * PAD, v_pad = (v_dim + PAD - 1) / PAD * PAD;
	const size_t queries = ATTENTION_QUERIES_MAX, of_head = queries * (k_pad + v_pad + 2);
	const size_t floats = heads * of_head + (size_t)TILE * (2 * k_pad + v_pad);
	const size_t top = (sizeof(struct attention) + heads * sizeof(struct head) + 63) / 64 * 64;
	struct attention *a;
	float *at;

	assert(heads >= 1 && attention_isa_supported(isa));
	a = aligned_alloc(64, top + floats * sizeof(float));
	if (!a)
		return -ENOMEM;
	memset(a, 0, top + floats * sizeof(float));
	a->k_dim = k_dim;
	a->v_dim = v_dim;
	a->k_pad = k_pad;
	a->v_pad = v_pad;
	a->n_heads = heads;
	choose_step(a, isa);
	at = (float *)((char *)a + top);
	a->k_rows = at;
	a->k_dims = a->k_rows + (size_t)TILE * k_pad;
	a->v_rows = a->k_dims + (size_t)TILE * k_pad;
	at = a->v_rows + (size_t)TILE * v_pad;
	for (uint32_t i = 0; i < heads; i++, at += of_head) {
		a->head[i].q = at;
		a->head[i].acc = at + queries * k_pad;
		a->head[i].max = a->head[i].acc + queries * v_pad;
		a->head[i].sum = a->head[i].max + queries;
	}
	*ret = a;
	return 0;
}

struct attention *attention_free(struct attention *a)
{
	free(a);
	return NULL;
}

static void head_begin(const struct attention *a, struct head *h, const float *q, uint32_t stride)
{
	const float scale = 1.0f / sqrtf((float)a->k_dim);

	for (uint32_t i = 0; i < h->n; i++) {
		const float *from = q + (size_t)(i / h->group) * stride + (i % h->group) * a->k_dim;
		float *to = h->q + (size_t)i * a->k_pad;

		for (uint32_t c = 0; c < a->k_dim; c++)
			to[c] = from[c] * scale;
		h->max[i] = NOTHING_SEEN;
		h->sum[i] = 0.0f;
	}
	memset(h->acc, 0, (size_t)h->n * a->v_pad * sizeof(*h->acc));
}

void attention_begin(
	struct attention *a, const float *q, uint32_t n, uint32_t group, uint32_t stride)
{
	assert(n >= 1 && n <= ATTENTION_QUERIES_MAX && group >= 1);
	for (uint32_t i = 0; i < a->n_heads; i++) {
		a->head[i].n = n;
		a->head[i].group = group;
		head_begin(a, &a->head[i], q + (size_t)i * group * a->k_dim, stride);
	}
}

/* ---- the order of tiles ---- */

/* Where feeding is: which head's turn it is, in which round of how many. */
struct feeding {
	const struct kv_rows *rows; /* [heads] */
	uint32_t unseen;
	uint32_t head;
	uint64_t round, rounds;
};

static void feeding_start(
	struct attention *a, const struct kv_rows *rows, uint32_t unseen, struct feeding *ret)
{
	uint64_t longest = 0;

	for (uint32_t i = 0; i < a->n_heads; i++) {
		struct head *h = &a->head[i];

		h->run = h->row = 0;
		h->done = h->total = 0;
		for (uint32_t j = 0; j < rows[i].n_runs; j++)
			h->total += rows[i].run[j].n;
		longest = h->total > longest ? h->total : longest;
	}
	*ret = (struct feeding){
		.rows = rows, .unseen = unseen, .rounds = (longest + ROUND - 1) / ROUND};
}

static void take_rows(
	const struct attention *a, struct head *h, const struct kv_rows *rows, struct tile *t)
{
	const size_t bytes = dtype_bytes(rows->dtype);
	const size_t k_bytes = a->k_dim * bytes, v_bytes = a->v_dim * bytes;

	for (t->n = 0; t->n < TILE && h->run < rows->n_runs;) {
		const struct kv_run *run = &rows->run[h->run];
		const uint32_t left = run->n - h->row, room = TILE - t->n;
		const uint32_t n = left < room ? left : room;

		for (uint32_t i = 0; i < n; i++, t->n++) {
			t->k[t->n] = (const char *)run->k + (h->row + i) * k_bytes;
			t->v[t->n] = (const char *)run->v + (h->row + i) * v_bytes;
		}
		h->row += n;
		if (n == left) {
			h->run++;
			h->row = 0;
		}
	}
}

/* The tile that is next; without rows behind the last. */
static void next_tile(struct attention *a, struct feeding *f, struct tile *t)
{
	t->n = 0;
	for (; f->round < f->rounds; f->round++, f->head = 0)
		for (; f->head < a->n_heads; f->head++) {
			struct head *h = &a->head[f->head];

			if (h->done * f->rounds >= h->total * (f->round + 1))
				continue;
			t->head = f->head;
			t->dtype = f->rows[f->head].dtype;
			t->seen = (int64_t)h->total - f->unseen - (int64_t)h->done;
			take_rows(a, h, &f->rows[f->head], t);
			h->done += t->n;
			return;
		}
}

static void feed(struct attention *a, const struct kv_rows *rows, uint32_t unseen)
{
	struct tile tile[2], *t = &tile[0], *next = &tile[1];
	struct feeding f;

	feeding_start(a, rows, unseen, &f);
	for (next_tile(a, &f, t); t->n > 0;) {
		struct tile *const worked_on = t;

		next_tile(a, &f, next);
		a->next = next;
		a->ahead = 0;
		a->step(a, t);
		while (a->ahead < next->n)
			ahead_row(a);
		t = next;
		next = worked_on;
	}
	a->next = NULL;
}

void attention_rows(struct attention *a, const struct kv_rows *rows)
{
	feed(a, rows, 0);
}

void attention_rows_causal(struct attention *a, const struct kv_rows *rows, uint32_t unseen)
{
	feed(a, rows, unseen);
}

static void head_end(const struct attention *a, const struct head *h, float *ret, uint32_t stride)
{
	for (uint32_t i = 0; i < h->n; i++) {
		const float *acc = h->acc + (size_t)i * a->v_pad;
		float *to = ret + (size_t)(i / h->group) * stride + (i % h->group) * a->v_dim;
		const float scale = h->sum[i] > 0.0f ? 1.0f / h->sum[i] : 0.0f;

		for (uint32_t c = 0; c < a->v_dim; c++)
			to[c] = acc[c] * scale;
	}
}

void attention_end(const struct attention *a, float *ret, uint32_t stride)
{
	for (uint32_t i = 0; i < a->n_heads; i++)
		head_end(a, &a->head[i], ret + (size_t)i * a->head[i].group * a->v_dim, stride);
}
