/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device is looked at without a context, which the daemon must not have, and refused with a reason. What it must
 * be able to do is what the tier is made of: memory that is created without an address, mapped, and exported as a
 * file descriptor. A MIG slice has a name with "MIG" in it and nothing else that tells it apart; its memory cannot be
 * shared with processes in other slices, and it is refused before somebody waits for that to work.
 */
#include "gpu/device.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gates/why.h"
#include "gpu/table.h"

struct gpu_device {
	const struct gpu_driver *driver;
	CUdevice device;
	CUcontext context;
	bool borrowed;
	struct gpu_device_info info;
};

int gpu_device_count(const struct gpu_driver *d)
{
	int n = 0;

	return d->cuDeviceGetCount(&n) == CUDA_SUCCESS ? n : 0;
}

static int attribute(const struct gpu_driver *d, CUdevice device, CUdevice_attribute what)
{
	int value = 0;

	return d->cuDeviceGetAttribute(&value, what, device) == CUDA_SUCCESS ? value : 0;
}

static int identify(const struct gpu_driver *d, CUdevice device, struct gpu_device_info *info,
	char *ret_why, size_t why_size)
{
	const CUmemAllocationProp prop = {
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = info->ordinal},
	};
	CUuuid uuid;
	size_t bytes, granularity;
	int r;

	r = cu(d, ret_why, why_size, cuDeviceGetName, info->name, sizeof(info->name), device);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuDeviceGetUuid, &uuid, device);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuDeviceTotalMem, &bytes, device);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuMemGetAllocationGranularity, &granularity, &prop,
			CU_MEM_ALLOC_GRANULARITY_MINIMUM);
	if (r < 0)
		return r;
	memcpy(info->uuid, uuid.bytes, sizeof(info->uuid));
	info->bytes = bytes;
	info->granularity = granularity;
	info->major = attribute(d, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
	info->minor = attribute(d, device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
	info->processors = attribute(d, device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
	info->shared_max =
		attribute(d, device, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
	return 0;
}

int gpu_device_query(const struct gpu_driver *d, int ordinal, struct gpu_device_info *ret,
	char *ret_why, size_t why_size)
{
	struct gpu_device_info info = {.ordinal = ordinal};
	CUdevice device;
	int r;

	r = cu(d, ret_why, why_size, cuDeviceGet, &device, ordinal);
	if (r < 0)
		return r;
	if (!attribute(d, device, CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED) ||
		!attribute(
			d, device, CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED))
		return why(ret_why, why_size, -EOPNOTSUPP,
			"device %d cannot export memory as a file descriptor", ordinal);
	r = identify(d, device, &info, ret_why, why_size);
	if (r < 0)
		return r;
	if (strstr(info.name, " MIG "))
		return why(ret_why, why_size, -EOPNOTSUPP,
			"device %d (%s) is a MIG slice: its memory cannot be shared", ordinal,
			info.name);
	if (info.major < 8)
		return why(ret_why, why_size, -EOPNOTSUPP,
			"device %d (%s) has compute capability %u.%u, and 8.0 is needed", ordinal,
			info.name, info.major, info.minor);
	*ret = info;
	return 0;
}

int gpu_device_open(const struct gpu_driver *d, int ordinal, struct gpu_device **ret, char *ret_why,
	size_t why_size)
{
	struct gpu_device *dev = calloc(1, sizeof(*dev));
	int r;

	if (!dev)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	dev->driver = d;
	r = gpu_device_query(d, ordinal, &dev->info, ret_why, why_size);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuDeviceGet, &dev->device, ordinal);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuDevicePrimaryCtxRetain, &dev->context, dev->device);
	if (r == 0)
		r = gpu_device_enter(dev, ret_why, why_size);
	if (r < 0) {
		gpu_device_close(dev);
		return r;
	}
	*ret = dev;
	return 0;
}

/* cuCtxGetDevice() tells of the current context only. */
static int device_of(struct gpu_device *dev, CUcontext current, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = dev->driver;
	int r;

	if (dev->context != current)
		r = cu(d, ret_why, why_size, cuCtxSetCurrent, dev->context);
	else
		r = 0;
	if (r == 0)
		r = cu(d, ret_why, why_size, cuCtxGetDevice, &dev->device);
	if (dev->context != current)
		d->cuCtxSetCurrent(current);
	return r;
}

int gpu_device_here(const struct gpu_driver *d, void *context, struct gpu_device **ret,
	char *ret_why, size_t why_size)
{
	struct gpu_device *dev;
	CUcontext current = NULL;
	int r;

	r = cu(d, ret_why, why_size, cuCtxGetCurrent, &current);
	if (r < 0)
		return r;
	if (!context && !current)
		return why(ret_why, why_size, -ENODEV, "no CUDA context is current on this thread");
	dev = calloc(1, sizeof(*dev));
	if (!dev)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	*dev = (struct gpu_device){
		.driver = d, .context = context ? context : current, .borrowed = true};
	r = device_of(dev, current, ret_why, why_size);
	if (r == 0) /* a CUdevice is its ordinal */
		r = gpu_device_query(d, dev->device, &dev->info, ret_why, why_size);
	if (r < 0) {
		free(dev);
		return r;
	}
	*ret = dev;
	return 0;
}

struct gpu_device *gpu_device_close(struct gpu_device *dev)
{
	if (dev && dev->context && !dev->borrowed)
		dev->driver->cuDevicePrimaryCtxRelease(dev->device);
	free(dev);
	return NULL;
}

int gpu_device_enter(struct gpu_device *dev, char *ret_why, size_t why_size)
{
	return cu(dev->driver, ret_why, why_size, cuCtxSetCurrent, dev->context);
}

const struct gpu_device_info *gpu_device_info(const struct gpu_device *dev)
{
	return &dev->info;
}

const struct gpu_driver *gpu_device_driver(const struct gpu_device *dev)
{
	return dev->driver;
}
