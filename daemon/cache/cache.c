/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The cache as a whole: builds its parts in layer order and takes them down in the opposite one; pins through the socket;
 * segments. How the parts share the work:
 *
 *	commit.c	staged block -> workers -> block.c		tenant.c	limits, touches, ticks
 *	block.c		index + pool + policy + tree			layout.c	layouts, gates
 *	evictor.c	policy -> pins.c -> block.c			show.c		list, inspect
 *	purge.c		tree -> evictor.c				verify.c	workers -> purge.c
 *	mover_down.c	evictor.c -> disk -> evictor.c			mover_up.c	disk -> block.c
 *	replica.c	block.c -> copier				replica_room.c	policy -> pins.c
 *
 * Everything runs on the loop's thread but pack_run(), plane_verify(), the pool's prefaulting and the disk's transfers.
 */
#include "daemon/cache/cache.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/tenant.h"
#include "daemon/mem/tier.h"

#define TICK_NS      100000000 /* fine enough for an order of reading, coarse enough to idle */
#define TICK_TENANTS 4         /* looked after in one turn of the loop: about a millisecond */
#define TICK_SWEEPS  4         /* of the pool, in as many turns */

/* What is due with every tick, some of it in each turn of the loop. */
static void tick_on(void *userdata)
{
	struct cache *c = userdata;

	for (unsigned n = 0; c->ticking && n < TICK_TENANTS; n++) {
		tenant_tick(c->ticking);
		c->ticking = c->ticking->next;
	}
	mover_gauges(c);
	devices_tick(c);
	if (c->sweeps)
		c->sweeps = pool_sweep(c->pool) ? c->sweeps - 1 : 0;
	if (c->ticking || c->sweeps)
		loop_arm(c->tick_rest_timer, 0, 0);
	else
		commits_retry(c);
}

static void on_tick(void *userdata)
{
	struct cache *c = userdata;

	evict_ask_again(c);
	if (!c->ticking) /* else the last one is not over yet */
		c->ticking = c->tenants;
	c->sweeps = TICK_SWEEPS;
	tick_on(c);
}

static bool options_possible(const struct cache_options *o)
{
	return o->host_bytes && o->segment_bytes && !(o->segment_bytes & (o->segment_bytes - 1)) &&
		o->segment_bytes >= KVG_PAGE_MIN && o->index_slots &&
		o->index_slots <= INDEX_SLOTS_MAX && o->high_watermark > 0 &&
		o->high_watermark <= 1 && o->low_watermark > 0 &&
		o->low_watermark <= o->high_watermark && o->pack_workers;
}

static int start(struct cache *c)
{
	const struct pool_options pool = {
		.tier = &tier_host,
		.budget = c->o.host_bytes,
		.segment_bytes = c->o.segment_bytes,
		.numa_node = c->o.numa_node,
		.huge_pages = c->o.huge_pages,
		.prefault = c->o.prefault,
		.watch = keep_watch,
	};
	int r;

	r = key_hasher_new(&c->hasher);
	if (r == 0)
		r = pool_new(&pool, &c->pool);
	if (r == 0)
		r = loop_add_timer(c->loop, evict_on_timer, c, &c->evict_timer);
	if (r == 0)
		r = loop_add_timer(c->loop, on_tick, c, &c->tick_timer);
	if (r == 0)
		r = loop_add_timer(c->loop, tick_on, c, &c->tick_rest_timer);
	if (r == 0)
		r = purges_init(c);
	if (r == 0)
		r = commits_init(c);
	if (r == 0)
		r = mover_init(c);
	if (r == 0)
		r = devices_init(c);
	if (r == 0)
		r = loop_arm(c->tick_timer, TICK_NS, TICK_NS);
	return r;
}

int cache_new(const struct cache_options *o, struct cache **ret)
{
	struct cache *c;
	int r;

	loop_assert_owner(o->loop);
	if (!options_possible(o))
		return -EINVAL;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->o = *o;
	c->loop = o->loop;
	c->counters = o->counters;
	blocks_init(c);
	verifications_init(c);
	r = start(c);
	if (r < 0) {
		cache_free(c);
		return r;
	}
	*ret = c;
	return 0;
}

struct cache *cache_free(struct cache *c)
{
	if (!c)
		return NULL;
	loop_assert_owner(c->loop);
	commits_fini(c);
	devices_stop(c);
	mover_fini(c);
	purges_fini(c);
	c->tick_rest_timer = loop_del_timer(c->tick_rest_timer);
	c->tick_timer = loop_del_timer(c->tick_timer);
	c->evict_timer = loop_del_timer(c->evict_timer);
	tenants_free(c);
	blocks_fini(c);
	devices_fini(c);
	pool_free(c->pool);
	layout_gates_free(c);
	key_hasher_free(c->hasher);
	free(c);
	return NULL;
}

void cache_set_watermarks(struct cache *c, float high, float low)
{
	loop_assert_owner(c->loop);
	c->o.high_watermark = high;
	c->o.low_watermark = low;
	evict_ask_again(c); /* the next tick looks where everybody stands */
}

void cache_silence(struct cache *c)
{
	loop_assert_owner(c->loop);
	purges_silence(c);
	verifications_silence(c);
}

void cache_on_event(struct cache *c, cache_event_fn fn, void *userdata)
{
	loop_assert_owner(c->loop);
	c->on_event = fn;
	c->on_event_data = userdata;
}

/* ---- pins through the socket ---- */

static void look(const struct block *b, struct cache_block_result *ret)
{
	*ret = (struct cache_block_result){
		.handle = b->handle,
		.retention = block_retention(b),
		.held = block_shown(b),
		.mapped = block_readable(b),
	};
}

int cache_look(struct cache_tenant *t, struct kvg_handle h, struct cache_block_result *ret)
{
	const struct block *b;

	loop_assert_owner(t->cache->loop);
	b = block_get(t, h);
	if (!b)
		return KVG_CODE_NOT_FOUND;
	look(b, ret);
	return KVG_CODE_OK;
}

int cache_acquire(struct cache_tenant *t, const struct cache_layout *l, const struct kvg_key *key,
	float min_retention, struct cache_block_result *ret)
{
	struct block *b;

	loop_assert_owner(t->cache->loop);
	b = block_find(t, l->id, key);
	if (!b) {
		counter_add(l->counters, COUNTER_MISSES, 0, 1);
		return KVG_CODE_NOT_FOUND;
	}
	block_touch(b);
	look(b, ret);
	if (ret->retention < min_retention)
		return KVG_CODE_BELOW_RETENTION;
	b->pins++;
	counter_add(l->counters, COUNTER_ACQUIRES, 0, 1);
	return KVG_CODE_OK;
}

int cache_release(struct cache_tenant *t, struct kvg_handle h)
{
	struct block *b;

	loop_assert_owner(t->cache->loop);
	b = block_get(t, h);
	if (!b || !b->pins)
		return KVG_CODE_NOT_FOUND;
	b->pins--;
	evict_ask_again(t->cache);
	return KVG_CODE_OK;
}

bool cache_present_in(
	struct cache_tenant *t, const struct cache_layout *l, const struct kvg_key *key)
{
	struct block *b;

	loop_assert_owner(t->cache->loop);
	b = block_find(t, l ? l->id : 0, key);
	if (b)
		block_touch(b);
	return b;
}

bool cache_present(struct cache_tenant *t, const struct kvg_key *key)
{
	return cache_present_in(t, NULL, key);
}

/* ---- segments ---- */

int cache_segment_get(struct cache_tenant *t, uint32_t id, struct cache_segment_info *ret)
{
	struct pool_segment s;
	int r;

	loop_assert_owner(t->cache->loop);
	r = pool_segment_get(t->pool, id, &s);
	if (r == 0)
		*ret = (struct cache_segment_info){
			.id = s.id,
			.page_shift = s.page_shift,
			.tier = s.tier,
			.bytes = s.bytes,
			.fd = s.fd,
		};
	return r;
}
