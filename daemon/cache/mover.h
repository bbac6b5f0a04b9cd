/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mover: planes between memory and the tier below, in both directions; private to daemon/cache.
 * Thread: the control thread; transfers run on the disk's. Locks: none. Blocks: never, but for mover_init(), which opens the
 * disk, and mover_fini(), which waits for what is in flight. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_CACHE_MOVER_H
#define KVGATE_DAEMON_CACHE_MOVER_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/mem/disk.h"
#include "proto/shm.h"

struct block;
struct cache;
struct cache_tenant;
struct drain;
struct lift;
struct loop_timer;
struct sinking;

/* Of one tenant. */
struct lifts {
	struct lift *queue[KVG_PLANES_MAX],
		**queue_end[KVG_PLANES_MAX]; /* by the plane that is next */
	uint64_t n;                          /* in them */
	uint64_t begun;                      /* bytes so far */
	uint64_t passed; /* bytes of later ones that went before who heads the last queue */
	struct cache_tenant *next; /* of the mover's list, as long as n is not 0 */
};
void lifts_init(struct lifts *q);

struct mover {
	struct loop_timer *
		timer; /* armed when there is something to do that must not be done where it came up */
	/* down */
	struct sinking *ended; /* stores whose end is to be looked at, the last one first */
	uint64_t sinking;      /* bytes, all tenants */
	struct block *lost;    /* blocks that lost planes to the log */
	uint8_t *note;         /* [CATALOG_RECORD_MAX] scratch */
	struct drain *drain;   /* cache_drain() is under way */
	/* up */
	struct cache_tenant *lift_first, **lift_end; /* who has lifts that wait: by turns */
	uint64_t lifting;                            /* bytes that are being read, all tenants */
	uint64_t lifts; /* blocks that wait for a plane or have one coming */
	bool stopping;
};

/* Opens the disk that the options name; what cannot be used is logged. Without any, all of this does nothing. */
int mover_init(struct cache *c);
void mover_fini(struct cache *c);
int mover_tenant(struct cache_tenant *t);

/* Something is on its way that makes room, or lets go of a block, when it is there. */
bool mover_busy(const struct cache *c);
/* The disk's own numbers, for those who look at counters. */
void mover_gauges(struct cache *c);
/* There may be room for what wants to come up. */
void mover_retry(struct cache *c);

/*
 * Sends planes down; when they are there and nobody reads them, they leave memory. -EPERM: the tier below has better things to keep;
 * -EAGAIN: as much as may be is on its way; other errors: it takes no more.
 */
int mover_sink(struct block *b, uint8_t planes);
/* This plane is not below any more; if it is nowhere else, it is lost, and what is worse with it. No call to the disk. */
void mover_lose(struct block *b, uint32_t plane, bool damaged);

/* What mover_down.c and mover_up.c do in the mover's timer. */
void mover_settle(struct cache *c);
void mover_lift(struct cache *c);
void mover_lifts_fini(struct cache *c);
void mover_drain_next(struct cache *c);

/* recover.c: blocks of which the tier below knows; after adoption, before anybody is served. -ENOMEM. */
int mover_recover(struct cache *c);

#endif
