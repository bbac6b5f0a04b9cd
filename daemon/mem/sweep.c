/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients map whole segments, read-only, also the holes in them. Reading a hole of shared memory is answered with a new
 * page of zeros, and the page stays: with reads alone a client could make the daemon hold a segment's full size,
 * whatever the budget. It cannot be forbidden, but it shows: the kernel counts the memory behind a file. Where that is more
 * than was backed here, what is cold is punched again. Pages are marked before they are backed, under the lock, so
 * whatever is cold under the lock is nobody's; and nobody comes to own it while it is punched (pool_punch()).
 *
 * Work is bounded: some segments in a call, round and round, and some bytes. While somebody keeps reading holes there may be
 * such pages; when he stops, or is gone, so are they.
 */
#include "daemon/mem/pool_private.h"

#define SWEEP_BYTES                                                                                \
	(16ull << 20)     /* looked at in one call: about a millisecond when all of it is there */
#define SWEEP_SEGMENTS 64 /* asked about in one call: a system call each */

/* The one that the last call stopped at, or the next one. NULL: there are none. */
static struct segment *segment_at(struct pool *p)
{
	bool again = false;

	for (;; p->sweep_id = 0) {
		struct pool_tenant *t = p->sweep_tenant;
		uint32_t i;

		if (!t) {
			if (again || !p->tenants)
				return NULL;
			again = true;
			t = p->sweep_tenant = p->tenants;
		}
		i = pool_slot_from(t, p->sweep_id);
		if (i < t->n_slots)
			return t->slot[i].segment;
		p->sweep_tenant = t->next;
	}
}

/* Looks at some of its cold pages. The bytes looked at. */
static uint64_t sweep(struct pool *p, struct segment *s, uint64_t bytes)
{
	struct segment_parts parts;
	uint32_t pages = segment_find_cold(s, (uint32_t)(bytes >> s->page_shift), &parts);

	if (parts.n)
		pool_punch(p, s, &parts, 0); /* what could not be punched is found again */
	return (uint64_t)pages << s->page_shift;
}

bool pool_sweep(struct pool *p)
{
	uint64_t left = SWEEP_BYTES;
	struct segment *s;
	bool more = false;

	pthread_mutex_lock(&p->lock);
	for (uint32_t n = 0; n < SWEEP_SEGMENTS && n < p->n_segments && !more; n++) {
		s = segment_at(p);
		if (!s)
			break;
		p->sweep_id = s->id;
		if (!s->memory.set_aside && !s->punching && segment_excess(s) > p->slack) {
			left -= sweep(p, s, left);
			more = s->swept || left < KVG_PAGE_MAX;
		}
		p->sweep_id += !s->swept; /* else the next call goes on in it */
	}
	pthread_cond_signal(&p->wake);
	pthread_mutex_unlock(&p->lock);
	return more;
}
