/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segments: what of the daemon's memory this process and its device can reach.
 * Thread: the mover's one. Locks: none. Blocks: while memory is pinned or mapped. Errors: negative errno with a text.
 */
#ifndef KVGATE_GPU_MOVER_SEGMENTS_H
#define KVGATE_GPU_MOVER_SEGMENTS_H

#include "gpu/mover/message.h"
#include "gpu/vmm.h"

struct mover_segment {
	uint32_t id; /* 0: free */
	uint8_t tier;
	uint64_t bytes;
	const uint8_t *host; /* where this process has it; NULL: in the device's memory */
	uint64_t device; /* where the device has it; 0: it has not, and pages go through a stage */
	int error;       /* it could not be mapped */
};

struct segments {
	struct gpu_device *device;
	struct mover_segment *at;
	uint32_t n;
};

/* The fd is the caller's still. What fails is remembered, and said of each job that needs it. */
int segments_import(
	struct segments *s, const struct mover_import *m, int fd, char *ret_why, size_t why_size);
void segments_forget(struct segments *s, uint8_t tier, uint32_t id);
const struct mover_segment *segments_find(const struct segments *s, uint8_t tier, uint32_t id);

#endif
