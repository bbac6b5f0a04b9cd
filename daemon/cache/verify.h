/* SPDX-License-Identifier: Apache-2.0 */
/*
 * verify: reads every byte of a block against its checksums, on a worker; private to daemon/cache.
 * Thread: the control thread; a worker reads the plane. Locks: none. Blocks: never. Errors: -ENOMEM.
 */
#ifndef KVGATE_DAEMON_CACHE_VERIFY_H
#define KVGATE_DAEMON_CACHE_VERIFY_H

#include "daemon/cache/cache.h"

struct block;
struct verification;

/* One at a time, plane by plane, so that commits keep the workers. */
struct verifications {
	struct verification *first,
		**end; /* the first one is at work, or waits for room in the queue */
	bool running;  /* a worker has it */
};

void verifications_init(struct cache *c);
void verifications_silence(struct cache *c);
/* Nothing new for the workers; what one of them has ends when the workers do. */
void verifications_stop(struct cache *c);
/* The workers' queue may have room. */
void verifications_feed(struct cache *c);

int verify_start(
	struct block *b, const struct cache_block_info *info, cache_verify_fn done, void *userdata);

#endif
