/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plane: geometry and checks of one plane payload; finding the runs in it.
 * Thread: any, pure. Locks: none. Blocks: never. Errors: -EBADMSG for bytes that are not this plane.
 */
#ifndef KVGATE_PROTO_PLANE_H
#define KVGATE_PROTO_PLANE_H

#include "proto/shm.h"

/* Offsets of the sections from the start of the payload, each a multiple of KVG_PLANE_ALIGN. */
struct plane_geometry {
	uint64_t cu_off;    /* u32 [runs + 1] */
	uint64_t ids_off;   /* u32 [n_token_ids] */
	uint64_t index_off; /* u16 [pairs] token index within the block */
	uint64_t score_off; /* u16 [pairs] f16 bits */
	uint64_t k_off;     /* [pairs] rows; opaque: the bytes */
	uint64_t v_off;
	uint64_t bytes;
};

/* opaque_bytes > 0: runs and pairs are 0 and the bytes lie at k_off. Cannot fail: inputs are checked shapes. */
void plane_geometry(uint32_t runs, uint32_t pairs, uint32_t n_token_ids, uint32_t k_row,
	uint32_t v_row, uint64_t opaque_bytes, struct plane_geometry *ret);

/*
 * Where everything is in a payload, after the header was copied and checked against `avail` bytes.
 * Pointers into the payload; `cu` ascends from 0 to pairs only if plane_check_runs() said so.
 */
struct plane_view {
	uint32_t plane, runs, tokens, pairs, n_token_ids, k_row, v_row;
	bool opaque;
	uint64_t opaque_bytes; /* at k, when opaque */
	uint64_t bytes;
	uint32_t body_crc;
	float mass; /* whoever can compute a CRC can write any number here */
	const uint32_t *cu;
	const uint32_t *ids;
	const uint16_t *index;
	const uint16_t *score;
	const uint8_t *k;
	const uint8_t *v;
};

/* Header magic, version, header_crc, sizes. Not the body CRC. -EBADMSG. */
int plane_open(const void *payload, uint64_t avail, struct plane_view *ret);
/* Body CRC32C. Reads the whole payload. -EBADMSG. */
int plane_verify(const void *payload, uint64_t avail);
/* cu ascends from 0 to pairs, each run at most `tokens` long, indices < tokens. -EBADMSG. */
int plane_check_runs(const struct plane_view *v);

/* CRC32C (Castagnoli), as iSCSI has it: init ~0, final xor ~0. Chains: pass the previous result. */
uint32_t crc32c(uint32_t crc, const void *data, size_t n);

/* Computes header_crc; the last step when a plane is written. */
void plane_header_seal(struct kvg_plane_header *h);

/* plane_ref.check and entry.crc. */
uint16_t plane_ref_check(const struct kvg_shm_plane_ref *r, uint32_t plane, uint32_t gen);
uint32_t replicas_crc(const struct kvg_shm_replicas *h);
uint32_t entry_crc(const struct kvg_shm_entry *e, uint32_t gen);
uint32_t index_crc(const struct kvg_shm_index *h);

#endif
