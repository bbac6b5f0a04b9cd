/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Up. What a block's readers want is one lift; a plane comes into pages of its own, is verified on the disk's thread, and shown when
 * all better planes of its block are. Lifts stand in a queue for each plane number, and the queue of the best goes first:
 *
 *	queue[0]  a b c	 ->  a.0 b.0 c.0 are read, then
 *	queue[1]  a b c	 ->  a.1 b.1 c.1 ...
 *
 * so a reader of many blocks can begin with the best planes of all. Who heads the last queue may be passed by those who came
 * clearly later only so often, or who wants everything would wait for all who want little; bytes count, for the worst
 * planes are the largest. Each tenant has queues of his own, and their turns. Memory is taken when a read is
 * about to start, so what is queued costs none, and pressure makes room as for a commit. As pages may have to be backed for it,
 * a turn of the loop begins few: what has come meanwhile is shown in between.
 */
#include "daemon/cache/mover.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"

#define AHEAD       2 /* times what the disk may have in flight: read, or about to be */
#define PASSED_MAX  7 /* bytes of those who came later that go before each of the last queue's */
#define ROUNDS_EACH 2 /* of eviction for one plane */
#define TURN_BYTES  (4ull << 20)
#define RETRY_NS    1000000 /* when a commit holds the room: its end is not told here */

struct lift {
	struct lift *next;   /* in its queue */
	struct block *block; /* in use */
	struct cache_fetch *waiters;
	uint64_t came;   /* after so many bytes of the tenant's */
	uint8_t wanted;  /* bits: not mapped, and to be */
	uint8_t loading; /* bits: being read */
	uint8_t loaded;  /* bits: there, but a better one is not */
	bool queued;
};

struct load {
	struct disk_load load;
	struct lift *lift;
	struct extent extent;
	uint32_t plane;
};

static uint64_t in_flight_max(const struct cache *c)
{
	return AHEAD * c->o.disk.in_flight_bytes;
}

/* ---- the queues ---- */

static uint8_t not_begun(const struct lift *l)
{
	return l->wanted & (uint8_t) ~(l->loading | l->loaded);
}

void lifts_init(struct lifts *q)
{
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++)
		q->queue_end[p] = &q->queue[p];
}

static void tenant_push(struct cache_tenant *t)
{
	struct mover *m = &t->cache->mover;

	t->lifts.next = NULL;
	*m->lift_end = t;
	m->lift_end = &t->lifts.next;
}

static struct cache_tenant *tenant_pop(struct mover *m)
{
	struct cache_tenant *t = m->lift_first;

	m->lift_first = t->lifts.next;
	if (!m->lift_first)
		m->lift_end = &m->lift_first;
	return t;
}

static void enqueue(struct lift *l)
{
	struct cache_tenant *t = l->block->tenant;
	const uint8_t next = not_begun(l);
	unsigned q;

	if (!next || l->queued)
		return;
	q = (unsigned)__builtin_ctz(next);
	l->next = NULL;
	l->queued = true;
	*t->lifts.queue_end[q] = l;
	t->lifts.queue_end[q] = &l->next;
	if (!t->lifts.n++)
		tenant_push(t);
}

/* Out of the queue that it heads. */
static void dequeue(struct lifts *of, unsigned q)
{
	struct lift *l = of->queue[q];

	of->queue[q] = l->next;
	if (!l->next)
		of->queue_end[q] = &of->queue[q];
	l->queued = false;
	of->n--;
}

static uint64_t next_bytes(const struct lift *l)
{
	const uint8_t next = not_begun(l);

	return next ? l->block->plane[__builtin_ctz(next)].bytes : 0;
}

/* Not all are empty. */
static unsigned last_queue(const struct lifts *of)
{
	unsigned q = KVG_PLANES_MAX - 1;

	while (!of->queue[q])
		q--;
	return q;
}

/* The queue that has its turn. Not all are empty. */
static unsigned next_queue(const struct lifts *of)
{
	const unsigned last = last_queue(of);
	unsigned q = 0;

	if (of->passed / PASSED_MAX >= next_bytes(of->queue[last]))
		return last;
	while (!of->queue[q])
		q++;
	return q;
}

/*
 * Who heads queue q had its turn, and got this. A reader asks for many blocks in several requests: between what belongs
 * together, no more than `apart` bytes begin.
 */
static void count_passed(struct lifts *of, unsigned q, uint64_t bytes, uint64_t apart)
{
	const unsigned last = last_queue(of);

	if (q == last)
		of->passed = 0;
	else if (of->queue[q]->came > of->queue[last]->came + apart)
		of->passed += bytes;
	of->begun += bytes;
}

/* ---- who waits ---- */

static void unlink_fetch(struct cache_fetch *f)
{
	*f->link = f->next;
	if (f->next)
		f->next->link = f->link;
	f->link = NULL;
}

void cache_fetch_cancel(struct cache_fetch *f)
{
	if (f->link)
		unlink_fetch(f);
	f->waiting = 0;
}

static void tell(struct lift *l, uint8_t planes, int error)
{
	struct cache_fetch *f, *next;

	for (f = l->waiters; f; f = next) {
		const uint8_t mine = f->waiting & planes;

		next = f->next;
		if (!mine)
			continue;
		f->waiting &= (uint8_t)~mine;
		if (error)
			f->error = error;
		if (!f->waiting)
			unlink_fetch(f);
		f->arrived(f, mine);
	}
}

/* ---- the end of a lift ---- */

static void release_loaded(struct lift *l, uint8_t planes)
{
	struct block *b = l->block;

	for (uint32_t p = 0; p < b->n_planes; p++)
		if (l->loaded & planes & 1u << p) {
			pool_release(b->tenant->pool, &b->plane[p].extent);
			b->tenant->lifting -= extent_bytes(&b->plane[p].extent);
			b->plane[p].extent = (struct extent){0};
		}
	l->loaded &= (uint8_t)~planes;
}

/* These do not come, nor do those that would be of no use without them. */
static void fail(struct lift *l, uint32_t from, int error)
{
	const uint8_t planes = l->wanted & (uint8_t)(UINT8_MAX << from);

	release_loaded(l, planes);
	l->wanted &= (uint8_t)~planes;
	tell(l, planes, error);
}

static void end_if_done(struct lift *l)
{
	struct block *b = l->block;
	struct cache *c = b->tenant->cache;

	if (l->wanted || l->loading || l->queued) /* its turn will come */
		return;
	assert(!l->loaded && !l->waiters);
	b->lift = NULL;
	b->uses--;
	c->mover.lifts--;
	free(l);
	evict_ask_again(c);
}

/* ---- what has come ---- */

static bool is_ours(const struct block *b, uint32_t plane, const struct extent *x)
{
	struct kvg_plane_header h;
	struct plane_view v;

	memcpy(&h, x->addr, sizeof(h));
	return plane_open(x->addr, extent_bytes(x), &v) == 0 &&
		!memcmp(h.fingerprint, b->layout->fingerprint, sizeof(h.fingerprint)) &&
		v.bytes == b->plane[plane].bytes && v.pairs == b->plane[plane].pairs &&
		v.tokens == b->tokens && h.n_planes == b->n_planes;
}

/* Shows what can be shown: the best that are not mapped yet, as far as they are there. */
static void show(struct lift *l)
{
	struct block *b = l->block;
	uint8_t shown = 0;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const uint8_t bit = (uint8_t)(1u << p);
		const uint64_t bytes = extent_bytes(&b->plane[p].extent);
		int r;

		if (!(b->held & bit) || b->mapped & bit)
			continue;
		if (!(l->loaded & bit))
			break;
		r = block_map(b, p);
		if (r < 0) {
			fail(l, p, r);
			break;
		}
		b->tenant->lifting -= bytes;
		l->loaded &= (uint8_t)~bit;
		l->wanted &= (uint8_t)~bit;
		shown |= bit;
		counter_add(b->layout->counters, COUNTER_PROMOTED, p, 1);
	}
	if (shown)
		tell(l, shown, 0);
}

static void on_loaded(struct disk_load *load)
{
	struct load *x = (struct load *)((char *)load - offsetof(struct load, load));
	struct lift *l = x->lift;
	struct block *b = l->block;
	struct cache_tenant *t = b->tenant;
	struct cache *c = t->cache;
	const uint64_t bytes = extent_bytes(&x->extent);
	int error = load->error;

	l->loading &= (uint8_t) ~(1u << x->plane);
	c->mover.lifting -= bytes;
	if (error == 0 && !is_ours(b, x->plane, &x->extent))
		error = -EBADMSG;
	if (error == 0 && l->wanted >> x->plane & 1) {
		b->plane[x->plane].extent = x->extent;
		l->loaded |= (uint8_t)(1u << x->plane);
		show(l);
	} else {
		pool_release(t->pool, &x->extent);
		t->lifting -= bytes;
	}
	if (error < 0) {
		if (error == -EBADMSG)
			disk_erase(c->disk, load->place);
		else
			disk_forget(c->disk, load->place);
		counter_add(b->layout->counters,
			error == -EBADMSG ? COUNTER_DISK_BAD : COUNTER_DISK_ERRORS, 0, 1);
		mover_lose(b, x->plane, true);
		fail(l, x->plane, error);
	}
	t->gauges_stale = true;
	free(x);
	end_if_done(l);
	evict_check(c, t);
	if (!c->mover.stopping)
		loop_arm(c->mover.timer, 0, 0);
}

/* ---- starting ---- */

/* Pages for it. -EAGAIN: later; -ENOSPC: nothing can make room. */
static int take_pages(struct block *b, uint32_t plane, struct extent *ret)
{
	struct cache_tenant *t = b->tenant;
	struct cache *c = t->cache;
	const uint64_t size = layout_page_bytes(b->layout, b->plane[plane].bytes);

	for (unsigned i = 0; i < ROUNDS_EACH; i++) {
		const uint64_t wanted = t->used + t->reserved + t->lifting + size;
		enum evicted e;
		int r = -ENOSPC;

		if (wanted <= t->quota)
			r = pool_alloc(t->pool, size, b->layout->page_shift, ret);
		if (r != -ENOSPC)
			return r;
		if (!evict_may(c))
			return -EAGAIN;
		e = wanted > t->quota ? evict_round(t, wanted - t->quota, 0)
				      : evict_anyone(c, size);
		if (e == EVICTED_LATER)
			return -EAGAIN;
		if (e == EVICTED_NOTHING)
			return mover_busy(c) || c->commits.reserved ? -EAGAIN : -ENOSPC;
	}
	return -EAGAIN;
}

static int begin(struct lift *l, uint32_t plane)
{
	struct block *b = l->block;
	struct cache_tenant *t = b->tenant;
	struct load *x = calloc(1, sizeof(*x));
	int r;

	if (!x)
		return -ENOMEM;
	if (!disk_there(b->plane[plane].place)) {
		free(x);
		return -ENOENT;
	}
	r = take_pages(b, plane, &x->extent);
	if (r < 0) {
		free(x);
		return r;
	}
	x->lift = l;
	x->plane = plane;
	x->load.place = b->plane[plane].place;
	x->load.addr = x->extent.addr;
	x->load.key = &b->key;
	x->load.plane = plane;
	x->load.done = on_loaded;
	l->loading |= (uint8_t)(1u << plane);
	t->lifting += extent_bytes(&x->extent);
	t->cache->mover.lifting += extent_bytes(&x->extent);
	disk_load(t->cache->disk, &x->load);
	return 0;
}

/* Begins a plane of this tenant. False: there is no room for it now. */
static bool lift_one(struct cache_tenant *t)
{
	struct lifts *of = &t->lifts;
	const unsigned q = next_queue(of);
	struct lift *l = of->queue[q];
	const uint8_t next = not_begun(l);
	const uint32_t plane = next ? (uint32_t)__builtin_ctz(next) : 0;
	const uint64_t bytes = next_bytes(l);
	int r = next ? begin(l, plane) : 0;

	if (r == -EAGAIN)
		return false;
	count_passed(of, q, bytes, in_flight_max(t->cache));
	dequeue(of, q);
	if (r < 0)
		fail(l, plane, r);
	enqueue(l); /* when he has no other, he stands in the list again */
	end_if_done(l);
	return true;
}

/*
 * Tenants by turns, a plane each; those for whom there is no room step aside, and keep no other from his own. Ends when there is
 * enough under way, or room for nobody.
 */
void mover_lift(struct cache *c)
{
	struct mover *m = &c->mover;
	const uint64_t enough = m->lifting + TURN_BYTES, most = in_flight_max(c);
	const struct cache_tenant *stuck =
		NULL; /* the first of those for whom there was no room, since there was for anybody */

	while (!m->stopping && m->lift_first && m->lift_first != stuck && m->lifting < most &&
		m->lifting < enough) {
		struct cache_tenant *t = tenant_pop(m);
		const uint64_t before = t->lifts.n;
		const bool begun = lift_one(t);

		if (!begun && !stuck)
			stuck = t;
		else if (begun)
			stuck = NULL;
		if (!begun || before > 1)
			tenant_push(t);
	}
	if (stuck && !mover_busy(c))
		loop_arm(m->timer, RETRY_NS, 0);
	else if (m->lifting >= enough)
		loop_arm(m->timer, 0, 0);
}

/* ---- asking ---- */

static struct lift *lift_of(struct block *b)
{
	struct lift *l = b->lift;

	if (l)
		return l;
	l = calloc(1, sizeof(*l));
	if (!l)
		return NULL;
	l->block = b;
	l->came = b->tenant->lifts.begun;
	b->lift = l;
	b->uses++;
	b->tenant->cache->mover.lifts++;
	return l;
}

uint8_t cache_fetch(
	struct cache_tenant *t, struct kvg_handle h, float retention, struct cache_fetch *f)
{
	struct cache *c = t->cache;
	struct block *b;
	struct lift *l;
	uint8_t planes;

	loop_assert_owner(c->loop);
	if (f) {
		f->waiting = 0;
		f->error = 0;
		f->link = NULL;
	}
	b = block_get(t, h);
	planes = b ? block_share(b, retention) & (uint8_t)~b->mapped : 0;
	if (!planes || c->mover.stopping)
		return 0;
	l = lift_of(b);
	if (!l) {
		if (f)
			f->error = -ENOMEM;
		return 0;
	}
	l->wanted |= planes;
	if (f) {
		f->waiting = planes;
		f->next = l->waiters;
		f->link = &l->waiters;
		if (f->next)
			f->next->link = &f->next;
		l->waiters = f;
	}
	enqueue(l);
	loop_arm(c->mover.timer, 0, 0);
	return planes;
}

void mover_lifts_fini(struct cache *c)
{
	struct lift *l;

	while (c->mover.lift_first) {
		struct cache_tenant *t = tenant_pop(&c->mover);

		while (t->lifts.n) {
			const unsigned q = next_queue(&t->lifts);

			l = t->lifts.queue[q];
			dequeue(&t->lifts, q);
			fail(l, 0, -ESHUTDOWN);
			end_if_done(l);
		}
	}
	assert(!c->mover.lifts);
}
