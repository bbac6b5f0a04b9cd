/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attach: checks memory that the daemon hands over as file descriptors, and maps it.
 * Thread: any. Locks: none. Blocks: as mmap does. Errors: negative errno and a static text in *ret_why; the fd stays
 * the caller's.
 */
#ifndef KVGATE_CLIENT_LIB_ATTACH_H
#define KVGATE_CLIENT_LIB_ATTACH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/shm.h"

/* The tenant's index, read-only. */
struct index_map {
	const struct kvg_shm_index *head;
	const struct kvg_shm_bucket *buckets;
	const struct kvg_shm_entry *entries;
	uint64_t n_buckets, n_slots;
	size_t bytes;
};
int index_map_init(struct index_map *m, int fd, const char **ret_why);
void index_map_fini(struct index_map *m);

/* This session's pin page. Free pins are a stack, so that few cache lines are used again and again. */
struct pin_map {
	struct kvg_shm_pins *head;
	_Atomic uint64_t *pin;   /* [n_pins] packed handles */
	_Atomic uint64_t *touch; /* [touch_mask + 1] */
	uint32_t n_pins, touch_mask;
	uint64_t touch_head;
	uint32_t *free; /* stack of indices that were used and are free again */
	uint32_t n_free;
	uint32_t high; /* indices from here on were never used */
	size_t bytes;
};
int pin_map_init(struct pin_map *m, int fd, const char **ret_why);
void pin_map_fini(struct pin_map *m);

/*
 * Maps `bytes` of fd after checking what it is: a regular (memory) file, opened read-only or read-write as
 * `writable` says, at least that long, and sealed against shrinking, so that no access can fault.
 */
int shared_map(int fd, uint64_t bytes, bool writable, void **ret, const char **ret_why);

#endif
