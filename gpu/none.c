/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same functions where CUDA was not there to build against: none of what they take can exist, but for the name
 * of the reason.
 */
#include <assert.h>
#include <errno.h>

#include "gates/why.h"
#include "gpu/module.h"

int gpu_driver_open(struct gpu_driver **ret, char *ret_why, size_t why_size)
{
	(void)ret;
	return why(ret_why, why_size, -EOPNOTSUPP, "built without CUDA (" KVG_GPU_WHY_NOT ")");
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
