/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The model against golden logits of transformers (golden_worker.txt, written by
 * tests/ref/worker_golden.py), the same numbers whatever way the tokens are grouped, and model
 * folders that must be refused.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/worker/forward.h"
#include "client/worker/prompt.h"
#include "client/worker/sample.h"
#include "gates/safetensors.h"
#include "proto/shape.h"

#define LAB       KVG_SOURCE_DIR "/client/demo/lab"
#define GOLDEN    KVG_SOURCE_DIR "/tests/unit/golden_worker.txt"
#define TOLERANCE 2e-4f

enum {
	TOKENS_MAX = 512,
	ROWS = 300
};

static struct model *lab;
static struct forward *forward;
static uint32_t ids[TOKENS_MAX], n_ids;

static int open_lab(void **unused)
{
	char why[256], line[4096], *at = line, *end;
	FILE *f = fopen(GOLDEN, "r");

	(void)unused;
	assert_non_null(f);
	assert_non_null(fgets(line, sizeof(line), f));
	assert_non_null(fgets(line, sizeof(line), f));
	fclose(f);
	for (;; at = end) {
		const uint32_t id = (uint32_t)strtoul(at, &end, 10);

		if (end == at)
			break;
		ids[n_ids++] = id;
	}
	assert_int_equal(model_load(LAB, &lab, why, sizeof(why)), 0);
	return forward_new(lab, ROWS, attention_isa_best(), &forward);
}

static int close_lab(void **unused)
{
	(void)unused;
	forward_free(forward);
	model_free(lab);
	return 0;
}

/* Logits of every id, computed `step` tokens at a time. The caller frees them. */
static float *all_logits(struct forward *f, uint32_t step)
{
	const uint32_t vocab = lab->config.vocab;
	float *all = malloc((size_t)n_ids * vocab * sizeof(*all));
	struct sequence *s;

	assert_non_null(all);
	assert_int_equal(sequence_new(&lab->config, NULL, n_ids, &s), 0);
	for (uint32_t at = 0; at < n_ids; at += step) {
		const uint32_t n = n_ids - at < step ? n_ids - at : step;
		const struct span span = {.sequence = s, .tokens = ids + at, .n = n, .n_logits = n};
		const float *logits;

		assert_int_equal(forward_run(f, &span, 1, &logits), 0);
		memcpy(all + (size_t)at * vocab, logits, (size_t)n * vocab * sizeof(*all));
	}
	assert_int_equal(s->position, n_ids);
	assert_int_equal(sequence_rows(s), (uint64_t)n_ids * model_runs(&lab->config));
	sequence_free(s);
	return all;
}

static float max_difference(const float *a, const float *b, size_t n)
{
	float max = 0.0f;

	for (size_t i = 0; i < n; i++)
		max = fmaxf(max, fabsf(a[i] - b[i]));
	return max;
}

static void test_golden(void **unused)
{
	float *all = all_logits(forward, ROWS);
	char line[4096];
	uint32_t position, token, n = 0;
	float logit;
	FILE *f = fopen(GOLDEN, "r");

	(void)unused;
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		char rest;

		if (sscanf(line, "%u %u %f %c", &position, &token, &logit, &rest) != 3)
			continue;
		if (!(fabsf(all[(size_t)position * lab->config.vocab + token] - logit) <=
			    TOLERANCE))
			fail_msg("position %u token %u: %f, not %f", position, token,
				(double)all[(size_t)position * lab->config.vocab + token],
				(double)logit);
		n++;
	}
	assert_int_equal(n, 8 * 13);
	fclose(f);
	free(all);
}

static void test_any_chunks(void **unused)
{
	static const uint32_t steps[] = {1, 7, 64, 100};
	const size_t n = (size_t)n_ids * lab->config.vocab;
	float *whole = all_logits(forward, ROWS);

	(void)unused;
	for (unsigned i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
		float *parts = all_logits(forward, steps[i]);

		assert_true(max_difference(whole, parts, n) <= TOLERANCE);
		free(parts);
	}
	free(whole);
}

static void test_instruction_sets(void **unused)
{
	float *best = all_logits(forward, ROWS);

	(void)unused;
	for (int isa = ATTENTION_SCALAR; isa <= ATTENTION_AVX512; isa++) {
		struct forward *f;
		float *other;

		if (!attention_isa_supported((enum attention_isa)isa))
			continue;
		assert_int_equal(forward_new(lab, ROWS, (enum attention_isa)isa, &f), 0);
		other = all_logits(f, ROWS);
		assert_true(max_difference(best, other, (size_t)n_ids * lab->config.vocab) <=
			TOLERANCE);
		free(other);
		forward_free(f);
	}
	free(best);
}

/* Several sequences in one call, of different lengths: each as if it were alone. */
static void test_batch(void **unused)
{
	const uint32_t vocab = lab->config.vocab, length[3] = {5, n_ids / 2, 90};
	float *alone = all_logits(forward, ROWS);
	struct sequence *s[3];
	struct span spans[3];
	const float *logits;

	(void)unused;
	for (int i = 0; i < 3; i++) {
		assert_int_equal(sequence_new(&lab->config, NULL, n_ids, &s[i]), 0);
		spans[i] = (struct span){.sequence = s[i],
			.tokens = ids,
			.n = length[i],
			.n_logits = i == 1 ? 2 : 1};
	}
	assert_int_equal(forward_run(forward, spans, 3, &logits), 0);
	assert_true(max_difference(logits, alone + 4 * vocab, vocab) <= TOLERANCE);
	assert_true(max_difference(logits + vocab, alone + (length[1] - 2) * vocab, 2 * vocab) <=
		TOLERANCE);
	assert_true(max_difference(logits + 3 * vocab, alone + 89 * vocab, vocab) <= TOLERANCE);
	/* And one more token of each, as decoding does. */
	for (int i = 0; i < 3; i++)
		spans[i] = (struct span){
			.sequence = s[i], .tokens = ids + length[i], .n = 1, .n_logits = 1};
	assert_int_equal(forward_run(forward, spans, 3, &logits), 0);
	for (int i = 0; i < 3; i++) {
		assert_true(max_difference(logits + i * vocab, alone + length[i] * vocab, vocab) <=
			TOLERANCE);
		sequence_free(s[i]);
	}
	free(alone);
}

/*
 * A prefix that lies elsewhere, cut into runs of shuffled rows in f32 and bf16, stands for the
 * same tokens computed: exactly but for rounding in f32, nearly in bf16.
 */
static void make_context(
	const struct sequence *from, uint32_t n, uint32_t dtype, struct context *c, uint8_t *memory)
{
	const uint32_t runs = model_runs(from->config), dim = from->config->head_dim;
	const size_t size = dtype_bytes(dtype);
	uint32_t at = 0;

	*c = (struct context){.first = malloc((runs + 1) * sizeof(*c->first)),
		.run = malloc((size_t)runs * 3 * sizeof(*c->run)),
		.dtype = dtype,
		.tokens = n,
		.pairs = (uint64_t)runs * n};
	assert_true(c->first && c->run);
	for (uint32_t run = 0; run < runs; run++) {
		uint8_t *k = memory + (size_t)run * 2 * n * dim * size, *v = k + n * dim * size;

		for (uint32_t row = 0; row < n; row++)
			for (uint32_t i = 0; i < dim; i++) {
				const size_t to = ((size_t)(row * 7 % n) * dim + i) * size;
				const float fk = sequence_k(from, run, row)[i];
				const float fv = sequence_v(from, run, row)[i];
				const uint16_t hk = bf16_from_f32(fk), hv = bf16_from_f32(fv);

				memcpy(k + to, size == 4 ? (const void *)&fk : &hk, size);
				memcpy(v + to, size == 4 ? (const void *)&fv : &hv, size);
			}
		c->first[run] = at;
		for (uint32_t part = 0; part < 3; part++) {
			const uint32_t begin = n * part / 3, end = n * (part + 1) / 3;

			c->run[at++] = (struct kv_run){
				k + begin * dim * size, v + begin * dim * size, end - begin};
		}
	}
	c->first[runs] = at;
}

static void test_context(void **unused)
{
	const uint32_t n = 151, vocab = lab->config.vocab; /* 7 does not divide it */
	float *whole = all_logits(forward, ROWS);
	uint8_t *memory = malloc(
		(size_t)model_runs(&lab->config) * 2 * n * lab->config.head_dim * sizeof(float));
	struct sequence *full, *s;

	(void)unused;
	assert_non_null(memory);
	assert_int_equal(sequence_new(&lab->config, NULL, n, &full), 0);
	assert_int_equal(forward_prefill(forward, full, ids, n, NULL), 0);
	for (int half = 0; half < 2; half++) {
		struct context c;
		struct span span = {.tokens = ids + n, .n = n_ids - n, .n_logits = n_ids - n};
		const float *logits;
		float difference;

		make_context(full, n, half ? KVG_DTYPE_BF16 : KVG_DTYPE_F32, &c, memory);
		assert_int_equal(sequence_new(&lab->config, &c, n_ids - n, &s), 0);
		span.sequence = s;
		assert_int_equal(forward_run(forward, &span, 1, &logits), 0);
		difference = max_difference(logits, whole + (size_t)n * vocab, (n_ids - n) * vocab);
		assert_true(difference <= (half ? 0.5f : TOLERANCE));
		sequence_free(s);
		context_fini(&c);
	}
	sequence_free(full);
	free(memory);
	free(whole);
}

/* ---- what must be refused ---- */

static void test_config(void **unused)
{
	static const char good[] =
		"{\"model_type\":\"qwen3\",\"num_hidden_layers\":2,\"hidden_size\":32,"
		"\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":16,"
		"\"intermediate_size\":64,\"vocab_size\":100,\"rms_norm_eps\":1e-6,"
		"\"rope_theta\":1000000,\"eos_token_id\":[1,2],\"rope_scaling\":null}";
	static const struct {
		const char *from, *to;
		int error;
	} cases[] = {
		{"qwen3", "llama", -ENOTSUP},
		{"\"num_hidden_layers\":2", "\"num_hidden_layers\":0", -EBADMSG},
		{"\"num_hidden_layers\":2", "\"num_hidden_layers\":-2", -EBADMSG},
		{"\"num_hidden_layers\":2", "\"num_hidden_layers\":4294967298", -EBADMSG},
		{"\"num_hidden_layers\":2", "\"num_hidden_layers\":\"2\"", -EBADMSG},
		{"\"num_key_value_heads\":2", "\"num_key_value_heads\":3", -EBADMSG},
		{"\"num_attention_heads\":4", "\"num_attention_heads\":256", -ENOTSUP},
		{"\"head_dim\":16", "\"head_dim\":15", -EBADMSG},
		{"\"vocab_size\":100", "\"vocab_size\":100000000000", -EBADMSG},
		{"\"rms_norm_eps\":1e-6", "\"rms_norm_eps\":-1", -EBADMSG},
		{"\"rope_theta\":1000000", "\"rope_theta\":\"x\"", -EBADMSG},
		{"\"rope_scaling\":null", "\"rope_scaling\":{\"rope_type\":\"yarn\"}", -ENOTSUP},
		{"\"rope_scaling\":null", "\"attention_bias\":true", -ENOTSUP},
		{"\"rope_scaling\":null", "\"use_sliding_window\":true", -ENOTSUP},
		{"\"rope_scaling\":null", "\"hidden_act\":\"gelu\"", -ENOTSUP},
		{"{\"model_type\"", "[\"model_type\"", -EBADMSG},
		{"\"qwen3\"", "null", -ENOTSUP},
		{"\"rope_scaling\":null", "\"rope_scaling\":{\"type\":null}", -ENOTSUP},
		{"\"rope_scaling\":null", "\"rope_scaling\":{\"type\":1}", -ENOTSUP},
		{"\"rope_scaling\":null", "\"rope_scaling\":\"yarn\"", -EBADMSG},
		{"\"rope_scaling\":null", "\"rope_parameters\":{\"rope_type\":null}", -ENOTSUP},
		{"\"rope_scaling\":null", "\"hidden_act\":[]", -ENOTSUP},
		{"[1,2]", "\"x\"", -EBADMSG},
		{"[1,2]", "[1,\"2\"]", -EBADMSG},
		{"[1,2]", "[1,null]", -EBADMSG},
		{"[1,2]", "100", -EBADMSG},
		{"[1,2]", "-1", -EBADMSG},
		{"[1,2]", "4294967297", -EBADMSG},
		{"[1,2]", "[1,2,3,4,5,6,7,8,9]", -ENOTSUP},
	};
	struct model_config c;
	char why[256];

	(void)unused;
	assert_int_equal(model_config_parse(good, &c, why, sizeof(why)), 0);
	assert_int_equal(c.n_eos, 2);
	assert_int_equal(c.head_dim, 16);
	assert_false(c.tied);
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const char *at = strstr(good, cases[i].from);
		char bad[1024];

		assert_non_null(at);
		snprintf(bad, sizeof(bad), "%.*s%s%s", (int)(at - good), good, cases[i].to,
			at + strlen(cases[i].from));
		why[0] = '\0';
		if (model_config_parse(bad, &c, why, sizeof(why)) != cases[i].error)
			fail_msg("%s was not refused as it should be", bad);
		assert_true(why[0]);
	}
}

static void write_config(const char *folder, const char *text)
{
	char path[300];
	FILE *f;

	snprintf(path, sizeof(path), "%s/config.json", folder);
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static void test_folders(void **unused)
{
	static const char config[] =
		"{\"model_type\":\"qwen3\",\"num_hidden_layers\":1,\"hidden_size\":8,"
		"\"num_attention_heads\":1,\"num_key_value_heads\":1,\"head_dim\":8,"
		"\"intermediate_size\":8,\"vocab_size\":4,\"rms_norm_eps\":1e-6,"
		"\"rope_theta\":10000,\"tie_word_embeddings\":true}";
	static const float zeros[32];
	struct safetensors_tensor t = {.name = "model.embed_tokens.weight",
		.dtype = SAFETENSORS_F32,
		.ndim = 2,
		.shape = {4, 8},
		.data = zeros,
		.bytes = sizeof(zeros)};
	char folder[] = "/tmp/kvgate-model-XXXXXX", path[300], why[256];
	struct model *m = NULL;

	(void)unused;
	assert_non_null(mkdtemp(folder));
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -ENOENT);
	write_config(folder, config);
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -ENOENT);
	snprintf(path, sizeof(path), "%s/model.safetensors", folder);
	assert_int_equal(safetensors_write(path, &t, 1, NULL, 0, why, sizeof(why)), 0);
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -EBADMSG);
	assert_non_null(strstr(why, "no tensor model.layers.0.input_layernorm.weight"));
	assert_non_null(strstr(why, folder));
	t.shape[0] = 8;
	t.shape[1] = 4;
	assert_int_equal(safetensors_write(path, &t, 1, NULL, 0, why, sizeof(why)), 0);
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -EBADMSG);
	assert_non_null(strstr(why, "model.embed_tokens.weight"));
	assert_int_equal(truncate(path, 60), 0);
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -EBADMSG);
	assert_non_null(strstr(why, path));
	t.name = "model.layers.1.mlp.up_proj.weight"; /* config.json knows layer 0 alone */
	assert_int_equal(safetensors_write(path, &t, 1, NULL, 0, why, sizeof(why)), 0);
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -EBADMSG);
	assert_non_null(strstr(why, "num_hidden_layers"));
	assert_null(m);
	unlink(path);
	write_config(folder, "{");
	assert_int_equal(model_load(folder, &m, why, sizeof(why)), -EBADMSG);
	assert_non_null(strstr(why, folder));
	snprintf(path, sizeof(path), "%s/config.json", folder);
	unlink(path);
	rmdir(folder);
}

static void test_digest(void **unused)
{
	char a[65], b[65], why[256];

	(void)unused;
	assert_int_equal(model_digest(LAB, a, why, sizeof(why)), 0);
	assert_int_equal(model_digest(LAB, b, why, sizeof(why)), 0);
	assert_string_equal(a, b);
	assert_int_equal(strlen(a), 64);
	assert_true(model_digest("/nonexistent", b, why, sizeof(why)) < 0);
	assert_non_null(strstr(why, "/nonexistent"));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_golden),
		cmocka_unit_test(test_any_chunks),
		cmocka_unit_test(test_instruction_sets),
		cmocka_unit_test(test_batch),
		cmocka_unit_test(test_context),
		cmocka_unit_test(test_config),
		cmocka_unit_test(test_folders),
		cmocka_unit_test(test_digest),
	};

	return cmocka_run_group_tests(tests, open_lab, close_lab);
}
