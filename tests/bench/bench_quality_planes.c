/* SPDX-License-Identifier: Apache-2.0 */
/* A context through the daemon: staged with one method's scores, committed, pinned, and seen as prefixes of its runs. */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 256

struct kvg_layout *quality_layout(
	struct kvg_client *c, const struct quality *q, enum quality_method m, unsigned job)
{
	const struct model_config *config = &q->model->config;
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l = NULL;
	uint8_t digest[32] = {0};
	int r;

	snprintf((char *)digest, sizeof(digest), "quality %s %u", quality_name[m], job);
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

static void fill(const struct store *store, const struct quality_context *x, const float *score,
	uint32_t from, struct kvg_stage *s)
{
	float *aux = s->aux;

	store_fill_kv(store, x->rows, from, s);
	for (uint32_t run = 0; run < model_runs(store->config); run++, aux += s->n_tokens)
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
	struct kvg_commit_result result = {0};

	if (n > BLOCK)
		n = BLOCK;
	if (kvg_stage(p->store.layout, KVG_INPUT_SCORES, 1, &s) != 1 ||
		(n < BLOCK && kvg_stage_tokens(p->store.layout, KVG_INPUT_SCORES, &s, n))) {
		fprintf(stderr, "bench_quality: %s\n", kvg_last_error(c));
		exit(1);
	}
	fill(&p->store, x, score, from, &s);
	kvg_key_block(p->store.layout, item.parent, s.tokens, n, &p->key[block]);
	item.key = p->key[block];
	if (kvg_commit(c, &item, 1, &result) || result.code != KVG_CODE_OK ||
		kvg_lookup_pin(p->store.layout, &item.key, 1.f, &p->pin[block])) {
		fprintf(stderr, "bench_quality: block %u: %s %s\n", block, result.error,
			kvg_last_error(c));
		exit(1);
	}
}

void quality_put(struct quality_planes *p, struct kvg_client *c, struct kvg_layout *l,
	const struct quality_context *x, const float *score)
{
	p->store = (struct store){.client = c,
		.layout = l,
		.config = x->rows->config,
		.block_tokens = BLOCK,
		.dtype = KVG_DTYPE_BF16,
		.input = KVG_INPUT_SCORES};
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

void quality_select(struct quality_planes *p, enum quality_method m, double retained, int full,
	struct context *ret)
{
	const uint32_t runs = model_runs(p->store.config);
	struct kvg_select_options o = KVG_OPTIONS_INIT(kvg_select_options);
	uint32_t *len = calloc((size_t)p->n_blocks * KVG_PLANES_MAX * runs, sizeof(*len));
	uint64_t bytes;

	assert(len);
	o.rule = m == QUALITY_EQUAL ? "head" : "pair";
	o.retained = retained;
	if ((!full && kvg_select(p->store.layout, p->pin, p->n_blocks, &o, len)) ||
		store_context(&p->store, p->pin, p->n_blocks, full ? NULL : len, ret, &bytes)) {
		fprintf(stderr, "bench_quality: %s\n", kvg_last_error(p->store.client));
		exit(1);
	}
	free(len);
}
