/* SPDX-License-Identifier: Apache-2.0 */
/* Many layouts at once: shapes, dtypes, opaque blocks, foreign keys, short blocks, no gate. */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define GATE KVG_SOURCE_DIR "/client/demo/lab/gate_calibrated.safetensors"

#define BLOCKS 5

static const struct test_model models[] = {
	{"bf16", 4, 2, 16, 16, KVG_DTYPE_BF16, 32, 4},
	{"f16", 3, 5, 24, 24, KVG_DTYPE_F16, 48, 7},
	{"f32", 2, 1, 64, 64, KVG_DTYPE_F32, 16, 2},
	{"e4m3", 6, 8, 128, 128, KVG_DTYPE_FP8_E4M3, 64, 5},
	{"e5m2", 1, 3, 33, 33, KVG_DTYPE_FP8_E5M2, 7, 3},
	{"uneven", 2, 2, 96, 32, KVG_DTYPE_BF16, 40, 6},
	{"ungated", 4, 4, 32, 32, KVG_DTYPE_BF16, 32, 1},
	{"long", 2, 2, 8, 8, KVG_DTYPE_BF16, 4096, 7},
};
#define N_MODELS (sizeof(models) / sizeof(models[0]))

static void test_every_shape(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l[N_MODELS];
	struct kvg_key keys[N_MODELS][BLOCKS];

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	for (size_t i = 0; i < N_MODELS; i++)
		l[i] = model_register(c, &models[i]);
	for (size_t i = 0; i < N_MODELS; i++)
		assert_int_equal(
			chain_put(c, l[i], &models[i], 50 * i, BLOCKS, keys[i]), KVG_CODE_OK);
	for (size_t i = 0; i < N_MODELS; i++) {
		const struct test_model *m = &models[i];
		struct kvg_pin pins[BLOCKS];

		assert_int_equal(kvg_prefix_pin(l[i], keys[i], BLOCKS, 1.f, pins), BLOCKS);
		for (int b = 0; b < BLOCKS; b++) {
			assert_int_equal(content_compare(m, 50 * i + (uint64_t)b, l[i], &pins[b]),
				m->layers * m->heads * m->tokens);
			assert_int_equal(kvg_verify(l[i], &pins[b]), 0);
			assert_int_equal(pins[b].n_planes, m->n_planes);
		}
		kvg_unpin(c, pins, BLOCKS);
	}
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* What was staged dense comes back dense, and flat with the right positions. */
static void test_gather(void **state)
{
	struct daemon_process d;
	const struct test_model *m = &model_small;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key keys[2];
	struct kvg_pin pins[2];
	uint32_t cu[4 * 2 + 1], rows, positions[2 * 32 * 8];
	size_t bytes = 4u * 2 * 2 * 32 * 16 * 2, row = 32;
	uint8_t *dense = malloc(bytes), *k, *v, want[32], present[4 * 2 * 32];

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	l = model_register(c, m);
	assert_int_equal(chain_put(c, l, m, 9, 2, keys), KVG_CODE_OK);
	assert_int_equal(kvg_prefix_pin(l, keys, 2, 1.f, pins), 2);
	assert_int_equal(kvg_gather_dense(l, &pins[1], dense, bytes - 1, present), -ENOSPC);
	assert_int_equal(kvg_gather_dense(l, &pins[1], dense, bytes, present), 0);
	for (uint32_t layer = 0; layer < 4; layer++)
		for (int kv = 0; kv < 2; kv++)
			for (uint32_t h = 0; h < 2; h++)
				for (uint32_t t = 0; t < 32; t++) {
					content_row(10, layer, kv, h, t, want, row);
					assert_memory_equal(want,
						dense +
							((((layer * 2 + (unsigned)kv) * 2 + h) *
								 32) +
								t) *
								row,
						row);
				}
	for (size_t i = 0; i < sizeof(present); i++)
		assert_int_equal(present[i], 1);
	assert_int_equal(kvg_gather_flat(l, pins, 2, NULL, NULL, NULL, cu, 0), 0);
	rows = cu[8];
	assert_int_equal(rows, 2 * 8 * 32);
	k = malloc(rows * row);
	v = malloc(rows * row);
	assert_int_equal(kvg_gather_flat(l, pins, 2, k, v, positions, cu, rows - 1), -ENOSPC);
	assert_int_equal(kvg_gather_flat(l, pins, 2, k, v, positions, cu, rows), 0);
	for (uint32_t run = 0; run < 8; run++)
		for (uint32_t i = cu[run]; i < cu[run + 1]; i++) {
			uint64_t seed = 9 + positions[i] / 32;

			content_row(seed, run / 2, 0, run % 2, positions[i] % 32, want, row);
			assert_memory_equal(want, k + i * row, row);
			content_row(seed, run / 2, 1, run % 2, positions[i] % 32, want, row);
			assert_memory_equal(want, v + i * row, row);
		}
	kvg_unpin(c, pins, 2);
	free(dense);
	free(k);
	free(v);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* An engine's own bytes under an engine's own hashes. */
static void test_opaque_and_foreign(void **state)
{
	struct daemon_process d;
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_stage s;
	struct kvg_commit item = {.stage = &s};
	struct kvg_commit_result result;
	struct kvg_pin pin;
	struct kvg_plane planes[KVG_PLANES_MAX];

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	o.model = "engine";
	o.block_tokens = 16;
	o.key_namespace = "some engine 1.0";
	o.opaque_bytes = 1234567;
	assert_int_equal(kvg_layout(c, &o, &l), 0);
	memset(item.key.b, 0xab, sizeof(item.key.b));
	assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), 1);
	assert_int_equal(s.kv_bytes, 1234567);
	for (size_t i = 0; i < s.kv_bytes; i++)
		((uint8_t *)s.kv)[i] = (uint8_t)(i * 7);
	assert_int_equal(kvg_commit(c, &item, 1, &result), 0);
	assert_int_equal(result.code, KVG_CODE_OK);
	assert_int_equal(kvg_lookup_pin(l, &item.key, 1.f, &pin), 0);
	assert_int_equal(kvg_planes(l, &pin, planes), 1);
	assert_int_equal(planes[0].opaque_bytes, 1234567);
	for (size_t i = 0; i < planes[0].opaque_bytes; i++)
		assert_int_equal(((const uint8_t *)planes[0].k)[i], (uint8_t)(i * 7));
	assert_int_equal(kvg_verify(l, &pin), 0);
	kvg_unpin(c, &pin, 1);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* A prompt's last block may be short; tokens are compared on a hit. */
static void test_short_block_and_tokens(void **state)
{
	struct daemon_process d;
	const struct test_model *m = &model_small;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_stage s;
	struct kvg_commit item = {.stage = &s};
	struct kvg_commit_result result;
	struct kvg_key keys[3];
	struct kvg_pin pins[3];
	uint32_t tokens[3 * 32];

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	l = model_register(c, m);
	assert_int_equal(chain_put(c, l, m, 20, 2, keys), KVG_CODE_OK);
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &s), 1);
	assert_int_equal(kvg_stage_tokens(l, KVG_INPUT_SCORES, &s, 11), 0);
	content_fill(m, 22, &s);
	kvg_key_block(l, &keys[1], s.tokens, 11, &item.key);
	item.parent = &keys[1];
	assert_int_equal(kvg_commit(c, &item, 1, &result), 0);
	assert_int_equal(result.code, KVG_CODE_OK);
	assert_int_equal(kvg_lookup_pin(l, &item.key, 1.f, &pins[0]), 0);
	assert_int_equal(pins[0].tokens, 11);
	assert_int_equal(content_compare(m, 22, l, &pins[0]), 8 * 11);
	kvg_unpin(c, pins, 1);
	for (uint32_t i = 0; i < 3; i++)
		content_tokens(20 + i, 32, tokens + 32 * i);
	assert_int_equal(kvg_prefix_pin_tokens(l, tokens, 2 * 32, 1.f, pins, keys), 2);
	kvg_unpin(c, pins, 2);
	tokens[40] ^= 1;
	assert_int_equal(kvg_prefix_pin_tokens(l, tokens, 2 * 32, 1.f, pins, keys), 1);
	kvg_unpin(c, pins, 1);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static int register_with_gate(struct kvg_client *c, const char *model)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l;

	o.model = model;
	o.layers = 8;
	o.heads = 4;
	o.k_dim = o.v_dim = 32;
	o.dtype = KVG_DTYPE_BF16;
	o.gate = "g";
	return kvg_layout(c, &o, &l);
}

/* A gate of the right shape that was made for another model scores nonsense; only an administrator may say otherwise. */
static void test_gate_of_another_model(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;

	(void)state;
	daemon_start(&d, "[gate g]\nfile = " GATE "\n[model twin of lab]\ngate = g\n");
	c = client_open(&d);
	assert_int_equal(register_with_gate(c, "lab"), 0);
	assert_int_equal(register_with_gate(c, "another"), -EINVAL);
	assert_int_equal(kvg_last_code(c), KVG_CODE_BAD_GATE);
	assert_non_null(strstr(kvg_last_error(c), "made for model \"lab\""));
	assert_int_equal(register_with_gate(c, "twin of lab"), 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_gate_of_another_model),
		cmocka_unit_test(test_every_shape),
		cmocka_unit_test(test_gather),
		cmocka_unit_test(test_opaque_and_foreign),
		cmocka_unit_test(test_short_block_and_tokens),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
