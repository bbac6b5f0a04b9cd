/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libcuda comes with the driver of the machine, not with the toolkit, so a program that links to it starts only where
 * there is a GPU. Opened by name it may be missing, and that is an answer like any other: the daemon goes on without
 * a GPU tier and can say which of these it was:
 *
 *	no library        -ENOENT      the driver is not installed, or not visible in this container
 *	a name is missing -EOPNOTSUPP  older than what we were built against
 *	cuInit fails      -ENODEV      no device, or one the kernel's driver has given up
 *	version           -EOPNOTSUPP  it can load no code of the toolkit that compiled the kernels
 *
 * Code of CUDA 13.x runs on every driver that can serve 13.0: only major versions are compared.
 */
#include "gpu/table.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>

#include "gates/why.h"

#define TEXT_OF(name) #name
#define TEXT(name)    TEXT_OF(name) /* as <cuda.h> turned it */

int gpu_error(const struct gpu_driver *d, CUresult result, const char *function, char *ret_why,
	size_t why_size)
{
	static const struct {
		CUresult result;
		int error;
	} known[] = {
		{CUDA_ERROR_OUT_OF_MEMORY, -ENOMEM},
		{CUDA_ERROR_INVALID_VALUE, -EINVAL},
		{CUDA_ERROR_NO_DEVICE, -ENODEV},
		{CUDA_ERROR_INVALID_DEVICE, -ENODEV},
		{CUDA_ERROR_SYSTEM_NOT_READY, -ENODEV},
		{CUDA_ERROR_SYSTEM_DRIVER_MISMATCH, -ENODEV},
		{CUDA_ERROR_DEVICE_UNAVAILABLE, -ENODEV},
		{CUDA_ERROR_NOT_SUPPORTED, -EOPNOTSUPP},
		{CUDA_ERROR_NOT_PERMITTED, -EPERM},
		{CUDA_ERROR_OPERATING_SYSTEM, -EPERM},
		{CUDA_ERROR_INVALID_HANDLE, -EBADF},
		{CUDA_ERROR_NOT_FOUND, -ENOENT},
		{CUDA_ERROR_NOT_READY, -EAGAIN},
		{CUDA_ERROR_NO_BINARY_FOR_GPU, -ENOEXEC},
		{CUDA_ERROR_INVALID_IMAGE, -ENOEXEC},
		{CUDA_ERROR_UNSUPPORTED_PTX_VERSION, -ENOEXEC},
		{CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED, -EEXIST},
	};
	const char *name = NULL, *prose = NULL;
	int error = -EIO;

	if (result == CUDA_SUCCESS)
		return 0;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (known[i].result == result)
			error = known[i].error;
	if (d->cuGetErrorName(result, &name) != CUDA_SUCCESS || !name)
		name = "an error it has no name for";
	if (d->cuGetErrorString(result, &prose) != CUDA_SUCCESS || !prose)
		prose = "unknown";
	return why(ret_why, why_size, error, "%s: %s (%d): %s", function, name, (int)result, prose);
}

static int bind_functions(struct gpu_driver *d, char *ret_why, size_t why_size)
{
	const struct {
		const char *name;
		void *at;
	} functions[] = {
#define FUNCTION(name) {TEXT(name), &d->name},
#include "gpu/functions.def"
#undef FUNCTION
	};

	for (size_t i = 0; i < sizeof(functions) / sizeof(functions[0]); i++) {
		void *const symbol = dlsym(d->library, functions[i].name);

		if (!symbol)
			return why(ret_why, why_size, -EOPNOTSUPP,
				"the NVIDIA driver is too old: its libcuda has no %s; CUDA %d.x is "
				"needed",
				functions[i].name, CUDA_VERSION / 1000);
		__builtin_memcpy(functions[i].at, &symbol, sizeof(symbol));
	}
	return 0;
}

static int start(struct gpu_driver *d, char *ret_why, size_t why_size)
{
	int devices = 0, r;

	r = cu(d, ret_why, why_size, cuDriverGetVersion, &d->version);
	if (r < 0)
		return r;
	if (d->version / 1000 < CUDA_VERSION / 1000)
		return why(ret_why, why_size, -EOPNOTSUPP,
			"the NVIDIA driver is too old: it serves CUDA %d.%d, and %d.0 is needed",
			d->version / 1000, d->version % 1000 / 10, CUDA_VERSION / 1000);
	r = cu(d, ret_why, why_size, cuInit, 0);
	if (r < 0)
		return r;
	r = cu(d, ret_why, why_size, cuDeviceGetCount, &devices);
	if (r < 0)
		return r;
	if (devices == 0)
		return why(
			ret_why, why_size, -ENODEV, "no NVIDIA device is visible to this process");
	return 0;
}

int gpu_driver_open(struct gpu_driver **ret, char *ret_why, size_t why_size)
{
	return gpu_driver_open_as(GPU_LIBRARY, ret, ret_why, why_size);
}

int gpu_driver_open_as(const char *library, struct gpu_driver **ret, char *ret_why, size_t why_size)
{
	struct gpu_driver *d = calloc(1, sizeof(*d));
	int r;

	if (!d)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	d->library = dlopen(library, RTLD_NOW | RTLD_LOCAL);
	if (!d->library) {
		free(d);
		return why(ret_why, why_size, -ENOENT, "no NVIDIA driver: %s", dlerror());
	}
	r = bind_functions(d, ret_why, why_size);
	if (r == 0)
		r = start(d, ret_why, why_size);
	if (r < 0) {
		gpu_driver_close(d);
		return r;
	}
	*ret = d;
	return 0;
}

/* libcuda stays loaded: it has threads and handlers at exit that outlive any handle to it. */
struct gpu_driver *gpu_driver_close(struct gpu_driver *d)
{
	free(d);
	return NULL;
}
