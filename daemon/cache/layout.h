/* SPDX-License-Identifier: Apache-2.0 */
/*
 * layout: registered layouts of a tenant and the gates they are scored by; private to daemon/cache.
 * Thread: the control thread; what a layout says never changes once a commit uses it. Locks: none.
 * Blocks: never. Errors: negative errno, enum kvg_code for clients.
 */
#ifndef KVGATE_DAEMON_CACHE_LAYOUT_H
#define KVGATE_DAEMON_CACHE_LAYOUT_H

#include "daemon/cache/cache.h"

/* Per tenant, in use at a time: each is a model in one shape; more is a client that registers garbage. */
#define LAYOUTS_MAX     256
#define LAYOUT_TEXT_MAX 1024 /* model, revision, rope ...: settings, not documents */

struct counter_scope;

struct cache_gate {
	struct gate *gate;
	char *name;
	bool retired;     /* takes no new layout */
	unsigned layouts; /* that score with it */
	struct cache_gate *next;
};
void layout_gates_free(struct cache *c);

struct cache_layout {
	struct cache_tenant *tenant;
	struct counter_scope *counters;
	uint32_t id;
	uint32_t holders;                /* sessions, blocks, commits */
	struct layout_identity identity; /* strings are ours; edges and digest in force */
	uint8_t fingerprint[32];
	struct cache_gate *gate; /* NULL: scores come from the client, or none do */
	uint32_t hidden_dtype;
	uint32_t gated_layers;
	uint32_t *
		layer_gate; /* [layers] which gated layer each is, UINT32_MAX = not gated; NULL when opaque */
	unsigned page_shift;
	uint32_t floor_pairs;
	uint32_t n_retained; /* 0, or n_edges */
	float retained[KVG_PLANES_MAX -
		1];  /* by calibration: share of pairs at or above each edge */
	float floor; /* retention floor in force: its model's, or the tenant's */
};
struct cache_layout *layout_free(struct cache_layout *l);

/*
 * The layout of an earlier daemon under its id: s->id is what was in force. It scores with the gate of that name if there is
 * one of the same digest. -EBADMSG: it does not add up; -ENOMEM.
 */
int layout_adopt(struct cache_tenant *t, uint32_t id, const uint8_t fingerprint[32],
	const struct cache_layout_spec *s);

static inline uint32_t layout_planes(const struct cache_layout *l)
{
	return l->identity.n_edges + 1;
}
/* Of a payload, in memory: whole pages. */
static inline uint64_t layout_page_bytes(const struct cache_layout *l, uint64_t payload)
{
	const uint64_t page = 1ull << l->page_shift;

	return (payload + page - 1) & ~(page - 1);
}
/* Names it in the tier below, where ids of other daemons mean nothing. What lies there says the whole fingerprint. */
static inline uint32_t layout_note(const struct cache_layout *l)
{
	return (uint32_t)l->fingerprint[0] | (uint32_t)l->fingerprint[1] << 8 |
		(uint32_t)l->fingerprint[2] << 16 | (uint32_t)l->fingerprint[3] << 24;
}
static inline bool layout_foreign(const struct cache_layout *l)
{
	return l->identity.key_namespace[0];
}

#endif
