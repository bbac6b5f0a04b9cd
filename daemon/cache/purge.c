/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A purge walks the tree of prefixes, children before their parents, for a block never outlives its parent; one that is
 * pinned keeps its ancestors. There may be a million blocks, so it stops after every batch of victims and goes on
 * with the next turn of the loop:
 *
 *	tenants with purges	A -> B -> C	a slice of A's first purge, then A stands behind C
 *	A's purges		1 -> 2		one after the other: there is one walk in a tree
 *
 * Meanwhile everything goes on, so the walk has to bear it. A block that goes, for whatever reason, is stepped over
 * (purges_step_over()). A block that comes is never met by intention: it carries the number of its publication, and a
 * purge takes only what was published before it was asked for. So a purge ends, however much is committed meanwhile;
 * what is committed on top of a block that is to go keeps that block, as a pin does. What is on its way between the tiers is
 * waited for: the transfer ends whoever wants the block gone.
 *
 * Who asked is told when the tier below has heard of it, too: a daemon that is killed after that finds nothing of it again.
 */
#include "daemon/cache/purge.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"

#define SLICE_LOOKS                                                                                \
	1024 /* blocks passed in one turn, whether they go or not: well below a millisecond */

#define STALL_NS 1000000 /* a transfer takes about as long */

struct cache_purge {
	struct cache_purge *next; /* of the tenant; or of those that wait for the tier below */
	struct cache_tenant *tenant;
	struct cache *cache; /* while it waits for the tier below: the tenant may be gone */
	enum evict_reason reason;
	uint64_t until; /* publications */
	uint32_t layout, keep_planes;
	struct kvg_handle from; /* not of EVICT_REQUEST: the block */
	struct block *at, *last;
	bool down; /* what hangs below `at` was not walked yet */
	bool begun;
	bool patient; /* waits for what is on its way between the tiers */
	bool stalled; /* and does so now */
	cache_purge_fn done;
	void *userdata;
	struct cache_purge_result sum;
	struct disk_sync sync;
	size_t n, i; /* keys, those looked up */
	const struct kvg_key *key;
	struct kvg_key keys[];
};

/* ---- the walk ---- */

static void advance(struct cache_purge *p)
{
	const struct block *b = p->at;

	p->down = b != p->last && b->next;
	p->at = b == p->last ? NULL : b->next ? b->next : b->parent;
}

static void walk_below(struct cache_purge *p, struct block *b)
{
	p->at = p->last = b;
	p->down = !p->keep_planes;
}

/* The next tree that is to be walked. False: that was all. */
static bool begin(struct cache_purge *p)
{
	struct cache_tenant *t = p->tenant;

	if (p->n && p->i < p->n) {
		walk_below(p, block_find(t, p->layout, &p->key[p->i++]));
		return true;
	}
	if (p->begun || p->n)
		return false;
	p->begun = true;
	if (p->from.gen) {
		walk_below(p, block_get(t, p->from));
	} else {
		p->at = t->roots.first;
		p->last = NULL; /* to the end of all */
		p->down = true;
	}
	return true;
}

static void look(struct cache_purge *p, struct evict_batch *e)
{
	const uint8_t keep = p->keep_planes < KVG_PLANES_MAX ? (uint8_t)((1u << p->keep_planes) - 1)
							     : UINT8_MAX;
	struct block *b = p->at;
	const uint8_t after = b->held & keep;

	if (p->down && b->children.first) {
		p->at = b->children.first;
		return;
	}
	p->stalled = p->patient && !b->pins && (b->sinking || b->lift);
	if (p->stalled) {
		p->down = false; /* its children were walked */
		return;
	}
	advance(p);
	if ((p->layout && b->layout->id != p->layout) || after == b->held ||
		b->published > p->until)
		return;
	if (b->pins || b->uses || (!after && b->n_children))
		e->result.pinned++;
	else
		evict_batch_add(e, b, (struct planes){.held = after, .mapped = b->mapped & after});
}

/* False: nothing is left to do. */
static bool slice(struct cache_purge *p)
{
	struct evict_batch e;
	bool more = true;

	evict_batch_init(&e, p->tenant, p->reason);
	p->stalled = false;
	for (unsigned n = 0; more && !p->stalled && n < SLICE_LOOKS && e.n < PIN_SET_MAX; n++) {
		if (p->at) {
			look(p, &e);
			continue;
		}
		evict_batch_settle(&e); /* the next tree may hold what is in the batch */
		more = begin(p);
	}
	evict_batch_settle(&e);
	p->sum.blocks += e.result.blocks;
	p->sum.planes += e.result.planes;
	p->sum.bytes += e.result.bytes;
	p->sum.pinned += e.result.pinned;
	tenant_gauges(p->tenant);
	return more;
}

void purges_step_over(struct block *b)
{
	struct cache_purge *p = b->tenant->purges.first;

	if (p && p->at == b)
		advance(p);
}

/* ---- the queues ---- */

static void queue_tenant(struct cache *c, struct cache_tenant *t)
{
	t->purges.next = NULL;
	*c->purging_end = t;
	c->purging_end = &t->purges.next;
}

static struct cache_tenant *next_tenant(struct cache *c)
{
	struct cache_tenant *t = c->purging;

	c->purging = t->purges.next;
	if (!c->purging)
		c->purging_end = &c->purging;
	return t;
}

static struct cache_purge *take_first(struct purges *q)
{
	struct cache_purge *p = q->first;

	q->first = p->next;
	if (!q->first)
		q->end = &q->first;
	return p;
}

static void finish(struct cache_purge *p)
{
	if (p->done)
		p->done(p->userdata, &p->sum);
	free(p);
}

static void on_synced(struct disk_sync *s)
{
	struct cache_purge *p =
		(struct cache_purge *)((char *)s - offsetof(struct cache_purge, sync));
	struct cache_purge **at = &p->cache->purges_syncing;

	if (s->error)
		log_warning("what was purged may be found again after a restart", "error=\"%s\"",
			strerror(-s->error));
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	finish(p);
}

static void finish_below(struct cache *c, struct cache_purge *p)
{
	struct disk_tenant *below = p->reason == EVICT_REQUEST ? p->tenant->disk : NULL;

	/* copies that were forgotten under pressure, of what went now or long ago */
	if (!below || !(disk_erase_forgotten(below) | (p->sum.planes > 0))) {
		finish(p);
		return;
	}
	p->cache = c;
	p->next = c->purges_syncing;
	c->purges_syncing = p;
	p->sync.done = on_synced;
	disk_sync(c->disk, &p->sync);
}

static void on_timer(void *cache)
{
	struct cache *c = cache;
	struct cache_tenant *t = next_tenant(c);
	struct cache_purge *ended = slice(t->purges.first) ? NULL : take_first(&t->purges);
	const bool stalled = !ended && t->purges.first->stalled;

	if (t->purges.first)
		queue_tenant(c, t);
	if (c->purging)
		loop_arm(c->purge_timer, stalled ? STALL_NS : 0, 0);
	commits_retry(c);
	if (ended)
		finish_below(c, ended);
}

static void enqueue(struct cache_purge *p)
{
	struct cache_tenant *t = p->tenant;
	struct cache *c = t->cache;

	p->until = t->publications;
	p->patient = true;
	p->next = NULL;
	if (!c->purging)
		loop_arm(c->purge_timer, 0, 0);
	if (!t->purges.first)
		queue_tenant(c, t);
	*t->purges.end = p;
	t->purges.end = &p->next;
}

/* ---- asking ---- */

int cache_purge_start(struct cache_tenant *t, const struct cache_purge_request *q,
	cache_purge_fn done, void *userdata)
{
	struct cache_purge *p;

	loop_assert_owner(t->cache->loop);
	p = calloc(1, sizeof(*p) + q->n * sizeof(p->keys[0]));
	if (!p)
		return -ENOMEM;
	p->tenant = t;
	p->reason = EVICT_REQUEST;
	p->layout = q->layout;
	p->keep_planes = q->keep_planes;
	p->n = q->n;
	p->key = p->keys;
	if (q->n)
		memcpy(p->keys, q->keys, q->n * sizeof(p->keys[0]));
	p->done = done;
	p->userdata = userdata;
	enqueue(p);
	return 0;
}

int purge_lost(struct block *b, uint32_t keep_planes, enum evict_reason reason)
{
	struct cache_purge *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	p->tenant = b->tenant;
	p->reason = reason;
	p->keep_planes = keep_planes;
	p->from = b->handle;
	enqueue(p);
	return 0;
}

void cache_purge(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	uint32_t keep_planes, struct cache_purge_result *ret)
{
	struct cache_purge p = {
		.tenant = t,
		.reason = EVICT_REQUEST,
		.until = UINT64_MAX,
		.layout = layout,
		.keep_planes = keep_planes,
		.n = key != NULL,
		.key = key,
	};

	loop_assert_owner(t->cache->loop);
	while (slice(&p))
		;
	*ret = p.sum;
	commits_retry(t->cache);
}

/* ---- life ---- */

int purges_init(struct cache *c)
{
	c->purging_end = &c->purging;
	return loop_add_timer(c->loop, on_timer, c, &c->purge_timer);
}

void purges_silence(struct cache *c)
{
	for (struct cache_tenant *t = c->purging; t; t = t->purges.next)
		for (struct cache_purge *p = t->purges.first; p; p = p->next)
			p->done = NULL;
	for (struct cache_purge *p = c->purges_syncing; p; p = p->next)
		p->done = NULL;
}

void purges_fini(struct cache *c)
{
	purges_silence(c);
	while (c->purging) {
		struct cache_tenant *t = next_tenant(c);

		while (t->purges.first)
			finish(take_first(&t->purges));
	}
	c->purge_timer = loop_del_timer(c->purge_timer);
}
