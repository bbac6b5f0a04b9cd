/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key: identity of blocks - layout fingerprint and the SHA-256 chain over token ids.
 * Thread: one key_hasher per thread. Locks: none. Blocks: never. Errors: -ENOMEM, -EINVAL.
 */
#ifndef KVGATE_PROTO_KEY_H
#define KVGATE_PROTO_KEY_H

#include "proto/shm.h"

struct key_hasher; /* state of one thread, reused between calls */
int key_hasher_new(struct key_hasher **ret);
struct key_hasher *key_hasher_free(struct key_hasher *h);

/* key = SHA-256(parent (32, zeros at a root) | fingerprint (32) | token ids (u32 little endian each)). */
void key_block(struct key_hasher *h, const struct kvg_key *parent, const uint8_t fingerprint[32],
	const uint32_t *tokens, uint32_t n_tokens, struct kvg_key *ret);
/* The keys of n_blocks full blocks of `block_tokens` tokens each, chained from parent (NULL = root). */
void key_chain(struct key_hasher *h, const struct kvg_key *parent, const uint8_t fingerprint[32],
	const uint32_t *tokens, uint32_t block_tokens, uint32_t n_blocks, struct kvg_key *ret);

/*
 * Everything that decides whether two workers' KV bytes mean the same. Strings are never NULL ("" = none).
 */
struct layout_identity {
	struct kv_shape shape;
	const char *model; /* model id, never empty */
	const char *revision;
	const char *rope;          /* rope settings as the engine writes them */
	const char *eviction;      /* settings under which the KV was computed, "" = none */
	const char *key_namespace; /* not "": foreign keys, from this namespace */
	uint32_t tp_rank, tp_size;
	uint8_t gate_digest[32]; /* zeros: no gate */
	uint32_t n_edges;        /* band edges, descending scores; planes = n_edges + 1 */
	float edges[KVG_PLANES_MAX - 1];
};

/* SHA-256 over a tagged, length-prefixed encoding of every field (PROTOCOL.md, "fingerprint"). */
void layout_fingerprint(struct key_hasher *h, const struct layout_identity *id, uint8_t ret[32]);

void key_to_hex(const struct kvg_key *k, char ret[65]);
int key_from_hex(const char *hex, struct kvg_key *ret);

#endif
