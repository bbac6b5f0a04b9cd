/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attend: what the attention kernels take, made by gpu/attend_plan.h.
 * Thread: any. Locks: none. Blocks: never. Errors: none; who makes them sees to it that they are right.
 *
 * A group is one KV head of one sequence; its runs stand behind each other and its KV rows are numbered through them. A
 * query row is one query head of one query token: row t * G + g of a group. Query token t sees the KV rows below
 * seen + t. A tile is up to 16 (decode) or 128 (prefill) query rows of a group: ATTEND_TILE_ROWS. An item is a range of KV rows for one
 * tile; where a tile has several, each leaves a partial result, and a second kernel merges them, in their order.
 */
#ifndef KVGATE_GPU_KERNELS_ATTEND_H
#define KVGATE_GPU_KERNELS_ATTEND_H

#include <stdint.h>

#define ATTEND_PART_NONE  UINT32_MAX
#define ATTEND_STAGES_MAX 6
#define ATTEND_HEAD_BYTES 1280 /* of shared memory, before everything else */

/* What kernel and host must agree on; 16 query rows are those of one matrix instruction. */
#define ATTEND_TILE_ROWS(decode, dim)  ((decode) ? 16 : (dim) > 128 ? 64 : 128)
#define ATTEND_STAGE_ROWS(decode, dim) ((decode) && (dim) == 64 ? 128 : 64)
#define ATTEND_ROW_CHUNKS(dim)         ((dim) / 8 % 8 ? (dim) / 8 + 1 : (dim) / 8)
#define ATTEND_STAGE_BYTES(decode, dim)                                                            \
	(ATTEND_STAGE_ROWS(decode, dim) * ATTEND_ROW_CHUNKS(dim) * 16 * 2)
#define ATTEND_MERGE_BYTES(decode, dim) ((decode) ? 16 * (dim)*4 : 0)
#define ATTEND_THREADS(decode, dim)     ((decode) ? 160 : ATTEND_TILE_ROWS(0, dim) * 2 + 32)
#define ATTEND_MERGE_WAYS               8
#define ATTEND_BLOCKS(decode, dim)      ((decode) && (dim) <= 128 ? 2 : 1) /* of a multiprocessor */

/* `rows` rows of K and of V, each contiguous, at addresses that are multiples of 16. */
struct attend_run {
	uint64_t k, v;
	uint32_t first; /* row's number in the group */
	uint32_t rows;  /* > 0 */
};

struct attend_tile {
	uint32_t token; /* of the whole batch: the first of the sequence */
	uint32_t head;  /* KV head */
	uint32_t row;   /* first query row */
	uint32_t rows;
	uint32_t seen; /* KV rows that the sequence's first query token sees */
	uint32_t part; /* the first of its partial results */
	uint32_t parts;
	uint32_t reserved;
};

struct attend_item {
	uint32_t tile;
	uint32_t run, run_end; /* the run in which `row` is; where the group's end */
	uint32_t row, rows;
	uint32_t part; /* ATTEND_PART_NONE: the tile's only item */
};

/* Of the scratch memory, zero at first and again after every launch. */
struct attend_counters {
	uint32_t taken; /* items, beyond the first of each block */
	uint32_t left;  /* blocks that found none */
	uint32_t reserved[2];
};

/* All addresses are the device's. */
struct attend_args {
	uint64_t q;     /* [tokens][H * G][D], bf16 or f16 */
	uint64_t out;   /* the same shape */
	uint64_t lse;   /* f32 [tokens][H * G]: ln of the sum of exp(scale q . k); 0: not wanted */
	uint64_t runs;  /* struct attend_run [] */
	uint64_t tiles; /* struct attend_tile [] */
	uint64_t items; /* struct attend_item [] */
	uint64_t partials; /* f32: of each part [M][D], m[M], l[M]; M rows of a tile */
	uint64_t counters; /* struct attend_counters */
	uint32_t n_items;
	uint32_t heads, group; /* H, G */
	uint32_t q_stride;     /* elements from token to token, of q and of out */
	uint32_t stages;       /* that fit shared memory */
	float scale;
};

/* The same on the processor, of host addresses, in double precision. 0, or -EINVAL where items do not cover tiles. */
int attend_twin(const struct attend_args *args, uint32_t n_tiles, uint32_t dim, uint32_t dtype);

#endif
