/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commit_ratio: one block of Qwen3-8B's shape whose scores are given, from kvg_commit() by a client until a lookup
 * finds it: request, one pack worker, index, reply. Beside it memcpy of the same bytes out of the same staging memory, by
 * this process, in turn. bench_commit has the packing alone; the difference is what a daemon between them costs.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/figure.h"
#include "tests/lib/harness.h"

#define TURNS 21

static const struct test_model qwen3_8b = {
	.name = "publish",
	.layers = 36,
	.heads = 8,
	.k_dim = 128,
	.v_dim = 128,
	.dtype = KVG_DTYPE_BF16,
	.tokens = 256,
	.n_planes = 7,
};

static const char config[] = "[memory]\nhost_bytes = 512MiB\nsegment_bytes = 128MiB\n"
			     "index_slots = 4096\npack_workers = 1\n"
			     "[limits]\nstaging_bytes = 256MiB\n";

struct turn {
	double publish, copy; /* us */
};

/* The same bytes every time, but for the first token: another key. */
static void fill(struct kvg_stage *s, uint32_t turn)
{
	float *score = s->aux;
	uint64_t *word = s->kv;

	for (uint64_t i = 0; i < s->kv_bytes / sizeof(*word); i++)
		word[i] = i * 0x9e3779b97f4a7c15ull;
	for (uint64_t i = 0; i < s->aux_bytes / sizeof(*score); i++)
		score[i] = (float)(i * 2654435761u % 65536) / 65536;
	for (uint32_t i = 0; i < s->n_tokens; i++)
		s->tokens[i] = i ? i : turn;
}

static struct turn one_turn(struct kvg_client *c, struct kvg_layout *l, uint32_t turn, void *to)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result gone;
	struct kvg_commit_result result = {0};
	struct kvg_commit item = {0};
	struct kvg_stage s;
	struct kvg_pin pin;
	struct turn r;
	double start;

	assert(kvg_stage(l, KVG_INPUT_SCORES, 1, &s) == 1);
	fill(&s, turn);
	start = figure_now_us();
	memcpy(to, s.kv, s.kv_bytes);
	r.copy = figure_now_us() - start;
	item.stage = &s;
	kvg_key_block(l, NULL, s.tokens, s.n_tokens, &item.key);
	start = figure_now_us();
	if (kvg_commit(c, &item, 1, &result) < 0 || result.code != KVG_CODE_OK ||
		kvg_lookup_pin(l, &item.key, 1.f, &pin) < 0) {
		fprintf(stderr, "bench_publish: %s %s\n", result.error, kvg_last_error(c));
		exit(1);
	}
	r.publish = figure_now_us() - start;
	kvg_unpin(c, &pin, 1);
	o.keys = &item.key;
	o.n_keys = 1;
	assert(kvg_purge(c, &o, &gone) == 0 && gone.blocks == 1);
	return r;
}

int main(void)
{
	const uint64_t bytes = 2ull * 36 * 8 * 256 * 128 * 2;
	double ratio[TURNS], publish[TURNS], copy[TURNS], gb = (double)bytes * 1e-9;
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	void *to = malloc(bytes);

	assert(to);
	memset(to, 1, bytes);
	daemon_start(&d, config);
	c = client_open(&d);
	l = model_register(c, &qwen3_8b);
	one_turn(c, l, TURNS, to); /* pages and scratch that are new */
	for (uint32_t i = 0; i < TURNS; i++) {
		const struct turn t = one_turn(c, l, i, to);

		publish[i] = t.publish;
		copy[i] = t.copy;
		ratio[i] = t.copy / t.publish;
	}
	kvg_close(c);
	assert(daemon_stop(&d) == 0);
	daemon_cleanup(&d);
	free(to);
	const double r = figure_median(ratio, TURNS);

	figure_print(&(struct figure_line){"core", "commit_ratio", "ratio", r,
			     gb / figure_median(copy, TURNS) * 1e6, r},
		"memcpy of the same bytes, GB/s (to be found in the index: %.4g GB/s)",
		gb / figure_median(publish, TURNS) * 1e6);
	return figure_status();
}
