/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From a pin to pointers. A plane's reference in the index is copied, its check compared, its extent held against
 * the segment, its header against the block that was asked for: key, fingerprint, shape. All of that costs
 * the same however large the plane is. What grows with the plane is left to kvg_verify() (all bytes), and to
 * those who follow `index` (gather, select), who check each one as they use it.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/plane.h"

struct kvg_shm_plane_ref plane_ref_read(const struct kvg_shm_plane_ref *from)
{
	union {
		struct kvg_shm_plane_ref ref;
		uint64_t word[sizeof(struct kvg_shm_plane_ref) / 8];
	} v;

	for (unsigned i = 0; i < sizeof(v.word) / sizeof(v.word[0]); i++)
		v.word[i] =
			__atomic_load_n((const uint64_t *)(const void *)from + i, __ATOMIC_RELAXED);
	return v.ref;
}

static int damaged(
	struct kvg_client *c, const struct kvg_pin *pin, unsigned plane, const char *what)
{
	return client_fail(c, -EBADMSG, KVG_CODE_CORRUPT,
		"block {%u, %u} plane %u: %s; purge and recompute it", pin->handle.slot,
		pin->handle.gen, plane, what);
}

/* The refs of every plane to be read, those without pairs left out. */
static int read_refs(struct kvg_layout *l, const struct kvg_pin *pin, struct kvg_shm_plane_ref *ret,
	unsigned *ret_bits)
{
	const struct kvg_shm_entry *e = &l->client->index.entries[pin->handle.slot];
	unsigned bits = 0;

	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) {
		if (!(pin->mapped >> p & 1))
			continue;
		ret[p] = plane_ref_read(&e->plane[p]);
		if (ret[p].check != plane_ref_check(&ret[p], p, pin->handle.gen))
			return damaged(l->client, pin, p, "its reference is damaged");
		if (ret[p].bytes == 0)
			continue; /* a band without pairs */
		bits |= 1u << p;
	}
	*ret_bits = bits;
	return 0;
}

static bool same_block(const struct kvg_layout *l, const struct kvg_pin *pin, unsigned plane,
	const void *payload, const struct plane_view *v)
{
	const struct kvg_plane_header *h = payload;
	const struct kvg_shm_entry *e = &l->client->index.entries[pin->handle.slot];

	return v->plane == plane && v->tokens == pin->tokens &&
		v->opaque == (l->shape.opaque_bytes > 0) &&
		v->opaque_bytes == l->shape.opaque_bytes && v->runs == l->runs &&
		(v->opaque ||
			(v->k_row == l->k_row && v->v_row == l->v_row && v->cu[0] == 0 &&
				v->cu[v->runs] == v->pairs)) &&
		!memcmp(h->key.b, e->key.b, sizeof(h->key.b)) &&
		!memcmp(h->fingerprint, l->fingerprint, sizeof(h->fingerprint));
}

static int open_plane(struct kvg_layout *l, const struct kvg_pin *pin, unsigned plane,
	const struct kvg_shm_plane_ref *ref, struct plane_view *ret)
{
	const struct segment_map *s = segment_find(l->client, ref->segment);
	uint64_t off = (uint64_t)ref->page << (ref->page_shift & 31);

	if (!s)
		return damaged(l->client, pin, plane, "the daemon does not know its segment");
	if (ref->page_shift != s->page_shift || off > s->bytes || ref->bytes > s->bytes - off)
		return damaged(l->client, pin, plane, "it lies outside its segment");
	if (plane_open(s->base + off, ref->bytes, ret) < 0)
		return damaged(l->client, pin, plane, "its header is damaged");
	if (!same_block(l, pin, plane, s->base + off, ret))
		return damaged(l->client, pin, plane, "it belongs to another block");
	return 0;
}

bool pin_is_held(const struct kvg_client *c, const struct kvg_pin *pin)
{
	return pin->index < c->pins.high && pin->handle.slot < c->index.n_slots &&
		atomic_load_explicit(&c->pins.pin[pin->index], memory_order_relaxed) ==
		kvg_handle_pack(pin->handle);
}

int pin_views(struct kvg_layout *l, const struct kvg_pin *pin,
	struct plane_view ret[KVG_PLANES_MAX], unsigned *ret_bits)
{
	struct kvg_client *c = l->client;
	struct kvg_shm_plane_ref ref[KVG_PLANES_MAX];
	uint32_t missing[KVG_PLANES_MAX];
	unsigned bits = 0, n_missing = 0;
	int r;

	if (!pin_is_held(c, pin))
		return client_fail(c, -EINVAL, 0, "not a pin that is held");
	r = read_refs(l, pin, ref, &bits);
	if (r < 0)
		return r;
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++)
		if ((bits >> p & 1) && !segment_find(c, ref[p].segment))
			missing[n_missing++] = ref[p].segment;
	if (n_missing) {
		r = segments_map(c, missing, n_missing);
		if (r < 0)
			return r;
	}
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) {
		if (!(bits >> p & 1))
			continue;
		r = open_plane(l, pin, p, &ref[p], &ret[p]);
		if (r < 0)
			return r;
	}
	*ret_bits = bits;
	return 0;
}

int kvg_planes(
	struct kvg_layout *l, const struct kvg_pin *pin, struct kvg_plane ret[KVG_PLANES_MAX])
{
	struct plane_view v[KVG_PLANES_MAX];
	unsigned bits;
	int n = 0, r = pin_views(l, pin, v, &bits);

	if (r < 0)
		return r;
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) {
		if (!(bits >> p & 1))
			continue;
		ret[n++] = (struct kvg_plane){
			.plane = p,
			.pairs = v[p].pairs,
			.cu = v[p].opaque ? NULL : v[p].cu,
			.index = v[p].opaque ? NULL : v[p].index,
			.score = v[p].opaque ? NULL : v[p].score,
			.k = v[p].k,
			.v = v[p].opaque ? NULL : v[p].v,
			.tokens = v[p].n_token_ids ? v[p].ids : NULL,
			.bytes = v[p].bytes,
			.opaque_bytes = v[p].opaque_bytes,
		};
	}
	return n;
}

int kvg_verify(struct kvg_layout *l, const struct kvg_pin *pin)
{
	struct plane_view v[KVG_PLANES_MAX];
	unsigned bits;
	int r = pin_views(l, pin, v, &bits);

	for (unsigned p = 0; p < KVG_PLANES_MAX && r == 0; p++)
		if (bits >> p & 1) {
			const uint8_t *payload = (const uint8_t *)v[p].cu - KVG_PLANE_HEADER_BYTES;

			if (plane_verify(payload, v[p].bytes) < 0 || plane_check_runs(&v[p]) < 0)
				r = damaged(l->client, pin, p, "its checksum does not match");
		}
	return r;
}

/* ---- prefix from tokens ---- */

/* Equal ids, stored in a plane that is here: what a key alone promises, looked at. */
static bool tokens_stored(struct kvg_layout *l, const struct kvg_pin *pin, const uint32_t *tokens)
{
	struct plane_view v[KVG_PLANES_MAX];
	unsigned bits;

	return pin_views(l, pin, v, &bits) == 0 && (bits & 1) &&
		v[0].n_token_ids == l->shape.tokens &&
		!memcmp(v[0].ids, tokens, l->shape.tokens * sizeof(*tokens));
}

struct token_wish {
	float min_retention, want;
	bool fetch;
};

static ssize_t pin_some(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	const struct token_wish *w, struct kvg_pin *ret_pins)
{
	if (w->fetch)
		return kvg_prefix_fetch(l, keys, n, w->min_retention, w->want, ret_pins);
	return (ssize_t)kvg_prefix_pin(l, keys, n, w->min_retention, ret_pins);
}

static ssize_t prefix_tokens(struct kvg_layout *l, const uint32_t *tokens, size_t n_tokens,
	const struct token_wish *w, struct kvg_pin *ret_pins, struct kvg_key *ret_keys)
{
	enum {
		BATCH = 64
	};
	const size_t n = n_tokens / l->shape.tokens;
	struct kvg_key some[BATCH], parent;
	size_t done = 0;

	if (l->foreign_keys)
		return client_fail(l->client, -EINVAL, 0,
			"this layout's keys are the engine's own; use kvg_prefix_pin()");
	if (ret_keys)
		kvg_key_chain(l, NULL, tokens, n_tokens, ret_keys);
	while (done < n) {
		const size_t batch = n - done < BATCH ? n - done : BATCH;
		const uint32_t *at = tokens + done * l->shape.tokens;
		const struct kvg_key *keys = ret_keys ? ret_keys + done : some;
		size_t same = 0;
		ssize_t got;

		if (!ret_keys) {
			kvg_key_chain(l, done ? &parent : NULL, at, batch * l->shape.tokens, some);
			parent = some[batch - 1];
		}
		got = pin_some(l, keys, batch, w, ret_pins + done);
		if (got < 0)
			return done ? (ssize_t)done : got;
		while (same < (size_t)got &&
			tokens_stored(l, &ret_pins[done + same], at + same * l->shape.tokens))
			same++;
		kvg_unpin(l->client, ret_pins + done + same, (size_t)got - same);
		done += same;
		if (same < batch)
			break;
	}
	return (ssize_t)done;
}

ssize_t kvg_prefix_pin_tokens(struct kvg_layout *l, const uint32_t *tokens, size_t n_tokens,
	float min_retention, struct kvg_pin *ret_pins, struct kvg_key *ret_keys)
{
	const struct token_wish w = {.min_retention = min_retention};

	return prefix_tokens(l, tokens, n_tokens, &w, ret_pins, ret_keys);
}

ssize_t kvg_prefix_fetch_tokens(struct kvg_layout *l, const uint32_t *tokens, size_t n_tokens,
	float min_retention, float want, struct kvg_pin *ret_pins, struct kvg_key *ret_keys)
{
	const struct token_wish w = {min_retention, want, true};

	return prefix_tokens(l, tokens, n_tokens, &w, ret_pins, ret_keys);
}
