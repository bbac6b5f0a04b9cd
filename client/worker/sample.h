/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sample: the next token from its logits - greedy, or drawn with temperature, top-k and top-p.
 * Thread: one per sampler. Locks: none. Blocks: never. Errors: -ENOMEM at _init.
 */
#ifndef KVGATE_WORKER_SAMPLE_H
#define KVGATE_WORKER_SAMPLE_H

#include <stdint.h>

struct sampler {
	float temperature; /* 0: greedy */
	uint32_t top_k;    /* 0: all */
	float top_p;       /* 1: all */
	uint64_t state;    /* of the generator */
	uint32_t vocab;
	struct candidate *candidate; /* [vocab] */
};
int sampler_init(struct sampler *s, uint32_t vocab, float temperature, uint32_t top_k, float top_p,
	uint64_t seed);
void sampler_fini(struct sampler *s);

uint32_t sample_greedy(const float *logits, uint32_t vocab); /* the lower id wins a tie */
uint32_t sample(struct sampler *s, const float *logits);

#endif
