/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same functions where CUDA was not there to build against: none of what they take can exist, but for the name
 * of the reason.
 */
#include <assert.h>
#include <errno.h>

#include "gates/why.h"
#include "gpu/module.h"
#include "gpu/vmm.h"

int gpu_driver_open(struct gpu_driver **ret, char *ret_why, size_t why_size)
{
	(void)ret;
	return why(ret_why, why_size, -EOPNOTSUPP, "built without CUDA (" KVG_GPU_WHY_NOT ")");
}

int gpu_driver_open_as(const char *library, struct gpu_driver **ret, char *ret_why, size_t why_size)
{
	(void)library;
	return gpu_driver_open(ret, ret_why, why_size);
}

struct gpu_driver *gpu_driver_close(struct gpu_driver *d)
{
	assert(!d);
	return NULL;
}

int gpu_device_count(const struct gpu_driver *d)
{
	(void)d;
	return 0;
}

int gpu_device_query(const struct gpu_driver *d, int ordinal, struct gpu_device_info *ret,
	char *ret_why, size_t why_size)
{
	(void)d, (void)ordinal, (void)ret;
	return why(ret_why, why_size, -ENODEV, "built without CUDA");
}

int gpu_device_open(const struct gpu_driver *d, int ordinal, struct gpu_device **ret, char *ret_why,
	size_t why_size)
{
	(void)d, (void)ordinal, (void)ret;
	return why(ret_why, why_size, -ENODEV, "built without CUDA");
}

struct gpu_device *gpu_device_close(struct gpu_device *dev)
{
	assert(!dev);
	return NULL;
}

int gpu_device_here(const struct gpu_driver *d, void *context, struct gpu_device **ret,
	char *ret_why, size_t why_size)
{
	(void)d, (void)context, (void)ret;
	return why(ret_why, why_size, -ENODEV, "built without CUDA");
}

const struct gpu_device_info *gpu_device_info(const struct gpu_device *dev)
{
	(void)dev;
	return NULL;
}

int gpu_vmm_create(const struct gpu_driver *d, int ordinal, uint64_t bytes, int *ret_fd,
	char *ret_why, size_t why_size)
{
	(void)d, (void)ordinal, (void)bytes, (void)ret_fd;
	return why(ret_why, why_size, -ENODEV, "built without CUDA");
}

int gpu_vmm_map(struct gpu_device *dev, int fd, uint64_t bytes, bool writable, uint64_t *ret,
	char *ret_why, size_t why_size)
{
	(void)dev, (void)fd, (void)bytes, (void)writable, (void)ret;
	return why(ret_why, why_size, -ENODEV, "built without CUDA");
}

int gpu_vmm_unmap(
	struct gpu_device *dev, uint64_t address, uint64_t bytes, char *ret_why, size_t why_size)
{
	(void)dev, (void)address, (void)bytes;
	return why(ret_why, why_size, -ENODEV, "built without CUDA");
}
