/* SPDX-License-Identifier: Apache-2.0 */
/*
 * table: libcuda's functions as pointers, and what its results mean to us.
 * Thread: any. Locks: none. Blocks: as the function called. Errors: gpu_error() makes them negative errno.
 */
#ifndef KVGATE_GPU_TABLE_H
#define KVGATE_GPU_TABLE_H

#include <cuda.h>

#include "gpu/driver.h"

struct gpu_driver {
	void *library;
	int version; /* 1000 major + 10 minor of the newest CUDA it can serve */
#define FUNCTION(name) __typeof__(name) *name;
#include "gpu/functions.def"
#undef FUNCTION
};

/*
 * 0 for success; else `ret_why` says which function failed and how. -ENOMEM: out of memory on the device; -EINVAL;
 * -ENODEV: there is no such device; -EOPNOTSUPP; -EPERM; -ENOEXEC: no code for this device; -EAGAIN: not ready;
 * -ENOENT: no such name; -EIO: the device is lost to this process, and so is its context.
 */
int gpu_error(const struct gpu_driver *d, CUresult result, const char *function, char *ret_why,
	size_t why_size);

/* cu(d, why, why_size, cuMemFree, address): the call, and gpu_error() of what it returned. */
#define cu(d, ret_why, why_size, function, ...)                                                    \
	gpu_error((d), (d)->function(__VA_ARGS__), #function, (ret_why), (why_size))

#endif
