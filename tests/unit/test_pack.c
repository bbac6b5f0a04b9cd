/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Packed blocks against a plain reimplementation: for every pair of the block, which plane it must be in, at which
 * place of its run, with which score and which bytes. Destination memory is dirty before, so every byte counts.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "daemon/cache/pack.h"
#include "daemon/cache/pack_kernels.h"
#include "daemon/mem/tier.h"
#include "fake_gate.h"
#include "proto/plane.h"

#define MIB (1ull << 20)

static uint64_t seed = 3;
static const struct pack_kernels *kernels;

static uint32_t rnd(void)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)(seed >> 32);
}

/* One block to pack, with everything around it. */
struct block {
	struct kv_shape shape;
	uint32_t tokens, n_edges, floor;
	uint32_t protect_first, protect_last;
	enum stage_input input;
	bool ids, ids_copy;
	bool some_ungated;
	uint32_t hidden_dtype;
	float edges[KVG_PLANES_MAX - 1];
	int kind; /* of scores, see fill_scores */
	unsigned page_shift;
};

struct bench {
	struct pool *pool;
	struct pool_tenant *tenant;
	struct packer *packer;
	struct tier_fault fault;
};

static int setup(void **state)
{
	struct bench *b = calloc(1, sizeof(*b));
	struct pool_options o = {.tier = &b->fault.ops,
		.budget = 192 * MIB,
		.segment_bytes = 64 * MIB,
		.numa_node = -1};

	tier_fault_init(&b->fault, &tier_host, -ENOMEM);
	assert_int_equal(pool_new(&o, &b->pool), 0);
	assert_int_equal(pool_tenant_new(b->pool, &b->tenant), 0);
	assert_int_equal(packer_new(&b->packer), 0);
	packer_set_kernels(b->packer, kernels);
	*state = b;
	return 0;
}

static int teardown(void **state)
{
	struct bench *b = *state;

	packer_free(b->packer);
	assert_int_equal(fake_gate_scratches, 0);
	pool_tenant_free(b->tenant);
	pool_free(b->pool);
	free(b);
	return 0;
}

/* Old bytes in every page that packing could get. */
static void dirty(struct bench *b, unsigned page_shift)
{
	struct extent e;

	assert_int_equal(pool_alloc(b->tenant, 24 * MIB, page_shift, &e), 0);
	memset(e.addr, 0xa5, extent_bytes(&e));
	pool_release(b->tenant, &e);
}

static float random_score(int kind)
{
	switch (kind) {
	case 0:
		return (float)(rnd() >> 8) / (1 << 24);
	case 1: /* ties, and scores that stand on the edges */
		return (float)(rnd() % 11) / 10;
	case 2: /* some protected */
		return rnd() % 4 ? (float)(rnd() >> 8) / (1 << 24) : INFINITY;
	case 3: /* all in the last band */
		return 1e-6f;
	case 4: /* all in the first */
		return 0.999f;
	default: /* log scores */
		return -(float)(rnd() >> 8) / (1 << 21);
	}
}

/* A staged block: memory, the scores that count, which layers are gated. */
struct staged {
	struct stage_geometry g;
	uint8_t *mem;
	float *score; /* [layers][heads][tokens] */
	uint32_t *ids;
	uint32_t *layer_gate;
	uint32_t gated;
	uint32_t hidden;
};

static void stage(const struct block *b, struct staged *ret)
{
	const struct kv_shape *s = &b->shape;
	uint32_t runs = s->opaque_bytes ? 0 : s->layers * s->heads;
	struct staged st = {.hidden = s->heads + 3};
	struct stage_format f = {
		.input = b->input, .hidden = st.hidden, .hidden_dtype = b->hidden_dtype};

	st.layer_gate = calloc(s->layers + 1, sizeof(*st.layer_gate));
	for (uint32_t l = 0; l < s->layers; l++)
		st.layer_gate[l] = b->some_ungated && l % 3 == 1 ? UINT32_MAX : st.gated++;
	f.gated_layers = st.gated;
	stage_geometry(s, &f, b->tokens, &st.g);
	st.mem = aligned_alloc(4096, st.g.total);
	for (uint64_t i = 0; i + 4 <= st.g.total; i += 4) {
		uint32_t r = rnd();

		memcpy(st.mem + i, &r, 4);
	}
	st.ids = malloc(b->tokens * sizeof(*st.ids));
	for (uint32_t t = 0; t < b->tokens; t++)
		st.ids[t] = rnd();
	if (!b->ids_copy)
		memcpy(st.mem + st.g.tokens_off, st.ids, b->tokens * sizeof(*st.ids));
	st.score = calloc((size_t)runs * b->tokens + 1, sizeof(*st.score));
	for (uint32_t r = 0; r < runs; r++)
		for (uint32_t t = 0; t < b->tokens; t++) {
			float v = random_score(b->kind);
			uint32_t l = r / s->heads, h = r % s->heads, gl = st.layer_gate[l];
			size_t at = ((size_t)gl * b->tokens + t) * st.hidden + h;
			bool kept = t < b->protect_first || t >= b->tokens - b->protect_last;

			if (b->input == STAGE_INPUT_HIDDEN && b->hidden_dtype == KVG_DTYPE_BF16)
				v = bf16_to_f32(bf16_from_f32(v));
			st.score[(size_t)r * b->tokens + t] =
				gl == UINT32_MAX || b->input == STAGE_INPUT_NONE || kept ? INFINITY
											 : v;
			/* of ungated layers and protected tokens nobody looks at the scores */
			if (b->input == STAGE_INPUT_SCORES)
				((float *)(st.mem + st.g.aux_off))[(size_t)r * b->tokens + t] =
					gl == UINT32_MAX || kept ? NAN : v;
			else if (b->input == STAGE_INPUT_HIDDEN && gl != UINT32_MAX) {
				if (b->hidden_dtype == KVG_DTYPE_F32)
					((float *)(st.mem + st.g.aux_off))[at] = v;
				else
					((uint16_t *)(st.mem + st.g.aux_off))[at] =
						bf16_from_f32(v);
			}
		}
	*ret = st;
}

static void unstage(struct staged *st)
{
	free(st->mem);
	free(st->score);
	free(st->ids);
	free(st->layer_gate);
}

/* The plane of the pair of this rank (best = 0) in its run. */
static uint32_t plane_of(const struct block *b, float score, uint32_t rank)
{
	uint32_t p = 0;

	if (rank < b->floor)
		return 0;
	while (p < b->n_edges && !(score >= b->edges[p]))
		p++;
	return p;
}

static const uint8_t *source_row(
	const struct block *b, const struct staged *st, uint32_t run, uint32_t token, bool v)
{
	const struct kv_shape *s = &b->shape;
	size_t es = dtype_bytes(s->dtype), k_row = s->k_dim * es, v_row = s->v_dim * es;
	uint32_t l = run / s->heads, h = run % s->heads;
	const uint8_t *p = st->mem + st->g.kv_off;

	/* [L][2][H][T][d], spelled out */
	p += (size_t)l * s->heads * b->tokens * (k_row + v_row);
	if (!v)
		return p + ((size_t)h * b->tokens + token) * k_row;
	return p + (size_t)s->heads * b->tokens * k_row + ((size_t)h * b->tokens + token) * v_row;
}

/* Every byte of a payload that no section holds is 0. */
static void check_gaps(const uint8_t *p, const struct plane_view *v)
{
	struct {
		const void *from;
		size_t bytes;
	} part[] = {{p, sizeof(struct kvg_plane_header)},
		{v->cu, v->runs ? (v->runs + 1) * 4ul : 0}, {v->ids, v->n_token_ids * 4ul},
		{v->index, v->pairs * 2ul}, {v->score, v->pairs * 2ul},
		{v->k, v->opaque ? v->opaque_bytes : (size_t)v->pairs * v->k_row},
		{v->v, (size_t)v->pairs * v->v_row}};
	const uint8_t *at = p;

	for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++) {
		for (; part[i].bytes && at < (const uint8_t *)part[i].from; at++)
			assert_int_equal(*at, 0);
		if (part[i].bytes)
			at = (const uint8_t *)part[i].from + part[i].bytes;
	}
	for (; at < p + v->bytes; at++)
		assert_int_equal(*at, 0);
}

struct rank {
	float score;
	uint32_t token;
};

static int better(const void *va, const void *vb)
{
	const struct rank *a = va, *b = vb;

	if (a->score != b->score)
		return a->score > b->score ? -1 : 1;
	return a->token < b->token ? -1 : 1;
}

static void check_run(const struct block *b, const struct staged *st, const struct plane_view *v,
	uint32_t run, double *mass)
{
	struct rank *rank = malloc(b->tokens * sizeof(*rank));
	uint32_t at[KVG_PLANES_MAX] = {0};

	for (uint32_t t = 0; t < b->tokens; t++) {
		float s = st->score[(size_t)run * b->tokens + t];

		rank[t] = (struct rank){f16_to_f32(f16_from_f32(s)), t};
	}
	qsort(rank, b->tokens, sizeof(*rank), better);
	for (uint32_t i = 0; i < b->tokens; i++) {
		uint32_t p = plane_of(b, rank[i].score, i), pair;
		double m = b->kind == 5 && rank[i].score < INFINITY ? exp(rank[i].score)
								    : rank[i].score;

		assert_true(v[p].runs > 0);
		pair = v[p].cu[run] + at[p]++;
		assert_true(pair < v[p].cu[run + 1]);
		assert_int_equal(v[p].index[pair], rank[i].token);
		assert_int_equal(v[p].score[pair], f16_from_f32(rank[i].score));
		assert_memory_equal(v[p].k + (size_t)pair * v[p].k_row,
			source_row(b, st, run, rank[i].token, false), v[p].k_row);
		assert_memory_equal(v[p].v + (size_t)pair * v[p].v_row,
			source_row(b, st, run, rank[i].token, true), v[p].v_row);
		mass[p] += fmin(fmax(m, 0), 1);
	}
	for (uint32_t p = 0; p <= b->n_edges; p++)
		if (v[p].runs)
			assert_int_equal(v[p].cu[run] + at[p], v[p].cu[run + 1]);
	free(rank);
}

static void init_job(
	const struct block *b, struct bench *e, const struct staged *st, struct pack_job *j)
{
	static const uint8_t fingerprint[32] = {1, 2, 3, 250};
	static const struct kvg_key key = {{9, 8, 7, 251}};

	*j = (struct pack_job){
		.shape = &b->shape,
		.fingerprint = fingerprint,
		.key = &key,
		.stage = st->mem,
		.geometry = st->g,
		.input = b->input,
		.tokens = b->tokens,
		.protect_first = b->protect_first,
		.protect_last = b->protect_last,
		.token_ids = b->ids,
		.ids = b->ids_copy ? st->ids : NULL,
		.edges = b->edges,
		.n_edges = b->n_edges,
		.floor_pairs = b->floor,
		.layer_gate = st->layer_gate,
		.hidden_dtype = b->hidden_dtype,
		.pool = e->tenant,
		.page_shift = b->page_shift,
		.reserved = pack_worst_case(&b->shape, b->n_edges, b->page_shift),
	};
	assert_int_equal(pool_reserve(e->pool, j->reserved), 0);
}

static void check_planes(const struct block *b, const struct staged *st, const struct pack_job *j)
{
	struct plane_view v[KVG_PLANES_MAX] = {0};
	double mass[KVG_PLANES_MAX] = {0}, sum = 0, got = 0;
	uint64_t pages = 0;

	for (uint32_t p = 0; p < j->n_planes; p++) {
		const struct extent *e = &j->plane[p].extent;
		const struct kvg_plane_header *h = e->addr;

		pages += extent_bytes(e);
		if (!e->pages) {
			assert_true(p > 0 && j->plane[p].pairs == 0 && j->plane[p].bytes == 0);
			continue;
		}
		assert_int_equal(plane_verify(e->addr, extent_bytes(e)), 0);
		assert_int_equal(plane_open(e->addr, extent_bytes(e), &v[p]), 0);
		assert_int_equal(plane_check_runs(&v[p]), 0);
		assert_int_equal(h->plane, p);
		assert_int_equal(h->n_planes, j->n_planes);
		assert_memory_equal(h->fingerprint, j->fingerprint, 32);
		assert_memory_equal(&h->key, j->key, 32);
		assert_int_equal(v[p].tokens, b->tokens);
		assert_int_equal(v[p].pairs, j->plane[p].pairs);
		assert_int_equal(v[p].bytes, j->plane[p].bytes);
		assert_true(v[p].mass == j->plane[p].mass);
		assert_int_equal(
			e->pages, (v[p].bytes + (1u << b->page_shift) - 1) >> b->page_shift);
		assert_int_equal(v[p].n_token_ids, b->ids && p == 0 ? b->tokens : 0);
		assert_int_equal(pack_tokens_equal(e->addr, extent_bytes(e), st->ids, b->tokens),
			b->ids && p == 0);
		check_gaps(e->addr, &v[p]);
		got += j->plane[p].mass;
	}
	assert_int_equal(pages, j->used);
	assert_true(j->used <= j->reserved);
	assert_true(fabs(got - 1) < 1e-4);
	if (b->shape.opaque_bytes) {
		assert_true(v[0].opaque && v[0].opaque_bytes == b->shape.opaque_bytes);
		assert_memory_equal(v[0].k, st->mem + st->g.kv_off, b->shape.opaque_bytes);
		return;
	}
	for (uint32_t r = 0; r < b->shape.layers * b->shape.heads; r++)
		check_run(b, st, v, r, mass);
	for (uint32_t p = 0; p < j->n_planes; p++)
		sum += mass[p];
	for (uint32_t p = 0; p < j->n_planes; p++)
		assert_true(fabs(mass[p] / sum - (double)j->plane[p].mass) < 1e-4);
}

static void pack_and_check(struct bench *e, const struct block *b)
{
	struct staged st;
	struct pack_job j;
	struct pool_stat stat;
	const char *why;

	assert_int_equal(shape_check(&b->shape, &why), 0);
	stage(b, &st);
	dirty(e, b->page_shift);
	init_job(b, e, &st, &j);
	if (b->input == STAGE_INPUT_HIDDEN)
		j.gate = fake_gate_new(st.gated, b->shape.heads, st.hidden);
	assert_int_equal(pack_run(e->packer, &j), KVG_CODE_OK);
	check_planes(b, &st, &j);
	for (uint32_t p = 0; p < j.n_planes; p++)
		if (j.plane[p].extent.pages)
			pool_release(e->tenant, &j.plane[p].extent);
	pool_unreserve(e->pool, j.reserved - j.used);
	pool_stat(e->pool, &stat);
	assert_int_equal(stat.used, 0);
	assert_int_equal(stat.reserved, 0);
	gate_free((struct gate *)(uintptr_t)j.gate);
	unstage(&st);
}

static const float edges6[] = {0.9f, 0.8f, 0.7f, 0.5f, 0.3f, 0.1f};
static const float log_edges[] = {-1, -2, -3, -4, -5, -6};

static struct block usual(void)
{
	struct block b = {
		.shape = {.layers = 4,
			.heads = 3,
			.tokens = 64,
			.k_dim = 32,
			.v_dim = 32,
			.dtype = KVG_DTYPE_BF16},
		.tokens = 64,
		.n_edges = 6,
		.input = STAGE_INPUT_SCORES,
		.ids = true,
		.page_shift = 12,
	};

	memcpy(b.edges, edges6, sizeof(edges6));
	return b;
}

static void test_dtypes_and_dims(void **state)
{
	static const uint32_t dims[][2] = {{1, 1}, {32, 32}, {128, 128}, {80, 48}, {192, 128},
		{64, 512}, {7, 5}, {4096, 4096}, {576, 1}};

	for (uint32_t dtype = KVG_DTYPE_BF16; dtype <= KVG_DTYPE_FP8_E5M2; dtype++)
		for (size_t d = 0; d < sizeof(dims) / sizeof(dims[0]); d++) {
			struct block b = usual();

			b.shape.dtype = dtype;
			b.shape.k_dim = dims[d][0];
			b.shape.v_dim = dims[d][1];
			/* runs that are not sorted, between such as end inside a line */
			b.some_ungated = dtype != KVG_DTYPE_BF16;
			pack_and_check(*state, &b);
		}
}

static void test_tokens(void **state)
{
	static const uint32_t tokens[] = {1, 2, 15, 63, 255, 256, 257, 300};

	for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++)
		for (int kind = 0; kind <= 5; kind++)
			for (uint32_t floor = 0; floor < 9; floor += 4) {
				struct block b = usual();

				b.shape.tokens = 300;
				b.tokens = tokens[i];
				b.kind = kind;
				b.floor = floor;
				b.some_ungated = floor == 4;
				if (kind == 5)
					memcpy(b.edges, log_edges, sizeof(log_edges));
				pack_and_check(*state, &b);
			}
}

static void test_inputs(void **state)
{
	for (int kind = 0; kind < 3; kind++)
		for (int hidden = 0; hidden < 2; hidden++)
			for (int ungated = 0; ungated < 2; ungated++) {
				struct block b = usual();

				b.input = STAGE_INPUT_HIDDEN;
				b.hidden_dtype = hidden ? KVG_DTYPE_F32 : KVG_DTYPE_BF16;
				b.kind = kind;
				b.some_ungated = ungated;
				b.ids_copy = hidden;
				pack_and_check(*state, &b);
			}
	for (int ids = 0; ids < 2; ids++) {
		struct block b = usual();

		b.input = STAGE_INPUT_NONE;
		b.ids = ids;
		pack_and_check(*state, &b);
		b.n_edges = 0;
		pack_and_check(*state, &b);
		b.input = STAGE_INPUT_SCORES;
		pack_and_check(*state, &b);
		b.n_edges = 7;
		b.edges[6] = 0.05f;
		pack_and_check(*state, &b);
	}
}

/* First and last tokens are the best of every run, whoever scored it and whatever it says of them. */
static void test_protected(void **state)
{
	static const uint32_t tokens[][2] = {{1, 0}, {0, 1}, {5, 9}, {64, 0}, {0, 64}, {30, 34}};

	for (size_t i = 0; i < sizeof(tokens) / sizeof(tokens[0]); i++)
		for (int input = STAGE_INPUT_NONE; input <= STAGE_INPUT_HIDDEN; input++)
			for (int ungated = 0; ungated < 2; ungated++) {
				struct block b = usual();

				b.input = (enum stage_input)input;
				b.hidden_dtype = KVG_DTYPE_F32;
				b.kind = 3 *
					ungated; /* by themselves they would be in the last plane */
				b.some_ungated = ungated;
				b.protect_first = tokens[i][0];
				b.protect_last = tokens[i][1];
				pack_and_check(*state, &b);
			}
}

static void test_opaque(void **state)
{
	static const uint64_t sizes[] = {1, 63, 64, 4095, 4096, 4097, 1000003, 5 << 20};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
		struct block b = {.shape = {.tokens = 16, .opaque_bytes = sizes[i]},
			.tokens = 16,
			.page_shift = 12,
			.ids = i & 1};

		pack_and_check(*state, &b);
	}
}

/* Pages of a block whose pairs fall into planes like this. */
static uint64_t pages_for(
	const struct kv_shape *s, uint32_t n_planes, const uint32_t *pairs, unsigned page_shift)
{
	uint64_t bytes = 0;

	for (uint32_t p = 0; p < n_planes; p++) {
		struct plane_geometry g;

		if (p > 0 && pairs[p] == 0)
			continue;
		plane_geometry(s->layers * s->heads, pairs[p], p ? 0 : s->tokens,
			(uint32_t)shape_k_row(s), (uint32_t)shape_v_row(s), 0, &g);
		bytes += (g.bytes + (1ull << page_shift) - 1) >> page_shift << page_shift;
	}
	return bytes;
}

/* The bound is never too small, however the scores fall, and not far off either. */
static void test_worst_case(void **state)
{
	struct bench *e = *state;

	for (int i = 0; i < 200000; i++) {
		struct kv_shape s = {.layers = 1 + rnd() % 4,
			.heads = 1 + rnd() % 4,
			.tokens = 1 + rnd() % 64,
			.k_dim = 1 + rnd() % 40,
			.v_dim = 1 + rnd() % 40,
			.dtype = KVG_DTYPE_FP8_E4M3};
		uint32_t pairs[KVG_PLANES_MAX] = {0}, n_planes = 1 + rnd() % KVG_PLANES_MAX;
		uint32_t left = s.layers * s.heads * s.tokens;
		/* pages far smaller than any that are used, so that nothing hides in their rounding */
		unsigned page_shift = rnd() % 8;

		for (uint32_t p = 1; p < n_planes; p++) {
			pairs[p] = rnd() % (2 * left / n_planes + 1);
			pairs[p] = pairs[p] < left ? pairs[p] : left;
			left -= pairs[p];
		}
		pairs[0] = left;
		assert_true(pages_for(&s, n_planes, pairs, page_shift) <=
			pack_worst_case(&s, n_planes - 1, page_shift));
	}
	for (int i = 0; i < 60; i++) {
		struct block b = usual();

		b.shape.layers = 1 + rnd() % 5;
		b.shape.heads = 1 + rnd() % 5;
		b.shape.tokens = b.tokens = 1 + rnd() % 200;
		b.shape.k_dim = 1 + rnd() % 70;
		b.shape.v_dim = 1 + rnd() % 70;
		b.n_edges = rnd() % 8;
		b.edges[6] = 0.02f;
		b.page_shift = 12 + rnd() % 5;
		b.kind = (int)(rnd() % 5);
		pack_and_check(e, &b); /* asserts used <= reserved */
		assert_true(pack_worst_case(&b.shape, b.n_edges, b.page_shift) <=
			shape_kv_bytes(&b.shape, b.tokens) +
				shape_runs(&b.shape) * b.tokens * 4ull + b.tokens * 4ull +
				(b.n_edges + 1) * ((1ull << b.page_shift) + 1024));
	}
}

/* Scratch for scoring is kept between blocks, but neither for longer blocks nor for another gate. */
static void test_gate_scratch(void **state)
{
	static const uint32_t tokens[] = {64, 300, 10, 299};
	struct bench *e = *state;
	struct gate *gate = fake_gate_new(1, 1, 1);

	for (int i = 0; i < 8; i++) {
		struct block b = usual();
		struct staged st;
		struct pack_job j;

		b.shape.tokens = 300;
		b.tokens = tokens[i % 4];
		b.input = STAGE_INPUT_HIDDEN;
		b.hidden_dtype = KVG_DTYPE_F32;
		b.shape.heads = 3 + (uint32_t)i / 4; /* and so another hidden size */
		stage(&b, &st);
		init_job(&b, e, &st, &j);
		fake_gate_become(gate, st.gated, b.shape.heads, st.hidden);
		j.gate = gate;
		assert_int_equal(pack_run(e->packer, &j), KVG_CODE_OK);
		check_planes(&b, &st, &j);
		assert_int_equal(fake_gate_scratches, 1);
		for (uint32_t p = 0; p < j.n_planes; p++)
			if (j.plane[p].extent.pages)
				pool_release(e->tenant, &j.plane[p].extent);
		pool_unreserve(e->pool, j.reserved - j.used);
		unstage(&st);
	}
	gate_free(gate);
}

static void test_page_shift(void **state)
{
	struct kv_shape qwen = {.layers = 36,
		.heads = 8,
		.tokens = 256,
		.k_dim = 128,
		.v_dim = 128,
		.dtype = KVG_DTYPE_BF16};
	struct kv_shape lab = {.layers = 8,
		.heads = 4,
		.tokens = 256,
		.k_dim = 32,
		.v_dim = 32,
		.dtype = KVG_DTYPE_BF16};
	struct kv_shape tiny = {.layers = 1,
		.heads = 1,
		.tokens = 1,
		.k_dim = 1,
		.v_dim = 1,
		.dtype = KVG_DTYPE_BF16};

	(void)state;
	assert_int_equal(pack_page_shift(&qwen, 7), 16);
	assert_int_equal(pack_page_shift(&lab, 1), 15);
	assert_true(
		(7u << pack_page_shift(&lab, 7)) / 2.0 <= 0.03 * (double)shape_kv_bytes(&lab, 256));
	assert_int_equal(pack_page_shift(&tiny, 8), 12);
}

static void test_bad_scores(void **state)
{
	struct bench *e = *state;
	static const float bad[] = {NAN, -INFINITY};
	struct pool_stat stat;

	for (int i = 0; i < 2; i++)
		for (int hidden = 0; hidden < 2; hidden++) {
			struct block b = usual();
			struct staged st;
			struct pack_job j;

			b.input = hidden ? STAGE_INPUT_HIDDEN : STAGE_INPUT_SCORES;
			b.hidden_dtype = KVG_DTYPE_F32;
			stage(&b, &st);
			init_job(&b, e, &st, &j);
			j.gate = hidden ? fake_gate_new(st.gated, b.shape.heads, st.hidden) : NULL;
			/* score of layer 2, head 0, token 5 */
			((float *)(st.mem +
				st.g.aux_off))[hidden ? (2 * 64 + 5) * st.hidden : 2 * 3 * 64 + 5] =
				bad[i];
			assert_int_equal(pack_run(e->packer, &j), KVG_CODE_BAD_SCORES);
			assert_non_null(strstr(j.error, "layer 2"));
			assert_int_equal(j.used, 0);
			pool_unreserve(e->pool, j.reserved);
			pool_stat(e->pool, &stat);
			assert_int_equal(stat.used + stat.reserved, 0);
			gate_free((struct gate *)(uintptr_t)j.gate);
			unstage(&st);
		}
}

static void test_wrong_gate(void **state)
{
	struct bench *e = *state;
	struct block b = usual();
	struct staged st;
	struct pack_job j;

	b.input = STAGE_INPUT_HIDDEN;
	b.hidden_dtype = KVG_DTYPE_F32;
	stage(&b, &st);
	init_job(&b, e, &st, &j);
	j.gate = fake_gate_new(st.gated, b.shape.heads + 1, st.hidden);
	assert_int_equal(pack_run(e->packer, &j), KVG_CODE_BAD_GATE);
	pool_unreserve(e->pool, j.reserved);
	gate_free((struct gate *)(uintptr_t)j.gate);
	unstage(&st);
}

/* Whichever operation of the memory below fails: nothing stays allocated, and the reservation is whole. */
static void test_allocation_fails(void **state)
{
	struct bench *e = *state;
	struct block b = usual();
	struct staged st;
	struct pool_stat stat;
	bool passed = false;

	stage(&b, &st);
	for (long n = 1; !passed; n++) {
		struct pool_tenant *old = e->tenant;
		struct pack_job j;

		assert_true(n < 50);
		assert_int_equal(pool_tenant_new(e->pool, &e->tenant), 0);
		init_job(&b, e, &st, &j);
		atomic_store(&e->fault.countdown, n);
		passed = pack_run(e->packer, &j) == KVG_CODE_OK;
		assert_true(passed || j.used == 0);
		assert_true(n > 1 || !passed);
		atomic_store(&e->fault.countdown, 0);
		pool_stat(e->pool, &stat);
		assert_int_equal(stat.used, j.used);
		assert_int_equal(stat.reserved, j.reserved - j.used);
		if (passed)
			assert_true(n > 7); /* one for each plane at least was met */
		pool_tenant_free(e->tenant);
		pool_unreserve(e->pool, j.reserved - j.used);
		e->tenant = old;
	}
	unstage(&st);
}

/* Rows at the end of the staging memory: nothing behind it is read. */
static void test_reads_no_further(void **state)
{
	struct bench *e = *state;
	struct block b = usual();
	struct staged st;
	struct pack_job j;
	uint8_t *guarded, *copy;

	b.input = STAGE_INPUT_NONE;
	b.ids = false;
	b.shape.k_dim = b.shape.v_dim = 2048 / 2; /* kv is whole pages, nothing behind it */
	stage(&b, &st);
	assert_int_equal(st.g.kv_bytes % 4096, 0);
	guarded = mmap(NULL, st.g.kv_bytes + 4096, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_int_equal(mprotect(guarded + st.g.kv_bytes, 4096, PROT_NONE), 0);
	memcpy(guarded, st.mem, st.g.kv_bytes);
	init_job(&b, e, &st, &j);
	copy = st.mem;
	j.stage = guarded;
	assert_int_equal(pack_run(e->packer, &j), KVG_CODE_OK);
	check_planes(&b, &st, &j);
	for (uint32_t p = 0; p < j.n_planes; p++)
		if (j.plane[p].extent.pages)
			pool_release(e->tenant, &j.plane[p].extent);
	pool_unreserve(e->pool, j.reserved - j.used);
	st.mem = copy;
	munmap(guarded, st.g.kv_bytes + 4096);
	unstage(&st);
}

int main(void)
{
	const struct CMUnitTest by_kernels[] = {
		cmocka_unit_test_setup_teardown(test_dtypes_and_dims, setup, teardown),
		cmocka_unit_test_setup_teardown(test_tokens, setup, teardown),
		cmocka_unit_test_setup_teardown(test_protected, setup, teardown),
		cmocka_unit_test_setup_teardown(test_opaque, setup, teardown),
		cmocka_unit_test_setup_teardown(test_reads_no_further, setup, teardown),
	};
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_inputs, setup, teardown),
		cmocka_unit_test_setup_teardown(test_worst_case, setup, teardown),
		cmocka_unit_test_setup_teardown(test_gate_scratch, setup, teardown),
		cmocka_unit_test(test_page_shift),
		cmocka_unit_test_setup_teardown(test_bad_scores, setup, teardown),
		cmocka_unit_test_setup_teardown(test_wrong_gate, setup, teardown),
		cmocka_unit_test_setup_teardown(test_allocation_fails, setup, teardown),
	};
	int failed = 0;

	for (unsigned n = 0; (kernels = pack_kernels_best(n)); n++)
		failed += cmocka_run_group_tests_name(kernels->name, by_kernels, NULL, NULL);
	kernels = pack_kernels_best(0);
	return failed + cmocka_run_group_tests(tests, NULL, NULL);
}
