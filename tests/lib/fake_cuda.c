/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcuda without a GPU, for machines that have none: what a process sees of a driver, on the processor. Memory of the
 * device is a memfd and its address one of this process, so a test looks at it as it is; streams do everything at once; the
 * kernels that move pages are their twin, and there are no others. A mapping that is read-only is so by the processor's own
 * means.
 *
 *	KVGATE_FAKE_CUDA_DEVICES	how many there are; 1
 *	KVGATE_FAKE_CUDA_FAIL		name of a function that fails with CUDA_ERROR_UNKNOWN, from the start
 *	KVGATE_FAKE_CUDA_DIE		the n-th launch of this process does half its work, and then the process is gone
 *	KVGATE_FAKE_CUDA_SLOW		microseconds that a launch takes
 *
 * What it lacks of gpu/functions.def is in fake_cuda_rest.c.
 */
#include <cuda.h>

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gpu/kernels/move.h"

#pragma GCC visibility push(default)

#define NAME "kvgate-fake-vmm"

struct CUctx_st {
	int device;
};

struct allocation {
	int fd;
	size_t bytes;
};

static struct CUctx_st contexts[16];
static CUcontext current; /* of every thread: nobody here has two */

static long setting(const char *name, long otherwise)
{
	const char *text = getenv(name);

	return text && *text ? atol(text) : otherwise;
}

static bool fails(const char *function)
{
	const char *name = getenv("KVGATE_FAKE_CUDA_FAIL");

	return name && !strcmp(name, function);
}

static int n_devices(void)
{
	const long n = setting("KVGATE_FAKE_CUDA_DEVICES", 1);

	return n > 16 ? 16 : (int)n;
}

/* ---- the driver and its devices ---- */

CUresult cuInit(unsigned flags)
{
	(void)flags;
	return fails("cuInit") ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuDriverGetVersion(int *version)
{
	*version = CUDA_VERSION;
	return CUDA_SUCCESS;
}

CUresult cuGetErrorName(CUresult error, const char **name)
{
	static char text[32];

	snprintf(text, sizeof(text), "FAKE_ERROR_%d", (int)error);
	*name = text;
	return CUDA_SUCCESS;
}

CUresult cuGetErrorString(CUresult error, const char **text)
{
	(void)error;
	*text = "of a driver that is not real";
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetCount(int *count)
{
	*count = n_devices();
	return CUDA_SUCCESS;
}

CUresult cuDeviceGet(CUdevice *device, int ordinal)
{
	if (ordinal < 0 || ordinal >= n_devices())
		return CUDA_ERROR_INVALID_DEVICE;
	*device = ordinal;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetName(char *name, int len, CUdevice device)
{
	snprintf(name, (size_t)len, "Fake GPU %d", device);
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetUuid(CUuuid *uuid, CUdevice device)
{
	memset(uuid->bytes, 0xfa, sizeof(uuid->bytes));
	uuid->bytes[15] = (char)device;
	return CUDA_SUCCESS;
}

CUresult cuDeviceTotalMem(size_t *bytes, CUdevice device)
{
	(void)device;
	*bytes = 8ul << 30;
	return CUDA_SUCCESS;
}

CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute what, CUdevice device)
{
	(void)device;
	switch ((int)what) {
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR:
		*value = 8;
		break;
	case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR:
		*value = 0;
		break;
	default:
		*value = 1;
	}
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device)
{
	if (fails("cuDevicePrimaryCtxRetain"))
		return CUDA_ERROR_UNKNOWN;
	contexts[device].device = device;
	*context = &contexts[device];
	return CUDA_SUCCESS;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
	(void)device;
	return CUDA_SUCCESS;
}

CUresult cuCtxSetCurrent(CUcontext context)
{
	current = context;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetCurrent(CUcontext *context)
{
	*context = current;
	return CUDA_SUCCESS;
}

CUresult cuCtxGetDevice(CUdevice *device)
{
	if (!current)
		return CUDA_ERROR_INVALID_CONTEXT;
	*device = current->device;
	return CUDA_SUCCESS;
}

CUresult cuCtxSynchronize(void)
{
	return CUDA_SUCCESS;
}

/* ---- memory behind descriptors ---- */

CUresult cuMemGetAllocationGranularity(size_t *granularity, const CUmemAllocationProp *prop,
	CUmemAllocationGranularity_flags option)
{
	(void)prop, (void)option;
	*granularity = 2ul << 20;
	return CUDA_SUCCESS;
}

static CUresult allocation_new(int fd, size_t bytes, CUmemGenericAllocationHandle *ret)
{
	struct allocation *a = malloc(sizeof(*a));

	if (!a || fd < 0) {
		free(a);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*a = (struct allocation){.fd = fd, .bytes = bytes};
	*ret = (CUmemGenericAllocationHandle)(uintptr_t)a;
	return CUDA_SUCCESS;
}

static struct allocation *allocation(CUmemGenericAllocationHandle handle)
{
	return (struct allocation *)(uintptr_t)handle;
}

/* Full of what nobody put there, as memory of a device is. */
CUresult cuMemCreate(CUmemGenericAllocationHandle *ret, size_t bytes,
	const CUmemAllocationProp *prop, unsigned long long flags)
{
	const int fd = memfd_create(NAME, MFD_CLOEXEC);
	uint8_t poison[4096];

	(void)flags;
	if (fails("cuMemCreate") || prop->location.id >= n_devices() || fd < 0 ||
		ftruncate(fd, (off_t)bytes) < 0) {
		if (fd >= 0)
			close(fd);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	memset(poison, 0xdb, sizeof(poison));
	if (pwrite(fd, poison, sizeof(poison), 0) < 0)
		return CUDA_ERROR_UNKNOWN;
	return allocation_new(fd, bytes, ret);
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	close(allocation(handle)->fd);
	free(allocation(handle));
	return CUDA_SUCCESS;
}

CUresult cuMemExportToShareableHandle(void *ret, CUmemGenericAllocationHandle handle,
	CUmemAllocationHandleType type, unsigned long long flags)
{
	int fd;

	(void)type, (void)flags;
	if (fails("cuMemExportToShareableHandle"))
		return CUDA_ERROR_NOT_SUPPORTED;
	fd = fcntl(allocation(handle)->fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	*(int *)ret = fd;
	return CUDA_SUCCESS;
}

CUresult cuMemImportFromShareableHandle(
	CUmemGenericAllocationHandle *ret, void *os, CUmemAllocationHandleType type)
{
	const int fd = (int)(uintptr_t)os;
	char link[64], target[64] = "";
	struct stat st;

	(void)type;
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	if (readlink(link, target, sizeof(target) - 1) < 0 || !strstr(target, NAME) ||
		fstat(fd, &st) < 0)
		return CUDA_ERROR_INVALID_VALUE;
	return allocation_new(fcntl(fd, F_DUPFD_CLOEXEC, 0), (size_t)st.st_size, ret);
}

CUresult cuMemAddressReserve(
	CUdeviceptr *ret, size_t bytes, size_t align, CUdeviceptr at, unsigned long long flags)
{
	void *p = mmap(NULL, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	(void)align, (void)at, (void)flags;
	if (p == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*ret = (CUdeviceptr)(uintptr_t)p;
	return CUDA_SUCCESS;
}

CUresult cuMemAddressFree(CUdeviceptr at, size_t bytes)
{
	munmap((void *)(uintptr_t)at, bytes);
	return CUDA_SUCCESS;
}

static CUresult map_fixed(CUdeviceptr at, size_t bytes, int flags, int fd)
{
	return mmap((void *)(uintptr_t)at, bytes, PROT_NONE, flags | MAP_FIXED, fd, 0) == MAP_FAILED
		? CUDA_ERROR_INVALID_VALUE
		: CUDA_SUCCESS;
}

CUresult cuMemMap(CUdeviceptr at, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle,
	unsigned long long flags)
{
	(void)flags;
	if (offset || bytes != allocation(handle)->bytes)
		return CUDA_ERROR_INVALID_VALUE;
	return map_fixed(at, bytes, MAP_SHARED, allocation(handle)->fd);
}

CUresult cuMemUnmap(CUdeviceptr at, size_t bytes)
{
	return map_fixed(at, bytes, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
}

CUresult cuMemSetAccess(CUdeviceptr at, size_t bytes, const CUmemAccessDesc *access, size_t n)
{
	const int writable = access->flags == CU_MEM_ACCESS_FLAGS_PROT_READWRITE ? PROT_WRITE : 0;

	(void)n;
	return mprotect((void *)(uintptr_t)at, bytes, PROT_READ | writable) < 0
		? CUDA_ERROR_INVALID_VALUE
		: CUDA_SUCCESS;
}

/* ---- memory of the host ---- */

CUresult cuMemAllocHost(void **ret, size_t bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*ret = p;
	return CUDA_SUCCESS;
}

CUresult cuMemFreeHost(void *at)
{
	(void)at; /* its size is not known here; who frees it is about to end */
	return CUDA_SUCCESS;
}

CUresult cuMemHostRegister(void *at, size_t bytes, unsigned flags)
{
	(void)at, (void)bytes, (void)flags;
	return fails("cuMemHostRegister") ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuMemHostUnregister(void *at)
{
	(void)at;
	return CUDA_SUCCESS;
}

CUresult cuMemHostGetDevicePointer(CUdeviceptr *ret, void *at, unsigned flags)
{
	(void)flags;
	*ret = (CUdeviceptr)(uintptr_t)at;
	return CUDA_SUCCESS;
}

CUresult cuMemcpyDtoH(void *to, CUdeviceptr from, size_t n)
{
	memcpy(to, (const void *)(uintptr_t)from, n);
	return CUDA_SUCCESS;
}

CUresult cuMemsetD8Async(CUdeviceptr at, unsigned char value, size_t n, CUstream stream)
{
	(void)stream;
	memset((void *)(uintptr_t)at, value, n);
	return CUDA_SUCCESS;
}

/* ---- streams and kernels ---- */

CUresult cuStreamCreate(CUstream *ret, unsigned flags)
{
	(void)flags;
	*ret = (CUstream)(uintptr_t)1;
	return CUDA_SUCCESS;
}

CUresult cuStreamDestroy(CUstream stream)
{
	(void)stream;
	return CUDA_SUCCESS;
}

CUresult cuStreamSynchronize(CUstream stream)
{
	(void)stream;
	return fails("cuStreamSynchronize") ? CUDA_ERROR_UNKNOWN : CUDA_SUCCESS;
}

CUresult cuModuleLoadData(CUmodule *ret, const void *image)
{
	(void)image;
	*ret = (CUmodule)(uintptr_t)1;
	return CUDA_SUCCESS;
}

CUresult cuModuleUnload(CUmodule module)
{
	(void)module;
	return CUDA_SUCCESS;
}

CUresult cuModuleGetFunction(CUfunction *ret, CUmodule module, const char *name)
{
	(void)module;
	if (strncmp(name, "move_pages", 10))
		return CUDA_ERROR_NOT_FOUND;
	*ret = (CUfunction)(uintptr_t)move_twin;
	return CUDA_SUCCESS;
}

CUresult cuFuncSetAttribute(CUfunction f, CUfunction_attribute what, int value)
{
	(void)f, (void)what, (void)value;
	return CUDA_SUCCESS;
}

CUresult cuFuncGetAttribute(int *value, CUfunction_attribute what, CUfunction f)
{
	(void)f, (void)what;
	*value = 80; /* of the architecture that the code is for, which has no engine for bulk */
	return CUDA_SUCCESS;
}

CUresult cuLaunchKernel(CUfunction f, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
	unsigned by, unsigned bz, unsigned shared, CUstream stream, void **parameters, void **extra)
{
	static long launches;
	struct move_args args = *(const struct move_args *)parameters[0];

	(void)f, (void)gx, (void)gy, (void)gz, (void)bx, (void)by, (void)bz;
	(void)shared, (void)stream, (void)extra;
	usleep((useconds_t)setting("KVGATE_FAKE_CUDA_SLOW", 0));
	if (++launches == setting("KVGATE_FAKE_CUDA_DIE", 0)) {
		args.pages /= 2;
		move_twin(&args);
		kill(getpid(), SIGKILL);
	}
	move_twin(&args);
	return CUDA_SUCCESS;
}
