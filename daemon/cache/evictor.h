/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evictor: takes the least valuable planes and blocks away; private to daemon/cache.
 * Thread: the control thread. Locks: none. Blocks: never; work is bounded per call. Errors: none.
 */
#ifndef KVGATE_DAEMON_CACHE_EVICTOR_H
#define KVGATE_DAEMON_CACHE_EVICTOR_H

#include "daemon/cache/block.h"
#include "daemon/cache/pins.h"

struct cache;
struct cache_tenant;

/* Planes (bits) of a block: in whatever tier, and of them in memory. */
struct planes {
	uint8_t held, mapped;
};

/* Blocks that are about to lose planes, or to leave memory, or to go altogether; decided together, for one scan of the pins. */
struct victim {
	struct block *block; /* NULL: another entry of the same block replaced this one */
	struct planes before, after;
	uint32_t policy_held; /* before */
	bool stays;
};
enum evict_reason {
	EVICT_PRESSURE,
	EVICT_REQUEST,
	EVICT_CORRUPT
};
struct evict_batch {
	struct cache_tenant *tenant;
	enum evict_reason reason;
	unsigned n;
	struct victim victim[PIN_SET_MAX];
	struct cache_purge_result result; /* sums of what went, and what was pinned */
	uint64_t freed;                   /* page bytes, of memory */
	uint64_t planned,
		planned_blocks; /* the same of those in the batch, if nobody has them pinned */
};
void evict_batch_init(struct evict_batch *e, struct cache_tenant *t, enum evict_reason reason);
/*
 * Hides all planes but those of `after` (held 0 = the whole block, which has no children then; held, and mapped no more: below). False: full,
 * settle first.
 */
bool evict_batch_add(struct evict_batch *e, struct block *b, struct planes after);
/* Scans, puts back what is pinned, frees the rest; the batch is empty again, sums go on. */
void evict_batch_settle(struct evict_batch *e);

/* Pins may have gone: who was found exhausted may be asked again. */
void evict_ask_again(struct cache *c);
enum evicted {
	EVICTED_NOTHING, /* nothing may go now, however often one asks */
	EVICTED_SOME,    /* ask again */
	EVICTED_LATER, /* what is on its way down makes room when it is there: commits_retry() and the timer come then */
};
/* One bounded round for `bytes` of pages and `slots` of the index. */
enum evicted evict_round(struct cache_tenant *t, uint64_t bytes, uint64_t slots);
/* May there be another round in this turn of the loop? If not, ask in the next one. */
bool evict_may(struct cache *c);
/* The tenant that uses most of its quota and has something that may go gives up `bytes`. */
enum evicted evict_anyone(struct cache *c, uint64_t bytes);

/* Something was stored or a limit changed: is a watermark passed? */
void evict_check(struct cache *c, struct cache_tenant *t);
void evict_on_timer(void *cache);
/* Planes went down, or could not: whoever waits for room looks again with the next turn of the loop. */
void evict_wake(struct cache *c);

#endif
