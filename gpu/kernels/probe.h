/* SPDX-License-Identifier: Apache-2.0 */
/*
 * probe: what the smallest kernel takes; it tells a device that runs our code from one that only loads it.
 * Thread: any. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_GPU_KERNELS_PROBE_H
#define KVGATE_GPU_KERNELS_PROBE_H

#include <stdint.h>

/* Writes base + i to out[i], i < n. */
struct probe_args {
	uint64_t out; /* u32 [n] */
	uint32_t n;
	uint32_t base;
};

#endif
