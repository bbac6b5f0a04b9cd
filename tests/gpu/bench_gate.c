/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gate's time against what bounds it: for many tokens the projection alone, by cuBLAS; for few tokens and all layers the
 * time it takes to read the weights once. libcublas is opened by name; without it there is no rival, and no bound.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu/gate.h"
#include "tests/bench/figure.h"
#include "tests/gpu/rig.h"
#include "tests/unit/gate_fixture.h"

#define HIDDEN 4096u
#define HEADS  8u
#define GROUPS 4u
#define ROWS   (HEADS * (GROUPS + 1) * 16)
#define LAYERS 36u
#define MANY   16384u
#define FEW    128u

struct bench {
	struct rig *rig;
	struct gpu_gate *gate;
	struct gpu_gate_job job;
};

static void score(void *arg)
{
	const struct bench *b = arg;
	char why[GPU_WHY_BYTES];

	if (gpu_gate_score(b->gate, &b->job, why, sizeof(why)) < 0)
		rig_die("%s", why);
}

/* Random bf16 below 1: zeros would be faster than anything real. */
static CUdeviceptr random_x(struct rig *r, size_t n)
{
	uint16_t *x = malloc(n * sizeof(*x));
	uint64_t state = rig_seed(2);
	CUdeviceptr at;

	for (size_t i = 0; i < n; i++)
		x[i] = bf16_from_f32(rig_uniform(&state));
	at = rig_upload(r, x, n * sizeof(*x));
	free(x);
	return at;
}

/* All layers have the same weights in host memory, and each its own on the device. */
static struct gpu_gate *make_gate(struct rig *r)
{
	struct fixture f = {.info = {.kind = GATE_FAST_KVZIP,
				    .layers = 1,
				    .heads = HEADS,
				    .groups = GROUPS,
				    .hidden = HIDDEN,
				    .dim = 16,
				    .sinks = 16}};
	struct gate_layer layers[LAYERS];
	struct gpu_gate *on_device;
	char why[GPU_WHY_BYTES];
	struct gate *one, all;

	fixture_init(&f, 7);
	one = fixture_gate(&f);
	all = (struct gate){.info = one->info, .layers = layers};
	all.info.layers = LAYERS;
	for (uint32_t l = 0; l < LAYERS; l++)
		layers[l] = one->layers[0];
	if (gpu_gate_new(r->device, &all, &on_device, why, sizeof(why)) < 0)
		rig_die("%s", why);
	gate_free(one);
	fixture_fini(&f);
	return on_device;
}

/* ---- the rival ----------------------------------------------------------------------------- */

struct blas {
	void *handle;
	int (*create)(void **handle);
	int (*set_stream)(void *handle, CUstream stream);
	int (*gemm)(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
		const void *a, int atype, int lda, const void *b, int btype, int ldb,
		const void *beta, void *c, int ctype, int ldc, int compute, int algorithm);
	CUdeviceptr x, w, c;
};

static void multiply(void *arg)
{
	const struct blas *b = arg;
	const float one = 1, zero = 0;
	const int bf16 = 14, f32 = 68;

	if (b->gemm(b->handle, 1, 0, ROWS, MANY, HIDDEN, &one, (void *)(uintptr_t)b->w, bf16,
		    HIDDEN, (void *)(uintptr_t)b->x, bf16, HIDDEN, &zero, (void *)(uintptr_t)b->c,
		    bf16, ROWS, f32, -1))
		rig_die("cuBLAS refuses the product");
}

static double rival_us(struct rig *r, CUdeviceptr x)
{
	void *library = dlopen("libcublas.so.13", RTLD_NOW);
	struct blas b = {.x = x};
	double us;

	if (!library) {
		fprintf(stderr, "no cuBLAS to compare with: %s\n", dlerror());
		return FIGURE_NONE;
	}
	*(void **)&b.create = dlsym(library, "cublasCreate_v2");
	*(void **)&b.set_stream = dlsym(library, "cublasSetStream_v2");
	*(void **)&b.gemm = dlsym(library, "cublasGemmEx");
	if (!b.create || !b.set_stream || !b.gemm || b.create(&b.handle) ||
		b.set_stream(b.handle, r->stream))
		rig_die("cuBLAS does not start");
	b.w = random_x(r, (size_t)ROWS * HIDDEN);
	b.c = rig_alloc(r, (size_t)MANY * ROWS * 2);
	us = rig_time(r, 50, multiply, NULL, &b);
	rig_free(r, b.w);
	rig_free(r, b.c);
	return us;
}

int main(void)
{
	struct rig r;
	struct bench b = {.rig = &r};
	double rival, many, floor, few, copy;

	rig_init(&r);
	b.gate = make_gate(&r);
	b.job = (struct gpu_gate_job){.stream = r.stream,
		.layers = 1,
		.tokens = MANY,
		.x_stride = HIDDEN,
		.x_layer = (uint64_t)MANY * HIDDEN,
		.score_stride = MANY,
		.score_layer = (uint64_t)HEADS * MANY};
	b.job.x = random_x(&r, (size_t)MANY * HIDDEN);
	b.job.scores = rig_alloc(&r, (size_t)LAYERS * HEADS * MANY * sizeof(float));
	rival = rival_us(&r, b.job.x);
	many = rig_time(&r, 50, score, NULL, &b);
	figure_print(&(struct figure_line){.suite = "gpu",
			     .name = "gate_us",
			     .unit = "us",
			     .value = many,
			     .limit = rival,
			     .ratio = FIGURE_NONE},
		"cuBLAS, the projection of %u tokens alone; exact", MANY);
	b.job.path = GPU_GATE_MMA;
	fprintf(stderr, "gate by mma.sync: %.1f us\n", rig_time(&r, 20, score, NULL, &b));
	b.job.path = GPU_GATE_AUTO;
	b.job.layers = LAYERS;
	b.job.tokens = FEW;
	b.job.x_layer = (uint64_t)FEW * HIDDEN;
	b.job.score_stride = FEW;
	b.job.score_layer = (uint64_t)HEADS * FEW;
	copy = rig_copy_GBps(&r);
	floor = (double)gpu_gate_bytes(b.gate) / copy * 1e-3;
	few = rig_time(&r, 50, score, NULL, &b);
	figure_print(&(struct figure_line){.suite = "gpu",
			     .name = "gate_decode_us",
			     .unit = "us",
			     .value = few,
			     .limit = floor,
			     .ratio = FIGURE_NONE},
		"reading the weights of %u layers at the %.0f GB/s of a copy; %u tokens, one "
		"launch",
		LAYERS, copy, FEW);
	rig_free(&r, b.job.x);
	rig_free(&r, b.job.scores);
	gpu_gate_free(b.gate);
	rig_fini(&r);
	return figure_status();
}
