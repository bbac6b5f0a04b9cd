/* SPDX-License-Identifier: Apache-2.0 */
/*
 * evict: the eviction of the Fast KVzip paper in a worker's own cache, for those who want it
 * without a daemon.
 * Thread: one. Locks: none. Blocks: never. Errors: -ENOMEM.
 *
 * Source: "Fast KVzip" (arXiv 2601.17668) and its official implementation's rules: chunked
 * prefill under a share with a recent window, decoding under a budget with a buffer of 128
 * tokens. Scores are the sequence's.
 */
#ifndef KVGATE_WORKER_EVICT_H
#define KVGATE_WORKER_EVICT_H

#include "client/worker/sequence.h"

#define EVICT_DECODE_BUFFER 128 /* tokens between two evictions while decoding */
#define EVICT_DECODE_SINKS  4   /* first tokens of a sequence, which then always count as 1 */

struct prefill_rule {
	uint32_t protect;       /* leading tokens that stay */
	uint32_t context;       /* tokens behind them that are ranked */
	uint32_t chunk, window; /* select_window()'s */
	uint32_t window_min;    /* what the gate needs at least, whatever the share says */
	uint32_t floor;         /* pairs of every (chunk, layer, head) that stay at least */
	double retained;
};
struct prefill_eviction {
	struct sequence *sequence;
	uint32_t start;  /* first token not ranked yet: those before are settled */
	uint32_t window; /* last tokens of what is there that stay */
	uint32_t floor;
	double retained; /* of each chunk, less the window */
	uint8_t *keep;
};
/* The sequence is empty and has no cached context. */
int prefill_eviction_init(
	struct prefill_eviction *e, struct sequence *s, const struct prefill_rule *rule);
void prefill_eviction_fini(struct prefill_eviction *e);
/* After each chunk of system prompt and context: ranks what lies between start and the window. */
int prefill_evict(struct prefill_eviction *e);

/* Of `decoded` tokens: are they a whole number of buffers? */
static inline bool decode_evict_due(uint32_t decoded)
{
	return decoded % EVICT_DECODE_BUFFER == 0;
}
/*
 * Every EVICT_DECODE_BUFFER decoded tokens: brings the rows of all heads down to budget * runs.
 * `first`: the first time for this sequence. best: what counts as the best score, 1 of a
 * probability, +inf of a log score.
 */
int decode_evict(struct sequence *s, uint32_t budget, bool first, float best);

#endif
