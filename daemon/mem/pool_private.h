/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_private: what pool.c, pool_room.c, prefault.c and sweep.c share.
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
	uint64_t used, resident;
	void *owner; /* for the watch; NULL: it is not told */
};

#define POOL_RANKS 64

struct pool {
	pthread_mutex_t lock;
	struct pool_options options;
	uint64_t budget, used, reserved, resident;
	uint64_t
		slack; /* that a segment may have more than was asked for: the kernel's own doing */
	struct pool_tenant *tenants;
	struct segment *idle[POOL_RANKS]; /* segments with idle pages, by rank */
	uint64_t ranks;                   /* bits: lists that are not empty */
	unsigned n_punching; /* segments in which pages are being punched, without the lock */
	uint64_t punching;   /* bytes of `resident` in them that are about to go */
	struct pool_tenant *sweep_tenant; /* pool_sweep() goes on here; NULL: with the first */
	uint32_t sweep_id;                /* with this segment of his, or a later one */
	uint32_t last_id;
	uint32_t n_segments;
	struct segment *retired; /* given back; a borrowed fd may still be in use */

	pthread_t prefault;
	bool prefault_runs, stop;
	pthread_cond_t wake;      /* the prefault thread may have something to do */
	pthread_cond_t step_done; /* of the prefault thread, or of somebody who punches */
	struct segment *stepping; /* its idle pages are being backed right now, without the lock */
};

/* The first of a tenant's segments with this id or a higher one. */
uint32_t pool_slot_from(const struct pool_tenant *t, uint32_t id);
/* Of the pool and the segment's tenant; for memory set aside, what is used. */
void pool_charge(struct pool *p, const struct segment *s, uint64_t bytes);
void pool_uncharge(struct pool *p, const struct segment *s, uint64_t bytes);
/* Backed pages that are no longer. Memory set aside is not counted by that. */
void pool_uncharge_pages(struct pool *p, const struct segment *s, uint32_t pages);
/* After every change of what is idle in it, or of its free runs. */
void pool_rank(struct pool *p, struct segment *s);
/*
 * What is in *parts loses its memory: the lock is let go meanwhile, and nobody allocates, backs or punches in this segment.
 * `bytes` of it are resident.
 */
int pool_punch(struct pool *p, struct segment *s, struct segment_parts *parts, uint64_t bytes);
/* Punches idle pages until the budget holds, or there are none left. Lets go of the lock meanwhile. */
int pool_make_room(struct pool *p);
void pool_unrank(struct pool *p, struct segment *s);
/* Out of the tenant's; its memory goes now, without the lock, its fds later. */
void pool_retire_segment(struct pool_tenant *t, uint32_t i);
int pool_add_segment(struct pool_tenant *t, unsigned page_shift, struct pool_slot **ret);
/* Makes sure that there is room for n segments. -ENOMEM. */
int pool_slot_room(struct pool_tenant *t, uint32_t n);
/* Charges the pages of part that are not backed yet, and says that they are. */
void pool_mark_backed(struct pool *p, struct segment *s, const struct segment_part *part);
/* Backing failed: gives back what of it is idle. */
void pool_unmark_idle(struct pool *p, struct segment *s, const struct segment_part *part);

int prefault_start(struct pool *p);
void prefault_stop(struct pool *p);

#endif
