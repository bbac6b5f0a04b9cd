/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The tier below as the cache sees it: opened here, and told what it asks. A plane may lie in memory, below, or in both.
 *
 *	evictor.c --victim--> mover_down.c --store--> disk	 then, if nobody reads it, evictor.c takes it out of memory
 *	a reader --fetch--> mover_up.c --load--> disk		 then block.c shows it; below it stays, and sinks for nothing
 *
 * The log below has to make room as well: it asks what of a segment to keep. What was used since it was written is kept, the
 * rest is given up; what is in memory, too, loses nothing by that. So what a log is worth is known by what it gives up, and a
 * block is written only if it is worth more (worth_writing()).
 */
#include "daemon/cache/mover.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/catalog.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/purge.h"
#include "daemon/cache/tenant.h"

#define WORTH_SHARE 64.0 /* of a block that is given up in what blocks below are worth: 1 / this */

/* ---- what the log asks ---- */

static bool keep(void *item, unsigned plane)
{
	struct block *b = item;
	struct cache_tenant *t = b->tenant;

	if (b->batch) /* it is being decided about */
		return true;
	if (b->mapped >> plane & 1) {
		block_place(b, plane, (struct disk_place){0});
		return false;
	}
	if (b->pins || b->uses > b->lost || (b->used & (uint8_t)~b->hidden) >> plane & 1) {
		b->used &= (uint8_t) ~(1u << plane);
		return true;
	}
	t->below_worth += (policy_worth(t->policy, &b->node) - t->below_worth) / WORTH_SHARE;
	mover_lose(b, plane, false);
	return false;
}

static void moved(void *item, unsigned plane, struct disk_place to)
{
	struct block *b = item;

	if (disk_there(to))
		block_place(b, plane, to);
	else
		mover_lose(b, plane, true);
}

static size_t note(void *tenant_owner, uint32_t number, const void **ret)
{
	struct cache_tenant *t = tenant_owner;
	struct mover *m = &t->cache->mover;

	for (uint32_t i = 0; i < t->n_layouts; i++)
		if (layout_note(t->layouts[i]) == number && t->layouts[i]->identity.model[0]) {
			*ret = m->note;
			return keep_encode_layout(t->layouts[i], m->note);
		}
	return 0;
}

static void room(void *cache)
{
	struct cache *c = cache;

	loop_arm(c->mover.timer, 0, 0);
	evict_wake(c);
}

/* ---- what is lost ---- */

void mover_lose(struct block *b, uint32_t plane, bool damaged)
{
	struct cache *c = b->tenant->cache;
	struct counter_scope *s = b->layout->counters;

	block_place(b, plane, (struct disk_place){0});
	if (b->mapped >> plane & 1 || !(b->held >> plane & 1))
		return;
	counter_add(s, damaged ? COUNTER_DISK_LOST : COUNTER_DISK_GIVEN_UP, plane, 1);
	block_hide(b, (uint8_t)(b->held & (UINT8_MAX << plane)));
	if (b->lost)
		return;
	b->lost = true;
	b->uses++; /* while it is in the list */
	b->lost_next = c->mover.lost;
	c->mover.lost = b;
	loop_arm(c->mover.timer, 0, 0);
}

/* They are hidden; a purge takes them, and what hangs on them. */
static void settle_lost(struct cache *c)
{
	struct block *b;

	while ((b = c->mover.lost)) {
		c->mover.lost = b->lost_next;
		b->lost = false;
		b->uses--;
		if (b->hidden)
			purge_lost(b, (uint32_t)__builtin_ctz(b->hidden),
				EVICT_PRESSURE); /* without memory for that: hidden, until the block goes */
	}
}

static void on_timer(void *cache)
{
	struct cache *c = cache;

	mover_settle(c);
	settle_lost(c);
	mover_lift(c);
	if (c->mover.drain)
		mover_drain_next(c);
}

void mover_gauges(struct cache *c)
{
	struct counter_scope *s;
	struct disk_stat st;

	if (!c->disk || counters_scope(c->counters, "", "", &s) < 0)
		return;
	disk_stat(c->disk, &st);
	counter_set(s, COUNTER_DISK_CAPACITY, 0, (int64_t)st.capacity);
	counter_set(s, COUNTER_DISK_LIVE, 0, (int64_t)st.live);
	counter_set(s, COUNTER_DISK_STORED, 0, (int64_t)st.stored_bytes);
	counter_set(s, COUNTER_DISK_MOVED, 0, (int64_t)st.moved_bytes);
	counter_set(s, COUNTER_DISK_LOADED, 0, (int64_t)st.loaded_bytes);
	counter_set(s, COUNTER_DISK_REFUSED, 0, (int64_t)st.stores_refused);
}

void mover_retry(struct cache *c)
{
	if (c->mover.lifts && !c->mover.stopping)
		loop_arm(c->mover.timer, 0, 0);
}

bool mover_busy(const struct cache *c)
{
	return c->mover.sinking || c->mover.lifting;
}

/* ---- life ---- */

static int open_disk(struct cache *c)
{
	const struct cache_disk_options *from = &c->o.disk;
	const struct disk_options o = {
		.loop = c->loop,
		.paths = from->paths,
		.n_paths = from->n_paths,
		.in_flight_bytes = from->in_flight_bytes,
		.uring = from->uring,
		.sqpoll = from->sqpoll,
		.iopoll = from->iopoll,
		.discard = from->discard,
		.write_bytes_per_day = from->write_bytes_per_day,
		.owner = {.keep = keep, .moved = moved, .note = note, .room = room, .userdata = c},
		.fault = from->fault,
	};
	unsigned bad;
	int r = disk_open(&o, &c->disk, &bad);

	if (r == -ENODEV) {
		log_error("no disk can be used: there is no tier below memory", "paths=%u",
			from->n_paths);
		return 0;
	}
	return r;
}

int mover_init(struct cache *c)
{
	struct mover *m = &c->mover;
	int r;

	m->lift_end = &m->lift_first;
	r = loop_add_timer(c->loop, on_timer, c, &m->timer);
	if (r < 0 || !c->o.disk.n_paths)
		return r;
	m->note = malloc(CATALOG_RECORD_MAX);
	return m->note ? open_disk(c) : -ENOMEM;
}

void mover_fini(struct cache *c)
{
	struct mover *m = &c->mover;
	struct block *b;

	m->stopping = true;
	c->disk = disk_close(c->disk);
	mover_settle(c);
	mover_lifts_fini(c);
	while ((b = m->lost)) {
		m->lost = b->lost_next;
		b->lost = false;
		b->uses--;
	}
	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		t->disk = NULL;
	m->timer = loop_del_timer(m->timer);
	free(m->note);
	m->note = NULL;
}

int mover_tenant(struct cache_tenant *t)
{
	if (!t->cache->disk)
		return 0;
	policy_set_lower(t->policy);
	return disk_tenant_new(t->cache->disk, t->name, t, &t->disk);
}
