/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the tier below knows, after what was kept in memory was adopted: planes of blocks that are here (they are clean then, or
 * come back behind those that are here), and blocks of which nothing is here. Those get their layouts from the notes beside
 * them and enter parents first, each with the best planes up to the first that is missing; a block without its best plane or its
 * parent is worth nothing. Of K and V nothing is read: a plane is verified when it comes up.
 */
#include "daemon/cache/mover.h"

#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/base/order.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/tenant.h"
#include "daemon/mem/bulk.h"

#define AHEAD 8u /* blocks whose memory is asked for before it is looked at */

struct candidate {
	struct block *block; /* not in the index or the tree yet; NULL: it was discarded */
	struct kvg_key parent;
	bool has_parent;
};

/* The hash stands here so that a block is looked at only when it is the one: it is in no cache. */
struct way {
	uint32_t hash;
	uint32_t candidate; /* 1 + number */
};

struct recovery {
	struct cache *cache;
	struct candidate *candidate; /* [n] */
	size_t n, room;
	struct way *table; /* [mask + 1], by layout and key */
	size_t mask;
	struct block **here; /* [n_here]: blocks in the index that got planes */
	size_t n_here, here_room;
	struct cache_layout *layout; /* of the last record */
	struct block *block; /* the same: planes of a block mostly come one after the other */
	uint64_t recovered, unknown, orphans, full, missing;
};

/* ---- finding again ---- */

static uint32_t hash_of(const struct kvg_key *key)
{
	uint64_t h;

	memcpy(&h, key->b + 16, sizeof(h));
	return (uint32_t)(h * 0x9e3779b97f4a7c15ull >> 32);
}

/* Where it stands, or would. */
static struct way *find(struct recovery *r, const struct cache_layout *l, const struct kvg_key *key)
{
	const uint32_t hash = hash_of(key);
	size_t at = hash & r->mask;

	for (; r->table[at].candidate; at = (at + 1) & r->mask) {
		const struct block *b = r->candidate[r->table[at].candidate - 1].block;

		if (r->table[at].hash == hash && b && b->layout == l &&
			!memcmp(&b->key, key, sizeof(*key)))
			break;
	}
	return &r->table[at];
}

static struct block *find_candidate(
	struct recovery *r, const struct cache_layout *l, const struct kvg_key *key)
{
	const struct way *w = r->n ? find(r, l, key) : NULL;

	return w && w->candidate ? r->candidate[w->candidate - 1].block : NULL;
}

static int grow(struct recovery *r)
{
	const size_t room = r->room ? 2 * r->room : 1024, old = r->table ? r->mask + 1 : 0;
	struct candidate *c = reallocarray(r->candidate, room, sizeof(*c));
	struct way *table;

	if (!c)
		return -ENOMEM;
	r->candidate = c;
	table = calloc(2 * room, sizeof(*table));
	if (!table || room >= UINT32_MAX / 2) {
		free(table);
		return -ENOMEM;
	}
	r->mask = 2 * room - 1;
	r->room = room;
	for (size_t i = 0; i < old; i++) {
		size_t at = r->table[i].hash & r->mask;

		while (table[at].candidate)
			at = (at + 1) & r->mask;
		if (r->table[i].candidate)
			table[at] = r->table[i];
	}
	free(r->table);
	r->table = table;
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
	struct way *at;
	struct block *b;

	if (r->n == r->room && grow(r) < 0)
		return NULL;
	at = find(r, l, &record->key);
	if (at->candidate)
		return r->candidate[at->candidate - 1].block;
	b = block_of_record(l->tenant, l, record);
	if (!b)
		return NULL;
	r->candidate[r->n] = (struct candidate){
		.block = b, .parent = record->parent, .has_parent = record->has_parent};
	*at = (struct way){.hash = hash_of(&record->key), .candidate = (uint32_t)++r->n};
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
static void discard(struct candidate *c, bool erase)
{
	block_forget(c->block, UINT8_MAX, erase);
	block_unmake(c->block);
	c->block = NULL;
}

/* Entered already, or in the index from the beginning. */
static struct block *find_parent(struct recovery *r, const struct candidate *c)
{
	struct block *b = find_candidate(r, c->block->layout, &c->parent);

	return b ? b : block_find(c->block->tenant, c->block->layout->id, &c->parent);
}

static bool enter(struct recovery *r, struct candidate *c)
{
	struct block *b = c->block, *parent = NULL;

	if (c->has_parent) {
		parent = find_parent(r, c);
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

static void prefetch_block(const struct block *b)
{
	const size_t bytes = sizeof(*b) + KVG_PLANES_MAX * sizeof(b->plane[0]);

	for (size_t at = 0; at < bytes; at += 64)
		__builtin_prefetch((const uint8_t *)b + at, 1);
}

/* Twice: of a block and its parent only then it is known where. */
static void prefetch(struct recovery *r, const struct ordered *turn, size_t i)
{
	if (i + 2 * AHEAD < r->n)
		prefetch_block(r->candidate[turn[i + 2 * AHEAD].number].block);
	if (i + AHEAD < r->n) {
		const struct candidate *c = &r->candidate[turn[i + AHEAD].number];
		const struct way *w = &r->table[hash_of(&c->parent) & r->mask];
		const struct block *parent = w->candidate ? r->candidate[w->candidate - 1].block
							  : NULL;

		index_prefetch(c->block->tenant->index, &c->block->key);
		if (parent)
			__builtin_prefetch(&parent->key);
	}
}

/* They were told tenant by tenant. */
static void expect(const struct recovery *r)
{
	size_t from = 0;

	for (size_t i = 1; i <= r->n; i++) {
		struct cache_tenant *t = r->candidate[from].block->tenant;

		if (i < r->n && r->candidate[i].block->tenant == t)
			continue;
		index_expect(t->index, i - from);
		from = i;
	}
}

/* Parents first. */
static struct ordered *by_depth(const struct recovery *r, struct bulk *memory)
{
	struct ordered *turn = bulk_alloc(memory, alignof(struct ordered), r->n * sizeof(*turn));
	struct ordered *spare = bulk_alloc(memory, alignof(struct ordered), r->n * sizeof(*turn));

	if (!turn || !spare)
		return NULL;
	for (size_t i = 0; i < r->n; i++)
		turn[i] = (struct ordered){
			.key = r->candidate[i].block->depth, .number = (uint32_t)i};
	return order_sort(turn, spare, r->n);
}

static int enter_candidates(struct recovery *r)
{
	struct bulk memory = {0};
	const struct ordered *turn = by_depth(r, &memory);

	expect(r);
	for (size_t i = 0; i < r->n; i++) {
		struct candidate *c = &r->candidate[turn ? turn[i].number : i];

		if (!turn) {
			discard(c, false);
			continue;
		}
		prefetch(r, turn, i);
		if (!enter(r, c))
			discard(c, !r->full);
	}
	bulk_free(&memory);
	return turn ? 0 : -ENOMEM;
}

static int enter_all(struct recovery *r)
{
	for (size_t i = 0; i < r->n_here; i++)
		block_regain(r->here[i], unbroken(r->here[i]));
	for (struct cache_tenant *t = r->cache->tenants; t; t = t->next)
		cut_missing(r, t);
	return r->n ? enter_candidates(r) : 0;
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
	if (enter_all(&r) < 0)
		error = -ENOMEM;
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
