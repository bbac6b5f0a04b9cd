/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Candidates are sorted by logit; top-k cuts their number, then top-p keeps the fewest whose
 * probability, among those left, reaches p; one is drawn of what remains. The generator is
 * splitmix64: the same seed gives the same text.
 */
#include "client/worker/sample.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>

struct candidate {
	float logit; /* then its share of the probability, not normalised */
	uint32_t token;
};

int sampler_init(struct sampler *s, uint32_t vocab, float temperature, uint32_t top_k, float top_p,
	uint64_t seed)
{
	*s = (struct sampler){.temperature = temperature,
		.top_k = top_k ? top_k : vocab,
		.top_p = top_p,
		.state = seed,
		.vocab = vocab,
		.candidate = malloc(vocab * sizeof(*s->candidate))};
	return s->candidate ? 0 : -ENOMEM;
}

void sampler_fini(struct sampler *s)
{
	free(s->candidate);
	s->candidate = NULL;
}

uint32_t sample_greedy(const float *logits, uint32_t vocab)
{
	uint32_t best = 0;

	for (uint32_t i = 1; i < vocab; i++)
		if (logits[i] > logits[best])
			best = i;
	return best;
}

/* In [0, 1). */
static double draw(struct sampler *s)
{
	uint64_t z = s->state += 0x9e3779b97f4a7c15ull;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ z >> 27) * 0x94d049bb133111ebull;
	return (double)((z ^ z >> 31) >> 11) * 0x1p-53;
}

static int more_likely_first(const void *a, const void *b)
{
	const struct candidate *x = a, *y = b;

	if (x->logit != y->logit)
		return x->logit > y->logit ? -1 : 1;
	return x->token < y->token ? -1 : x->token > y->token;
}

uint32_t sample(struct sampler *s, const float *logits)
{
	uint32_t n = s->top_k < s->vocab ? s->top_k : s->vocab, kept = 0;
	double total = 0.0, share = 0.0, at;

	if (s->temperature <= 0.0f)
		return sample_greedy(logits, s->vocab);
	for (uint32_t i = 0; i < s->vocab; i++)
		s->candidate[i] = (struct candidate){.logit = logits[i], .token = i};
	qsort(s->candidate, s->vocab, sizeof(*s->candidate), more_likely_first);
	for (uint32_t i = n; i-- > 0;) {
		struct candidate *c = &s->candidate[i];

		c->logit = expf((c->logit - s->candidate[0].logit) / s->temperature);
		total += c->logit;
	}
	while (kept < n && (kept == 0 || share < s->top_p * total))
		share += s->candidate[kept++].logit;
	at = draw(s) * share;
	for (uint32_t i = 0; i + 1 < kept; i++) {
		at -= s->candidate[i].logit;
		if (at < 0.0)
			return s->candidate[i].token;
	}
	return s->candidate[kept - 1].token;
}
