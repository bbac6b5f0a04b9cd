/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gates/gate.h for programs outside the tree: one loaded gate with the scratch of the one thread that uses it. The
 * scratch grows to the longest call and stays.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate.h"

struct kvg_gate {
	struct gate *gate;
	struct gate_scratch *scratch;
	uint32_t scratch_tokens;
};

int kvg_gate_open(const char *path, struct kvg_gate **ret)
{
	struct kvg_gate *g = calloc(1, sizeof(*g));
	char why[400] = "";
	int r;

	if (!g)
		return client_fail(NULL, -ENOMEM, 0, "out of memory");
	r = gate_load(path, &g->gate, why, sizeof(why));
	if (r < 0) {
		free(g);
		return client_fail(
			NULL, r, KVG_CODE_BAD_GATE, "%s: %s", path, why[0] ? why : strerror(-r));
	}
	*ret = g;
	return 0;
}

void kvg_gate_close(struct kvg_gate *g)
{
	if (!g)
		return;
	gate_scratch_free(g->scratch);
	gate_free(g->gate);
	free(g);
}

void kvg_gate_describe(const struct kvg_gate *g, uint32_t *layers, uint32_t *heads,
	uint32_t *groups, uint32_t *hidden, uint8_t digest[32], uint32_t *n_edges,
	float edges[KVG_PLANES_MAX - 1])
{
	const struct gate_info *i = gate_info(g->gate);

	if (layers)
		*layers = i->layers;
	if (heads)
		*heads = i->heads;
	if (groups)
		*groups = i->groups;
	if (hidden)
		*hidden = i->hidden;
	if (digest)
		memcpy(digest, i->digest, sizeof(i->digest));
	if (n_edges)
		*n_edges = i->n_edges;
	if (edges)
		memcpy(edges, i->edges, sizeof(i->edges));
}

uint32_t kvg_gate_retained(const struct kvg_gate *g, float ret[KVG_PLANES_MAX - 1])
{
	const struct gate_info *i = gate_info(g->gate);

	memcpy(ret, i->quantiles, i->n_edges * sizeof(ret[0]));
	return i->n_edges;
}

int kvg_gate_score(struct kvg_gate *g, uint32_t layer, const void *x, uint32_t dtype,
	uint32_t tokens, int exact, float *ret)
{
	const struct gate_info *i = gate_info(g->gate);

	if (layer >= i->layers || (dtype != KVG_DTYPE_BF16 && dtype != KVG_DTYPE_F32))
		return client_fail(NULL, -EINVAL, 0,
			"layer %u of %u, dtype %u: hidden states are bf16 or f32", layer, i->layers,
			dtype);
	if (tokens == 0)
		return 0;
	if (tokens > g->scratch_tokens) {
		struct gate_scratch *s;
		int r = gate_scratch_new(g->gate, tokens, &s);

		if (r < 0)
			return client_fail(
				NULL, r, 0, "no memory for the scratch of %u tokens", tokens);
		gate_scratch_free(g->scratch);
		g->scratch = s;
		g->scratch_tokens = tokens;
	}
	gate_score(g->gate, layer, x, dtype, i->hidden, tokens, exact ? GATE_EXACT : GATE_FAST,
		GATE_ISA_AUTO, g->scratch, ret, tokens);
	return 0;
}
