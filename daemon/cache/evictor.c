/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Taking something away is a question to everybody who may be reading it, and the question has a price: a look at every pin
 * of the tenant. So victims are gathered first, each hidden from new readers and taken out of the policy's order as if
 * it were gone; then one fence and one scan answer for all; then those that nobody pins go, and those
 * that somebody does are put back as they were, with what depends on them:
 *
 *	add	word := fewer planes	policy_shrink / policy_remove
 *	settle	fence, scan
 *	   pinned	word := as before	policy_restore		- and so for every ancestor in the batch
 *	   else		extents -> pool		block_free
 *
 * In a batch, a block that goes altogether stands behind its descendants: the policy offers a block only when its last
 * child went. So what stays is found in one pass forward, and put back in one pass backward.
 *
 * Nothing moves: a plane is dropped by giving its extent back and storing one word.
 *
 * Work is bounded. One round looks at no more than ROUND_LOOKS victims, and a turn of the loop has ROUNDS_A_TURN of them,
 * whoever wants room: the rest comes with the next turns. A tenant is exhausted when as many victims in a row were pinned as it has blocks: then
 * asking again is of no use until something may have changed. Pins in pages go without a word, so every commit that
 * wants room, and every tick, asks as if for the first time.
 */
#include "daemon/cache/evictor.h"

#include <assert.h>
#include <string.h>

#include "daemon/cache/tenant.h"

#define ROUND_LOOKS   128       /* victims looked at in one round: about a millisecond */
#define RETRY_NS      100000000 /* everything was pinned: so long until the next try */
#define ROUNDS_A_TURN 4
#define ROUND_BYTES   (64ull << 20) /* of a background round */

void evict_ask_again(struct cache *c)
{
	c->question++;
}

void evict_batch_init(struct evict_batch *e, struct cache_tenant *t, enum evict_reason reason)
{
	e->tenant = t;
	e->reason = reason;
	e->n = 0;
	e->freed = 0;
	e->result = (struct cache_purge_result){0};
}

static void show(struct block *b, uint8_t planes)
{
	planes &= (uint8_t)~b->hidden;
	index_set_planes(b->tenant->index, b->handle.slot, planes, planes);
}

bool evict_batch_add(struct evict_batch *e, struct block *b, uint8_t after)
{
	struct policy *policy = e->tenant->policy;
	struct victim *known = b->batch ? &e->victim[b->batch - 1] : NULL;

	assert(!(after & ~b->held) && after != b->held && !b->pins && !b->uses);
	assert(after || !b->node.children);
	if (known && after) {
		known->after = after;
	} else {
		if (e->n == PIN_SET_MAX)
			return false;
		e->victim[e->n] = (struct victim){
			.block = b,
			.before = b->held,
			.after = after,
			.policy_held = known ? known->policy_held : b->node.held,
		};
		if (known)
			known->block = NULL;
		b->batch = ++e->n;
	}
	show(b, after);
	if (after)
		policy_shrink(policy, &b->node, plane_count(after));
	else
		policy_remove(policy, &b->node, e->reason == EVICT_PRESSURE);
	return true;
}

static void tell(const struct block *b, enum cache_event_kind kind, uint8_t held, uint64_t bytes)
{
	struct cache *c = b->tenant->cache;
	struct cache_event event = {
		.kind = kind,
		.tenant = b->tenant,
		.key = b->key,
		.layout = b->layout->id,
		.handle = b->handle,
		.held = held,
		.bytes = bytes,
	};

	if (c->on_event)
		c->on_event(c->on_event_data, &event);
}

static void count_gone(struct evict_batch *e, const struct block *b, uint8_t gone, bool whole)
{
	struct counter_scope *s = b->layout->counters;

	e->result.blocks += whole;
	e->result.planes += plane_count(gone);
	e->result.bytes += block_payload(b, gone);
	e->freed += block_pages(b, gone);
	if (e->reason == EVICT_REQUEST && whole)
		counter_add(s, COUNTER_PURGED_BLOCKS, 0, 1);
	if (e->reason != EVICT_PRESSURE)
		return;
	counter_add(s, COUNTER_EVICTED_BLOCKS, 0, whole);
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (gone >> p & 1) {
			counter_add(s, COUNTER_EVICTED_PLANES, p, 1);
			counter_add(s, COUNTER_EVICTED_BYTES, p, (int64_t)b->plane[p].bytes);
		}
}

static void carry_out(struct evict_batch *e, struct victim *v)
{
	struct block *b = v->block;
	const uint8_t gone = v->before & (uint8_t)~v->after;
	const uint64_t bytes = block_payload(b, gone);

	b->batch = 0;
	count_gone(e, b, gone, !v->after);
	if (v->after) {
		block_drop_planes(b, gone);
		tell(b, CACHE_EVENT_SHRUNK, b->held, bytes);
	} else {
		tell(b, CACHE_EVENT_EVICTED, 0, bytes);
		block_free(b);
	}
}

static void put_back(struct evict_batch *e, struct victim *v)
{
	struct block *b = v->block;

	b->batch = 0;
	show(b, v->before);
	policy_restore(e->tenant->policy, &b->node, v->policy_held);
	counter_add(b->layout->counters, COUNTER_EVICT_PINNED, 0, e->reason == EVICT_PRESSURE);
	e->result.pinned++;
}

void evict_batch_settle(struct evict_batch *e)
{
	struct pin_set pins;

	pin_set_init(&pins);
	for (unsigned i = 0; i < e->n; i++)
		if (e->victim[i].block)
			pin_set_add(&pins, e->victim[i].block->handle);
	pins_scan(&e->tenant->pins, &pins);
	for (unsigned i = 0; i < e->n; i++) {
		struct victim *v = &e->victim[i];
		struct block *parent;

		if (!v->block)
			continue;
		v->stays |= pin_set_pinned(&pins, v->block->handle);
		parent = v->block->parent;
		if (v->stays && !v->after && parent && parent->batch &&
			!e->victim[parent->batch - 1].after)
			e->victim[parent->batch - 1].stays = true;
	}
	for (unsigned i = e->n; i-- > 0;)
		if (e->victim[i].block && e->victim[i].stays)
			put_back(e, &e->victim[i]);
	for (unsigned i = 0; i < e->n; i++)
		if (e->victim[i].block && !e->victim[i].stays)
			carry_out(e, &e->victim[i]);
	e->n = 0;
}

/* ---- rounds ---- */

/* What the policy would take next, as far as floors, pins and the wish for slots allow. Planes that stay. */
static struct block *choose(struct cache_tenant *t, bool slots, unsigned *looks, uint8_t *ret_after)
{
	while (*looks) {
		uint32_t keep;
		struct policy_node *n = policy_victim(t->policy, slots, &keep);
		struct block *b;
		uint32_t from;

		if (!n)
			return NULL;
		--*looks;
		b = block_of(n);
		from = block_droppable_from(b, b->layout->floor);
		if (from != n->droppable_from) {
			/* the floor changed, and the walk has not come by yet */
			policy_set_droppable(t->policy, n, from);
			continue;
		}
		if (b->pins || b->uses) {
			policy_defer(t->policy, n);
			counter_add(b->layout->counters, COUNTER_EVICT_PINNED, 0, 1);
			t->passed_over++;
			continue;
		}
		*ret_after = keep ? block_best(b, keep) : 0;
		return b;
	}
	return NULL;
}

bool evict_may(struct cache *c)
{
	const uint64_t turn = loop_turn(c->loop);

	if (c->rounds_turn != turn)
		c->rounds = 0;
	c->rounds_turn = turn;
	return c->rounds < ROUNDS_A_TURN;
}

bool evict_round(struct cache_tenant *t, uint64_t bytes, uint64_t slots)
{
	struct evict_batch e;
	unsigned looks = ROUND_LOOKS;
	uint64_t freed = 0, freed_slots = 0;

	t->cache->rounds++;
	tenant_drain(t);
	evict_batch_init(&e, t, EVICT_PRESSURE);
	if (t->asked != t->cache->question) {
		t->asked = t->cache->question;
		t->passed_over = 0;
	}
	if (t->passed_over > t->n_blocks)
		looks = 0; /* exhausted */
	while (looks && (freed < bytes || freed_slots < slots)) {
		uint64_t planned = freed, planned_slots = freed_slots;
		uint64_t pinned = e.result.pinned;
		struct block *b;
		uint8_t after;

		while ((planned < bytes || planned_slots < slots) &&
			(b = choose(t, planned_slots < slots, &looks, &after))) {
			uint8_t now = b->batch ? e.victim[b->batch - 1].after : b->held;

			if (!evict_batch_add(&e, b, after))
				break;
			planned += block_pages(b, now & (uint8_t)~after);
			planned_slots += !after;
		}
		if (!e.n)
			break;
		evict_batch_settle(&e);
		t->passed_over += e.result.pinned - pinned;
		if (e.freed > freed)
			t->passed_over = 0;
		freed = e.freed;
		freed_slots = e.result.blocks;
	}
	tenant_gauges(t);
	if (freed)
		return true;
	return !looks && t->passed_over <= t->n_blocks;
}

/* Who uses most of its quota, of those whom this question has not reached. */
static struct cache_tenant *fullest(const struct cache *c)
{
	struct cache_tenant *most = NULL;
	double share = 0;

	for (struct cache_tenant *t = c->tenants; t; t = t->next) {
		double s = (double)t->used / (double)t->quota;

		if (s > share && t->evict_turn != c->evict_turn) {
			share = s;
			most = t;
		}
	}
	return most;
}

bool evict_anyone(struct cache *c, uint64_t bytes)
{
	struct cache_tenant *most;

	if (!c->evict_asking) {
		c->evict_turn++;
		c->evict_question = c->question;
		c->evict_asking = true;
	}
	while (evict_may(c)) {
		most = fullest(c);
		if (most) {
			most->evict_turn = c->evict_turn;
			if (!evict_round(most, bytes, 0))
				continue;
		}
		c->evict_asking = false;
		/* who was asked first may have something by now */
		return most || c->evict_question != c->question;
	}
	return true; /* who is left is asked in the next turn */
}

static uint64_t over(uint64_t used, uint64_t limit, float mark)
{
	uint64_t at = (uint64_t)((double)limit * (double)mark);

	return used > at ? used - at : 0;
}

void evict_check(struct cache *c, struct cache_tenant *t)
{
	bool was = c->evicting || t->evicting;

	if (over(t->used, t->quota, t->high))
		t->evicting = true;
	if (over(c->used, c->o.host_bytes, c->o.high_watermark))
		c->evicting = true;
	if (!was && (c->evicting || t->evicting))
		loop_arm(c->evict_timer, 0, 0);
}

static uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* One round for everybody who is on the way down to a low watermark. False: the turn's rounds are used up. */
static bool tenants_down(struct cache *c, bool *more)
{
	if (!c->evict_next) {
		c->evict_next = c->tenants;
		c->evict_stuck = false;
	}
	for (struct cache_tenant *t; (t = c->evict_next); c->evict_next = t->next) {
		const uint64_t bytes = over(t->used, t->quota, t->low);

		if (!t->evicting)
			continue;
		if (!evict_may(c))
			return false;
		t->evicting = bytes > 0;
		if (bytes && evict_round(t, at_most(bytes, ROUND_BYTES), 0))
			*more = true;
		else
			c->evict_stuck |= t->evicting;
	}
	return true;
}

void evict_on_timer(void *cache)
{
	struct cache *c = cache;
	bool more = false;
	uint64_t bytes;

	if (tenants_down(c, &more)) {
		bytes = over(c->used, c->o.host_bytes, c->o.low_watermark);
		c->evicting = c->evicting && bytes;
		if (c->evicting && evict_anyone(c, at_most(bytes, ROUND_BYTES)))
			more = true;
		else
			c->evict_stuck |= c->evicting;
	} else {
		more = true;
	}
	if (more)
		loop_arm(c->evict_timer, 0, 0);
	else if (c->evict_stuck)
		loop_arm(c->evict_timer, RETRY_NS, 0);
	commits_retry(c);
}
