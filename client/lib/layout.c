/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layout is registered once per client and then only read. The daemon's answer completes it: gate digest and band
 * edges when the gate is the daemon's. The fingerprint is computed on both sides and has to agree, because
 * from here on keys are computed here and checked there.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define DEFAULT_BLOCK_TOKENS 256u

/* protobuf-c has no const. */
static char *text(const char *s)
{
	return (char *)(uintptr_t)(s ? s : "");
}

static int check_options(struct kvg_client *c, const struct kvg_layout_options *o)
{
	struct kv_shape s = {
		.layers = o->layers,
		.heads = o->heads,
		.tokens = o->block_tokens,
		.k_dim = o->k_dim,
		.v_dim = o->v_dim,
		.dtype = o->dtype,
		.opaque_bytes = o->opaque_bytes,
	};
	const char *why;
	int r;

	r = shape_check(&s, &why);
	if (r < 0)
		return client_fail(c, r, KVG_CODE_BAD_LAYOUT, "%s", why);
	if (!o->model || !o->model[0])
		return client_fail(c, -EINVAL, KVG_CODE_BAD_LAYOUT, "model must be given");
	if (o->n_edges > KVG_PLANES_MAX - 1)
		return client_fail(c, -EINVAL, KVG_CODE_BAD_LAYOUT, "%u edges: at most %u",
			o->n_edges, KVG_PLANES_MAX - 1);
	if (o->n_edges && (!o->gate_digest || !o->edges))
		return client_fail(c, -EINVAL, KVG_CODE_BAD_LAYOUT,
			"edges need the digest of the gate they come from");
	if (o->n_ungated > KVG_LAYERS_MAX)
		return client_fail(c, -EINVAL, KVG_CODE_BAD_LAYOUT, "%u ungated layers: at most %u",
			o->n_ungated, KVG_LAYERS_MAX);
	return 0;
}

static void fill_request(const struct kvg_layout_options *o, Kvgate__V1__RegisterLayout *m)
{
	m->model = text(o->model);
	m->revision = text(o->revision);
	m->layers = o->layers;
	m->heads = o->heads;
	m->k_dim = o->k_dim;
	m->v_dim = o->v_dim;
	m->dtype = o->dtype;
	m->block_tokens = o->block_tokens;
	m->tp_rank = o->tp_rank;
	m->tp_size = o->tp_size;
	m->rope = text(o->rope);
	m->eviction = text(o->eviction);
	m->key_namespace = text(o->key_namespace);
	m->gate = text(o->gate);
	m->opaque_bytes = o->opaque_bytes;
	m->hidden_dtype = o->hidden_dtype;
	m->edges = (float *)(uintptr_t)o->edges;
	m->n_edges = o->n_edges;
	m->retained = (float *)(uintptr_t)o->retained;
	m->n_retained = o->retained ? o->n_edges : 0;
	m->ungated_layers = (uint32_t *)(uintptr_t)o->ungated_layers;
	m->n_ungated_layers = o->n_ungated;
	if (o->gate_digest)
		m->gate_digest = (ProtobufCBinaryData){
			.len = 32, .data = (uint8_t *)(uintptr_t)o->gate_digest};
}

static int check_fingerprint(struct kvg_layout *l, const struct kvg_layout_options *o)
{
	struct layout_identity id = {
		.shape = l->shape,
		.model = o->model,
		.revision = text(o->revision),
		.rope = text(o->rope),
		.eviction = text(o->eviction),
		.key_namespace = text(o->key_namespace),
		.tp_rank = o->tp_rank,
		.tp_size = o->tp_size,
		.n_edges = l->n_edges,
	};
	uint8_t mine[32];

	memcpy(id.gate_digest, l->gate_digest, sizeof(id.gate_digest));
	memcpy(id.edges, l->edges, sizeof(id.edges));
	layout_fingerprint(l->client->hasher, &id, mine);
	if (memcmp(mine, l->fingerprint, sizeof(mine)))
		return client_fail(l->client, -EPROTO, 0,
			"daemon and client disagree on the fingerprint; update the older side");
	return 0;
}

static void take_reply(struct kvg_layout *l, const struct kvg_layout_options *o,
	const Kvgate__V1__RegisterLayoutReply *m)
{
	l->id = m->layout;
	l->shape = (struct kv_shape){
		.layers = o->layers,
		.heads = o->heads,
		.tokens = o->block_tokens,
		.k_dim = o->k_dim,
		.v_dim = o->v_dim,
		.dtype = o->dtype,
		.opaque_bytes = o->opaque_bytes,
	};
	if (!o->opaque_bytes) {
		l->runs = shape_runs(&l->shape);
		l->k_row = (uint32_t)shape_k_row(&l->shape);
		l->v_row = (uint32_t)shape_v_row(&l->shape);
	}
	l->page_bytes = m->page_bytes;
	l->gated_layers = m->gated_layers;
	l->hidden = m->hidden;
	l->hidden_dtype = o->hidden_dtype;
	l->floor = m->floor;
	l->foreign_keys = o->key_namespace && o->key_namespace[0];
	l->n_edges =
		(uint32_t)m
			->n_edges; /* reply_parse(): at most KVG_PLANES_MAX - 1, and whole digests */
	if (m->n_edges)
		memcpy(l->edges, m->edges, m->n_edges * sizeof(l->edges[0]));
	memcpy(l->fingerprint, m->fingerprint.data, sizeof(l->fingerprint));
	if (m->gate_digest.len)
		memcpy(l->gate_digest, m->gate_digest.data, sizeof(l->gate_digest));
}

/* What the answer brings has to be within what sizes are computed from. */
static int check_reply(struct kvg_client *c, const struct kvg_layout *l)
{
	if (l->gated_layers > KVG_LAYERS_MAX || l->hidden > KVG_HIDDEN_MAX)
		return client_fail(c, -EPROTO, 0, "the daemon's gate has %u layers of %u",
			l->gated_layers, l->hidden);
	return 0;
}

/* The message is kept for the next daemon. */
static int keep_registration(struct kvg_layout *l, const Kvgate__V1__RegisterLayout *m)
{
	l->registration_bytes = kvgate__v1__register_layout__get_packed_size(m);
	l->registration = malloc(l->registration_bytes + 1);
	if (!l->registration)
		return client_fail(l->client, -ENOMEM, 0, "out of memory");
	kvgate__v1__register_layout__pack(m, l->registration);
	return 0;
}

int layout_register_again(struct kvg_layout *l)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	const Kvgate__V1__RegisterLayoutReply *m;
	struct reply reply;
	int r;

	q.body_case = KVGATE__V1__REQUEST__BODY_REGISTER_LAYOUT;
	q.register_layout =
		kvgate__v1__register_layout__unpack(NULL, l->registration_bytes, l->registration);
	if (!q.register_layout)
		return client_fail(l->client, -ENOMEM, 0, "out of memory");
	r = client_call(l->client, &q, &reply);
	kvgate__v1__register_layout__free_unpacked(q.register_layout, NULL);
	if (r < 0)
		return r;
	m = reply.msg->register_layout;
	if (m->layout != l->id || memcmp(m->fingerprint.data, l->fingerprint, 32))
		r = client_fail(l->client, -ESTALE, 0,
			"the daemon knows layout %u as another one now; open a new connection",
			l->id);
	reply_fini(&reply);
	return r;
}

static void layout_free(struct kvg_layout *l)
{
	free(l->registration);
	free(l);
}

int kvg_layout(
	struct kvg_client *c, const struct kvg_layout_options *options, struct kvg_layout **ret)
{
	Kvgate__V1__RegisterLayout m = KVGATE__V1__REGISTER_LAYOUT__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct kvg_layout_options o;
	struct kvg_layout *l;
	struct reply reply;
	int r;

	r = options_copy(c, &o, sizeof(o), options);
	if (r < 0)
		return r;
	if (!o.block_tokens)
		o.block_tokens = DEFAULT_BLOCK_TOKENS;
	if (!o.tp_size)
		o.tp_size = 1;
	r = check_options(c, &o);
	if (r < 0)
		return r;
	l = calloc(1, sizeof(*l));
	if (!l)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	l->client = c;
	fill_request(&o, &m);
	q.body_case = KVGATE__V1__REQUEST__BODY_REGISTER_LAYOUT;
	q.register_layout = &m;
	r = keep_registration(l, &m);
	if (r == 0)
		r = client_call(c, &q, &reply);
	if (r == 0) {
		take_reply(l, &o, reply.msg->register_layout);
		reply_fini(&reply);
		r = check_reply(c, l);
	}
	if (r == 0)
		r = check_fingerprint(l, &o);
	if (r < 0) {
		layout_free(l);
		return r;
	}
	l->next = c->layouts;
	c->layouts = l;
	*ret = l;
	return 0;
}

void layouts_fini(struct kvg_client *c)
{
	while (c->layouts) {
		struct kvg_layout *l = c->layouts;

		c->layouts = l->next;
		layout_free(l);
	}
}

void kvg_layout_describe(const struct kvg_layout *l, struct kvg_layout_info *ret)
{
	struct kvg_layout_info i = {
		.id = l->id,
		.layers = l->shape.layers,
		.heads = l->shape.heads,
		.k_dim = l->shape.k_dim,
		.v_dim = l->shape.v_dim,
		.dtype = l->shape.dtype,
		.block_tokens = l->shape.tokens,
		.page_bytes = l->page_bytes,
		.n_planes = l->n_edges + 1,
		.gated_layers = l->gated_layers,
		.hidden = l->hidden,
		.floor = l->floor,
		.opaque_bytes = l->shape.opaque_bytes,
	};

	memcpy(i.fingerprint, l->fingerprint, sizeof(i.fingerprint));
	memcpy(i.gate_digest, l->gate_digest, sizeof(i.gate_digest));
	memcpy(i.edges, l->edges, sizeof(i.edges));
	options_fill(ret, &i, sizeof(i));
}

size_t kvg_key_chain(const struct kvg_layout *l, const struct kvg_key *parent,
	const uint32_t *tokens, size_t n_tokens, struct kvg_key *ret)
{
	size_t n = n_tokens / l->shape.tokens;

	for (size_t i = 0; i < n; i++) {
		key_block(l->client->hasher, parent, l->fingerprint, tokens + i * l->shape.tokens,
			l->shape.tokens, &ret[i]);
		parent = &ret[i];
	}
	return n;
}

void kvg_key_block(const struct kvg_layout *l, const struct kvg_key *parent, const uint32_t *tokens,
	size_t n_tokens, struct kvg_key *ret)
{
	key_block(l->client->hasher, parent, l->fingerprint, tokens, (uint32_t)n_tokens, ret);
}
