/* SPDX-License-Identifier: Apache-2.0 */
/*
 * key = SHA-256(parent | fingerprint | token ids). The chain makes a key stand for its whole prefix,
 * the fingerprint for the model and everything else the bytes depend on. There is no seed or salt:
 * two processes that agree on the inputs agree on the key, and nobody can leave one out.
 */
#include "proto/key.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * The calls that OpenSSL 3 deprecates: a block is a kilobyte of tokens and half a microsecond of work, of which
 * EVP would add a tenth. They are the same code underneath and cannot fail.
 */
#define OPENSSL_SUPPRESS_DEPRECATED
#include <openssl/sha.h>

static_assert(
	__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "token ids are hashed as they lie in memory");

struct key_hasher {
	SHA256_CTX sha;
};

int key_hasher_new(struct key_hasher **ret)
{
	struct key_hasher *h = calloc(1, sizeof(*h));

	if (!h)
		return -ENOMEM;
	*ret = h;
	return 0;
}

struct key_hasher *key_hasher_free(struct key_hasher *h)
{
	free(h);
	return NULL;
}

static void start(struct key_hasher *h)
{
	SHA256_Init(&h->sha);
}

static void add(struct key_hasher *h, const void *data, size_t n)
{
	SHA256_Update(&h->sha, data, n);
}

static void end(struct key_hasher *h, uint8_t ret[32])
{
	SHA256_Final(ret, &h->sha);
}

void key_block(struct key_hasher *h, const struct kvg_key *parent, const uint8_t fingerprint[32],
	const uint32_t *tokens, uint32_t n_tokens, struct kvg_key *ret)
{
	uint8_t prefix[64] = {0};

	if (parent)
		memcpy(prefix, parent->b, 32);
	memcpy(prefix + 32, fingerprint, 32);
	start(h);
	add(h, prefix, sizeof(prefix));
	add(h, tokens, (size_t)n_tokens * sizeof(*tokens));
	end(h, ret->b);
}

void key_chain(struct key_hasher *h, const struct kvg_key *parent, const uint8_t fingerprint[32],
	const uint32_t *tokens, uint32_t block_tokens, uint32_t n_blocks, struct kvg_key *ret)
{
	for (uint32_t i = 0; i < n_blocks; i++) {
		key_block(h, parent, fingerprint, tokens + (size_t)i * block_tokens, block_tokens,
			&ret[i]);
		parent = &ret[i];
	}
}

/* One field: tag (u32), length (u32), bytes. Numbers are u64, so that widths never change a fingerprint. */
static void field(struct key_hasher *h, uint32_t tag, const void *data, uint32_t n)
{
	uint32_t head[2] = {tag, n};

	add(h, head, sizeof(head));
	add(h, data, n);
}

static void number(struct key_hasher *h, uint32_t tag, uint64_t v)
{
	field(h, tag, &v, sizeof(v));
}

void layout_fingerprint(struct key_hasher *h, const struct layout_identity *id, uint8_t ret[32])
{
	static const char domain[16] = "kvgate.v1 layout";

	assert(id->n_edges < KVG_PLANES_MAX);
	start(h);
	add(h, domain, sizeof(domain));
	field(h, 1, id->model, (uint32_t)strlen(id->model));
	field(h, 2, id->revision, (uint32_t)strlen(id->revision));
	number(h, 3, id->shape.layers);
	number(h, 4, id->shape.heads);
	number(h, 5, id->shape.k_dim);
	number(h, 6, id->shape.v_dim);
	number(h, 7, id->shape.dtype);
	number(h, 8, id->shape.tokens);
	number(h, 9, id->shape.opaque_bytes);
	number(h, 10, id->tp_rank);
	number(h, 11, id->tp_size);
	field(h, 12, id->rope, (uint32_t)strlen(id->rope));
	field(h, 13, id->eviction, (uint32_t)strlen(id->eviction));
	field(h, 14, id->key_namespace, (uint32_t)strlen(id->key_namespace));
	field(h, 15, id->gate_digest, sizeof(id->gate_digest));
	field(h, 16, id->edges, (uint32_t)(id->n_edges * sizeof(id->edges[0])));
	end(h, ret);
}

void key_to_hex(const struct kvg_key *k, char ret[65])
{
	static const char digits[] = "0123456789abcdef";

	for (int i = 0; i < 32; i++) {
		ret[2 * i] = digits[k->b[i] >> 4];
		ret[2 * i + 1] = digits[k->b[i] & 15];
	}
	ret[64] = '\0';
}

static int nibble(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

int key_from_hex(const char *hex, struct kvg_key *ret)
{
	struct kvg_key k;

	if (strlen(hex) != 64)
		return -EINVAL;
	for (int i = 0; i < 32; i++) {
		int hi = nibble(hex[2 * i]), lo = nibble(hex[2 * i + 1]);

		if (hi < 0 || lo < 0)
			return -EINVAL;
		k.b[i] = (uint8_t)(hi << 4 | lo);
	}
	*ret = k;
	return 0;
}
