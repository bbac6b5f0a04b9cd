/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy: ranges of segments to where they go, by two streams.
 * Thread: the mover's one. Locks: none. Blocks: copy_range() when both halves of the stage are on their way, copy_finish() until
 * all is there. Errors: negative errno with a text; after one the context is not to be trusted, and the mover ends.
 */
#ifndef KVGATE_GPU_MOVER_COPY_H
#define KVGATE_GPU_MOVER_COPY_H

#include "gpu/move.h"
#include "gpu/mover/segments.h"

#define COPY_STAGE (8u << 20) /* of each half: long enough that a launch costs nothing beside it */
#define COPY_PAGES 2048u      /* of each list: the stage in the smallest pages */

struct copy_half {
	struct CUstream_st *stream;
	uint8_t *stage;    /* pinned, COPY_STAGE */
	uint64_t stage_at; /* the same, for the device */
	uint64_t *from;    /* pinned, COPY_PAGES */
	uint64_t *to;
	uint64_t from_at, to_at;
	uint32_t staged, pages, page_bytes;
	bool flying;
};

struct copy {
	struct gpu_device *device;
	struct gpu_move *move;
	struct copy_half half[2];
	unsigned turn; /* the half that is being filled */
};

int copy_init(struct copy *c, struct gpu_device *dev, char *ret_why, size_t why_size);
/* Zeroes a segment, and waits for it. */
int copy_zero(struct copy *c, const struct mover_segment *s, char *ret_why, size_t why_size);
/* Checks the range against both segments. -EINVAL: it does not lie in them. */
int copy_check(const struct mover_segment *from, const struct mover_segment *to,
	const struct mover_range *r, uint32_t page_shift);
int copy_range(struct copy *c, const struct mover_segment *from, const struct mover_segment *to,
	const struct mover_range *r, uint32_t page_shift, char *ret_why, size_t why_size);
/* Everything so far is there. */
int copy_finish(struct copy *c, char *ret_why, size_t why_size);

#endif
