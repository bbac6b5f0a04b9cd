/* SPDX-License-Identifier: Apache-2.0 */
/*
 * forward: takes tokens of any number of sequences through the model at once.
 * Thread: one per struct forward. Locks: none. Blocks: computes. Errors: -ENOMEM, or what an
 * observer said.
 */
#ifndef KVGATE_WORKER_FORWARD_H
#define KVGATE_WORKER_FORWARD_H

#include "client/worker/sequence.h"

/* The next n tokens of one sequence; logits are wanted of the last n_logits. */
struct span {
	struct sequence *sequence;
	const uint32_t *tokens;
	uint32_t n;
	uint32_t n_logits;
};

struct forward;
/* rows: tokens of all spans of one call at most. isa: of attention. */
int forward_new(const struct model *m, uint32_t rows, enum attention_isa isa, struct forward **ret);
struct forward *forward_free(struct forward *f);
uint32_t forward_rows(const struct forward *f);

/*
 * Appends the tokens' rows to their sequences. ret_logits (may be NULL): [sum of
 * n_logits][vocab], span after span, valid until the next call. A sequence may be in one span
 * only. Tokens are below the vocabulary's size.
 */
int forward_run(
	struct forward *f, const struct span *spans, uint32_t n_spans, const float **ret_logits);
/* The same for more tokens of one sequence than fit one call; logits of the very last token. */
int forward_prefill(struct forward *f, struct sequence *s, const uint32_t *tokens, uint32_t n,
	const float **ret_logits);

#endif
