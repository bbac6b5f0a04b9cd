/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_private: what pool.c and prefault.c share.
 * Thread: any, holding the lock. Locks: pool.lock. Blocks: no. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_MEM_POOL_PRIVATE_H
#define KVGATE_DAEMON_MEM_POOL_PRIVATE_H

#include <pthread.h>

#include "daemon/mem/pool.h"
#include "daemon/mem/segment.h"

/* A tenant's segments, oldest (lowest id) first; what a search looks at lies side by side. */
struct pool_slot {
	struct segment *segment;
	uint32_t room; /* longest free run */
	uint32_t page_shift;
};

struct pool_tenant {
	struct pool *pool;
	struct pool_tenant *next, *prev;
	struct pool_slot *slot;
	uint32_t n_slots, cap_slots;
	uint64_t used;
};

struct pool {
	pthread_mutex_t lock;
	struct pool_options options;
	uint64_t budget, used, reserved, resident;
	struct pool_tenant *tenants;
	uint32_t last_id;
	uint32_t n_segments;
	struct segment *retired; /* given back; a borrowed fd may still be in use */

	pthread_t prefault;
	bool prefault_runs, stop;
	pthread_cond_t wake; /* the prefault thread may have something to do */
	pthread_cond_t step_done;
	struct segment *stepping; /* its idle pages are being backed right now, without the lock */
};

int pool_add_segment(struct pool_tenant *t, unsigned page_shift, struct pool_slot **ret);
/* Charges the pages of part that are not backed yet, and says that they are. */
void pool_mark_backed(struct pool *p, struct segment *s, const struct segment_part *part);
/* Backing failed: gives back what of it is idle. */
void pool_unmark_idle(struct pool *p, struct segment *s, const struct segment_part *part);

int prefault_start(struct pool *p);
void prefault_stop(struct pool *p);

#endif
