/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate_ratio: a Fast KVzip gate of Qwen3-8B's shape (D 4096, H 8, G 4) over 256 tokens in bf16, one thread,
 * against OpenBLAS's sgemm of the projection alone (256 x 640 x 4096, operands already f32). The gate's time is
 * all of gate_score: packing, products, norms, exponentials. All are measured in turn in the same rounds, in the
 * processor time of the one thread: both sides only compute, and what else runs on the machine then counts less.
 *
 * OpenBLAS takes the kernel that is made for the processor; its name stands with the figure. An environment that talks
 * it into another one would make the rival slower than it is, so that is refused.
 */
#include <cblas.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "gates/gate.h"
#include "gates/safetensors.h"
#include "tests/bench/figure.h"

#define D      4096u
#define H      8u
#define G      4u
#define DIM    16u
#define SINKS  16u
#define TOKENS 256u
#define ROWS   (H * G * DIM + H * DIM)
#define ROUNDS 21

static uint64_t seed = 1;

static float uniform(void) /* [-1, 1) */
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (float)(int32_t)(seed >> 32) / 2147483648.0f;
}

static void fill(struct safetensors_tensor *t, float scale, float offset)
{
	uint64_t n = 1;
	void *data;

	for (unsigned i = 0; i < t->ndim; i++)
		n *= t->shape[i];
	t->bytes = n * safetensors_dtype_bytes(t->dtype);
	data = malloc(t->bytes);
	for (uint64_t i = 0; i < n; i++) {
		float f = offset + scale * uniform();

		if (t->dtype == SAFETENSORS_F32)
			((float *)data)[i] = f;
		else
			((uint16_t *)data)[i] = bf16_from_f32(f);
	}
	t->data = data;
}

static struct gate *random_gate(void)
{
	struct safetensors_tensor t[] = {
		{.name = "layers.0.q_proj.weight",
			.dtype = SAFETENSORS_BF16,
			.ndim = 2,
			.shape = {H * G * DIM, D}},
		{.name = "layers.0.q_proj.bias",
			.dtype = SAFETENSORS_BF16,
			.ndim = 1,
			.shape = {H * G * DIM}},
		{.name = "layers.0.k_proj.weight",
			.dtype = SAFETENSORS_BF16,
			.ndim = 2,
			.shape = {H * DIM, D}},
		{.name = "layers.0.b", .dtype = SAFETENSORS_BF16, .ndim = 3, .shape = {H, 1, G}},
		{.name = "layers.0.k_base",
			.dtype = SAFETENSORS_F32,
			.ndim = 4,
			.shape = {H, 1, SINKS, DIM}},
		{.name = "layers.0.q_norm.weight",
			.dtype = SAFETENSORS_F32,
			.ndim = 1,
			.shape = {DIM}},
		{.name = "layers.0.k_norm.weight",
			.dtype = SAFETENSORS_F32,
			.ndim = 1,
			.shape = {DIM}},
	};
	const unsigned n = sizeof(t) / sizeof(t[0]);
	char path[] = "/tmp/bench_gate.XXXXXX", why[200] = "";
	struct gate *g = NULL;
	int fd = mkstemp(path);

	for (unsigned i = 0; i < n; i++)
		fill(&t[i], t[i].ndim == 2 ? 0.03f : 1.0f, i >= 5 ? 2.0f : 0.0f);
	if (fd < 0 || safetensors_write(path, t, n, NULL, 0, why, sizeof(why)) < 0 ||
		gate_load(path, &g, why, sizeof(why)) < 0)
		fprintf(stderr, "bench_gate: %s\n", why);
	unlink(path);
	close(fd);
	for (unsigned i = 0; i < n; i++)
		free((void *)t[i].data);
	return g;
}

/* ---- what is measured ---- */

struct bench {
	struct gate *g;
	struct gate_scratch *scratch;
	uint16_t *x;
	float *x_f32, *w_f32, *c, *scores;
};

struct figure {
	const char *name;
	enum gate_isa isa;
	enum gate_arithmetic arithmetic;
	uint32_t tokens;
	bool sgemm; /* the rival of what follows it */
	double us[ROUNDS], median;
};

static void run(const struct bench *b, const struct figure *f)
{
	if (f->sgemm)
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)f->tokens, ROWS, D, 1.0f,
			b->x_f32, D, b->w_f32, D, 0.0f, b->c, ROWS);
	else
		gate_score(b->g, 0, b->x, KVG_DTYPE_BF16, D, f->tokens, f->arithmetic, f->isa,
			b->scratch, b->scores, TOKENS);
}

static int ascending(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

static void print(const char *name, double value, const char *unit, const char *what, double ratio)
{
	figure_print(
		&(struct figure_line){"core", name, unit, value, FIGURE_NONE, ratio}, "%s", what);
}

static int bench_new(struct bench *b)
{
	b->g = random_gate();
	if (!b->g || gate_scratch_new(b->g, TOKENS, &b->scratch) < 0)
		return -1;
	b->x = malloc(sizeof(*b->x) * TOKENS * D);
	b->x_f32 = malloc(sizeof(float) * TOKENS * D);
	b->w_f32 = malloc(sizeof(float) * ROWS * D);
	b->c = malloc(sizeof(float) * TOKENS * ROWS);
	b->scores = malloc(sizeof(float) * TOKENS * H);
	for (size_t i = 0; i < (size_t)TOKENS * D; i++) {
		b->x[i] = bf16_from_f32(uniform());
		b->x_f32[i] = bf16_to_f32(b->x[i]);
	}
	for (size_t i = 0; i < (size_t)ROWS * D; i++)
		b->w_f32[i] = 0.03f * uniform();
	return 0;
}

static void bench_free(struct bench *b)
{
	gate_scratch_free(b->scratch);
	gate_free(b->g);
	free(b->x);
	free(b->x_f32);
	free(b->w_f32);
	free(b->c);
	free(b->scores);
}

/* In the place of each number of tokens, its rival and then what is compared with it. */
static struct figure figures[] = {
	{"sgemm", .tokens = TOKENS, .sgemm = true},
	{"fast", .tokens = TOKENS, .arithmetic = GATE_FAST},
	{"exact", .tokens = TOKENS, .arithmetic = GATE_EXACT},
	{"amx_bf16", GATE_ISA_AMX_BF16, .tokens = TOKENS},
	{"avx512_bf16", GATE_ISA_AVX512_BF16, .tokens = TOKENS},
	{"avx512", GATE_ISA_AVX512, .tokens = TOKENS},
	{"avx2", GATE_ISA_AVX2, .tokens = TOKENS},
	{"sgemm_128_tokens", .tokens = 128, .sgemm = true},
	{"exact_128_tokens", .tokens = 128},
	{"sgemm_16_tokens", .tokens = 16, .sgemm = true},
	{"exact_16_tokens", .tokens = 16},
	{"sgemm_1_token", .tokens = 1, .sgemm = true},
	{"exact_1_token", .tokens = 1},
};
#define FIGURES (sizeof(figures) / sizeof(figures[0]))

static void measure(const struct bench *b)
{
	for (int round = -1; round < ROUNDS; round++) {
		for (unsigned i = 0; i < FIGURES; i++) {
			double start;

			if (!gate_isa_supported(figures[i].isa))
				continue;
			start = figure_cpu_us();
			run(b, &figures[i]);
			if (round >= 0) /* the first one warms up */
				figures[i].us[round] = figure_cpu_us() - start;
		}
	}
	for (unsigned i = 0; i < FIGURES; i++) {
		qsort(figures[i].us, ROUNDS, sizeof(double), ascending);
		figures[i].median = figures[i].us[ROUNDS / 2];
	}
}

static void report(void)
{
	const char *what =
		"time of OpenBLAS sgemm, projection only, over the time of the whole gate";
	double rival = figures[0].median;

	print("gate_ratio", rival / figures[1].median, "x", what, rival / figures[1].median);
	print("gate_ratio_exact", rival / figures[2].median, "x", what, rival / figures[2].median);
	for (unsigned i = 0; i < FIGURES; i++) {
		char name[64], about[64];

		if (!gate_isa_supported(figures[i].isa))
			continue;
		if (figures[i].sgemm)
			rival = figures[i].median;
		snprintf(name, sizeof(name), "gate_us_%s", figures[i].name);
		snprintf(about, sizeof(about), "%u tokens, one layer; OpenBLAS: %s",
			figures[i].tokens, openblas_get_corename());
		print(name, figures[i].median, "us", about, rival / figures[i].median);
	}
}

int main(void)
{
	struct bench b = {0};

	if (getenv("OPENBLAS_CORETYPE"))
		fprintf(stderr, "bench_gate: OPENBLAS_CORETYPE chooses the rival's kernel: %s\n",
			openblas_get_corename());
	openblas_set_num_threads(1);
	if (bench_new(&b) < 0)
		return 1;
	measure(&b);
	report();
	bench_free(&b);
	return figure_status();
}
