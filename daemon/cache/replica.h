/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replica: planes that a device has as well as the host, or the disk; private to daemon/cache.
 * Thread: the control thread; copies are kvgate-mover's. Locks: none. Blocks: never, but for devices_init(), while libcuda looks at
 * the machine. Errors: negative errno; that there is no device is none.
 */
#ifndef KVGATE_DAEMON_CACHE_REPLICA_H
#define KVGATE_DAEMON_CACHE_REPLICA_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/mem/tier_gpu.h"

struct block;
struct cache;
struct cache_tenant;
struct device;
struct gpu_driver;

/* Of the cache. */
struct devices {
	struct gpu_driver *driver;
	struct device *at[TIER_GPUS_MAX];
	unsigned n;
	char why[TIER_GPU_TEXT]; /* there is none: why */
};

/* What the options name; what of it cannot be used is logged. */
int devices_init(struct cache *c);
/* The movers go, and with them what was on its way. */
void devices_stop(struct cache *c);
/* When no tenant is left. */
void devices_fini(struct cache *c);
void devices_tick(struct cache *c);

struct cache_pinned;

/* Before any tenant is adopted: whoever may still write to a device for the last daemon is ended. */
void devices_adopt(struct cache *c);
/*
 * What the last daemon parked of this tenant's replicas, of blocks that are there again. Whatever does not fit is not there. -ENOMEM and
 * other trouble of the daemon's own.
 */
int replicas_adopt(struct cache_tenant *t, const struct cache_pinned *pinned);

/* These planes of the block are about to be nowhere, and nobody has pinned them: replicas go first. */
void replicas_drop(struct block *b, uint8_t planes);
/* The tenant goes; what is kept of it stays for the next daemon. */
void replicas_leave(struct cache_tenant *t);
/* Every fact that is kept twice; for tests. */
bool replicas_agree(const struct cache_tenant *t);
void replicas_tick(struct cache_tenant *t);

#endif
