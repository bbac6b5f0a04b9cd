/* SPDX-License-Identifier: Apache-2.0 */
/*
 * In prefill, rows of a head are [settled | not ranked yet]: the settled ones, in number
 * different from head to head, are never ranked again; the others are the same tokens in every
 * head, so that one pair rule over [runs][tokens] ranks them. In decoding every row is ranked
 * every time, but the last 128 of each head count as the best.
 */
#include "client/worker/evict.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates/select.h"

int prefill_eviction_init(
	struct prefill_eviction *e, struct sequence *s, const struct prefill_rule *rule)
{
	const uint32_t least = rule->window_min < rule->context ? rule->window_min : rule->context;
	uint64_t window;

	*e = (struct prefill_eviction){.sequence = s, .start = rule->protect, .floor = rule->floor};
	select_window(
		rule->context, rule->chunk, rule->window, rule->retained, &window, &e->retained);
	if (rule->retained < 1.0 && window < least) {
		const double wanted = rule->retained * rule->context, rest = rule->context - least;

		window = least;
		e->retained = wanted > least ? (wanted - least) / rest : 0.0;
	}
	e->window = (uint32_t)window;
	e->keep = malloc((size_t)model_runs(s->config) * s->capacity);
	return e->keep ? 0 : -ENOMEM;
}

void prefill_eviction_fini(struct prefill_eviction *e)
{
	free(e->keep);
	e->keep = NULL;
}

int prefill_evict(struct prefill_eviction *e)
{
	struct sequence *s = e->sequence;
	const struct model_config *c = s->config;
	const uint32_t runs = model_runs(c);
	const struct select_params pair = {
		.rule = SELECT_PAIR, .retained = e->retained, .floor = e->floor};
	const uint32_t end = s->position > e->window ? s->position - e->window : 0;
	uint32_t n;
	float *scores;
	int r;

	if (end <= e->start)
		return 0;
	n = end - e->start;
	scores = calloc((size_t)runs * n, sizeof(*scores));
	if (!scores)
		return -ENOMEM;
	for (uint32_t run = 0; run < runs; run++) {
		const uint32_t settled = s->n[run] - (s->position - e->start);

		memcpy(scores + (size_t)run * n, sequence_score(s, run) + settled,
			n * sizeof(*scores));
	}
	r = select_dense(&pair, scores, c->layers, c->kv_heads, n, e->keep);
	for (uint32_t run = 0; r == 0 && run < runs; run++) {
		const uint32_t settled = s->n[run] - (s->position - e->start);

		sequence_keep(s, run, settled, settled + n, e->keep + (size_t)run * n);
	}
	if (r == 0)
		e->start = end;
	free(scores);
	return r;
}

int decode_evict(struct sequence *s, uint32_t budget, bool first, float best)
{
	const uint32_t runs = model_runs(s->config);
	const uint64_t rows = sequence_rows(s);
	float *scores = malloc(rows * sizeof(*scores)), threshold;
	uint8_t *keep = malloc(s->capacity);
	uint64_t at = 0;

	if (!scores || !keep) {
		free(scores);
		free(keep);
		return -ENOMEM;
	}
	for (uint32_t run = 0; run < runs; at += s->n[run++]) {
		float *score = sequence_score(s, run);

		for (uint32_t i = 0; first && i < EVICT_DECODE_SINKS && i < s->n[run]; i++)
			score[i] = best;
		memcpy(scores + at, score, s->n[run] * sizeof(*scores));
		for (uint32_t i = 0; i < EVICT_DECODE_BUFFER && i < s->n[run]; i++)
			scores[at + s->n[run] - 1 - i] = best;
	}
	threshold = select_decode_threshold(scores, rows, (uint64_t)budget * runs);
	at = 0;
	for (uint32_t run = 0; run < runs; run++) {
		const uint32_t n = s->n[run];

		for (uint32_t i = 0; i < n; i++)
			keep[i] = scores[at + i] >= threshold;
		sequence_keep(s, run, 0, n, keep);
		at += n;
	}
	free(scores);
	free(keep);
	return 0;
}
