/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scores against PyTorch's (gate_golden.bin, made by gate_reference.py), on every instruction set of this
 * machine. Both add up in f32, in different orders, so `fast` agrees to f32's last digits. In `exact` a sum
 * that lies between two bf16 falls to the other side now and then: one q or k in some thousands is one unit (1/256)
 * off, and its score with it. So nearly all scores agree to f32's last digits, all to a bf16 unit or two, and what is
 * kept is the same but for pairs at the very edge.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <math.h>

#include "gates/select.h"
#include "tests/unit/gate_fixture.h"

#define CASES_MAX 32

enum golden_kind { /* in the order of the file */
	EXACT,
	FAST,
	FAST_FROM_F32, /* of f32 hidden states, the others are given them in bf16 */
	EXACT_FROM_F32,
	KINDS,
};

struct golden {
	struct gate_info info;
	uint32_t tokens;
	uint64_t seed;
	float *scores[KINDS]; /* [layers][heads][tokens] */
};

static struct golden cases[CASES_MAX];
static uint32_t n_cases;

/* ---- the file ---- */

static uint32_t take(FILE *f)
{
	uint32_t v = 0;

	assert_int_equal(fread(&v, sizeof(v), 1, f), 1);
	return v;
}

static uint64_t n_scores(const struct golden *c)
{
	return (uint64_t)c->info.layers * c->info.heads * c->tokens;
}

static int read_golden(void **state)
{
	const char *path = KVG_SOURCE_DIR "/tests/ref/gate_golden.bin";
	FILE *f = fopen(path, "rb");
	char magic[8];

	(void)state;
	if (!f || fread(magic, sizeof(magic), 1, f) != 1 || memcmp(magic, "KVGGAT02", 8) != 0)
		return -1;
	n_cases = take(f);
	assert_true(n_cases > 0 && n_cases <= CASES_MAX);
	for (uint32_t i = 0; i < n_cases; i++) {
		struct golden *c = &cases[i];

		c->info.kind = (enum gate_kind)take(f);
		c->info.dtype = take(f);
		c->info.layers = take(f);
		c->info.heads = take(f);
		c->info.groups = take(f);
		c->info.hidden = take(f);
		c->info.dim = take(f);
		c->info.sinks = take(f);
		c->info.mlp = take(f);
		c->tokens = take(f);
		c->seed = take(f);
		for (unsigned k = 0; k < KINDS; k++) {
			c->scores[k] = malloc(n_scores(c) * sizeof(float));
			assert_int_equal(
				fread(c->scores[k], sizeof(float), n_scores(c), f), n_scores(c));
		}
	}
	fclose(f);
	return 0;
}

static int free_golden(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < n_cases; i++)
		for (unsigned k = 0; k < KINDS; k++)
			free(cases[i].scores[k]);
	return 0;
}

/* ---- comparison ---- */

/* Rows of different kinds have different sizes: errors are relative to 1 + |score| for KVzap, to the score else. */
static double error_of(const struct golden *c, float got, float wanted)
{
	double size = fabs((double)wanted);

	if (c->info.kind != GATE_FAST_KVZIP)
		size += 1;
	return fabs((double)got - (double)wanted) / size;
}

struct difference {
	double most, loose; /* largest error; share of scores with one above 2e-5 */
	double kept;        /* share of pairs kept by one and dropped by the other, r = .3 */
};

static double kept_differently(const struct golden *c, const float *a, const float *b)
{
	const struct select_params rule = {.rule = SELECT_PAIR, .retained = .3};
	uint8_t *ka = malloc(n_scores(c)), *kb = malloc(n_scores(c));
	uint64_t n = 0;

	assert_int_equal(select_dense(&rule, a, c->info.layers, c->info.heads, c->tokens, ka), 0);
	assert_int_equal(select_dense(&rule, b, c->info.layers, c->info.heads, c->tokens, kb), 0);
	for (uint64_t i = 0; i < n_scores(c); i++)
		n += ka[i] != kb[i];
	free(ka);
	free(kb);
	return (double)n / (double)n_scores(c);
}

static struct difference compare(const struct golden *c, const float *got, const float *wanted)
{
	struct difference d = {0};

	for (uint64_t i = 0; i < n_scores(c); i++) {
		double e = error_of(c, got[i], wanted[i]);

		assert_true(e == e);
		d.most = e > d.most ? e : d.most;
		d.loose += e > 2e-5;
	}
	d.loose /= (double)n_scores(c);
	d.kept = kept_differently(c, got, wanted);
	return d;
}

static void score_case(const struct golden *c, enum gate_isa isa, enum gate_arithmetic arithmetic,
	uint32_t dtype, float *ret)
{
	struct fixture f = {.info = c->info};
	struct gate *g;
	void *x = malloc(sizeof(float) * c->tokens * c->info.hidden);

	fixture_init(&f, c->seed);
	g = fixture_gate(&f);
	fixture_hidden(c->seed, c->tokens, c->info.hidden, dtype, x);
	for (uint32_t l = 0; l < c->info.layers; l++)
		fixture_score(g, l, x, dtype, c->tokens, arithmetic, isa,
			ret + (size_t)l * c->info.heads * c->tokens);
	free(x);
	gate_free(g);
	fixture_fini(&f);
}

static const struct {
	const char *name;
	enum gate_arithmetic arithmetic;
	uint32_t dtype;
	enum golden_kind golden;
} ways[] = {
	{"exact", GATE_EXACT, KVG_DTYPE_BF16, EXACT},
	{"exact from f32", GATE_EXACT, KVG_DTYPE_F32, EXACT_FROM_F32},
	{"fast", GATE_FAST, KVG_DTYPE_BF16, FAST},
	{"fast from f32", GATE_FAST, KVG_DTYPE_F32, FAST_FROM_F32},
};

/* How far apart the two may be: the finer the dtype that is rounded to, the oftener, and the less. */
static struct difference limit_of(const struct golden *c, enum gate_arithmetic arithmetic)
{
	if (arithmetic == GATE_FAST || c->info.dtype == KVG_DTYPE_F32)
		return (struct difference){3e-5, .001, .001};
	if (c->info.dtype == KVG_DTYPE_F16)
		return (struct difference){4e-3, .08, .003};
	return (struct difference){3e-2, .03, .003};
}

static void check_way(const struct golden *c, enum gate_isa isa, unsigned w, float *got)
{
	const struct difference limit = limit_of(c, ways[w].arithmetic);
	struct difference d;

	score_case(c, isa, ways[w].arithmetic, ways[w].dtype, got);
	d = compare(c, got, c->scores[ways[w].golden]);
	if (d.most > limit.most || d.loose > limit.loose || d.kept > limit.kept)
		fail_msg("seed %u, %s, %s: most %.1e, loose %.4f, kept %.4f", (unsigned)c->seed,
			gate_isa_name(isa), ways[w].name, d.most, d.loose, d.kept);
}

static void test_golden(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < n_cases; i++) {
		float *got = malloc(n_scores(&cases[i]) * sizeof(*got));

		for (enum gate_isa isa = GATE_ISA_AUTO; isa <= GATE_ISA_AMX_BF16; isa++)
			for (unsigned w = 0; w < sizeof(ways) / sizeof(ways[0]); w++)
				if (gate_isa_supported(isa))
					check_way(&cases[i], isa, w, got);
		free(got);
	}
}

/*
 * The rounding points matter: without them most scores differ, so `exact` is not just `fast` within a tolerance. A
 * gate in f32 has none.
 */
static void test_exact_is_not_fast(void **state)
{
	bool seen[KVG_DTYPE_F32 + 1] = {false};

	(void)state;
	for (uint32_t i = 0; i < n_cases; i++) {
		const struct golden *c = &cases[i];
		float *got = malloc(n_scores(c) * sizeof(*got));
		struct difference d;

		score_case(c, GATE_ISA_AUTO, GATE_FAST, KVG_DTYPE_BF16, got);
		d = compare(c, got, c->scores[EXACT]);
		if (c->info.dtype == KVG_DTYPE_F32)
			assert_true(d.loose < .001);
		else
			assert_true(d.loose > (c->info.dtype == KVG_DTYPE_F16 ? .8 : .9));
		seen[c->info.dtype] = true;
		free(got);
	}
	assert_true(seen[KVG_DTYPE_BF16] && seen[KVG_DTYPE_F16] && seen[KVG_DTYPE_F32]);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_exact_is_not_fast),
	};

	return cmocka_run_group_tests(tests, read_golden, free_golden);
}
