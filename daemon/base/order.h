/* SPDX-License-Identifier: Apache-2.0 */
/*
 * order: sorts numbers of things by a 64-bit key. Thread: any, pure. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_DAEMON_BASE_ORDER_H
#define KVGATE_DAEMON_BASE_ORDER_H

#include <stddef.h>
#include <stdint.h>

struct ordered {
	uint64_t key;
	uint32_t number;
};

/* Lowest key first, equal ones as they were. spare: [n]. Returns `a` or `spare`, whichever has the result. */
struct ordered *order_sort(struct ordered *a, struct ordered *spare, size_t n);

#endif
