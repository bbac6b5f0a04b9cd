/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is the whole answer what greedy decoding would write? It is if and only if, given the right answer's tokens so far, the
 * likeliest next token is the right one at every step; so question and answer go through the model at once, for every
 * question and every view of the context in one batch.
 */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <stdlib.h>

static bool likeliest(const float *logits, uint32_t vocab, uint32_t token)
{
	for (uint32_t i = 0; i < vocab; i++)
		if (logits[i] > logits[token] || (logits[i] == logits[token] && i < token))
			return false;
	return true;
}

struct
try {
	uint32_t view, question;
};

static void run_batch(struct quality *q, const struct quality_sample *s, struct quality_view *views,
	const struct try *tries, uint32_t n)
{
	struct span *spans = calloc(n, sizeof(*spans));
	const float *logits;
	int r;

	assert(spans);
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t j = tries[i].question;

		r = sequence_new(&q->model->config, views[tries[i].view].context,
			s->question[j].n_tokens, &spans[i].sequence);
		assert(r == 0);
		spans[i].tokens = s->question[j].tokens;
		spans[i].n = s->question[j].n_tokens - 1; /* the last one is only looked for */
		spans[i].n_logits = s->question[j].n_answer;
	}
	r = forward_run(q->forward, spans, n, &logits);
	assert(r == 0);
	for (uint32_t i = 0; i < n; i++) {
		const uint32_t j = tries[i].question, vocab = q->model->config.vocab;
		const uint32_t *answer =
			s->question[j].tokens + s->question[j].n_tokens - s->question[j].n_answer;
		bool right = true;

		for (uint32_t t = 0; t < s->question[j].n_answer; t++, logits += vocab)
			right = right && likeliest(logits, vocab, answer[t]);
		views[tries[i].view].right += right;
		sequence_free(spans[i].sequence);
	}
	free(spans);
}

void quality_answer(struct quality *q, const struct quality_sample *s, struct quality_view *views,
	uint32_t n_views)
{
	struct try *tries = malloc((size_t)n_views * s->n_questions * sizeof(*tries));
	uint32_t n = 0, rows = 0;

	assert(tries);
	for (uint32_t j = 0; j < s->n_questions; j++)
		for (uint32_t v = 0; v < n_views; v++) {
			if (rows + s->question[j].n_tokens > forward_rows(q->forward)) {
				run_batch(q, s, views, tries, n);
				n = rows = 0;
			}
			tries[n++] = (struct try){v, j};
			rows += s->question[j].n_tokens;
		}
	if (n)
		run_batch(q, s, views, tries, n);
	free(tries);
}
