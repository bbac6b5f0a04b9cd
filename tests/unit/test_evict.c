/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Eviction in an own cache against the rules written plainly: every row carries its token's
 * number, so that what is left can be named. Chunks, window and protected prefix of prefill; the
 * 128-token buffer and the sinks of decoding.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/worker/evict.h"
#include "gates/select.h"

enum {
	LAYERS = 3,
	HEADS = 2,
	RUNS = LAYERS * HEADS,
	TOKENS_MAX = 1000
};
static const struct model_config config = {
	.layers = LAYERS, .heads = 4, .kv_heads = HEADS, .head_dim = 2, .hidden = 8};
static float token_score[RUNS][TOKENS_MAX];
static uint64_t state = 1;

static float random_score(void)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (float)((state >> 40) % 1000) / 1000.0f; /* ties happen */
}

/* The next n tokens, as a forward pass would append them. */
static void append(struct sequence *s, uint32_t n)
{
	for (uint32_t run = 0; run < RUNS; run++)
		for (uint32_t i = 0; i < n; i++) {
			const uint32_t row = s->n[run]++, token = s->position + i;

			token_score[run][token] = random_score();
			sequence_k(s, run, row)[0] = sequence_k(s, run, row)[1] = (float)token;
			sequence_v(s, run, row)[0] = sequence_v(s, run, row)[1] = -(float)token;
			sequence_score(s, run)[row] = token_score[run][token];
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

/* The rule of one chunk: of tokens start .. end - 1 of all heads, those above the threshold. */
static void keep_plainly(
	uint8_t kept[RUNS][TOKENS_MAX], uint32_t start, uint32_t end, double retained)
{
	const uint32_t n = end - start;
	uint32_t above, wanted = (uint32_t)((double)(n * RUNS) * retained);

	for (uint32_t run = 0; run < RUNS; run++)
		for (uint32_t t = start; t < end; t++) {
			above = 0; /* scores that are as high or higher, this one too */
			for (uint32_t r = 0; r < RUNS; r++)
				for (uint32_t u = start; u < end; u++)
					above += token_score[r][u] >= token_score[run][t];
			/* above the threshold: strictly better than the wanted-th best */
			kept[run][t] = retained >= 1.0 || (wanted > 0 && above < wanted);
		}
}

static void run_prefill(
	uint32_t protect, uint32_t context, uint32_t chunk, uint32_t window, double retained)
{
	uint8_t kept[RUNS][TOKENS_MAX];
	struct prefill_eviction e;
	uint64_t kept_window;
	double rest;
	uint32_t start = protect;
	struct sequence *s;

	memset(kept, 1, sizeof(kept));
	select_window(context, chunk, window, retained, &kept_window, &rest);
	assert_int_equal(sequence_new(&config, NULL, TOKENS_MAX, &s), 0);
	assert_int_equal(
		prefill_eviction_init(&e, s, protect, context, chunk, window, retained), 0);
	while (s->position < protect + context) {
		const uint32_t left = protect + context - s->position;

		append(s, left < chunk ? left : chunk);
		assert_int_equal(prefill_evict(&e), 0);
		if (s->position > kept_window + start) {
			keep_plainly(kept, start, s->position - (uint32_t)kept_window, rest);
			start = s->position - (uint32_t)kept_window;
		}
		check_rows(s, kept);
	}
	append(s, 10); /* the question: nothing of it is ever ranked */
	check_rows(s, kept);
	if (retained < 1.0)
		assert_true(sequence_rows(s) < (uint64_t)RUNS * s->position);
	prefill_eviction_fini(&e);
	sequence_free(s);
}

static void test_prefill(void **unused)
{
	(void)unused;
	run_prefill(5, 300, 1000, 64, 0.3);  /* one chunk: window is 2 % */
	run_prefill(0, 400, 100, 30, 0.5);   /* four chunks */
	run_prefill(20, 350, 128, 64, 0.25); /* window larger than a chunk's rest */
	run_prefill(3, 200, 64, 100, 0.2);   /* r * context < window: recency alone */
	run_prefill(3, 200, 64, 10, 1.0);    /* nothing goes */
}

static void run_decode(uint32_t prompt, uint32_t budget)
{
	uint8_t kept[RUNS][TOKENS_MAX];
	struct sequence *s;

	memset(kept, 1, sizeof(kept));
	assert_int_equal(sequence_new(&config, NULL, TOKENS_MAX, &s), 0);
	append(s, prompt);
	for (int round = 0; round < 3; round++) {
		float all[RUNS * TOKENS_MAX], threshold;
		uint32_t n = 0;

		append(s, EVICT_DECODE_BUFFER);
		assert_int_equal(decode_evict(s, budget, round == 0), 0);
		for (uint32_t run = 0; run < RUNS; run++)
			for (uint32_t t = 0; t < s->position; t++) {
				if (t < EVICT_DECODE_SINKS)
					token_score[run][t] = 1.0f;
				if (!kept[run][t])
					continue;
				all[n++] = t + EVICT_DECODE_BUFFER >= s->position
					? 1.0f
					: token_score[run][t];
			}
		threshold = select_decode_threshold(all, n, (uint64_t)budget * RUNS);
		for (uint32_t run = 0; run < RUNS; run++)
			for (uint32_t t = 0; t + EVICT_DECODE_BUFFER < s->position; t++)
				kept[run][t] &= token_score[run][t] >= threshold;
		check_rows(s, kept);
		assert_true(sequence_rows(s) >= (uint64_t)RUNS * EVICT_DECODE_BUFFER);
	}
	sequence_free(s);
}

static void test_decode(void **unused)
{
	(void)unused;
	run_decode(50, 200);
	run_decode(300, 160);
	run_decode(100, 1000); /* never full */
}

/* With the budget held, rows are its number or, where scores tie, a few more. */
static void test_decode_budget(void **unused)
{
	struct sequence *s;

	(void)unused;
	assert_int_equal(sequence_new(&config, NULL, TOKENS_MAX, &s), 0);
	append(s, 500);
	append(s, EVICT_DECODE_BUFFER);
	assert_int_equal(decode_evict(s, 300, true), 0);
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
		cmocka_unit_test(test_prefill),
		cmocka_unit_test(test_decode),
		cmocka_unit_test(test_decode_budget),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
