/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block lives in four places at once, and enters and leaves them together: the index (what readers see), the pool (its
 * extents), the policy (its turn under pressure) and the tree of prefixes (children hang on their parent).
 * The tree is kept here and not read from the index: it is needed from the parent down, and the daemon decides by its
 * own memory, never by what it shows.
 *
 *	block_publish()		policy_insert -> index_insert -> tree, sums
 *	evict_batch_*		hides in the index, shrinks or removes in the policy, and after the scan:
 *	block_drop_planes()	extents -> pool; refs in the index say where they were no more
 *	block_free()		the rest
 */
#include "daemon/cache/block.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/pack.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"

/* ---- bits ---- */

uint8_t block_best(const struct block *b, uint32_t n)
{
	uint8_t best = 0;

	for (uint32_t p = 0; p < b->n_planes && n; p++)
		if (b->planes >> p & 1) {
			best |= (uint8_t)(1u << p);
			n--;
		}
	return best;
}

float block_retention(const struct block *b)
{
	const uint8_t shown = block_shown(b);
	uint64_t there = 0;

	if (shown == b->planes)
		return 1.0f;
	for (uint32_t p = 0; p < b->n_planes; p++)
		there += shown >> p & 1 ? b->plane[p].pairs : 0;
	return b->pairs ? (float)((double)there / (double)b->pairs) : 0.0f;
}

uint64_t block_payload(const struct block *b, uint8_t planes)
{
	uint64_t bytes = 0;

	for (uint32_t p = 0; p < b->n_planes; p++)
		bytes += planes >> p & 1 ? b->plane[p].bytes : 0;
	return bytes;
}

uint64_t block_pages(const struct block *b, uint8_t planes)
{
	uint64_t bytes = 0;

	for (uint32_t p = 0; p < b->n_planes; p++)
		bytes += planes >> p & 1 ? extent_bytes(&b->plane[p].extent) : 0;
	return bytes;
}

/*
 * Bands are the same for every block of a model, so its best 30 % are those above the edge that calibration found
 * there: a block of dense text holds more of them than one of boilerplate. Without calibration each block is
 * taken by itself.
 */
static uint32_t planes_above(const struct cache_layout *l, float floor)
{
	uint32_t p = 0;

	while (p < l->n_retained && (double)l->retained[p] < (double)floor * (1 - 1e-6))
		p++;
	return p + 1;
}

uint32_t block_droppable_from(const struct block *b, float floor)
{
	const uint32_t above = planes_above(b->layout, floor);
	const bool calibrated = b->layout->n_retained;
	/* a floor of .3 is a float a little above .3: that must not cost a plane */
	const double enough = (double)floor * (double)b->pairs * (1 - 1e-6);
	uint64_t there = 0;
	uint32_t n = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		if (!(b->planes >> p & 1))
			continue;
		if (n && (calibrated ? p >= above : (double)there >= enough))
			break;
		there += b->plane[p].pairs;
		n++;
	}
	return n;
}

/* ---- tree ---- */

static void link_in(struct block_list *l, struct block *b)
{
	b->next = l->first;
	b->link = &l->first;
	if (b->next)
		b->next->link = &b->next;
	l->first = b;
}

static void unlink_from(struct block *b)
{
	*b->link = b->next;
	if (b->next)
		b->next->link = b->link;
}

static struct block *deepest(struct block *b)
{
	while (b && b->children.first)
		b = b->children.first;
	return b;
}

struct block *block_first(struct block_list *roots)
{
	return deepest(roots->first);
}

struct block *block_next(const struct block *b)
{
	return b->next ? deepest(b->next) : b->parent;
}

struct block *block_find(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key)
{
	uint32_t slot = index_find(t->index, layout, key);

	return slot == KVG_SLOT_NONE ? NULL : t->by_slot[slot];
}

struct block *block_get(struct cache_tenant *t, struct kvg_handle h)
{
	struct block *b = h.slot < index_slots(t->index) ? t->by_slot[h.slot] : NULL;

	return b && b->handle.gen == h.gen ? b : NULL;
}

bool block_tokens_differ(const struct block *b, const uint32_t *ids, uint32_t n)
{
	const struct block_plane *best = &b->plane[0];
	struct plane_view v;

	if (b->tokens != n)
		return true;
	if (!ids || plane_open(best->extent.addr, extent_bytes(&best->extent), &v) < 0 ||
		!v.n_token_ids)
		return false;
	return !pack_tokens_equal(best->extent.addr, extent_bytes(&best->extent), ids, n);
}

/* ---- life ---- */

static void count(struct block *b, uint8_t planes, int sign)
{
	struct counter_scope *s = b->layout->counters;
	const int64_t pages = (int64_t)block_pages(b, planes);

	b->tenant->used += (uint64_t)(sign * pages);
	b->tenant->cache->used += (uint64_t)(sign * pages);
	counter_add(s, COUNTER_BYTES, KVG_TIER_HOST, sign * pages);
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (planes >> p & 1)
			counter_add(s, COUNTER_PAYLOAD, p, sign * (int64_t)b->plane[p].bytes);
}

static struct block *block_make(struct cache_tenant *t, struct cache_layout *l,
	const struct pack_job *j, struct block *parent)
{
	struct block *b = calloc(1, sizeof(*b) + j->n_planes * sizeof(b->plane[0]));

	if (!b)
		return NULL;
	b->tenant = t;
	b->layout = l;
	b->key = *j->key;
	b->parent = parent;
	b->tokens = j->tokens;
	b->depth = parent ? parent->depth + 1 : 0;
	b->n_planes = j->n_planes;
	b->node.parent = parent ? &parent->node : NULL;
	memcpy(&b->node.key_hash, b->key.b, sizeof(b->node.key_hash));
	for (uint32_t p = 0; p < j->n_planes; p++) {
		uint32_t i = b->node.n_planes;

		if (!j->plane[p].extent.pages)
			continue;
		b->plane[p] = (struct block_plane){
			j->plane[p].extent, j->plane[p].bytes, j->plane[p].pairs};
		b->planes |= (uint8_t)(1u << p);
		b->pairs += j->plane[p].pairs;
		b->node.bytes[i] = extent_bytes(&j->plane[p].extent);
		b->node.mass[i] = j->plane[p].mass;
		b->node.n_planes++;
	}
	assert(b->planes & 1); /* plane 0 carries what is protected, and the token ids */
	b->held = b->planes;
	b->node.droppable_from = block_droppable_from(b, l->floor);
	return b;
}

static void describe(const struct block *b, struct index_block *ret)
{
	*ret = (struct index_block){
		.key = b->key,
		.layout = b->layout->id,
		.parent = b->parent ? b->parent->handle.slot : KVG_SLOT_NONE,
		.tokens = b->tokens,
		.depth = b->depth,
		.n_planes = b->n_planes,
		.held = b->held,
		.mapped = b->held,
	};
	for (uint32_t p = 0; p < b->n_planes; p++)
		ret->plane[p] = (struct kvg_shm_plane_ref){
			.bytes = b->plane[p].bytes,
			.segment = b->plane[p].extent.segment,
			.page = b->plane[p].extent.page,
			.pairs = b->plane[p].pairs,
			.tier = b->plane[p].extent.tier,
			.page_shift = b->plane[p].extent.page_shift,
		};
}

static void enter(struct block *b)
{
	struct cache_tenant *t = b->tenant;

	cache_layout_hold(b->layout);
	t->by_slot[b->handle.slot] = b;
	link_in(b->parent ? &b->parent->children : &t->roots, b);
	t->n_blocks++;
	b->published = ++t->publications;
	count(b, b->held, 1);
	counter_add(b->layout->counters, COUNTER_BLOCKS, 0, 1);
}

int block_publish(struct cache_tenant *t, struct cache_layout *l, const struct pack_job *packed,
	struct block *parent, struct block **ret)
{
	struct block *b = block_make(t, l, packed, parent);
	struct index_block shown;
	int r;

	if (!b)
		return -ENOMEM;
	r = policy_insert(t->policy, &b->node);
	if (r < 0) {
		free(b);
		return r;
	}
	describe(b, &shown);
	r = index_insert(t->index, &shown, &b->handle);
	if (r < 0) { /* a slot was set aside, so it is the key */
		policy_remove(t->policy, &b->node, false);
		free(b);
		return r;
	}
	enter(b);
	*ret = b;
	return 0;
}

/* Planes that were dropped had pairs, too, and no one knows what they weighed. */
static struct block *block_remake(struct cache_tenant *t, struct cache_layout *l,
	const struct block_found *f, struct block *parent)
{
	const struct kvg_shm_entry *e = f->entry;
	struct block *b = calloc(1, sizeof(*b) + e->n_planes * sizeof(b->plane[0]));

	if (!b)
		return NULL;
	b->tenant = t;
	b->layout = l;
	b->handle = f->handle;
	b->key = e->key;
	b->parent = parent;
	b->tokens = e->tokens;
	b->depth = e->depth;
	b->n_planes = e->n_planes;
	b->held = f->there;
	b->hidden = f->there & (uint8_t)~f->shown;
	b->node.parent = parent ? &parent->node : NULL;
	memcpy(&b->node.key_hash, b->key.b, sizeof(b->node.key_hash));
	for (uint32_t p = 0; p < e->n_planes; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];
		const uint64_t page = 1ull << (r->page_shift & 63);
		uint32_t i = b->node.n_planes;

		if (!r->bytes)
			continue;
		b->plane[p] = (struct block_plane){f->extent[p], r->bytes, r->pairs};
		b->planes |= (uint8_t)(1u << p);
		b->pairs += r->pairs;
		b->node.bytes[i] = (r->bytes + page - 1) & ~(page - 1);
		b->node.mass[i] = f->mass[p];
		b->node.n_planes++;
	}
	b->node.droppable_from = block_droppable_from(b, l->floor);
	return b;
}

int block_adopt(struct cache_tenant *t, struct cache_layout *l, const struct block_found *f,
	struct block *parent, struct block **ret)
{
	struct block *b = block_remake(t, l, f, parent);
	int r;

	if (!b)
		return -ENOMEM;
	r = policy_insert(t->policy, &b->node);
	if (r < 0) {
		free(b);
		return r;
	}
	if (b->held != b->planes)
		policy_shrink(t->policy, &b->node, plane_count(b->held));
	enter(b);
	*ret = b;
	return 0;
}

static void release_planes(struct block *b, uint8_t planes)
{
	count(b, planes, -1);
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (planes >> p & 1)
			pool_release(b->tenant->pool, &b->plane[p].extent);
	b->held &= (uint8_t)~planes;
}

void block_drop_planes(struct block *b, uint8_t planes)
{
	assert(!(planes & ~b->held) && !(planes & 1));
	index_drop_planes(b->tenant->index, b->handle.slot, planes);
	release_planes(b, planes);
}

void block_hide(struct block *b, uint8_t planes)
{
	b->hidden |= planes;
	index_set_planes(b->tenant->index, b->handle.slot, block_shown(b), block_shown(b));
}

void block_leave(struct block *b)
{
	struct cache_tenant *t = b->tenant;

	assert(!b->children.first);
	purges_step_over(b);
	unlink_from(b);
	t->n_blocks--;
	cache_layout_drop(b->layout);
	free(b);
}

void block_free(struct block *b)
{
	struct cache_tenant *t = b->tenant;

	assert(!b->children.first && !b->pins && !b->uses);
	index_remove(t->index,
		b->handle.slot); /* before its pages are anybody else's, see index_adopt.c */
	release_planes(b, b->held);
	t->by_slot[b->handle.slot] = NULL;
	purges_step_over(b);
	unlink_from(b);
	t->n_blocks--;
	counter_add(b->layout->counters, COUNTER_BLOCKS, 0, -1);
	cache_layout_drop(b->layout);
	free(b);
}
