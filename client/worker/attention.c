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
	const uint32_t visible = tile_visible(a, t, query);
	float *acc = a->acc + (size_t)query * a->v_pad;
	float p[TILE], max = a->max[query], scale;

	for (uint32_t j = 0; j < visible; j++) {
		p[j] = dot(a->q + (size_t)query * a->k_pad, a->k_rows + (size_t)j * a->k_pad,
			a->k_dim);
		max = fmaxf(max, p[j]);
	}
	scale = expf(a->max[query] - max);
	a->max[query] = max;
	a->sum[query] *= scale;
	for (uint32_t c = 0; c < a->v_dim; c++)
		acc[c] *= scale;
	for (uint32_t j = 0; j < visible; j++) {
		const float *v = a->v_rows + (size_t)j * a->v_pad;

		p[j] = expf(p[j] - max);
		a->sum[query] += p[j];
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
	for (uint32_t query = 0; query < a->n; query++)
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

int attention_new(uint32_t k_dim, uint32_t v_dim, enum attention_isa isa, struct attention **ret)
{
	const uint32_t k_pad = (k_dim + PAD - 1) / PAD * PAD, v_pad = (v_dim + PAD - 1) / PAD * PAD;
	const size_t queries = ATTENTION_QUERIES_MAX;
	const size_t floats = queries * (k_pad + v_pad + 2) + (size_t)TILE * (2 * k_pad + v_pad);
	const size_t head = (sizeof(struct attention) + 63) / 64 * 64;
	struct attention *a;
	float *at;

	assert(attention_isa_supported(isa));
	a = aligned_alloc(64, head + floats * sizeof(float));
	if (!a)
		return -ENOMEM;
	memset(a, 0, head + floats * sizeof(float));
	a->k_dim = k_dim;
	a->v_dim = v_dim;
	a->k_pad = k_pad;
	a->v_pad = v_pad;
	choose_step(a, isa);
	at = (float *)((char *)a + head);
	a->q = at;
	a->acc = a->q + queries * k_pad;
	a->k_rows = a->acc + queries * v_pad;
	a->k_dims = a->k_rows + (size_t)TILE * k_pad;
	a->v_rows = a->k_dims + (size_t)TILE * k_pad;
	a->max = a->v_rows + (size_t)TILE * v_pad;
	a->sum = a->max + queries;
	*ret = a;
	return 0;
}

struct attention *attention_free(struct attention *a)
{
	free(a);
	return NULL;
}

void attention_begin(
	struct attention *a, const float *q, uint32_t n, uint32_t group, uint32_t stride)
{
	const float scale = 1.0f / sqrtf((float)a->k_dim);

	assert(n >= 1 && n <= ATTENTION_QUERIES_MAX && group >= 1);
	a->n = n;
	a->group = group;
	for (uint32_t i = 0; i < n; i++) {
		const float *from = q + (size_t)(i / group) * stride + (i % group) * a->k_dim;
		float *to = a->q + (size_t)i * a->k_pad;

		for (uint32_t c = 0; c < a->k_dim; c++)
			to[c] = from[c] * scale;
		a->max[i] = NOTHING_SEEN;
		a->sum[i] = 0.0f;
	}
	memset(a->acc, 0, (size_t)n * a->v_pad * sizeof(*a->acc));
}

static void feed(struct attention *a, const struct kv_rows *rows, int64_t seen)
{
	const size_t bytes = dtype_bytes(rows->dtype);
	const size_t k_bytes = a->k_dim * bytes, v_bytes = a->v_dim * bytes;
	struct tile t = {.dtype = rows->dtype, .seen = seen};

	for (uint32_t i = 0; i < rows->n_runs; i++) {
		const struct kv_run *run = &rows->run[i];

		for (uint32_t j = 0; j < run->n; j++) {
			t.k[t.n] = (const char *)run->k + j * k_bytes;
			t.v[t.n] = (const char *)run->v + j * v_bytes;
			if (++t.n == TILE) {
				a->step(a, &t);
				t.seen -= TILE;
				t.n = 0;
			}
		}
	}
	if (t.n > 0)
		a->step(a, &t);
}

void attention_rows(struct attention *a, const struct kv_rows *rows)
{
	feed(a, rows, SEEN_ALL);
}

void attention_rows_causal(struct attention *a, const struct kv_rows *rows, uint32_t seen)
{
	feed(a, rows, seen);
}

void attention_end(const struct attention *a, float *ret, uint32_t stride)
{
	for (uint32_t i = 0; i < a->n; i++) {
		const float *acc = a->acc + (size_t)i * a->v_pad;
		float *to = ret + (size_t)(i / a->group) * stride + (i % a->group) * a->v_dim;
		const float scale = a->sum[i] > 0.0f ? 1.0f / a->sum[i] : 0.0f;

		for (uint32_t c = 0; c < a->v_dim; c++)
			to[c] = acc[c] * scale;
	}
}
