/* SPDX-License-Identifier: Apache-2.0 */
/*
 * module: the kernels that are built in, loaded into a device's context, and launched.
 * Thread: any that has entered the device. Locks: none. Blocks: gpu_module_load() while code goes to the device,
 * gpu_launch() never. Errors: negative errno with a text; what a kernel does wrong is told by whoever waits for it.
 */
#ifndef KVGATE_GPU_MODULE_H
#define KVGATE_GPU_MODULE_H

#include <stdint.h>

#include "gpu/device.h"

struct CUfunc_st;   /* *CUfunction */
struct CUstream_st; /* *CUstream */
struct gpu_module;

/* `image` is the name of a file in gpu/kernels, without ".cu". -ENOENT: there is none; -ENOEXEC: not for this device. */
int gpu_module_load(struct gpu_device *dev, const char *image, struct gpu_module **ret,
	char *ret_why, size_t why_size);
struct gpu_module *gpu_module_free(struct gpu_module *m);

/* `shared`: the most bytes of dynamic shared memory it will be launched with. */
int gpu_module_function(struct gpu_module *m, const char *name, uint32_t shared,
	struct CUfunc_st **ret, char *ret_why, size_t why_size);

/* A kernel takes one struct by value, which is read before this returns. */
struct gpu_launch {
	struct CUfunc_st *function;
	struct CUstream_st *stream;
	uint32_t grid[3], block[3]; /* 0 counts as 1 */
	uint32_t shared;
};
int gpu_launch(struct gpu_device *dev, const struct gpu_launch *l, const void *args, char *ret_why,
	size_t why_size);

#endif
