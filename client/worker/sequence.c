/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Own rows of one (layer, head) are contiguous, oldest first, with room for every token the
 * sequence can still get: appending copies nothing, and attention sees them as one run beside
 * those of the planes.
 */
#include "client/worker/sequence.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

void context_fini(struct context *c)
{
	free(c->first);
	free(c->run);
	*c = (struct context){0};
}

int sequence_new(const struct model_config *c, const struct context *context, uint32_t capacity,
	struct sequence **ret)
{
	const size_t rows = (size_t)model_runs(c) * capacity;
	struct sequence *s = calloc(1, sizeof(*s));

	if (!s)
		return -ENOMEM;
	s->config = c;
	s->context = context;
	s->position = context ? context->tokens : 0;
	s->capacity = capacity;
	s->n = calloc(model_runs(c), sizeof(*s->n));
	s->k = malloc(rows * c->head_dim * sizeof(*s->k));
	s->v = malloc(rows * c->head_dim * sizeof(*s->v));
	s->score = malloc(rows * sizeof(*s->score));
	if (!s->n || !s->k || !s->v || !s->score) {
		sequence_free(s);
		return -ENOMEM;
	}
	*ret = s;
	return 0;
}

struct sequence *sequence_free(struct sequence *s)
{
	if (s) {
		free(s->n);
		free(s->k);
		free(s->v);
		free(s->score);
		free(s);
	}
	return NULL;
}

uint64_t sequence_rows(const struct sequence *s)
{
	uint64_t n = 0;

	for (uint32_t run = 0; run < model_runs(s->config); run++)
		n += s->n[run];
	return n;
}

void sequence_keep(struct sequence *s, uint32_t run, uint32_t from, uint32_t n, const uint8_t *keep)
{
	const size_t row_bytes = s->config->head_dim * sizeof(float);
	float *score = sequence_score(s, run);
	uint32_t to = from;

	assert(from <= n && n <= s->n[run]);
	for (uint32_t row = from; row < s->n[run]; row++) {
		if (row < n && !keep[row - from])
			continue;
		if (to < row) {
			memcpy(sequence_k(s, run, to), sequence_k(s, run, row), row_bytes);
			memcpy(sequence_v(s, run, to), sequence_v(s, run, row), row_bytes);
			score[to] = score[row];
		}
		to++;
	}
	s->n[run] = to;
}
