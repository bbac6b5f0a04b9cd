/* SPDX-License-Identifier: Apache-2.0 */
/*
 * held: the pins that one session holds through the socket - a multiset of handles.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: -ENOMEM.
 */
#ifndef KVGATE_DAEMON_SERVE_HELD_H
#define KVGATE_DAEMON_SERVE_HELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/shm.h"

struct held_slot {
	uint64_t handle; /* packed; 0: empty */
	uint32_t count;
};

struct held {
	struct held_slot *slots;
	uint32_t size; /* a power of two, or 0 */
	uint32_t used; /* different handles */
};

void held_fini(struct held *h);
/* Makes sure that the next held_add() cannot fail: to be called before the pin is taken. */
int held_reserve(struct held *h);
void held_add(struct held *h, struct kvg_handle handle);
bool held_remove(struct held *h, struct kvg_handle handle); /* one of them; false: not held */
bool held_has(const struct held *h, struct kvg_handle handle);
/* Any one handle, and how often it is held; it is gone from here then. False: empty. */
bool held_take_any(struct held *h, uint32_t *cursor, struct kvg_handle *ret, uint32_t *ret_count);

#endif
