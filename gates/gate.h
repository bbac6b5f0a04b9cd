/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gate: loaded gates and the scores they give to pairs.
 * Thread: a loaded gate is immutable and may be scored from many threads, each with its own scratch.
 * Locks: none. Blocks: loading reads a file. Errors: negative errno with a text that says what to do.
 *
 * Source: "Fast KVzip" (arXiv 2601.17668), "KVzap" (arXiv 2601.07891).
 */
#ifndef KVGATE_GATES_GATE_H
#define KVGATE_GATES_GATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/shape.h"

enum gate_kind {
	GATE_FAST_KVZIP = 1,   /* scores in [0, 1] */
	GATE_KVZAP_LINEAR = 2, /* unbounded log scores */
	GATE_KVZAP_MLP = 3,
};

enum gate_arithmetic {
	GATE_EXACT = 0, /* rounds to the gate's dtype where the reference does; the default */
	GATE_FAST = 1,  /* without them: f32 after the products */
};

enum gate_isa { /* what scores; AUTO takes the best the processor has */
	GATE_ISA_AUTO = 0,
	GATE_ISA_SCALAR,
	GATE_ISA_AVX2,
	GATE_ISA_AVX512,
	GATE_ISA_AVX512_BF16,
	GATE_ISA_AMX_BF16,
};

/* "scalar", "avx2", "avx512", "avx512-bf16", "amx-bf16", "auto"; NULL, and -1 when unknown. */
const char *gate_isa_name(enum gate_isa isa);
int gate_isa_from_name(const char *name);
const char *gate_kind_name(enum gate_kind kind); /* "fast-kvzip", "kvzap-linear", "kvzap-mlp" */

struct gate_info {
	enum gate_kind kind;
	uint32_t
		dtype; /* enum kvg_dtype of its projections, which is the model's: bf16, f16, f32 */
	uint32_t layers; /* gated layers */
	uint32_t heads;  /* H, KV heads */
	uint32_t groups; /* G, query heads per KV head; 0 for KVzap */
	uint32_t hidden; /* D */
	uint32_t dim;    /* d', 0 for KVzap */
	uint32_t sinks;  /* S, 0 for KVzap */
	uint32_t mlp;    /* hidden width of a KVzap MLP, else 0 */
	uint8_t digest
		[32]; /* SHA-256 over kind, shapes and weights in canonical order: the same for the
				 * same gate in any container; calibration is not part of it */
	uint32_t n_edges;                /* 0: not calibrated */
	float edges[KVG_PLANES_MAX - 1]; /* descending */
	float quantiles[KVG_PLANES_MAX -
		1];        /* retained share at each edge, ascending (.05 .10 ...) */
	char model[256];   /* model fingerprint or name the file carries, "" if none */
	enum gate_isa isa; /* what GATE_ISA_AUTO means for this gate, here */
};

struct gate;

/*
 * Reads an official Fast KVzip `.pt` (never executes anything in it), our safetensors, or a KVzap
 * folder (model.safetensors + config.json) or safetensors file, told apart by contents. On failure
 * ret_why (size why_size) says what is wrong and what to do; *ret is untouched.
 * -ENOENT ..., -EBADMSG damaged or not a gate, -EINVAL shapes that do not fit together, -ENOMEM.
 */
int gate_load(const char *path, struct gate **ret, char *ret_why, size_t why_size);
struct gate *gate_free(struct gate *g);
const struct gate_info *gate_info(const struct gate *g);

/* Scratch of one thread, for calls of up to `tokens` tokens. */
struct gate_scratch;
int gate_scratch_new(const struct gate *g, uint32_t tokens, struct gate_scratch **ret);
struct gate_scratch *gate_scratch_free(struct gate_scratch *s);

/*
 * Scores of one gated layer. x: [tokens][hidden], dtype bf16 or f32, the attention block's input after
 * its norm, row stride `x_stride` elements; `exact` rounds f32 ones to the gate's dtype. ret_scores: [heads][tokens] f32 with row stride
 * `score_stride` elements. Does not block or allocate. NaN in x gives NaN scores.
 */
void gate_score(const struct gate *g, uint32_t layer, const void *x, uint32_t x_dtype,
	size_t x_stride, uint32_t tokens, enum gate_arithmetic arithmetic, enum gate_isa isa,
	struct gate_scratch *scratch, float *ret_scores, size_t score_stride);

/* All gated layers, x [layers][tokens][hidden], ret [layers][heads][tokens], on up to n_threads threads. */
int gate_score_all(const struct gate *g, const void *x, uint32_t x_dtype, uint32_t tokens,
	enum gate_arithmetic arithmetic, enum gate_isa isa, unsigned n_threads, float *ret_scores);

/* AMX asks the kernel for this process's leave to use its tiles, once and for all threads. */
bool gate_isa_supported(enum gate_isa isa);

/*
 * Band edges from scores: edge i is the score that leaves retained[i] of all pairs at or above it.
 * retained ascending in (0, 1). ret_edges descending.
 */
int gate_quantiles(const float *scores, uint64_t n, const float *retained, uint32_t n_retained,
	float *ret_edges);
extern const float gate_default_retained[6]; /* .05 .10 .20 .30 .50 .75 */

/* Writes our safetensors with this calibration (n_edges 0: as loaded). */
int gate_save(const struct gate *g, const char *path, uint32_t n_edges, const float *edges,
	const float *retained, const char *model, char *ret_why, size_t why_size);

#endif
