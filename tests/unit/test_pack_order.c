/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The order of pairs against a plain sort of (f16 score descending, token ascending), and rows against memcpy, with all
 * kernels that the processor can run.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/pack_kernels.h"
#include "daemon/cache/pack_order.h"
#include "proto/plane.h"
#include "proto/shape.h"

static uint64_t seed = 7;
static const struct pack_kernels *kernels;

static uint32_t rnd(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(seed >> 32);
}

static float any_float(void)
{
	union {
		uint32_t u;
		float f;
	} v;

	do
		v.u = rnd();
	while (isnan(v.f) || v.f == -INFINITY);
	return v.f;
}

/* What is stored for a score: f16, saturating, no negative zero. */
static float stored(float s)
{
	if (s == INFINITY)
		return s;
	if (fabsf(s) > 65504)
		return copysignf(65504, s);
	s = f16_to_f32(f16_from_f32(s));
	return s == 0 ? 0 : s;
}

struct pair {
	float score;
	uint32_t token;
};

static int better(const void *va, const void *vb)
{
	const struct pair *a = va, *b = vb;

	if (a->score != b->score)
		return a->score > b->score ? -1 : 1;
	return a->token < b->token ? -1 : 1;
}

static void one(const float *scores, uint32_t n)
{
	uint32_t *keys = malloc((n + 1) * sizeof(*keys)), *scratch = malloc(n * sizeof(*keys));
	uint16_t *half = malloc((n + 1) * sizeof(*half));
	struct pair *expect = malloc(n * sizeof(*expect));

	for (uint32_t i = 0; i < n; i++)
		expect[i] = (struct pair){stored(scores[i]), i};
	qsort(expect, n, sizeof(*expect), better);
	keys[n] = 0xdeadbeef;
	assert_true(kernels->keys(scores, n, keys));
	assert_int_equal(keys[n], 0xdeadbeef);
	kernels->sort(keys, n, scratch);
	assert_int_equal(keys[n], 0xdeadbeef);
	for (uint32_t i = 0; i < n; i++) {
		assert_int_equal(order_token(keys[i]), expect[i].token);
		assert_int_equal(order_score(keys[i]), f16_from_f32(expect[i].score));
	}
	half[n] = 0xbeef;
	kernels->tokens(keys, n, half);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(half[i], expect[i].token);
	kernels->scores(keys, n, half);
	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(half[i], f16_from_f32(expect[i].score));
	assert_int_equal(half[n], 0xbeef);
	for (int e = 0; e < 20; e++) {
		float edge = e == 0 ? INFINITY
			: e == 1    ? -INFINITY
			: e == 2    ? 0
			: e == 3    ? -0.0f
				    : any_float();
		uint32_t count = 0;

		if (e > 10)
			edge = expect[rnd() % n].score; /* exactly a score that is there */
		if (e > 15)
			edge = nextafterf(edge, e & 1 ? INFINITY : -INFINITY);
		while (count < n && expect[count].score >= edge)
			count++;
		assert_int_equal(order_count(keys, n, order_bound(edge)), count);
	}
	for (int log_scores = 0; log_scores < 2; log_scores++) {
		double sum = 0;

		for (uint32_t i = 0; i < n; i++) {
			double s = log_scores ? exp(expect[i].score) : expect[i].score;

			sum += fmin(fmax(s, 0), 1);
		}
		assert_true(fabs((log_scores ? order_log_mass(keys, n) : kernels->mass(keys, n)) -
				    sum) <= 1e-4 * (sum + 1e-3));
	}
	free(half);
	free(expect);
	free(scratch);
	free(keys);
}

static void test_sort(void **state)
{
	static const uint32_t sizes[] = {1, 2, 3, 7, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128,
		129, 200, 255, 256, 257, 300, 511, 512, 513, 1000, 4096, 65535};
	float *scores = malloc(65535 * sizeof(*scores));

	(void)state;
	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		for (int kind = 0; kind < 7; kind++) {
			uint32_t n = sizes[i];

			for (uint32_t t = 0; t < n; t++)
				switch (kind) {
				case 0: /* as gates give them */
					scores[t] = (float)(rnd() >> 8) / (1 << 24);
					break;
				case 1:
					scores[t] = any_float();
					break;
				case 2: /* all equal */
					scores[t] = 0.25f;
					break;
				case 3: /* many ties */
					scores[t] = (float)(rnd() % 5) / 4;
					break;
				case 4: /* descending, ascending */
					scores[t] = (float)t / (float)n;
					break;
				case 5:
					scores[t] = -(float)t / (float)n;
					break;
				default: /* both zeros, protected ones, what rounds to them */
					scores[t] = (const float[]){0.0f, -0.0f, INFINITY, 1e-30f,
						-1e-30f, 65519.0f, 65520.0f, 1e30f,
						-1e30f}[rnd() % 9];
				}
			one(scores, n);
		}
	free(scores);
}

static void test_bad(void **state)
{
	float scores[300];
	uint32_t keys[300];

	(void)state;
	for (uint32_t n = 1; n < 300; n += n < 40 ? 1 : 37)
		for (uint32_t bad = 0; bad < n; bad += n < 40 ? 1 : 13) {
			for (uint32_t i = 0; i < n; i++)
				scores[i] = 0.5f;
			assert_true(kernels->keys(scores, n, keys));
			scores[bad] = NAN;
			assert_false(kernels->keys(scores, n, keys));
			scores[bad] = -NAN;
			assert_false(kernels->keys(scores, n, keys));
			scores[bad] = -INFINITY;
			assert_false(kernels->keys(scores, n, keys));
			scores[bad] = INFINITY;
			assert_true(kernels->keys(scores, n, keys));
		}
}

/* Rows of every length land where they should, and nothing beyond. */
static void test_rows(void **state)
{
	uint8_t base[64 * 200], to[20 * 200 + 1], ahead[20 * 200];
	uint32_t keys[20];

	(void)state;
	for (size_t i = 0; i < sizeof(base); i++)
		base[i] = (uint8_t)rnd();
	for (size_t row = 1; row <= 200; row++) {
		for (uint32_t i = 0; i < 20; i++)
			keys[i] = rnd() << 16 | rnd() % 64;
		memset(to, 0x5a, sizeof(to));
		kernels->rows(to, base, row, keys, 20, row & 1 ? ahead : NULL);
		for (uint32_t i = 0; i < 20; i++)
			assert_memory_equal(to + i * row, base + (keys[i] & 0xffff) * row, row);
		for (size_t i = 20 * row; i < sizeof(to); i++)
			assert_int_equal(to[i], 0x5a);
	}
}

/* Rows of whole lines likewise, from any address, and their checksum behind that of other bytes. */
static void test_lines(void **state)
{
	_Alignas(64) static uint8_t to[21 * 640];
	static uint8_t base[64 * 640 + 64], ahead[20 * 640];
	uint32_t keys[20];

	(void)state;
	if (!kernels->lines)
		skip();
	for (size_t i = 0; i < sizeof(base); i++)
		base[i] = (uint8_t)rnd();
	for (uint32_t round = 0; round < 2000; round++) {
		uint32_t n = rnd() % 21, got, before = round % 3 ? rnd() : 0;
		const uint8_t *from = base + rnd() % 64;
		size_t row = 64 + 64 * (rnd() % 10);
		bool in_order = round % 4 == 0;

		for (uint32_t i = 0; i < n; i++)
			keys[i] = rnd() << 16 | (in_order ? i : rnd() % 64);
		memset(to, 0x5a, sizeof(to));
		got = kernels->lines(before, to, from, row, in_order ? NULL : keys, n,
			round & 1 ? ahead : NULL, round & 2);
		kernels->store_end();
		for (uint32_t i = 0; i < n; i++)
			assert_memory_equal(to + i * row, from + (keys[i] & 0xffff) * row, row);
		for (size_t i = n * row; i < sizeof(to); i++)
			assert_int_equal(to[i], 0x5a);
		assert_int_equal(got, crc32c(before, to, n * row));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sort),
		cmocka_unit_test(test_bad),
		cmocka_unit_test(test_rows),
		cmocka_unit_test(test_lines),
	};
	int failed = 0;

	for (unsigned n = 0; (kernels = pack_kernels_best(n)); n++)
		failed += cmocka_run_group_tests_name(kernels->name, tests, NULL, NULL);
	return failed;
}
