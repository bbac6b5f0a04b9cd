/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What must be true of any gate: the known answers of gates/README.md, symmetries, and that neither the number of
 * tokens, nor strides, nor threads, nor the company a token is in changes its score.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <math.h>

#include "tests/unit/gate_fixture.h"

#define TOKENS 50

static const struct gate_info usual = {.kind = GATE_FAST_KVZIP,
	.layers = 1,
	.heads = 3,
	.groups = 4,
	.hidden = 160,
	.dim = 16,
	.sinks = 16};

struct scored {
	float v[3 * TOKENS];
};

static uint16_t hidden[TOKENS * 160];

static int make_hidden(void **state)
{
	(void)state;
	fixture_hidden(7, TOKENS, 160, KVG_DTYPE_BF16, hidden);
	return 0;
}

static struct scored score(struct fixture *f, enum gate_arithmetic arithmetic, enum gate_isa isa)
{
	struct gate *g = fixture_gate(f);
	struct scored s;

	fixture_score(g, 0, hidden, KVG_DTYPE_BF16, TOKENS, arithmetic, isa, s.v);
	gate_free(g);
	return s;
}

static double apart(const struct scored *a, const struct scored *b)
{
	double most = 0;

	for (unsigned i = 0; i < 3 * TOKENS; i++) {
		double d = fabs((double)a->v[i] - (double)b->v[i]) / (double)fabsf(b->v[i]);

		most = d > most || d != d ? d : most;
	}
	return most;
}

static void fill(struct fixture *f, const char *suffix, float value)
{
	struct safetensors_tensor *t = fixture_tensor(f, 0, suffix);

	for (uint64_t i = 0; i < fixture_count(t); i++)
		fixture_set(t, i, value);
}

static void scale(struct fixture *f, const char *suffix, float by)
{
	struct safetensors_tensor *t = fixture_tensor(f, 0, suffix);

	for (uint64_t i = 0; i < fixture_count(t); i++)
		fixture_set(t, i, by * fixture_get(t, i));
}

/* Runs over every path and both arithmetics. */
#define each_way(arithmetic, isa)                                                                  \
	for (enum gate_isa isa = GATE_ISA_AUTO; isa <= GATE_ISA_AMX_BF16; isa++)                   \
		for (int arithmetic = GATE_EXACT; arithmetic <= GATE_FAST; arithmetic++)           \
			if (gate_isa_supported(isa))

/* Wk = 0 and b = 0 make l = 0; with k_base = 0 a sink weighs as much as the token: 1 / (1 + S) = 1/17. */
static void test_zero_key(void **state)
{
	struct fixture f = {.info = usual};

	(void)state;
	fixture_init(&f, 1);
	fill(&f, "k_proj.weight", 0);
	fill(&f, "k_base", 0);
	fill(&f, "b", 0);
	each_way(arithmetic, isa)
	{
		struct scored s = score(&f, arithmetic, isa);

		for (unsigned i = 0; i < 3 * TOKENS; i++)
			assert_true(fabs((double)s.v[i] - 1.0 / 17) < 1e-6);
	}
	fixture_fini(&f);
}

/* k_base = 0 -> 1 / (1 + S exp(-l)); with Wk = 0, l = b. */
static void test_zero_sinks(void **state)
{
	struct fixture f = {.info = usual};
	struct safetensors_tensor *b;

	(void)state;
	fixture_init(&f, 2);
	fill(&f, "k_proj.weight", 0);
	fill(&f, "k_base", 0);
	b = fixture_tensor(&f, 0, "b");
	each_way(arithmetic, isa)
	{
		struct scored s = score(&f, arithmetic, isa);

		for (unsigned h = 0; h < 3; h++) {
			double wanted = 0;

			for (unsigned g = 0; g < 4; g++)
				wanted += 1 / (1 + 16 * exp(-(double)fixture_get(b, h * 4 + g)));
			for (unsigned t = 0; t < TOKENS; t++)
				assert_true(fabs((double)s.v[h * TOKENS + t] - wanted / 4) < 1e-6);
		}
	}
	fixture_fini(&f);
}

static void test_permuted_sinks(void **state)
{
	struct fixture f = {.info = usual};
	struct safetensors_tensor *base;

	(void)state;
	fixture_init(&f, 3);
	base = fixture_tensor(&f, 0, "k_base");
	each_way(arithmetic, isa)
	{
		struct scored before = score(&f, arithmetic, isa), after;

		for (unsigned h = 0; h < 3; h++) {
			float *rows = (float *)base->data + h * 16 * 16, last[16];

			memcpy(last, rows + 15 * 16, sizeof(last));
			memmove(rows + 16, rows, 15 * sizeof(last));
			memcpy(rows, last, sizeof(last));
		}
		after = score(&f, arithmetic, isa);
		assert_true(apart(&after, &before) < 2e-6);
	}
	fixture_fini(&f);
}

/* Groups of a head in another order: q rows, q biases and b move together. */
static void test_permuted_groups(void **state)
{
	struct fixture f = {.info = usual};
	struct safetensors_tensor *w, *bias, *b;
	const size_t group = (size_t)16 * 160;

	(void)state;
	fixture_init(&f, 4);
	w = fixture_tensor(&f, 0, "q_proj.weight");
	bias = fixture_tensor(&f, 0, "q_proj.bias");
	b = fixture_tensor(&f, 0, "b");
	each_way(arithmetic, isa)
	{
		struct scored before = score(&f, arithmetic, isa), after;

		for (unsigned h = 0; h < 3; h++) {
			uint16_t *rows = (uint16_t *)w->data + h * 4 * group;
			uint16_t *offsets = (uint16_t *)bias->data + h * 4 * 16;
			uint16_t *plain = (uint16_t *)b->data + h * 4, swap;

			for (size_t i = 0; i < group; i++) {
				swap = rows[i];
				rows[i] = rows[2 * group + i];
				rows[2 * group + i] = swap;
			}
			for (size_t i = 0; i < 16; i++) {
				swap = offsets[i];
				offsets[i] = offsets[32 + i];
				offsets[32 + i] = swap;
			}
			swap = plain[0];
			plain[0] = plain[2];
			plain[2] = swap;
		}
		after = score(&f, arithmetic, isa);
		assert_true(apart(&after, &before) < 2e-6);
	}
	fixture_fini(&f);
}

/* Norms take scales away; powers of two leave even the roundings as they were, but for epsilon. */
static void test_scaled_projections(void **state)
{
	struct fixture f = {.info = usual};

	(void)state;
	each_way(arithmetic, isa)
	{
		struct scored before, after;

		fixture_init(&f, 5);
		before = score(&f, arithmetic, isa);
		scale(&f, "k_proj.weight", 4);
		scale(&f, "q_proj.weight", .5f);
		scale(&f, "q_proj.bias", .5f);
		after = score(&f, arithmetic, isa);
		assert_true(apart(&after, &before) < (arithmetic == GATE_EXACT ? 2e-2 : 1e-4));
		fixture_fini(&f);
	}
}

/* S equal sinks weigh as one of S times the weight: l is lower by ln S. */
static void test_equal_sinks(void **state)
{
	struct fixture many = {.info = usual}, one = {.info = usual};

	(void)state;
	one.info.sinks = 1;
	fixture_init(&many, 6);
	fixture_init(&one, 6);
	for (unsigned h = 0; h < 3; h++)
		for (unsigned s = 0; s < 16; s++)
			for (unsigned d = 0; d < 16; d++)
				fixture_set(fixture_tensor(&many, 0, "k_base"),
					(h * 16 + s) * 16 + d,
					fixture_get(fixture_tensor(&one, 0, "k_base"), h * 16 + d));
	fill(&many, "b",
		2.765625f); /* in bf16, small numbers can be nearer to ln 16 less this one */
	fill(&one, "b", 2.765625f - logf(16));
	each_way(arithmetic, isa)
	{
		struct scored a = score(&many, arithmetic, isa), b = score(&one, arithmetic, isa);

		assert_true(apart(&a, &b) < 3e-5);
	}
	fixture_fini(&many);
	fixture_fini(&one);
}

static void test_extremes(void **state)
{
	struct fixture f = {.info = usual};

	(void)state;
	fixture_init(&f, 8);
	each_way(arithmetic, isa)
	{
		struct scored s;

		fill(&f, "b", -1e30f);
		s = score(&f, arithmetic, isa);
		for (unsigned i = 0; i < 3 * TOKENS; i++)
			assert_true(s.v[i] < 1e-30f && s.v[i] >= 0);
		fill(&f, "b", 1e30f);
		s = score(&f, arithmetic, isa);
		for (unsigned i = 0; i < 3 * TOKENS; i++)
			assert_true(s.v[i] == 1);
	}
	fixture_fini(&f);
}

/* NaN makes its own token's scores NaN, in every head, and no other's. */
static void check_nan(uint32_t dtype)
{
	static const uint16_t nans[] = {0x7fc0, 0x7fff, 0xffc1};
	struct fixture f = {.info = usual};
	struct gate *g;
	uint16_t x[TOKENS * 160];
	float clean[3 * TOKENS], dirty[3 * TOKENS];

	f.info.dtype = dtype;
	fixture_init(&f, 9);
	g = fixture_gate(&f);
	each_way(arithmetic, isa)
	{
		memcpy(x, hidden, sizeof(x));
		fixture_score(g, 0, x, KVG_DTYPE_BF16, TOKENS, arithmetic, isa, clean);
		for (unsigned i = 0; i < 3; i++)
			x[(11 + i) * 160 + 40 * i] = nans[i];
		fixture_score(g, 0, x, KVG_DTYPE_BF16, TOKENS, arithmetic, isa, dirty);
		for (unsigned i = 0; i < 3 * TOKENS; i++) {
			unsigned t = i % TOKENS;

			if (t >= 11 && t <= 13)
				assert_true(isnan(dirty[i]));
			else
				assert_true(dirty[i] == clean[i]);
		}
	}
	gate_free(g);
	fixture_fini(&f);
}

static void test_nan(void **state)
{
	(void)state;
	check_nan(KVG_DTYPE_BF16);
	check_nan(KVG_DTYPE_F16);
	check_nan(KVG_DTYPE_F32);
}

static float from_bits(uint32_t bits)
{
	float f;

	memcpy(&f, &bits, sizeof(f));
	return f;
}

/* f32 has NaNs with bits that bf16 has no room for. */
static void test_nan_f32(void **state)
{
	static const uint32_t nans[] = {0x7fc00001, 0x7f800001, 0xffffffff, 0xffc00000, 0x7fc000ff};
	const uint32_t n = sizeof(nans) / sizeof(nans[0]);
	struct fixture f = {.info = usual};
	float x[5 * 160], got[3 * 5];
	struct gate *g;

	(void)state;
	fixture_init(&f, 14);
	fixture_hidden(15, n, 160, KVG_DTYPE_F32, x);
	for (uint32_t t = 0; t < n; t++)
		x[t * 160 + 7 * t] = from_bits(nans[t]);
	g = fixture_gate(&f);
	each_way(arithmetic, isa)
	{
		fixture_score(g, 0, x, KVG_DTYPE_F32, n, arithmetic, isa, got);
		for (uint32_t i = 0; i < 3 * n; i++)
			assert_true(isnan(got[i]));
	}
	gate_free(g);
	fixture_fini(&f);
}

/* A token scores the same to the last bit alone, in any company, at any place, with any strides. */
static void check_company(uint32_t dtype)
{
	static const uint32_t lengths[] = {1, 2, 5, 11, 12, 13, 31, 32, 33, 287, 288, 289, 600};
	struct fixture f = {.info = usual};
	const size_t x_stride = 163, score_stride = 611;
	struct gate_scratch *scratch = NULL;
	float *all = malloc(3 * 600 * sizeof(float)),
	      *some = malloc(3 * score_stride * sizeof(float));
	uint16_t *x = malloc(600 * 160 * 2), *wide = calloc(600 * x_stride, 2);
	struct gate *g;

	f.info.dtype = dtype;
	fixture_init(&f, 10);
	g = fixture_gate(&f);
	fixture_hidden(11, 600, 160, KVG_DTYPE_BF16, x);
	for (unsigned t = 0; t < 600; t++)
		memcpy(wide + t * x_stride, x + t * 160, 160 * 2);
	assert_int_equal(gate_scratch_new(g, 600, &scratch), 0);
	each_way(arithmetic, isa)
	{
		fixture_score(g, 0, x, KVG_DTYPE_BF16, 600, arithmetic, isa, all);
		for (unsigned i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
			uint32_t n = lengths[i], first = 600 - n;

			for (size_t k = 0; k < 3 * score_stride; k++)
				some[k] = -7;
			gate_score(g, 0, wide + first * x_stride, KVG_DTYPE_BF16, x_stride, n,
				arithmetic, isa, scratch, some, score_stride);
			for (unsigned h = 0; h < 3; h++) {
				for (uint32_t t = 0; t < n; t++)
					assert_true(some[h * score_stride + t] ==
						all[h * 600 + first + t]);
				assert_true(some[h * score_stride + n] == -7);
			}
		}
	}
	gate_scratch_free(scratch);
	gate_free(g);
	fixture_fini(&f);
	free(all);
	free(some);
	free(x);
	free(wide);
}

static void test_company(void **state)
{
	(void)state;
	check_company(KVG_DTYPE_BF16);
	check_company(KVG_DTYPE_F16);
	check_company(KVG_DTYPE_F32);
}

#define ROUNDED (512u * 8) /* signs and exponents, and some mantissas of each */

/* A linear gate of one weight: what it is given is rounded, so is what comes out. */
static void check_f16_rounding(const float *x, float weight, enum gate_isa isa)
{
	struct fixture f = {.info = {.kind = GATE_KVZAP_LINEAR,
				    .dtype = KVG_DTYPE_F16,
				    .layers = 1,
				    .heads = 1,
				    .hidden = 1}};
	float *got = malloc(ROUNDED * sizeof(*got));
	struct gate *g;

	fixture_init(&f, 13);
	fill(&f, "weight", weight);
	fill(&f, "bias", 0);
	g = fixture_gate(&f);
	fixture_score(g, 0, x, KVG_DTYPE_F32, ROUNDED, GATE_EXACT, isa, got);
	for (uint32_t i = 0; i < ROUNDED; i++) {
		float wanted = f16_to_f32(f16_from_f32(weight * f16_to_f32(f16_from_f32(x[i]))));

		assert_true(got[i] == wanted || (isnan(got[i]) && isnan(x[i])));
	}
	gate_free(g);
	fixture_fini(&f);
	free(got);
}

/*
 * Vector paths round to f16 as the scalar conversion does, on both sides of the ties, at the ends of f16, and what is
 * no number. The last rounding is scalar: weights other than 1 show what the first one left.
 */
static void test_f16_rounding(void **state)
{
	static const uint32_t tails[] = {0, 1, 0xfff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x7fffff};
	static float x[ROUNDED];

	(void)state;
	for (uint32_t i = 0; i < ROUNDED; i++)
		x[i] = from_bits(i / 8 << 23 | tails[i % 8]);
	for (enum gate_isa isa = GATE_ISA_AUTO; isa <= GATE_ISA_AMX_BF16; isa++) {
		if (!gate_isa_supported(isa))
			continue;
		check_f16_rounding(x, 1, isa);
		check_f16_rounding(x, .5f, isa);
		check_f16_rounding(x, 1024, isa);
	}
}

static void check_threads(enum gate_kind kind, uint32_t tokens, unsigned threads)
{
	struct fixture f = {.info = usual};
	const size_t n = (size_t)tokens * 160;
	float *x = malloc(3 * n * sizeof(float) + 1), *wanted, *got;
	struct gate *g;

	f.info.kind = kind;
	f.info.layers = 3;
	f.info.mlp = kind == GATE_KVZAP_MLP ? 24 : 0;
	fixture_init(&f, 12);
	g = fixture_gate(&f);
	wanted = malloc((size_t)3 * 3 * tokens * sizeof(float) + 1);
	got = calloc((size_t)3 * 3 * tokens + 1, sizeof(float));
	for (unsigned l = 0; l < 3; l++) {
		fixture_hidden(20 + l, tokens, 160, KVG_DTYPE_F32, x + l * n);
		fixture_score(g, l, x + l * n, KVG_DTYPE_F32, tokens, GATE_EXACT, GATE_ISA_AUTO,
			wanted + l * 3 * tokens);
	}
	assert_int_equal(gate_score_all(g, x, KVG_DTYPE_F32, tokens, GATE_EXACT, GATE_ISA_AUTO,
				 threads, got),
		0);
	assert_memory_equal(got, wanted, (size_t)3 * 3 * tokens * sizeof(float));
	gate_free(g);
	fixture_fini(&f);
	free(x);
	free(wanted);
	free(got);
}

static void test_threads(void **state)
{
	(void)state;
	check_threads(GATE_FAST_KVZIP, 700, 4);
	check_threads(GATE_KVZAP_LINEAR, 700, 3);
	check_threads(GATE_KVZAP_MLP, 300, 64);
	check_threads(GATE_FAST_KVZIP, 1, 0);
	check_threads(GATE_FAST_KVZIP, 0, 2);
}

/* PyTorch's scores on a GPU, from hidden states that were rounded to bf16 when they were stored. */
static void test_lab_reference(void **state)
{
	const char *lab = KVG_SOURCE_DIR "/client/demo/lab/";
	struct safetensors *st = NULL;
	struct gate *g = NULL;
	char path[512], why[300] = "";
	double most = 0, sum = 0;
	uint32_t n = 0;

	(void)state;
	snprintf(path, sizeof(path), "%sref.safetensors", lab);
	assert_int_equal(safetensors_open(path, &st, why, sizeof(why)), 0);
	snprintf(path, sizeof(path), "%sgate.safetensors", lab);
	assert_int_equal(gate_load(path, &g, why, sizeof(why)), 0);
	for (uint32_t l = 0; l < gate_info(g)->layers; l++) {
		const struct safetensors_tensor *x, *wanted;
		uint32_t tokens, heads = gate_info(g)->heads;
		float *got;

		snprintf(path, sizeof(path), "hidden.%u", l);
		x = safetensors_find(st, path);
		snprintf(path, sizeof(path), "gate_score.%u", l);
		wanted = safetensors_find(st, path);
		assert_true(x && wanted && wanted->shape[1] == heads);
		tokens = (uint32_t)x->shape[0];
		got = malloc(sizeof(float) * heads * tokens);
		fixture_score(
			g, l, x->data, KVG_DTYPE_BF16, tokens, GATE_EXACT, GATE_ISA_AUTO, got);
		for (uint32_t t = 0; t < tokens; t++) {
			for (uint32_t h = 0; h < heads; h++, n++) {
				double w = (double)((const float *)wanted->data)[t * heads + h];
				double e = fabs((double)got[h * tokens + t] - w) / w;

				most = e > most ? e : most;
				sum += e;
			}
		}
		free(got);
	}
	assert_true(n == 8 * 4 * 403);
	assert_true(most < 2e-2 && sum / n < 3e-3);
	gate_free(g);
	safetensors_close(st);
}

static void test_names(void **state)
{
	(void)state;
	for (enum gate_isa isa = GATE_ISA_AUTO; isa <= GATE_ISA_AMX_BF16; isa++)
		assert_int_equal(gate_isa_from_name(gate_isa_name(isa)), isa);
	assert_int_equal(gate_isa_from_name("sse9"), -1);
	assert_null(gate_isa_name((enum gate_isa)99));
	assert_true(gate_isa_supported(GATE_ISA_SCALAR));
	assert_false(gate_isa_supported((enum gate_isa)99));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_zero_key),
		cmocka_unit_test(test_zero_sinks),
		cmocka_unit_test(test_permuted_sinks),
		cmocka_unit_test(test_permuted_groups),
		cmocka_unit_test(test_scaled_projections),
		cmocka_unit_test(test_equal_sinks),
		cmocka_unit_test(test_extremes),
		cmocka_unit_test(test_nan),
		cmocka_unit_test(test_nan_f32),
		cmocka_unit_test(test_company),
		cmocka_unit_test(test_f16_rounding),
		cmocka_unit_test(test_threads),
		cmocka_unit_test(test_lab_reference),
		cmocka_unit_test(test_names),
	};

	return cmocka_run_group_tests(tests, make_hidden, NULL);
}
