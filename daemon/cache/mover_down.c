/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Down. A victim stays where it is and readable until the log has it; the policy offers it to nobody meanwhile, and nothing of the
 * block goes. Then, some of them together for one scan of the pins, they leave memory like any other victim, without a
 * copy: but those that were read meanwhile, which stay, and are clean now.
 *
 *	mover_sink()	policy_hold, disk_store ...... ended: place, policy_let_go -> evict_batch_add(held, less mapped)
 *
 * Before the daemon ends, what is worth most is sent down as well (cache_drain()), ancestors first, and stays in memory: perhaps
 * somebody keeps that.
 */
#include "daemon/cache/mover.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"

#define ROOMY 8 /* while one segment in so many is free, everything is written */

struct sinking {
	struct disk_store store;
	struct sinking *next; /* of those that ended */
	struct block *block;  /* in use */
	uint64_t pages;       /* bytes */
	uint32_t plane;
	bool leaves; /* memory */
};

/* ---- sending ---- */

static bool worth_writing(const struct block *b)
{
	const struct cache_tenant *t = b->tenant;
	struct disk_stat st;

	disk_stat(t->cache->disk, &st);
	return t->cache->o.disk.admit_all || st.free_segments * ROOMY >= st.segments ||
		policy_worth(t->policy, &b->node) >= t->below_worth;
}

static void describe(const struct block *b, uint32_t plane, struct disk_record *ret)
{
	uint32_t i = 0;

	*ret = (struct disk_record){
		.key = b->key,
		.has_parent = b->parent != NULL,
		.note = layout_note(b->layout),
		.tokens = b->tokens,
		.depth = b->depth,
		.pairs = b->plane[plane].pairs,
		.bytes = b->plane[plane].bytes,
		.plane = (uint8_t)plane,
		.n_planes = (uint8_t)b->n_planes,
		.page_shift = (uint8_t)b->layout->page_shift,
	};
	if (b->parent)
		ret->parent = b->parent->key;
	for (uint32_t p = 0; p < b->n_planes; p++) {
		ret->plane_bytes[p] = b->plane[p].bytes;
		ret->plane_pairs[p] = b->plane[p].pairs;
		if (p == plane)
			ret->mass = b->node.mass[i];
		i += b->planes >> p & 1;
	}
}

static void on_stored(struct disk_store *store)
{
	struct sinking *s = (struct sinking *)((char *)store - offsetof(struct sinking, store));
	struct mover *m = &s->block->tenant->cache->mover;

	s->next = m->ended;
	m->ended = s;
	loop_arm(m->timer, 0, 0);
}

static int send_down(struct block *b, uint32_t plane, bool leaves)
{
	struct cache_tenant *t = b->tenant;
	struct sinking *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->block = b;
	s->plane = plane;
	s->pages = leaves ? extent_bytes(&b->plane[plane].extent) : 0;
	s->leaves = leaves;
	s->store.tenant = t->disk;
	s->store.addr = b->plane[plane].extent.addr;
	s->store.item = b;
	s->store.done = on_stored;
	describe(b, plane, &s->store.record);
	r = disk_store(t->cache->disk, &s->store);
	if (r < 0) {
		free(s);
		return r;
	}
	b->uses++;
	b->sinking |= (uint8_t)(1u << plane);
	t->sinking += s->pages;
	t->cache->mover.sinking += s->pages;
	return 0;
}

int mover_sink(struct block *b, uint8_t planes)
{
	int r = 0;

	assert(!(planes & ~b->mapped) && !(planes & b->sinking));
	if (!worth_writing(b))
		return -EPERM;
	b->touched = false;
	/* the worst first: if not all of them find room, the others stay behind a better one */
	for (uint32_t p = b->n_planes; p-- > 0 && r == 0;)
		if (planes >> p & 1)
			r = send_down(b, p, true);
	if (!b->sinking)
		return r;
	policy_hold(b->tenant->policy, &b->node);
	return 0;
}

/* ---- what has ended ---- */

/* Those of these planes that are the last ones in memory. */
static uint8_t last_ones(const struct block *b, uint8_t planes)
{
	uint8_t last = 0;

	planes &= block_below(b);
	for (uint32_t p = b->n_planes; p-- > 0;) {
		const uint8_t bit = (uint8_t)(1u << p);

		if (!(b->mapped & bit))
			continue;
		if (!(planes & bit))
			break;
		last |= bit;
	}
	return last;
}

static void leave_memory(struct evict_batch *e, struct block *b)
{
	uint8_t stays = b->mapped & (uint8_t)~last_ones(b, b->leaving);

	b->leaving = 0;
	if (b->pins || b->uses || b->touched || b->hidden)
		return;
	if (!stays && b->node.children)
		stays = block_best(b, 1);
	if (stays == b->mapped)
		return;
	if (e->n && (e->tenant != b->tenant || e->n == PIN_SET_MAX))
		evict_batch_settle(e);
	if (!e->n)
		evict_batch_init(e, b->tenant, EVICT_PRESSURE);
	evict_batch_add(e, b, (struct planes){.held = b->held, .mapped = stays});
}

static void take_result(struct sinking *s)
{
	struct block *b = s->block;
	struct cache_tenant *t = b->tenant;

	b->uses--;
	b->sinking &= (uint8_t) ~(1u << s->plane);
	t->sinking -= s->pages;
	t->cache->mover.sinking -= s->pages;
	if (s->store.error) {
		counter_add(b->layout->counters, COUNTER_DISK_ERRORS, 0, 1);
	} else {
		block_place(b, s->plane, s->store.place);
		b->used &= (uint8_t) ~(1u << s->plane);
		b->leaving |= (uint8_t)(s->leaves << s->plane);
	}
	if (!b->sinking && b->node.held)
		policy_let_go(t->policy, &b->node);
}

void mover_settle(struct cache *c)
{
	struct sinking *first = c->mover.ended, *s;
	struct evict_batch e = {0};
	struct cache_tenant *t = NULL;

	c->mover.ended = NULL;
	for (s = first; s; s = s->next) {
		if (s->block->tenant != t) {
			t = s->block->tenant;
			tenant_drain(t); /* who read what meanwhile */
		}
		take_result(s);
	}
	/* a block's planes may be several of them: all are known to be below by now */
	for (s = first; s && !c->mover.stopping; s = s->next)
		if (s->block->leaving && !s->block->sinking)
			leave_memory(&e, s->block);
	if (e.n)
		evict_batch_settle(&e);
	if (first)
		evict_wake(c);
	while ((s = first)) {
		first = s->next;
		free(s);
	}
}

/* ---- before the end ---- */

struct drain_item {
	struct cache_tenant *tenant;
	struct kvg_handle handle;
	double worth;
	uint32_t depth;
};

struct drain {
	struct drain_item *item;
	size_t n, at;
	uint64_t deadline_ns;
	struct loop_timer *timer;
	struct disk_sync sync;
	struct cache *cache;
	void (*done)(void *userdata);
	void *userdata;
	bool syncing;
};

static int by_worth(const void *a, const void *b)
{
	const struct drain_item *x = a, *y = b;

	if (x->worth != y->worth)
		return x->worth > y->worth ? -1 : 1;
	return (x->depth > y->depth) - (x->depth < y->depth);
}

static uint8_t dirty(const struct block *b)
{
	return b->mapped & (uint8_t) ~(block_below(b) | b->sinking | b->hidden);
}

/*
 * What of a tenant only memory has. A block is worth as much as the best of what hangs on it, so that its ancestors come before
 * it. The walk comes to children before their parent: below[depth] is the best of those that were met and whose parent was not.
 */
static int gather_tenant(struct cache_tenant *t, struct drain *d)
{
	uint32_t deepest = 0;
	double *below;

	for (struct block *b = t->roots.first ? block_first(&t->roots) : NULL; b; b = block_next(b))
		deepest = b->depth > deepest ? b->depth : deepest;
	below = calloc((size_t)deepest + 2, sizeof(*below));
	if (!below)
		return -ENOMEM;
	for (struct block *b = t->roots.first ? block_first(&t->roots) : NULL; b;
		b = block_next(b)) {
		const double own = policy_worth(t->policy, &b->node);
		const double worth = fmax(own, below[b->depth + 1]);

		below[b->depth + 1] = 0;
		below[b->depth] = fmax(below[b->depth], worth);
		if (dirty(b))
			d->item[d->n++] = (struct drain_item){t, b->handle, worth, b->depth};
	}
	free(below);
	return 0;
}

static int gather(struct cache *c, struct drain *d)
{
	size_t n = 0;
	int r = 0;

	for (const struct cache_tenant *t = c->tenants; t; t = t->next)
		n += t->n_blocks;
	d->item = calloc(n + 1, sizeof(*d->item));
	if (!d->item)
		return -ENOMEM;
	for (struct cache_tenant *t = c->tenants; t && r == 0; t = t->next)
		if (t->disk)
			r = gather_tenant(t, d);
	qsort(d->item, d->n, sizeof(*d->item), by_worth);
	return r;
}

static void drain_end(struct drain *d)
{
	struct cache *c = d->cache;
	void (*done)(void *userdata) = d->done;
	void *userdata = d->userdata;

	c->mover.drain = NULL;
	loop_del_timer(d->timer);
	free(d->item);
	free(d);
	done(userdata);
}

static void on_synced(struct disk_sync *sync)
{
	struct drain *d = (struct drain *)((char *)sync - offsetof(struct drain, sync));

	if (sync->error)
		log_error("the disk could not be synced", "error=\"%s\"", strerror(-sync->error));
	drain_end(d);
}

static void drain_sync(struct drain *d)
{
	if (d->syncing)
		return;
	d->syncing = true;
	loop_disarm(d->timer);
	if (d->at < d->n)
		log_warning("not everything in memory was written to disk before the end",
			"blocks_left=%zu of=%zu", d->n - d->at, d->n);
	d->sync.done = on_synced;
	disk_sync(d->cache->disk, &d->sync);
}

/* Best planes first. -EAGAIN: more of it later. */
static int drain_block(struct block *b)
{
	const uint8_t planes = dirty(b);
	int r = 0;

	for (uint32_t p = 0; p < b->n_planes && r == 0; p++)
		if (planes >> p & 1)
			r = send_down(b, p, false);
	return r;
}

void mover_drain_next(struct cache *c)
{
	struct drain *d = c->mover.drain;
	int r = 0;

	if (d->syncing || !c->disk)
		return;
	while (d->at < d->n && r == 0 && loop_now_ns() < d->deadline_ns) {
		struct block *b = block_get(d->item[d->at].tenant, d->item[d->at].handle);

		r = b ? drain_block(b) : 0;
		d->at += r == 0;
	}
	if (r != -EAGAIN)
		drain_sync(d);
}

static void on_deadline(void *userdata)
{
	struct drain *d = userdata;

	if (d->cache->disk)
		drain_sync(d);
	else
		drain_end(d);
}

void cache_drain(
	struct cache *c, uint64_t deadline_ns, void (*done)(void *userdata), void *userdata)
{
	struct drain *d = calloc(1, sizeof(*d));
	const uint64_t now = loop_now_ns();

	loop_assert_owner(c->loop);
	assert(!c->mover.drain);
	if (!d || loop_add_timer(c->loop, on_deadline, d, &d->timer) < 0) {
		log_error("no memory: nothing is written to disk before the end", "");
		free(d);
		done(userdata);
		return;
	}
	d->cache = c;
	d->deadline_ns = deadline_ns;
	d->done = done;
	d->userdata = userdata;
	c->mover.drain = d;
	if (!c->disk || gather(c, d) < 0) {
		loop_arm(d->timer, 0, 0);
		return;
	}
	loop_arm(d->timer, deadline_ns > now ? deadline_ns - now : 0, 0);
	mover_drain_next(c);
}
