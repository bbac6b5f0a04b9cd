/* SPDX-License-Identifier: Apache-2.0 */
/*
 * store: the KV cache of the machine as the worker uses it - what is there of a prompt, and what
 * it adds.
 * Thread: one. Locks: none. Blocks: opening, a first read of a segment, what has to come up from
 * disk, and putting do, on the daemon.
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
	size_t n_pins;        /* whole blocks, then perhaps a shorter one */
	size_t n_blocks;      /* the whole ones */
	struct kvg_key *keys; /* [n_tokens / block_tokens] of the whole prompt */
	double retention;     /* share of the context's pairs that context lists; 1 for none */
	uint64_t bytes;       /* of the planes that are mapped for it */
};
struct store_wish {
	const uint32_t *tokens;
	uint32_t n;
	uint32_t shared;      /* leading tokens of which the caller puts what is not there */
	double min_retention; /* a block of which less is mapped ends the prefix */
	double retained;      /* < 1: the best share by the pair rule, and what is protected */
};
/*
 * Pins the longest prefix, one token short of the prompt at least: whole blocks, and a short one
 * that ends a context, unless the whole block in its place is to be put. What lies on disk is brought up.
 */
int store_get(struct store *s, const struct store_wish *w, struct reuse *ret);
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
	const struct kvg_key *keys; /* NULL: there is nothing to put */
	uint32_t first;             /* token of the sequence's first own row */
	uint32_t next, end;         /* whole blocks that are still to be staged */
	uint32_t tail;              /* tokens of a short block after them; 0: none */
	uint32_t protect;           /* tokens before it, .. */
	uint32_t window;            /* .. from here on, .. */
	uint32_t block_window;      /* .. and so many at the end of every block are protected */
	uint32_t outstanding;       /* commits without an answer */
	uint32_t blocks;            /* published, or there already */
	uint64_t bytes;
	int error;     /* the first; what came before it is kept */
	char why[200]; /* its text */
};
/* Stages every block whose tokens the sequence has by now. */
void put_advance(struct put *p);
/* Waits for the answers. 0, or the first error. */
int put_finish(struct put *p);

#endif
