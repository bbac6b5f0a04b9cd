/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eviction in an own cache against a golden file that the rules written plainly gave: every row
 * carries its token's number, so that what is left can be named. Chunks, window, floor and
 * protected prefix of prefill; the 128-token buffer and the sinks of decoding.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/worker/evict.h"

enum {
	LAYERS = 3,
	HEADS = 2,
	RUNS = LAYERS * HEADS,
	TOKENS_MAX = 1000
};
static const struct model_config config = {
	.layers = LAYERS, .heads = 4, .kv_heads = HEADS, .head_dim = 2, .hidden = 8};
static uint64_t state = 1;

static float random_score(uint32_t run, uint32_t token)
{
	(void)run;
	(void)token;
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (float)((state >> 40) % 1000) / 1000.0f; /* ties happen */
}

static float (*score_of)(uint32_t run, uint32_t token) = random_score;

/* The next n tokens, as a forward pass would append them. */
static void append(struct sequence *s, uint32_t n)
{
	for (uint32_t run = 0; run < RUNS; run++)
		for (uint32_t i = 0; i < n; i++) {
			const uint32_t row = s->n[run]++, token = s->position + i;

			sequence_k(s, run, row)[0] = sequence_k(s, run, row)[1] = (float)token;
			sequence_v(s, run, row)[0] = sequence_v(s, run, row)[1] = -(float)token;
			sequence_score(s, run)[row] = score_of(run, token);
		}
	s->position += n;
}

/* Rows are exactly the tokens of `kept`, in order, K, V and score still together. */
static void check_rows(const struct sequence *s, uint8_t kept[RUNS][TOKENS_MAX])
{
	for (uint32_t run = 0; run < RUNS; run++) {
		uint32_t row = 0;

		for (uint32_t t = 0; t < s->position; t++) {
			if (!kept[run][t])
				continue;
			assert_true(row < s->n[run]);
			assert_true(sequence_k(s, run, row)[1] == (float)t);
			assert_true(sequence_v(s, run, row)[0] == -(float)t);
			row++;
		}
		assert_int_equal(row, s->n[run]);
	}
}

static void test_keep(void **unused)
{
	static const uint8_t keep[] = {0, 1, 0, 0, 1};
	uint8_t kept[RUNS][TOKENS_MAX];
	struct sequence *s;

	(void)unused;
	memset(kept, 1, sizeof(kept));
	assert_int_equal(sequence_new(&config, NULL, 20, &s), 0);
	append(s, 12);
	sequence_keep(s, 4, 3, 8, keep);
	kept[4][3] = kept[4][5] = kept[4][6] = 0;
	check_rows(s, kept);
	assert_int_equal(sequence_rows(s), RUNS * 12 - 3);
	append(s, 3);
	check_rows(s, kept);
	sequence_free(s);
}

/* ---- golden_evict.txt, which tests/ref/evict_golden.py works out plainly ---- */

static float golden_score(uint32_t run, uint32_t token)
{
	const uint32_t x = run * 1000003 + token * 7919 + token * token * 31 + 12345;

	return (float)((x * 2654435761u >> 12) % 1000) / 1000.0f;
}

/* What is left of every run is what the next lines say. */
static void check_golden(FILE *f, const struct sequence *s)
{
	uint8_t kept[RUNS][TOKENS_MAX];
	char line[TOKENS_MAX + 2];

	for (uint32_t run = 0; run < RUNS; run++) {
		assert_non_null(fgets(line, sizeof(line), f));
		assert_int_equal(strlen(line), s->position + 1);
		for (uint32_t t = 0; t < s->position; t++)
			kept[run][t] = line[t] == '1';
	}
	check_rows(s, kept);
}

static void golden_prefill(FILE *f, const char *line)
{
	struct prefill_rule rule;
	struct prefill_eviction e;
	struct sequence *s;

	assert_int_equal(
		sscanf(line, "prefill %u %u %u %u %lf %u %u", &rule.protect, &rule.context,
			&rule.chunk, &rule.window, &rule.retained, &rule.floor, &rule.window_min),
		7);
	assert_int_equal(sequence_new(&config, NULL, TOKENS_MAX, &s), 0);
	assert_int_equal(prefill_eviction_init(&e, s, &rule), 0);
	while (s->position < rule.protect + rule.context) {
		const uint32_t left = rule.protect + rule.context - s->position;

		append(s, left < rule.chunk ? left : rule.chunk);
		assert_int_equal(prefill_evict(&e), 0);
	}
	check_golden(f, s);
	prefill_eviction_fini(&e);
	sequence_free(s);
}

static void golden_decode(FILE *f, const char *line)
{
	uint32_t prompt, tokens, budget;
	struct sequence *s;
	char best[8];

	assert_int_equal(sscanf(line, "decode %u %u %u %7s", &prompt, &tokens, &budget, best), 4);
	assert_int_equal(sequence_new(&config, NULL, TOKENS_MAX, &s), 0);
	append(s, prompt);
	for (uint32_t i = 1; i <= tokens; i++) {
		append(s, 1);
		if (decode_evict_due(i))
			assert_int_equal(decode_evict(s, budget, i == 128, strtof(best, NULL)), 0);
	}
	check_golden(f, s);
	sequence_free(s);
}

static void test_golden(void **unused)
{
	FILE *f = fopen(KVG_SOURCE_DIR "/tests/unit/golden_evict.txt", "r");
	char line[TOKENS_MAX + 2];
	uint32_t n = 0;

	(void)unused;
	assert_non_null(f);
	score_of = golden_score;
	assert_non_null(fgets(line, sizeof(line), f)); /* the licence */
	for (; fgets(line, sizeof(line), f); n++)
		if (line[0] == 'p')
			golden_prefill(f, line);
		else
			golden_decode(f, line);
	assert_int_equal(n, 16);
	score_of = random_score;
	fclose(f);
}

/* With the budget held, rows are its number or, where scores tie, a few more. */
static void test_decode_budget(void **unused)
{
	struct sequence *s;

	(void)unused;
	assert_int_equal(sequence_new(&config, NULL, TOKENS_MAX, &s), 0);
	append(s, 500);
	append(s, 128);
	assert_int_equal(decode_evict(s, 300, true, 1.0f), 0);
	assert_in_range(sequence_rows(s), 300 * RUNS, 310 * RUNS);
	for (uint32_t run = 0; run < RUNS; run++)
		for (uint32_t t = 0; t < EVICT_DECODE_SINKS; t++)
			assert_true(sequence_k(s, run, t)[0] == (float)t);
	sequence_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_keep),
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_decode_budget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
