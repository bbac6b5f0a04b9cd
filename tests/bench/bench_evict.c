/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What keeping more gains in right answers of the lab model, and what it costs: the presets of kvgate-worker rest on it.
 *
 * bench_evict floor [CONTEXTS]	--evict-floor beside shares of the context
 * bench_evict edges [CONTEXTS]	--block-window: whole contexts, and prompts that part at the edge of a block in the middle
 *				of the sentence that is asked for, so that its rest is computed over pruned rows
 *
 * CONTEXTS of each task (default 5), two questions of each. What is kept is chosen by the pair rule with the lab's
 * calibrated gate, as kvgate-worker does with --evict and --retention; rows are f32, where they were computed.
 */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "client/worker/prompt.h"
#include "gates/select.h"
#include "tests/bench/bench_quality.h"

#define LAB KVG_SOURCE_DIR "/client/demo/lab"

enum {
	BLOCK = 256,
	QUESTIONS = 2,
	REST = 128, /* tokens after the edge that are computed at most */
	SHARES_MAX = 4,
	KNOBS = 6
};

struct count {
	uint32_t right, asked;
	double rows; /* sum of held shares */
};

/* The rows of `keep` [runs][n], where they lie. */
static void context_of(
	const struct sequence *s, const uint8_t *keep, uint32_t n, struct context *ret)
{
	const uint32_t runs = model_runs(s->config);
	uint32_t at = 0;

	*ret = (struct context){.first = malloc((runs + 1) * sizeof(*ret->first)),
		.run = malloc(((size_t)runs * n / 2 + runs) * sizeof(*ret->run)),
		.dtype = KVG_DTYPE_F32,
		.tokens = n};
	assert(ret->first && ret->run);
	for (uint32_t run = 0; run < runs; run++) {
		const uint8_t *k = keep + (size_t)run * n;

		ret->first[run] = at;
		for (uint32_t t = 0, from; t < n; t++) {
			for (from = t; t < n && k[t]; t++)
				;
			if (t == from)
				continue;
			ret->run[at++] = (struct kv_run){
				sequence_k(s, run, from), sequence_v(s, run, from), t - from};
			ret->pairs += t - from;
		}
	}
	ret->first[runs] = at;
}

static void choose(const struct quality *q, const struct quality_context *c, const float *score,
	uint32_t n, const struct select_params *p, struct context *ret)
{
	const struct model_config *config = &q->model->config;
	uint8_t *keep = malloc((size_t)model_runs(config) * n);
	int r;

	assert(keep);
	r = select_dense(p, score, config->layers, config->kv_heads, n, keep);
	assert(r == 0);
	context_of(c->rows, keep, n, ret);
	free(keep);
}

/* ---- floor ---- */

static const double floor_share[SHARES_MAX] = {.2, .1, .07, .05};
static const uint32_t floor_pairs[] = {0, 2, 4, 8, 16};

static void floor_context(
	struct quality *q, struct quality_sample *s, struct count sum[SHARES_MAX][KNOBS])
{
	const uint32_t runs = model_runs(&q->model->config);
	struct quality_context c;

	quality_context_init(&c, q, s, QUALITY_TEXT + 1);
	for (int i = 0; i < SHARES_MAX; i++)
		for (int f = 0; f < 5; f++) {
			float *score = c.score[QUALITY_GATE];
			/* the window is the same for all shares: 2 % */
			struct select_params p = {.rule = SELECT_PAIR,
				.retained =
					quality_protect(score, runs, s->n_tokens, floor_share[i]),
				.floor = floor_pairs[f]};
			struct context seen;
			struct quality_view view = {.context = &seen};

			choose(q, &c, score, s->n_tokens, &p, &seen);
			quality_answer(q, s, &view, 1);
			sum[i][f].right += view.right;
			sum[i][f].asked += s->n_questions;
			sum[i][f].rows += (double)seen.pairs / runs / s->n_tokens * s->n_questions;
			context_fini(&seen);
		}
	quality_context_fini(&c);
}

static void floor_report(struct count sum[SHARES_MAX][KNOBS])
{
	printf("| retained |");
	for (int f = 0; f < 5; f++)
		printf(" f = %u |", floor_pairs[f]);
	printf("\n|---|---|---|---|---|---|\n");
	for (int i = 0; i < SHARES_MAX; i++) {
		printf("| %g |", floor_share[i]);
		for (int f = 0; f < 5; f++)
			printf(" %.1f (%.1f) |", 100. * sum[i][f].right / sum[i][f].asked,
				100. * sum[i][f].rows / sum[i][f].asked);
		putchar('\n');
	}
	printf("%u questions; right in %%, in brackets the rows held in %%\n", sum[0][0].asked);
}

/* ---- edges ---- */

static const double edge_share[] = {.3, .2, .1};
static const uint32_t edge_window[] = {0, 4, 8, 16, 32};
enum {
	AGAIN = 5 /* the knob that leaves block windows out and computes the last block again */
};

/* Scores of the first n tokens; the first ones, `window` last and `each` at the end of every block protected. */
static float *protected_scores(
	const struct quality_context *c, uint32_t runs, uint32_t n, uint32_t window, uint32_t each)
{
	float *score = malloc((size_t)runs * n * sizeof(*score));

	assert(score);
	for (uint32_t run = 0; run < runs; run++)
		for (uint32_t t = 0; t < n; t++)
			score[(size_t)run * n + t] = t < LAB_PROTECT || t + window >= n ||
					t % BLOCK + each >= BLOCK
				? INFINITY
				: c->score[QUALITY_GATE][(size_t)run * c->sample->n_tokens + t];
	return score;
}

/* The best share r of all, protected ones among them. */
static void choose_share(const struct quality *q, const struct quality_context *c,
	const float *score, uint32_t n, double r, struct context *ret)
{
	const uint64_t all = (uint64_t)model_runs(&q->model->config) * n;
	uint64_t kept = 0;
	double rest;

	for (uint64_t i = 0; i < all; i++)
		kept += score[i] == INFINITY;
	rest = (r * (double)all - (double)kept) / (double)(all - kept);
	choose(q, c, score, n,
		&(struct select_params){.rule = SELECT_PAIR, .retained = rest > 0 ? rest : 0}, ret);
}

static void edges_whole(struct quality *q, struct quality_sample *s,
	const struct quality_context *c, struct count sum[SHARES_MAX][KNOBS],
	struct count planes[KNOBS])
{
	const uint32_t runs = model_runs(&q->model->config), n = s->n_tokens;

	for (int w = 0; w < AGAIN; w++) {
		float *score = protected_scores(c, runs, n, (n - LAB_PROTECT) / 50, edge_window[w]);

		for (uint64_t i = 0; i < (uint64_t)runs * n; i++)
			planes[w].right += score[i] >= q->edges[QUALITY_GATE][1];
		planes[w].asked += runs * n;
		for (int i = 0; i < 3; i++) {
			struct context seen;
			struct quality_view view = {.context = &seen};

			choose_share(q, c, score, n, edge_share[i], &seen);
			quality_answer(q, s, &view, 1);
			sum[i][w].right += view.right;
			sum[i][w].asked += s->n_questions;
			context_fini(&seen);
		}
		free(score);
	}
}

/* Rows `from` .. behind a prefix, then the question: is the answer right? */
static uint32_t ask_behind(struct quality *q, struct quality_sample *s,
	const struct context *prefix, uint32_t question)
{
	const uint32_t from = prefix->tokens;
	const uint32_t n = s->n_tokens - from;
	uint8_t *keep = malloc((size_t)model_runs(&q->model->config) * n);
	struct quality_sample one = {.n_questions = 1};
	struct quality_view view;
	struct context all, own;
	struct sequence *rows;
	const uint32_t runs = model_runs(&q->model->config);
	uint32_t at = 0;
	int r = sequence_new(&q->model->config, prefix, n, &rows);

	assert(r == 0 && keep);
	r = forward_prefill(q->forward, rows, s->tokens + from, n, NULL);
	assert(r == 0);
	memset(keep, 1, (size_t)runs * n);
	context_of(rows, keep, n, &own);
	all = (struct context){.first = malloc((runs + 1) * sizeof(*all.first)),
		.run = malloc((prefix->first[runs] + own.first[runs]) * sizeof(*all.run)),
		.dtype = KVG_DTYPE_F32,
		.tokens = from + n,
		.pairs = prefix->pairs + own.pairs};
	assert(all.first && all.run);
	for (uint32_t run = 0; run < runs; run++) {
		all.first[run] = at;
		for (uint32_t i = prefix->first[run]; i < prefix->first[run + 1]; i++)
			all.run[at++] = prefix->run[i];
		all.run[at++] = own.run[own.first[run]];
	}
	all.first[runs] = at;
	one.question[0] = s->question[question];
	view = (struct quality_view){.context = &all};
	quality_answer(q, &one, &view, 1);
	context_fini(&all);
	context_fini(&own);
	sequence_free(rows);
	free(keep);
	return view.right;
}

/*
 * Leading tokens of the context are left out so that the edge of a block falls into the answer to a question, or a few
 * tokens before it. Returns the edge, 0: no answer stands in the text.
 */
static uint32_t part_at_edge(struct quality_sample *s, uint32_t number, uint32_t *ret_question)
{
	for (uint32_t j = 0; j < s->n_questions; j++) {
		const uint32_t n = s->question[j].n_answer - 1; /* without <eos> */
		const uint32_t *answer = s->question[j].tokens + s->question[j].n_tokens - n - 1;

		for (uint32_t t = 2 * BLOCK + LAB_PROTECT; n > 3 && t + n + 40 < s->n_tokens; t++) {
			uint32_t cut = t + n - 1 - number % (n + 30), drop = cut % BLOCK;

			if (memcmp(s->tokens + t, answer, n * sizeof(*answer)))
				continue;
			memmove(s->tokens + LAB_PROTECT, s->tokens + LAB_PROTECT + drop,
				(s->n_tokens - LAB_PROTECT - drop) * sizeof(*s->tokens));
			s->n_tokens -= drop;
			cut -= drop;
			if (s->n_tokens > cut + REST)
				s->n_tokens = cut + REST;
			*ret_question = j;
			return cut;
		}
	}
	return 0;
}

static void edges_parted(struct quality *q, struct quality_sample *s, uint32_t number,
	struct count sum[SHARES_MAX][KNOBS])
{
	const uint32_t runs = model_runs(&q->model->config);
	struct quality_context c;
	uint32_t question, edge = part_at_edge(s, number, &question);

	if (!edge)
		return;
	quality_context_init(&c, q, s, QUALITY_TEXT + 1);
	for (int w = 0; w <= AGAIN; w++) {
		const uint32_t from = w == AGAIN ? edge - BLOCK : edge;
		float *score = protected_scores(&c, runs, from, 0, w == AGAIN ? 0 : edge_window[w]);

		for (int i = 0; i <= 3; i++) { /* the last one: the whole of it */
			struct context prefix;

			choose_share(q, &c, score, from, i < 3 ? edge_share[i] : 1, &prefix);
			sum[i][w].right += ask_behind(q, s, &prefix, question);
			sum[i][w].asked++;
			context_fini(&prefix);
		}
		free(score);
	}
	quality_context_fini(&c);
}

static void edges_report(struct count whole[SHARES_MAX][KNOBS],
	struct count parted[SHARES_MAX][KNOBS], const struct count planes[KNOBS])
{
	printf("| block window | whole .3 | .2 | .1 | parted .3 | .2 | .1 | 1 | two planes |\n"
	       "|---|---|---|---|---|---|---|---|---|\n");
	for (int w = 0; w <= AGAIN; w++) {
		if (w < AGAIN)
			printf("| %u |", edge_window[w]);
		else
			printf("| last block again |");
		for (int i = 0; i < 3; i++)
			if (w < AGAIN)
				printf(" %.1f |", 100. * whole[i][w].right / whole[i][w].asked);
			else
				printf(" |");
		for (int i = 0; i <= 3; i++)
			printf(" %.1f |", 100. * parted[i][w].right / parted[i][w].asked);
		if (w < AGAIN)
			printf(" %.1f |\n", 100. * planes[w].right / planes[w].asked);
		else
			printf(" |\n");
	}
	printf("%u questions to whole contexts, %u parted; right in %%, pairs of two planes in "
	       "%%\n",
		whole[0][0].asked, parted[0][0].asked);
}

/* ---- both ---- */

static void open_lab(struct quality *q)
{
	char why[256];
	uint32_t n;

	openblas_set_num_threads(1);
	if (model_load(LAB, &q->model, why, sizeof(why)) < 0 ||
		kvg_gate_open(LAB "/gate_calibrated.safetensors", &q->gate[0]) < 0 ||
		kvg_gate_open(LAB "/gate_text_calibrated.safetensors", &q->gate[1]) < 0 ||
		forward_new(q->model, 1024, attention_isa_best(), &q->forward) < 0) {
		fprintf(stderr, "bench_evict: the lab model in " LAB " cannot be read\n");
		exit(1);
	}
	kvg_gate_describe(q->gate[0], NULL, NULL, NULL, NULL, NULL, &n, q->edges[QUALITY_GATE]);
	assert(n > 1);
}

int main(int argc, char **argv)
{
	static struct count whole[SHARES_MAX][KNOBS], parted[SHARES_MAX][KNOBS], planes[KNOBS];
	const bool edges = argc > 1 && !strcmp(argv[1], "edges");
	struct quality q = {0};
	struct quality_sample *s;
	uint32_t n;

	if (!edges && (argc < 2 || strcmp(argv[1], "floor"))) {
		fprintf(stderr, "use: bench_evict floor|edges [CONTEXTS]\n");
		return 2;
	}
	open_lab(&q);
	s = quality_samples_load(LAB "/samples.jsonl", argc > 2 ? (uint32_t)atoi(argv[2]) : 5, &n);
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t questions = s[i].n_questions;

		s[i].n_questions = questions < QUESTIONS ? questions : QUESTIONS;
		if (edges) {
			struct quality_context c;

			quality_context_init(&c, &q, &s[i], QUALITY_TEXT + 1);
			edges_whole(&q, &s[i], &c, whole, planes);
			quality_context_fini(&c);
			s[i].n_questions = questions;
			edges_parted(&q, &s[i], i, parted);
		} else {
			floor_context(&q, &s[i], whole);
		}
		s[i].n_questions = questions;
		fprintf(stderr, "bench_evict: context %u of %u\n", i + 1, n);
	}
	if (edges)
		edges_report(whole, parted, planes);
	else
		floor_report(whole);
	quality_samples_free(s, n);
	return 0;
}
