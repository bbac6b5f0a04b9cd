/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A context is a table of runs: for every (layer, head) the rows of all blocks and planes, in
 * that order. Where a share was asked for, each run ends where kvg_select() says; since runs are
 * in the order of score, that is all that selection does to them.
 */
#include "client/worker/store.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "proto/shape.h"

#define PROTECTED  0x7c00 /* +inf, as f16 */
#define ALL_PAIRS  1.0f   /* brought up from disk: the answer does not depend on what lay where */
#define TAIL_TRIES 1024   /* lengths; their hashes grow with the square of the block's tokens */

/* Of the daemon's gate only the bands are known here: those of probabilities are above 0. */
static bool has_log_scores(const struct kvg_layout *l)
{
	struct kvg_layout_info info = {.size = sizeof(info)};

	kvg_layout_describe(l, &info);
	return info.n_planes > 1 && info.edges[info.n_planes - 2] < 0.0f;
}

int store_open(struct store *s, const struct store_options *o, const struct model_config *c,
	struct scoring *scoring)
{
	const bool gate = scoring && scoring->gate;
	struct kvg_options connection = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_layout_options layout = KVG_OPTIONS_INIT(kvg_layout_options);
	int r;

	connection.socket = o->socket;
	layout.model = o->model;
	layout.revision = o->revision;
	layout.rope = o->rope;
	layout.layers = c->layers;
	layout.heads = c->kv_heads;
	layout.k_dim = layout.v_dim = c->head_dim;
	layout.dtype = o->dtype;
	layout.block_tokens = o->block_tokens;
	layout.gate = o->gate_name;
	if (o->gate_name)
		layout.hidden_dtype = KVG_DTYPE_F32;
	if (gate) {
		layout.gate_digest = scoring->digest;
		layout.edges = scoring->edges;
		layout.retained = scoring->retained;
		layout.n_edges = scoring->n_edges;
	}
	*s = (struct store){.config = c,
		.scoring = scoring,
		.block_tokens = o->block_tokens,
		.dtype = o->dtype,
		.input = gate          ? KVG_INPUT_SCORES
			: o->gate_name ? KVG_INPUT_HIDDEN
				       : KVG_INPUT_NONE};
	r = kvg_open(&connection, &s->client);
	if (r == 0)
		r = kvg_layout(s->client, &layout, &s->layout);
	if (r == 0 && s->input == KVG_INPUT_HIDDEN)
		scoring->log_scores = has_log_scores(s->layout);
	return r;
}

void store_close(struct store *s)
{
	kvg_close(s->client);
	*s = (struct store){0};
}

/* ---- planes of pinned blocks ---- */

struct planes {
	struct kvg_plane plane[KVG_PLANES_MAX];
	int n;
};

/*
 * Heads of planes are checked by the library; where runs begin is checked here, before it is
 * followed.
 */
static bool runs_ascend(const struct kvg_plane *p, uint32_t runs)
{
	for (uint32_t run = 0; run < runs; run++)
		if (p->cu[run] > p->cu[run + 1])
			return false;
	return p->cu[runs] <= p->pairs;
}

static int open_planes(struct store *s, const struct kvg_pin *pins, size_t n, struct planes *ret)
{
	for (size_t i = 0; i < n; i++) {
		ret[i].n = kvg_planes(s->layout, &pins[i], ret[i].plane);
		if (ret[i].n < 0)
			return ret[i].n;
		for (int p = 0; p < ret[i].n; p++)
			if (!runs_ascend(&ret[i].plane[p], model_runs(s->config)))
				return -EBADMSG;
	}
	return 0;
}

static uint32_t run_length(
	const struct kvg_plane *p, size_t block, uint32_t run, uint32_t runs, const uint32_t *len)
{
	return len ? len[(block * KVG_PLANES_MAX + p->plane) * runs + run]
		   : p->cu[run + 1] - p->cu[run];
}

static void list_runs(const struct store *s, const struct planes *planes, size_t n,
	const uint32_t *len, struct context *c)
{
	const uint32_t runs = model_runs(s->config);
	const size_t row = s->config->head_dim * dtype_bytes(s->dtype);
	uint32_t at = 0;

	for (uint32_t run = 0; run < runs; run++) {
		c->first[run] = at;
		for (size_t i = 0; i < n; i++)
			for (int j = 0; j < planes[i].n; j++) {
				const struct kvg_plane *p = &planes[i].plane[j];
				const uint32_t rows = run_length(p, i, run, runs, len);

				if (rows == 0)
					continue;
				c->run[at++] =
					(struct kv_run){.k = (const char *)p->k + p->cu[run] * row,
						.v = (const char *)p->v + p->cu[run] * row,
						.n = rows};
				c->pairs += rows;
			}
	}
	c->first[runs] = at;
}

int store_context(struct store *s, const struct kvg_pin *pins, size_t n, const uint32_t *len,
	struct context *ret, uint64_t *ret_bytes)
{
	const uint32_t runs = model_runs(s->config);
	struct planes *planes = calloc(n ? n : 1, sizeof(*planes));
	struct context c = {.dtype = s->dtype};
	uint64_t bytes = 0;
	int r = planes ? open_planes(s, pins, n, planes) : -ENOMEM;

	if (r == 0) {
		c.first = malloc((runs + 1) * sizeof(*c.first));
		c.run = malloc((n * KVG_PLANES_MAX * runs + 1) * sizeof(*c.run));
		r = c.first && c.run ? 0 : -ENOMEM;
	}
	if (r == 0) {
		list_runs(s, planes, n, len, &c);
		for (size_t i = 0; i < n; i++) {
			c.tokens += pins[i].tokens;
			for (int j = 0; j < planes[i].n; j++)
				bytes += planes[i].plane[j].bytes;
		}
		*ret = c;
		*ret_bytes = bytes;
	} else {
		context_fini(&c);
	}
	free(planes);
	return r;
}

/* ---- get ---- */

/* Pairs that are there, and those of them that are protected: the heads of plane 0's runs. */
static int count_pairs(
	struct store *s, const struct reuse *r, uint64_t *ret, uint64_t *ret_protected)
{
	uint64_t all = 0, protected = 0;

	for (size_t i = 0; i < r->n_pins; i++) {
		struct kvg_plane plane[KVG_PLANES_MAX];
		const int n = kvg_planes(s->layout, &r->pins[i], plane);

		if (n < 0)
			return n;
		for (int p = 0; p < n; p++) {
			all += plane[p].pairs;
			for (uint32_t j = 0; plane[p].plane == 0 && j < plane[p].pairs; j++)
			protected += plane[p].score[j] == PROTECTED;
		}
	}
	*ret = all;
	*ret_protected = protected;
	return 0;
}

/*
 * `retained` counts every pair of the context that is not protected, kvg_select() only those that
 * are there. Protected ones come on top: of a small share the ends of blocks would leave nothing.
 */
static int select_best(struct store *s, const struct reuse *r, double retained, uint32_t **ret)
{
	struct kvg_select_options o = KVG_OPTIONS_INIT(kvg_select_options);
	uint64_t total = 0, there, protected;
	int e = count_pairs(s, r, &there, &protected);

	if (e < 0)
		return e;
	for (size_t i = 0; i < r->n_pins; i++)
		total += (uint64_t)r->pins[i].tokens * model_runs(s->config);
	o.rule = "pair";
	if (there > protected)
		o.retained = fmin(
			1.0, retained * (double)(total - protected) / (double)(there - protected));
	*ret = malloc(r->n_pins * KVG_PLANES_MAX * model_runs(s->config) * sizeof(**ret));
	if (!*ret)
		return -ENOMEM;
	return kvg_select(s->layout, r->pins, r->n_pins, &o, *ret);
}

static bool is_whole(const struct reuse *r, double retained)
{
	bool whole = retained >= 1.0;

	for (size_t i = 0; i < r->n_pins; i++)
		whole = whole && r->pins[i].retention >= 1.0f;
	return whole;
}

static bool tokens_equal(
	struct store *s, const struct kvg_pin *pin, const uint32_t *tokens, uint32_t n)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	const int planes = kvg_planes(s->layout, pin, plane);

	return planes > 0 && pin->tokens == n && plane[0].tokens &&
		!memcmp(plane[0].tokens, tokens, n * sizeof(*tokens));
}

/* The short block of the next n tokens, when it is there. */
static bool pin_short(struct store *s, const struct store_wish *w, uint32_t n, struct reuse *r)
{
	const uint32_t first = (uint32_t)r->n_blocks * s->block_tokens;
	struct kvg_pin *pin = &r->pins[r->n_blocks];
	struct kvg_key key;

	kvg_key_block(s->layout, r->n_blocks ? &r->keys[r->n_blocks - 1] : NULL, w->tokens + first,
		n, &key);
	if (kvg_prefix_fetch(s->layout, &key, 1, (float)w->min_retention, ALL_PAIRS, pin) != 1)
		return false;
	if (!tokens_equal(s, pin, w->tokens + first, n)) {
		kvg_unpin(s->client, pin, 1);
		return false;
	}
	r->n_pins++;
	return true;
}

/*
 * The short block behind the whole ones: up to the end of what is shared, or the longest. Where
 * other contexts ended is not known, so each length is tried: to hash the 255 of a block of 256
 * takes less time than to compute one token.
 */
static void pin_tail(struct store *s, const struct store_wish *w, struct reuse *r)
{
	const uint32_t first = (uint32_t)r->n_blocks * s->block_tokens, left = w->n - 1 - first;
	const uint32_t most = left < s->block_tokens ? left : s->block_tokens - 1;
	const uint32_t least = most > TAIL_TRIES ? most - TAIL_TRIES : 0;

	if (w->shared > first && w->shared - first <= most && pin_short(s, w, w->shared - first, r))
		return;
	for (uint32_t n = most; n > least; n--)
		if (pin_short(s, w, n, r))
			return;
}

static int pin_prefix(struct store *s, const struct store_wish *w, struct reuse *r)
{
	ssize_t got = kvg_prefix_fetch_tokens(
		s->layout, w->tokens, w->n, (float)w->min_retention, ALL_PAIRS, r->pins, r->keys);

	if (got < 0)
		return (int)got;
	r->n_pins = (size_t)got;
	/* The last token has to be computed: it brings the logits. */
	if (r->n_pins * s->block_tokens == w->n)
		kvg_unpin(s->client, &r->pins[--r->n_pins], 1);
	r->n_blocks = r->n_pins;
	/* Rows in a short block's planes cannot become part of a whole block any more. */
	if (r->n_blocks >= w->shared / s->block_tokens || !is_whole(r, w->retained))
		pin_tail(s, w, r);
	return 0;
}

int store_get(struct store *s, const struct store_wish *w, struct reuse *ret)
{
	const size_t blocks = w->n / s->block_tokens;
	struct reuse r = {.retention = 1.0};
	uint32_t *len = NULL;
	int e = -ENOMEM;

	r.pins = malloc((blocks + 1) * sizeof(*r.pins));
	r.keys = malloc((blocks + 1) * sizeof(*r.keys));
	if (r.pins && r.keys)
		e = pin_prefix(s, w, &r);
	if (e == 0 && r.n_pins && w->retained < 1.0)
		e = select_best(s, &r, w->retained, &len);
	if (e == 0)
		e = store_context(s, r.pins, r.n_pins, len, &r.context, &r.bytes);
	free(len);
	if (e < 0) {
		reuse_fini(s, &r);
		return e;
	}
	if (r.n_pins)
		r.retention = (double)r.context.pairs /
			((double)r.context.tokens * model_runs(s->config));
	*ret = r;
	return 0;
}

void reuse_fini(struct store *s, struct reuse *r)
{
	kvg_unpin(s->client, r->pins, r->n_pins);
	context_fini(&r->context);
	free(r->pins);
	free(r->keys);
	*r = (struct reuse){0};
}
