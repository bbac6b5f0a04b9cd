/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tier below knows, after what was kept in memory was adopted: planes of blocks that are here (they are clean then, or
 * come back behind those that are here), and blocks of which nothing is here. Those get their layouts from the notes beside
 * them and enter parents first, each with the best planes up to the first that is missing; a block without its best plane or its
 * parent is worth nothing. Of K and V nothing is read: a plane is verified when it comes up.
 */
#include "daemon/cache/mover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/tenant.h"

struct candidate {
	struct block *block; /* not in the index or the tree yet */
	struct kvg_key parent;
	bool has_parent;
};

struct recovery {
	struct cache *cache;
	struct candidate *candidate; /* [n] */
	size_t n, room;
	uint32_t *table; /* [mask + 1]: 1 + candidate, by key */
	size_t mask;
	struct block **here; /* [n_here]: blocks in the index that got planes */
	size_t n_here, here_room;
	struct cache_layout *layout; /* of the last record */
	struct block *block; /* the same: planes of a block mostly come one after the other */
	uint64_t recovered, unknown, orphans, full, missing;
};

/* ---- finding again ---- */

static uint64_t hash_of(const struct kvg_key *key)
{
	uint64_t h;

	memcpy(&h, key->b + 16, sizeof(h));
	return h * 0x9e3779b97f4a7c15ull >> 16;
}

static uint32_t *find(struct recovery *r, const struct cache_layout *l, const struct kvg_key *key)
{
	size_t at = hash_of(key) & r->mask;

	for (; r->table[at]; at = (at + 1) & r->mask) {
		const struct block *b = r->candidate[r->table[at] - 1].block;

		if (b->layout == l && !memcmp(&b->key, key, sizeof(*key)))
			break;
	}
	return &r->table[at];
}

static int grow(struct recovery *r)
{
	const size_t room = r->room ? 2 * r->room : 1024;
	struct candidate *c = reallocarray(r->candidate, room, sizeof(*c));
	uint32_t *table;

	if (!c)
		return -ENOMEM;
	r->candidate = c;
	table = calloc(2 * room, sizeof(*table));
	if (!table || room >= UINT32_MAX / 2) {
		free(table);
		return -ENOMEM;
	}
	free(r->table);
	r->table = table;
	r->mask = 2 * room - 1;
	r->room = room;
	for (size_t i = 0; i < r->n; i++)
		*find(r, c[i].block->layout, &c[i].block->key) = (uint32_t)i + 1;
	return 0;
}

/* ---- what the disk tells ---- */

static int on_tenant(void *userdata, const char *name, void **ret_owner)
{
	struct recovery *r = userdata;
	struct cache_tenant *t = cache_tenant_find(r->cache, name);
	int error;

	if (!t) {
		error = tenant_make(r->cache, name, NULL, &t);
		if (error < 0)
			return error;
		t->quota = r->cache->o.host_bytes; /* until his configuration is read */
		t->floor = 1.0f;
	}
	*ret_owner = t;
	return 0;
}

static int on_note(void *userdata, void *owner, uint32_t note, const void *bytes, size_t n)
{
	struct cache_tenant *t = owner;
	struct cache_layout *l;
	int error = keep_take_layout(t, bytes, n, &l);

	(void)userdata;
	if (error == -ENOMEM)
		return error;
	if (error < 0 || layout_note(l) != note)
		log_warning("a layout that the disk names cannot be used, nor can its blocks",
			"tenant=%s note=%u", t->name, note);
	return 0;
}

static struct cache_layout *layout_named(
	struct recovery *r, const struct cache_tenant *t, uint32_t note)
{
	if (r->layout && r->layout->tenant == t && layout_note(r->layout) == note)
		return r->layout;
	for (uint32_t i = 0; i < t->n_layouts; i++)
		if (layout_note(t->layouts[i]) == note && t->layouts[i]->identity.model[0])
			return r->layout = t->layouts[i];
	return NULL;
}

static bool fits(const struct block *b, const struct disk_record *r)
{
	return r->plane < b->n_planes && b->n_planes == r->n_planes && b->tokens == r->tokens &&
		b->planes >> r->plane & 1 && b->plane[r->plane].bytes == r->bytes &&
		b->plane[r->plane].pairs == r->pairs;
}

static bool possible(const struct cache_layout *l, const struct disk_record *r)
{
	return r->n_planes && r->n_planes <= layout_planes(l) && r->plane < r->n_planes &&
		r->plane_bytes[r->plane] == r->bytes && r->plane_pairs[r->plane] == r->pairs &&
		r->bytes && r->bytes <= 2 * KVG_BLOCK_BYTES_MAX && r->page_shift == l->page_shift &&
		r->tokens && r->tokens <= l->identity.shape.tokens && r->plane_bytes[0] &&
		(r->depth != 0) == r->has_parent;
}

static void set_mass(struct block *b, uint32_t plane, float mass)
{
	b->node.mass[plane_count(b->planes & (uint8_t)((1u << plane) - 1))] =
		mass >= 0 && mass <= 1 ? mass : 0;
}

static struct block *remember_here(struct recovery *r, struct block *b)
{
	if (r->n_here == r->here_room) {
		const size_t room = r->here_room ? 2 * r->here_room : 256;
		struct block **here = reallocarray(r->here, room, sizeof(*here));

		if (!here)
			return NULL;
		r->here = here;
		r->here_room = room;
	}
	return r->here[r->n_here++] = b;
}

static struct block *candidate_for(
	struct recovery *r, struct cache_layout *l, const struct disk_record *record)
{
	uint32_t *at;
	struct block *b;

	if (r->n == r->room && grow(r) < 0)
		return NULL;
	at = find(r, l, &record->key);
	if (*at)
		return r->candidate[*at - 1].block;
	b = block_of_record(l->tenant, l, record);
	if (!b)
		return NULL;
	r->candidate[r->n] = (struct candidate){
		.block = b, .parent = record->parent, .has_parent = record->has_parent};
	*at = (uint32_t)++r->n;
	return b;
}

static struct block *find_block(
	struct recovery *r, struct cache_layout *l, const struct disk_record *record)
{
	struct cache_tenant *t = l->tenant;
	uint32_t slot;

	if (r->block && r->block->layout == l &&
		!memcmp(&r->block->key, &record->key, sizeof(record->key)))
		return r->block;
	slot = index_find(t->index, l->id, &record->key);
	return r->block = slot != KVG_SLOT_NONE ? t->by_slot[slot] : candidate_for(r, l, record);
}

static void *on_plane(
	void *userdata, void *owner, const struct disk_record *record, struct disk_place place)
{
	struct recovery *r = userdata;
	struct cache_layout *l = layout_named(r, owner, record->note);
	struct block *b;

	if (!l || !possible(l, record)) {
		r->unknown++;
		return NULL;
	}
	b = find_block(r, l, record);
	if (!b || !fits(b, record) || disk_there(b->plane[record->plane].place))
		return NULL;
	if (b->handle.gen && !remember_here(r, b)) /* it is in the index */
		return NULL;
	if (!(b->mapped >> record->plane & 1))
		set_mass(b, record->plane, record->mass);
	block_place(b, record->plane, place);
	return b;
}

/* ---- entering ---- */

/* Planes with pairs, best first, up to the first that is nowhere. */
static uint8_t unbroken(const struct block *b)
{
	const uint8_t there = b->mapped | block_below(b);
	uint8_t best = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		if (!(b->planes >> p & 1))
			continue;
		if (!(there >> p & 1))
			break;
		best |= (uint8_t)(1u << p);
	}
	return best;
}

/*
 * Erased, or what is left of a purge that was cut short would come back when its parent is put again. But if the index was too
 * small for some, a larger one may have them the next time.
 */
static void discard(const struct recovery *r, struct block *b)
{
	block_forget(b, UINT8_MAX, !r->full);
	free(b);
}

static int by_depth(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;

	return (x->block->depth > y->block->depth) - (x->block->depth < y->block->depth);
}

static bool enter(struct recovery *r, struct candidate *c)
{
	struct block *b = c->block, *parent = NULL;

	if (c->has_parent) {
		parent = block_find(b->tenant, b->layout->id, &c->parent);
		if (!parent || parent->layout != b->layout || parent->depth + 1 != b->depth) {
			r->orphans++;
			return false;
		}
	}
	b->held = unbroken(b);
	if (!(b->held & 1)) {
		r->orphans++;
		return false;
	}
	block_forget(b, (uint8_t)~b->held, true);
	if (block_enter_below(b, parent) < 0) {
		r->full++;
		return false;
	}
	r->recovered++;
	counter_add(b->layout->counters, COUNTER_DISK_RECOVERED, 0, 1);
	return true;
}

/* The index said that planes lie below, and they do not. */
static void cut_missing(struct recovery *r, struct cache_tenant *t)
{
	for (struct block *b = t->roots.first ? block_first(&t->roots) : NULL; b;
		b = block_next(b)) {
		const uint8_t missing = b->held & (uint8_t) ~(b->mapped | block_below(b));

		if (!missing)
			continue;
		r->missing++;
		mover_lose(b, (uint32_t)__builtin_ctz(missing), true);
	}
}

static void enter_all(struct recovery *r)
{
	for (size_t i = 0; i < r->n_here; i++)
		block_regain(r->here[i], unbroken(r->here[i]));
	for (struct cache_tenant *t = r->cache->tenants; t; t = t->next)
		cut_missing(r, t);
	if (r->n)
		qsort(r->candidate, r->n, sizeof(*r->candidate), by_depth);
	for (size_t i = 0; i < r->n; i++)
		if (!enter(r, &r->candidate[i]))
			discard(r, r->candidate[i].block);
}

int mover_recover(struct cache *c)
{
	struct recovery r = {.cache = c};
	const struct disk_found found = {
		.tenant = on_tenant,
		.note = on_note,
		.plane = on_plane,
		.userdata = &r,
	};
	const uint64_t began = loop_now_ns();
	int error;

	if (!c->disk)
		return 0;
	error = disk_recover(c->disk, &found);
	enter_all(&r);
	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		tenant_gauges(t);
	if (r.recovered || r.n_here || r.orphans || r.unknown || r.missing)
		log_info("what is on disk is known again",
			"blocks=%llu planes_of_blocks_in_memory=%zu "
			"without_parent_or_best_plane=%llu unknown_layout=%llu no_slot=%llu "
			"not_on_disk=%llu ms=%.1f",
			(unsigned long long)r.recovered, r.n_here, (unsigned long long)r.orphans,
			(unsigned long long)r.unknown, (unsigned long long)r.full,
			(unsigned long long)r.missing, (double)(loop_now_ns() - began) / 1e6);
	free(r.candidate);
	free(r.table);
	free(r.here);
	return error;
}
