/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Decode over contexts of 128K tokens in planes: H 8, G 4, d 128, bf16, three layers with the skew of real heads. All
 * planes (retention 1.0), against the device's copy bandwidth on the bytes that must be read; and the first four of
 * seven (.3), against all. Then a chunk of prefill.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "gpu/attend.h"
#include "tests/bench/figure.h"
#include "tests/gpu/planes.h"
#include "tests/gpu/rig.h"

#define LAYERS PLANES_SKEW_LAYERS
#define HEADS  8u
#define GROUP  4u
#define DIM    128u
#define TOKENS 131072u
#define POOL   ((size_t)256 << 20)

struct bench {
	struct rig rig;
	struct gpu_attend *kernels;
	CUdeviceptr pool, out;
	double copy; /* GB/s */
	uint32_t n;  /* sequences */
	struct planes *planes;
	CUdeviceptr *region;
};

static const struct attend_shape shape = {HEADS, GROUP, DIM, KVG_DTYPE_BF16};

static void must(int r, const char *why)
{
	if (r < 0)
		rig_die("%s", why);
}

static void setup(struct bench *b)
{
	char why[GPU_WHY_BYTES];
	char *pool = malloc(POOL);

	rig_init(&b->rig);
	must(gpu_attend_open(b->rig.device, &shape, &b->kernels, why, sizeof(why)), why);
	planes_random(pool, POOL / 16, KVG_DTYPE_BF16, 1.0f, 1);
	for (size_t i = POOL / 8; i < POOL; i += POOL / 8)
		__builtin_memcpy(pool + i, pool, POOL / 8);
	b->pool = rig_upload(&b->rig, pool, POOL);
	free(pool);
	b->out = rig_alloc(&b->rig, (size_t)64 << 20);
	b->copy = rig_copy_GBps(&b->rig);
}

/* Contexts whose rows are random; header and cu are on this side alone. */
static void contexts_init(struct bench *b, uint32_t n, uint32_t tokens)
{
	const struct planes_shape of_planes = {LAYERS, HEADS, DIM, KVG_DTYPE_BF16, tokens, 256, 7};
	float share[LAYERS * HEADS][7];

	planes_skew(share);
	b->n = n;
	b->planes = calloc(n, sizeof(*b->planes));
	b->region = calloc(n, sizeof(*b->region));
	for (uint32_t i = 0; i < n; i++) {
		planes_init(&b->planes[i], &of_planes, share[0], 100 + i);
		b->region[i] = rig_alloc(&b->rig, b->planes[i].bytes);
		for (uint64_t at = 0; at < b->planes[i].bytes; at += POOL) {
			const uint64_t left = b->planes[i].bytes - at;

			rig_cu(&b->rig, cuMemcpyAsync, b->region[i] + at, b->pool,
				left < POOL ? left : POOL, b->rig.stream);
		}
	}
	rig_sync(&b->rig);
}

static void contexts_fini(struct bench *b)
{
	for (uint32_t i = 0; i < b->n; i++) {
		planes_fini(&b->planes[i]);
		rig_free(&b->rig, b->region[i]);
	}
	free(b->planes);
	free(b->region);
}

/* All layers one after the other, as a step of decode has them. */
struct step {
	struct bench *bench;
	struct gpu_attend_plan *plan[LAYERS];
	uint32_t n_layers;
	uint64_t rows;
};

static void step_init(struct step *s, struct bench *b, uint32_t n_planes, uint32_t tokens)
{
	char why[GPU_WHY_BYTES];

	*s = (struct step){.bench = b, .n_layers = tokens == 1 ? LAYERS : 1};
	for (uint32_t layer = 0; layer < s->n_layers; layer++) {
		struct attend_plan *p;

		must(attend_plan_new(&shape, gpu_device_info(b->rig.device)->processors, &p),
			"plan");
		for (uint32_t i = 0; i < b->n; i++) {
			must(attend_plan_sequence(p, tokens, tokens - 1), "plan");
			planes_plan(&b->planes[i], b->region[i], layer, n_planes, NULL, p);
			for (uint32_t h = 0; tokens > 1 && h < HEADS; h++) /* its own */
				must(attend_plan_run(p, h, b->pool, b->pool, tokens), "plan");
		}
		must(attend_plan_seal(p), "plan");
		s->rows += attend_plan_arrays(p).rows;
		must(gpu_attend_upload(b->kernels, p, &s->plan[layer], why, sizeof(why)), why);
		attend_plan_free(p);
	}
}

static void step_fini(struct step *s)
{
	for (uint32_t i = 0; i < s->n_layers; i++)
		gpu_attend_plan_free(s->plan[i]);
}

static void step(void *arg)
{
	const struct step *s = arg;
	const struct gpu_attend_io io = {
		.q = s->bench->pool, .out = s->bench->out, .scale = 1.0f / sqrtf(DIM)};
	char why[GPU_WHY_BYTES];

	for (uint32_t i = 0; i < s->n_layers; i++)
		must(gpu_attend(s->plan[i], s->bench->rig.stream, &io, why, sizeof(why)), why);
}

static void measure_decode(struct bench *b, uint32_t n)
{
	const char *card = gpu_device_info(b->rig.device)->name;
	const unsigned runs = n > 1 ? 15 : 51;
	struct step all, some;
	double all_us, some_us, bytes;
	char name[48];

	contexts_init(b, n, TOKENS);
	step_init(&all, b, 7, 1);
	step_init(&some, b, PLANES_SKEW_KEPT, 1);
	all_us = rig_time(&b->rig, runs, step, NULL, &all);
	some_us = rig_time(&b->rig, runs, step, NULL, &some);
	bytes = (double)all.rows * DIM * 2 * 2;
	snprintf(name, sizeof(name), "attend_decode_b%u_GBps", n);
	figure_print(&(struct figure_line){"gpu", name, "GB/s", bytes / all_us * 1e-3, b->copy,
			     FIGURE_NONE},
		"a copy within the device, read and written bytes counted; 128K tokens, %u layers "
		"in %.1f us, %s",
		LAYERS, all_us, card);
	snprintf(name, sizeof(name), "attend_decode_b%u_r30_speedup", n);
	figure_print(&(struct figure_line){"gpu", name, "times", all_us / some_us,
			     (double)all.rows / (double)some.rows, FIGURE_NONE},
		"rows at 1.0 by rows at .3; %.1f us instead of %.1f, %s", some_us, all_us, card);
	step_fini(&all);
	step_fini(&some);
	contexts_fini(b);
}

static void measure_prefill(struct bench *b)
{
	const uint32_t tokens = 4096, context = 32768;
	const double scores = (double)tokens * context + .5 * tokens * (tokens + 1.0);
	struct step s;
	double us;

	contexts_init(b, 1, context);
	step_init(&s, b, 7, tokens);
	us = rig_time(&b->rig, 9, step, NULL, &s);
	figure_print(
		&(struct figure_line){"gpu", "attend_prefill_TFLOPs", "TFLOP/s",
			scores * 4 * DIM * HEADS * GROUP / us * 1e-6, FIGURE_NONE, FIGURE_NONE},
		"4096 tokens over 32K in planes and themselves, one layer, %.0f us, %s", us,
		gpu_device_info(b->rig.device)->name);
	step_fini(&s);
	contexts_fini(b);
}

int main(void)
{
	struct bench b = {0};

	setup(&b);
	measure_decode(&b, 1);
	measure_decode(&b, 16);
	measure_prefill(&b);
	return figure_status();
}
