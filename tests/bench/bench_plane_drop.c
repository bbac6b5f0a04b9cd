/* SPDX-License-Identifier: Apache-2.0 */
/*
 * plane_drop_us_per_GiB: 1 GiB of blocks shrunk from 100 % to 30 % of their pairs. Blocks have the shape of Qwen3-8B (36
 * layers, 8 heads of 128, bf16, 256 tokens); scores are drawn from the lab gate's calibration, so bands hold the shares that
 * the gate gives them. Beside it, the memcpy of what stays: what a store has to do that keeps a block in one piece.
 *
 * That no payload byte moves is shown, not claimed: every plane that stays lies at the same place as before, under
 * the same checksum, and the daemon's own write access to the pool is taken away while planes are dropped - a copy into
 * the pool would be a fault.
 */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/base/counters.h"
#include "daemon/base/loop.h"
#include "daemon/cache/cache.h"
#include "tests/bench/figure.h"

enum {
	LAYERS = 36,
	HEADS = 8,
	DIM = 128,
	TOKENS = 256,
	KEEP = 4, /* planes that hold the best 30 % */
	TURNS = 3,
	BLOCKS_MAX = 64,
	SEGMENTS_MAX = 64
};

static struct loop *loop;
static struct cache *cache;
static struct cache_tenant *tenant;
static struct cache_layout *layout;
static struct staging *staging;
static struct stage_geometry geometry;
static uint8_t *stage;
static uint64_t stage_offset;
static struct gate_info gate;

static float uniform(void)
{
	static uint64_t x = 88172645463325252ull;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return (float)(x >> 40) * 0x1p-24f;
}

/* A score as the gate gives it: a pair's rank among all, mapped through the calibrated quantiles. */
static float score(void)
{
	const float rank = uniform();
	float low = 0, high = 1, above = 1, below = 0;

	for (uint32_t i = 0; i < gate.n_edges; i++) {
		if (rank < gate.quantiles[i]) {
			high = gate.quantiles[i];
			below = gate.edges[i];
			break;
		}
		low = gate.quantiles[i];
		above = gate.edges[i];
	}
	return below + (above - below) * (high - rank) / (high - low);
}

static void start(void)
{
	struct cache_options o = {
		.host_bytes = 4ull << 30,
		.segment_bytes = 256 << 20,
		.index_slots = 4096,
		.high_watermark = 1,
		.low_watermark = 1,
		.pack_workers = 1,
		.numa_node = -1,
	};
	const struct cache_limits limits = {.host_bytes = o.host_bytes, .floor = 1};
	struct cache_layout_spec s = {
		.id = {.shape = {.layers = LAYERS,
			       .heads = HEADS,
			       .tokens = TOKENS,
			       .k_dim = DIM,
			       .v_dim = DIM,
			       .dtype = KVG_DTYPE_BF16},
			.model = "shape of Qwen3-8B",
			.revision = "",
			.rope = "",
			.eviction = "",
			.key_namespace = "bench",
			.tp_size = 1,
			.n_edges = gate.n_edges},
		.gate = "",
	};
	char why[160] = "";

	memcpy(s.id.gate_digest, gate.digest, sizeof(gate.digest));
	memcpy(s.id.edges, gate.edges, sizeof(gate.edges));
	assert(loop_new(&loop) == 0 && counters_new(&o.counters) == 0);
	o.loop = loop;
	assert(cache_new(&o, &cache) == 0);
	assert(cache_tenant_open(cache, "bench", &limits, &tenant) == 0);
	if (cache_layout_register(tenant, &s, &layout, why, sizeof(why)) != KVG_CODE_OK) {
		fprintf(stderr, "%s\n", why);
		exit(1);
	}
	cache_layout_stage(layout, STAGE_INPUT_SCORES, TOKENS, &geometry);
	assert(staging_new(geometry.total, &staging) == 0);
	assert(staging_alloc(staging, geometry.total, &stage_offset) == 0);
	stage = mmap(NULL, staging_bytes(staging), PROT_READ | PROT_WRITE, MAP_SHARED,
		staging_fd(staging), 0);
	assert(stage != MAP_FAILED);
	for (uint64_t i = 0; i < geometry.kv_bytes; i += 8)
		*(uint64_t *)(stage + i) = i * 0x9e3779b97f4a7c15ull;
}

static void done(void *userdata, const struct cache_commit_result *r)
{
	*(int *)userdata = r->code;
}

static void put(uint32_t i)
{
	struct cache_commit q = {.layout = layout,
		.staging = staging,
		.offset = stage_offset,
		.input = STAGE_INPUT_SCORES,
		.tokens = TOKENS,
		.token_ids = true};
	float *scores = (float *)(stage + geometry.aux_off);
	struct cache_job *job;
	int code = -1;

	for (uint32_t s = 0; s < LAYERS * HEADS * TOKENS; s++)
		scores[s] = score();
	memcpy(q.key.b, &i, sizeof(i));
	assert(cache_commit(tenant, &q, done, &code, &job) == 0);
	while (code < 0)
		loop_run_once(loop, 100);
	if (code != KVG_CODE_OK) {
		fprintf(stderr, "commit: %s\n", kvg_code_name(code));
		exit(1);
	}
}

/* Every block as the daemon shows it; returns their number. */
static uint32_t look(struct cache_block_info *ret, uint64_t *ret_bytes)
{
	uint64_t cursor = 0;
	uint32_t n = 0, looks = UINT32_MAX;

	for (*ret_bytes = 0; cache_list_next(tenant, 0, &cursor, &looks, &ret[n]); n++)
		*ret_bytes += ret[n].bytes;
	return n;
}

/* What the daemon has mapped of the pool becomes read-only, or writable again. */
static void pool_writable(int writable)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	void *at[SEGMENTS_MAX];
	size_t bytes[SEGMENTS_MAX];
	char line[512];
	int n = 0;

	assert(maps);
	while (fgets(line, sizeof(line), maps) && n < SEGMENTS_MAX) {
		unsigned long from, to;

		if (!strstr(line, "memfd:kvgate") || strstr(line, "index") ||
			strstr(line, "staging") || sscanf(line, "%lx-%lx", &from, &to) != 2)
			continue;
		at[n] = (void *)from;
		bytes[n++] = to - from;
	}
	fclose(maps);
	assert(n > 0);
	for (int i = 0; i < n; i++)
		assert(mprotect(at[i], bytes[i], writable ? PROT_READ | PROT_WRITE : PROT_READ) ==
			0);
}

static void on_verified(void *userdata, const struct cache_block_info *info)
{
	*(struct cache_block_info *)userdata = *info;
}

static void same_places(
	const struct cache_block_info *before, const struct cache_block_info *after, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		struct cache_block_info checked = {.n_planes = 0};

		assert(cache_verify(tenant, 0, &after[i].key, on_verified, &checked) ==
			KVG_CODE_OK);
		while (!checked.n_planes)
			loop_run_once(loop, 100);
		for (uint32_t p = 0; p < KEEP; p++)
			assert(checked.plane[p].verified &&
				before[i].handle.slot == after[i].handle.slot &&
				before[i].plane[p].segment == after[i].plane[p].segment &&
				before[i].plane[p].page == after[i].plane[p].page);
		assert(checked.plane[KEEP].tier == KVG_TIER_NONE);
	}
}

static double copy_us(uint64_t bytes)
{
	uint8_t *from = malloc(bytes), *to = malloc(bytes);
	double best = 0;

	assert(from && to);
	memset(from, 1, bytes);
	memset(to, 2, bytes);
	for (int i = 0; i < TURNS; i++) {
		double t = figure_now_us();

		memcpy(to, from, bytes);
		__asm__ volatile("" : : "r"(to) : "memory");
		t = figure_now_us() - t;
		if (i == 0 || t < best)
			best = t;
	}
	free(from);
	free(to);
	return best;
}

int main(void)
{
	static struct cache_block_info before[BLOCKS_MAX], after[BLOCKS_MAX];
	struct cache_purge_result r;
	double us[TURNS], kept_share = 0;
	uint64_t all = 0, kept = 0;
	char why[200];
	struct gate *g;

	if (gate_load(KVG_SOURCE_DIR "/client/demo/lab/gate_calibrated.safetensors", &g, why,
		    sizeof(why)) < 0) {
		fprintf(stderr, "%s\n", why);
		return 1;
	}
	gate = *gate_info(g);
	assert(gate.n_edges == 6); /* the default bands: .05 .10 .20 .30 .50 .75 */
	gate_free(g);
	start();
	for (int turn = 0; turn < TURNS; turn++) {
		const uint32_t n = (uint32_t)((1ull << 30) / geometry.kv_bytes) + 1;
		double t;

		for (uint32_t i = 0; i < n; i++)
			put((uint32_t)turn << 16 | i);
		assert(look(before, &all) == n);
		pool_writable(0);
		t = figure_now_us();
		cache_purge(tenant, 0, NULL, KEEP, &r);
		us[turn] = (figure_now_us() - t) / ((double)all / (1 << 30));
		pool_writable(1);
		assert(look(after, &kept) == n && r.bytes == all - kept &&
			r.planes == n * (gate.n_edges + 1 - KEEP));
		same_places(before, after, n);
		kept_share = after[0].retention;
		cache_purge(tenant, 0, NULL, 0, &r);
		assert(r.blocks == n);
	}
	double memcpy_us = copy_us(kept) / ((double)all / (1 << 30));
	figure_print(&(struct figure_line){"core", "plane_drop_us_per_GiB", "us/GiB",
			     figure_median(us, TURNS), memcpy_us, FIGURE_NONE},
		"memcpy of the %.0f %% that stays; bytes copied here: 0", (double)kept_share * 100);
	staging_unref(staging);
	return figure_status();
}
