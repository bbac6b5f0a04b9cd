/* SPDX-License-Identifier: Apache-2.0 */
/*
 * generate: from prompts to answers - take what is cached, compute the rest, share it, decode as
 * one batch.
 * Thread: one. Locks: none. Blocks: computes, and on the daemon. Errors: negative errno and a text.
 */
#ifndef KVGATE_WORKER_GENERATE_H
#define KVGATE_WORKER_GENERATE_H

#include <stddef.h>

#include "client/worker/evict.h"
#include "client/worker/forward.h"
#include "client/worker/options.h"
#include "client/worker/prompt.h"
#include "client/worker/sample.h"
#include "client/worker/scoring.h"
#include "client/worker/store.h"

/* What all prompts of a process have in common. Pointers are borrowed. */
struct engine {
	const struct options *options;
	const struct model *model;
	struct forward *forward;
	struct scoring *scoring; /* NULL: nothing is scored */
	struct store *store;     /* NULL: no cache */
	char why[512];           /* of the last error */
};

struct answer {
	const struct prompt *prompt;
	struct sequence *sequence;
	struct sampler sampler;
	struct reuse reuse;
	uint32_t *tokens; /* decoded, without an end token */
	uint32_t n_tokens;
	bool done;
	bool evicted;  /* while decoding, once at least */
	float *logits; /* --dump-logits: [prompt tokens computed][vocab] */
	uint32_t n_logits;
	double ttft_ms; /* from the prompt to its first token */
	double put_ms;  /* waiting for the daemon after that */
	double decode_ms;
	uint32_t blocks_put;
	uint64_t bytes_put;
};

/* Options against the gate, once it is known: KVzap's is of no use without a recent window. */
int engine_check(struct engine *e);
/* Computes the prompt and the first token of the answer; seed of the sampler. */
int answer_start(struct engine *e, const struct prompt *p, uint64_t seed, struct answer *ret);
/* Decodes all of them to their ends, one step of every answer at a time. */
int answers_finish(struct engine *e, struct answer *a, uint32_t n);
void answer_fini(struct engine *e, struct answer *a);

#endif
