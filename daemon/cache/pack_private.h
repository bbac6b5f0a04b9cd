/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack_private: a block while it is packed - shared by pack.c, which decides, and pack_write.c, which writes.
 * Thread: the worker's. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_DAEMON_CACHE_PACK_PRIVATE_H
#define KVGATE_DAEMON_CACHE_PACK_PRIVATE_H

#include "daemon/cache/pack.h"
#include "daemon/cache/pack_kernels.h"
#include "daemon/cache/pack_sink.h"
#include "proto/plane.h"

struct scratch {
	void *p;
	size_t bytes;
};

struct packer {
	struct sink sink[KVG_PLANES_MAX];
	const struct pack_kernels *kernels;
	uint64_t stream_from; /* blocks of so many bytes are stored around the caches */
	struct scratch keys;  /* u32 [runs][tokens] */
	struct scratch cut; /* u16 [runs][planes]: pairs of the run in this plane and better ones */
	struct scratch scores; /* f32 [heads][tokens] of one layer */
	struct scratch sort;   /* u32 [tokens] */
	struct gate_scratch *gate_scratch;
	const struct gate *gate; /* that gate_scratch is for, by identity and digest */
	uint8_t gate_digest[32];
	uint32_t gate_tokens;
};

/* What pack_run() works on besides the job. */
struct pack {
	struct pack_job *job;
	struct packer *packer;
	uint32_t tokens, heads, runs, n_planes;
	size_t k_row, v_row;
	uint32_t *keys;
	uint16_t *cut;
	struct plane_geometry geometry[KVG_PLANES_MAX];
};

/* Index of the layer among those the gate scores; UINT32_MAX: the layer is not gated. */
static inline uint32_t gated(const struct pack_job *j, uint32_t layer)
{
	if (j->input == STAGE_INPUT_NONE)
		return UINT32_MAX;
	return j->layer_gate ? j->layer_gate[layer] : layer;
}

static inline uint32_t run_begin(const struct pack *k, uint32_t run, uint32_t plane)
{
	return plane ? k->cut[(size_t)run * k->n_planes + plane - 1] : 0;
}

static inline uint32_t run_pairs(const struct pack *k, uint32_t run, uint32_t plane)
{
	return k->cut[(size_t)run * k->n_planes + plane] - run_begin(k, run, plane);
}

/* The keys of a run's pairs in a plane; NULL: as the tokens come. */
static inline const uint32_t *run_keys(const struct pack *k, uint32_t run, uint32_t plane)
{
	if (gated(k->job, run / k->heads) == UINT32_MAX)
		return NULL;
	return k->keys + (size_t)run * k->tokens + run_begin(k, run, plane);
}

/* Plane 0 is always there: it says which block this is. */
static inline bool present(const struct pack_job *j, uint32_t plane)
{
	return plane == 0 || j->plane[plane].pairs;
}

/* Everything is sorted, sized and allocated: every byte of the planes, the headers last. */
void pack_write(struct pack *k);

#endif
