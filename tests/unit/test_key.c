/* SPDX-License-Identifier: Apache-2.0 */
/* Keys against SHA-256 worked out elsewhere (golden_proto.hex), and that nothing can be left out of one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <cmocka.h>
#include <errno.h>

#include "proto/key.h"
#include "tests/unit/test_proto_golden.h"

static struct key_hasher *hasher;

static int setup(void **state)
{
	(void)state;
	return key_hasher_new(&hasher);
}

static int teardown(void **state)
{
	(void)state;
	hasher = key_hasher_free(hasher);
	return hasher != NULL;
}

static void example_fingerprint(uint8_t ret[32])
{
	for (int i = 0; i < 32; i++)
		ret[i] = (uint8_t)(100 + i);
}

/* Blocks of 1, 16, 256 and 0 tokens, each the parent of the next. */
static void test_known_keys(void **state)
{
	static const uint32_t lengths[] = {1, 16, 256, 0};
	struct kvg_key parent = {{0}};
	uint8_t fingerprint[32];

	(void)state;
	example_fingerprint(fingerprint);
	for (uint32_t i = 0; i < 4; i++) {
		uint32_t tokens[256];
		char name[32];

		for (uint32_t t = 0; t < lengths[i]; t++)
			tokens[t] = i * 1000 + t * 7919;
		key_block(hasher, i ? &parent : NULL, fingerprint, tokens, lengths[i], &parent);
		snprintf(name, sizeof(name), "key.chain%u", i);
		expect_golden(name, parent.b, sizeof(parent.b));
	}
}

static void test_chain_is_block_by_block(void **state)
{
	uint32_t tokens[5 * 256];
	struct kvg_key chain[5], key, root = {{0}};
	uint8_t fingerprint[32];

	(void)state;
	example_fingerprint(fingerprint);
	for (uint32_t i = 0; i < 5 * 256; i++)
		tokens[i] = i * 2654435761u;
	for (uint32_t length = 1; length <= 256; length += 51) {
		key_chain(hasher, NULL, fingerprint, tokens, length, 5, chain);
		key = root;
		for (uint32_t i = 0; i < 5; i++) {
			key_block(hasher, &key, fingerprint, tokens + i * length, length, &key);
			assert_memory_equal(&chain[i], &key, sizeof(key));
		}
		/* the second half from the first half's last key */
		key_chain(
			hasher, &chain[1], fingerprint, tokens + 2 * length, length, 3, &chain[2]);
		assert_memory_equal(&chain[4], &key, sizeof(key));
	}
	key_chain(hasher, NULL, fingerprint, tokens, 256, 0,
		chain); /* no block: nothing is written */
}

/* Any bit of parent, fingerprint or tokens, and the number of tokens, is in the key. */
static void test_key_depends_on_everything(void **state)
{
	struct kvg_key parent = {{1}}, key, other;
	uint32_t tokens[3] = {5, 6, 0};
	uint8_t fingerprint[32];

	(void)state;
	example_fingerprint(fingerprint);
	key_block(hasher, &parent, fingerprint, tokens, 2, &key);
	for (int bit = 0; bit < 256; bit++) {
		parent.b[bit / 8] ^= (uint8_t)(1 << bit % 8);
		key_block(hasher, &parent, fingerprint, tokens, 2, &other);
		assert_memory_not_equal(&key, &other, sizeof(key));
		parent.b[bit / 8] ^= (uint8_t)(1 << bit % 8);
		fingerprint[bit / 8] ^= (uint8_t)(1 << bit % 8);
		key_block(hasher, &parent, fingerprint, tokens, 2, &other);
		assert_memory_not_equal(&key, &other, sizeof(key));
		fingerprint[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	for (int bit = 0; bit < 64; bit++) {
		tokens[bit / 32] ^= 1u << bit % 32;
		key_block(hasher, &parent, fingerprint, tokens, 2, &other);
		assert_memory_not_equal(&key, &other, sizeof(key));
		tokens[bit / 32] ^= 1u << bit % 32;
	}
	key_block(hasher, &parent, fingerprint, tokens, 3, &other);
	assert_memory_not_equal(&key, &other, sizeof(key));
	key_block(hasher, &parent, fingerprint, tokens, 2, &other);
	assert_memory_equal(&key, &other, sizeof(key));
}

/* ---- fingerprint ---- */

static struct layout_identity example_identity(void)
{
	struct layout_identity id = {
		.shape = {.layers = 36,
			.heads = 8,
			.tokens = 256,
			.k_dim = 128,
			.v_dim = 64,
			.dtype = KVG_DTYPE_BF16},
		.model = "Qwen/Qwen3-8B",
		.revision = "r1",
		.rope = "theta=1e6",
		.eviction = "",
		.key_namespace = "engine",
		.tp_rank = 1,
		.tp_size = 2,
		.n_edges = 2,
		.edges = {.5f, .25f},
	};

	for (int i = 0; i < 32; i++)
		id.gate_digest[i] = (uint8_t)i;
	return id;
}

static void test_known_fingerprint(void **state)
{
	struct layout_identity id = example_identity();
	uint8_t fingerprint[32];

	(void)state;
	layout_fingerprint(hasher, &id, fingerprint);
	expect_golden("key.fingerprint", fingerprint, 32);
}

static unsigned n_variants;

static void expect_other(struct layout_identity id)
{
	static uint8_t seen[64][32];
	uint8_t *fingerprint = seen[n_variants];

	assert_true(n_variants < 64);
	layout_fingerprint(hasher, &id, fingerprint);
	for (unsigned i = 0; i < n_variants; i++)
		if (!memcmp(seen[i], fingerprint, 32))
			fail_msg("identities %u and %u have one fingerprint", i, n_variants);
	n_variants++;
}

#define VARIANT(field, value)                                                                      \
	do {                                                                                       \
		struct layout_identity id_ = example_identity();                                   \
		id_.field = value;                                                                 \
		expect_other(id_);                                                                 \
	} while (0)

static void test_fingerprint_depends_on_every_field(void **state)
{
	struct layout_identity id = example_identity();

	(void)state;
	n_variants = 0;
	expect_other(id);
	VARIANT(shape.layers, 37);
	VARIANT(shape.heads, 9);
	VARIANT(shape.tokens, 255);
	VARIANT(shape.k_dim, 64);
	VARIANT(shape.v_dim, 128);
	VARIANT(shape.dtype, KVG_DTYPE_F16);
	VARIANT(shape.opaque_bytes, 1);
	VARIANT(shape.opaque_bytes, 1ull << 32);
	VARIANT(model, "Qwen/Qwen3-8b");
	VARIANT(model, "");
	VARIANT(revision, "r2");
	VARIANT(rope, "theta=1e7");
	VARIANT(eviction, "r=.3");
	VARIANT(key_namespace, "");
	VARIANT(tp_rank, 0);
	VARIANT(tp_size, 4);
	VARIANT(gate_digest[0], 1);
	VARIANT(gate_digest[31], 0);
	VARIANT(n_edges, 1);
	VARIANT(n_edges, 0);
	VARIANT(edges[0], .75f);
	VARIANT(edges[1], .125f);
	/* what moves from one string to the next is not the same */
	id.model = "Qwen/Qwen3-8Br";
	id.revision = "1";
	expect_other(id);
	id = example_identity();
	id.shape.k_dim = 64;
	id.shape.v_dim = 128;
	expect_other(id);
	id = example_identity();
	id.rope = "";
	id.eviction = "theta=1e6";
	expect_other(id);
}

/* Edges beyond n_edges are nobody's business. */
static void test_fingerprint_ignores_unused_edges(void **state)
{
	struct layout_identity id = example_identity();
	uint8_t a[32], b[32];

	(void)state;
	layout_fingerprint(hasher, &id, a);
	id.edges[2] = 7;
	layout_fingerprint(hasher, &id, b);
	assert_memory_equal(a, b, 32);
}

static void test_hex(void **state)
{
	const char *text = "00ff0123456789abcdef00000000000000000000000000000000000000000a80";
	struct kvg_key key, untouched = {{9}};
	char hex[65];

	(void)state;
	assert_int_equal(key_from_hex(text, &key), 0);
	assert_int_equal(key.b[1], 0xff);
	assert_int_equal(key.b[31], 0x80);
	key_to_hex(&key, hex);
	assert_string_equal(hex, text);
	assert_int_equal(
		key_from_hex(
			"00FF0123456789ABCDEF00000000000000000000000000000000000000000A80", &key),
		0);
	key_to_hex(&key, hex);
	assert_string_equal(hex, text);
	assert_int_equal(key_from_hex("", &untouched), -EINVAL);
	assert_int_equal(key_from_hex(text + 1, &untouched), -EINVAL);
	assert_int_equal(
		key_from_hex("00ff0123456789abcdef0000000000000000000000000000000000000000 a80",
			&untouched),
		-EINVAL);
	assert_int_equal(untouched.b[0], 9);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_known_keys),
		cmocka_unit_test(test_chain_is_block_by_block),
		cmocka_unit_test(test_key_depends_on_everything),
		cmocka_unit_test(test_known_fingerprint),
		cmocka_unit_test(test_fingerprint_depends_on_every_field),
		cmocka_unit_test(test_fingerprint_ignores_unused_edges),
		cmocka_unit_test(test_hex),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
