/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A layout is found again by its fingerprint: whoever would read the same bytes in the same way shares its blocks. What
 * the fingerprint does not cover says only how scores come to be - which layers the gate scores, and whether the
 * daemon has the gate at all. A reader need not know that, so a later registration may add it; two writers that
 * contradict each other get layouts of their own.
 *
 * A layout stays until its place is needed and nobody holds it: no session, no block, no commit. Ids are not used again:
 * a place's next layout has the id of the last one and LAYOUTS_MAX.
 */
#include "daemon/cache/layout.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/keep.h"
#include "daemon/cache/pack.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"

/* GATES.md's floor: the best pair of every head survives in plane 0, one per so many tokens, so that no head starves. */
#define TOKENS_PER_FLOOR_PAIR 256

struct why {
	char *text;
	size_t size;
};

static int refuse(const struct why *why, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
static int refuse(const struct why *why, int code, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(why->text, why->size, fmt, args);
	va_end(args);
	return code;
}

/* ---- gates ---- */

static struct cache_gate *gate_named(struct cache *c, const char *name)
{
	struct cache_gate *g = c->gates;

	while (g && (g->retired || strcmp(g->name, name)))
		g = g->next;
	return g;
}

int cache_add_gate(struct cache *c, const char *name, struct gate *gate)
{
	struct cache_gate *g;

	loop_assert_owner(c->loop);
	if (gate_named(c, name))
		return -EEXIST;
	g = calloc(1, sizeof(*g));
	if (!g)
		return -ENOMEM;
	g->name = strdup(name);
	if (!g->name) {
		free(g);
		return -ENOMEM;
	}
	g->gate = gate;
	g->next = c->gates;
	c->gates = g;
	return 0;
}

static void gates_drop(struct cache *c, bool all)
{
	for (struct cache_gate **at = &c->gates, *g; (g = *at);) {
		if (!all && (!g->retired || g->layouts)) {
			at = &g->next;
			continue;
		}
		*at = g->next;
		gate_free(g->gate);
		free(g->name);
		free(g);
	}
}

void cache_retire_gates(struct cache *c)
{
	loop_assert_owner(c->loop);
	for (struct cache_gate *g = c->gates; g; g = g->next)
		g->retired = true;
	gates_drop(c, false);
}

void layout_gates_free(struct cache *c)
{
	gates_drop(c, true);
}

/* ---- what a client says, checked ---- */

static const char *const text_names[] = {"model", "revision", "rope", "eviction", "key_namespace"};

static void texts(const struct layout_identity *id, const char *ret[5])
{
	ret[0] = id->model;
	ret[1] = id->revision;
	ret[2] = id->rope;
	ret[3] = id->eviction;
	ret[4] = id->key_namespace;
}

static int check_identity(
	const struct layout_identity *id, uint64_t segment_bytes, const struct why *why)
{
	struct plane_geometry g;
	const char *text[5], *reason;

	texts(id, text);
	for (int i = 0; i < 5; i++)
		if (strlen(text[i]) > LAYOUT_TEXT_MAX)
			return refuse(why, KVG_CODE_BAD_LAYOUT, "%s is longer than %d bytes",
				text_names[i], LAYOUT_TEXT_MAX);
	if (!id->model[0])
		return refuse(why, KVG_CODE_BAD_LAYOUT, "model must not be empty");
	if (shape_check(&id->shape, &reason) < 0)
		return refuse(why, KVG_CODE_BAD_LAYOUT, "%s", reason);
	if (id->tp_size == 0 || id->tp_rank >= id->tp_size)
		return refuse(why, KVG_CODE_BAD_LAYOUT, "tp_rank must be less than tp_size");
	plane_geometry(shape_runs(&id->shape), shape_runs(&id->shape) * id->shape.tokens,
		id->shape.tokens, (uint32_t)shape_k_row(&id->shape),
		(uint32_t)shape_v_row(&id->shape), id->shape.opaque_bytes, &g);
	if (g.bytes > segment_bytes)
		return refuse(why, KVG_CODE_BAD_LAYOUT,
			"one block is %llu bytes, more than a segment: use fewer block_tokens or "
			"raise segment_bytes",
			(unsigned long long)g.bytes);
	return KVG_CODE_OK;
}

static int check_edges(
	const struct cache_layout_spec *s, const struct layout_identity *id, const struct why *why)
{
	static const uint8_t none[32];

	if (id->n_edges > KVG_PLANES_MAX - 1)
		return refuse(why, KVG_CODE_BAD_ARGUMENT, "at most %d edges", KVG_PLANES_MAX - 1);
	if (id->n_edges && !memcmp(id->gate_digest, none, sizeof(none)))
		return refuse(why, KVG_CODE_BAD_ARGUMENT, "edges without a gate or its digest");
	for (uint32_t i = 0; i < id->n_edges; i++) {
		if (!isfinite(id->edges[i]))
			return refuse(
				why, KVG_CODE_BAD_ARGUMENT, "edge %u is not a finite number", i);
		if (i && !(id->edges[i] < id->edges[i - 1]))
			return refuse(why, KVG_CODE_BAD_ARGUMENT,
				"edges must descend; edge %u does not", i);
	}
	if (s->n_retained && s->n_retained != id->n_edges)
		return refuse(why, KVG_CODE_BAD_ARGUMENT,
			"%u retained shares for %u edges: give one for each, or none",
			s->n_retained, id->n_edges);
	for (uint32_t i = 0; i < s->n_retained; i++)
		if (!(s->retained[i] > (i ? s->retained[i - 1] : 0)) || !(s->retained[i] <= 1))
			return refuse(why, KVG_CODE_BAD_ARGUMENT,
				"retained shares must ascend between 0 and 1; share %u does not",
				i);
	return KVG_CODE_OK;
}

static int check_ungated(const struct cache_layout_spec *s, const struct why *why)
{
	for (uint32_t i = 0; i < s->n_ungated; i++) {
		if (s->ungated_layers[i] >= s->id.shape.layers)
			return refuse(why, KVG_CODE_BAD_ARGUMENT, "ungated layer %u does not exist",
				s->ungated_layers[i]);
		if (i && s->ungated_layers[i] <= s->ungated_layers[i - 1])
			return refuse(why, KVG_CODE_BAD_ARGUMENT, "ungated layers must ascend");
	}
	if (s->n_ungated && s->n_ungated == s->id.shape.layers && s->gate[0])
		return refuse(why, KVG_CODE_BAD_GATE, "a gate, but no layer that it scores");
	return KVG_CODE_OK;
}

/* Puts the named gate's digest and edges into force. */
static int apply_gate(struct cache *c, const struct cache_layout_spec *s,
	struct layout_identity *id, struct cache_gate **ret, const struct why *why)
{
	static const uint8_t none[32];
	const struct gate_info *info;
	struct cache_gate *g;

	if (!s->gate[0]) {
		if (s->hidden_dtype)
			return refuse(why, KVG_CODE_BAD_ARGUMENT,
				"hidden_dtype without a gate that would score");
		return KVG_CODE_OK;
	}
	g = gate_named(c, s->gate);
	if (!g)
		return refuse(why, KVG_CODE_BAD_GATE,
			"no gate of the name \"%.100s\" is configured", s->gate);
	info = gate_info(g->gate);
	if (id->shape.opaque_bytes)
		return refuse(why, KVG_CODE_BAD_GATE,
			"an opaque layout has no pairs that a gate could score");
	if (info->model[0] && strcmp(info->model, id->model) && !s->gate_assigned)
		return refuse(why, KVG_CODE_BAD_GATE,
			"gate \"%.60s\" was made for model \"%.80s\": if it fits this one too, "
			"name it in kvgated.conf: [model ...] gate = %.60s",
			s->gate, info->model, s->gate);
	if (info->layers != id->shape.layers - s->n_ungated || info->heads != id->shape.heads)
		return refuse(why, KVG_CODE_BAD_GATE,
			"gate \"%.100s\" is for %u layers of %u heads, the layout has %u gated "
			"ones of %u",
			s->gate, info->layers, info->heads, id->shape.layers - s->n_ungated,
			id->shape.heads);
	if (s->hidden_dtype && s->hidden_dtype != KVG_DTYPE_BF16 &&
		s->hidden_dtype != KVG_DTYPE_F32)
		return refuse(why, KVG_CODE_BAD_ARGUMENT, "hidden_dtype must be bf16 or f32");
	if (memcmp(id->gate_digest, none, sizeof(none)) &&
		memcmp(id->gate_digest, info->digest, sizeof(info->digest)))
		return refuse(why, KVG_CODE_BAD_GATE,
			"gate \"%.100s\" has another digest than the one given", s->gate);
	if (id->n_edges &&
		(id->n_edges != info->n_edges ||
			memcmp(id->edges, info->edges, id->n_edges * sizeof(float))))
		return refuse(why, KVG_CODE_BAD_GATE,
			"gate \"%.100s\" has its own edges: give none", s->gate);
	memcpy(id->gate_digest, info->digest, sizeof(info->digest));
	id->n_edges = info->n_edges;
	memcpy(id->edges, info->edges, sizeof(id->edges));
	*ret = g;
	return KVG_CODE_OK;
}

/* ---- life ---- */

struct cache_layout *layout_free(struct cache_layout *l)
{
	const char *text[5];

	if (!l)
		return NULL;
	texts(&l->identity, text);
	for (int i = 0; i < 5; i++)
		free((char *)text[i]);
	if (l->gate)
		l->gate->layouts--;
	free(l->layer_gate);
	free(l);
	return NULL;
}

static int map_layers(struct cache_layout *l, const struct cache_layout_spec *s)
{
	const uint32_t layers = l->identity.shape.layers;
	uint32_t gated = 0, u = 0;

	if (!layers)
		return 0;
	l->layer_gate = calloc(layers, sizeof(*l->layer_gate));
	if (!l->layer_gate)
		return -ENOMEM;
	for (uint32_t i = 0; i < layers; i++) {
		bool skip = u < s->n_ungated && s->ungated_layers[u] == i;

		u += skip;
		l->layer_gate[i] = skip ? UINT32_MAX : gated++;
	}
	l->gated_layers = gated;
	return 0;
}

/* What calibration said of the bands: the gate's own word, or the client's. */
static void take_retained(
	struct cache_layout *l, const struct cache_layout_spec *s, const struct cache_gate *gate)
{
	const float *from = gate ? gate_info(gate->gate)->quantiles : s->retained;
	uint32_t n = gate ? gate_info(gate->gate)->n_edges : s->n_retained;

	if (l->n_retained || !n)
		return;
	memcpy(l->retained, from, n * sizeof(l->retained[0]));
	l->n_retained = n;
}

static struct cache_layout *layout_new(struct cache_tenant *t, const struct cache_layout_spec *s,
	const struct layout_identity *id, struct cache_gate *gate)
{
	struct cache_layout *l = calloc(1, sizeof(*l));
	const char *text[5];
	char *copy[5];
	bool whole = true;

	if (!l)
		return NULL;
	texts(id, text);
	for (int i = 0; i < 5; i++) {
		copy[i] = strdup(text[i]);
		whole = whole && copy[i];
	}
	l->identity = *id;
	l->identity.model = copy[0];
	l->identity.revision = copy[1];
	l->identity.rope = copy[2];
	l->identity.eviction = copy[3];
	l->identity.key_namespace = copy[4];
	if (!whole || map_layers(l, s) < 0 ||
		counters_scope(t->cache->counters, t->name, copy[0], &l->counters) < 0)
		return layout_free(l);
	l->tenant = t;
	l->gate = gate;
	if (gate)
		gate->layouts++;
	l->hidden_dtype = s->hidden_dtype;
	take_retained(l, s, gate);
	l->floor = tenant_floor(t, copy[0]);
	l->page_shift = pack_page_shift(&id->shape, layout_planes(l));
	l->floor_pairs = (id->shape.tokens + TOKENS_PER_FLOOR_PAIR - 1) / TOKENS_PER_FLOOR_PAIR;
	return l;
}

/* Same layers ungated, and nothing that contradicts how hidden states come in? Takes over what it did not know. */
static bool joins(
	struct cache_layout *l, const struct cache_layout_spec *s, struct cache_gate *gate)
{
	const struct cache_layout was = *l;
	uint32_t u = 0;

	if (l->hidden_dtype && s->hidden_dtype && l->hidden_dtype != s->hidden_dtype)
		return false;
	for (uint32_t i = 0; i < l->identity.shape.layers; i++) {
		bool skip = u < s->n_ungated && s->ungated_layers[u] == i;

		u += skip;
		if (skip != (l->layer_gate[i] == UINT32_MAX))
			return false;
	}
	if (gate && !l->gate) {
		l->gate = gate;
		gate->layouts++;
	}
	if (!l->hidden_dtype)
		l->hidden_dtype = s->hidden_dtype;
	take_retained(l, s, gate);
	if (l->gate != was.gate || l->hidden_dtype != was.hidden_dtype ||
		l->n_retained != was.n_retained)
		keep_layout(l); /* if that fails, the next daemon has to learn it again */
	return true;
}

/* The first place that is free, or whose layout nobody holds and whose ids are not used up; LAYOUTS_MAX: none. */
static uint32_t place(const struct cache_tenant *t)
{
	uint32_t at = t->n_layouts;

	if (at == LAYOUTS_MAX)
		for (at = 0; at < LAYOUTS_MAX; at++)
			if (!t->layouts[at]->holders &&
				t->layouts[at]->id <= UINT32_MAX - LAYOUTS_MAX)
				break;
	return at;
}

static void put_in_place(struct cache_tenant *t, uint32_t at, struct cache_layout *l)
{
	if (at == t->n_layouts)
		t->n_layouts++;
	else
		layout_free(t->layouts[at]);
	t->layouts[at] = l;
}

/* What the next daemon does not know, nobody may put blocks into. */
static bool take_place(struct cache_tenant *t, uint32_t at, struct cache_layout *l)
{
	l->id = at == t->n_layouts ? at + 1 : t->layouts[at]->id + LAYOUTS_MAX;
	if (keep_layout(l) < 0) {
		layout_free(l);
		return false;
	}
	put_in_place(t, at, l);
	return true;
}

int cache_layout_register(struct cache_tenant *t, const struct cache_layout_spec *s,
	struct cache_layout **ret, char *ret_why, size_t why_size)
{
	const struct why why = {ret_why, why_size};
	struct layout_identity id = s->id;
	struct cache_gate *gate = NULL;
	struct cache_layout *l;
	uint8_t fingerprint[32];
	uint32_t at;
	int code;

	loop_assert_owner(t->cache->loop);
	id.tp_size = id.tp_size ? id.tp_size : 1;
	code = check_identity(&id, t->cache->o.segment_bytes, &why);
	if (code == KVG_CODE_OK)
		code = check_ungated(s, &why);
	if (code == KVG_CODE_OK)
		code = apply_gate(t->cache, s, &id, &gate, &why);
	if (code == KVG_CODE_OK)
		code = check_edges(s, &id, &why);
	if (code != KVG_CODE_OK)
		return code;
	layout_fingerprint(t->cache->hasher, &id, fingerprint);
	for (uint32_t i = 0; i < t->n_layouts; i++)
		if (!memcmp(t->layouts[i]->fingerprint, fingerprint, 32) &&
			joins(t->layouts[i], s, gate)) {
			*ret = t->layouts[i];
			return KVG_CODE_OK;
		}
	at = place(t);
	if (at == LAYOUTS_MAX)
		return refuse(&why, KVG_CODE_QUOTA,
			"the tenant has %d layouts in use: purge the blocks of some, or end the "
			"sessions that registered them",
			LAYOUTS_MAX);
	l = layout_new(t, s, &id, gate);
	if (!l)
		return refuse(&why, KVG_CODE_NO_MEMORY, "out of memory");
	memcpy(l->fingerprint, fingerprint, sizeof(fingerprint));
	if (!take_place(t, at, l))
		return refuse(&why, KVG_CODE_NO_MEMORY, "out of memory");
	*ret = l;
	return KVG_CODE_OK;
}

/* ---- those of an earlier daemon ---- */

/* Holds the place of a layout that could not be read; nobody finds it, and whoever needs the place takes it. */
static int fill_gap(struct cache_tenant *t)
{
	struct cache_layout *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	l->identity.model = strdup("");
	l->identity.revision = strdup("");
	l->identity.rope = strdup("");
	l->identity.eviction = strdup("");
	l->identity.key_namespace = strdup("");
	if (!l->identity.model || !l->identity.revision || !l->identity.rope ||
		!l->identity.eviction || !l->identity.key_namespace) {
		layout_free(l);
		return -ENOMEM;
	}
	l->tenant = t;
	l->counters = t->counters;
	l->page_shift = 16;
	l->id = t->n_layouts + 1;
	put_in_place(t, t->n_layouts, l);
	return 0;
}

int layout_adopt(struct cache_tenant *t, uint32_t id, const uint8_t fingerprint[32],
	const struct cache_layout_spec *s)
{
	const uint32_t at = (id - 1) % LAYOUTS_MAX;
	struct cache_gate *gate = s->gate[0] ? gate_named(t->cache, s->gate) : NULL;
	char text[200];
	const struct why why = {text, sizeof(text)};
	struct cache_layout *l;
	uint8_t own[32];
	int r = 0;

	if (!id || check_identity(&s->id, UINT64_MAX, &why) || check_ungated(s, &why) ||
		check_edges(s, &s->id, &why))
		return -EBADMSG;
	layout_fingerprint(t->cache->hasher, &s->id, own);
	if (memcmp(own, fingerprint, sizeof(own)) || (at < t->n_layouts && t->layouts[at]->id > id))
		return -EBADMSG;
	if (gate && memcmp(gate_info(gate->gate)->digest, s->id.gate_digest, 32))
		gate = NULL;
	while (at > t->n_layouts && r == 0)
		r = fill_gap(t);
	if (r < 0)
		return r;
	l = layout_new(t, s, &s->id, gate);
	if (!l)
		return -ENOMEM;
	memcpy(l->fingerprint, fingerprint, sizeof(own));
	l->id = id;
	put_in_place(t, at, l);
	return 0;
}

struct cache_layout *cache_layout_get(struct cache_tenant *t, uint32_t id)
{
	const uint32_t at = (id - 1) % LAYOUTS_MAX;

	return id && at < t->n_layouts && t->layouts[at]->id == id ? t->layouts[at] : NULL;
}

struct cache_layout *cache_layout_at(struct cache_tenant *t, unsigned i)
{
	return i < t->n_layouts ? t->layouts[i] : NULL;
}

void cache_layout_hold(struct cache_layout *l)
{
	l->holders++;
}

void cache_layout_drop(struct cache_layout *l)
{
	assert(l->holders);
	l->holders--;
}

void cache_layout_describe(const struct cache_layout *l, struct cache_layout_info *ret)
{
	*ret = (struct cache_layout_info){
		.id = l->id,
		.identity = l->identity,
		.gate = l->gate ? l->gate->name : "",
		.gate_info = l->gate ? gate_info(l->gate->gate) : NULL,
		.hidden_dtype = l->hidden_dtype,
		.gated_layers = l->gated_layers,
		.page_bytes = 1u << l->page_shift,
		.floor = l->floor,
		.foreign_keys = layout_foreign(l),
	};
	memcpy(ret->fingerprint, l->fingerprint, sizeof(ret->fingerprint));
}

void cache_layout_stage(const struct cache_layout *l, enum stage_input input, uint32_t tokens,
	struct stage_geometry *ret)
{
	const struct stage_format f = {
		.input = input,
		.gated_layers = l->gated_layers,
		.hidden = l->gate ? gate_info(l->gate->gate)->hidden : 0,
		.hidden_dtype = l->hidden_dtype,
	};

	stage_geometry(&l->identity.shape, &f, tokens ? tokens : l->identity.shape.tokens, ret);
}
