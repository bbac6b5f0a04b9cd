/* SPDX-License-Identifier: Apache-2.0 */
/* The driver's table, the device, the kernels that are built in: each refuses what it cannot do, with a text. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "gpu/kernels/probe.h"
#include "tests/gpu/rig.h"

#define N 1000u

static void expect(bool ok, const char *what)
{
	if (!ok)
		rig_die("%s", what);
}

static void test_device(struct rig *r)
{
	const struct gpu_device_info *info = gpu_device_info(r->device);
	struct gpu_device_info none = {.ordinal = -7};
	char why[GPU_WHY_BYTES] = "";

	printf("%s: capability %u.%u, %u multiprocessors, %.1f GiB, driver serves CUDA %d.%d\n",
		info->name, info->major, info->minor, info->processors,
		(double)info->bytes * 0x1p-30, r->driver->version / 1000,
		r->driver->version % 1000 / 10);
	expect(gpu_device_count(r->driver) >= 1, "there is a device and none is counted");
	expect(info->granularity >= 4096 && info->bytes && info->processors, "what a device is");
	expect(gpu_device_query(r->driver, 1000, &none, why, sizeof(why)) == -ENODEV &&
			strstr(why, "cuDeviceGet") && none.ordinal == -7,
		"a device that is not there is refused with a text, and nothing written");
}

static void test_module(struct rig *r)
{
	char why[GPU_WHY_BYTES] = "";
	struct gpu_module *m = NULL;
	CUfunction f = NULL;

	expect(gpu_module_load(r->device, "nothing", &m, why, sizeof(why)) == -ENOENT && !m &&
			strstr(why, "nothing"),
		"kernels that are not built in");
	m = rig_module(r, "probe");
	expect(gpu_module_function(m, "prob", 0, &f, why, sizeof(why)) == -ENOENT && !f &&
			strstr(why, "cuModuleGetFunction"),
		"a kernel of no such name");
	expect(gpu_module_function(m, "probe", 1 << 30, &f, why, sizeof(why)) == -EINVAL && !f,
		"more shared memory than there is");
	gpu_module_free(m);
}

static void test_launch(struct rig *r)
{
	static uint32_t got[N + 1];
	const CUdeviceptr out = rig_alloc(r, sizeof(got));
	struct gpu_module *m = rig_module(r, "probe");
	const struct probe_args args = {.out = out, .n = N, .base = 5};
	struct gpu_launch l = {.function = rig_function(m, "probe", 0),
		.stream = r->stream,
		.grid = {(N + 255) / 256},
		.block = {256}};
	char why[GPU_WHY_BYTES] = "";

	rig_launch(r, &l, &args);
	rig_download(r, got, out, sizeof(got));
	for (uint32_t i = 0; i < N; i++)
		expect(got[i] == i + 5, "what the kernel wrote");
	expect(got[N] == RIG_POISON * 0x01010101u, "and not behind the end");
	l.block[0] = 1 << 20;
	expect(gpu_launch(r->device, &l, &args, why, sizeof(why)) == -EINVAL &&
			strstr(why, "cuLaunchKernel"),
		"a block of too many threads");
	rig_free(r, out);
	gpu_module_free(m);
}

int main(void)
{
	struct rig r;

	rig_init(&r);
	test_device(&r);
	test_module(&r);
	test_launch(&r);
	rig_fini(&r);
	printf("ok\n");
	return 0;
}
