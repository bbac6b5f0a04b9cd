/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each gpu/kernels/NAME.cu is compiled to a fatbin - machine code for the architectures we know, PTX for those that
 * come - and lies in the program between gpu_image_NAME and gpu_image_NAME_end, where libcuda picks what fits the
 * device. images.def is made by the build: IMAGE(NAME) for each.
 */
#include "gpu/module.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates/why.h"
#include "gpu/table.h"

struct gpu_module {
	struct gpu_device *device;
	CUmodule module;
};

#define IMAGE(name) extern const char gpu_image_##name[];
#include "images.def"
#undef IMAGE

static const struct {
	const char *name;
	const void *data;
} images[] = {
#define IMAGE(name) {#name, gpu_image_##name},
#include "images.def"
#undef IMAGE
};

static const void *find_image(const char *name)
{
	for (size_t i = 0; i < sizeof(images) / sizeof(images[0]); i++)
		if (!strcmp(images[i].name, name))
			return images[i].data;
	return NULL;
}

int gpu_module_load(struct gpu_device *dev, const char *image, struct gpu_module **ret,
	char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(dev);
	const void *data = find_image(image);
	struct gpu_module *m;
	int r;

	if (!data)
		return why(ret_why, why_size, -ENOENT, "there are no kernels named %s built in",
			image);
	m = calloc(1, sizeof(*m));
	if (!m)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	m->device = dev;
	r = cu(d, ret_why, why_size, cuModuleLoadData, &m->module, data);
	if (r < 0) {
		free(m);
		return r;
	}
	*ret = m;
	return 0;
}

struct gpu_module *gpu_module_free(struct gpu_module *m)
{
	if (m)
		gpu_device_driver(m->device)->cuModuleUnload(m->module);
	free(m);
	return NULL;
}

int gpu_module_function(struct gpu_module *m, const char *name, uint32_t shared,
	struct CUfunc_st **ret, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(m->device);
	CUfunction f;
	int r;

	r = cu(d, ret_why, why_size, cuModuleGetFunction, &f, m->module, name);
	if (r < 0)
		return r;
	/*
	 * A multiprocessor that has to divide its memory otherwise for the next kernel waits until the one before is
	 * done with it: all have the same, the most for shared memory.
	 */
	r = cu(d, ret_why, why_size, cuFuncSetAttribute, f,
		CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100);
	if (r < 0)
		return r;
	if (shared > 48 * 1024) { /* more only if asked for before */
		r = cu(d, ret_why, why_size, cuFuncSetAttribute, f,
			CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (int)shared);
		if (r < 0)
			return r;
	}
	*ret = f;
	return 0;
}

static uint32_t at_least_1(uint32_t n)
{
	return n ? n : 1;
}

int gpu_launch(struct gpu_device *dev, const struct gpu_launch *l, const void *args, char *ret_why,
	size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(dev);
	void *parameters[] = {(void *)(uintptr_t)args};

	return cu(d, ret_why, why_size, cuLaunchKernel, l->function, at_least_1(l->grid[0]),
		at_least_1(l->grid[1]), at_least_1(l->grid[2]), at_least_1(l->block[0]),
		at_least_1(l->block[1]), at_least_1(l->block[2]), l->shared, l->stream, parameters,
		NULL);
}
