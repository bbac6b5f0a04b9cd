/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Backs free pages ahead of need while the budget has room, so that a commit does not wait for the kernel to clear
 * memory. One step: under the lock, choose cold pages and mark them backed; without it, have them backed; under it,
 * say so. While a step runs, `stepping` keeps others from punching in that segment or giving it back; taking pages
 * there is fine, for backing changes no contents.
 *
 * Pages are backed where free runs are longest: the next large extent comes from there. When a tenant's youngest
 * segment is half full, the next one is made, so that there is always something to back.
 */
#include <signal.h>

#include "daemon/mem/pool_private.h"

#define STEP_SHIFT                                                                                 \
	21 /* a huge page: some hundred microseconds: as long as anybody may have to wait for `stepping` */

/* The segment with the longest free run among those with cold pages. */
static struct segment *choose(struct pool *p)
{
	const struct pool_slot *best = NULL;

	for (struct pool_tenant *t = p->tenants; t; t = t->next)
		for (uint32_t i = 0; i < t->n_slots; i++) {
			const struct pool_slot *slot = &t->slot[i];

			if (slot->segment->n_backed < slot->segment->arena.pages &&
				!slot->segment->punching &&
				(!best ||
					(uint64_t)slot->room << slot->page_shift >
						(uint64_t)best->room << best->page_shift))
				best = slot;
		}
	return best ? best->segment : NULL;
}

/* One segment ahead for a tenant that has none with room to spare. */
static struct segment *add_ahead(struct pool *p)
{
	if (p->resident + p->options.segment_bytes > p->budget)
		return NULL;
	for (struct pool_tenant *t = p->tenants; t; t = t->next) {
		const struct segment *last;
		struct pool_slot *slot;

		if (t->n_slots == 0)
			continue;
		last = t->slot[t->n_slots - 1].segment;
		if (last->arena.free < last->arena.pages / 2 &&
			pool_add_segment(t, last->page_shift, &slot) == 0)
			return slot->segment;
	}
	return NULL;
}

/* As many pages as a step takes and the budget has room for. */
static uint32_t step_pages(const struct pool *p, const struct segment *s)
{
	uint64_t bytes = 1ull << (s->page_shift < STEP_SHIFT ? STEP_SHIFT : s->page_shift);
	uint64_t room = p->resident < p->budget ? p->budget - p->resident : 0;

	return (uint32_t)((room < bytes ? room : bytes) >> s->page_shift);
}

/* False: nothing to do now. */
static bool step(struct pool *p)
{
	struct segment *s = choose(p);
	struct segment_part part;
	uint32_t pages;
	int r;

	if (!s)
		s = add_ahead(p);
	pages = s ? step_pages(p, s) : 0;
	if (pages == 0)
		return false;
	segment_next_cold(s, pages, &part);
	pool_mark_backed(p, s, &part);
	p->stepping = s;
	pthread_mutex_unlock(&p->lock);
	r = segment_back(s, &part);
	pthread_mutex_lock(&p->lock);
	if (r < 0)
		pool_unmark_idle(p, s, &part);
	p->stepping = NULL;
	pthread_cond_broadcast(&p->step_done);
	return r == 0;
}

static void *prefault(void *arg)
{
	struct pool *p = arg;

	pthread_mutex_lock(&p->lock);
	while (!p->stop)
		if (!step(p))
			pthread_cond_wait(&p->wake, &p->lock);
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* Signals are the control thread's. */
int prefault_start(struct pool *p)
{
	sigset_t all, old;
	int r;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	r = pthread_create(&p->prefault, NULL, prefault, p);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	p->prefault_runs = r == 0;
	return -r;
}

void prefault_stop(struct pool *p)
{
	if (!p->prefault_runs)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	pthread_join(p->prefault, NULL);
	p->prefault_runs = false;
}
