/* SPDX-License-Identifier: Apache-2.0 */
/*
 * purge: blocks and planes that somebody wants gone, a slice a turn of the loop; private to daemon/cache.
 * Thread: the control thread. Locks: none. Blocks: never; work is bounded per slice. Errors: -ENOMEM.
 */
#ifndef KVGATE_DAEMON_CACHE_PURGE_H
#define KVGATE_DAEMON_CACHE_PURGE_H

#include <stdint.h>

#include "daemon/cache/evictor.h"

struct block;
struct cache;
struct cache_purge;
struct cache_tenant;

/* Of one tenant, in the order they came; the first one is at work. */
struct purges {
	struct cache_purge *first, **end;
	struct cache_tenant *next; /* of the cache's queue of tenants */
};

int purges_init(struct cache *c);
void purges_fini(struct cache *c); /* nobody is told */
void purges_silence(struct cache *c);

/* Planes of this block failed their checksums, or are no longer anywhere: away with them, and with what is worth nothing without. */
int purge_lost(struct block *b, uint32_t keep_planes, enum evict_reason reason);
/* The block is about to be freed: no walk may stand on it. */
void purges_step_over(struct block *b);

#endif
