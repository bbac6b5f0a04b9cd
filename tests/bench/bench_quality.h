/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quality: how many questions a model still answers right when only the best share of its context's pairs is kept.
 * Thread: one per process; processes share nothing but the daemon. Locks: none. Blocks: on the daemon. Errors: asserts.
 *
 * A context is put through the daemon once for each method, which is nothing but a way to score pairs; the rule `pair` turns
 * a retained share into prefix lengths of the planes' runs, and the questions, which no method has seen, are answered by
 * attention over just these prefixes.
 */
#ifndef KVGATE_TESTS_BENCH_QUALITY_H
#define KVGATE_TESTS_BENCH_QUALITY_H

#include "client/worker/forward.h"
#include "client/worker/store.h"

#define QUALITY_TASKS_MAX    64
#define QUALITY_SNAP_QUERIES 32

enum quality_method {
	QUALITY_GATE,   /* the lab model's gate */
	QUALITY_TEXT,   /* its other gate, trained on plain text */
	QUALITY_STATIC, /* every token its head's mean score */
	QUALITY_SNAPKV, /* attention of the last tokens */
	QUALITY_EQUAL,  /* the gate, but every head the same budget */
	QUALITY_RECENT, /* the last tokens */
	QUALITY_RANDOM,
	QUALITY_METHODS
};
#define QUALITY_RATIOS 4
extern const double quality_ratio[QUALITY_RATIOS];
extern const char *const quality_name[QUALITY_METHODS];

struct quality_sample {
	char *task;
	uint32_t *tokens; /* <bos> SYS <ctx> context */
	uint32_t n_tokens;
	uint32_t n_questions;
	struct quality_question {
		uint32_t *tokens; /* <q> question <a> answer, and <eos> unless it was cut */
		uint32_t n_tokens;
		uint32_t n_answer; /* of them at the end */
	} * question;
};

/* Samples [i] in the order of the file, at most `contexts` of each task (0: all). Exits with a message on a bad file. */
struct quality_sample *quality_samples_load(const char *path, uint32_t contexts, uint32_t *ret_n);
void quality_samples_free(struct quality_sample *s, uint32_t n);

/* The model, its gates, and what the static baseline knows. Shared by forked processes. */
struct quality {
	struct model *model;
	struct forward *forward;
	struct kvg_gate *gate[2];
	float *head_mean; /* [runs] of gate 0, from contexts of every task */
	float edges[QUALITY_METHODS][KVG_PLANES_MAX - 1];
	uint32_t n_edges;
};

/* A context after its prefill. */
struct quality_context {
	const struct quality_sample *sample;
	struct sequence *rows;
	int methods;
	float *score[QUALITY_METHODS]; /* [runs][n_tokens] */
};
/* The first `methods` of them. */
void quality_context_init(
	struct quality_context *c, struct quality *q, const struct quality_sample *s, int methods);
void quality_context_fini(struct quality_context *c);
/* Protected prefix and window become +inf; returns r' that the rule pair is to retain of the rest. */
double quality_protect(float *score, uint32_t runs, uint32_t tokens, double r);

/* The context under one method's scores in the daemon, pinned. */
struct quality_planes {
	struct store store; /* of this method's layout; borrowed */
	uint32_t n_blocks;
	struct kvg_pin *pin;
	struct kvg_key *key;
};
/* Layouts of two jobs share no blocks, whatever their contexts have in common: each job purges its own. */
struct kvg_layout *quality_layout(
	struct kvg_client *c, const struct quality *q, enum quality_method m, unsigned job);
void quality_put(struct quality_planes *p, struct kvg_client *c, struct kvg_layout *l,
	const struct quality_context *x, const float *score);
void quality_drop(struct quality_planes *p, struct kvg_client *c);
/* Runs of the best share; `full`: all of them. */
void quality_select(struct quality_planes *p, enum quality_method m, double retained, int full,
	struct context *ret);

/* One way to see the context, and how many of its questions were answered right that way. */
struct quality_view {
	const struct context *context;
	uint32_t right;
};
void quality_answer(struct quality *q, const struct quality_sample *s, struct quality_view *views,
	uint32_t n_views);

#endif
