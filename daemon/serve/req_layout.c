/* SPDX-License-Identifier: Apache-2.0 */
/* RegisterLayout: what a client's blocks look like and under which identity; the cache decides whether it adds up. */
#include <math.h>
#include <string.h>

#include "daemon/serve/request.h"

/* The gate of the model's own section in the configuration. */
#define GATE_AUTO "auto"

struct layout_args {
	struct cache_layout_spec spec;
};

static int copy_texts(
	struct request *r, const Kvgate__V1__RegisterLayout *m, struct cache_layout_spec *s)
{
	s->id.model = request_text(r, "model", m->model, REQUEST_NAME_MAX);
	s->id.revision = request_text(r, "revision", m->revision, REQUEST_NAME_MAX);
	s->id.key_namespace = request_text(r, "key_namespace", m->key_namespace, REQUEST_NAME_MAX);
	s->id.rope = request_text(r, "rope", m->rope, REQUEST_TEXT_MAX);
	s->id.eviction = request_text(r, "eviction", m->eviction, REQUEST_TEXT_MAX);
	s->gate = request_text(r, "gate", m->gate, OPTIONS_NAME_MAX);
	if (!s->id.model || !s->id.revision || !s->id.key_namespace || !s->id.rope ||
		!s->id.eviction || !s->gate)
		return KVG_CODE_BAD_ARGUMENT;
	if (!s->id.model[0])
		return request_refuse(
			r, KVG_CODE_BAD_ARGUMENT, "a layout needs the name of its model");
	return KVG_CODE_OK;
}

static int copy_gate(
	struct request *r, const Kvgate__V1__RegisterLayout *m, struct cache_layout_spec *s)
{
	uint32_t *ungated;

	if (m->n_edges > KVG_PLANES_MAX - 1)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT, "%zu edges: use at most %d",
			m->n_edges, KVG_PLANES_MAX - 1);
	if (m->gate_digest.len != 0 && m->gate_digest.len != sizeof(s->id.gate_digest))
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"gate_digest has %zu bytes: use 32, or none", m->gate_digest.len);
	if (m->n_ungated_layers > KVG_LAYERS_MAX)
		return request_refuse(r, KVG_CODE_BAD_LAYOUT,
			"%zu ungated layers: a model has at most %d", m->n_ungated_layers,
			KVG_LAYERS_MAX);
	for (size_t i = 0; i < m->n_edges; i++)
		if (!isfinite(m->edges[i]))
			return request_refuse(
				r, KVG_CODE_BAD_ARGUMENT, "edge %zu is not a number", i);
	s->id.n_edges = (uint32_t)m->n_edges;
	if (m->n_edges)
		memcpy(s->id.edges, m->edges, m->n_edges * sizeof(s->id.edges[0]));
	if (m->n_retained > KVG_PLANES_MAX - 1)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"%zu retained shares: use at most %d", m->n_retained, KVG_PLANES_MAX - 1);
	s->n_retained = (uint32_t)m->n_retained;
	if (m->n_retained)
		memcpy(s->retained, m->retained, m->n_retained * sizeof(s->retained[0]));
	if (m->gate_digest.len)
		memcpy(s->id.gate_digest, m->gate_digest.data, sizeof(s->id.gate_digest));
	ungated = request_alloc(r, m->n_ungated_layers + 1, sizeof(*ungated));
	if (m->n_ungated_layers)
		memcpy(ungated, m->ungated_layers, m->n_ungated_layers * sizeof(*ungated));
	s->ungated_layers = ungated;
	s->n_ungated = (uint32_t)m->n_ungated_layers;
	s->hidden_dtype = m->hidden_dtype;
	return KVG_CODE_OK;
}

int prep_register_layout(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__RegisterLayout *m = q->register_layout;
	struct layout_args *a = r->args = request_new(r, 1, struct layout_args);
	int code = copy_texts(r, m, &a->spec);

	if (code)
		return code;
	a->spec.id.shape = (struct kv_shape){
		.layers = m->layers,
		.heads = m->heads,
		.tokens = m->block_tokens,
		.k_dim = m->k_dim,
		.v_dim = m->v_dim,
		.dtype = m->dtype,
		.opaque_bytes = m->opaque_bytes,
	};
	a->spec.id.tp_rank = m->tp_rank;
	a->spec.id.tp_size = m->tp_size ? m->tp_size : 1;
	if (a->spec.id.tp_rank >= a->spec.id.tp_size)
		return request_refuse(r, KVG_CODE_BAD_LAYOUT,
			"tp_rank %u of tp_size %u: ranks begin at 0", m->tp_rank,
			a->spec.id.tp_size);
	return copy_gate(r, m, &a->spec);
}

static int resolve_gate(struct request *r, struct cache_layout_spec *s)
{
	const struct options_model *model =
		options_model_find(r->session->server->parts.options, s->id.model);
	const char *own = model ? model->gate : "";

	if (!strcmp(s->gate, GATE_AUTO)) {
		if (!own[0])
			return request_refuse(r, KVG_CODE_BAD_GATE,
				"no gate for model %.100s: kvgated.conf needs `gate` in a section "
				"[model %.100s]",
				s->id.model, s->id.model);
		s->gate = own;
	}
	s->gate_assigned = s->gate[0] && !strcmp(s->gate, own);
	return KVG_CODE_OK;
}

static ProtobufCBinaryData bytes_of(struct request *r, const uint8_t *from, size_t n)
{
	return (ProtobufCBinaryData){.len = n, .data = memcpy(request_alloc(r, n, 1), from, n)};
}

static float *edges_of(struct request *r, const struct layout_identity *id)
{
	float *copy = request_new(r, KVG_PLANES_MAX, float);

	return memcpy(copy, id->edges, id->n_edges * sizeof(*copy));
}

int run_register_layout(struct request *r)
{
	struct layout_args *a = r->args;
	Kvgate__V1__RegisterLayoutReply *m = request_new(r, 1, Kvgate__V1__RegisterLayoutReply);
	struct cache_layout *l;
	struct cache_layout_info i;
	int code = resolve_gate(r, &a->spec);

	if (!code)
		code = cache_layout_register(
			r->tenant->cache, &a->spec, &l, r->why, sizeof(r->why));
	if (!code)
		code = session_hold_layout(r->session, l);
	if (code)
		return code < 0 ? request_errno(r, code) : code;
	cache_layout_describe(l, &i);
	kvgate__v1__register_layout_reply__init(m);
	m->layout = i.id;
	m->fingerprint = bytes_of(r, i.fingerprint, sizeof(i.fingerprint));
	m->edges = edges_of(r, &i.identity);
	m->n_edges = i.identity.n_edges;
	m->page_bytes = i.page_bytes;
	m->gate_digest = bytes_of(r, i.identity.gate_digest, sizeof(i.identity.gate_digest));
	m->gated_layers = i.gated_layers;
	m->hidden = i.gate_info ? i.gate_info->hidden : 0;
	m->floor = i.floor;
	r->reply->body_case = KVGATE__V1__REPLY__BODY_REGISTER_LAYOUT;
	r->reply->register_layout = m;
	return KVG_CODE_OK;
}

void layout_info_fill(struct request *r, const struct cache_layout *l, Kvgate__V1__LayoutInfo *ret)
{
	struct cache_layout_info i;

	cache_layout_describe(l, &i);
	kvgate__v1__layout_info__init(ret);
	ret->layout = i.id;
	ret->model = (char *)(uintptr_t)i.identity.model;
	ret->gate = (char *)(uintptr_t)i.gate;
	ret->layers = i.identity.shape.layers;
	ret->heads = i.identity.shape.heads;
	ret->k_dim = i.identity.shape.k_dim;
	ret->v_dim = i.identity.shape.v_dim;
	ret->dtype = i.identity.shape.dtype;
	ret->block_tokens = i.identity.shape.tokens;
	ret->opaque_bytes = i.identity.shape.opaque_bytes;
	ret->page_bytes = i.page_bytes;
	ret->edges = edges_of(r, &i.identity);
	ret->n_edges = i.identity.n_edges;
	ret->fingerprint = bytes_of(r, i.fingerprint, sizeof(i.fingerprint));
	ret->floor = i.floor;
}
