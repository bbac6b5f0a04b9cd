/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people ask for by hand: listing, looking closely, taking away. Listing goes by slots, so a cursor stays good while
 * blocks come and go. Purging goes children first, for a block never outlives its parent; one that is pinned
 * keeps its ancestors.
 *
 * A block that fails its checksum is worse than none: it goes, from the damaged plane on, and with its
 * descendants when the damage is in plane 0.
 */
#include <assert.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"

static void describe_planes(const struct block *b, struct cache_block_info *ret)
{
	uint32_t i = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct block_plane *from = &b->plane[p];
		struct cache_plane_info *to = &ret->plane[p];
		bool held = b->held >> p & 1;

		to->pairs = from->pairs;
		to->bytes = from->bytes;
		if (held) {
			to->segment = from->extent.segment;
			to->page = from->extent.page;
			to->tier = from->extent.tier;
			to->value = policy_value(b->tenant->policy, &b->node, i);
			ret->value = to->value;
		}
		i += b->planes >> p & 1;
	}
}

static void describe(const struct block *b, struct cache_block_info *ret)
{
	*ret = (struct cache_block_info){
		.key = b->key,
		.has_parent = b->parent,
		.layout = b->layout->id,
		.tokens = b->tokens,
		.depth = b->depth,
		.pins = b->pins + (b->seen_stamp == b->tenant->survey ? b->seen_pins : 0),
		.children = b->node.children,
		.n_planes = b->n_planes,
		.handle = b->handle,
		.retention = block_retention(b),
		.bytes = block_payload(b, b->held),
	};
	if (b->parent)
		ret->parent = b->parent->key;
	describe_planes(b, ret);
}

bool cache_list_next(
	struct cache_tenant *t, uint32_t layout, uint64_t *cursor, struct cache_block_info *ret)
{
	const uint64_t end = index_slots_used_end(t->index);

	loop_assert_owner(t->cache->loop);
	if (!*cursor)
		tenant_drain(t);
	tenant_survey(t);
	for (uint64_t slot = *cursor; slot < end; slot++) {
		const struct block *b = t->by_slot[slot];

		if (!b || (layout && b->layout->id != layout))
			continue;
		describe(b, ret);
		*cursor = slot + 1;
		return true;
	}
	*cursor = 0;
	return false;
}

/* ---- taking away ---- */

/* The tree below `last`, children first, from `b` on; last NULL: to the end of all. */
static void purge(struct evict_batch *e, struct block *b, const struct block *last, uint32_t layout,
	uint32_t keep_planes)
{
	const uint8_t keep = keep_planes < KVG_PLANES_MAX ? (uint8_t)((1u << keep_planes) - 1)
							  : UINT8_MAX;
	struct block *next;

	for (; b; b = next) {
		const uint8_t after = b->held & keep;

		next = b == last ? NULL : block_next(b);
		if ((layout && b->layout->id != layout) || after == b->held)
			continue;
		if (e->n == PIN_SET_MAX)
			evict_batch_settle(e);
		if (b->pins || b->uses || (!after && b->node.children))
			e->result.pinned++;
		else
			evict_batch_add(e, b, after);
	}
	evict_batch_settle(e);
	tenant_gauges(e->tenant);
}

void cache_purge(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	uint32_t keep_planes, struct cache_purge_result *ret)
{
	struct evict_batch e;
	struct block *b;

	loop_assert_owner(t->cache->loop);
	evict_batch_init(&e, t, EVICT_REQUEST);
	b = key ? block_find(t, layout, key) : NULL;
	if (!key)
		purge(&e, block_first(&t->roots), NULL, layout, keep_planes);
	else if (b)
		purge(&e, keep_planes ? b : block_deepest(b), b, layout, keep_planes);
	*ret = e.result;
	commits_retry(t->cache);
}

/* ---- looking closely ---- */

/* Planes that are as they were written. */
static uint8_t verify(const struct block *b)
{
	uint8_t good = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct extent *e = &b->plane[p].extent;

		if (!(b->held >> p & 1))
			continue;
		if (plane_verify(e->addr, extent_bytes(e)) == 0)
			good |= (uint8_t)(1u << p);
		else
			counter_add(b->layout->counters, COUNTER_CORRUPT, 0, 1);
	}
	return good;
}

static void drop_damaged(struct block *b, uint8_t good)
{
	const uint32_t first_bad = (uint32_t)__builtin_ctz(b->held & (unsigned)~good);
	struct evict_batch e;

	evict_batch_init(&e, b->tenant, EVICT_CORRUPT);
	purge(&e, first_bad ? b : block_deepest(b), b, 0, first_bad);
}

int cache_inspect_in(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key, bool check,
	struct cache_block_info *ret)
{
	struct block *b;
	uint8_t good;

	loop_assert_owner(t->cache->loop);
	b = block_find(t, layout, key);
	if (!b)
		return KVG_CODE_NOT_FOUND;
	tenant_drain(t);
	tenant_survey(t);
	describe(b, ret);
	if (!check)
		return KVG_CODE_OK;
	good = verify(b);
	for (uint32_t p = 0; p < b->n_planes; p++)
		ret->plane[p].verified = good >> p & 1;
	if (good != b->held)
		drop_damaged(b, good);
	return KVG_CODE_OK;
}

int cache_inspect(
	struct cache_tenant *t, const struct kvg_key *key, bool check, struct cache_block_info *ret)
{
	return cache_inspect_in(t, 0, key, check, ret);
}
