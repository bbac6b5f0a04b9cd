/* SPDX-License-Identifier: Apache-2.0 */
/* A context through the daemon: staged with one method's scores, committed, pinned, and seen as prefixes of its runs. */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/shape.h"

#define BLOCK 256

struct kvg_layout *quality_layout(
	struct kvg_client *c, const struct quality *q, enum quality_method m)
{
	const struct model_config *config = &q->model->config;
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l = NULL;
	uint8_t digest[32] = {0};
	int r;

	snprintf((char *)digest, sizeof(digest), "quality %s", quality_name[m]);
	o.model = "lab";
	o.layers = config->layers;
	o.heads = config->kv_heads;
	o.k_dim = o.v_dim = config->head_dim;
	o.dtype = KVG_DTYPE_BF16;
	o.block_tokens = BLOCK;
	o.rope = q->model->rope;
	o.gate_digest = digest;
	o.edges = q->edges[m];
	o.n_edges = q->n_edges;
	r = kvg_layout(c, &o, &l);
	if (r) {
		fprintf(stderr, "bench_quality: %s\n", kvg_last_error(c));
		exit(1);
	}
	return l;
}

static void fill(
	const struct quality_context *x, const float *score, uint32_t from, struct kvg_stage *s)
{
	const struct model_config *m = x->rows->config;
	uint16_t *kv = s->kv;
	float *aux = s->aux;

	for (uint32_t layer = 0; layer < m->layers; layer++)
		for (int v = 0; v < 2; v++)
			for (uint32_t h = 0; h < m->kv_heads; h++)
				for (uint32_t t = from; t < from + s->n_tokens; t++) {
					uint32_t run = layer * m->kv_heads + h;
					const float *row = v ? sequence_v(x->rows, run, t)
							     : sequence_k(x->rows, run, t);

					for (uint32_t i = 0; i < m->head_dim; i++)
						*kv++ = bf16_from_f32(row[i]);
				}
	for (uint32_t run = 0; run < model_runs(m); run++, aux += s->n_tokens)
		memcpy(aux, score + (size_t)run * x->sample->n_tokens + from,
			s->n_tokens * sizeof(float));
	memcpy(s->tokens, x->sample->tokens + from, s->n_tokens * sizeof(uint32_t));
}

static void put_block(struct quality_planes *p, struct kvg_client *c,
	const struct quality_context *x, const float *score, uint32_t block)
{
	uint32_t from = block * BLOCK, n = x->sample->n_tokens - from;
	struct kvg_stage s;
	struct kvg_commit item = {.stage = &s, .parent = block ? &p->key[block - 1] : NULL};
	struct kvg_commit_result result;

	if (n > BLOCK)
		n = BLOCK;
	if (kvg_stage(p->layout, KVG_INPUT_SCORES, 1, &s) != 1 ||
		(n < BLOCK && kvg_stage_tokens(p->layout, KVG_INPUT_SCORES, &s, n))) {
		fprintf(stderr, "bench_quality: %s\n", kvg_last_error(c));
		exit(1);
	}
	fill(x, score, from, &s);
	kvg_key_block(p->layout, item.parent, s.tokens, n, &p->key[block]);
	item.key = p->key[block];
	if (kvg_commit(c, &item, 1, &result) || result.code != KVG_CODE_OK ||
		kvg_lookup_pin(p->layout, &item.key, 1.f, &p->pin[block])) {
		fprintf(stderr, "bench_quality: block %u: %s %s\n", block, result.error,
			kvg_last_error(c));
		exit(1);
	}
}

void quality_put(struct quality_planes *p, struct kvg_client *c, struct kvg_layout *l,
	const struct quality_context *x, enum quality_method m, const float *score)
{
	(void)m;
	p->layout = l;
	p->n_blocks = (x->sample->n_tokens + BLOCK - 1) / BLOCK;
	p->pin = calloc(p->n_blocks, sizeof(*p->pin));
	p->key = calloc(p->n_blocks, sizeof(*p->key));
	assert(p->pin && p->key);
	for (uint32_t b = 0; b < p->n_blocks; b++)
		put_block(p, c, x, score, b);
}

void quality_drop(struct quality_planes *p, struct kvg_client *c)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	kvg_unpin(c, p->pin, p->n_blocks);
	o.keys = p->key; /* the root: what hangs on it goes with it */
	o.n_keys = 1;
	if (kvg_purge(c, &o, &r)) {
		fprintf(stderr, "bench_quality: %s\n", kvg_last_error(c));
		exit(1);
	}
	free(p->pin);
	free(p->key);
	memset(p, 0, sizeof(*p));
}

static void add_runs(struct context *ret, const struct quality_planes *p, const uint32_t *len,
	uint32_t runs, struct kvg_plane (*planes)[KVG_PLANES_MAX], const int *n_planes, size_t row)
{
	uint32_t n = 0;

	for (uint32_t run = 0; run < runs; run++) {
		ret->first[run] = n;
		for (uint32_t b = 0; b < p->n_blocks; b++)
			for (int i = 0; i < n_planes[b]; i++) {
				const struct kvg_plane *pl = &planes[b][i];
				uint32_t at = pl->cu[run], rows = pl->cu[run + 1] - at;

				if (len)
					rows = len[((size_t)b * KVG_PLANES_MAX + pl->plane) * runs +
						run];
				if (!rows)
					continue;
				ret->run[n++] = (struct kv_run){
					.k = (const uint8_t *)pl->k + at * row,
					.v = (const uint8_t *)pl->v + at * row,
					.n = rows,
				};
				ret->pairs += rows;
			}
	}
	ret->first[runs] = n;
}

void quality_select(const struct quality_planes *p, const struct model_config *c,
	enum quality_method m, double retained, int full, struct context *ret)
{
	const uint32_t runs = model_runs(c);
	struct kvg_select_options o = KVG_OPTIONS_INIT(kvg_select_options);
	struct kvg_plane(*planes)[KVG_PLANES_MAX] = calloc(p->n_blocks, sizeof(*planes));
	int *n_planes = calloc(p->n_blocks, sizeof(*n_planes));
	uint32_t *len = calloc((size_t)p->n_blocks * KVG_PLANES_MAX * runs, sizeof(*len));

	assert(planes && n_planes && len);
	o.rule = m == QUALITY_EQUAL ? "head" : "pair";
	o.retained = retained;
	if (!full && kvg_select(p->layout, p->pin, p->n_blocks, &o, len)) {
		fprintf(stderr, "bench_quality: selection failed\n");
		exit(1);
	}
	memset(ret, 0, sizeof(*ret));
	ret->first = malloc((runs + 1) * sizeof(*ret->first));
	ret->run = malloc((size_t)runs * p->n_blocks * KVG_PLANES_MAX * sizeof(*ret->run));
	assert(ret->first && ret->run);
	ret->dtype = KVG_DTYPE_BF16;
	for (uint32_t b = 0; b < p->n_blocks; b++) {
		n_planes[b] = kvg_planes(p->layout, &p->pin[b], planes[b]);
		assert(n_planes[b] > 0);
		ret->tokens += p->pin[b].tokens;
	}
	add_runs(ret, p, full ? NULL : len, runs, planes, n_planes, c->head_dim * sizeof(uint16_t));
	free(planes);
	free(n_planes);
	free(len);
}
