/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index_private: what index.c, index_scan.c and index_adopt.c share.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_CACHE_INDEX_PRIVATE_H
#define KVGATE_DAEMON_CACHE_INDEX_PRIVATE_H

#include "daemon/cache/index.h"

struct index {
	int fd, read_fd;
	uint8_t *map;
	struct kvg_shm_index *head;
	struct kvg_shm_bucket *buckets;
	struct kvg_shm_entry *entries;
	uint64_t n_buckets, n_slots, bytes;
	uint32_t *free; /* stack */
	uint64_t n_free;
	uint64_t end;     /* slots from here on were never used */
	uint64_t retired; /* slots without a generation left */
	uint64_t swept;   /* offset at which index_sweep() goes on */
};

/* Maps what x->fd, bytes and n_slots say. */
int index_map(struct index *x);
uint64_t index_way(const struct kvg_key *key, uint32_t slot);

/* A header whose sizes add up, and the memory that it describes. */
struct index_view {
	const uint8_t *map;
	struct kvg_shm_index h;
};
/* -EBADMSG; -EPROTONOSUPPORT: another version. */
int index_view_open(const void *map, uint64_t bytes, struct index_view *ret);

enum index_verdict {
	INDEX_FREE,       /* nothing is there, or nothing any more */
	INDEX_WHOLE,      /* readers find it; or found it, and who has pinned it may read on */
	INDEX_UNFINISHED, /* it was being inserted, and nobody has seen it yet */
	INDEX_DAMAGED,
};
/* *ret: a copy of the entry, as it was judged. */
enum index_verdict index_judge(
	const struct index_view *v, uint32_t slot, struct kvg_shm_entry *ret);

#endif
