/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plan's lists and scratch lie in one allocation:
 *
 *	runs | tiles | items | counters | partial results
 *
 * Counters are zeroed once; kernels leave them as they found them.
 */
#include "gpu/attend.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gates/why.h"
#include "gpu/table.h"

struct gpu_attend {
	struct gpu_device *device;
	struct attend_shape shape;
	struct kernel {
		struct gpu_module *module;
		struct CUfunc_st *function, *merge;
		uint32_t stages, shared, threads;
	} kernel[2]; /* prefill, decode */
};

struct gpu_attend_plan {
	struct gpu_attend *attend;
	const struct kernel *kernel;
	CUdeviceptr memory;
	uint32_t blocks, n_tiles, n_parts, tile_rows;
	struct attend_args args; /* but for what comes with each launch */
};

/* As many stages as fit, with as many blocks on a multiprocessor as there are to be. */
static int open_kernel(struct gpu_attend *a, bool decode, char *ret_why, size_t why_size)
{
	const struct attend_shape *s = &a->shape;
	const uint32_t reserved = 1024; /* of each block, by the system */
	const uint32_t room = (gpu_device_info(a->device)->shared_max + reserved) /
			ATTEND_BLOCKS(decode, s->dim) -
		reserved;
	const uint32_t fixed = ATTEND_HEAD_BYTES + ATTEND_MERGE_BYTES(decode, s->dim);
	const uint32_t stage = ATTEND_STAGE_BYTES(decode, s->dim);
	struct kernel *k = &a->kernel[decode];
	char name[64];
	int r;

	k->stages = room > fixed ? (room - fixed) / stage : 0;
	if (k->stages > ATTEND_STAGES_MAX)
		k->stages = ATTEND_STAGES_MAX;
	if (!k->stages)
		return why(ret_why, why_size, -EOPNOTSUPP,
			"the device has too little shared memory for heads of %u", s->dim);
	k->shared = fixed + k->stages * stage;
	k->threads = ATTEND_THREADS(decode, s->dim);
	snprintf(name, sizeof(name), "attend_%s_%u_%s", decode ? "decode" : "prefill", s->dim,
		s->dtype == KVG_DTYPE_BF16 ? "bf16" : "f16");
	r = gpu_module_load(a->device, decode ? "attend_decode" : "attend_prefill", &k->module,
		ret_why, why_size);
	if (r < 0)
		return r;
	r = gpu_module_function(k->module, name, k->shared, &k->function, ret_why, why_size);
	if (r < 0)
		return r;
	snprintf(name, sizeof(name), "attend_%s_merge_%u_%s", decode ? "decode" : "prefill", s->dim,
		s->dtype == KVG_DTYPE_BF16 ? "bf16" : "f16");
	return gpu_module_function(k->module, name, 0, &k->merge, ret_why, why_size);
}

int gpu_attend_open(struct gpu_device *dev, const struct attend_shape *shape,
	struct gpu_attend **ret, char *ret_why, size_t why_size)
{
	struct gpu_attend *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	a->device = dev;
	a->shape = *shape;
	r = open_kernel(a, false, ret_why, why_size);
	if (r == 0)
		r = open_kernel(a, true, ret_why, why_size);
	if (r < 0) {
		gpu_attend_close(a);
		return r;
	}
	*ret = a;
	return 0;
}

struct gpu_attend *gpu_attend_close(struct gpu_attend *a)
{
	if (a) {
		gpu_module_free(a->kernel[0].module);
		gpu_module_free(a->kernel[1].module);
	}
	free(a);
	return NULL;
}

static uint64_t align_up(uint64_t n)
{
	return (n + 255) & ~UINT64_C(255);
}

static int copy_lists(
	struct gpu_attend_plan *p, const struct attend_arrays *a, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(p->attend->device);
	const struct {
		uint64_t *at;
		const void *from;
		uint64_t bytes;
	} lists[] = {
		{&p->args.runs, a->runs, a->n_runs * sizeof(*a->runs)},
		{&p->args.tiles, a->tiles, a->n_tiles * sizeof(*a->tiles)},
		{&p->args.items, a->items, a->n_items * sizeof(*a->items)},
		{&p->args.counters, NULL, sizeof(struct attend_counters)},
		{&p->args.partials, NULL, attend_partials_bytes(a)},
	};
	uint64_t at = 0;
	int r;

	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
		at += align_up(lists[i].bytes);
	r = cu(d, ret_why, why_size, cuMemAlloc, &p->memory, at);
	at = p->memory;
	for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]) && r == 0; i++) {
		*lists[i].at = at;
		at += align_up(lists[i].bytes);
		if (lists[i].from && lists[i].bytes)
			r = cu(d, ret_why, why_size, cuMemcpyHtoD, *lists[i].at, lists[i].from,
				lists[i].bytes);
	}
	if (r == 0)
		r = cu(d, ret_why, why_size, cuMemsetD8Async, p->args.counters, 0,
			sizeof(struct attend_counters), NULL);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuStreamSynchronize, NULL);
	return r;
}

int gpu_attend_upload(struct gpu_attend *a, const struct attend_plan *plan,
	struct gpu_attend_plan **ret, char *ret_why, size_t why_size)
{
	const struct attend_arrays arrays = attend_plan_arrays(plan);
	struct gpu_attend_plan *p;
	int r;

	if (memcmp(&arrays.shape, &a->shape, sizeof(a->shape)))
		return why(ret_why, why_size, -EINVAL, "a plan of another shape");
	p = calloc(1, sizeof(*p));
	if (!p)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	p->attend = a;
	p->kernel = &a->kernel[arrays.decode];
	p->blocks = arrays.blocks;
	p->n_tiles = arrays.n_tiles;
	p->n_parts = arrays.n_parts;
	for (uint32_t i = 0; i < arrays.n_tiles; i++)
		if (arrays.tiles[i].rows > p->tile_rows)
			p->tile_rows = arrays.tiles[i].rows;
	p->args.n_items = arrays.n_items;
	p->args.heads = a->shape.heads;
	p->args.group = a->shape.group;
	p->args.q_stride = a->shape.heads * a->shape.group * a->shape.dim;
	p->args.stages = p->kernel->stages;
	r = copy_lists(p, &arrays, ret_why, why_size);
	if (r < 0) {
		gpu_attend_plan_free(p);
		return r;
	}
	*ret = p;
	return 0;
}

struct gpu_attend_plan *gpu_attend_plan_free(struct gpu_attend_plan *p)
{
	if (p && p->memory)
		gpu_device_driver(p->attend->device)->cuMemFree(p->memory);
	free(p);
	return NULL;
}

int gpu_attend(struct gpu_attend_plan *p, struct CUstream_st *stream,
	const struct gpu_attend_io *io, char *ret_why, size_t why_size)
{
	struct attend_args args = p->args;
	const struct gpu_launch l = {
		.function = p->kernel->function,
		.stream = stream,
		.grid = {p->blocks},
		.block = {p->kernel->threads},
		.shared = p->kernel->shared,
	};
	const struct gpu_launch merge = {
		.function = p->kernel->merge,
		.stream = stream,
		.grid = {p->n_tiles, p->tile_rows},
		.block = {p->attend->shape.dim / 4, ATTEND_MERGE_WAYS},
	};
	int r;

	if (io->q % 4 || io->out % 8)
		return why(ret_why, why_size, -EINVAL, "queries or results are not aligned");
	args.q = io->q;
	args.out = io->out;
	args.lse = io->lse;
	args.scale = io->scale;
	r = gpu_launch(p->attend->device, &l, &args, ret_why, why_size);
	if (r < 0 || !p->n_parts)
		return r;
	return gpu_launch(p->attend->device, &merge, &args, ret_why, why_size);
}
