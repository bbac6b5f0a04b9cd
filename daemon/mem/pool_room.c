/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Making room: idle pages are given back to the kernel. Segments that have any stand in lists, one for those in which nothing
 * is, and one for each power of two of the longest free run; the first that is not empty has what is missed least.
 *
 * Giving back a GiB takes the kernel up to a tenth of a second, so it is done without the lock, and some MiB at a time.
 * The pages are free, and must not come to be used meanwhile: as long as a segment is `punching` nobody allocates in it or
 * backs its pages ahead of need, and it is in no list. A worker that finds room nowhere else waits. The pages are marked
 * cold, and no longer counted, when they are gone; until then `punching` says how many bytes are on their way, so that two
 * who need room do not take it twice.
 */
#include "daemon/mem/pool_private.h"

#define PUNCH_BYTES                                                                                \
	(4ull << 20) /* at a time: as long as anybody may have to wait for a segment, well below a millisecond */

void pool_charge(struct pool *p, const struct segment *s, uint64_t bytes)
{
	p->resident += bytes;
	s->owner->resident += bytes;
}

void pool_uncharge(struct pool *p, const struct segment *s, uint64_t bytes)
{
	p->resident -= bytes;
	s->owner->resident -= bytes;
}

static void charge(struct pool *p, const struct segment *s, uint32_t pages)
{
	if (!s->memory.set_aside)
		pool_charge(p, s, (uint64_t)pages << s->page_shift);
}

void pool_uncharge_pages(struct pool *p, const struct segment *s, uint32_t pages)
{
	if (!s->memory.set_aside)
		pool_uncharge(p, s, (uint64_t)pages << s->page_shift);
}

void pool_mark_backed(struct pool *p, struct segment *s, const struct segment_part *part)
{
	uint32_t before = s->n_backed;

	segment_mark_backed(s, part);
	charge(p, s, s->n_backed - before);
	pool_rank(p, s);
}

void pool_unmark_idle(struct pool *p, struct segment *s, const struct segment_part *part)
{
	uint32_t before = s->n_backed;

	segment_punch_idle(s, part, part->pages);
	pool_uncharge_pages(p, s, before - s->n_backed);
	pool_rank(p, s);
}

/* ---- whose idle pages are missed least ------------------------------------------------------ */

/* 0: nothing is in it. Else by its longest free run. */
static uint8_t rank_of(const struct segment *s)
{
	const uint64_t run = (uint64_t)arena_largest(&s->arena) << s->page_shift;

	if (segment_used(s) == 0)
		return 0;
	return run ? (uint8_t)(64 - __builtin_clzll(run)) : 1;
}

void pool_unrank(struct pool *p, struct segment *s)
{
	if (!s->idle_link)
		return;
	*s->idle_link = s->idle_next;
	if (s->idle_next)
		s->idle_next->idle_link = s->idle_link;
	s->idle_link = NULL;
	if (!p->idle[s->rank])
		p->ranks &= ~(1ull << s->rank);
}

void pool_rank(struct pool *p, struct segment *s)
{
	const bool listed = segment_idle(s) && !s->punching && !s->memory.set_aside;
	const uint8_t rank = rank_of(s);

	if (s->idle_link && listed && s->rank == rank)
		return;
	pool_unrank(p, s);
	if (!listed)
		return;
	s->rank = rank;
	s->idle_next = p->idle[rank];
	s->idle_link = &p->idle[rank];
	if (s->idle_next)
		s->idle_next->idle_link = &s->idle_next;
	p->idle[rank] = s;
	p->ranks |= 1ull << rank;
}

static struct segment *find_idle(const struct pool *p)
{
	return p->ranks ? p->idle[__builtin_ctzll(p->ranks)] : NULL;
}

/* ---- giving back ---------------------------------------------------------------------------- */

int pool_punch(struct pool *p, struct segment *s, struct segment_parts *parts, uint64_t bytes)
{
	uint32_t before;
	int r;

	s->punching = true;
	p->n_punching++;
	p->punching += bytes;
	pool_rank(p, s);
	pthread_mutex_unlock(&p->lock);
	r = segment_punch(s, parts);
	pthread_mutex_lock(&p->lock);
	before = s->n_backed;
	segment_mark_cold(s, parts);
	pool_uncharge_pages(p, s, before - s->n_backed);
	s->punching = false;
	p->n_punching--;
	p->punching -= bytes;
	pool_rank(p, s);
	pthread_cond_broadcast(&p->step_done);
	return r;
}

/* Some of its idle pages; when nothing is left of it, it goes. */
static int punch_idle(struct pool *p, struct segment *s, uint64_t bytes)
{
	const struct segment_part all = segment_all(s);
	const uint64_t most = bytes < PUNCH_BYTES ? bytes : PUNCH_BYTES;
	struct segment_parts parts;
	int r;

	segment_find_idle(s, &all, (uint32_t)((most - 1) >> s->page_shift) + 1, &parts);
	r = pool_punch(p, s, &parts, (uint64_t)parts.pages << s->page_shift);
	if (r == 0 && s->n_backed == 0 && s != p->stepping)
		pool_retire_segment(s->owner, pool_slot_from(s->owner, s->id));
	return r;
}

/* Punches idle pages until the budget holds, or there are none left. Lets go of the lock meanwhile. */
int pool_make_room(struct pool *p)
{
	while (p->resident > p->budget) {
		const uint64_t stays = p->resident - p->punching;
		struct segment *s = stays > p->budget ? find_idle(p) : NULL;
		int r;

		if (!s && !p->n_punching)
			return 0;
		if (!s || s == p->stepping) {
			pthread_cond_wait(&p->step_done, &p->lock);
			continue;
		}
		r = punch_idle(p, s, stays - p->budget);
		if (r < 0)
			return r;
	}
	return 0;
}
