/* SPDX-License-Identifier: Apache-2.0 */
/*
 * driver: libcuda, opened at run time.
 * Thread: any; the table is written once, by _open. Locks: none of its own, libcuda has some. Blocks:
 * gpu_driver_open() for a fifth of a second, while libcuda looks at the machine. Errors: negative errno with a
 * text that says why there is no GPU.
 *
 * This header needs nothing of CUDA. Who calls libcuda includes gpu/table.h, and is built only where <cuda.h> is.
 */
#ifndef KVGATE_GPU_DRIVER_H
#define KVGATE_GPU_DRIVER_H

#include <stddef.h>

#define GPU_WHY_BYTES 256 /* room for any of these texts */
#define GPU_LIBRARY   "libcuda.so.1"

struct gpu_driver;

/*
 * -EOPNOTSUPP: built without CUDA, or the driver is too old; -ENOENT: no libcuda here; -ENODEV: no device, or
 * none that works; else as gpu_error() has it. Creates no context and takes no memory on any device.
 */
int gpu_driver_open(struct gpu_driver **ret, char *ret_why, size_t why_size);
/* The same of a libcuda that goes by another name, or lies where the loader does not look. */
int gpu_driver_open_as(
	const char *library, struct gpu_driver **ret, char *ret_why, size_t why_size);
/* Everything made with it is gone before. Takes NULL. */
struct gpu_driver *gpu_driver_close(struct gpu_driver *d);

#endif
