/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/gpu/rig.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/figure.h"

#define SKIP 77

void rig_die(const char *what, ...)
{
	va_list ap;

	va_start(ap, what);
	vfprintf(stderr, what, ap);
	va_end(ap);
	fputc('\n', stderr);
	exit(1);
}

void rig_check(const struct gpu_driver *d, CUresult result, const char *function, const char *file,
	int line)
{
	char why[GPU_WHY_BYTES];

	if (gpu_error(d, result, function, why, sizeof(why)) < 0)
		rig_die("%s:%d: %s", file, line, why);
}

void rig_init(struct rig *r)
{
	char why[GPU_WHY_BYTES];

	*r = (struct rig){0};
	if (gpu_driver_open(&r->driver, why, sizeof(why)) < 0 ||
		gpu_device_open(r->driver, 0, &r->device, why, sizeof(why)) < 0) {
		printf("no GPU to test on: %s\n", why);
		exit(SKIP);
	}
	rig_cu(r, cuStreamCreate, &r->stream, CU_STREAM_NON_BLOCKING);
}

void rig_fini(struct rig *r)
{
	rig_sync(r);
	rig_cu(r, cuStreamDestroy, r->stream);
	r->device = gpu_device_close(r->device);
	r->driver = gpu_driver_close(r->driver);
}

CUdeviceptr rig_alloc(struct rig *r, size_t bytes)
{
	CUdeviceptr at;

	rig_cu(r, cuMemAlloc, &at, bytes ? bytes : 1);
	rig_poison(r, at, bytes);
	return at;
}

void rig_poison(struct rig *r, CUdeviceptr at, size_t bytes)
{
	if (bytes)
		rig_cu(r, cuMemsetD8Async, at, RIG_POISON, bytes, r->stream);
}

CUdeviceptr rig_upload(struct rig *r, const void *data, size_t bytes)
{
	const CUdeviceptr at = rig_alloc(r, bytes);

	rig_sync(r);
	if (bytes)
		rig_cu(r, cuMemcpyHtoD, at, data, bytes);
	return at;
}

void rig_download(struct rig *r, void *to, CUdeviceptr from, size_t bytes)
{
	rig_sync(r);
	if (bytes)
		rig_cu(r, cuMemcpyDtoH, to, from, bytes);
}

void rig_free(struct rig *r, CUdeviceptr at)
{
	rig_sync(r);
	rig_cu(r, cuMemFree, at);
}

void rig_sync(struct rig *r)
{
	rig_cu(r, cuStreamSynchronize, r->stream);
}

struct gpu_module *rig_module(struct rig *r, const char *image)
{
	char why[GPU_WHY_BYTES];
	struct gpu_module *m;

	if (gpu_module_load(r->device, image, &m, why, sizeof(why)) < 0)
		rig_die("%s: %s", image, why);
	return m;
}

CUfunction rig_function(struct gpu_module *m, const char *name, uint32_t shared)
{
	char why[GPU_WHY_BYTES];
	CUfunction f;

	if (gpu_module_function(m, name, shared, &f, why, sizeof(why)) < 0)
		rig_die("%s: %s", name, why);
	return f;
}

void rig_launch(struct rig *r, const struct gpu_launch *l, const void *args)
{
	char why[GPU_WHY_BYTES];

	if (gpu_launch(r->device, l, args, why, sizeof(why)) < 0)
		rig_die("%s", why);
}

double rig_time(struct rig *r, unsigned n, void (*work)(void *), void (*before)(void *), void *arg)
{
	double us[n];
	CUevent start, end;

	rig_cu(r, cuEventCreate, &start, CU_EVENT_DEFAULT);
	rig_cu(r, cuEventCreate, &end, CU_EVENT_DEFAULT);
	work(arg); /* code and addresses are there from here on */
	for (unsigned i = 0; i < n; i++) {
		float ms;

		if (before)
			before(arg);
		rig_cu(r, cuEventRecord, start, r->stream);
		work(arg);
		rig_cu(r, cuEventRecord, end, r->stream);
		rig_cu(r, cuEventSynchronize, end);
		rig_cu(r, cuEventElapsedTime, &ms, start, end);
		us[i] = ms * 1e3;
	}
	rig_cu(r, cuEventDestroy, start);
	rig_cu(r, cuEventDestroy, end);
	return figure_median(us, n);
}

struct copy {
	struct rig *rig;
	CUdeviceptr from, to;
	size_t bytes;
};

static void copy(void *arg)
{
	const struct copy *c = arg;

	rig_cu(c->rig, cuMemcpyAsync, c->to, c->from, c->bytes, c->rig->stream);
}

double rig_copy_GBps(struct rig *r)
{
	struct copy c = {.rig = r, .bytes = (size_t)4 << 30};
	double us;

	c.from = rig_alloc(r, c.bytes);
	c.to = rig_alloc(r, c.bytes);
	us = rig_time(r, 20, copy, NULL, &c);
	rig_free(r, c.from);
	rig_free(r, c.to);
	return 2.0 * (double)c.bytes / us * 1e-3;
}
