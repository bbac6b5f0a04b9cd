/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two sums are kept below the budget. `used + reserved` decides who gets pages: it is known before any work is
 * done. `resident` counts what the kernel has given - used pages and idle ones, whose memory is kept because the
 * next extent will want it - and is brought down, when memory is needed elsewhere, by punching idle pages:
 *
 *	|<------------------------- budget ------------------------->|
 *	|   used pages   |  reserved  |                              |
 *	|   used pages   |  idle pages (free, backed)  |             |  = resident
 *
 * Since used pages are part of both sums, room can always be made for what was reserved: by punching as many idle
 * pages as are missing. So fragmentation costs address space, never memory and never a failed allocation. Idle pages
 * are taken first from segments that hold nothing, then from where free runs are shortest and least likely to be
 * asked for. A segment with nothing in it and nothing behind it is given back.
 *
 * Segments are searched oldest first, so that young ones run empty. Pages are backed after the lock is let go; nobody
 * punches them, for they are used by then. How they are punched: pool_room.c.
 *
 * A worker's allocation may give back a segment whose fd the control thread has just borrowed; such segments give
 * up their memory at once and their fds at the control thread's next reservation.
 *
 * Pages of a segment that was set aside at boot (hugetlb) count while they are used: idle ones could not serve
 * anybody else.
 */
#include "daemon/mem/pool.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/mem/memfd.h"
#include "daemon/mem/pool_private.h"

#define HUGE_SLACK (4ull << 20) /* once around what is used, and once where that ends */

/* ---- segments ------------------------------------------------------------------------------ */

int pool_slot_room(struct pool_tenant *t, uint32_t n)
{
	uint32_t cap = t->cap_slots ? t->cap_slots : 16;
	struct pool_slot *slot;

	if (n <= t->cap_slots)
		return 0;
	while (cap < n)
		cap *= 2;
	slot = realloc(t->slot, cap * sizeof(*slot));
	if (!slot)
		return -ENOMEM;
	t->slot = slot;
	t->cap_slots = cap;
	return 0;
}

int pool_add_segment(struct pool_tenant *t, unsigned page_shift, struct pool_slot **ret)
{
	struct pool *p = t->pool;
	struct tier_request q = {
		.bytes = p->options.segment_bytes,
		.numa_node = p->options.numa_node,
		.huge_pages = p->options.huge_pages,
	};
	struct segment *s;
	int r = pool_slot_room(t, t->n_slots + 1);

	if (r < 0)
		return r;
	if (p->last_id == UINT32_MAX)
		return -ENOSPC;
	r = segment_new(p->options.tier, &q, page_shift, p->last_id + 1, &s);
	if (r < 0)
		return r;
	p->last_id++;
	p->n_segments++;
	s->owner = t;
	t->slot[t->n_slots] = (struct pool_slot){s, s->arena.pages, page_shift};
	*ret = &t->slot[t->n_slots++];
	if (p->options.watch.added && t->owner)
		p->options.watch.added(t->owner, s->id, page_shift, s->memory.fd);
	return 0;
}

/* The tenant's no longer. What was used in it is the caller's to account for, and that no step runs in it. */
static struct segment *take_segment(struct pool_tenant *t, uint32_t i)
{
	struct pool *p = t->pool;
	struct segment *s = t->slot[i].segment;

	assert(p->stepping != s && !s->punching);
	pool_unrank(p, s);
	pool_uncharge_pages(p, s, s->n_backed);
	t->n_slots--;
	memmove(&t->slot[i], &t->slot[i + 1], (t->n_slots - i) * sizeof(*t->slot));
	p->n_segments--;
	if (p->options.watch.removed && t->owner)
		p->options.watch.removed(t->owner, s->id, s->page_shift);
	return s;
}

/* Without the lock, for clients may have made the kernel give it memory. */
void pool_retire_segment(struct pool_tenant *t, uint32_t i)
{
	struct pool *p = t->pool;
	struct segment *s = take_segment(t, i);

	pthread_mutex_unlock(&p->lock);
	segment_retire(s);
	pthread_mutex_lock(&p->lock);
	s->next = p->retired;
	p->retired = s;
}

static void close_retired(struct pool *p)
{
	while (p->retired) {
		struct segment *s = p->retired;

		p->retired = s->next;
		segment_free(s);
	}
}

uint32_t pool_slot_from(const struct pool_tenant *t, uint32_t id)
{
	uint32_t from = 0, to = t->n_slots;

	while (from < to) {
		uint32_t mid = from + (to - from) / 2;

		if (t->slot[mid].segment->id < id)
			from = mid + 1;
		else
			to = mid;
	}
	return from;
}

static struct pool_slot *find_slot(struct pool_tenant *t, uint32_t id)
{
	const uint32_t i = pool_slot_from(t, id);

	return i < t->n_slots && t->slot[i].segment->id == id ? &t->slot[i] : NULL;
}

/* ---- making room --------------------------------------------------------------------------- */

/* Segments of memory set aside at boot are few: what other tenants leave empty is given back before one more is made. */
static void release_set_aside(struct pool *p, const struct pool_tenant *but)
{
	for (struct pool_tenant *t = p->tenants; t; t = t->next)
		for (uint32_t i = t->n_slots; t != but && i-- > 0;)
			if (t->slot[i].segment->memory.set_aside &&
				segment_used(t->slot[i].segment) == 0 &&
				t->slot[i].segment != p->stepping) {
				pool_retire_segment(t, i);
				i = t->n_slots; /* the lock was let go */
			}
}

/* ---- allocation ---------------------------------------------------------------------------- */

static int find_room(
	struct pool_tenant *t, uint32_t pages, unsigned page_shift, struct pool_slot **ret)
{
	bool wait;

	do {
		wait = false;
		for (uint32_t i = 0; i < t->n_slots; i++) {
			struct pool_slot *slot = &t->slot[i];

			if (slot->page_shift != page_shift || slot->room < pages)
				continue;
			if (!slot->segment->punching) {
				*ret = slot;
				return 0;
			}
			wait = true;
		}
		if (wait) /* no longer than for PUNCH_BYTES, and a new segment would take longer */
			pthread_cond_wait(&t->pool->step_done, &t->pool->lock);
	} while (wait);
	if (t->pool->options.huge_pages)
		release_set_aside(t->pool, t);
	return pool_add_segment(t, page_shift, ret);
}

static void give_pages(struct pool_tenant *t, const struct extent *e)
{
	struct pool_slot *slot = find_slot(t, e->segment);
	struct segment *s;

	assert(slot);
	s = slot->segment;
	arena_free(&s->arena, e->page, e->pages);
	slot->room = arena_largest(&s->arena);
	if (s->memory.set_aside)
		pool_uncharge(t->pool, s, extent_bytes(e));
	t->used -= extent_bytes(e);
	t->pool->used -= extent_bytes(e);
	pool_rank(t->pool, s);
}

/* As give_pages, when `cold` of them did not come to be backed. */
static void give_cold_pages(struct pool_tenant *t, const struct extent *e, struct segment *s,
	const struct segment_part *cold)
{
	uint32_t before = s->n_backed;

	if (cold->pages)
		segment_unback(s, cold);
	pool_uncharge_pages(t->pool, s, before - s->n_backed);
	give_pages(t, e);
}

/* Everything but the system call that backs the pages; what is to be backed counts as such from here on. */
static int take_pages(struct pool_tenant *t, uint32_t pages, unsigned page_shift,
	struct extent *ret, struct segment **ret_segment, struct segment_part *ret_cold)
{
	const uint64_t bytes = (uint64_t)pages << page_shift;
	struct pool *p = t->pool;
	struct pool_slot *slot;
	struct segment_part cold;
	struct segment *s;
	struct extent e;
	int r;

	t->used += bytes; /* before the lock is let go for the first time */
	p->used += bytes;
	r = find_room(t, pages, page_shift, &slot);
	if (r < 0) {
		t->used -= bytes;
		p->used -= bytes;
		return r;
	}
	s = slot->segment;
	e = (struct extent){
		.segment = s->id,
		.pages = pages,
		.page_shift = (uint8_t)page_shift,
		.tier = p->options.tier->tier,
	};
	r = arena_alloc(&s->arena, pages, &e.page);
	assert(r == 0);
	if (s->memory.addr)
		e.addr = (uint8_t *)s->memory.addr + ((uint64_t)e.page << page_shift);
	slot->room = arena_largest(&s->arena);
	if (s->memory.set_aside)
		pool_charge(p, s, extent_bytes(&e));
	segment_cold(s, e.page, pages, &cold);
	if (cold.pages)
		pool_mark_backed(p, s, &cold);
	pool_rank(p, s);
	r = pool_make_room(p);
	if (r < 0) {
		give_cold_pages(t, &e, s, &cold);
		return r;
	}
	*ret = e;
	*ret_segment = s;
	*ret_cold = cold;
	return 0;
}

static int alloc(struct pool_tenant *t, uint64_t bytes, unsigned page_shift, bool reserved,
	struct extent *ret)
{
	struct pool *p = t->pool;
	uint64_t size = (bytes + (1ull << page_shift) - 1) >> page_shift << page_shift;
	struct extent e;
	struct segment *s;
	struct segment_part cold;
	int r;

	assert(page_shift >= 12 && bytes > 0);
	if (size > p->options.segment_bytes)
		return -EFBIG;
	pthread_mutex_lock(&p->lock);
	assert(!reserved || size <= p->reserved);
	if (!reserved && (size > p->budget || p->used + p->reserved > p->budget - size)) {
		r = -ENOSPC;
	} else {
		p->reserved -= reserved ? size : 0;
		r = take_pages(t, (uint32_t)(size >> page_shift), page_shift, &e, &s, &cold);
		if (r < 0 && reserved)
			p->reserved += size;
	}
	pthread_mutex_unlock(&p->lock);
	if (r < 0)
		return r;
	if (cold.pages)
		r = segment_back(s, &cold);
	pthread_mutex_lock(&p->lock);
	if (r < 0) {
		give_cold_pages(t, &e, s, &cold);
		if (reserved)
			p->reserved += size;
	}
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	if (r == 0)
		*ret = e;
	return r;
}

int pool_alloc(struct pool_tenant *t, uint64_t bytes, unsigned page_shift, struct extent *ret)
{
	return alloc(t, bytes, page_shift, false, ret);
}

int pool_alloc_reserved(
	struct pool_tenant *t, uint64_t bytes, unsigned page_shift, struct extent *ret)
{
	return alloc(t, bytes, page_shift, true, ret);
}

void pool_release(struct pool_tenant *t, const struct extent *e)
{
	pthread_mutex_lock(&t->pool->lock);
	give_pages(t, e);
	pthread_mutex_unlock(&t->pool->lock);
}

void pool_release_reserved(struct pool_tenant *t, const struct extent *e)
{
	pthread_mutex_lock(&t->pool->lock);
	give_pages(t, e);
	t->pool->reserved += extent_bytes(e);
	pthread_mutex_unlock(&t->pool->lock);
}

int pool_reserve(struct pool *p, uint64_t bytes)
{
	int r = -ENOSPC;

	pthread_mutex_lock(&p->lock);
	close_retired(p);
	if (bytes <= p->budget && p->used + p->reserved <= p->budget - bytes) {
		p->reserved += bytes;
		r = 0;
	}
	pthread_mutex_unlock(&p->lock);
	return r;
}

void pool_unreserve(struct pool *p, uint64_t bytes)
{
	pthread_mutex_lock(&p->lock);
	assert(bytes <= p->reserved);
	p->reserved -= bytes;
	pthread_mutex_unlock(&p->lock);
}

/* ---- life ---------------------------------------------------------------------------------- */

int pool_new(const struct pool_options *o, struct pool **ret)
{
	struct pool *p = calloc(1, sizeof(*p));
	int r = 0;

	if (!p)
		return -ENOMEM;
	assert(o->segment_bytes && !(o->segment_bytes & (o->segment_bytes - 1)));
	p->options = *o;
	p->budget = o->budget;
	p->slack = o->huge_pages && memfd_backed_huge(true) ? HUGE_SLACK : 0;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->wake, NULL);
	pthread_cond_init(&p->step_done, NULL);
	if (o->prefault)
		r = prefault_start(p);
	if (r < 0) {
		pool_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct pool *pool_free(struct pool *p)
{
	if (!p)
		return NULL;
	prefault_stop(p);
	assert(!p->tenants && p->used == 0 && p->reserved == 0 && p->resident == 0);
	close_retired(p);
	pthread_cond_destroy(&p->step_done);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	free(p);
	return NULL;
}

void pool_set_budget(struct pool *p, uint64_t bytes)
{
	pthread_mutex_lock(&p->lock);
	p->budget = bytes;
	pool_make_room(p); /* a failed punch is made good by the next allocation */
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
}

int pool_tenant_new(struct pool *p, struct pool_tenant **ret)
{
	struct pool_tenant *t = calloc(1, sizeof(*t));

	if (!t)
		return -ENOMEM;
	t->pool = p;
	pthread_mutex_lock(&p->lock);
	t->next = p->tenants;
	if (t->next)
		t->next->prev = t;
	p->tenants = t;
	pthread_mutex_unlock(&p->lock);
	*ret = t;
	return 0;
}

void pool_tenant_own(struct pool_tenant *t, void *owner)
{
	assert(!t->n_slots);
	t->owner = owner;
}

struct pool_tenant *pool_tenant_free(struct pool_tenant *t)
{
	struct pool *p;

	if (!t)
		return NULL;
	p = t->pool;
	pthread_mutex_lock(&p->lock);
	while (p->stepping || p->n_punching)
		pthread_cond_wait(&p->step_done, &p->lock);
	if (p->sweep_tenant == t)
		p->sweep_tenant = NULL;
	while (t->n_slots) {
		struct segment *s = t->slot[t->n_slots - 1].segment;

		if (s->memory.set_aside)
			pool_uncharge(p, s, (uint64_t)segment_used(s) << s->page_shift);
		segment_free(take_segment(t,
			t->n_slots - 1)); /* not punched: what clients have pinned stays theirs */
	}
	p->used -= t->used;
	if (t->next)
		t->next->prev = t->prev;
	if (t->prev)
		t->prev->next = t->next;
	else
		p->tenants = t->next;
	close_retired(p);
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	free(t->slot);
	free(t);
	return NULL;
}

/* ---- looking ------------------------------------------------------------------------------- */

int pool_segment_get(struct pool_tenant *t, uint32_t id, struct pool_segment *ret)
{
	struct pool_slot *slot;

	pthread_mutex_lock(&t->pool->lock);
	slot = find_slot(t, id);
	if (slot)
		*ret = (struct pool_segment){
			.id = id,
			.bytes = slot->segment->memory.bytes,
			.page_shift = slot->segment->page_shift,
			.tier = t->pool->options.tier->tier,
			.whole = slot->segment->memory.set_aside,
			.fresh = slot->segment->memory.fresh,
			.fd = slot->segment->memory.client_fd,
			.addr = slot->segment->memory.addr,
		};
	pthread_mutex_unlock(&t->pool->lock);
	return slot ? 0 : -ENOENT;
}

void pool_segment_filled(struct pool_tenant *t, uint32_t id)
{
	struct pool_slot *slot;

	pthread_mutex_lock(&t->pool->lock);
	slot = find_slot(t, id);
	if (slot)
		slot->segment->memory.fresh = false;
	pthread_mutex_unlock(&t->pool->lock);
}

void pool_stat(struct pool *p, struct pool_stat *ret)
{
	pthread_mutex_lock(&p->lock);
	*ret = (struct pool_stat){
		.budget = p->budget,
		.used = p->used,
		.reserved = p->reserved,
		.resident = p->resident,
		.segments = p->n_segments,
	};
	pthread_mutex_unlock(&p->lock);
}

void pool_tenant_stat(struct pool_tenant *t, struct pool_stat *ret)
{
	pthread_mutex_lock(&t->pool->lock);
	*ret = (struct pool_stat){.used = t->used, .resident = t->resident, .segments = t->n_slots};
	pthread_mutex_unlock(&t->pool->lock);
}
