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
 *	   else		extents -> pool		block_free, or refs := below
 *
 * In a batch, a block that goes altogether stands behind its descendants: the policy offers a block only when its last
 * child went. So what stays is found in one pass forward, and put back in one pass backward.
 *
 * A disk is fast only with much under way, so whoever has to wait for it sends more than he needs.
 *
 * Nothing moves: a plane is dropped by giving its extent back and storing one word. Where there is a tier below, the least
 * valuable thing goes there: at once if that tier has it already, else it is sent (mover_sink()), stays where it is meanwhile, and
 * the mover brings it here again. What that tier does not want goes as if there were none.
 *
 * Work is bounded. One round looks at no more than ROUND_LOOKS victims, and a turn of the loop has ROUNDS_A_TURN of them,
 * whoever wants room: the rest comes with the next turns. A tenant is exhausted when as many victims in a row were pinned as it has blocks: then
 * asking again is of no use until something may have changed. Pins in pages go without a word, so every commit that
 * wants room, and every tick, asks as if for the first time.
 */
#include "daemon/cache/evictor.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

#include "daemon/cache/mover.h"
#include "daemon/cache/tenant.h"

#define ROUND_LOOKS   128       /* victims looked at in one round: about a millisecond */
#define BELOW_LOOKS   64        /* blocks that are not in memory, for a slot of the index */
#define RETRY_NS      100000000 /* everything was pinned: so long until the next try */
#define ROUNDS_A_TURN 4
#define ROUND_BYTES   (64ull << 20) /* of a background round */
#define AHEAD_SHARE                                                                                \
	8 /* of a tenant's quota, 1 / this may be on its way down before anybody waits for it */

void evict_ask_again(struct cache *c)
{
	c->question++;
}

void evict_batch_init(struct evict_batch *e, struct cache_tenant *t, enum evict_reason reason)
{
	e->tenant = t;
	e->reason = reason;
	e->n = 0;
	e->freed = e->planned = e->planned_blocks = 0;
	e->result = (struct cache_purge_result){0};
}

/* What is shown of it now, and in this batch from now on. */
static struct planes now(const struct evict_batch *e, const struct block *b)
{
	return b->batch ? e->victim[b->batch - 1].after
			: (struct planes){.held = b->held, .mapped = b->mapped};
}

bool evict_batch_add(struct evict_batch *e, struct block *b, struct planes after)
{
	struct policy *policy = e->tenant->policy;
	struct victim *known = b->batch ? &e->victim[b->batch - 1] : NULL;
	const struct planes before = now(e, b);

	assert(!(after.held & ~before.held) && !(after.mapped & ~(before.mapped & after.held)));
	assert((after.held != before.held || after.mapped != before.mapped) && !b->pins &&
		!b->uses);
	assert(after.held || !b->n_children);
	if (known && (after.mapped || !before.mapped) && after.held) {
		known->after = after;
	} else {
		if (e->n == PIN_SET_MAX)
			return false;
		e->victim[e->n] = (struct victim){
			.block = b,
			.before = known ? known->before : before,
			.after = after,
			.policy_held = known ? known->policy_held : b->node.held,
		};
		if (known)
			known->block = NULL;
		b->batch = ++e->n;
	}
	e->planned += block_pages(b, before.mapped & (uint8_t)~after.mapped);
	e->planned_blocks += !after.held;
	block_show(b, after.held, after.mapped);
	if (after.mapped)
		policy_shrink(policy, &b->node, plane_count(after.mapped));
	else if (before.mapped)
		policy_remove(policy, &b->node, e->reason == EVICT_PRESSURE);
	if (!after.held && b->parent)
		b->parent->n_children--;
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
	const uint8_t gone = v->before.held & (uint8_t)~v->after.held;
	const uint8_t sunk = v->before.mapped & v->after.held & (uint8_t)~v->after.mapped;
	const uint64_t bytes = block_payload(b, gone);
	const bool erase = e->reason == EVICT_REQUEST;

	b->batch = 0;
	e->freed += block_pages(b, v->before.mapped & (uint8_t)~v->after.mapped);
	if (gone)
		count_gone(e, b, gone, !v->after.held);
	if (!v->after.held) {
		tell(b, CACHE_EVENT_EVICTED, 0, bytes);
		block_free(b, erase);
		return;
	}
	for (uint32_t p = 0; sunk && p < b->n_planes; p++)
		counter_add(b->layout->counters, COUNTER_DEMOTED, p, sunk >> p & 1);
	if (gone)
		block_drop_planes(b, gone, erase);
	if (sunk)
		block_unmap(b, sunk);
	if (gone)
		tell(b, CACHE_EVENT_SHRUNK, b->held, bytes);
}

static void put_back(struct evict_batch *e, struct victim *v)
{
	struct block *b = v->block;

	b->batch = 0;
	block_show(b, v->before.held, v->before.mapped);
	if (b->node.held != v->policy_held)
		policy_restore(e->tenant->policy, &b->node, v->policy_held);
	if (!v->after.held && b->parent)
		b->parent->n_children++;
	counter_add(b->layout->counters, COUNTER_EVICT_PINNED, 0, e->reason == EVICT_PRESSURE);
	e->result.pinned++;
}

/* The parent cannot leave the policy, or the tree, that the child stays in. */
static void hold_parent(struct evict_batch *e, const struct victim *v)
{
	const struct block *parent = v->block->parent;
	struct victim *p = parent && parent->batch ? &e->victim[parent->batch - 1] : NULL;

	if (!p)
		return;
	if ((!v->after.mapped && v->before.mapped && !p->after.mapped) ||
		(!v->after.held && !p->after.held))
		p->stays = true;
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

		if (!v->block)
			continue;
		v->stays |= pin_set_pinned(&pins, v->block->handle);
		if (v->stays)
			hold_parent(e, v);
	}
	for (unsigned i = e->n; i-- > 0;)
		if (e->victim[i].block && e->victim[i].stays)
			put_back(e, &e->victim[i]);
	for (unsigned i = 0; i < e->n; i++)
		if (e->victim[i].block && !e->victim[i].stays)
			carry_out(e, &e->victim[i]);
	e->n = 0;
	e->planned = e->planned_blocks = 0;
}

/* ---- rounds ---- */

static uint64_t at_most(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* What a round is after, and what it came to. */
struct round {
	struct evict_batch batch;
	struct cache_tenant *tenant;
	uint64_t bytes, slots; /* wanted */
	uint64_t sinking;      /* bytes that are on their way down */
	uint64_t
		ahead; /* as long as victims have to be written, so many bytes are to be on their way */
	bool writing;   /* the last victim had to be written */
	unsigned looks; /* that are left */
	bool full;      /* the tier below has as much in flight as it may */
	bool refused;   /* it takes no more, for whatever reason */
};

static bool in_use(struct cache_tenant *t, struct policy_node *n)
{
	struct block *b = block_of(n);

	if (!b->pins && !b->uses)
		return false;
	policy_defer(t->policy, n);
	counter_add(b->layout->counters, COUNTER_EVICT_PINNED, 0, 1);
	t->passed_over++;
	return true;
}

/* The next that may be looked at. sink: floors do not count. Planes that stay in memory. */
static struct block *next_victim(struct round *r, bool sink, bool whole, uint8_t *ret_mapped)
{
	struct cache_tenant *t = r->tenant;

	while (r->looks) {
		uint32_t keep;
		struct policy_node *n = sink ? policy_least(t->policy, &keep)
					     : policy_victim(t->policy, whole, &keep);
		struct block *b;
		uint32_t from;

		if (!n)
			return NULL;
		r->looks--;
		b = block_of(n);
		from = block_droppable_from(b, b->layout->floor);
		if (from != n->droppable_from) {
			/* the floor changed, and the walk has not come by yet */
			policy_set_droppable(t->policy, n, from);
			continue;
		}
		if (in_use(t, n))
			continue;
		*ret_mapped = keep ? block_best(b, keep) : 0;
		return b;
	}
	return NULL;
}

/* A block that is in no policy any more, because nothing of it is in memory, and that no other needs. */
static struct block *next_below(const struct cache_tenant *t)
{
	struct block *b = t->below;

	for (unsigned n = 0; b && n < BELOW_LOOKS; n++, b = b->below_next)
		if (!b->n_children && !b->pins && !b->uses && !b->batch)
			return b;
	return NULL;
}

/* With all that hangs on it, none of which is in memory. False: the batch is full. */
static bool drop_tree(struct evict_batch *e, struct block *top)
{
	struct block *b = top;

	while (b->children.first)
		b = b->children.first;
	for (;; b = block_next(b)) {
		const bool ended = b == top;

		if (b->n_children || b->pins || b->uses) {
			if (!ended)
				continue; /* and its ancestors stay */
			policy_defer(e->tenant->policy, &b->node);
			return true;
		}
		if (!b->batch || e->victim[b->batch - 1].after.held)
			if (!evict_batch_add(e, b, (struct planes){0}))
				return false;
		if (ended)
			return true;
	}
}

/* Drops it where the floor allows that. *ret_done false: it does not. False: the batch is full. */
static bool drop(struct round *r, struct block *b, uint8_t mapped, bool *ret_done)
{
	const struct planes before = now(&r->batch, b);

	*ret_done = true;
	if (!mapped)
		return drop_tree(&r->batch, b);
	*ret_done = plane_count(mapped) >= b->node.droppable_from;
	return !*ret_done ||
		evict_batch_add(&r->batch, b,
			(struct planes){.held = mapped, .mapped = before.mapped & mapped});
}

/* Sends it down if somebody there wants it. False: the batch is full. */
static bool sink(struct round *r, struct block *b, uint8_t mapped, bool *ret_done)
{
	const struct planes before = now(&r->batch, b);
	const uint8_t gone = before.mapped & (uint8_t)~mapped,
		      dirty = gone & (uint8_t)~block_below(b);
	int error;

	*ret_done = true;
	r->writing = dirty;
	if (!dirty)
		return evict_batch_add(
			&r->batch, b, (struct planes){.held = before.held, .mapped = mapped});
	if (b->batch) /* decided already; looked at again in the next round */
		return false;
	error = mover_sink(b, dirty);
	if (error == 0)
		r->sinking += block_pages(b, gone);
	r->full = error == -EAGAIN;
	r->refused = error < 0 && error != -EAGAIN && error != -EPERM;
	*ret_done = error == 0 || error == -EAGAIN;
	return true;
}

/* One victim into the batch, or on its way down. False: there is none, or the batch is to be settled first. */
static bool take_one(struct round *r, bool slots)
{
	struct cache_tenant *t = r->tenant;
	struct block *b;
	uint8_t mapped;
	bool done, room;

	if (slots && (b = next_below(t)))
		return evict_batch_add(&r->batch, b, (struct planes){0});
	if (t->disk && !slots && !r->refused) {
		b = next_victim(r, true, false, &mapped);
		if (!b)
			return false;
		room = sink(r, b, mapped, &done);
		if (!room || done)
			return room;
		room = drop(r, b, mapped, &done);
		if (!room || done)
			return room;
	}
	b = next_victim(r, false, slots, &mapped);
	return b && drop(r, b, mapped, &done);
}

bool evict_may(struct cache *c)
{
	const uint64_t turn = loop_turn(c->loop);

	if (c->rounds_turn != turn)
		c->rounds = 0;
	c->rounds_turn = turn;
	return c->rounds < ROUNDS_A_TURN;
}

static bool wants_more(const struct round *r, uint64_t bytes, uint64_t slots)
{
	return !r->full &&
		(bytes + r->sinking < r->bytes || slots < r->slots ||
			(r->writing && r->sinking < r->ahead));
}

static void gather(struct round *r)
{
	const struct evict_batch *e = &r->batch;
	uint64_t blocks;

	do
		blocks = e->result.blocks + e->planned_blocks;
	while (wants_more(r, e->freed + e->planned, blocks) && take_one(r, blocks < r->slots));
}

enum evicted evict_round(struct cache_tenant *t, uint64_t bytes, uint64_t slots)
{
	struct round r = {.tenant = t, .bytes = bytes, .slots = slots, .looks = ROUND_LOOKS};

	t->cache->rounds++;
	tenant_drain(t);
	evict_batch_init(&r.batch, t, EVICT_PRESSURE);
	if (t->asked != t->cache->question) {
		t->asked = t->cache->question;
		t->passed_over = 0;
	}
	if (t->passed_over > t->n_blocks)
		r.looks = 0; /* exhausted */
	r.sinking = t->sinking;
	r.ahead = at_most(t->cache->o.disk.in_flight_bytes, t->quota / AHEAD_SHARE);
	while (r.looks && wants_more(&r, r.batch.freed, r.batch.result.blocks)) {
		const uint64_t pinned = r.batch.result.pinned, freed = r.batch.freed;

		gather(&r);
		if (!r.batch.n)
			break;
		evict_batch_settle(&r.batch);
		t->passed_over += r.batch.result.pinned - pinned;
		if (r.batch.freed > freed)
			t->passed_over = 0;
	}
	tenant_gauges(t);
	if (r.batch.freed || r.batch.result.blocks)
		return EVICTED_SOME;
	if (t->sinking || r.full)
		return EVICTED_LATER;
	return !r.looks && t->passed_over <= t->n_blocks ? EVICTED_SOME : EVICTED_NOTHING;
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

enum evicted evict_anyone(struct cache *c, uint64_t bytes)
{
	struct cache_tenant *most;
	enum evicted r = EVICTED_SOME;

	if (!c->evict_asking) {
		c->evict_turn++;
		c->evict_question = c->question;
		c->evict_asking = true;
	}
	while (evict_may(c)) {
		most = fullest(c);
		if (most) {
			most->evict_turn = c->evict_turn;
			r = evict_round(most, bytes, 0);
			if (r == EVICTED_NOTHING)
				continue;
		}
		c->evict_asking = false;
		/* who was asked first may have something by now */
		if (!most)
			r = c->evict_question != c->question ? EVICTED_SOME : EVICTED_NOTHING;
		return r;
	}
	return EVICTED_SOME; /* who is left is asked in the next turn */
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

/* One round for everybody who is on the way down to a low watermark. False: the turn's rounds are used up. */
static bool tenants_down(struct cache *c, bool *more)
{
	if (!c->evict_next) {
		c->evict_next = c->tenants;
		c->evict_stuck = false;
	}
	for (struct cache_tenant *t; (t = c->evict_next); c->evict_next = t->next) {
		const uint64_t bytes = over(t->used, t->quota, t->low);
		enum evicted r = EVICTED_LATER;

		if (!t->evicting)
			continue;
		if (!evict_may(c))
			return false;
		t->evicting = bytes > 0;
		if (bytes)
			r = evict_round(t, at_most(bytes, ROUND_BYTES), 0);
		*more |= r == EVICTED_SOME;
		c->evict_stuck |= r == EVICTED_NOTHING;
	}
	return true;
}

static void all_down(struct cache *c, bool *more)
{
	const uint64_t bytes = over(c->used, c->o.host_bytes, c->o.low_watermark);
	enum evicted r;

	c->evicting = c->evicting && bytes;
	if (!c->evicting)
		return;
	r = evict_anyone(c, at_most(bytes, ROUND_BYTES));
	*more |= r == EVICTED_SOME;
	c->evict_stuck |= r == EVICTED_NOTHING;
}

void evict_on_timer(void *cache)
{
	struct cache *c = cache;
	bool more = false;

	if (tenants_down(c, &more))
		all_down(c, &more);
	else
		more = true;
	if (more)
		loop_arm(c->evict_timer, 0, 0);
	else if (c->evict_stuck)
		loop_arm(c->evict_timer, RETRY_NS, 0);
	commits_retry(c);
	mover_retry(c);
}

void evict_wake(struct cache *c)
{
	loop_arm(c->evict_timer, 0, 0);
}
