/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients map whole segments, read-only, also the holes in them. Reading a hole of shared memory is answered with a new
 * page of zeros, and the page stays: with reads alone a client could make the daemon hold a segment's full size,
 * whatever the budget. It cannot be forbidden, but it shows: the kernel counts the memory behind a file. Where that is more
 * than was backed here, what is cold is punched again. Pages are marked before they are backed, under the lock, so
 * whatever is cold under the lock is nobody's.
 *
 * Work is bounded. While somebody keeps reading holes there may be such pages; when he stops, or is gone, so are they.
 */
#include "daemon/mem/pool_private.h"

#define SWEEP_BYTES                                                                                \
	(64ull << 20) /* looked at in one call: some milliseconds when all of it is there */
#define HUGE_SLACK (4ull << 20) /* the kernel may back huge pages around those asked for */

void pool_sweep(struct pool *p)
{
	const uint64_t slack = p->options.huge_pages ? HUGE_SLACK : 0;
	uint64_t left = SWEEP_BYTES;

	pthread_mutex_lock(&p->lock);
	for (struct pool_tenant *t = p->tenants; t; t = t->next)
		for (uint32_t i = 0; i < t->n_slots && left; i++) {
			struct segment *s = t->slot[i].segment;
			uint64_t bytes;

			if (s->memory.set_aside || segment_excess(s) <= slack)
				continue;
			bytes = (uint64_t)segment_sweep(s, (uint32_t)(left >> s->page_shift))
				<< s->page_shift;
			left = bytes && bytes < left ? left - bytes : 0;
		}
	pthread_mutex_unlock(&p->lock);
}
