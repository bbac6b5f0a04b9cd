/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Gates on the device against gates/score*.c. First with numbers whose sums are exact in any order, so that nothing is
 * left but the arithmetic behind the product, whose rounding points must then agree; then with any numbers.
 */
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gate.h"
#include "tests/gpu/rig.h"
#include "tests/unit/gate_fixture.h"

struct shape {
	enum gate_kind kind;
	uint32_t layers, heads, groups, hidden, sinks, mlp, tokens;
};

struct run {
	struct rig *rig;
	struct shape shape;
	const struct gate *gate;
	struct gpu_gate *on_device;
	bool exact_numbers;
	uint32_t x_stride, score_stride;
	uint16_t *x; /* [layers][tokens][x_stride] */
	CUdeviceptr x_at, scores_at, scratch_at;
	float *got, *wanted; /* [layers][heads][score_stride] */
};

static uint64_t state;

static const char *const kinds[] = {[GATE_FAST_KVZIP] = "fast-kvzip",
	[GATE_KVZAP_LINEAR] = "kvzap-linear",
	[GATE_KVZAP_MLP] = "kvzap-mlp"};

/* Small multiples of small powers of two: thousands of their products add up without rounding. */
static void make_exact(struct fixture *f)
{
	static const char *const suffixes[] = {"q_proj.weight", "q_proj.bias", "k_proj.weight",
		"weight", "bias", "0.weight", "0.bias", "2.weight", "2.bias"};

	for (uint32_t n = 0; n < f->n; n++) {
		const char *suffix = strchr(strchr(f->tensors[n].name, '.') + 1, '.') + 1;

		for (size_t s = 0; s < sizeof(suffixes) / sizeof(suffixes[0]); s++)
			if (!strcmp(suffix, suffixes[s]))
				for (uint64_t i = 0; i < fixture_count(&f->tensors[n]); i++)
					fixture_set(&f->tensors[n], i,
						(float)((int)rig_below(&state, 15) - 7) / 64);
	}
}

static void fill_x(struct run *r)
{
	const struct shape *s = &r->shape;
	size_t n = (size_t)s->layers * s->tokens * r->x_stride;

	r->x = malloc(n * sizeof(*r->x));
	for (size_t i = 0; i < n; i++)
		r->x[i] = bf16_from_f32(r->exact_numbers
				? (float)((int)rig_below(&state, 5) - 2) / 2
				: 2 * rig_uniform(&state));
	/* what lies between the rows is nobody's */
	for (size_t row = 0; row < n / r->x_stride; row++)
		for (uint32_t i = s->hidden; i < r->x_stride; i++)
			r->x[row * r->x_stride + i] = 0x7fc0;
	if (s->tokens > 5 && !r->exact_numbers)
		r->x[(size_t)5 * r->x_stride + s->hidden / 2] = 0x7fc0;
}

static void score_on_cpu(struct run *r, enum gate_arithmetic arithmetic)
{
	const struct shape *s = &r->shape;
	struct gate_scratch *scratch;

	if (gate_scratch_new(r->gate, s->tokens, &scratch) < 0)
		rig_die("out of memory");
	for (uint32_t l = 0; l < s->layers; l++)
		gate_score(r->gate, l, r->x + (size_t)l * s->tokens * r->x_stride, KVG_DTYPE_BF16,
			r->x_stride, s->tokens, arithmetic,
			(uint64_t)s->tokens * s->hidden > 1 << 19 ? GATE_ISA_AUTO : GATE_ISA_SCALAR,
			scratch, r->wanted + (size_t)l * s->heads * r->score_stride,
			r->score_stride);
	gate_scratch_free(scratch);
}

static void score_on_device(struct run *r, enum gate_arithmetic arithmetic, enum gpu_gate_path path)
{
	const struct shape *s = &r->shape;
	const size_t scores = (size_t)s->layers * s->heads * r->score_stride;
	struct gpu_gate_job j = {.stream = r->rig->stream,
		.path = path,
		.arithmetic = arithmetic,
		.layers = s->layers,
		.tokens = s->tokens,
		.x = r->x_at,
		.x_stride = r->x_stride,
		.x_layer = (uint64_t)s->tokens * r->x_stride,
		.scores = r->scores_at,
		.score_stride = r->score_stride,
		.score_layer = (uint64_t)s->heads * r->score_stride,
		.scratch = r->scratch_at};
	char why[GPU_WHY_BYTES];

	rig_poison(r->rig, r->scores_at, (scores + 1) * sizeof(float));
	rig_poison(r->rig, r->scratch_at, gpu_gate_scratch(r->on_device, s->layers, s->tokens));
	if (gpu_gate_score(r->on_device, &j, why, sizeof(why)) < 0)
		rig_die("%s", why);
	rig_download(r->rig, r->got, r->scores_at, (scores + 1) * sizeof(float));
}

static bool poisoned(float f)
{
	uint32_t bits;

	memcpy(&bits, &f, sizeof(bits));
	return bits == RIG_POISON * 0x01010101u;
}

/* How far a score may be off. Of what rounds to bf16 a sum that is off by its last bit can be off by one step. */
static double allowed(const struct run *r, enum gate_arithmetic arithmetic, double wanted)
{
	switch (r->shape.kind) {
	case GATE_FAST_KVZIP:
		if (r->exact_numbers)
			return 1e-4 * wanted + 1e-30;
		return (arithmetic == GATE_EXACT ? .15 : 2e-3) * wanted + 1e-30;
	case GATE_KVZAP_LINEAR:
		if (r->exact_numbers)
			return 0;
		return (arithmetic == GATE_EXACT ? 1.0 / 128 : 1e-5) * fabs(wanted) + 1e-4;
	case GATE_KVZAP_MLP:
		if (arithmetic == GATE_EXACT)
			return 1.0 / 64 * fabs(wanted) + 4e-3;
		/* 512 terms of about .13 by factors that were rounded to bf16 here alone: .0033 is one deviation of that */
		return 4e-3 * fabs(wanted) + 6 * .0033;
	}
	return 0;
}

/* Most scores are off by much less. */
static double allowed_mean(const struct run *r)
{
	return r->shape.kind == GATE_KVZAP_MLP ? 2e-3 : r->exact_numbers ? 2e-5 : 3e-3;
}

static void compare(const struct run *r, enum gate_arithmetic arithmetic, const char *label)
{
	const struct shape *s = &r->shape;
	const double floor = s->kind == GATE_FAST_KVZIP ? 1e-3 : 1;
	double sum = 0, worst = 0;
	uint32_t rows = s->layers * s->heads;

	for (uint32_t row = 0; row < rows; row++)
		for (uint32_t t = 0; t < r->score_stride; t++) {
			const size_t at = (size_t)row * r->score_stride + t;
			const double got = r->got[at], wanted = r->wanted[at];

			if (t >= s->tokens) {
				if (!poisoned(r->got[at]))
					rig_die("%s: wrote behind row %u", label, row);
				continue;
			}
			if (isnan(wanted) && isnan(got) && !poisoned(r->got[at]))
				continue;
			if (!(fabs(got - wanted) <= allowed(r, arithmetic, wanted)))
				rig_die("%s: row %u, token %u: %.9g, not %.9g", label, row, t, got,
					wanted);
			sum += fabs(got - wanted) / (fabs(wanted) + floor);
			worst = fmax(worst, fabs(got - wanted) / (fabs(wanted) + floor));
		}
	if (!poisoned(r->got[(size_t)rows * r->score_stride]))
		rig_die("%s: wrote behind the end", label);
	printf("%s: off by %.2g on average, %.2g at most\n", label, sum / rows / s->tokens, worst);
	if (sum / rows / s->tokens > allowed_mean(r))
		rig_die("%s: too far off on average", label);
}

static void test_shape(struct rig *rig, const struct shape *s, bool exact_numbers)
{
	struct fixture f = {.info = {.kind = s->kind,
				    .layers = s->layers,
				    .heads = s->heads,
				    .groups = s->groups,
				    .hidden = s->hidden,
				    .dim = s->kind == GATE_FAST_KVZIP ? 16 : 0,
				    .sinks = s->sinks,
				    .mlp = s->mlp}};
	struct run r = {.rig = rig,
		.shape = *s,
		.exact_numbers = exact_numbers,
		.x_stride = s->hidden + 8 * (uint32_t)rig_below(&state, 3),
		.score_stride = s->tokens + (uint32_t)rig_below(&state, 5)};
	const size_t scores = (size_t)s->layers * s->heads * r.score_stride + 1;
	char why[GPU_WHY_BYTES], label[160];

	fixture_init(&f, rig_random(&state) % 1000);
	if (exact_numbers)
		make_exact(&f);
	r.gate = fixture_gate(&f);
	if (gpu_gate_new(rig->device, r.gate, &r.on_device, why, sizeof(why)) < 0)
		rig_die("%s", why);
	fill_x(&r);
	r.x_at = rig_upload(rig, r.x, (size_t)s->layers * s->tokens * r.x_stride * sizeof(*r.x));
	r.scores_at = rig_alloc(rig, scores * sizeof(float));
	r.scratch_at = rig_alloc(rig, gpu_gate_scratch(r.on_device, s->layers, s->tokens));
	r.got = malloc(scores * sizeof(float));
	r.wanted = malloc(scores * sizeof(float));
	for (enum gate_arithmetic a = GATE_EXACT; a <= GATE_FAST; a++) {
		score_on_cpu(&r, a);
		for (enum gpu_gate_path p = GPU_GATE_MMA; p <= GPU_GATE_WGMMA; p++) {
			snprintf(label, sizeof(label),
				"%s L %u H %u G %u D %u S %u mlp %u, %u tokens, %s, %s%s",
				kinds[s->kind], s->layers, s->heads, s->groups, s->hidden, s->sinks,
				s->mlp, s->tokens, a == GATE_EXACT ? "exact" : "fast",
				p == GPU_GATE_MMA ? "mma" : "wgmma",
				exact_numbers ? ", exact numbers" : "");
			score_on_device(&r, a, p);
			compare(&r, a, label);
		}
	}
	rig_free(rig, r.x_at);
	rig_free(rig, r.scores_at);
	rig_free(rig, r.scratch_at);
	gpu_gate_free(r.on_device);
	gate_free((struct gate *)(uintptr_t)r.gate);
	fixture_fini(&f);
	free(r.x);
	free(r.got);
	free(r.wanted);
}

static void test_refusal(struct rig *rig)
{
	struct fixture f = {.info = {.kind = GATE_FAST_KVZIP,
				    .layers = 1,
				    .heads = 1,
				    .groups = 20,
				    .hidden = 32,
				    .dim = 16,
				    .sinks = 16}};
	struct gpu_gate *on_device = NULL;
	char why[GPU_WHY_BYTES] = "";
	struct gate *g;

	fixture_init(&f, 1);
	g = fixture_gate(&f);
	if (gpu_gate_new(rig->device, g, &on_device, why, sizeof(why)) != -EOPNOTSUPP ||
		on_device || !strstr(why, "20"))
		rig_die("20 query heads a KV head: %s", why);
	gate_free(g);
	fixture_fini(&f);
}

static struct shape random_shape(bool small)
{
	struct shape s = {.kind = (enum gate_kind)(1 + rig_below(&state, 3)),
		.layers = 1 + (uint32_t)rig_below(&state, 3),
		.heads = 1 + (uint32_t)rig_below(&state, 9),
		.hidden = 8 * (1 + (uint32_t)rig_below(&state, small ? 20 : 80)),
		.tokens = 1 + (uint32_t)rig_below(&state, small ? 150 : 700)};

	if (s.kind == GATE_FAST_KVZIP) {
		s.groups = 1 + (uint32_t)rig_below(&state, 19);
		s.sinks = 1 + (uint32_t)rig_below(&state, 20);
	} else if (s.kind == GATE_KVZAP_MLP) {
		s.mlp = 8 * (1 + (uint32_t)rig_below(&state, 60));
	}
	return s;
}

int main(void)
{
	static const struct shape usual[] = {
		{GATE_FAST_KVZIP, 2, 8, 4, 4096, 16, 0, 300},
		{GATE_FAST_KVZIP, 1, 4, 7, 3584, 16, 0, 129},
		{GATE_FAST_KVZIP, 1, 8, 2, 3840, 16, 0, 128},
		{GATE_FAST_KVZIP, 1, 8, 5, 640, 16, 0, 257},
		{GATE_KVZAP_LINEAR, 3, 8, 0, 4096, 0, 0, 200},
		{GATE_KVZAP_MLP, 2, 8, 0, 4096, 0, 512, 200},
	};
	const bool small = getenv("KVGATE_SMALL");
	struct rig r;

	rig_init(&r);
	state = rig_seed(1);
	test_refusal(&r);
	for (size_t i = 0; !small && i < sizeof(usual) / sizeof(usual[0]); i++)
		for (int exact = 1; exact >= 0; exact--)
			test_shape(&r, &usual[i], exact);
	for (int i = 0; i < (small ? 8 : 24); i++) {
		const struct shape s = random_shape(small);

		test_shape(&r, &s, i % 2 == 0);
	}
	rig_fini(&r);
	printf("ok\n");
	return 0;
}
