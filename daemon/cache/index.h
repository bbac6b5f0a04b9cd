/* SPDX-License-Identifier: Apache-2.0 */
/*
 * index: one tenant's table of blocks, in shared memory that its clients map read-only.
 * Thread: the control thread writes; clients read as proto/shm.h says. Locks: none, ordered stores.
 * Blocks: never. Errors: negative errno; -ENOSPC no slot left, -EBADMSG memory that is not an index.
 */
#ifndef KVGATE_DAEMON_CACHE_INDEX_H
#define KVGATE_DAEMON_CACHE_INDEX_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/shm.h"

#define INDEX_SLOTS_MAX                                                                            \
	(1u << 26) /* 64 Mi blocks: 17 GiB of sparse memory, far below KVG_SLOT_NONE */
/*
 * Buckets that a key may probe. Hashes never get near it; an engine that brings its own keys could make them all
 * begin alike, and is refused here before the daemon spends its time on walking past them.
 */
#define INDEX_PROBES_MAX 256u

struct index;

/* A sealed, sparse memfd of n_slots entries; memory is used as slots are. */
int index_new(uint64_t n_slots, struct index **ret);
struct index *index_free(struct index *x);
int index_fd(const struct index *x);      /* borrowed, read-only description */
int index_kept_fd(const struct index *x); /* borrowed, read-write: for the next daemon */
uint64_t index_slots(const struct index *x);
uint64_t index_slots_free(const struct index *x);
uint64_t index_slots_used_end(const struct index *x); /* slots at and above were never used */

/* What is told about a block. plane[i].check is filled in by index_insert(). */
struct index_block {
	struct kvg_key key;
	uint32_t layout;
	uint32_t parent; /* slot, KVG_SLOT_NONE at a root */
	uint32_t tokens;
	uint32_t depth;
	uint32_t n_planes;
	uint8_t held;   /* planes in any tier, at least one */
	uint8_t mapped; /* of them, in segments that clients can map */
	struct kvg_shm_plane_ref plane[KVG_PLANES_MAX];
};

/* So many will be inserted at once: their memory is had in huge pages, if the kernel has any. A wish. */
void index_expect(struct index *x, uint64_t n);
/* Publishes the block under the next generation of a free slot. -ENOSPC: no slot, or too many keys that begin alike. */
int index_insert(struct index *x, const struct index_block *b, struct kvg_handle *ret);

/* Slot of the live block, KVG_SLOT_NONE. layout 0: of any layout. */
uint32_t index_find(const struct index *x, uint32_t layout, const struct kvg_key *key);
/* Where this key would be looked for, or inserted, will be needed soon. */
void index_prefetch(const struct index *x, const struct kvg_key *key);

/*
 * The planes that readers see from now on; held 0 hides the whole block. May be put back. The caller
 * fences and scans the pin pages before it takes the memory away.
 */
void index_set_planes(struct index *x, uint32_t slot, uint8_t held, uint8_t mapped);
/* After that: these planes are nowhere any more; pairs and bytes stay as a record. */
void index_drop_planes(struct index *x, uint32_t slot, uint8_t planes);
/* Where this plane lies from now on. It is not mapped: nobody reads it there. */
void index_place(struct index *x, uint32_t slot, uint32_t plane, const struct kvg_shm_plane_ref *r);
/* After index_set_planes(slot, 0, 0): the slot is free and its generation is past. */
void index_remove(struct index *x, uint32_t slot);

/*
 * A client that reads entries nobody has written makes the kernel back them, for as long as the index lives. Gives some of
 * that back, a bounded amount each time; call it now and then.
 */
void index_sweep(struct index *x);

const struct kvg_shm_entry *index_entry(const struct index *x, uint32_t slot);
uint32_t index_generation(const struct index *x, uint32_t slot);

/*
 * Reads an index that nobody writes - one that is to be adopted, or a damaged one - and trusts nothing in it.
 * fn sees a checked copy of every entry that is whole; parents may come after their children.
 */
struct index_report {
	uint64_t live;    /* whole, and found by their key */
	uint64_t damaged; /* marked live, but something does not fit */
};
typedef void (*index_entry_fn)(
	void *userdata, uint32_t slot, uint32_t gen, const struct kvg_shm_entry *copy);
int index_scan(const void *map, uint64_t bytes, index_entry_fn fn, void *userdata,
	struct index_report *ret);

/*
 * Adoption of an index that an earlier daemon left, in three steps; readers go on meanwhile. fd is taken on success.
 * -EPROTONOSUPPORT: of another version; -EBADMSG: no index, or one that somebody could still change.
 */
int index_adopt(int fd, struct index **ret);
/* An entry that is whole. Not `shown`: readers do not find these planes any more, but who has pinned the block may read them. */
struct index_claim {
	uint32_t slot, gen;
	uint8_t shown;
	uint8_t there; /* bits: planes that lie somewhere, the shown ones among them */
	struct kvg_shm_entry entry;
};
typedef void (*index_claim_fn)(void *userdata, const struct index_claim *claim);
struct index_adoption {
	uint64_t claims, unfinished, damaged;
};
void index_adopt_scan(
	struct index *x, index_claim_fn fn, void *userdata, struct index_adoption *ret);
/* keep: a bit for each slot below index_slots_used_end(); all others are free from now on. The epoch grows. -ENOMEM. */
int index_adopt_finish(struct index *x, const uint64_t *keep);
const uint8_t *index_instance(const struct index *x); /* [16] */

/* For tests: every entry, bucket and counter against each other. 0 or -EBADMSG. */
int index_check(const struct index *x);

#endif
