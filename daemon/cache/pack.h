/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack: one staged block becomes planes - score, sort, size, copy with CRC32C in one pass.
 * Thread: a pack worker, each with its own struct packer. Locks: the pool's, to allocate. Blocks: no.
 * Errors: enum kvg_code (BAD_SCORES, NO_SPACE, NO_MEMORY ...); nothing stays allocated on failure.
 *
 * What lies in staging may be changed by its client at any time: scores and token ids are copied once and only the
 * copy is looked at; K and V rows are opaque bytes.
 */
#ifndef KVGATE_DAEMON_CACHE_PACK_H
#define KVGATE_DAEMON_CACHE_PACK_H

#include "daemon/mem/pool.h"
#include "gates/gate.h"
#include "proto/key.h"

struct pack_job {
	/* in */
	const struct kv_shape *shape;
	const uint8_t *fingerprint; /* 32 */
	const struct kvg_key *key;
	const uint8_t *stage; /* start of the stage, in staging */
	struct stage_geometry geometry;
	enum stage_input input;
	uint32_t tokens;
	uint32_t protect_first, protect_last; /* tokens that score +inf in every gated run */
	bool token_ids;                       /* the ids are stored in plane 0 */
	const uint32_t *ids; /* [tokens] the copy whose hash was checked: stored instead of what
					 * lies in staging now; NULL: taken from staging */
	const float *edges;  /* descending; compared with scores rounded to f16 */
	uint32_t n_edges;
	uint32_t
		floor_pairs; /* best pairs of every (layer, head) that go into plane 0 whatever their score */
	const uint32_t *
		layer_gate; /* [layers] index of the gated layer, UINT32_MAX = not gated: all protected */
	const struct gate *gate; /* with STAGE_INPUT_HIDDEN */
	uint32_t hidden_dtype;
	enum gate_arithmetic arithmetic;
	struct pool_tenant *pool;
	unsigned page_shift;
	uint64_t reserved; /* bytes reserved in the pool for this job: pack_worst_case() */
	/* out */
	uint32_t n_planes; /* n_edges + 1; planes without pairs have pages 0 */
	uint64_t used;     /* bytes of extents allocated from the reservation */
	struct {
		struct extent extent;
		uint64_t bytes;
		uint32_t pairs;
		float mass; /* sum of min(score, 1) (protected = 1) over the block's sum; planes sum to 1 */
	} plane[KVG_PLANES_MAX];
	char error[160];
};

struct packer; /* one worker's scratch, grows as needed */
int packer_new(struct packer **ret);
struct packer *packer_free(struct packer *p);
struct pack_kernels; /* daemon/cache/pack_kernels.h */
void packer_set_kernels(struct packer *p,
	const struct pack_kernels *kernels); /* other than the processor's best: for tests */

/* Upper bound of page bytes that any scores can need. */
uint64_t pack_worst_case(const struct kv_shape *s, uint32_t n_edges, unsigned page_shift);
int pack_run(struct packer *p, struct pack_job *j); /* enum kvg_code */

/* Page size for a layout: half a page per plane is lost, so small blocks take small pages. Shift. */
unsigned pack_page_shift(const struct kv_shape *s, uint32_t n_planes);

/* Token ids of a packed block equal to these? For hits and collisions. */
bool pack_tokens_equal(const void *plane0, uint64_t avail, const uint32_t *tokens, uint32_t n);

#endif
