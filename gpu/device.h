/* SPDX-License-Identifier: Apache-2.0 */
/*
 * device: which GPUs there are, whether one will do, and its context.
 * Thread: any; gpu_device_enter() makes the context that of the calling thread. Locks: none. Blocks:
 * gpu_device_open() for the tenths of a second a context takes. Errors: negative errno with a text.
 */
#ifndef KVGATE_GPU_DEVICE_H
#define KVGATE_GPU_DEVICE_H

#include <stdint.h>

#include "gpu/driver.h"

struct gpu_device;

struct gpu_device_info {
	int ordinal; /* among those visible to this process; the uuid is the same for all */
	uint8_t uuid[16];
	char name[96];
	uint64_t bytes;
	uint64_t granularity; /* of VMM allocations that can be exported */
	uint32_t major, minor;
	uint32_t processors; /* multiprocessors */
	uint32_t shared_max; /* bytes of shared memory a block can ask for */
};

int gpu_device_count(const struct gpu_driver *d);
/*
 * Needs no context. -EOPNOTSUPP: a MIG slice, before compute capability 8.0, or without memory that can be mapped
 * and exported as a file descriptor.
 */
int gpu_device_query(const struct gpu_driver *d, int ordinal, struct gpu_device_info *ret,
	char *ret_why, size_t why_size);

/* Retains the primary context, the one that the process' other users of CUDA have, and enters it. */
int gpu_device_open(const struct gpu_driver *d, int ordinal, struct gpu_device **ret, char *ret_why,
	size_t why_size);
/*
 * The device of a context that somebody else made and keeps: of `context`, a CUcontext, or of the one that is current on this
 * thread when it is NULL. -ENODEV: there is none.
 */
int gpu_device_here(const struct gpu_driver *d, void *context, struct gpu_device **ret,
	char *ret_why, size_t why_size);
struct gpu_device *gpu_device_close(struct gpu_device *dev);
int gpu_device_enter(struct gpu_device *dev, char *ret_why, size_t why_size);
const struct gpu_device_info *gpu_device_info(const struct gpu_device *dev);
const struct gpu_driver *gpu_device_driver(const struct gpu_device *dev);

#endif
