/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pressure on a device: what is worth least goes, and since the host has it, going is a look at the pins and no copy.
 *
 * The order is the host's - a block's chance of reuse times what a plane weighs, by its bytes - taken of a few at a time: a set's
 * replicas stand in a ring, and each round looks at the next LOOKS of them. Of these the worst planes go, one after the other, until there
 * is room; what is left stands behind all others. Nothing goes for what is worth less than it is.
 *
 *	look	word := fewer planes, for all that is to go
 *	settle	fence, scan	pinned: word := as before	else: pages -> pool
 *
 * A tenant that has as much as it may, or more than any other, gives way to itself. Else the tenant that has most does; but a page
 * there is of use to another only when its whole segment is empty, so what lies in that tenant's youngest segment goes, until it
 * is, whatever it is worth. One that has nothing yet gets a segment from one that has anything.
 */
#include <errno.h>

#include "daemon/cache/replica_private.h"

#define LOOKS 64 /* less than PIN_SET_MAX, and some ten microseconds */

struct round {
	struct replica *at[LOOKS];
	uint8_t stays[LOOKS]; /* planes (bits) that are not hidden */
	unsigned n;
};

double replica_worth(const struct block *b, uint32_t plane)
{
	const uint8_t better = b->planes & (uint8_t)((1u << plane) - 1);

	return policy_value(b->tenant->policy, &b->node, plane_count(better));
}

static uint32_t worst_of(uint8_t planes)
{
	return 31u - (uint32_t)__builtin_clz(planes);
}

/* The next ones that may lose something. segment 0: of any. */
static void gather(struct replica_set *s, uint32_t segment, struct round *ret)
{
	struct replica *r = s->first, *end = s->last;

	ret->n = 0;
	for (unsigned looks = 0; r && looks < LOOKS; looks++) {
		struct replica *next = r->next;
		bool in = !segment && r->there;

		for (uint32_t p = 0; p < r->block->n_planes && !in; p++)
			in = r->there >> p & 1 && r->extent[p].segment == segment;
		if (in && !r->coming && !r->block->pins && !r->block->uses) {
			ret->at[ret->n] = r;
			ret->stays[ret->n++] = r->there;
		}
		if (r == end)
			next = NULL;
		replica_to_back(r);
		r = next;
	}
}

/* The least valuable plane that is still to stay, worth less than this. */
static int least(const struct round *r, double worth)
{
	int at = -1;

	for (unsigned i = 0; i < r->n; i++) {
		double v;

		if (!r->stays[i])
			continue;
		v = replica_worth(r->at[i]->block, worst_of(r->stays[i]));
		if (v < worth) {
			worth = v;
			at = (int)i;
		}
	}
	return at;
}

static void hide(struct round *r, unsigned i, uint8_t stays)
{
	r->stays[i] = stays;
	replica_table_set(
		&r->at[i]->set->table, r->at[i]->block->handle, stays & (uint8_t)~r->at[i]->hidden);
}

/* What is hidden goes, unless it is pinned. Bytes that went. */
static uint64_t settle(struct replica_set *s, struct round *r)
{
	struct pin_set pins;
	uint64_t freed = s->used;

	pin_set_init(&pins);
	for (unsigned i = 0; i < r->n; i++)
		if (r->stays[i] != r->at[i]->there)
			pin_set_add(&pins, r->at[i]->block->handle);
	if (!pins.n)
		return 0;
	pins_scan(&s->tenant->pins, &pins);
	for (unsigned i = 0; i < r->n; i++) {
		const uint8_t gone = r->at[i]->there & (uint8_t)~r->stays[i];

		if (!gone)
			continue;
		if (pin_set_pinned(&pins, r->at[i]->block->handle)) {
			hide(r, i, r->at[i]->there);
			counter_add(r->at[i]->block->layout->counters, COUNTER_EVICT_PINNED, 0, 1);
			continue;
		}
		for (uint32_t p = 0; p < r->at[i]->block->n_planes; p++)
			counter_add(r->at[i]->block->layout->counters, COUNTER_REPLICAS_EVICTED, p,
				gone >> p & 1);
		replica_release(r->at[i], gone);
	}
	freed -= s->used;
	return freed;
}

static bool by_worth(struct replica_set *s, uint64_t bytes, double worth)
{
	struct round r;
	uint64_t hidden = 0;

	gather(s, 0, &r);
	while (hidden < bytes) {
		const int i = least(&r, worth);
		uint32_t p;

		if (i < 0)
			break;
		p = worst_of(r.stays[i]);
		hidden += extent_bytes(&r.at[i]->extent[p]);
		hide(&r, (unsigned)i, r.stays[i] & (uint8_t) ~(1u << p));
	}
	return settle(s, &r) > 0;
}

static uint32_t youngest_segment(const struct replica_set *s)
{
	uint32_t id = 0;

	for (const struct replica *r = s->first; r; r = r->next)
		for (uint32_t p = 0; p < r->block->n_planes; p++)
			if (r->there >> p & 1 && r->extent[p].segment > id)
				id = r->extent[p].segment;
	return id;
}

/* With each plane what is worse goes, too: the best ones are of use alone, the others are not. */
static bool by_segment(struct replica_set *s)
{
	const uint32_t id = youngest_segment(s);
	struct round r;

	gather(s, id, &r);
	for (unsigned i = 0; i < r.n; i++) {
		uint8_t stays = 0;

		for (uint32_t p = 0; p < r.at[i]->block->n_planes; p++) {
			if (!(r.at[i]->there >> p & 1))
				continue;
			if (r.at[i]->extent[p].segment == id)
				break;
			stays |= (uint8_t)(1u << p);
		}
		hide(&r, i, stays);
	}
	return settle(s, &r) > 0;
}

bool replica_make_room(struct replica_set *s, uint64_t bytes, double worth)
{
	const uint64_t limit = s->tenant->cache->o.gpu.tenant_bytes;
	struct replica_set *most = s;

	tenant_drain(s->tenant);
	if (limit && s->used + bytes > limit)
		return by_worth(s, bytes, worth);
	for (struct cache_tenant *t = s->tenant->cache->tenants; t; t = t->next) {
		struct replica_set *other = replica_set_find(t, s->device->number);

		if (other && other->used > most->used)
			most = other;
	}
	if (most == s || (s->used && s->used + s->device->segment_bytes > most->used))
		return by_worth(s, bytes, worth);
	tenant_drain(most->tenant);
	return by_segment(most);
}
