/* SPDX-License-Identifier: Apache-2.0 */
/*
 * planes: a context's planes as they lie in a region: how many rows of which head are in which, and where; and their
 * bytes, for those who need them. Nothing here needs a GPU.
 * Thread: one. Locks: none. Blocks: never. Errors: asserts.
 */
#ifndef KVGATE_TESTS_GPU_PLANES_H
#define KVGATE_TESTS_GPU_PLANES_H

#include "gpu/attend_plan.h"
#include "proto/plane.h"

#define PLANES_PAGE 65536u

struct planes_shape {
	uint32_t layers, heads, dim, dtype;
	uint32_t tokens; /* of the context */
	uint32_t block;  /* tokens */
	uint32_t n_planes;
};

struct planes {
	struct planes_shape shape;
	uint32_t n; /* blocks * n_planes; plane p of block b is b * n_planes + p */
	struct planes_one {
		struct plane_view view; /* numbers and cu only */
		uint64_t offset;        /* of its payload: a multiple of PLANES_PAGE */
		uint64_t pages;
	} * at;
	uint32_t *cu;
	uint64_t bytes; /* of the region */
};

/* share is [layers * heads][n_planes], of a run's tokens; what a block keeps strays from it. NULL: all lengths are random. */
void planes_init(
	struct planes *p, const struct planes_shape *shape, const float *share, uint64_t seed);
void planes_fini(struct planes *p);
/* Payloads change places: the same planes in a region laid out otherwise. */
void planes_shuffle(struct planes *p, uint64_t seed);
/* All bytes of a plane: random rows, header and sums. The same seed gives the same rows, wherever it lies. */
void planes_fill(const struct planes *p, void *region, uint64_t seed);
/* A header and `cu` alone, for one whose rows somebody else makes; returns their size. */
uint64_t planes_head(const struct planes *p, uint32_t i, void *ret, uint64_t room);
/* All planes below `n_planes` of every block into the plan's sequence; keep is [heads] a plane, or NULL. */
void planes_plan(const struct planes *p, uint64_t region, uint32_t layer, uint32_t n_planes,
	const uint32_t *keep, struct attend_plan *plan);
/* n elements of dtype, -scale .. scale. */
void planes_random(void *to, uint64_t n, uint32_t dtype, float scale, uint64_t seed);

/* Which share of its tokens each head has in planes 0 .. 3 of 7, as real models have it at a retention of .3. */
#define PLANES_SKEW_LAYERS 3
#define PLANES_SKEW_KEPT   4
void planes_skew(float share[PLANES_SKEW_LAYERS * 8][7]);

#endif
