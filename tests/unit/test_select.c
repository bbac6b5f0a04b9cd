/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three independent ways to the same answer: NumPy written from the paper's text (select_golden.bin),
 * select_dense, and select_planes over planes that are built here pair by pair. `test_select FILE`
 * reads other cases of the same format.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>

#include "gates/select.h"

/* ---- a context in planes ---- */

struct context {
	uint32_t layers, heads, tokens, block_tokens;
	const float *scores;  /* [layers][heads][tokens], values of halves */
	const uint8_t *there; /* NULL: every pair; else pairs with bit 2 */
	uint32_t pack_floor, n_edges;
	float edges[KVG_PLANES_MAX - 1];
	struct select_block *blocks; /* built */
	uint32_t n_blocks;
};

struct ranked {
	float score;
	uint32_t token;
};

static int ranked_compare(const void *a, const void *b)
{
	const struct ranked *x = a, *y = b;

	if (x->score != y->score)
		return x->score > y->score ? -1 : 1;
	return x->token < y->token ? -1 : x->token > y->token;
}

static uint32_t context_runs(const struct context *c)
{
	return c->layers * c->heads;
}

static uint32_t block_length(const struct context *c, uint32_t block)
{
	uint32_t left = c->tokens - block * c->block_tokens;

	return left < c->block_tokens ? left : c->block_tokens;
}

static uint32_t band(const struct context *c, float score, uint32_t rank)
{
	uint32_t plane = 0;

	if (rank < c->pack_floor)
		return 0;
	while (plane < c->n_edges && score < c->edges[plane])
		plane++;
	return plane;
}

/* One block's planes, run by run. The arrays are as large as the block in every plane. */
static void build_block(const struct context *c, uint32_t number)
{
	struct select_block *b = &c->blocks[number];
	uint32_t n = block_length(c, number), runs = context_runs(c);
	uint32_t *cu[KVG_PLANES_MAX], pairs[KVG_PLANES_MAX] = {0}, gone[KVG_PLANES_MAX] = {0};
	uint16_t *index[KVG_PLANES_MAX], *score[KVG_PLANES_MAX];
	struct ranked *order = calloc(n, sizeof(*order));

	memset(b, 0xee, sizeof(*b)); /* views beyond n_planes are nobody's business */
	b->n_planes = c->n_edges + 1;
	for (uint32_t p = 0; p < b->n_planes; p++) {
		cu[p] = calloc(runs + 1, sizeof(*cu[p]));
		index[p] = calloc((size_t)runs * n, sizeof(*index[p]));
		score[p] = calloc((size_t)runs * n, sizeof(*score[p]));
	}
	for (uint32_t run = 0; run < runs; run++) {
		size_t base = (size_t)run * c->tokens + (size_t)number * c->block_tokens;

		for (uint32_t t = 0; t < n; t++)
			order[t] = (struct ranked){c->scores[base + t], t};
		qsort(order, n, sizeof(*order), ranked_compare);
		for (uint32_t i = 0; i < n; i++) {
			uint32_t p = band(c, order[i].score, i);

			if (c->there && !(c->there[base + order[i].token] & 2)) {
				gone[p]++;
				continue;
			}
			index[p][pairs[p]] = (uint16_t)order[i].token;
			score[p][pairs[p]++] = f16_from_f32(order[i].score);
		}
		for (uint32_t p = 0; p < b->n_planes; p++)
			cu[p][run + 1] = pairs[p];
	}
	for (uint32_t p = 0; p < b->n_planes; p++) {
		assert_true(!gone[p] || !pairs[p]); /* a plane goes as a whole */
		b->plane[p] = (struct plane_view){
			.plane = p,
			.runs = gone[p] ? 0 : runs,
			.tokens = n,
			.pairs = pairs[p],
			.cu = cu[p],
			.index = index[p],
			.score = score[p],
		};
		assert_int_equal(plane_check_runs(&b->plane[p]),
			gone[p] ? plane_check_runs(&b->plane[p]) : 0);
	}
	free(order);
}

static void context_build(struct context *c)
{
	c->n_blocks = (c->tokens + c->block_tokens - 1) / c->block_tokens;
	c->blocks = calloc(c->n_blocks, sizeof(*c->blocks));
	for (uint32_t b = 0; b < c->n_blocks; b++)
		build_block(c, b);
}

static void context_free(struct context *c)
{
	for (uint32_t b = 0; b < c->n_blocks; b++)
		for (uint32_t p = 0; p < c->blocks[b].n_planes; p++) {
			free((void *)(uintptr_t)c->blocks[b].plane[p].cu);
			free((void *)(uintptr_t)c->blocks[b].plane[p].index);
			free((void *)(uintptr_t)c->blocks[b].plane[p].score);
		}
	free(c->blocks);
}

/* What select_planes keeps, as marks of the dense shape. */
static uint8_t *select_by_planes(const struct context *c, const struct select_params *params)
{
	uint32_t runs = context_runs(c);
	uint8_t *keep = calloc((size_t)runs * c->tokens, 1);
	size_t n = (size_t)c->n_blocks * KVG_PLANES_MAX * runs;
	uint32_t *len = malloc(n * sizeof(*len));

	memset(len, 0xee, n * sizeof(*len));
	assert_int_equal(
		select_planes(params, c->blocks, c->n_blocks, c->layers, c->heads, len), 0);
	for (size_t at = 0; at < n; at++) {
		const struct select_block *b = &c->blocks[at / runs / KVG_PLANES_MAX];
		uint32_t plane = at / runs % KVG_PLANES_MAX, run = at % runs;
		const struct plane_view *v = &b->plane[plane];

		if (plane >= b->n_planes || !v->runs) {
			assert_int_equal(len[at], 0);
			continue;
		}
		assert_true(len[at] <= v->cu[run + 1] - v->cu[run]);
		for (uint32_t i = 0; i < len[at]; i++)
			keep[(size_t)run * c->tokens + (size_t)(b - c->blocks) * c->block_tokens +
				v->index[v->cu[run] + i]] = 1;
	}
	free(len);
	return keep;
}

/* ---- NumPy's answers ---- */

static const char *golden_path = KVG_SOURCE_DIR "/tests/ref/select_golden.bin";

struct reader {
	uint8_t *data;
	size_t size, at;
};

static void *take(struct reader *r, size_t n)
{
	assert_true(n <= r->size - r->at);
	r->at += n;
	return r->data + r->at - n;
}

#define READ(r, type)                                                                              \
	({                                                                                         \
		type value_;                                                                       \
		memcpy(&value_, take(r, sizeof(value_)), sizeof(value_));                          \
		value_;                                                                            \
	})

static void *take_copy(struct reader *r, size_t n)
{
	void *copy = malloc(n + 1);

	memcpy(copy, take(r, n), n);
	return copy;
}

static void expect_marks(const char *who, unsigned number, const struct select_params *p,
	const uint8_t *keep, const uint8_t *marks, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (keep[i] != (marks[i] & 1))
			fail_msg("%s: case %u, rule %d, r %.17g, pair %zu: %d, reference %d", who,
				number, (int)p->rule, p->retained, i, keep[i], marks[i] & 1);
}

/* Returns in how many ways the case could be asked. */
static unsigned golden_case(struct reader *r, unsigned number)
{
	struct select_params p = {0};
	struct context c = {0};
	bool all = true, halves = false;
	unsigned ways = 0;
	uint8_t *marks;
	float *scores;
	size_t n;

	p.rule = (enum select_rule)READ(r, uint32_t);
	p.floor = READ(r, uint32_t);
	c.layers = READ(r, uint32_t);
	c.heads = READ(r, uint32_t);
	c.tokens = READ(r, uint32_t);
	c.block_tokens = READ(r, uint32_t);
	c.pack_floor = READ(r, uint32_t);
	c.n_edges = READ(r, uint32_t);
	p.retained = READ(r, double);
	p.threshold = READ(r, float);
	assert_true(c.n_edges < KVG_PLANES_MAX);
	memcpy(c.edges, take(r, c.n_edges * sizeof(float)), c.n_edges * sizeof(float));
	n = (size_t)context_runs(&c) * c.tokens;
	c.scores = scores = take_copy(r, n * sizeof(float));
	c.there = marks = take_copy(r, n);
	for (size_t i = 0; i < n; i++) {
		all = all && (marks[i] & 2);
		halves = halves || (marks[i] & 4);
	}
	if (all && (!p.floor || c.block_tokens == c.tokens)) {
		uint8_t *keep = malloc(n);

		assert_int_equal(select_dense(&p, scores, c.layers, c.heads, c.tokens, keep), 0);
		expect_marks("dense", number, &p, keep, marks, n);
		free(keep);
		ways++;
	}
	if (halves) {
		uint8_t *keep;

		context_build(&c);
		keep = select_by_planes(&c, &p);
		expect_marks("planes", number, &p, keep, marks, n);
		free(keep);
		context_free(&c);
		ways++;
	}
	free(scores);
	free(marks);
	return ways;
}

static void golden_window(struct reader *r)
{
	uint64_t context = READ(r, uint64_t), chunk = READ(r, uint64_t), window = READ(r, uint64_t);
	double share = READ(r, double), retained = NAN;
	uint64_t want = READ(r, uint64_t), got = UINT64_MAX;

	select_window(context, chunk, window, share, &got, &retained);
	assert_int_equal(got, want);
	assert_true(retained == READ(r, double));
}

static void golden_decode(struct reader *r)
{
	uint64_t rows = READ(r, uint64_t), budget = READ(r, uint64_t);
	float want = READ(r, float), *scores = take_copy(r, rows * sizeof(float));

	assert_true(select_decode_threshold(scores, rows, budget) == want);
	free(scores);
}

static void test_golden(void **state)
{
	FILE *f = fopen(golden_path, "rb");
	struct reader r = {0};
	unsigned cases, windows, decodes, ways = 0;

	(void)state;
	assert_non_null(f);
	fseek(f, 0, SEEK_END);
	r.size = (size_t)ftell(f);
	rewind(f);
	r.data = malloc(r.size);
	assert_int_equal(fread(r.data, 1, r.size, f), r.size);
	fclose(f);
	assert_memory_equal(take(&r, 8), "KVGSEL01", 8);
	cases = READ(&r, uint32_t);
	windows = READ(&r, uint32_t);
	decodes = READ(&r, uint32_t);
	assert_true(cases && windows && decodes);
	for (unsigned i = 0; i < cases; i++)
		ways += golden_case(&r, i);
	for (unsigned i = 0; i < windows; i++)
		golden_window(&r);
	for (unsigned i = 0; i < decodes; i++)
		golden_decode(&r);
	assert_int_equal(r.at, r.size);
	assert_true(ways > cases); /* most cases can be asked both ways */
	free(r.data);
}

/* ---- planes against dense, larger ---- */

static uint64_t seed = 1;

static uint32_t draw(uint32_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed >> 33) % below);
}

static float draw_score(unsigned kind)
{
	switch (kind) {
	case 0:
		return f16_to_f32((uint16_t)draw(0x3c00)); /* [0, 1), every half alike */
	case 1:
		return (float)draw(5) / 4; /* ties */
	case 2:
		return f16_to_f32((uint16_t)(draw(2) << 15 | draw(0x7c00))); /* any finite half */
	default:
		return draw(20) ? f16_to_f32(f16_from_f32((float)draw(1000) / 1000)) : INFINITY;
	}
}

static void planes_like_dense(unsigned round)
{
	struct context c = {
		.layers = 1 + draw(4),
		.heads = 1 + draw(4),
		.tokens = 1 + draw(700),
		.block_tokens = 1 + draw(128),
		.pack_floor = draw(4),
		.n_edges = draw(KVG_PLANES_MAX),
	};
	size_t n = (size_t)context_runs(&c) * c.tokens;
	float *scores = malloc(n * sizeof(*scores));
	uint8_t *keep = malloc(n);

	if (round % 3 == 0)
		c.block_tokens = c.tokens; /* one block: the floors mean the same */
	for (size_t i = 0; i < n; i++)
		scores[i] = draw_score(round % 4);
	for (uint32_t i = 0; i < c.n_edges; i++)
		c.edges[i] = 0.9f - 0.12f * (float)i;
	c.scores = scores;
	context_build(&c);
	for (int rule = SELECT_PAIR; rule <= SELECT_ABSOLUTE; rule++) {
		struct select_params p = {
			.rule = (enum select_rule)rule,
			.retained = (double)draw(1001) / 1000,
			.threshold = draw_score(0) + (draw(2) ? 0 : 1e-5f),
			.floor = c.block_tokens == c.tokens ? draw(20) : 0,
		};
		uint8_t *by_planes = select_by_planes(&c, &p);

		assert_int_equal(select_dense(&p, scores, c.layers, c.heads, c.tokens, keep), 0);
		expect_marks("planes against dense", round, &p, by_planes, keep, n);
		free(by_planes);
	}
	context_free(&c);
	free(scores);
	free(keep);
}

static void test_planes_like_dense(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 120; round++)
		planes_like_dense(round);
}

/* ---- known answers ---- */

static unsigned kept_of(const struct select_params *p, const float *scores, uint32_t layers,
	uint32_t heads, uint32_t tokens)
{
	uint8_t keep[256];
	unsigned kept = 0;

	assert_true(layers * heads * tokens <= sizeof(keep));
	assert_int_equal(select_dense(p, scores, layers, heads, tokens, keep), 0);
	for (uint32_t i = 0; i < layers * heads * tokens; i++)
		kept += keep[i];
	return kept;
}

static void test_known_answers(void **state)
{
	float distinct[100], equal[100];
	struct select_params p = {.retained = .3};

	(void)state;
	for (int i = 0; i < 100; i++) {
		distinct[i] = (float)((i * 37) % 100) / 128;
		equal[i] = .25f;
	}
	p.rule = SELECT_PAIR; /* one fewer than asked; ties at the threshold all drop */
	assert_int_equal(kept_of(&p, distinct, 2, 5, 10), 29);
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 0);
	p.rule = SELECT_LAYER;
	assert_int_equal(kept_of(&p, distinct, 2, 5, 10), 28);
	p.rule = SELECT_HEAD;
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 30);
	p.rule = SELECT_KVPRESS;
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 30);
	p.retained = .9; /* 10 * (1 - .9) is a little below 1 in doubles: nothing is removed */
	assert_int_equal(kept_of(&p, distinct, 1, 1, 10), 10);
	p.rule = SELECT_PAIR;
	p.retained = 0;
	assert_int_equal(kept_of(&p, distinct, 2, 5, 10), 0);
	p.retained = 1;
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 100);
	p.retained = 0;
	p.floor = 2;
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 20);
	p.floor = 11; /* more than there are */
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 100);
	p = (struct select_params){.rule = SELECT_ABSOLUTE, .threshold = .25f};
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 100);
	p.threshold = nextafterf(.25f, 1);
	assert_int_equal(kept_of(&p, equal, 2, 5, 10), 0);
}

/* The lower flat index wins in kvpress, the lower token in head. */
static void test_ties(void **state)
{
	const float scores[8] = {.5f, .5f, .25f, .5f, .5f, .5f, .5f, .5f};
	const uint8_t kvpress[8] = {1, 1, 0, 1, 1, 0, 0, 0}, head[8] = {1, 1, 0, 0, 1, 1, 0, 0};
	struct select_params p = {.rule = SELECT_KVPRESS, .retained = .5};
	uint8_t keep[8];

	(void)state;
	assert_int_equal(select_dense(&p, scores, 1, 2, 4, keep), 0);
	assert_memory_equal(keep, kvpress, 8);
	p.rule = SELECT_HEAD;
	assert_int_equal(select_dense(&p, scores, 1, 2, 4, keep), 0);
	assert_memory_equal(keep, head, 8);
}

/* A fifth of each head's own share is safe from the other head; one fewer than asked is kept in all. */
static void test_adakv(void **state)
{
	struct select_params p = {.rule = SELECT_ADAKV_LAYER, .retained = .5};
	unsigned kept[2] = {0};
	float scores[2][40];
	uint8_t keep[2][40];

	(void)state;
	for (int t = 0; t < 40; t++) {
		scores[0][t] = .5f + (float)t / 128;
		scores[1][t] = (float)t / 128;
	}
	assert_int_equal(select_dense(&p, scores[0], 1, 2, 40, keep[0]), 0);
	for (int t = 0; t < 40; t++) {
		kept[0] += keep[0][t];
		kept[1] += keep[1][t];
		assert_int_equal(keep[1][t], t >= 36);
	}
	assert_int_equal(kept[0], 35);
	assert_int_equal(kept[1], 4);
}

/* -0 and +0 are one score, in f32 and in f16. */
static void test_zeros_are_equal(void **state)
{
	const float scores[6] = {-0.f, 0, -0.f, 0, -1, 0};
	const uint8_t want[6] = {1, 1, 1, 0, 0, 0};
	struct context c = {
		.layers = 1, .heads = 1, .tokens = 6, .block_tokens = 2, .scores = scores};
	struct select_params p = {.rule = SELECT_HEAD, .retained = .5};
	uint8_t keep[6], *by_planes;

	(void)state;
	assert_int_equal(select_dense(&p, scores, 1, 1, 6, keep), 0);
	assert_memory_equal(keep, want, 6);
	context_build(&c);
	by_planes = select_by_planes(&c, &p);
	assert_memory_equal(by_planes, want, 6);
	free(by_planes);
	context_free(&c);
}

static void test_protected_takes_no_part(void **state)
{
	float scores[20], with[24];
	uint8_t keep[20], keep_with[24];

	(void)state;
	for (int i = 0; i < 20; i++)
		scores[i] = (float)((i * 7) % 20) / 32;
	memcpy(with + 4, scores, sizeof(scores));
	for (int i = 0; i < 4; i++)
		with[i] = INFINITY;
	for (int rule = SELECT_PAIR; rule <= SELECT_ABSOLUTE; rule++) {
		struct select_params p = {(enum select_rule)rule, .4, .3f, 3};

		assert_int_equal(select_dense(&p, scores, 1, 1, 20, keep), 0);
		assert_int_equal(select_dense(&p, with, 1, 1, 24, keep_with), 0);
		assert_memory_equal(keep_with, "\1\1\1\1", 4);
		assert_memory_equal(keep_with + 4, keep, 20);
	}
}

static void test_window(void **state)
{
	uint64_t window;
	double retained;

	(void)state;
	select_window(100000, 16000, 4096, .3, &window, &retained);
	assert_int_equal(window, 4096);
	assert_true(retained == (.3 * 100000 - 4096) / (100000 - 4096.));
	select_window(100000, 16000, 4096, .03, &window, &retained); /* pure recency */
	assert_int_equal(window, 3000);
	assert_true(retained == 0);
	select_window(15999, 16000, 4096, .3, &window, &retained);
	assert_int_equal(window, 319);
	select_window(40, 16000, 4096, .3, &window, &retained); /* no window at all */
	assert_int_equal(window, 0);
	assert_true(retained == .3);
	select_window(0, 16000, 4096, .3, &window, &retained);
	assert_int_equal(window, 0);
	assert_true(retained == .3);
	select_window(100000, 16000, 4096, 1, &window, &retained);
	assert_true(window == 4096 && retained == 1);
}

static void test_decode(void **state)
{
	const float scores[5] = {.5f, 1, .25f, 1, .125f};

	(void)state;
	assert_true(select_decode_threshold(scores, 5, 3) == .5f);
	assert_true(select_decode_threshold(scores, 5, 1) == 1);
	assert_true(select_decode_threshold(scores, 5, 5) == -INFINITY);
	assert_true(select_decode_threshold(scores, 5, 0) == INFINITY);
}

static void test_names(void **state)
{
	(void)state;
	assert_int_equal(select_rule_from_name("pair"), SELECT_PAIR);
	assert_int_equal(select_rule_from_name("layer"), SELECT_LAYER);
	assert_int_equal(select_rule_from_name("head"), SELECT_HEAD);
	assert_int_equal(select_rule_from_name("adakv-layer"), SELECT_ADAKV_LAYER);
	assert_int_equal(select_rule_from_name("kvpress"), SELECT_KVPRESS);
	assert_int_equal(select_rule_from_name("absolute"), SELECT_ABSOLUTE);
	assert_int_equal(select_rule_from_name(""), 0);
	assert_int_equal(select_rule_from_name("pairs"), 0);
}

static void refused(struct select_params p, const float *scores, uint32_t layers, uint32_t heads)
{
	uint8_t keep[2] = {7, 7};

	assert_int_equal(select_dense(&p, scores, layers, heads, 2, keep), -EINVAL);
	assert_true(keep[0] == 7 && keep[1] == 7);
}

static void test_bad_input(void **state)
{
	const float good[2] = {.5f, .25f}, nan[2] = {.5f, NAN};
	struct select_params p = {.rule = SELECT_PAIR, .retained = .5};
	struct context c = {
		.layers = 1, .heads = 1, .tokens = 2, .block_tokens = 2, .scores = good};
	uint32_t len[KVG_PLANES_MAX] = {7};

	(void)state;
	refused(p, nan, 1, 1);
	refused(p, good, 0, 1);
	refused(p, good, 1, 0);
	refused(p, good, 1u << 16, 1u << 16);
	refused((struct select_params){.rule = SELECT_PAIR, .retained = NAN}, good, 1, 1);
	refused((struct select_params){.rule = SELECT_PAIR, .retained = -.1}, good, 1, 1);
	refused((struct select_params){.rule = SELECT_ABSOLUTE, .threshold = NAN}, good, 1, 1);
	refused((struct select_params){.retained = .5}, good, 1, 1);
	refused((struct select_params){.rule = SELECT_ABSOLUTE + 1, .retained = .5}, good, 1, 1);

	context_build(&c);
	assert_int_equal(
		select_planes(&p, c.blocks, 1, 1, 2, len), -EINVAL); /* another number of runs */
	c.blocks[0].n_planes = KVG_PLANES_MAX + 1;
	assert_int_equal(select_planes(&p, c.blocks, 1, 1, 1, len), -EINVAL);
	assert_int_equal(len[0], 7);
	c.blocks[0].n_planes = 1;
	assert_int_equal(
		select_planes(&p, c.blocks, 0, 1, 1, len), 0); /* an empty context is no error */
	context_free(&c);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_planes_like_dense),
		cmocka_unit_test(test_known_answers),
		cmocka_unit_test(test_ties),
		cmocka_unit_test(test_adakv),
		cmocka_unit_test(test_zeros_are_equal),
		cmocka_unit_test(test_protected_takes_no_part),
		cmocka_unit_test(test_window),
		cmocka_unit_test(test_decode),
		cmocka_unit_test(test_names),
		cmocka_unit_test(test_bad_input),
	};

	if (argc > 1)
		golden_path = argv[1];
	return cmocka_run_group_tests(tests, NULL, NULL);
}
