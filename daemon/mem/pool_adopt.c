/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nobody says which pages of an adopted segment are used but those who claim them, so each is marked first, and who marks a
 * page that is marked leaves a second mark: neither gets it then, for nothing tells whose bytes are in it. Until the end
 * the segments are not in the pool, so that nobody backs or punches in them meanwhile.
 *
 * Free pages count as cold, though most hold memory. pool_sweep() finds segments in which the kernel has given more than is
 * counted, and takes it back a little at a time: giving back gigabytes here would delay the start by seconds.
 */
#include "daemon/mem/pool_adopt.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/mem/bitmap.h"
#include "daemon/mem/pool_private.h"

struct adopted {
	struct segment *segment;
	uint64_t *marked, *clash; /* bit per page */
};

struct pool_adoption {
	struct pool_tenant *tenant;
	struct adopted *at; /* by id, ascending */
	uint32_t n;
};

int pool_adoption_new(struct pool_tenant *t, struct pool_adoption **ret)
{
	struct pool_adoption *a = calloc(1, sizeof(*a));

	if (!a)
		return -ENOMEM;
	assert(!t->n_slots);
	a->tenant = t;
	*ret = a;
	return 0;
}

static void adopted_fini(struct adopted *at)
{
	segment_free(at->segment);
	free(at->marked);
	free(at->clash);
}

struct pool_adoption *pool_adoption_free(struct pool_adoption *a)
{
	if (!a)
		return NULL;
	for (uint32_t i = 0; i < a->n; i++)
		adopted_fini(&a->at[i]);
	free(a->at);
	free(a);
	return NULL;
}

/* The first with this id or a higher one. */
static uint32_t from(const struct pool_adoption *a, uint32_t id)
{
	uint32_t low = 0, high = a->n;

	while (low < high) {
		uint32_t mid = low + (high - low) / 2;

		if (a->at[mid].segment->id < id)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static struct adopted *find(const struct pool_adoption *a, uint32_t id)
{
	const uint32_t i = from(a, id);

	return i < a->n && a->at[i].segment->id == id ? &a->at[i] : NULL;
}

int pool_adoption_add(
	struct pool_adoption *a, uint32_t id, unsigned page_shift, uint64_t bytes, int fd)
{
	const struct pool_options *o = &a->tenant->pool->options;
	const struct tier_request q = {
		.bytes = bytes, .numa_node = o->numa_node, .huge_pages = o->huge_pages};
	struct adopted new = {0}, *at;
	size_t words;
	int r;

	if (!o->tier->adopt || id == 0 || id == UINT32_MAX || page_shift < 12 ||
		1ull << (page_shift & 63) > KVG_PAGE_MAX)
		return -EBADMSG;
	if (find(a, id))
		return -EEXIST;
	at = reallocarray(a->at, a->n + 1, sizeof(*at));
	if (!at)
		return -ENOMEM;
	a->at = at;
	pthread_mutex_lock(&a->tenant->pool->lock);
	r = pool_slot_room(a->tenant, a->n + 1);
	pthread_mutex_unlock(&a->tenant->pool->lock);
	if (r == 0)
		r = segment_adopt(o->tier, &q, page_shift, id, fd, &new.segment);
	if (r < 0)
		return r;
	words = bitmap_words(new.segment->arena.pages);
	new.marked = calloc(words, sizeof(*new.marked));
	new.clash = calloc(words, sizeof(*new.clash));
	if (!new.marked || !new.clash) {
		new.segment->memory.fd = -1; /* the caller's still */
		adopted_fini(&new);
		return -ENOMEM;
	}
	at = &a->at[from(a, id)];
	memmove(at + 1, at, (size_t)(&a->at[a->n] - at) * sizeof(*at));
	*at = new;
	a->n++;
	return 0;
}

void pool_adoption_find(const struct pool_adoption *a, struct extent *e)
{
	const struct segment *s = find(a, e->segment)->segment;

	e->tier = s->tier->tier;
	e->addr = NULL;
	if (s->memory.addr)
		e->addr = (uint8_t *)s->memory.addr + ((uint64_t)e->page << e->page_shift);
}

int pool_adoption_fd(const struct pool_adoption *a, uint32_t id)
{
	const struct adopted *at = find(a, id);

	return at ? at->segment->memory.fd : -1;
}

int pool_adoption_mark(struct pool_adoption *a, struct extent *e)
{
	const struct adopted *at = find(a, e->segment);
	struct segment *s;

	if (!at)
		return -EBADMSG;
	s = at->segment;
	if (e->page_shift != s->page_shift || !e->pages || e->pages > s->arena.pages ||
		e->page > s->arena.pages - e->pages)
		return -EBADMSG;
	for (uint32_t page = e->page; page < e->page + e->pages; page++)
		if (bitmap_test(at->marked, page))
			bitmap_set(at->clash, page, 1);
	bitmap_set(at->marked, e->page, e->pages);
	pool_adoption_find(a, e);
	return 0;
}

int pool_adoption_peek(const struct pool_adoption *a, const struct extent *e, void *ret, size_t n)
{
	const off_t at = (off_t)((uint64_t)e->page << e->page_shift);
	ssize_t got = pread(find(a, e->segment)->segment->memory.fd, ret, n, at);

	if (got < 0)
		return -errno;
	return got == (ssize_t)n ? 0 : -EBADMSG;
}

bool pool_adoption_clashes(const struct pool_adoption *a, const struct extent *e)
{
	return bitmap_count(find(a, e->segment)->clash, e->page, e->pages) > 0;
}

void pool_adoption_take(struct pool_adoption *a, const struct extent *e)
{
	struct segment *s = find(a, e->segment)->segment;

	assert(!bitmap_count(s->arena.used, e->page, e->pages));
	bitmap_set(s->arena.used, e->page, e->pages);
}

/* The lock is held. */
static void enter(struct pool_tenant *t, struct segment *s)
{
	struct pool *p = t->pool;
	uint64_t used;

	arena_adopt(&s->arena);
	used = (uint64_t)segment_used(s) << s->page_shift;
	s->owner = t;
	s->memory.fresh = used == 0; /* what was begun in it was never finished */
	t->slot[t->n_slots++] = (struct pool_slot){s, arena_largest(&s->arena), s->page_shift};
	p->n_segments++;
	p->last_id = s->id > p->last_id ? s->id : p->last_id;
	t->used += used;
	p->used += used;
	for (uint32_t page = 0, end; page < s->arena.pages; page = end) {
		struct segment_part part;

		page = bitmap_next_set(s->arena.used, page, s->arena.pages);
		end = bitmap_next_clear(s->arena.used, page, s->arena.pages);
		part = (struct segment_part){.page = page, .pages = end - page};
		if (part.pages)
			pool_mark_backed(p, s, &part);
	}
	if (s->memory.set_aside)
		pool_charge(p, s, used);
}

void pool_adoption_finish(struct pool_adoption *a, uint32_t next_id)
{
	struct pool *p = a->tenant->pool;

	pthread_mutex_lock(&p->lock);
	for (uint32_t i = 0; i < a->n; i++) {
		enter(a->tenant, a->at[i].segment);
		a->at[i].segment = NULL;
	}
	if (next_id && next_id - 1 > p->last_id)
		p->last_id = next_id - 1;
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
}
