/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An observer of the forward pass. A gate sees the input of each layer's attention, which is
 * there at that moment and nowhere else.
 */
#include "client/worker/scoring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates/why.h"

int scoring_init(struct scoring *s, const struct model_config *c, const char *gate, bool exact,
	char *ret_why, size_t why_size)
{
	uint32_t layers, heads, groups, hidden;
	int r;

	*s = (struct scoring){.exact = exact};
	if (!gate)
		return 0;
	r = kvg_gate_open(gate, &s->gate);
	if (r < 0)
		return why(ret_why, why_size, r, "%s", kvg_last_error(NULL));
	kvg_gate_describe(
		s->gate, &layers, &heads, &groups, &hidden, s->digest, &s->n_edges, s->edges);
	kvg_gate_retained(s->gate, s->retained);
	s->log_scores = groups == 0;
	if (layers != c->layers || heads != c->kv_heads || hidden != c->hidden ||
		(groups && groups != model_group(c))) {
		scoring_fini(s);
		return why(ret_why, why_size, -EINVAL,
			"%s: a gate for %u layers of %u x %u heads, hidden %u, does not fit the "
			"model",
			gate, layers, heads, groups, hidden);
	}
	return 0;
}

void scoring_fini(struct scoring *s)
{
	kvg_gate_close(s->gate);
	free(s->scratch);
	free(s->hidden);
	*s = (struct scoring){0};
}

static int score(struct scoring *s, struct sequence *q, const struct observation *o)
{
	const uint32_t heads = q->config->kv_heads;
	int r;

	if (o->n > s->scratch_tokens) {
		float *more = realloc(s->scratch, (size_t)heads * o->n * sizeof(float));

		if (!more)
			return -ENOMEM;
		s->scratch = more;
		s->scratch_tokens = o->n;
	}
	r = kvg_gate_score(s->gate, o->layer, o->x, KVG_DTYPE_F32, o->n, s->exact, s->scratch);
	if (r < 0)
		return r;
	for (uint32_t h = 0; h < heads; h++) {
		const uint32_t run = o->layer * heads + h;

		memcpy(sequence_score(q, run) + q->n[run] - o->n, s->scratch + (size_t)h * o->n,
			o->n * sizeof(float));
	}
	return 0;
}

static int keep_hidden(struct scoring *s, struct sequence *q, const struct observation *o)
{
	const uint32_t at = q->n[o->layer * q->config->kv_heads] - o->n;
	const size_t width = q->config->hidden;

	memcpy(s->hidden + ((size_t)o->layer * s->hidden_tokens + at) * width, o->x,
		o->n * width * sizeof(float));
	return 0;
}

static int observe(void *userdata, struct sequence *q, const struct observation *o)
{
	struct scoring *s = userdata;

	return s->gate ? score(s, q, o) : keep_hidden(s, q, o);
}

int scoring_attach(struct scoring *s, struct sequence *q)
{
	if (!s->gate) {
		free(s->hidden);
		s->hidden_tokens = q->capacity;
		s->hidden = malloc((size_t)q->config->layers * q->capacity * q->config->hidden *
			sizeof(float));
		if (!s->hidden)
			return -ENOMEM;
	}
	q->observe = observe;
	q->userdata = s;
	return 0;
}
