/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmm: memory of a device behind a file descriptor; and host memory that a device can reach.
 * Thread: any that has entered the device; gpu_vmm_create() any. Locks: none. Blocks: while memory is pinned.
 * Errors: negative errno with a text.
 *
 * The memory lives as long as somebody holds a descriptor or a mapping of it. Only who created it can export, so the
 * descriptor is made at once and is what is kept.
 */
#ifndef KVGATE_GPU_VMM_H
#define KVGATE_GPU_VMM_H

#include <stdbool.h>
#include <stdint.h>

#include "gpu/device.h"

/* Needs no context. `bytes` is a multiple of gpu_device_info.granularity. -ENOMEM: the device has no more. */
int gpu_vmm_create(const struct gpu_driver *d, int ordinal, uint64_t bytes, int *ret_fd,
	char *ret_why, size_t why_size);
/* The caller keeps the descriptor. Not writable: writes of kernels and copies fail, whoever asks for them. */
int gpu_vmm_map(struct gpu_device *dev, int fd, uint64_t bytes, bool writable, uint64_t *ret,
	char *ret_why, size_t why_size);
int gpu_vmm_unmap(
	struct gpu_device *dev, uint64_t address, uint64_t bytes, char *ret_why, size_t why_size);

/* Pins whole pages of host memory, say of a memfd's mapping; not writable where the mapping is not. */
int gpu_host_map(struct gpu_device *dev, void *at, uint64_t bytes, bool writable, uint64_t *ret,
	char *ret_why, size_t why_size);
int gpu_host_unmap(struct gpu_device *dev, void *at, char *ret_why, size_t why_size);

#endif
