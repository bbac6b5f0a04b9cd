/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What people ask for by hand: listing, looking closely. Listing goes by slots, so a cursor stays good while blocks come
 * and go.
 */
#include "daemon/cache/tenant.h"

static void describe_planes(const struct block *b, struct cache_block_info *ret)
{
	uint32_t i = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct block_plane *from = &b->plane[p];
		struct cache_plane_info *to = &ret->plane[p];
		const bool held = b->held >> p & 1, mapped = b->mapped >> p & 1;

		to->pairs = from->pairs;
		to->bytes = from->bytes;
		if (held) {
			to->segment = mapped ? from->extent.segment : from->place.segment;
			to->page = mapped ? from->extent.page : from->place.item;
			to->tier = mapped ? from->extent.tier : KVG_TIER_DISK;
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
		.children = b->n_children,
		.n_planes = b->n_planes,
		.handle = b->handle,
		.retention = block_retention(b),
		.bytes = block_payload(b, b->held),
	};
	if (b->parent)
		ret->parent = b->parent->key;
	describe_planes(b, ret);
}

bool cache_list_next(struct cache_tenant *t, uint32_t layout, uint64_t *cursor, uint32_t *looks,
	struct cache_block_info *ret)
{
	const uint64_t end = index_slots_used_end(t->index);

	loop_assert_owner(t->cache->loop);
	if (!*cursor)
		tenant_drain(t);
	tenant_survey(t);
	for (uint64_t slot = *cursor; slot < end; slot++) {
		const struct block *b = t->by_slot[slot];

		if (!*looks) {
			*cursor = slot;
			return false;
		}
		--*looks;
		if (!b || (layout && b->layout->id != layout))
			continue;
		describe(b, ret);
		*cursor = slot + 1;
		return true;
	}
	*cursor = 0;
	return false;
}

/* ---- looking closely ---- */

static void look_closely(const struct block *b, struct cache_block_info *ret)
{
	tenant_drain(b->tenant);
	tenant_survey(b->tenant);
	describe(b, ret);
}

int cache_inspect(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	struct cache_block_info *ret)
{
	const struct block *b;

	loop_assert_owner(t->cache->loop);
	b = block_find(t, layout, key);
	if (!b)
		return KVG_CODE_NOT_FOUND;
	look_closely(b, ret);
	return KVG_CODE_OK;
}

int cache_verify(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	cache_verify_fn done, void *userdata)
{
	struct cache_block_info info;
	struct block *b;
	int r;

	loop_assert_owner(t->cache->loop);
	b = block_find(t, layout, key);
	if (!b)
		return KVG_CODE_NOT_FOUND;
	look_closely(b, &info);
	r = verify_start(b, &info, done, userdata);
	return r < 0 ? r : KVG_CODE_OK;
}
