/* SPDX-License-Identifier: Apache-2.0 */
/*
 * From the entries of an index to blocks:
 *
 *	1 claim		whole entries (index_adopt.c); layout known, planes lie in segments that are there
 *	2 prove		nobody else claims their pages; each plane's header says that it is this plane of this block
 *	3 descend	from the roots down, so that parents come before children; what is not reached is an orphan
 *	4 enter		the index keeps these and no others; then the daemon's own memory learns of them
 *
 * Up to 4 nothing that is shared is changed. Of K and V nothing is read: a plane's body is under a checksum that whoever
 * doubts it can have looked at. The exception are planes that were hidden and are pinned: the evictor was about to put
 * them back, or they are damaged, and only their bytes tell.
 *
 * What the index says to lie below is taken at its word until the disk was asked (recover.c), which alone knows; a daemon that has
 * no disk any more lets it go.
 */
#include "daemon/cache/adopt.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/bitmap.h"
#include "proto/plane.h"

struct candidate {
	uint32_t child, sibling; /* slots; KVG_SLOT_NONE */
	uint8_t there,
		shown; /* planes that are kept in memory, and those of them that readers will see */
	uint8_t below; /* planes that are kept, and lie below */
	bool claimed;
	float mass[KVG_PLANES_MAX];
};

struct adoption {
	struct cache_tenant *tenant;
	struct pool_adoption *pool;
	const struct cache_pinned *pinned;
	struct candidate *candidate; /* [n], by slot */
	uint32_t *order;             /* [n]: slots, parents first */
	uint32_t n, n_order;
	uint32_t roots;
	uint64_t *keep; /* bit per slot */
	struct {
		uint64_t unknown, misplaced, clashing, forged, orphans, doubles;
	} lost;
};

static uint32_t pages_of(const struct kvg_shm_plane_ref *r)
{
	const uint64_t pages = (r->bytes + (1ull << r->page_shift) - 1) >> r->page_shift;

	return r->bytes <= KVG_BLOCK_BYTES_MAX * 2 ? (uint32_t)pages : 0;
}

/* Where the entry says that its planes lie. -EBADMSG: that cannot be. */
static int locate(
	struct adoption *a, const struct kvg_shm_entry *e, uint8_t planes, struct extent *ret)
{
	for (uint32_t p = 0; p < e->n_planes; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];

		if (!(planes >> p & 1))
			continue;
		ret[p] = (struct extent){
			.segment = r->segment,
			.page = r->page,
			.pages = pages_of(r),
			.page_shift = r->page_shift,
		};
		if (pool_adoption_mark(a->pool, &ret[p]) < 0)
			return -EBADMSG;
	}
	return 0;
}

/* The planes that hold pairs, best first, up to the first that is not there. */
static uint8_t unbroken(const struct kvg_shm_entry *e, uint8_t there)
{
	uint8_t best = 0;

	for (uint32_t p = 0; p < e->n_planes; p++) {
		if (!e->plane[p].bytes)
			continue;
		if (!(there >> p & 1))
			break;
		best |= (uint8_t)(1u << p);
	}
	return best;
}

static uint8_t in_tier(const struct kvg_shm_entry *e, uint8_t planes, uint8_t tier)
{
	for (uint32_t p = 0; p < e->n_planes; p++)
		if (e->plane[p].tier != tier)
			planes &= (uint8_t) ~(1u << p);
	return planes;
}

/* ---- 1 claim ---- */

static bool layout_fits(const struct cache_layout *l, const struct kvg_shm_entry *e)
{
	return l && e->n_planes <= layout_planes(l) && e->tokens <= l->identity.shape.tokens;
}

static void on_claim(void *userdata, const struct index_claim *c)
{
	struct adoption *a = userdata;
	struct candidate *to = &a->candidate[c->slot];
	const struct kvg_handle h = {.slot = c->slot, .gen = c->gen};
	struct extent extent[KVG_PLANES_MAX];
	uint8_t there = c->there, below = 0;

	if (!layout_fits(cache_layout_get(a->tenant, c->entry.layout), &c->entry)) {
		a->lost.unknown++;
		return;
	}
	if ((there & (uint8_t)~c->shown) &&
		!(a->pinned->pinned &&
			a->pinned->pinned(a->pinned->userdata, a->tenant->number, h)))
		there = c->shown;
	if (a->tenant->disk)
		below = in_tier(&c->entry, c->shown, KVG_TIER_DISK);
	there = unbroken(&c->entry, in_tier(&c->entry, there, KVG_TIER_HOST));
	below = unbroken(&c->entry, there | below) & (uint8_t)~there;
	if (!((there | below) & 1)) {
		a->lost.misplaced += c->shown != 0;
		return;
	}
	if (locate(a, &c->entry, there, extent) < 0) {
		a->lost.misplaced++;
		return;
	}
	*to = (struct candidate){
		.child = KVG_SLOT_NONE,
		.sibling = KVG_SLOT_NONE,
		.there = there,
		.shown = c->shown & there,
		.below = c->shown == (c->shown | there) ? below : 0, /* not behind what is hidden */
		.claimed = true,
	};
}

/* ---- 2 prove ---- */

/* The header alone is read; what else a view points to does not exist here. */
static bool plane_proven(struct adoption *a, const struct kvg_shm_entry *e, uint32_t p,
	const struct extent *x, float *ret_mass)
{
	const struct cache_layout *l = cache_layout_get(a->tenant, e->layout);
	const struct kvg_shm_plane_ref *r = &e->plane[p];
	struct kvg_plane_header h;
	struct plane_view v;

	if (pool_adoption_peek(a->pool, x, &h, sizeof(h)) < 0 ||
		plane_open(&h, extent_bytes(x), &v) < 0)
		return false;
	*ret_mass = v.mass >= 0 && v.mass <= 1 ? v.mass : 0;
	return v.plane == p && v.bytes == r->bytes && v.pairs == r->pairs &&
		v.tokens == e->tokens && h.n_planes == e->n_planes &&
		!memcmp(&h.key, &e->key, sizeof(h.key)) &&
		!memcmp(h.fingerprint, l->fingerprint, sizeof(h.fingerprint));
}

/* Its extents were found possible before. */
static void describe(const struct adoption *a, uint32_t slot, struct block_found *ret)
{
	const struct candidate *c = &a->candidate[slot];
	const struct kvg_shm_entry *e = index_entry(a->tenant->index, slot);

	*ret = (struct block_found){
		.handle = {.slot = slot, .gen = index_generation(a->tenant->index, slot)},
		.entry = e,
		.there = c->there,
		.shown = c->shown,
		.below = c->below,
	};
	memcpy(ret->mass, c->mass, sizeof(ret->mass));
	for (uint32_t p = 0; p < e->n_planes; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];

		if (!(c->there >> p & 1))
			continue;
		ret->extent[p] = (struct extent){
			.segment = r->segment,
			.page = r->page,
			.pages = pages_of(r),
			.page_shift = r->page_shift,
		};
		pool_adoption_find(a->pool, &ret->extent[p]);
	}
}

/* False: not all of it is this block's. */
static bool prove(struct adoption *a, struct candidate *c, const struct block_found *f)
{
	for (uint32_t p = 0; p < f->entry->n_planes; p++) {
		if (!(f->there >> p & 1))
			continue;
		if (pool_adoption_clashes(a->pool, &f->extent[p])) {
			a->lost.clashing++;
			return false;
		}
		if (!plane_proven(a, f->entry, p, &f->extent[p], &c->mass[p])) {
			a->lost.forged++;
			return false;
		}
	}
	return true;
}

/* Hidden and pinned: what is whole is shown again, as the evictor would have done; the rest stays hidden. */
static void show_again(struct candidate *c, const struct block_found *f)
{
	for (uint32_t p = 0; p < f->entry->n_planes; p++) {
		const struct extent *x = &f->extent[p];

		if (!(c->there >> p & 1) || (c->shown >> p & 1))
			continue;
		if (plane_verify(x->addr, extent_bytes(x)) < 0)
			return;
		c->shown |= (uint8_t)(1u << p);
	}
}

static void prove_all(struct adoption *a)
{
	struct block_found f;

	for (uint32_t slot = 0; slot < a->n; slot++) {
		struct candidate *c = &a->candidate[slot];

		if (!c->claimed)
			continue;
		describe(a, slot, &f);
		c->claimed = prove(a, c, &f);
		if (c->claimed && c->shown != c->there)
			show_again(c, &f);
	}
}

/* ---- 3 descend ---- */

static bool is_child(const struct adoption *a, const struct kvg_shm_entry *e)
{
	const struct kvg_shm_entry *parent;

	if (e->parent >= a->n || !a->candidate[e->parent].claimed)
		return false;
	parent = index_entry(a->tenant->index, e->parent);
	return parent->layout == e->layout && parent->depth + 1 == e->depth;
}

static void link_all(struct adoption *a)
{
	for (uint32_t slot = a->n; slot-- > 0;) {
		const struct kvg_shm_entry *e = index_entry(a->tenant->index, slot);
		uint32_t *list = &a->roots;

		if (!a->candidate[slot].claimed)
			continue;
		if (e->parent != KVG_SLOT_NONE) {
			if (!is_child(a, e))
				continue;
			list = &a->candidate[e->parent].child;
		} else if (e->depth) {
			continue;
		}
		a->candidate[slot].sibling = *list;
		*list = slot;
	}
}

static void descend(struct adoption *a)
{
	uint32_t slot = a->roots;
	uint64_t claimed = 0;

	while (slot != KVG_SLOT_NONE) {
		a->order[a->n_order++] = slot;
		bitmap_set(a->keep, slot, 1);
		if (a->candidate[slot].child != KVG_SLOT_NONE) {
			slot = a->candidate[slot].child;
			continue;
		}
		while (slot != KVG_SLOT_NONE && a->candidate[slot].sibling == KVG_SLOT_NONE)
			slot = index_entry(a->tenant->index, slot)->parent;
		if (slot != KVG_SLOT_NONE)
			slot = a->candidate[slot].sibling;
	}
	for (slot = 0; slot < a->n; slot++)
		claimed += a->candidate[slot].claimed;
	a->lost.orphans += claimed - a->n_order;
}

/* ---- 4 enter ---- */

/* The index says what is there, and of what is not, that it is nowhere. */
static void put_right(struct cache_tenant *t, const struct block_found *f)
{
	const struct kvg_shm_entry *e = f->entry;
	uint8_t gone = 0;

	index_set_planes(t->index, f->handle.slot, f->shown | f->below, f->shown);
	for (uint32_t p = 0; p < e->n_planes; p++)
		if (!((f->there | f->below) >> p & 1) && e->plane[p].tier != KVG_TIER_NONE)
			gone |= (uint8_t)(1u << p);
	if (gone)
		index_drop_planes(t->index, f->handle.slot, gone);
}

static int enter(struct adoption *a, uint32_t slot)
{
	struct cache_tenant *t = a->tenant;
	struct block *parent, *b;
	struct block_found f;
	bool twice;
	int r = 0;

	describe(a, slot, &f);
	parent = f.entry->parent == KVG_SLOT_NONE ? NULL : t->by_slot[f.entry->parent];
	put_right(t, &f);
	twice = (f.shown | f.below) && index_find(t->index, f.entry->layout, &f.entry->key) != slot;
	a->lost.doubles += twice;
	if (!twice && (parent || f.entry->parent == KVG_SLOT_NONE)) {
		r = block_adopt(t, cache_layout_get(t, f.entry->layout), &f, parent, &b);
		for (uint32_t p = 0; r == 0 && p < f.entry->n_planes; p++)
			if (f.there >> p & 1)
				pool_adoption_take(a->pool, &f.extent[p]);
		return r;
	}
	index_set_planes(t->index, slot, 0, 0);
	index_remove(t->index, slot);
	return 0;
}

static int enter_all(struct adoption *a)
{
	int r = index_adopt_finish(a->tenant->index, a->keep);

	for (uint32_t i = 0; i < a->n_order && r == 0; i++)
		r = enter(a, a->order[i]);
	return r;
}

/* ---- all of it ---- */

static void report(const struct adoption *a, const struct index_adoption *x)
{
	const struct cache_tenant *t = a->tenant;
	const uint64_t lost = x->damaged + a->lost.unknown + a->lost.misplaced + a->lost.clashing +
		a->lost.forged + a->lost.orphans + a->lost.doubles;

	counter_add(t->counters, COUNTER_ADOPTED, 0, (int64_t)t->n_blocks);
	counter_add(t->counters, COUNTER_ADOPT_LOST, 0, (int64_t)lost);
	log_info("a tenant's blocks are taken over from the last daemon",
		"tenant=%s blocks=%llu bytes=%llu unfinished=%llu", t->name,
		(unsigned long long)t->n_blocks, (unsigned long long)t->used,
		(unsigned long long)x->unfinished);
	if (lost)
		log_warning("blocks of the last daemon do not verify, and are dropped",
			"tenant=%s damaged=%llu unknown_layout=%llu no_memory_there=%llu "
			"overlapping=%llu other_header=%llu no_parent=%llu twice=%llu",
			t->name, (unsigned long long)x->damaged,
			(unsigned long long)a->lost.unknown, (unsigned long long)a->lost.misplaced,
			(unsigned long long)a->lost.clashing, (unsigned long long)a->lost.forged,
			(unsigned long long)a->lost.orphans, (unsigned long long)a->lost.doubles);
}

int adopt_blocks(
	struct cache_tenant *t, struct pool_adoption *pool, const struct cache_pinned *pinned)
{
	struct adoption a = {
		.tenant = t,
		.pool = pool,
		.pinned = pinned,
		.n = (uint32_t)index_slots_used_end(t->index),
		.roots = KVG_SLOT_NONE,
	};
	struct index_adoption x;
	int r = -ENOMEM;

	a.candidate = calloc((size_t)a.n + 1, sizeof(*a.candidate));
	a.order = calloc((size_t)a.n + 1, sizeof(*a.order));
	a.keep = calloc(bitmap_words(a.n) + 1, sizeof(*a.keep));
	if (a.candidate && a.order && a.keep) {
		index_adopt_scan(t->index, on_claim, &a, &x);
		prove_all(&a);
		link_all(&a);
		descend(&a);
		r = enter_all(&a);
	}
	if (r == 0)
		report(&a, &x);
	free(a.candidate);
	free(a.order);
	free(a.keep);
	return r;
}
