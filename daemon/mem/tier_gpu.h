/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier_gpu: segments in the memory of one GPU, which no context of this process ever sees.
 * Thread: any. Locks: none, a counter. Blocks: _init for a fifth of a second, while libcuda looks at the machine.
 * Errors: negative errno, of _init with a text that says why there is no such tier.
 */
#ifndef KVGATE_DAEMON_MEM_TIER_GPU_H
#define KVGATE_DAEMON_MEM_TIER_GPU_H

#include <stddef.h>

#include "daemon/mem/tier.h"

#define TIER_GPU_NAME 96
#define TIER_GPU_TEXT 256 /* room for any reason */
#define TIER_GPU_UUID 16
#define TIER_GPUS_MAX 16 /* of one machine */

struct gpu_driver;

/* One device. Give &g->ops to a pool; it stays where it is as long as the pool lives. */
struct tier_gpu {
	struct tier_ops ops;
	const struct gpu_driver *driver;
	int ordinal;
	uint8_t uuid[TIER_GPU_UUID];
	char name[TIER_GPU_NAME];
	uint64_t bytes;        /* that the device has */
	uint64_t granularity;  /* of a segment's size */
	uint64_t limit;        /* bytes of segments; more is -ENOSPC */
	_Atomic uint64_t open; /* bytes of segments that are */
};

/* libcuda, once for all devices. *ret_devices: how many it sees. */
int tier_gpu_open_driver(const char *library, struct gpu_driver **ret, int *ret_devices,
	char *ret_why, size_t why_size);
struct gpu_driver *tier_gpu_close_driver(struct gpu_driver *d);

int tier_gpu_init(struct tier_gpu *g, const struct gpu_driver *d, int ordinal, uint64_t limit,
	char *ret_why, size_t why_size);

#endif
