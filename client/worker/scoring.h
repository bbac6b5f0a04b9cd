/* SPDX-License-Identifier: Apache-2.0 */
/*
 * scoring: what a gate makes of a sequence's tokens while they are computed.
 * Thread: one. Locks: none. Blocks: opening reads a file. Errors: negative errno and a text.
 *
 * With a gate of our own every own row of a sequence has its score beside it (sequence_score).
 * For a gate of the daemon the hidden states are kept instead, and sent along with the KV.
 */
#ifndef KVGATE_WORKER_SCORING_H
#define KVGATE_WORKER_SCORING_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/worker/sequence.h"
#include "kvgate.h"

#define SCORING_KVZAP_WINDOW 128 /* KVzap's log scores are of no use for the most recent tokens */

struct scoring {
	struct kvg_gate *gate; /* NULL: hidden states are kept */
	bool exact;
	bool log_scores; /* KVzap: without bounds, and only with its window */
	uint8_t digest[32];
	uint32_t n_edges;
	float edges[KVG_PLANES_MAX - 1];
	float retained[KVG_PLANES_MAX - 1];
	float *scratch; /* [kv_heads][tokens of one call] */
	uint32_t scratch_tokens;
	float *hidden; /* [layers][hidden_tokens][hidden] */
	uint32_t hidden_tokens;
};

/* gate NULL: hidden states. The gate must fit the model. */
int scoring_init(struct scoring *s, const struct model_config *c, const char *gate, bool exact,
	char *ret_why, size_t why_size);
void scoring_fini(struct scoring *s);

/*
 * From now on this sequence's tokens are looked at; of hidden states there is one sequence's at a
 * time.
 */
int scoring_attach(struct scoring *s, struct sequence *q);

#endif
