/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: a plan on the device, and attention by it.
 * Thread: any that has entered the device. Locks: none. Blocks: _open while code is loaded, _upload while the plan is
 * copied, gpu_attend() never. Errors: negative errno with a text.
 */
#ifndef KVGATE_GPU_ATTEND_H
#define KVGATE_GPU_ATTEND_H

#include "gpu/attend_plan.h"
#include "gpu/module.h"

struct gpu_attend;

/* The kernels for one shape. */
int gpu_attend_open(struct gpu_device *dev, const struct attend_shape *shape,
	struct gpu_attend **ret, char *ret_why, size_t why_size);
struct gpu_attend *gpu_attend_close(struct gpu_attend *a);

/* A sealed plan's lists, and what its launches need to write: one launch of it at a time. */
struct gpu_attend_plan;
int gpu_attend_upload(struct gpu_attend *a, const struct attend_plan *plan,
	struct gpu_attend_plan **ret, char *ret_why, size_t why_size);
struct gpu_attend_plan *gpu_attend_plan_free(struct gpu_attend_plan *p);

struct gpu_attend_io {
	uint64_t q;   /* [tokens][heads * group][dim], 4-byte aligned */
	uint64_t out; /* the same; 8-byte aligned; may not overlap q */
	uint64_t lse; /* f32 [tokens][heads * group], or 0 */
	float scale;  /* of q . k before softmax; 1 / sqrt(dim) as a rule */
};
/* In the stream's order. The same plan of the same lengths gives the same bits every time. */
int gpu_attend(struct gpu_attend_plan *p, struct CUstream_st *stream,
	const struct gpu_attend_io *io, char *ret_why, size_t why_size);

#endif
