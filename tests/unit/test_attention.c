/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Attention against a plain one in double: random runs of every dtype at odd addresses and in any
 * order, widths that fill no vector, groups, causal limits, heads of different
 * lengths side by side, each instruction set the processor has.
 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/worker/attention.h"
#include "proto/shape.h"

enum {
	HEADS_MAX = 3,
	RUNS_MAX = 40,
	ROWS_MAX = 4000
};
#define TOLERANCE 2e-5 /* f32 sums of up to 4000 terms; values are below 1 */

/* One random head: rows in f32 and, as they lie, in their dtype. */
struct head {
	uint32_t k_dim, v_dim, dtype, n_rows;
	float *k, *v; /* [n_rows][dim], exact in the dtype */
	struct kv_run run[RUNS_MAX];
	uint8_t *memory[RUNS_MAX];
	uint32_t n_runs;
};

static uint64_t state;

static uint32_t below(uint32_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((state >> 33) % n);
}

/* A multiple of 1/128 in [-1, 1): exact in every dtype. */
static float value(void)
{
	return (float)((int)below(256) - 128) / 128.0f;
}

static void put(uint8_t *to, float f, uint32_t dtype)
{
	const uint16_t half = dtype == KVG_DTYPE_BF16 ? bf16_from_f32(f) : f16_from_f32(f);

	if (dtype == KVG_DTYPE_F32)
		memcpy(to, &f, sizeof(f));
	else
		memcpy(to, &half, sizeof(half));
}

static void add_run(struct head *h, uint32_t n)
{
	const size_t size = dtype_bytes(h->dtype);
	const size_t k_bytes = n * h->k_dim * size, v_bytes = n * h->v_dim * size;
	uint8_t *memory = malloc(k_bytes + v_bytes + 64);
	uint8_t *k = memory + size * below(8), *v = k + k_bytes + size * below(4);

	assert_non_null(memory);
	for (uint32_t i = 0; i < n * h->k_dim; i++) {
		h->k[(size_t)h->n_rows * h->k_dim + i] = value();
		put(k + i * size, h->k[(size_t)h->n_rows * h->k_dim + i], h->dtype);
	}
	for (uint32_t i = 0; i < n * h->v_dim; i++) {
		h->v[(size_t)h->n_rows * h->v_dim + i] = value();
		put(v + i * size, h->v[(size_t)h->n_rows * h->v_dim + i], h->dtype);
	}
	h->memory[h->n_runs] = memory;
	h->run[h->n_runs++] = (struct kv_run){.k = k, .v = v, .n = n};
	h->n_rows += n;
}

static void head_init(struct head *h, uint32_t k_dim, uint32_t v_dim, uint32_t dtype)
{
	*h = (struct head){.k_dim = k_dim, .v_dim = v_dim, .dtype = dtype};
	h->k = malloc(ROWS_MAX * k_dim * sizeof(float));
	h->v = malloc(ROWS_MAX * v_dim * sizeof(float));
	assert_true(h->k && h->v);
}

static void head_fini(struct head *h)
{
	for (uint32_t i = 0; i < h->n_runs; i++)
		free(h->memory[i]);
	free(h->k);
	free(h->v);
}

/* The result of one query over the first `seen` rows of a, then of b. */
static void reference(const struct head *a, const struct head *b, const uint32_t seen[2],
	const float *q, double *ret)
{
	const struct head *heads[2] = {a, b};
	double max = -INFINITY, sum = 0.0;

	for (uint32_t c = 0; c < a->v_dim; c++)
		ret[c] = 0.0;
	for (int pass = 0; pass < 2; pass++)
		for (int i = 0; i < 2; i++)
			for (uint32_t j = 0; j < seen[i]; j++) {
				const struct head *h = heads[i];
				double s = 0.0, p;

				for (uint32_t c = 0; c < h->k_dim; c++)
					s += (double)q[c] * (double)h->k[(size_t)j * h->k_dim + c];
				s /= sqrt((double)h->k_dim);
				if (pass == 0) {
					max = s > max ? s : max;
					continue;
				}
				p = exp(s - max);
				sum += p;
				for (uint32_t c = 0; c < h->v_dim; c++)
					ret[c] += p * (double)h->v[(size_t)j * h->v_dim + c];
			}
	for (uint32_t c = 0; c < a->v_dim; c++)
		ret[c] /= sum;
}

struct queries {
	uint32_t heads, rows, group, stride;
	float *q;
};

static void check(const struct head *context, const struct head *own, const struct queries *qs,
	uint32_t head, const float *out, uint32_t out_stride)
{
	double expected[256];

	for (uint32_t i = 0; i < qs->rows * qs->group; i++) {
		const uint32_t row = i / qs->group, g = head * qs->group + i % qs->group;
		const uint32_t seen[2] = {context->n_rows, own->n_rows - qs->rows + row + 1};

		reference(context, own, seen,
			qs->q + (size_t)row * qs->stride + (size_t)g * context->k_dim, expected);
		for (uint32_t c = 0; c < context->v_dim; c++) {
			const double got = (double)
				out[(size_t)row * out_stride + (size_t)g * context->v_dim + c];

			if (!(fabs(got - expected[c]) <= TOLERANCE))
				fail_msg("head %u query %u dim %u: %.7f, not %.7f", head, i, c, got,
					expected[c]);
		}
	}
}

/* Heads differ in their rows, by far: some have none but their own. */
static void make_heads(struct head *context, struct head *own, const struct queries *qs,
	uint32_t dtype, uint32_t k_dim, uint32_t v_dim)
{
	for (uint32_t h = 0; h < qs->heads; h++) {
		head_init(&context[h], k_dim, v_dim, dtype);
		head_init(&own[h], k_dim, v_dim, KVG_DTYPE_F32);
		for (uint32_t n = below(RUNS_MAX); context[h].n_runs < n;)
			add_run(&context[h], 1 + below(below(4) ? 9 : 90));
		add_run(&own[h], qs->rows + below(200));
	}
}

static void attend(struct attention *a, const struct head *context, const struct head *own,
	const struct queries *qs, float *out)
{
	struct kv_rows rows[2][HEADS_MAX];

	for (uint32_t h = 0; h < qs->heads; h++) {
		rows[0][h] = (struct kv_rows){context[h].run, context[h].n_runs, context[h].dtype};
		rows[1][h] = (struct kv_rows){own[h].run, own[h].n_runs, own[h].dtype};
	}
	attention_begin(a, qs->q, qs->rows * qs->group, qs->group, qs->stride);
	attention_rows(a, rows[0]);
	attention_rows_causal(a, rows[1], qs->rows - 1);
	attention_end(a, out, qs->heads * qs->group * own->v_dim);
}

static void one_case(enum attention_isa isa, uint32_t dtype, uint32_t k_dim, uint32_t v_dim)
{
	struct queries qs = {.group = 1 + below(5), .heads = 1 + below(HEADS_MAX)};
	const uint32_t width = qs.heads * qs.group;
	struct head context[HEADS_MAX], own[HEADS_MAX];
	struct attention *a;
	float *out;

	qs.rows = 1 + below(ATTENTION_QUERIES_MAX / qs.group);
	qs.stride = width * k_dim + below(9);
	make_heads(context, own, &qs, dtype, k_dim, v_dim);
	qs.q = malloc(qs.rows * qs.stride * sizeof(float));
	out = malloc(qs.rows * width * v_dim * sizeof(float));
	assert_true(qs.q && out);
	for (uint32_t i = 0; i < qs.rows * qs.stride; i++)
		qs.q[i] = 6.0f * value();
	assert_int_equal(attention_new(qs.heads, k_dim, v_dim, isa, &a), 0);
	attend(a, context, own, &qs, out);
	for (uint32_t h = 0; h < qs.heads; h++) {
		check(&context[h], &own[h], &qs, h, out, width * v_dim);
		head_fini(&context[h]);
		head_fini(&own[h]);
	}
	attention_free(a);
	free(qs.q);
	free(out);
}

static void every_shape(enum attention_isa isa)
{
	static const uint32_t dtypes[] = {KVG_DTYPE_BF16, KVG_DTYPE_F16, KVG_DTYPE_F32};
	static const uint32_t dims[][2] = {
		{32, 32}, {128, 128}, {64, 64}, {16, 16}, {80, 48}, {20, 36}, {8, 8}, {7, 5}};

	if (!attention_isa_supported(isa))
		skip();
	state = isa;
	for (unsigned d = 0; d < 3; d++)
		for (unsigned i = 0; i < sizeof(dims) / sizeof(dims[0]); i++)
			for (int n = 0; n < 12; n++)
				one_case(isa, dtypes[d], dims[i][0], dims[i][1]);
}

static void test_scalar(void **unused)
{
	(void)unused;
	every_shape(ATTENTION_SCALAR);
}

static void test_avx2(void **unused)
{
	(void)unused;
	every_shape(ATTENTION_AVX2);
}

static void test_avx512(void **unused)
{
	(void)unused;
	every_shape(ATTENTION_AVX512);
}

/* Scores far apart, and far from 0: what softmax must not overflow on. */
static void test_extremes(void **unused)
{
	const float k[4] = {100.0f, -100.0f, 99.0f, -1000.0f}, v[4] = {1.0f, 2.0f, 3.0f, 4.0f};
	const struct kv_run run[2] = {{&k[1], &v[1], 3}, {&k[0], &v[0], 1}};
	const float q = 50.0f;

	(void)unused;
	for (int isa = ATTENTION_SCALAR; isa <= ATTENTION_AVX512; isa++) {
		struct attention *a;
		float out = 0.0f;

		if (!attention_isa_supported((enum attention_isa)isa))
			continue;
		assert_int_equal(attention_new(1, 1, 1, (enum attention_isa)isa, &a), 0);
		attention_begin(a, &q, 1, 1, 0);
		attention_rows(a, &(struct kv_rows){run, 2, KVG_DTYPE_F32});
		attention_end(a, &out, 0);
		assert_true(fabsf(out - 1.0f) < 1e-6f);
		/* Nothing at all to attend to. */
		attention_begin(a, &q, 1, 1, 0);
		attention_end(a, &out, 0);
		assert_true(out == 0.0f);
		attention_free(a);
	}
}

/*
 * A head's result is the same to the bit whether it is alone or beside others, shorter and longer
 * by rounds: tiles of heads take turns, and none may see the other's rows.
 */
static void test_heads(void **unused)
{
	static const uint32_t rows[HEADS_MAX] = {3500, 70, 1400};
	const uint32_t dim = 32, group = 2;
	struct head context[HEADS_MAX], own[HEADS_MAX];
	struct queries qs = {.heads = HEADS_MAX, .rows = 3, .group = group};
	float q[3 * HEADS_MAX * 2 * 32], out[3 * HEADS_MAX * 2 * 32], alone[3 * 2 * 32];

	(void)unused;
	qs.stride = HEADS_MAX * group * dim;
	qs.q = q;
	for (uint32_t i = 0; i < qs.rows * qs.stride; i++)
		q[i] = 6.0f * value();
	for (uint32_t h = 0; h < HEADS_MAX; h++) {
		head_init(&context[h], dim, dim, KVG_DTYPE_BF16);
		head_init(&own[h], dim, dim, KVG_DTYPE_F32);
		while (context[h].n_rows < rows[h] && context[h].n_runs < RUNS_MAX)
			add_run(&context[h], 1 + below(rows[h] * 2 / RUNS_MAX));
		add_run(&own[h], 3 + h);
	}
	for (int isa = ATTENTION_SCALAR; isa <= ATTENTION_AVX512; isa++) {
		struct attention *all, *one;

		if (!attention_isa_supported((enum attention_isa)isa))
			continue;
		assert_int_equal(
			attention_new(HEADS_MAX, dim, dim, (enum attention_isa)isa, &all), 0);
		assert_int_equal(attention_new(1, dim, dim, (enum attention_isa)isa, &one), 0);
		attend(all, context, own, &qs, out);
		for (uint32_t h = 0; h < HEADS_MAX; h++) {
			struct queries mine = qs;

			check(&context[h], &own[h], &qs, h, out, qs.stride);
			mine.heads = 1;
			mine.q = q + h * group * dim;
			attend(one, &context[h], &own[h], &mine, alone);
			for (uint32_t i = 0; i < qs.rows; i++)
				assert_memory_equal(alone + i * group * dim,
					out + i * qs.stride + h * group * dim,
					group * dim * sizeof(float));
		}
		attention_free(all);
		attention_free(one);
	}
	for (uint32_t h = 0; h < HEADS_MAX; h++) {
		head_fini(&context[h]);
		head_fini(&own[h]);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scalar),
		cmocka_unit_test(test_avx2),
		cmocka_unit_test(test_avx512),
		cmocka_unit_test(test_extremes),
		cmocka_unit_test(test_heads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
