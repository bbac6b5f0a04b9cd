/* SPDX-License-Identifier: Apache-2.0 */
/*
 * create:	cuMemCreate -> export -> release		the descriptor holds the memory
 * map:		import -> reserve -> map -> set access -> release	the mapping holds it
 *
 * Steps that are done are undone from the last one on; nobody but us knows the address before it is returned.
 */
#include "gpu/vmm.h"

#include "gpu/table.h"

static CUmemAllocationProp properties(int ordinal)
{
	return (CUmemAllocationProp){
		.type = CU_MEM_ALLOCATION_TYPE_PINNED,
		.requestedHandleTypes = CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR,
		.location = {.type = CU_MEM_LOCATION_TYPE_DEVICE, .id = ordinal},
	};
}

int gpu_vmm_create(const struct gpu_driver *d, int ordinal, uint64_t bytes, int *ret_fd,
	char *ret_why, size_t why_size)
{
	const CUmemAllocationProp prop = properties(ordinal);
	CUmemGenericAllocationHandle handle;
	int fd = -1, r;

	r = cu(d, ret_why, why_size, cuMemCreate, &handle, bytes, &prop, 0);
	if (r < 0)
		return r;
	r = cu(d, ret_why, why_size, cuMemExportToShareableHandle, &fd, handle,
		CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR, 0);
	d->cuMemRelease(handle);
	if (r == 0)
		*ret_fd = fd;
	return r;
}

static int map_at(struct gpu_device *dev, CUdeviceptr at, uint64_t bytes,
	CUmemGenericAllocationHandle handle, bool writable, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(dev);
	const CUmemAccessDesc access = {
		.location = properties(gpu_device_info(dev)->ordinal).location,
		.flags = writable ? CU_MEM_ACCESS_FLAGS_PROT_READWRITE
				  : CU_MEM_ACCESS_FLAGS_PROT_READ,
	};
	int r = cu(d, ret_why, why_size, cuMemMap, at, bytes, 0, handle, 0);

	if (r < 0)
		return r;
	r = cu(d, ret_why, why_size, cuMemSetAccess, at, bytes, &access, 1);
	if (r < 0)
		d->cuMemUnmap(at, bytes);
	return r;
}

int gpu_vmm_map(struct gpu_device *dev, int fd, uint64_t bytes, bool writable, uint64_t *ret,
	char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(dev);
	CUmemGenericAllocationHandle handle;
	CUdeviceptr at;
	int r;

	r = cu(d, ret_why, why_size, cuMemImportFromShareableHandle, &handle, (void *)(uintptr_t)fd,
		CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR);
	if (r < 0)
		return r;
	r = cu(d, ret_why, why_size, cuMemAddressReserve, &at, bytes, 0, 0, 0);
	if (r == 0) {
		r = map_at(dev, at, bytes, handle, writable, ret_why, why_size);
		if (r < 0)
			d->cuMemAddressFree(at, bytes);
	}
	d->cuMemRelease(handle);
	if (r == 0)
		*ret = at;
	return r;
}

int gpu_vmm_unmap(
	struct gpu_device *dev, uint64_t address, uint64_t bytes, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(dev);
	const int r = cu(d, ret_why, why_size, cuMemUnmap, address, bytes);

	return r < 0 ? r : cu(d, ret_why, why_size, cuMemAddressFree, address, bytes);
}

int gpu_host_map(struct gpu_device *dev, void *at, uint64_t bytes, bool writable, uint64_t *ret,
	char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(dev);
	CUdeviceptr address;
	int r;

	r = cu(d, ret_why, why_size, cuMemHostRegister, at, bytes,
		CU_MEMHOSTREGISTER_DEVICEMAP | CU_MEMHOSTREGISTER_PORTABLE |
			(writable ? 0 : CU_MEMHOSTREGISTER_READ_ONLY));
	if (r < 0)
		return r;
	r = cu(d, ret_why, why_size, cuMemHostGetDevicePointer, &address, at, 0);
	if (r < 0)
		d->cuMemHostUnregister(at);
	else
		*ret = address;
	return r;
}

int gpu_host_unmap(struct gpu_device *dev, void *at, char *ret_why, size_t why_size)
{
	return cu(gpu_device_driver(dev), ret_why, why_size, cuMemHostUnregister, at);
}
