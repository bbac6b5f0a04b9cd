/* SPDX-License-Identifier: Apache-2.0 */
/*
 * move: pages from list to list, by a kernel on a few multiprocessors.
 * Thread: any that has entered the device. Locks: none. Blocks: gpu_move_open() while code is loaded, nothing else.
 * Errors: negative errno with a text; -EINVAL: a page size that is no multiple of MOVE_ALIGN.
 */
#ifndef KVGATE_GPU_MOVE_H
#define KVGATE_GPU_MOVE_H

#include <stdbool.h>

#include "gpu/kernels/move.h"
#include "gpu/module.h"

struct gpu_move;

int gpu_move_open(struct gpu_device *dev, struct gpu_move **ret, char *ret_why, size_t why_size);
struct gpu_move *gpu_move_close(struct gpu_move *m);

/* By which of the kernels, with how many blocks; NULL below stands for what was measured to be best. */
struct gpu_move_how {
	bool bulk; /* by the engine that copies in bulk: Hopper and later */
	uint32_t blocks;
	uint32_t
		piece; /* bytes that a bulk block copies at once: a power of two up to MOVE_PIECE_MAX */
};
/* In the stream's order: lists and pages stay until what is behind it there has come. */
int gpu_move_pages(struct gpu_move *m, struct CUstream_st *stream, const struct move_args *args,
	const struct gpu_move_how *how, char *ret_why, size_t why_size);

#endif
