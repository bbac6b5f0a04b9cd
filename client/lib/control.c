/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Requests that read or change what the daemon keeps, for tools. Messages become plain structs here, so that nobody
 * above needs protobuf; strings in them live as long as the callback.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *text(const char *s)
{
	return (char *)(uintptr_t)(s ? s : "");
}

int kvg_policy(struct kvg_client *c, struct kvg_policy *inout)
{
	Kvgate__V1__Policy m = KVGATE__V1__POLICY__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	const Kvgate__V1__PolicyReply *a;
	struct kvg_policy p;
	struct reply reply;
	int r = options_copy(c, &p, sizeof(p), inout);

	if (r < 0)
		return r;
	m.tenant = text(p.tenant);
	m.model = text(p.model);
	m.floor = p.floor;
	m.host_bytes = p.host_bytes;
	m.high_watermark = p.high_watermark;
	m.low_watermark = p.low_watermark;
	q.body_case = KVGATE__V1__REQUEST__BODY_POLICY;
	q.policy = &m;
	r = client_call(c, &q, &reply);
	if (r < 0)
		return r;
	a = reply.msg->policy;
	p.floor = a->floor;
	p.host_bytes = a->host_bytes;
	p.high_watermark = a->high_watermark;
	p.low_watermark = a->low_watermark;
	p.host_used = a->host_used;
	for (size_t i = 0; i < a->n_models && p.model_floor; i++)
		p.model_floor(p.userdata, a->models[i]->model, a->models[i]->floor);
	options_fill(inout, &p, sizeof(p));
	reply_fini(&reply);
	return 0;
}

static int purge_batch(struct kvg_client *c, const struct kvg_purge_options *o,
	ProtobufCBinaryData *keys, size_t n_keys, struct kvg_purge_result *add)
{
	Kvgate__V1__Purge m = KVGATE__V1__PURGE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	int r;

	m.tenant = text(o->tenant);
	m.layout = o->layout;
	m.keys = keys;
	m.n_keys = n_keys;
	m.keep_planes = o->keep_planes;
	q.body_case = KVGATE__V1__REQUEST__BODY_PURGE;
	q.purge = &m;
	r = client_call(c, &q, &reply);
	if (r < 0)
		return r;
	add->blocks += reply.msg->purge->blocks;
	add->planes += reply.msg->purge->planes;
	add->bytes += reply.msg->purge->bytes;
	add->pinned += reply.msg->purge->pinned;
	reply_fini(&reply);
	return 0;
}

int kvg_purge(
	struct kvg_client *c, const struct kvg_purge_options *options, struct kvg_purge_result *ret)
{
	ProtobufCBinaryData keys[KVG_BATCH_MAX];
	struct kvg_purge_result sum = {0};
	struct kvg_purge_options o;
	int r = options_copy(c, &o, sizeof(o), options);

	if (r == 0 && !o.keys)
		r = purge_batch(c, &o, NULL, 0, &sum); /* no keys in the message: all of them */
	for (size_t done = 0; o.keys && done < o.n_keys && r == 0;) {
		size_t n = 0;

		for (; n < KVG_BATCH_MAX && done < o.n_keys; done++)
			keys[n++] = (ProtobufCBinaryData){
				.len = KVG_KEY_BYTES,
				.data = (uint8_t *)(uintptr_t)o.keys[done].b,
			};
		r = purge_batch(c, &o, keys, n, &sum);
	}
	if (r == 0)
		*ret = sum;
	return r;
}

/* Every page of a stat, one after another; fn takes what it wants of each. */
static int stat_each(struct kvg_client *c, const char *tenant, int all,
	void (*fn)(void *userdata, const Kvgate__V1__StatReply *page), void *userdata)
{
	Kvgate__V1__Stat m = KVGATE__V1__STAT__INIT;

	m.tenant = text(tenant);
	m.all = all;
	do {
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		uint64_t from = m.cursor;
		struct reply reply;
		int r;

		q.body_case = KVGATE__V1__REQUEST__BODY_STAT;
		q.stat = &m;
		r = client_call(c, &q, &reply);
		if (r < 0)
			return r;
		fn(userdata, reply.msg->stat);
		m.cursor = reply.msg->stat->next;
		reply_fini(&reply);
		if (m.cursor && m.cursor <= from)
			return client_end(c, -EPROTO, "counters that do not end");
	} while (m.cursor);
	return 0;
}

struct counter_visit {
	kvg_counter_fn fn;
	void *userdata;
};

static void visit_counters(void *userdata, const Kvgate__V1__StatReply *page)
{
	const struct counter_visit *v = userdata;

	for (size_t i = 0; i < page->n_counters && v->fn; i++) {
		const Kvgate__V1__Counter *n = page->counters[i];

		v->fn(v->userdata, n->name, n->tenant, n->model, n->tier, n->plane, n->value);
	}
}

int kvg_stat(struct kvg_client *c, int all, kvg_counter_fn fn, void *userdata)
{
	struct counter_visit v = {fn, userdata};

	return stat_each(c, NULL, all, visit_counters, &v);
}

struct device_visit {
	kvg_device_fn fn;
	void *userdata;
	char *why;
	size_t why_size;
};

static void visit_devices(void *userdata, const Kvgate__V1__StatReply *page)
{
	const struct device_visit *v = userdata;

	if (v->why && page->no_device[0])
		snprintf(v->why, v->why_size, "%s", page->no_device);
	for (size_t i = 0; i < page->n_devices && v->fn; i++) {
		const Kvgate__V1__DeviceInfo *m = page->devices[i];
		struct kvg_device_entry d = {
			.size = sizeof(d),
			.device = m->device,
			.ordinal = m->ordinal,
			.bytes = m->bytes,
			.limit = m->limit,
			.segments = m->segments,
			.used = m->used,
			.copying = m->copying,
			.starts = m->starts,
			.mover = m->mover,
			.ready = m->ready,
		};

		memcpy(d.uuid, m->uuid.data, m->uuid.len < 16 ? m->uuid.len : 16);
		snprintf(d.name, sizeof(d.name), "%s", m->name);
		snprintf(d.why, sizeof(d.why), "%s", m->why);
		v->fn(v->userdata, &d);
	}
}

int kvg_devices(
	struct kvg_client *c, kvg_device_fn fn, void *userdata, char *ret_why, size_t why_size)
{
	struct device_visit v = {fn, userdata, ret_why, why_size};

	if (ret_why && why_size)
		ret_why[0] = '\0';
	return stat_each(c, NULL, 0, visit_devices, &v);
}

static void layout_entry(const Kvgate__V1__LayoutInfo *m, struct kvg_layout_entry *ret)
{
	struct kvg_layout_entry l = {
		.id = m->layout,
		.layers = m->layers,
		.heads = m->heads,
		.k_dim = m->k_dim,
		.v_dim = m->v_dim,
		.dtype = m->dtype,
		.block_tokens = m->block_tokens,
		.page_bytes = m->page_bytes,
		.n_edges = (uint32_t)m->n_edges,
		.floor = m->floor,
		.opaque_bytes = m->opaque_bytes,
	};

	if (m->n_edges) /* reply_parse() counted them */
		memcpy(l.edges, m->edges, m->n_edges * sizeof(l.edges[0]));
	if (m->fingerprint.len)
		memcpy(l.fingerprint, m->fingerprint.data, sizeof(l.fingerprint));
	snprintf(l.model, sizeof(l.model), "%s", m->model);
	snprintf(l.gate, sizeof(l.gate), "%s", m->gate);
	options_fill(ret, &l, sizeof(l));
}

struct layout_visit {
	kvg_layout_fn fn;
	void *userdata;
};

static void visit_layouts(void *userdata, const Kvgate__V1__StatReply *page)
{
	const struct layout_visit *v = userdata;
	struct kvg_layout_entry l = KVG_OPTIONS_INIT(kvg_layout_entry);

	for (size_t i = 0; i < page->n_layouts; i++) {
		layout_entry(page->layouts[i], &l);
		v->fn(v->userdata, &l);
	}
}

int kvg_layouts(struct kvg_client *c, const char *tenant, kvg_layout_fn fn, void *userdata)
{
	struct layout_visit v = {fn, userdata};

	return stat_each(c, tenant, 0, visit_layouts, &v);
}

static void block_entry(const Kvgate__V1__BlockInfo *m, struct kvg_block_entry *ret)
{
	struct kvg_block_entry b = {
		.has_parent = m->parent.len != 0,
		.layout = m->layout,
		.tokens = m->tokens,
		.depth = m->depth,
		.pins = m->pins,
		.children = m->children,
		.handle = kvg_handle_unpack(m->handle),
		.retention = m->retention,
		.bytes = m->bytes,
		.value = m->value,
		.n_planes = (uint32_t)m->n_planes,
	};

	memcpy(b.key.b, m->key.data, sizeof(b.key.b));
	if (m->parent.len)
		memcpy(b.parent.b, m->parent.data, sizeof(b.parent.b));
	for (size_t i = 0; i < m->n_planes; i++) {
		const Kvgate__V1__PlaneInfo *p = m->planes[i];

		b.planes[i] = (struct kvg_plane_entry){
			.plane = p->plane,
			.pairs = p->pairs,
			.bytes = p->bytes,
			.tier = p->tier,
			.segment = p->segment,
			.page = p->page,
			.verified = p->verified,
			.value = p->value,
		};
	}
	options_fill(ret, &b, sizeof(b));
}

int kvg_list(struct kvg_client *c, const struct kvg_list_options *options, kvg_block_fn fn,
	void *userdata)
{
	struct kvg_block_entry b = KVG_OPTIONS_INIT(kvg_block_entry);
	Kvgate__V1__List m = KVGATE__V1__LIST__INIT;
	struct kvg_list_options o;
	bool stop = false;
	int r = options_copy(c, &o, sizeof(o), options);

	if (r < 0)
		return r;
	m.tenant = text(o.tenant);
	m.layout = o.layout;
	do {
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		struct reply reply;
		uint64_t from = m.cursor;

		q.body_case = KVGATE__V1__REQUEST__BODY_LIST;
		q.list = &m;
		r = client_call(c, &q, &reply);
		if (r < 0)
			return r;
		for (size_t i = 0; i < reply.msg->list->n_blocks && !stop; i++) {
			block_entry(reply.msg->list->blocks[i], &b);
			stop = fn(userdata, &b) != 0;
		}
		m.cursor = reply.msg->list->next;
		reply_fini(&reply);
		if (m.cursor && m.cursor <= from)
			return client_end(c, -EPROTO, "a list that does not advance");
	} while (m.cursor && !stop);
	return 0;
}

int kvg_inspect(struct kvg_client *c, const struct kvg_inspect_options *options,
	struct kvg_block_entry *ret, struct kvg_layout_entry *ret_layout)
{
	Kvgate__V1__Inspect m = KVGATE__V1__INSPECT__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct kvg_inspect_options o;
	struct reply reply;
	int r = options_copy(c, &o, sizeof(o), options);

	if (r < 0)
		return r;
	m.tenant = text(o.tenant);
	m.key = (ProtobufCBinaryData){.len = sizeof(o.key.b), .data = o.key.b};
	m.layout = o.layout;
	m.verify = o.verify;
	q.body_case = KVGATE__V1__REQUEST__BODY_INSPECT;
	q.inspect = &m;
	r = client_call(c, &q, &reply);
	if (r < 0)
		return r;
	block_entry(reply.msg->inspect->block, ret);
	if (ret_layout)
		layout_entry(reply.msg->inspect->layout, ret_layout);
	reply_fini(&reply);
	return 0;
}

/* ---- small tools ---- */

const char *kvg_dtype_name(uint32_t dtype)
{
	return dtype_name(dtype);
}

uint32_t kvg_dtype_from_name(const char *name)
{
	return dtype_from_name(name);
}

void kvg_key_to_hex(const struct kvg_key *k, char ret[65])
{
	key_to_hex(k, ret);
}

int kvg_key_from_hex(const char *hex, struct kvg_key *ret)
{
	return key_from_hex(hex, ret);
}
