/* SPDX-License-Identifier: Apache-2.0 */
/*
 * move: what the kernels that copy pages take; gather and scatter at once, since both ends are lists.
 * Thread: any. Locks: none. Blocks: never. Errors: none; lists are checked by who makes them.
 */
#ifndef KVGATE_GPU_KERNELS_MOVE_H
#define KVGATE_GPU_KERNELS_MOVE_H

#include <stdint.h>

#define MOVE_BULK_STAGES 8
#define MOVE_PIECE_MAX   8192u
#define MOVE_THREADS     192
#define MOVE_ALIGN       16u /* of pages and of their size */

/* Page i goes from[i] -> to[i]. The lists, too, lie where the device can read: its memory, or mapped host memory. */
struct move_args {
	uint64_t to, from; /* u64 [pages], addresses on the device */
	uint32_t pages;
	uint32_t page_bytes;
	uint32_t to_host; /* what is stored goes over the link */
	uint32_t piece;   /* set by gpu_move_pages() */
};

/* The same on the processor, of host addresses. */
void move_twin(const struct move_args *args);

#endif
