/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shape: what one block of KV looks like - dimensions, dtype, dense staging layout.
 * Thread: pure values, any. Locks: none. Blocks: never. Errors: -EINVAL with a reason.
 */
#ifndef KVGATE_PROTO_SHAPE_H
#define KVGATE_PROTO_SHAPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/kvgate-types.h"

/* Limits a client can choose up to. Each has a reason. */
#define KVG_LAYERS_MAX      1024               /* eight times the deepest model known */
#define KVG_HEADS_MAX       1024               /* KV heads of one layer on one rank */
#define KVG_DIM_MAX         4096               /* one head's K or V row, in elements */
#define KVG_ROW_BYTES_MAX   (KVG_DIM_MAX * 4u) /* the same in bytes, of the widest dtype */
#define KVG_TOKENS_MAX      65535              /* the token index of a pair is a u16 */
#define KVG_BLOCK_BYTES_MAX (1ull << 30)       /* one block must fit a segment */
#define KVG_HIDDEN_MAX      65536              /* hidden size of a gated model */

/* Bytes of one element, 0 for an unknown dtype. */
size_t dtype_bytes(uint32_t dtype);
const char *dtype_name(uint32_t dtype);     /* "bf16"; NULL when unknown */
uint32_t dtype_from_name(const char *name); /* 0 when unknown */

/* IEEE half <-> float, round to nearest even; NaN stays NaN. */
uint16_t f16_from_f32(float f);
float f16_to_f32(uint16_t h);
static inline float bf16_to_f32(uint16_t b)
{
	union {
		uint32_t u;
		float f;
	} v = {.u = (uint32_t)b << 16};
	return v.f;
}
uint16_t bf16_from_f32(float f);

/*
 * A dense block is [layers][2][heads][tokens][dim]: for each layer its K rows [heads][tokens][k_dim],
 * then its V rows [heads][tokens][v_dim]. An opaque block (opaque_bytes > 0) has no rows.
 */
struct kv_shape {
	uint32_t layers; /* L */
	uint32_t heads;  /* H, KV heads per layer on this rank */
	uint32_t tokens; /* T, tokens of a full block */
	uint32_t k_dim;
	uint32_t v_dim;
	uint32_t dtype;        /* enum kvg_dtype */
	uint64_t opaque_bytes; /* > 0: a block is this many bytes of the engine's own layout */
};

/* 0, or -EINVAL and *ret_why (static text saying what to change). Checks every product for overflow. */
int shape_check(const struct kv_shape *s, const char **ret_why);

static inline size_t shape_k_row(const struct kv_shape *s)
{
	return s->k_dim * dtype_bytes(s->dtype);
}
static inline size_t shape_v_row(const struct kv_shape *s)
{
	return s->v_dim * dtype_bytes(s->dtype);
}
static inline uint32_t shape_runs(const struct kv_shape *s)
{
	return s->layers * s->heads;
}
/* Bytes of K and V of `tokens` tokens, or of the opaque block. */
uint64_t shape_kv_bytes(const struct kv_shape *s, uint32_t tokens);

/* What a worker puts beside the KV bytes. */
enum stage_input {
	STAGE_INPUT_NONE = 0,   /* no scores: every pair is protected, one plane */
	STAGE_INPUT_SCORES = 1, /* f32 [L][H][T]; +inf = protected; NaN, -inf refused */
	STAGE_INPUT_HIDDEN = 2, /* [gated layers][T][hidden], for the daemon's gate to score */
};

/*
 * One staged block: kv | aux (scores or hidden) | tokens (u32 each), each part 64-byte aligned.
 * All offsets are relative to the stage's own offset in the staging memfd.
 */
struct stage_geometry {
	uint64_t kv_off, kv_bytes;
	uint64_t aux_off, aux_bytes;
	uint64_t tokens_off, tokens_bytes;
	uint64_t total; /* multiple of 4096 */
};

struct stage_format {
	enum stage_input input;
	uint32_t gated_layers; /* with STAGE_INPUT_HIDDEN */
	uint32_t hidden;       /* D */
	uint32_t hidden_dtype; /* KVG_DTYPE_BF16 or KVG_DTYPE_F32 */
};

/* A block shorter than shape.tokens is staged packed: strides are those of its own token count. */
void stage_geometry(const struct kv_shape *s, const struct stage_format *f, uint32_t tokens,
	struct stage_geometry *ret);

#endif
