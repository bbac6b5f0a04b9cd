/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block lives in four places at once: the index (what readers see), the pool (its extents), the policy (its turn under
 * pressure) and the tree of prefixes (children hang on their parent). Index and tree have it as long as it is held anywhere, pool and
 * policy as long as some of it is in memory.
 * The tree is kept here and not read from the index: it is needed from the parent down, and the daemon decides by its
 * own memory, never by what it shows.
 *
 *	block_publish()		policy_insert -> index_insert -> tree, sums
 *	evict_batch_*		hides in the index, shrinks or removes in the policy, and after the scan:
 *	block_drop_planes()	extents -> pool, places -> disk; refs in the index say where they were no more
 *	block_unmap()		extents -> pool; refs say where they are below
 *	block_map()		refs say where they are in memory -> policy -> word
 *	block_free()		the rest
 */
#include "daemon/cache/block.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/pack.h"
#include "daemon/cache/replica.h"
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

uint8_t block_share(const struct block *b, float retention)
{
	const uint8_t shown = block_shown(b);
	uint64_t there = 0;
	uint8_t planes = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		if (!(shown >> p & 1))
			continue;
		if (planes && (float)((double)there / (double)b->pairs) >= retention)
			break;
		there += b->plane[p].pairs;
		planes |= (uint8_t)(1u << p);
	}
	return planes;
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

uint8_t block_below(const struct block *b)
{
	uint8_t there = 0;

	for (uint32_t p = 0; p < b->n_planes; p++)
		there |= (uint8_t)(disk_there(b->plane[p].place) << p);
	return there;
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
	if (!ids || !(b->mapped & 1) ||
		plane_open(best->extent.addr, extent_bytes(&best->extent), &v) < 0 ||
		!v.n_token_ids)
		return false;
	return !pack_tokens_equal(best->extent.addr, extent_bytes(&best->extent), ids, n);
}

/* ---- life ---- */

static void count_mapped(struct block *b, uint8_t planes, int sign)
{
	const int64_t pages = (int64_t)block_pages(b, planes);

	b->tenant->used += (uint64_t)(sign * pages);
	b->tenant->cache->used += (uint64_t)(sign * pages);
	counter_add(b->layout->counters, COUNTER_BYTES, KVG_TIER_HOST, sign * pages);
}

static void count_held(struct block *b, uint8_t planes, int sign)
{
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (planes >> p & 1)
			counter_add(b->layout->counters, COUNTER_PAYLOAD, p,
				sign * (int64_t)b->plane[p].bytes);
}

static struct policy_node *policy_parent(const struct block *parent)
{
	return parent && parent->node.held ? (struct policy_node *)(uintptr_t)&parent->node : NULL;
}

static struct block *block_new(struct cache_tenant *t, struct cache_layout *l,
	const struct kvg_key *key, uint32_t n_planes)
{
	struct block *b = slab_alloc(&t->cache->blocks[n_planes - 1]);

	if (!b)
		return NULL;
	b->tenant = t;
	b->layout = l;
	b->key = *key;
	b->n_planes = n_planes;
	memcpy(&b->node.key_hash, key->b, sizeof(b->node.key_hash));
	return b;
}

void block_unmake(struct block *b)
{
	slab_free(&b->tenant->cache->blocks[b->n_planes - 1], b);
}

void blocks_init(struct cache *c)
{
	for (uint32_t i = 0; i < KVG_PLANES_MAX; i++)
		c->blocks[i].size = sizeof(struct block) + (i + 1) * sizeof(struct block_plane);
}

void blocks_fini(struct cache *c)
{
	for (uint32_t i = 0; i < KVG_PLANES_MAX; i++)
		slab_fini(&c->blocks[i]);
}

/* The next plane that has pairs. bytes: in whole pages. */
static void add_plane(
	struct block *b, uint32_t p, uint64_t payload, uint32_t pairs, uint64_t bytes, float mass)
{
	const uint32_t i = b->node.n_planes++;

	b->plane[p].bytes = payload;
	b->plane[p].pairs = pairs;
	b->planes |= (uint8_t)(1u << p);
	b->pairs += pairs;
	b->node.bytes[i] = bytes;
	b->node.mass[i] = mass;
}

static struct block *block_make(struct cache_tenant *t, struct cache_layout *l,
	const struct pack_job *j, struct block *parent)
{
	struct block *b = block_new(t, l, j->key, j->n_planes);

	if (!b)
		return NULL;
	b->parent = parent;
	b->tokens = j->tokens;
	b->depth = parent ? parent->depth + 1 : 0;
	b->node.parent = policy_parent(parent);
	for (uint32_t p = 0; p < j->n_planes; p++) {
		if (!j->plane[p].extent.pages)
			continue;
		b->plane[p].extent = j->plane[p].extent;
		add_plane(b, p, j->plane[p].bytes, j->plane[p].pairs,
			extent_bytes(&j->plane[p].extent), j->plane[p].mass);
	}
	assert(b->planes & 1); /* plane 0 carries what is protected, and the token ids */
	b->held = b->mapped = b->planes;
	b->node.droppable_from = block_droppable_from(b, l->floor);
	return b;
}

static void ref_of(const struct block *b, uint32_t p, struct kvg_shm_plane_ref *ret)
{
	const struct block_plane *plane = &b->plane[p];

	*ret = (struct kvg_shm_plane_ref){.bytes = plane->bytes, .pairs = plane->pairs};
	if (b->mapped >> p & 1) {
		ret->segment = plane->extent.segment;
		ret->page = plane->extent.page;
		ret->tier = plane->extent.tier;
		ret->page_shift = plane->extent.page_shift;
	} else if (b->held >> p & 1) {
		ret->segment = plane->place.segment + 1;
		ret->page = plane->place.item;
		ret->tier = KVG_TIER_DISK;
		ret->page_shift = (uint8_t)b->layout->page_shift;
	}
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
		.mapped = b->mapped,
	};
	for (uint32_t p = 0; p < b->n_planes; p++)
		ref_of(b, p, &ret->plane[p]);
}

/* ---- those that are not in memory, who left it first at the front ---- */

static void below_add(struct block *b)
{
	struct cache_tenant *t = b->tenant;

	b->below_next = NULL;
	b->below_link = t->below_end;
	*t->below_end = b;
	t->below_end = &b->below_next;
}

static void below_take(struct block *b)
{
	if (!b->below_link)
		return;
	*b->below_link = b->below_next;
	if (b->below_next)
		b->below_next->below_link = b->below_link;
	else
		b->tenant->below_end = b->below_link;
	b->below_link = NULL;
}

static void enter(struct block *b)
{
	struct cache_tenant *t = b->tenant;

	cache_layout_hold(b->layout);
	t->by_slot[b->handle.slot] = b;
	link_in(b->parent ? &b->parent->children : &t->roots, b);
	if (b->parent)
		b->parent->n_children++;
	t->n_blocks++;
	b->published = ++t->publications;
	count_mapped(b, b->mapped, 1);
	count_held(b, b->held, 1);
	counter_add(b->layout->counters, COUNTER_BLOCKS, 0, 1);
	if (!b->mapped)
		below_add(b);
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
		block_unmake(b);
		return r;
	}
	describe(b, &shown);
	r = index_insert(t->index, &shown, &b->handle);
	if (r < 0) { /* a slot was set aside, so it is the key */
		policy_remove(t->policy, &b->node, false);
		block_unmake(b);
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
	struct block *b = block_new(t, l, &e->key, e->n_planes);

	if (!b)
		return NULL;
	b->handle = f->handle;
	b->parent = parent;
	b->tokens = e->tokens;
	b->depth = e->depth;
	b->held = f->there | f->below;
	b->mapped = f->there;
	b->hidden = f->there & (uint8_t)~f->shown;
	b->node.parent = policy_parent(parent);
	for (uint32_t p = 0; p < e->n_planes; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];
		const uint64_t page = 1ull << (r->page_shift & 63);

		if (!r->bytes)
			continue;
		b->plane[p].extent = f->extent[p];
		add_plane(
			b, p, r->bytes, r->pairs, (r->bytes + page - 1) & ~(page - 1), f->mass[p]);
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
	r = b->mapped ? policy_insert(t->policy, &b->node) : 0;
	if (r < 0) {
		block_unmake(b);
		return r;
	}
	if (b->mapped && b->mapped != b->planes)
		policy_shrink(t->policy, &b->node, plane_count(b->mapped));
	enter(b);
	*ret = b;
	return 0;
}

struct block *block_of_record(
	struct cache_tenant *t, struct cache_layout *l, const struct disk_record *r)
{
	struct block *b = block_new(t, l, &r->key, r->n_planes);

	if (!b)
		return NULL;
	b->tokens = r->tokens;
	b->depth = r->depth;
	for (uint32_t p = 0; p < r->n_planes; p++)
		if (r->plane_bytes[p])
			add_plane(b, p, r->plane_bytes[p], r->plane_pairs[p],
				layout_page_bytes(l, r->plane_bytes[p]), 0);
	return b;
}

int block_enter_below(struct block *b, struct block *parent)
{
	struct cache_tenant *t = b->tenant;
	struct index_block shown;
	int r;

	assert(b->held && !b->mapped);
	b->parent = parent;
	b->node.droppable_from = block_droppable_from(b, b->layout->floor);
	describe(b, &shown);
	r = index_insert(t->index, &shown, &b->handle);
	if (r == 0)
		enter(b);
	return r;
}

/* ---- between the tiers ---- */

void block_show(struct block *b, uint8_t held, uint8_t mapped)
{
	held &= (uint8_t)~b->hidden;
	index_set_planes(b->tenant->index, b->handle.slot, held, mapped & held);
}

static void place_refs(struct block *b, uint8_t planes)
{
	struct kvg_shm_plane_ref r;

	for (uint32_t p = 0; p < b->n_planes; p++)
		if (planes >> p & 1) {
			ref_of(b, p, &r);
			index_place(b->tenant->index, b->handle.slot, p, &r);
		}
}

static void release_pages(struct block *b, uint8_t planes)
{
	count_mapped(b, planes, -1);
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (planes >> p & 1) {
			pool_release(b->tenant->pool, &b->plane[p].extent);
			b->plane[p].extent = (struct extent){0};
		}
	b->mapped &= (uint8_t)~planes;
}

void block_unmap(struct block *b, uint8_t planes)
{
	const uint8_t before = b->mapped;

	assert(!(planes & ~before) && !(planes & ~block_below(b)));
	b->mapped = before & (uint8_t)~planes;
	place_refs(b, planes);
	b->mapped = before;
	release_pages(b, planes);
	if (!b->mapped)
		below_add(b);
}

int block_map(struct block *b, uint32_t plane)
{
	struct policy *policy = b->tenant->policy;
	const uint8_t bit = (uint8_t)(1u << plane);
	int r = 0;

	assert(!(b->mapped & bit) && b->held & bit);
	if (b->mapped) {
		policy_grow(policy, &b->node, plane_count(b->mapped | bit));
	} else {
		b->node.parent = policy_parent(b->parent);
		r = policy_insert(policy, &b->node);
		if (r < 0)
			return r;
		if (b->node.n_planes > 1)
			policy_shrink(policy, &b->node, 1);
		below_take(b);
	}
	b->mapped |= bit;
	count_mapped(b, bit, 1);
	place_refs(b, bit);
	block_show(b, b->held, b->mapped);
	return 0;
}

void block_place(struct block *b, uint32_t plane, struct disk_place at)
{
	struct block_plane *p = &b->plane[plane];
	const int there = disk_there(at) - disk_there(p->place);

	counter_add(b->layout->counters, COUNTER_BYTES, KVG_TIER_DISK,
		there * (int64_t)((p->bytes + DISK_PAGE - 1) & ~(uint64_t)(DISK_PAGE - 1)));
	p->place = at;
	if (b->handle.gen && disk_there(at) && !(b->mapped >> plane & 1) && b->held >> plane & 1)
		place_refs(b, (uint8_t)(1u << plane));
}

void block_touch(struct block *b)
{
	b->touched = true;
	b->used = UINT8_MAX;
	if (b->node.held)
		policy_touch(b->tenant->policy, &b->node);
}

void block_forget(struct block *b, uint8_t planes, bool erase)
{
	struct disk *d = b->tenant->cache->disk;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct disk_place at = b->plane[p].place;

		if (!(planes >> p & 1) || !disk_there(at))
			continue;
		block_place(b, p, (struct disk_place){0});
		if (d && erase)
			disk_erase(d, at);
		else if (d)
			disk_forget(d, at);
	}
}

void block_regain(struct block *b, uint8_t held)
{
	const uint8_t more = held & (uint8_t)~b->held;

	block_forget(b, (uint8_t) ~(held | b->held), true);
	if (!more || b->hidden)
		return;
	b->held |= more;
	count_held(b, more, 1);
	place_refs(b, more);
	block_show(b, b->held, b->mapped);
}

/* ---- the end ---- */

static void release_planes(struct block *b, uint8_t planes, bool erase)
{
	replicas_drop(b, planes);
	count_held(b, planes & b->held, -1);
	release_pages(b, planes & b->mapped);
	b->held &= (uint8_t)~planes;
	block_forget(b, planes, erase);
}

void block_drop_planes(struct block *b, uint8_t planes, bool erase)
{
	assert(!(planes & ~b->held) && !(planes & 1));
	index_drop_planes(b->tenant->index, b->handle.slot, planes);
	release_planes(b, planes, erase);
}

void block_hide(struct block *b, uint8_t planes)
{
	b->hidden |= planes;
	block_show(b, b->held, b->mapped);
}

void block_leave(struct block *b)
{
	struct cache_tenant *t = b->tenant;

	assert(!b->children.first);
	purges_step_over(b);
	unlink_from(b);
	below_take(b);
	t->n_blocks--;
	cache_layout_drop(b->layout);
	block_unmake(b);
}

void block_free(struct block *b, bool erase)
{
	struct cache_tenant *t = b->tenant;

	assert(!b->children.first && !b->pins && !b->uses && !b->lost);
	index_remove(t->index,
		b->handle.slot); /* before its pages are anybody else's, see index_adopt.c */
	release_planes(b, b->planes, erase);
	t->by_slot[b->handle.slot] = NULL;
	counter_add(b->layout->counters, COUNTER_BLOCKS, 0, -1);
	block_leave(b);
}
