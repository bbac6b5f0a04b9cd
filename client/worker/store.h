/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store: the KV cache of the machine as the worker uses it - what is there of a prompt, and what
 * it adds.
 * Thread: one. Locks: none. Blocks: opening, a first read of a segment and putting do, on the
 * daemon.
 * Errors: negative errno; the text is kvg_last_error(), or put's own.
 *
 * Rows in planes are what attention reads: get pins blocks and lists their runs, nothing is
 * copied. Put stages blocks while a prompt is being computed and lets the daemon sort them
 * meanwhile.
 */
#ifndef KVGATE_WORKER_STORE_H
#define KVGATE_WORKER_STORE_H

#include <stdbool.h>
#include <stdint.h>

#include "client/worker/scoring.h"
#include "client/worker/sequence.h"
#include "kvgate.h"

struct store {
	struct kvg_client *client;
	struct kvg_layout *layout;
	const struct model_config *config;
	struct scoring *scoring; /* NULL: no gate */
	uint32_t block_tokens, dtype;
	enum kvg_input input;
};

struct store_options {
	const char *socket;
	const char *model, *revision, *rope; /* the KV's identity */
	const char *gate_name;
	uint32_t block_tokens, dtype;
};

int store_open(struct store *s, const struct store_options *o, const struct model_config *c,
	struct scoring *scoring);
void store_close(struct store *s);

/* ---- get ---- */

/* What was found of a prompt; rows in context point into shared memory until reuse_fini(). */
struct reuse {
	struct context context;
	struct kvg_pin *pins;
	size_t n_pins;
	struct kvg_key *keys; /* [n_tokens / block_tokens] of the whole prompt */
	double retention;     /* share of the context's pairs that context lists; 1 for none */
	uint64_t bytes;       /* of the planes that are mapped for it */
};
/*
 * Pins the longest prefix, one token short of the prompt at least. Blocks of which less than
 * min_retention is mapped end it. retained < 1: of all its pairs the best share, by the pair
 * rule, protected ones first.
 */
int store_get(struct store *s, const uint32_t *tokens, uint32_t n, double min_retention,
	double retained, struct reuse *ret);
void reuse_fini(struct store *s, struct reuse *r);
/* The runs of pinned blocks; len as kvg_select() gives it, or NULL for all. */
int store_context(struct store *s, const struct kvg_pin *pins, size_t n, const uint32_t *len,
	struct context *ret, uint64_t *ret_bytes);

/* ---- put ---- */

/*
 * K and V of a stage: [layers][2][heads][tokens][dim] from own rows row .. row + n_tokens - 1 of
 * a sequence.
 */
void store_fill_kv(const struct store *s, const struct sequence *q, uint32_t row,
	const struct kvg_stage *stage);

struct put {
	struct store *store;
	struct sequence *sequence;
	const uint32_t *tokens;
	const struct kvg_key *keys;
	uint32_t first;     /* block of the sequence's first own token */
	uint32_t next, end; /* blocks that are still to be staged */
	uint32_t protect;   /* tokens before it and .. */
	uint32_t window;    /* .. from here to window_end are protected */
	uint32_t window_end;
	uint32_t outstanding; /* commits without an answer */
	uint32_t blocks;      /* published, or there already */
	uint64_t bytes;
	int error;     /* the first; what came before it is kept */
	char why[200]; /* its text */
};
/* Stages every block whose tokens the sequence has by now. */
void put_advance(struct put *p);
/* Waits for the answers. 0, or the first error. */
int put_finish(struct put *p);

#endif
