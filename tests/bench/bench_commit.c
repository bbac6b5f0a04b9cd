/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commit_pack_ratio: packing a block whose scores are given - sort, size, copy into planes with CRC32C - beside memcpy of
 * the block's K and V bytes, by one thread. Both read the same staging memory and write pages of the same pool that were
 * written before; sources and destinations rotate, and the two are half a rotation apart, so that neither finds its bytes
 * in a cache that the other has filled. Timed in turns; the median of the turns' ratios is given.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "daemon/cache/cache.h"
#include "daemon/cache/pack.h"
#include "daemon/cache/staging.h"
#include "daemon/mem/tier.h"
#include "proto/map.h"
#include "tests/bench/figure.h"

enum {
	BLOCKS = 4,
	TURNS = 41
};

static const float edges[] = {0.95f, 0.90f, 0.80f, 0.70f, 0.50f, 0.25f};
enum {
	EDGES = sizeof(edges) / sizeof(edges[0])
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void must(bool is)
{
	if (!is)
		abort();
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *values)
{
	qsort(values, TURNS, sizeof(*values), compare);
	return values[TURNS / 2];
}

static uint64_t rnd(void)
{
	static uint64_t seed = 1;

	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return seed;
}

struct bench {
	struct kv_shape shape;
	struct stage_geometry geometry;
	struct staging *staging;
	uint64_t offset[BLOCKS];
	struct pool *pool;
	struct pool_tenant *tenant;
	struct packer *packer;
	struct extent copy[BLOCKS];  /* where memcpy writes */
	struct pack_job job[BLOCKS]; /* whose planes are held */
	unsigned turn;
};

/* As a client would: bytes, uniform scores, through a mapping of its own. */
static void fill(struct bench *b)
{
	const uint64_t bytes = staging_bytes(b->staging);
	uint8_t *map;

	must(map_shared(staging_fd(b->staging), bytes, PROT_READ | PROT_WRITE, (void **)&map) == 0);
	map_huge(map, bytes);
	for (int i = 0; i < BLOCKS; i++) {
		uint64_t *kv = (uint64_t *)(map + b->offset[i] + b->geometry.kv_off);
		float *score = (float *)(map + b->offset[i] + b->geometry.aux_off);

		for (uint64_t w = 0; w < b->geometry.kv_bytes / 8; w++)
			kv[w] = rnd();
		for (uint64_t s = 0; s < b->geometry.aux_bytes / 4; s++)
			score[s] = (float)(rnd() >> 40) / (1 << 24);
	}
	munmap(map, bytes);
}

static void release(struct bench *b, struct pack_job *j)
{
	for (uint32_t p = 0; p < j->n_planes; p++)
		if (j->plane[p].extent.pages)
			pool_release(b->tenant, &j->plane[p].extent);
	j->n_planes = 0;
}

static void init(struct bench *b)
{
	struct stage_format f = {.input = STAGE_INPUT_SCORES};
	struct pool_options o = {.tier = &tier_host, .numa_node = -1};
	unsigned page_shift = pack_page_shift(&b->shape, EDGES + 1);
	uint64_t worst = pack_worst_case(&b->shape, EDGES, page_shift);
	struct extent all[2 * BLOCKS + 1];

	stage_geometry(&b->shape, &f, b->shape.tokens, &b->geometry);
	must(staging_new(b->geometry.total * BLOCKS, &b->staging) == 0);
	for (int i = 0; i < BLOCKS; i++)
		must(staging_alloc(b->staging, b->geometry.total, &b->offset[i]) == 0);
	fill(b);
	o.budget = worst * (2 * BLOCKS + 1);
	for (o.segment_bytes = 1 << 20; o.segment_bytes < o.budget;)
		o.segment_bytes *= 2;
	must(pool_new(&o, &b->pool) == 0);
	must(pool_tenant_new(b->pool, &b->tenant) == 0);
	must(packer_new(&b->packer) == 0);
	for (int i = 0; i < 2 * BLOCKS + 1; i++) {
		must(pool_alloc(b->tenant, worst, page_shift, &all[i]) == 0);
		memset(all[i].addr, 1, worst);
	}
	for (int i = 0; i < 2 * BLOCKS + 1; i++)
		if (i < BLOCKS)
			b->copy[i] = all[i];
		else
			pool_release(b->tenant, &all[i]);
}

static void fini(struct bench *b)
{
	for (int i = 0; i < BLOCKS; i++) {
		pool_release(b->tenant, &b->copy[i]);
		release(b, &b->job[i]);
	}
	packer_free(b->packer);
	pool_tenant_free(b->tenant);
	pool_free(b->pool);
	staging_unref(b->staging);
}

static double time_pack(struct bench *b)
{
	static const uint8_t fingerprint[32];
	static const struct kvg_key key;
	unsigned i = b->turn % BLOCKS;
	unsigned page_shift = pack_page_shift(&b->shape, EDGES + 1);
	struct pack_job *j = &b->job[i];
	double start;
	int code;

	release(b, j);
	*j = (struct pack_job){
		.shape = &b->shape,
		.fingerprint = fingerprint,
		.key = &key,
		.stage = staging_map(b->staging) + b->offset[i],
		.geometry = b->geometry,
		.input = STAGE_INPUT_SCORES,
		.tokens = b->shape.tokens,
		.token_ids = true,
		.edges = edges,
		.n_edges = EDGES,
		.floor_pairs = 8,
		.pool = b->tenant,
		.page_shift = page_shift,
		.reserved = pack_worst_case(&b->shape, EDGES, page_shift),
	};
	start = now();
	must(pool_reserve(b->pool, j->reserved) == 0);
	code = pack_run(b->packer, j);
	pool_unreserve(b->pool, j->reserved - j->used);
	must(code == KVG_CODE_OK);
	return now() - start;
}

static double time_copy(struct bench *b)
{
	unsigned i = (b->turn + BLOCKS / 2) % BLOCKS; /* not what was packed just now */
	double start = now();

	memcpy(b->copy[i].addr, staging_map(b->staging) + b->offset[i], b->geometry.kv_bytes);
	return now() - start;
}

static void measure(const char *name, const struct kv_shape *shape, int repeat)
{
	static double pack[TURNS], copy[TURNS], ratio[TURNS];
	struct bench b = {.shape = *shape};
	double r, gb;

	init(&b);
	for (int t = -BLOCKS; t < TURNS; t++) {
		double p = 0, c = 0;

		for (int i = 0; i < repeat; i++, b.turn++) {
			p += time_pack(&b);
			c += time_copy(&b);
		}
		if (t < 0)
			continue; /* what is new: scratch, mappings */
		pack[t] = p / repeat;
		copy[t] = c / repeat;
		ratio[t] = c / p;
	}
	r = median(ratio);
	gb = (double)b.geometry.kv_bytes * 1e-9;
	fini(&b);
	figure_print(&(struct figure_line){"core", name, "ratio", r, gb / median(copy), r},
		"memcpy of the same bytes, GB/s (packing: %.4g GB/s)", gb / median(pack));
}

int main(void)
{
	const struct kv_shape qwen3_8b = {.layers = 36,
		.heads = 8,
		.tokens = 256,
		.k_dim = 128,
		.v_dim = 128,
		.dtype = KVG_DTYPE_BF16};
	const struct kv_shape lab = {.layers = 8,
		.heads = 4,
		.tokens = 256,
		.k_dim = 32,
		.v_dim = 32,
		.dtype = KVG_DTYPE_BF16};

	measure("commit_pack_lab_ratio", &lab, 16);
	measure("commit_pack_ratio", &qwen3_8b, 1);
	return figure_status();
}
