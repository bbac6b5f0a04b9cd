/* SPDX-License-Identifier: Apache-2.0 */
/*
 * partial_read: a context of BLOCKS blocks of 4 MiB, in planes of .05 .05 .10 .10 .20 .25 .25 of the pairs, pressed out of
 * memory by others; then a restart, so that all of it is on disk and nothing in memory. One kvg_acquire_start() asks for
 * everything; the clock is read when 30 % of every block is pinned and its planes have pointers, and when all of it is.
 */
/*
 * partial_read: a context of BLOCKS blocks of 4 MiB, in planes of .05 .05 .10 .10 .20 .25 .25 of the pairs, pressed out of
 * memory by others; then a restart, so that all of it is on disk and nothing in memory. One kvg_acquire_start() asks for everything; the clock is read when 30 % of
 * every block is pinned and its planes have pointers, and when all of it is.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/bench_disk.h"

#define ROUNDS 3u
#define BLOCKS 256u
#define LAYERS 8u
#define HEADS  8u
#define DIM    64u
#define TOKENS 256u
#define PLANES 7u
#define PART   .3f
#define OTHERS 1536u /* blocks of 1 MiB that press it out of memory */

/* Tokens of each plane, in every layer and head. */
static const unsigned share[PLANES] = {13, 13, 26, 25, 51, 64, 64};

static struct kvg_layout *layout(struct kvg_client *c)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	const uint8_t digest[32] = "given scores";
	float edges[PLANES - 1];
	struct kvg_layout *l;

	for (unsigned p = 0; p + 1 < PLANES; p++)
		edges[p] = 1.f - (float)(p + 1) / (float)PLANES;
	o.model = "bench_disk";
	o.layers = LAYERS;
	o.heads = HEADS;
	o.k_dim = o.v_dim = DIM;
	o.dtype = KVG_DTYPE_BF16;
	o.block_tokens = TOKENS;
	o.key_namespace = "bench";
	o.gate_digest = digest;
	o.edges = edges;
	o.n_edges = PLANES - 1;
	if (kvg_layout(c, &o, &l) < 0)
		rig_fail(c, "layout");
	return l;
}

/* Spread over the block: neighbours are in different planes. */
static void score(float *ret)
{
	unsigned plane = 0, left = share[0];

	for (unsigned i = 0; i < TOKENS; i++) {
		while (!left)
			left = share[++plane];
		left--;
		ret[i * 77 % TOKENS] = 1.f - ((float)plane + .5f) / (float)PLANES;
	}
}

static void put(struct kvg_client *c, struct kvg_layout *l, struct kvg_key *keys)
{
	float one[TOKENS];

	score(one);
	for (unsigned b = 0; b < BLOCKS; b++) {
		struct kvg_commit item = {.parent = b ? &keys[b - 1] : NULL};
		struct kvg_commit_result result;
		struct kvg_stage s;

		keys[b] = rig_key(b);
		if (kvg_stage(l, KVG_INPUT_SCORES, 1, &s) != 1)
			rig_fail(c, "stage");
		memset(s.kv, (int)b + 1, s.kv_bytes);
		for (unsigned i = 0; i < LAYERS * HEADS; i++)
			memcpy((float *)s.aux + i * TOKENS, one, sizeof(one));
		s.tokens = NULL;
		item.stage = &s;
		item.key = keys[b];
		if (kvg_commit(c, &item, 1, &result) < 0 || result.code != KVG_CODE_OK)
			rig_fail(c, "commit");
	}
}

/* So much of every block is mapped. */
static bool have(struct kvg_client *c, const struct kvg_acquired *got, uint32_t planes)
{
	for (unsigned b = 0; b < BLOCKS; b++) {
		struct kvg_acquired now;

		if (kvg_acquired_look(c, got[b].handle, &now) < 0 || now.held != got[b].held)
			rig_fail(c, "a block was lost");
		if ((now.mapped & planes) != planes)
			return false;
	}
	return true;
}

/* As a worker that is about to attend to it. Bytes. */
static uint64_t attend(
	struct kvg_client *c, struct kvg_layout *l, const struct kvg_key *keys, float retention)
{
	struct kvg_pin pins[BLOCKS];
	uint64_t bytes = 0;

	if (kvg_prefix_pin(l, keys, BLOCKS, retention, pins) != BLOCKS)
		rig_fail(c, "what came cannot be pinned");
	for (unsigned b = 0; b < BLOCKS; b++) {
		struct kvg_plane plane[KVG_PLANES_MAX];
		int n = kvg_planes(l, &pins[b], plane);

		for (int i = 0; i < n; i++) {
			bytes += plane[i].bytes;
			if (*(const uint8_t *)plane[i].k != (uint8_t)(b + 1))
				n = -1;
		}
		if (n <= 0)
			rig_fail(c, "wrong bytes");
	}
	kvg_unpin(c, pins, BLOCKS);
	return bytes;
}

struct times {
	double part_us, all_us;
	double part_bytes, all_bytes;
};

static struct times read_cold(struct rig *r, const struct kvg_key *keys)
{
	struct kvg_layout *l = layout(r->c);
	struct kvg_acquired got[BLOCKS];
	uint8_t coming[BLOCKS];
	struct times t = {0};
	const double start = figure_now_us();

	if (kvg_acquire_start(l, keys, BLOCKS, 0.f, 1.f, 0, got, coming) != BLOCKS)
		rig_fail(r->c, "acquire");
	for (unsigned b = 0; b < BLOCKS; b++)
		if (got[b].mapped || coming[b] != got[b].held || got[b].held != (1 << PLANES) - 1)
			rig_fail(r->c, "the context is not cold");
	while (!t.all_us) {
		if (!t.part_us && have(r->c, got, 0xf)) {
			t.part_bytes = (double)attend(r->c, l, keys, PART);
			t.part_us = figure_now_us() - start;
		}
		if (have(r->c, got, got[0].held)) {
			t.all_bytes = (double)attend(r->c, l, keys, 1.f);
			t.all_us = figure_now_us() - start;
		} else if (kvg_arrival_wait(r->c, 10000) != 1) {
			rig_fail(r->c, "planes do not come");
		}
	}
	return t;
}

void measure_partial(const struct place *p)
{
	const struct rig_options o = {
		.host_bytes = 1280 * MIB,
		.segment_bytes = 64 * MIB,
		.disk_bytes = 4096 * MIB,
		.drain_seconds = 60,
	};
	double part[ROUNDS], all[ROUNDS], ratio[ROUNDS];
	struct kvg_key keys[BLOCKS];
	struct times t = {0};
	struct rig r;

	rig_start(&r, p, &o);
	put(r.c, layout(r.c), keys);
	rig_put(r.c, rig_layout(r.c, MIB), BLOCKS, OTHERS);
	for (unsigned i = 0; i < ROUNDS; i++) {
		rig_restart(&r);
		rig_settle(&r);
		t = read_cold(&r, keys);
		part[i] = t.part_us;
		all[i] = t.all_us;
		ratio[i] = part[i] / all[i];
	}
	rig_stop(&r, p);
	figure_print(&(struct figure_line){"disk", "partial_read", "ratio",
			     figure_median(ratio, ROUNDS), FIGURE_NONE, FIGURE_NONE},
		"30 %% of the pairs of %u blocks of 4 MiB in %u planes after %.1f ms, all after "
		"%.1f ms, "
		"asked for together, from %s (%.2f GB/s); there they are %.1f %% of them; median "
		"of %u",
		BLOCKS, PLANES, figure_median(part, ROUNDS) / 1e3, figure_median(all, ROUNDS) / 1e3,
		p->fs, t.all_bytes / figure_median(all, ROUNDS) / 1e3, 100 * 77. / TOKENS, ROUNDS);
}
