/* SPDX-License-Identifier: Apache-2.0 */
/* Contents that any process can make again: every byte is a hash of what it stands for. */
#include "tests/lib/harness.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct test_model model_small = {
	.name = "small",
	.layers = 4,
	.heads = 2,
	.k_dim = 16,
	.v_dim = 16,
	.dtype = KVG_DTYPE_BF16,
	.tokens = 32,
	.n_planes = 4,
};

const struct test_model model_deep = {
	.name = "deep",
	.layers = 8,
	.heads = 4,
	.k_dim = 16,
	.v_dim = 16,
	.dtype = KVG_DTYPE_BF16,
	.tokens = 64,
	.n_planes = 5,
};

const struct test_model model_wide = {
	.name = "wide",
	.layers = 32,
	.heads = 8,
	.k_dim = 64,
	.v_dim = 64,
	.dtype = KVG_DTYPE_BF16,
	.tokens = 64,
	.n_planes = 4,
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

void content_tokens(uint64_t seed, uint32_t n, uint32_t *ret)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = (uint32_t)(mix(seed * 1000003 + i) % 150000);
}

float content_score(uint64_t seed, uint32_t layer, uint32_t head, uint32_t token)
{
	uint64_t h = mix(seed ^ (uint64_t)layer << 40 ^ (uint64_t)head << 20 ^ token ^ 1ull << 60);

	return (float)(h >> 40) * 0x1p-24f;
}

void content_row(uint64_t seed, uint32_t layer, int is_v, uint32_t head, uint32_t token, void *ret,
	size_t bytes)
{
	uint8_t *p = ret;
	uint64_t base = seed ^ (uint64_t)layer << 40 ^ (uint64_t)is_v << 39 ^ (uint64_t)head << 20 ^
		token;

	for (size_t i = 0; i < bytes; i += 8) {
		uint64_t h = mix(base + (i << 44));

		memcpy(p + i, &h, bytes - i < 8 ? bytes - i : 8);
	}
}

static size_t dtype_size(uint32_t dtype)
{
	return dtype == KVG_DTYPE_F32                               ? 4
		: dtype == KVG_DTYPE_BF16 || dtype == KVG_DTYPE_F16 ? 2
								    : 1;
}

int model_try(struct kvg_client *c, const struct test_model *m, struct kvg_layout **ret)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	uint8_t digest[32] = "a gate of the test's own";
	float edges[KVG_PLANES_MAX];

	for (uint32_t i = 0; i + 1 < m->n_planes; i++)
		edges[i] = 1.f - (float)(i + 1) / (float)m->n_planes;
	o.model = m->name;
	o.layers = m->layers;
	o.heads = m->heads;
	o.k_dim = m->k_dim;
	o.v_dim = m->v_dim;
	o.dtype = m->dtype;
	o.block_tokens = m->tokens;
	if (m->n_planes > 1) {
		o.gate_digest = digest;
		o.edges = edges;
		o.n_edges = m->n_planes - 1;
	}
	return kvg_layout(c, &o, ret);
}

struct kvg_layout *model_register(struct kvg_client *c, const struct test_model *m)
{
	struct kvg_layout *l = NULL;

	if (model_try(c, m, &l)) {
		fprintf(stderr, "kvg_layout: %s\n", kvg_last_error(c));
		assert(!"kvg_layout failed");
	}
	return l;
}

void content_fill(const struct test_model *m, uint64_t seed, struct kvg_stage *s)
{
	size_t rows[2] = {m->k_dim * dtype_size(m->dtype), m->v_dim * dtype_size(m->dtype)};
	uint8_t *p = s->kv;
	float *score = s->aux;

	for (uint32_t l = 0; l < m->layers; l++)
		for (int v = 0; v < 2; v++)
			for (uint32_t h = 0; h < m->heads; h++)
				for (uint32_t t = 0; t < s->n_tokens; t++, p += rows[v])
					content_row(seed, l, v, h, t, p, rows[v]);
	if (s->aux_bytes)
		for (uint32_t l = 0; l < m->layers; l++)
			for (uint32_t h = 0; h < m->heads; h++)
				for (uint32_t t = 0; t < s->n_tokens; t++)
					*score++ = content_score(seed, l, h, t);
	content_tokens(seed, s->n_tokens, s->tokens);
}

static void compare_run(const struct test_model *m, uint64_t seed, const struct kvg_plane *p,
	uint32_t layer, uint32_t head)
{
	size_t k_row = m->k_dim * dtype_size(m->dtype), v_row = m->v_dim * dtype_size(m->dtype);
	uint32_t run = layer * m->heads + head;
	uint8_t want[16384];

	for (uint32_t i = p->cu[run]; i < p->cu[run + 1]; i++) {
		uint32_t t = p->index[i];

		assert(t < m->tokens);
		if (i > p->cu[run])
			assert(p->score[i] <=
				p->score[i - 1]); /* positive halves order as integers */
		content_row(seed, layer, 0, head, t, want, k_row);
		assert(!memcmp(want, (const uint8_t *)p->k + i * k_row, k_row));
		content_row(seed, layer, 1, head, t, want, v_row);
		assert(!memcmp(want, (const uint8_t *)p->v + i * v_row, v_row));
	}
}

uint64_t content_compare(
	const struct test_model *m, uint64_t seed, struct kvg_layout *l, const struct kvg_pin *pin)
{
	struct kvg_plane planes[KVG_PLANES_MAX];
	uint64_t pairs = 0;
	int n = kvg_planes(l, pin, planes);

	assert(n > 0);
	for (int i = 0; i < n; i++) {
		pairs += planes[i].pairs;
		for (uint32_t layer = 0; layer < m->layers; layer++)
			for (uint32_t head = 0; head < m->heads; head++)
				compare_run(m, seed, &planes[i], layer, head);
	}
	return pairs;
}

void chain_keys(struct kvg_layout *l, const struct test_model *m, uint64_t seed, uint32_t n,
	struct kvg_key *ret_keys)
{
	uint32_t *tokens = malloc(m->tokens * sizeof(*tokens));

	assert(tokens);
	for (uint32_t i = 0; i < n; i++) {
		content_tokens(seed + i, m->tokens, tokens);
		kvg_key_block(l, i ? &ret_keys[i - 1] : NULL, tokens, m->tokens, &ret_keys[i]);
	}
	free(tokens);
}

int chain_put(struct kvg_client *c, struct kvg_layout *l, const struct test_model *m, uint64_t seed,
	uint32_t n, struct kvg_key *ret_keys)
{
	int code = KVG_CODE_OK;

	chain_keys(l, m, seed, n, ret_keys);
	for (uint32_t i = 0; i < n && (code == KVG_CODE_OK || code == KVG_CODE_EXISTS); i++) {
		struct kvg_stage s;
		struct kvg_commit_result result = {0};
		struct kvg_commit item = {
			.stage = &s,
			.key = ret_keys[i],
			.parent = i ? &ret_keys[i - 1] : NULL,
		};

		assert(kvg_stage(l, m->n_planes > 1 ? KVG_INPUT_SCORES : KVG_INPUT_NONE, 1, &s) ==
			1);
		content_fill(m, seed + i, &s);
		assert(kvg_commit(c, &item, 1, &result) == 0);
		code = result.code;
	}
	return code;
}

int chain_put_child(void *task)
{
	const struct chain_task *t = task;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key *keys = calloc(t->n, sizeof(*keys));
	int code;

	assert(keys);
	if (t->tenant && strcmp(kvg_tenant(c), t->tenant))
		return 1;
	code = chain_put(c, l, &model_small, t->seed, t->n, keys);
	free(keys);
	kvg_close(c);
	return code == KVG_CODE_OK ? 0 : 2;
}
