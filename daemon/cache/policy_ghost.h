/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy_ghost: what is remembered of blocks that were evicted, the latest of them.
 * Thread: the policy's. Locks: none. Blocks: never. Errors: none; short of memory it remembers less.
 */
#ifndef KVGATE_DAEMON_CACHE_POLICY_GHOST_H
#define KVGATE_DAEMON_CACHE_POLICY_GHOST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ghost {
	uint64_t key_hash, last_use;
	uint32_t hits, turn, run;
	uint16_t class;
	bool alive;
	uint32_t next; /* in its bucket, 1 + index */
};

struct ghosts {
	struct ghost *ring;
	uint32_t *bucket; /* 1 + index */
	size_t size;      /* of both, a power of two */
	size_t first, n;  /* entries of the ring, those taken back included */
	size_t alive;
};

void ghosts_init(struct ghosts *g);
void ghosts_fini(struct ghosts *g);
/* Takes the oldest away when `limit` leaves no room for it. */
bool ghosts_forget(struct ghosts *g, size_t limit, struct ghost *ret);
/* False: no memory, and the ring is full. */
bool ghosts_add(struct ghosts *g, const struct ghost *new);
/* The block came back. */
bool ghosts_take(struct ghosts *g, uint64_t key_hash, struct ghost *ret);

#endif
