/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend_plan: which rows the attention of one layer reads, and how they are dealt out to a device's multiprocessors.
 * Thread: one at a time. Locks: none. Blocks: never. Errors: -ENOMEM, -EINVAL.
 *
 * Needs no device, and no addresses are read: it is made of planes' geometry and of `cu`. The same lengths give the
 * same dealing, and so the same bits, wherever the rows lie.
 */
#ifndef KVGATE_GPU_ATTEND_PLAN_H
#define KVGATE_GPU_ATTEND_PLAN_H

#include <stdbool.h>

#include "gpu/kernels/attend.h"
#include "proto/plane.h"

#define ATTEND_GROUP_MAX 128 /* query heads of one KV head; models have 1 to 16 */

struct attend_shape {
	uint32_t heads; /* KV heads */
	uint32_t group; /* query heads of each */
	uint32_t dim;   /* of K, V and Q rows: 64, 96, 128 or 256 */
	uint32_t dtype; /* of all: KVG_DTYPE_BF16 or KVG_DTYPE_F16 */
};

/* -EINVAL: a shape there are no kernels for. `processors`: multiprocessors of the device. */
struct attend_plan;
int attend_plan_new(
	const struct attend_shape *shape, uint32_t processors, struct attend_plan **ret);
struct attend_plan *attend_plan_free(struct attend_plan *p);

/*
 * The next sequence, of `tokens` query tokens; runs and planes that follow are its own. Token t sees all rows of its
 * head but the last `unseen` - t: 0 for decode, tokens - 1 for a chunk whose own rows come last.
 */
int attend_plan_sequence(struct attend_plan *p, uint32_t tokens, uint32_t unseen);
/* Rows of one head: the private tail, or what is no plane. Addresses as the kernel sees them. */
int attend_plan_run(struct attend_plan *p, uint32_t head, uint64_t k, uint64_t v, uint32_t rows);
/*
 * A plane whose payload the kernel sees at `payload`; of `plane` only numbers and `cu` are read, which
 * plane_check_runs() has accepted. Of head h the first keep[h] rows are taken, or all there are; NULL: all.
 */
int attend_plan_plane(struct attend_plan *p, const struct plane_view *plane, uint64_t payload,
	uint32_t layer, const uint32_t *keep);

/* After the last sequence: deals out. Nothing can be added then. -EINVAL: there is none. */
int attend_plan_seal(struct attend_plan *p);

struct attend_arrays {
	struct attend_shape shape;
	bool decode; /* which of the kernels */
	const struct attend_run *runs;
	const struct attend_tile *tiles;
	const struct attend_item *items;
	uint32_t n_runs, n_tiles, n_items;
	uint32_t n_parts;
	uint32_t tokens; /* query tokens of all sequences */
	uint32_t blocks; /* to be launched */
	uint64_t rows;   /* of K, and of V, of all heads */
};
/* Of a sealed plan; borrowed. */
struct attend_arrays attend_plan_arrays(const struct attend_plan *p);
/* Bytes of partial results. */
uint64_t attend_partials_bytes(const struct attend_arrays *a);

#endif
