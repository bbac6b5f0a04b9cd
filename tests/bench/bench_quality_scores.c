/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One prefill gives the scores of every method: the gates look at each layer's input as it passes, SnapKV at the queries of
 * the last tokens. Static heads, recency and random need no model.
 */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gates/select.h"

#define PROTECTED 62 /* <bos> SYS <ctx> */
#define SNAP_POOL 7  /* width of SnapKV's max pooling */

const double quality_ratio[QUALITY_RATIOS] = {.5, .3, .2, .1};
const char *const quality_name[QUALITY_METHODS] = {
	"gate", "text_gate", "static_heads", "snapkv", "equal_heads", "recent", "random"};

struct watch {
	struct quality *q;
	struct quality_context *c;
	float *part; /* [kv_heads][tokens of a chunk] */
};

static void score_by_gates(
	const struct watch *w, const struct sequence *s, const struct observation *o)
{
	const struct model_config *m = s->config;
	const uint32_t n = w->c->sample->n_tokens;

	for (int g = 0; g < 2; g++) {
		int r = kvg_gate_score(
			w->q->gate[g], o->layer, o->x, KVG_DTYPE_F32, o->n, 1, w->part);

		assert(r == 0);
		for (uint32_t h = 0; h < m->kv_heads; h++)
			memcpy(w->c->score[g == 0 ? QUALITY_GATE : QUALITY_TEXT] +
					(size_t)(o->layer * m->kv_heads + h) * n + s->position,
				w->part + (size_t)h * o->n, o->n * sizeof(float));
	}
}

/* Adds one query's attention over the keys before it to `sum`. */
static void add_attention(const struct sequence *s, uint32_t run, const float *q, uint32_t keys,
	float *logit, float *sum)
{
	const uint32_t d = s->config->head_dim;
	const float scale = 1.f / sqrtf((float)d);
	float max = -INFINITY, total = 0;

	for (uint32_t t = 0; t < keys; t++) {
		const float *k = sequence_k(s, run, t);
		float dot = 0;

		for (uint32_t i = 0; i < d; i++)
			dot += q[i] * k[i];
		logit[t] = dot * scale;
		if (logit[t] > max)
			max = logit[t];
	}
	for (uint32_t t = 0; t < keys; t++) {
		logit[t] = expf(logit[t] - max);
		total += logit[t];
	}
	for (uint32_t t = 0; t < keys; t++)
		sum[t] += logit[t] / total;
}

/* SnapKV (arXiv 2404.14469): mean attention of the last queries, max-pooled along the context. */
static void score_by_attention(
	const struct watch *w, const struct sequence *s, const struct observation *o)
{
	const struct model_config *m = s->config;
	const uint32_t n = w->c->sample->n_tokens, group = model_group(m);
	float *logit = malloc(n * sizeof(*logit)), *sum = malloc(n * sizeof(*sum));

	assert(logit && sum);
	for (uint32_t h = 0; h < m->kv_heads; h++) {
		const uint32_t run = o->layer * m->kv_heads + h;
		float *ret = w->c->score[QUALITY_SNAPKV] + (size_t)run * n;

		memset(sum, 0, n * sizeof(*sum));
		for (uint32_t i = o->n - QUALITY_SNAP_QUERIES; i < o->n; i++)
			for (uint32_t g = 0; g < group; g++)
				add_attention(s, run,
					o->q + (size_t)i * o->stride +
						(h * group + g) * m->head_dim,
					s->position + i + 1, logit, sum);
		for (uint32_t t = 0; t < n; t++) {
			uint32_t from = t > SNAP_POOL / 2 ? t - SNAP_POOL / 2 : 0,
				 to = t + SNAP_POOL / 2 + 1;
			float best = 0;

			for (uint32_t j = from; j < to && j < n; j++)
				best = sum[j] > best ? sum[j] : best;
			ret[t] = best / (float)(QUALITY_SNAP_QUERIES * group);
		}
	}
	free(logit);
	free(sum);
}

static int observe(void *userdata, struct sequence *s, const struct observation *o)
{
	const struct watch *w = userdata;

	score_by_gates(w, s, o);
	if (w->c->methods > QUALITY_SNAPKV && s->position + o->n == w->c->sample->n_tokens) {
		assert(o->n >= QUALITY_SNAP_QUERIES);
		score_by_attention(w, s, o);
	}
	return 0;
}

/* Ties of a score that has few values are broken by a hash, far below any difference that matters. */
static float hash01(uint64_t x)
{
	x *= 0x9e3779b97f4a7c15ull;
	x ^= x >> 29;
	x *= 0xbf58476d1ce4e5b9ull;
	return (float)(x >> 40) * 0x1p-24f;
}

static void score_without_model(struct quality_context *c, const struct quality *q, uint32_t runs)
{
	const uint32_t n = c->sample->n_tokens;

	for (uint32_t run = 0; run < runs; run++)
		for (uint32_t t = 0; t < n; t++) {
			size_t i = (size_t)run * n + t;

			c->score[QUALITY_RANDOM][i] = hash01(i + 1);
			c->score[QUALITY_RECENT][i] = ((float)t + .5f * hash01(i + 7)) / (float)n;
			c->score[QUALITY_STATIC][i] =
				q->head_mean[run] * (1.f + .02f * hash01(i + 3));
			c->score[QUALITY_EQUAL][i] = c->score[QUALITY_GATE][i];
		}
}

void quality_context_init(
	struct quality_context *c, struct quality *q, const struct quality_sample *s, int methods)
{
	const uint32_t runs = model_runs(&q->model->config), n = s->n_tokens,
		       chunk = forward_rows(q->forward);
	struct watch w = {.q = q, .c = c};
	int r;

	memset(c, 0, sizeof(*c));
	c->sample = s;
	c->methods = methods;
	for (int m = 0; m < methods; m++) {
		c->score[m] = malloc((size_t)runs * n * sizeof(float));
		assert(c->score[m]);
	}
	w.part = malloc((size_t)q->model->config.kv_heads * chunk * sizeof(float));
	r = sequence_new(&q->model->config, NULL, n, &c->rows);
	assert(r == 0 && w.part);
	c->rows->observe = observe;
	c->rows->userdata = &w;
	/* the last chunk holds SnapKV's queries whatever the length */
	if (n > chunk && n % chunk < QUALITY_SNAP_QUERIES) {
		uint32_t first = n - n % chunk - QUALITY_SNAP_QUERIES;

		r = forward_prefill(q->forward, c->rows, s->tokens, first, NULL);
		assert(r == 0);
		r = forward_prefill(q->forward, c->rows, s->tokens + first, n - first, NULL);
	} else {
		r = forward_prefill(q->forward, c->rows, s->tokens, n, NULL);
	}
	assert(r == 0);
	c->rows->observe = NULL;
	free(w.part);
	if (q->head_mean && methods == QUALITY_METHODS)
		score_without_model(c, q, runs);
}

void quality_context_fini(struct quality_context *c)
{
	for (int m = 0; m < QUALITY_METHODS; m++)
		free(c->score[m]);
	sequence_free(c->rows);
	memset(c, 0, sizeof(*c));
}

double quality_protect(float *score, uint32_t runs, uint32_t tokens, double r)
{
	uint64_t context = tokens - PROTECTED, window;
	double rest;

	assert(tokens > PROTECTED);
	select_window(context, 16000, 4096, r, &window, &rest);
	for (uint32_t run = 0; run < runs; run++) {
		float *s = score + (size_t)run * tokens;

		for (uint32_t t = 0; t < PROTECTED; t++)
			s[t] = INFINITY;
		for (uint64_t t = tokens - window; t < tokens; t++)
			s[t] = INFINITY;
	}
	return rest;
}
