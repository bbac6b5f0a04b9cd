/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference worker on a real daemon: what it puts lies in the planes as it computed and
 * scored it, protected where it said so; what it gets stands for what it would have computed; a
 * pruned context is attended to but never shared.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "client/worker/generate.h"
#include "proto/shape.h"
#include "tests/lib/harness.h"

#define LAB       KVG_SOURCE_DIR "/client/demo/lab"
#define GATE      LAB "/gate_calibrated.safetensors"
#define TOLERANCE 2e-4f

enum {
	CONTEXT =
		1000, /* bytes; with what is before them 1062 tokens: 16 blocks of 64 and one of 38 */
	BLOCK = 64,
	BLOCKS = 16,
	TAIL = 38
};

static struct daemon_process server;
static struct model *model;
static struct forward *forward;
static struct prompt prompt;

static int start(void **unused)
{
	char text[CONTEXT], why[256];

	(void)unused;
	daemon_start(&server, "[gate lab]\nfile = " GATE "\n");
	for (int i = 0; i < CONTEXT; i++)
		text[i] = (char)('a' + i * i % 23 + (i % 7 == 0 ? -'a' + ' ' - i * i % 23 : 0));
	assert_int_equal(prompt_lab(text, CONTEXT, "What is it?", &prompt), 0);
	assert_int_equal(model_load(LAB, &model, why, sizeof(why)), 0);
	return forward_new(model, 256, attention_isa_best(), &forward);
}

static int stop(void **unused)
{
	(void)unused;
	forward_free(forward);
	model_free(model);
	free(prompt.tokens);
	assert_int_equal(daemon_stop(&server), 0);
	daemon_cleanup(&server);
	return 0;
}

/* One worker: options, gate and connection. */
struct one {
	struct options options;
	struct scoring scoring;
	struct store store;
	struct engine engine;
};

static void one_open(
	struct one *w, const char *id, uint32_t dtype, const char *option, const char *value)
{
	char *argv[] = {(char *)"kvgate-worker", (char *)"--model", (char *)LAB, (char *)"--format",
		(char *)"lab", (char *)"--prompt", (char *)"x", (char *)"--cache",
		(char *)"required", (char *)"--max-tokens", (char *)"4", (char *)"--block-tokens",
		(char *)"64", (char *)(uintptr_t)option, (char *)(uintptr_t)value, NULL};
	struct store_options o = {.socket = server.socket,
		.model = id,
		.revision = "1",
		.rope = model->rope,
		.block_tokens = BLOCK,
		.dtype = dtype};
	char why[256];

	*w = (struct one){0};
	assert_int_equal(options_parse(option ? 15 : 13, argv, &w->options), 0);
	o.gate_name = w->options.gate_name;
	assert_int_equal(scoring_init(&w->scoring, &model->config, o.gate_name ? NULL : GATE, true,
				 why, sizeof(why)),
		0);
	assert_int_equal(store_open(&w->store, &o, &model->config, &w->scoring), 0);
	w->engine = (struct engine){.options = &w->options,
		.model = model,
		.forward = forward,
		.scoring = &w->scoring,
		.store = &w->store};
}

static void one_close(struct one *w)
{
	store_close(&w->store);
	scoring_fini(&w->scoring);
}

static void answer(struct one *w, struct answer *ret)
{
	if (answer_start(&w->engine, &prompt, 1, ret) < 0)
		fail_msg("%s", w->engine.why);
	assert_int_equal(answers_finish(&w->engine, ret, 1), 0);
}

/* Of a block's tokens first .. end - 1: system prompt, the context's window, the block's own. */
static bool is_protected(const struct options *o, uint32_t token, uint32_t end)
{
	const uint32_t window = o->window == UINT32_MAX ? (uint32_t)(0.02 * CONTEXT) : o->window;

	return token < LAB_PROTECT || token + window >= prompt.context_end ||
		token + o->block_window >= end;
}

/* One pair as it lies in a plane, against the row that the worker computed. */
static void check_pair(const struct sequence *s, const struct kvg_plane *p, uint32_t run,
	uint32_t pair, uint32_t token, uint32_t dtype)
{
	const uint32_t dim = s->config->head_dim;

	for (uint32_t i = 0; i < dim; i++) {
		const float k = sequence_k(s, run, token)[i], v = sequence_v(s, run, token)[i];
		const size_t at = (size_t)pair * dim + i;

		if (dtype == KVG_DTYPE_F32) {
			assert_true(((const float *)p->k)[at] == k);
			assert_true(((const float *)p->v)[at] == v);
		} else {
			assert_int_equal(((const uint16_t *)p->k)[at], bf16_from_f32(k));
			assert_int_equal(((const uint16_t *)p->v)[at], bf16_from_f32(v));
		}
	}
}

/* Returns the pairs whose scores are not those that the worker's own gate gave; none are its own. */
static uint32_t check_block(struct one *w, const struct sequence *s, const struct kvg_pin *pin,
	uint32_t block, uint32_t dtype)
{
	const uint32_t runs = model_runs(s->config), first = block * BLOCK;
	struct kvg_plane plane[KVG_PLANES_MAX];
	const int n = kvg_planes(w->store.layout, pin, plane);
	uint32_t pairs = 0, others = 0;

	/* the gate parts them, unless the window has them all */
	assert_true(n > 1 || is_protected(&w->options, first, first + pin->tokens));
	assert_int_equal(kvg_verify(w->store.layout, pin), 0);
	for (int i = 0; i < n; i++)
		for (uint32_t run = 0; run < runs; run++)
			for (uint32_t j = plane[i].cu[run]; j < plane[i].cu[run + 1];
				j++, pairs++) {
				const uint32_t token = first + plane[i].index[j];
				const bool kept =
					is_protected(&w->options, token, first + pin->tokens);

				assert_int_equal(plane[i].score[j] == 0x7c00, kept);
				assert_true(!kept || plane[i].plane == 0);
				others += !kept &&
					plane[i].score[j] !=
						f16_from_f32(sequence_score(s, run)[token]);
				check_pair(s, &plane[i], run, j, token, dtype);
			}
	assert_int_equal(pairs, runs * pin->tokens);
	return others;
}

/*
 * A cold worker puts whole blocks and the context's end; a warm one finds them, computes the
 * question and says the same.
 */
static void put_and_get(const char *id, uint32_t dtype, float tolerance)
{
	struct answer cold, warm;
	struct one a, b;
	float most = 0.0f;

	one_open(&a, id, dtype, NULL, NULL);
	answer(&a, &cold);
	assert_int_equal(cold.blocks_put, BLOCKS + 1);
	assert_int_equal(cold.reuse.context.tokens, 0);
	one_open(&b, id, dtype, NULL, NULL);
	answer(&b, &warm);
	assert_int_equal(warm.blocks_put, 0);
	assert_int_equal(warm.reuse.n_pins, BLOCKS + 1);
	assert_int_equal(warm.reuse.pins[BLOCKS].tokens, TAIL);
	assert_int_equal(warm.reuse.context.tokens, prompt.context_end);
	assert_true(warm.reuse.retention == 1.0);
	assert_int_equal(warm.n_tokens, cold.n_tokens);
	assert_memory_equal(warm.tokens, cold.tokens, cold.n_tokens * sizeof(*cold.tokens));
	for (uint32_t i = 0; i <= BLOCKS; i++)
		assert_int_equal(check_block(&b, cold.sequence, &warm.reuse.pins[i], i, dtype), 0);
	/* Rows behind the cached ones: the last layer's keep what all before them did. */
	for (uint32_t run = 0; run < model_runs(&model->config); run++)
		for (uint32_t i = 0; i < warm.sequence->n[run] * model->config.head_dim; i++)
			most = fmaxf(most,
				fabsf(sequence_v(warm.sequence, run, 0)[i] -
					sequence_v(cold.sequence, run, prompt.context_end)[i]));
	assert_true(most <= tolerance);
	answer_fini(&a.engine, &cold);
	answer_fini(&b.engine, &warm);
	one_close(&a);
	one_close(&b);
}

static void test_f32(void **unused)
{
	(void)unused;
	put_and_get("f32", KVG_DTYPE_F32, TOLERANCE);
}

static void test_bf16(void **unused)
{
	(void)unused;
	put_and_get("bf16", KVG_DTYPE_BF16, 0.3f);
}

/*
 * The last blocks gone: who computes them over the first ones puts what the first worker had put.
 */
static void test_extended(void **unused)
{
	struct kvg_purge_options purge = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result result;
	struct answer cold, extended, warm;
	struct one a, b;

	(void)unused;
	one_open(&a, "extended", KVG_DTYPE_F32, NULL, NULL);
	answer(&a, &cold);
	purge.keys = &cold.reuse.keys[BLOCKS - 4];
	purge.n_keys = 4;
	assert_int_equal(kvg_purge(a.store.client, &purge, &result), 0);
	assert_int_equal(result.blocks, 5); /* the short one with its parent */
	one_open(&b, "extended", KVG_DTYPE_F32, NULL, NULL);
	answer(&b, &extended);
	assert_int_equal(extended.reuse.n_pins, BLOCKS - 4);
	assert_int_equal(extended.blocks_put, 5);
	answer(&b, &warm);
	assert_int_equal(warm.reuse.n_pins, BLOCKS + 1);
	for (uint32_t block = BLOCKS - 4; block < BLOCKS; block++) {
		struct kvg_plane plane[KVG_PLANES_MAX];
		const int n = kvg_planes(b.store.layout, &warm.reuse.pins[block], plane);

		assert_true(n > 0);
		assert_memory_equal(plane[0].tokens, prompt.tokens + block * BLOCK,
			BLOCK * sizeof(*prompt.tokens));
		for (int i = 0; i < n; i++)
			for (uint32_t j = 0; j < plane[i].cu[1]; j++) {
				const float *k = (const float *)plane[i].k +
					(size_t)j * model->config.head_dim;
				const uint32_t token = block * BLOCK + plane[i].index[j];

				for (uint32_t c = 0; c < model->config.head_dim; c++)
					assert_true(fabsf(k[c] -
							    sequence_k(cold.sequence, 0,
								    token)[c]) <= TOLERANCE);
			}
	}
	answer_fini(&a.engine, &cold);
	answer_fini(&b.engine, &extended);
	answer_fini(&b.engine, &warm);
	one_close(&a);
	one_close(&b);
}

/*
 * A share of the context: so many of the pairs that are ranked, and all that are protected; what
 * follows is not shared.
 */
static void test_retention(void **unused)
{
	const uint64_t all = (uint64_t)prompt.context_end * model_runs(&model->config);
	struct answer cold, best;
	uint64_t protected = 0, most;
	struct one a, b;

	(void)unused;
	one_open(&a, "retention", KVG_DTYPE_BF16, NULL, NULL);
	answer(&a, &cold);
	answer_fini(&a.engine, &cold);
	one_open(&b, "retention", KVG_DTYPE_BF16, "--retention", "0.2");
	answer(&b, &best);
	for (uint32_t t = 0; t < prompt.context_end; t++) {
		const uint32_t end = (t / BLOCK + 1) * BLOCK;

		protected += is_protected(&b.options, t,
				     end < prompt.context_end ? end : prompt.context_end)
			? model_runs(&model->config)
			: 0;
	}
	most = (uint64_t)(0.2 * (double)(all - protected));
	assert_in_range(best.reuse.context.pairs, protected + most - most / 100, protected + most);
	assert_true(best.reuse.retention == (double)best.reuse.context.pairs / (double)all);
	assert_int_equal(best.blocks_put, 0);
	answer_fini(&b.engine, &best);
	one_close(&a);
	one_close(&b);
}

/*
 * The last blocks gone and the first ones pruned: the worker computes the rest, and keeps it to
 * itself.
 */
static void test_pruned(void **unused)
{
	struct kvg_purge_options purge = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result result;
	struct kvg_layout_info info = {.size = sizeof(info)};
	struct answer cold, pruned;
	struct kvg_key keys[BLOCKS];
	struct one a, b;

	(void)unused;
	one_open(&a, "pruned", KVG_DTYPE_BF16, NULL, NULL);
	answer(&a, &cold);
	answer_fini(&a.engine, &cold);
	assert_int_equal(
		kvg_key_chain(a.store.layout, NULL, prompt.tokens, BLOCKS * BLOCK, keys), BLOCKS);
	kvg_layout_describe(a.store.layout, &info);
	purge.layout = info.id;
	purge.keys = &keys[BLOCKS - 4];
	purge.n_keys = 4;
	assert_int_equal(kvg_purge(a.store.client, &purge, &result), 0);
	purge.keys = keys;
	purge.n_keys = BLOCKS - 4;
	purge.keep_planes = 2;
	assert_int_equal(kvg_purge(a.store.client, &purge, &result), 0);
	assert_true(result.planes > 0);

	one_open(&b, "pruned", KVG_DTYPE_BF16, NULL, NULL);
	answer(&b, &pruned);
	assert_int_equal(pruned.reuse.n_pins, BLOCKS - 4);
	assert_true(pruned.reuse.retention < 0.9);
	assert_int_equal(pruned.blocks_put, 0);
	assert_int_equal(kvg_prefix_lookup(b.store.layout, keys, BLOCKS), BLOCKS - 4);
	answer_fini(&b.engine, &pruned);
	one_close(&b);

	/* One who wants all of it computes all but the first block, of which everything is protected. */
	one_open(&b, "pruned", KVG_DTYPE_BF16, "--min-retention", "1");
	answer(&b, &pruned);
	assert_int_equal(pruned.reuse.n_pins, 1);
	answer_fini(&b.engine, &pruned);
	one_close(&a);
	one_close(&b);
}

/* A window of 70 tokens lies in two blocks, and ends where the context does. */
static void test_window(void **unused)
{
	struct answer cold, warm;
	struct one a;

	(void)unused;
	one_open(&a, "window", KVG_DTYPE_BF16, "--window", "70");
	answer(&a, &cold);
	answer(&a, &warm);
	assert_int_equal(warm.reuse.n_pins, BLOCKS + 1);
	for (uint32_t i = 0; i <= BLOCKS; i++)
		check_block(&a, cold.sequence, &warm.reuse.pins[i], i, KVG_DTYPE_BF16);
	answer_fini(&a.engine, &warm);
	answer_fini(&a.engine, &cold);
	one_close(&a);
}

/*
 * The daemon's gate scores what the worker's own does, and protects what the worker says. The
 * two cut the tokens into other batches, so that a score in a hundred may round another way.
 */
static void test_gate_of_daemon(void **unused)
{
	struct answer own, theirs, warm;
	uint32_t others = 0;
	struct one a, b;

	(void)unused;
	one_open(&a, "own gate", KVG_DTYPE_F32, NULL, NULL);
	answer(&a, &own);
	one_open(&b, "lab", KVG_DTYPE_F32, "--gate-name", "lab");
	answer(&b, &theirs);
	assert_int_equal(theirs.blocks_put, BLOCKS + 1);
	answer(&b, &warm);
	assert_int_equal(warm.reuse.n_pins, BLOCKS + 1);
	for (uint32_t i = 0; i <= BLOCKS; i++)
		others += check_block(&b, own.sequence, &warm.reuse.pins[i], i, KVG_DTYPE_F32);
	assert_true(others < prompt.context_end * model_runs(&model->config) / 20);
	answer_fini(&a.engine, &own);
	answer_fini(&b.engine, &theirs);
	answer_fini(&b.engine, &warm);
	one_close(&a);
	one_close(&b);
}

/* Tokens of the usual prompt up to `n`, then others; all of it context. */
static void other_prompt(uint32_t n, uint32_t more, struct prompt *ret)
{
	*ret = (struct prompt){.tokens = malloc((n + more) * sizeof(*ret->tokens)),
		.n = n + more,
		.protect = LAB_PROTECT,
		.context_end = n + more,
		.marked = true};
	assert_non_null(ret->tokens);
	memcpy(ret->tokens, prompt.tokens, n * sizeof(*ret->tokens));
	for (uint32_t i = 0; i < more; i++)
		ret->tokens[n + i] = 'x';
}

static void answer_other(struct one *w, const struct prompt *p, struct answer *ret)
{
	if (answer_start(&w->engine, p, 1, ret) < 0)
		fail_msg("%s", w->engine.why);
}

/*
 * The short block at a context's end serves whoever goes on from there, but for one who will put
 * the whole block in its place; and that one too when nothing can be put, since blocks are pruned.
 */
static void test_short_block(void **unused)
{
	struct kvg_purge_options purge = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_layout_info info = {.size = sizeof(info)};
	struct kvg_purge_result result;
	struct answer first, next;
	struct prompt p;
	struct one a;

	(void)unused;
	one_open(&a, "short", KVG_DTYPE_BF16, NULL, NULL);
	answer(&a, &first);
	answer_fini(&a.engine, &first);

	other_prompt(prompt.context_end, 10, &p); /* no whole block more */
	answer_other(&a, &p, &next);
	assert_int_equal(next.reuse.context.tokens, prompt.context_end);
	assert_int_equal(next.blocks_put, 0);
	answer_fini(&a.engine, &next);
	free(p.tokens);

	other_prompt(prompt.context_end, 100, &p);
	answer_other(&a, &p, &next);
	assert_int_equal(next.reuse.context.tokens, BLOCKS * BLOCK);
	assert_int_equal(next.blocks_put, 3); /* two whole ones, and up to the last token */
	answer_fini(&a.engine, &next);
	answer_other(&a, &p, &next);
	assert_int_equal(next.reuse.context.tokens, p.n - 1);
	assert_int_equal(next.blocks_put, 0);
	answer_fini(&a.engine, &next);
	free(p.tokens);

	kvg_layout_describe(a.store.layout, &info);
	purge.layout = info.id;
	purge.keep_planes = 2;
	assert_int_equal(kvg_purge(a.store.client, &purge, &result), 0);
	assert_true(result.planes > 0);
	other_prompt(prompt.context_end - 5, 100, &p); /* another end: it is not that short block */
	answer_other(&a, &p, &next);
	assert_int_equal(next.reuse.context.tokens, BLOCKS * BLOCK);
	answer_fini(&a.engine, &next);
	free(p.tokens);
	other_prompt(prompt.context_end + 1, 200, &p);
	answer_other(&a, &p, &next);
	assert_true(next.reuse.retention < 0.9);
	assert_int_equal(next.reuse.context.tokens, prompt.context_end);
	assert_int_equal(next.blocks_put, 0);
	answer_fini(&a.engine, &next);
	free(p.tokens);
	one_close(&a);
}

/* Where nobody knows what of a prompt is context, whole blocks are shared: the rest may be the question. */
static void test_unmarked(void **unused)
{
	struct answer first, next;
	struct prompt p;
	struct one a;

	(void)unused;
	one_open(&a, "unmarked", KVG_DTYPE_BF16, NULL, NULL);
	other_prompt(prompt.context_end, 10, &p);
	p.marked = false;
	answer_other(&a, &p, &first);
	assert_int_equal(first.blocks_put, p.n / BLOCK);
	answer_other(&a, &p, &next);
	assert_int_equal(next.reuse.context.tokens, p.n / BLOCK * BLOCK);
	assert_int_equal(next.blocks_put, 0);
	answer_fini(&a.engine, &first);
	answer_fini(&a.engine, &next);
	free(p.tokens);
	one_close(&a);
}

/* What the daemon refuses is told, with its reason; what came before it is there. */
static void test_refused(void **unused)
{
	struct kvg_key keys[BLOCKS];
	struct one computed, w;
	struct answer a;
	struct put put;

	(void)unused;
	one_open(&computed, "computed", KVG_DTYPE_BF16, NULL, NULL);
	answer(&computed, &a);
	one_open(&w, "refused", KVG_DTYPE_BF16, NULL, NULL);
	assert_int_equal(
		kvg_key_chain(w.store.layout, NULL, prompt.tokens, BLOCKS * BLOCK, keys), BLOCKS);
	keys[3].b[7] ^= 1;
	put = (struct put){.store = &w.store,
		.sequence = a.sequence,
		.tokens = prompt.tokens,
		.keys = keys,
		.end = BLOCKS,
		.window = prompt.context_end};
	assert_int_equal(put_finish(&put), -EREMOTEIO);
	assert_non_null(strstr(put.why, "not the hash"));
	assert_int_equal(put.blocks, 3);
	assert_int_equal(put.outstanding, 0);
	assert_int_equal(kvg_prefix_lookup(w.store.layout, keys, BLOCKS), 3);
	one_close(&w);
	answer_fini(&computed.engine, &a);
	one_close(&computed);
}

static void start_with_disk(void)
{
	char config[500];

	snprintf(config, sizeof(config),
		"[gate lab]\nfile = " GATE "\n[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\n"
		"[disk]\npaths = %s/planes\nsize = 128MiB\n",
		server.dir);
	daemon_spawn(&server, config, NULL);
	assert_true(daemon_wait_ready(&server));
}

/* The daemon ended and another began: the context is on disk as a whole, and nothing of it is computed again. */
static void test_from_disk(void **unused)
{
	const struct daemon_process other = server;
	struct answer first, again;
	uint32_t tokens[16], n;
	struct one a;

	(void)unused;
	server = (struct daemon_process){.dir = "/tmp/kvgate-test-XXXXXX"};
	assert_non_null(mkdtemp(server.dir));
	snprintf(server.socket, sizeof(server.socket), "%s/sock", server.dir);
	snprintf(server.config, sizeof(server.config), "%s/conf", server.dir);
	snprintf(server.log, sizeof(server.log), "%s/log", server.dir);
	start_with_disk();
	one_open(&a, "disk", KVG_DTYPE_F32, NULL, NULL);
	answer(&a, &first);
	assert_int_equal(first.blocks_put, BLOCKS + 1);
	n = first.n_tokens;
	assert_in_range(n, 1, 16);
	memcpy(tokens, first.tokens, n * sizeof(*tokens));
	answer_fini(&a.engine, &first);
	one_close(&a);
	assert_int_equal(daemon_stop(&server), 0);
	start_with_disk();
	one_open(&a, "disk", KVG_DTYPE_F32, NULL, NULL);
	answer(&a, &again);
	assert_int_equal(again.reuse.n_pins, BLOCKS + 1);
	assert_true(again.reuse.retention == 1.0);
	assert_int_equal(again.blocks_put, 0);
	assert_int_equal(again.n_tokens, n);
	assert_memory_equal(again.tokens, tokens, n * sizeof(*tokens));
	assert_true(client_counter(a.store.client, "kvgate_promoted_planes_total") > BLOCKS);
	answer_fini(&a.engine, &again);
	one_close(&a);
	assert_int_equal(daemon_stop(&server), 0);
	daemon_cleanup(&server);
	server = other;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_f32),
		cmocka_unit_test(test_bf16),
		cmocka_unit_test(test_extended),
		cmocka_unit_test(test_retention),
		cmocka_unit_test(test_pruned),
		cmocka_unit_test(test_window),
		cmocka_unit_test(test_gate_of_daemon),
		cmocka_unit_test(test_short_block),
		cmocka_unit_test(test_unmarked),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_from_disk),
	};

	return cmocka_run_group_tests(tests, start, stop);
}
