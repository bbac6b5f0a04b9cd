/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention on the device against the twin, over planes of random shapes with tails: decode and chunks of prefill, any
 * dims and groups, prefixes of runs, runs and heads without rows. Results are poisoned before. Laid out otherwise, and
 * run again, the same input has the same bits.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/attend.h"
#include "tests/gpu/planes.h"
#include "tests/gpu/rig.h"

#define SEQUENCES_MAX 3

/* One side's memory: the twin's or the device's. */
struct memory {
	uint64_t planes[SEQUENCES_MAX], k_tail[SEQUENCES_MAX], v_tail[SEQUENCES_MAX];
	uint64_t q;
};

struct fixture {
	struct rig *rig;
	struct attend_shape shape;
	struct planes_shape of_planes;
	uint32_t n, tokens[SEQUENCES_MAX], tail[SEQUENCES_MAX], all;
	struct planes planes[SEQUENCES_MAX], elsewhere[SEQUENCES_MAX];
	uint32_t *keep[SEQUENCES_MAX];
	struct memory host, device;
	size_t out_bytes, lse_bytes;
};

static void must(int r, const char *why)
{
	if (r < 0)
		rig_die("%s", why);
}

static uint64_t take(size_t bytes)
{
	void *p = aligned_alloc(256, (bytes + 256) / 256 * 256);

	if (!p)
		rig_die("out of memory");
	return (uint64_t)(uintptr_t)p;
}

static void *host(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

static void init_sequence(struct fixture *f, uint32_t i, uint32_t tokens_max, uint64_t seed)
{
	const size_t row = (size_t)f->shape.dim * f->shape.heads;
	uint64_t state = rig_seed(seed + 31 * i);
	const bool empty = rig_below(&state, 8) == 0;

	f->of_planes.tokens = 1 + rig_below(&state, 900);
	f->tokens[i] = tokens_max == 1 ? 1 : 1 + rig_below(&state, tokens_max);
	f->tail[i] = f->tokens[i] - 1 + rig_below(&state, 50);
	f->all += f->tokens[i];
	planes_init(&f->planes[i], &f->of_planes, NULL, seed + i);
	planes_init(&f->elsewhere[i], &f->of_planes, NULL, seed + i);
	planes_shuffle(&f->elsewhere[i], seed + 5 + i);
	f->keep[i] = malloc(f->planes[i].n * f->shape.heads * sizeof(uint32_t));
	for (uint32_t j = 0; j < f->planes[i].n * f->shape.heads; j++)
		f->keep[i][j] = empty ? 0 : rig_below(&state, 3) ? 1000 : rig_below(&state, 30);
	f->host.planes[i] = take(f->planes[i].bytes);
	planes_fill(&f->planes[i], host(f->host.planes[i]), seed * 1000 + i);
	f->host.k_tail[i] = take(f->tail[i] * row * 2);
	f->host.v_tail[i] = take(f->tail[i] * row * 2);
	planes_random(host(f->host.k_tail[i]), f->tail[i] * row, f->shape.dtype, 1.0f, seed + 77);
	planes_random(host(f->host.v_tail[i]), f->tail[i] * row, f->shape.dtype, 1.0f, seed + 78);
	f->device.k_tail[i] = rig_upload(f->rig, host(f->host.k_tail[i]), f->tail[i] * row * 2);
	f->device.v_tail[i] = rig_upload(f->rig, host(f->host.v_tail[i]), f->tail[i] * row * 2);
}

static void fixture_init(struct fixture *f, struct rig *rig, uint32_t tokens_max, uint64_t seed)
{
	static const uint32_t dims[] = {64, 96, 128, 256}, groups[] = {1, 2, 4, 5, 8, 16};
	uint64_t state = rig_seed(seed);

	*f = (struct fixture){.rig = rig, .n = 1 + rig_below(&state, SEQUENCES_MAX)};
	f->shape = (struct attend_shape){.heads = 1 + rig_below(&state, 4),
		.group = groups[rig_below(&state, 6)],
		.dim = dims[seed % 4],
		.dtype = seed / 4 % 2 ? KVG_DTYPE_F16 : KVG_DTYPE_BF16};
	f->of_planes = (struct planes_shape){.layers = 2,
		.heads = f->shape.heads,
		.dim = f->shape.dim,
		.dtype = f->shape.dtype,
		.block = 128,
		.n_planes = 1 + rig_below(&state, 7)};
	for (uint32_t i = 0; i < f->n; i++)
		init_sequence(f, i, tokens_max, seed * 100);
	f->lse_bytes = (size_t)f->all * f->shape.heads * f->shape.group * 4;
	f->out_bytes = f->lse_bytes / 2 * f->shape.dim;
	f->host.q = take(f->out_bytes);
	planes_random(host(f->host.q), f->out_bytes / 2, f->shape.dtype, 5.0f, seed + 99);
	f->device.q = rig_upload(rig, host(f->host.q), f->out_bytes);
}

static void fixture_fini(struct fixture *f)
{
	for (uint32_t i = 0; i < f->n; i++) {
		planes_fini(&f->planes[i]);
		planes_fini(&f->elsewhere[i]);
		free(f->keep[i]);
		free(host(f->host.planes[i]));
		free(host(f->host.k_tail[i]));
		free(host(f->host.v_tail[i]));
		rig_free(f->rig, f->device.k_tail[i]);
		rig_free(f->rig, f->device.v_tail[i]);
	}
	free(host(f->host.q));
	rig_free(f->rig, f->device.q);
}

static struct attend_plan *plan_of(
	const struct fixture *f, const struct planes *planes, const struct memory *m)
{
	char failed[] = "the plan";
	struct attend_plan *p;

	must(attend_plan_new(&f->shape, gpu_device_info(f->rig->device)->processors, &p), failed);
	for (uint32_t i = 0; i < f->n; i++) {
		must(attend_plan_sequence(p, f->tokens[i], f->tokens[i] - 1), failed);
		planes_plan(&planes[i], m->planes[i], 1, f->of_planes.n_planes, f->keep[i], p);
		for (uint32_t h = 0; h < f->shape.heads; h++) {
			const uint64_t at = (uint64_t)h * f->tail[i] * f->shape.dim * 2;

			must(attend_plan_run(
				     p, h, m->k_tail[i] + at, m->v_tail[i] + at, f->tail[i]),
				failed);
		}
	}
	must(attend_plan_seal(p), failed);
	return p;
}

struct result {
	uint16_t *out;
	float *lse;
};

static struct result result_new(const struct fixture *f)
{
	struct result r = {malloc(f->out_bytes), malloc(f->lse_bytes)};

	memset(r.out, RIG_POISON, f->out_bytes);
	memset(r.lse, RIG_POISON, f->lse_bytes);
	return r;
}

static void result_free(struct result *r)
{
	free(r->out);
	free(r->lse);
}

static struct result twin(const struct fixture *f)
{
	struct attend_plan *p = plan_of(f, f->planes, &f->host);
	const struct attend_arrays a = attend_plan_arrays(p);
	struct result r = result_new(f);
	const struct attend_args args = {
		.q = f->host.q,
		.out = (uint64_t)(uintptr_t)r.out,
		.lse = (uint64_t)(uintptr_t)r.lse,
		.runs = (uint64_t)(uintptr_t)a.runs,
		.tiles = (uint64_t)(uintptr_t)a.tiles,
		.items = (uint64_t)(uintptr_t)a.items,
		.n_items = a.n_items,
		.heads = f->shape.heads,
		.group = f->shape.group,
		.q_stride = f->shape.heads * f->shape.group * f->shape.dim,
		.scale = 1.0f / sqrtf((float)f->shape.dim),
	};

	if (attend_twin(&args, a.n_tiles, f->shape.dim, f->shape.dtype) < 0)
		rig_die("items do not cover the tiles");
	attend_plan_free(p);
	return r;
}

/* The same planes where `places` has them. */
static void upload_planes(struct fixture *f, const struct planes *places)
{
	for (uint32_t i = 0; i < f->n; i++) {
		char *region = malloc(places[i].bytes);

		memset(region, RIG_POISON, places[i].bytes);
		for (uint32_t j = 0; j < places[i].n; j++)
			memcpy(region + places[i].at[j].offset,
				(char *)host(f->host.planes[i]) + f->planes[i].at[j].offset,
				places[i].at[j].view.bytes);
		f->device.planes[i] = rig_upload(f->rig, region, places[i].bytes);
		free(region);
	}
}

static struct result device(
	struct fixture *f, struct gpu_attend *kernels, const struct planes *places)
{
	struct result r[2] = {result_new(f), result_new(f)};
	const struct gpu_attend_io io = {.q = f->device.q,
		.out = rig_alloc(f->rig, f->out_bytes),
		.lse = rig_alloc(f->rig, f->lse_bytes),
		.scale = 1.0f / sqrtf((float)f->shape.dim)};
	struct gpu_attend_plan *uploaded;
	struct attend_plan *p;
	char why[GPU_WHY_BYTES];

	upload_planes(f, places);
	p = plan_of(f, places, &f->device);
	must(gpu_attend_upload(kernels, p, &uploaded, why, sizeof(why)), why);
	for (int i = 0; i < 2; i++) {
		rig_poison(f->rig, io.out, f->out_bytes);
		rig_poison(f->rig, io.lse, f->lse_bytes);
		must(gpu_attend(uploaded, f->rig->stream, &io, why, sizeof(why)), why);
		rig_download(f->rig, r[i].out, io.out, f->out_bytes);
		rig_download(f->rig, r[i].lse, io.lse, f->lse_bytes);
	}
	if (memcmp(r[0].out, r[1].out, f->out_bytes) || memcmp(r[0].lse, r[1].lse, f->lse_bytes))
		rig_die("the second launch of a plan has other bits than the first");
	for (uint32_t i = 0; i < f->n; i++)
		rig_free(f->rig, f->device.planes[i]);
	rig_free(f->rig, io.out);
	rig_free(f->rig, io.lse);
	gpu_attend_plan_free(uploaded);
	attend_plan_free(p);
	result_free(&r[1]);
	return r[0];
}

static float value(uint16_t bits, uint32_t dtype)
{
	return dtype == KVG_DTYPE_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

/* P is rounded to the dtype before it is multiplied, so that errors are of its precision. */
static void compare(const struct fixture *f, const struct result *got, const struct result *want)
{
	const float epsilon = f->shape.dtype == KVG_DTYPE_BF16 ? 0x1p-8f : 0x1p-11f;
	double difference = 0.0, norm = 0.0;

	for (size_t i = 0; i < f->out_bytes / 2; i++) {
		const float a = value(got->out[i], f->shape.dtype);
		const float b = value(want->out[i], f->shape.dtype);

		if (!(fabsf(a - b) <= 4.0f * epsilon))
			rig_die("element %zu is %g, the twin has %g", i, (double)a, (double)b);
		difference += (double)(a - b) * (a - b);
		norm += (double)b * b;
	}
	if (!(sqrt(difference) <= (double)epsilon * sqrt(norm)))
		rig_die("an error of %g of the norm", sqrt(difference / norm));
	for (size_t i = 0; i < f->lse_bytes / 4; i++)
		if (!(got->lse[i] == want->lse[i] ||
			    fabsf(got->lse[i] - want->lse[i]) <=
				    1e-4f * fmaxf(1.0f, fabsf(want->lse[i]))))
			rig_die("lse %zu is %g, the twin has %g", i, (double)got->lse[i],
				(double)want->lse[i]);
}

static void check(struct rig *rig, uint32_t tokens_max, uint64_t seed)
{
	struct gpu_attend *kernels;
	struct result want, got, moved;
	char why[GPU_WHY_BYTES];
	struct fixture f;

	fixture_init(&f, rig, tokens_max, seed);
	must(gpu_attend_open(rig->device, &f.shape, &kernels, why, sizeof(why)), why);
	want = twin(&f);
	got = device(&f, kernels, f.planes);
	moved = device(&f, kernels, f.elsewhere);
	printf("seed %d: heads %u, group %u, dim %u, %s, %u sequences, %u query tokens\n",
		(int)seed, f.shape.heads, f.shape.group, f.shape.dim, dtype_name(f.shape.dtype),
		f.n, f.all);
	fflush(stdout);
	compare(&f, &got, &want);
	if (memcmp(got.out, moved.out, f.out_bytes) || memcmp(got.lse, moved.lse, f.lse_bytes))
		rig_die("other places, other bits");
	result_free(&want);
	result_free(&got);
	result_free(&moved);
	gpu_attend_close(kernels);
	fixture_fini(&f);
}

int main(void)
{
	const int rounds = getenv("KVGATE_SMALL") ? 4 : 16;
	struct rig r;

	rig_init(&r);
	for (int i = 0; i < rounds; i++) {
		check(&r, 1, 1 + i);
		check(&r, i % 2 ? 200 : 12, 1001 + i);
	}
	rig_fini(&r);
	printf("ok: %d rounds\n", 2 * rounds);
	return 0;
}
