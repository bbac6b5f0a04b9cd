/* SPDX-License-Identifier: Apache-2.0 */
/* Greedy ties, and draws that follow temperature, top-k, top-p and the seed. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/worker/sample.h"

enum {
	VOCAB = 6,
	DRAWS = 20000
};
static const float logits[VOCAB] = {1.0f, 3.0f, 2.0f, 3.0f, -INFINITY, 0.0f};

/* How often each token is drawn. */
static void draw(float temperature, uint32_t top_k, float top_p, uint64_t seed, uint32_t ret[VOCAB])
{
	struct sampler s;

	assert_int_equal(sampler_init(&s, VOCAB, temperature, top_k, top_p, seed), 0);
	for (int i = 0; i < VOCAB; i++)
		ret[i] = 0;
	for (int i = 0; i < DRAWS; i++)
		ret[sample(&s, logits)]++;
	sampler_fini(&s);
}

static void test_greedy(void **unused)
{
	uint32_t n[VOCAB];

	(void)unused;
	assert_int_equal(sample_greedy(logits, VOCAB), 1);
	draw(0.0f, 0, 1.0f, 1, n);
	assert_int_equal(n[1], DRAWS);
	draw(1.0f, 1, 1.0f, 1, n);
	assert_int_equal(n[1], DRAWS);
	draw(1.0f, 0, 0.0f, 1, n);
	assert_int_equal(n[1], DRAWS);
}

static void check_shares(const uint32_t n[VOCAB], double temperature, const int *kept)
{
	double total = 0.0;

	for (int i = 0; i < VOCAB; i++)
		total += kept[i] ? exp((double)logits[i] / temperature) : 0.0;
	for (int i = 0; i < VOCAB; i++) {
		const double p = kept[i] ? exp((double)logits[i] / temperature) / total : 0.0;
		const double slack = 5.0 * sqrt(p * (1.0 - p) / DRAWS) + 1e-9;

		if (fabs((double)n[i] / DRAWS - p) > slack)
			fail_msg("token %d: %u of %d, not %f", i, n[i], DRAWS, p);
	}
}

static void test_shares(void **unused)
{
	static const int all[VOCAB] = {1, 1, 1, 1, 1, 1}, three[VOCAB] = {0, 1, 1, 1, 0, 0};
	static const int two[VOCAB] = {0, 1, 0, 1, 0, 0};
	uint32_t n[VOCAB];

	(void)unused;
	draw(1.0f, 0, 1.0f, 1, n);
	check_shares(n, 1.0, all);
	draw(2.5f, 0, 1.0f, 2, n);
	check_shares(n, 2.5, all);
	draw(1.0f, 3, 1.0f, 3, n);
	check_shares(n, 1.0, three);
	draw(1.0f, 0, 0.8f, 4, n); /* the two best have .78: a third is needed */
	check_shares(n, 1.0, three);
	draw(1.0f, 0, 0.7f, 5, n);
	check_shares(n, 1.0, two);
}

static void test_seed(void **unused)
{
	struct sampler a, b, c;
	int same = 0, other = 0;

	(void)unused;
	assert_int_equal(sampler_init(&a, VOCAB, 1.0f, 0, 1.0f, 7), 0);
	assert_int_equal(sampler_init(&b, VOCAB, 1.0f, 0, 1.0f, 7), 0);
	assert_int_equal(sampler_init(&c, VOCAB, 1.0f, 0, 1.0f, 8), 0);
	for (int i = 0; i < 200; i++) {
		const uint32_t token = sample(&a, logits);

		same += token == sample(&b, logits);
		other += token == sample(&c, logits);
	}
	assert_int_equal(same, 200);
	assert_true(other < 150);
	sampler_fini(&a);
	sampler_fini(&b);
	sampler_fini(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_greedy),
		cmocka_unit_test(test_shares),
		cmocka_unit_test(test_seed),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
