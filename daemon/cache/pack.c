/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block is packed in three steps:
 *
 *   order   every gated (layer, head): score, sort; where the bands end in it (`cut`)
 *   size    the planes' pairs are known now: an extent each
 *   write   cu | ids | index | score of each plane, then K of all runs, then V: the source is read in its own
 *           order, once, while each plane's rows go to where that plane has come to
 *
 * and sealed with the header last. A run that is not gated needs no keys: it is in plane 0 as it stands.
 */
#include "daemon/cache/pack.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/pack_kernels.h"
#include "daemon/cache/pack_order.h"
#include "daemon/cache/pack_sink.h"
#include "proto/plane.h"

#define SCRATCH_KEPT (64u << 20) /* more than this is given back after the block that needed it */

struct scratch {
	void *p;
	size_t bytes;
};

struct packer {
	struct sink sink[KVG_PLANES_MAX];
	const struct pack_kernels *kernels;
	struct scratch keys; /* u32 [runs][tokens] */
	struct scratch cut; /* u16 [runs][planes]: pairs of the run in this plane and better ones */
	struct scratch scores; /* f32 [heads][tokens] of one layer */
	struct scratch sort;   /* u32 [tokens] */
	struct gate_scratch *gate_scratch;
	const struct gate *gate; /* that gate_scratch is for, by identity and digest */
	uint8_t gate_digest[32];
	uint32_t gate_tokens;
};

/* What pack_run() works on besides the job. */
struct pack {
	struct pack_job *job;
	struct packer *packer;
	uint32_t tokens, heads, runs, n_planes;
	size_t k_row, v_row;
	uint32_t *keys;
	uint16_t *cut;
	struct plane_geometry geometry[KVG_PLANES_MAX];
};

int packer_new(struct packer **ret)
{
	struct packer *p = aligned_alloc(_Alignof(struct packer), sizeof(*p));

	if (!p)
		return -ENOMEM;
	memset(p, 0, sizeof(*p));
	p->kernels = pack_kernels_best();
	*ret = p;
	return 0;
}

static void drop(struct scratch *s)
{
	free(s->p);
	*s = (struct scratch){0};
}

void packer_set_kernels(struct packer *p, const struct pack_kernels *kernels)
{
	p->kernels = kernels;
}

struct packer *packer_free(struct packer *p)
{
	if (!p)
		return NULL;
	drop(&p->keys);
	drop(&p->cut);
	drop(&p->scores);
	drop(&p->sort);
	gate_scratch_free(p->gate_scratch);
	free(p);
	return NULL;
}

/* Old contents are not kept. */
static bool grow(struct scratch *s, size_t bytes)
{
	if (s->bytes >= bytes)
		return true;
	drop(s);
	s->p = malloc(bytes);
	s->bytes = s->p ? bytes : 0;
	return s->p;
}

__attribute__((format(printf, 3, 4))) static int fail(
	struct pack_job *j, int code, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(j->error, sizeof(j->error), fmt, ap);
	va_end(ap);
	return code;
}

/* ---- order --------------------------------------------------------------------------------- */

/* Index of the layer among those the gate scores; UINT32_MAX: the layer is not gated. */
static uint32_t gated(const struct pack_job *j, uint32_t layer)
{
	if (j->input == STAGE_INPUT_NONE)
		return UINT32_MAX;
	return j->layer_gate ? j->layer_gate[layer] : layer;
}

static int prepare_gate(struct pack *k)
{
	struct pack_job *j = k->job;
	struct packer *p = k->packer;
	const struct gate_info *info = gate_info(j->gate);

	if (info->heads != k->heads)
		return fail(j, KVG_CODE_BAD_GATE, "the gate scores %u heads, the layout has %u",
			info->heads, k->heads);
	if (p->gate_scratch && p->gate == j->gate && p->gate_tokens >= k->tokens &&
		!memcmp(p->gate_digest, info->digest, sizeof(p->gate_digest)))
		return KVG_CODE_OK;
	p->gate_scratch = gate_scratch_free(p->gate_scratch);
	if (gate_scratch_new(j->gate, k->tokens, &p->gate_scratch) < 0) {
		p->gate_scratch = NULL;
		return fail(j, KVG_CODE_NO_MEMORY, "no memory to score with");
	}
	p->gate = j->gate;
	p->gate_tokens = k->tokens;
	memcpy(p->gate_digest, info->digest, sizeof(p->gate_digest));
	return KVG_CODE_OK;
}

/* Scores of a layer, [heads][tokens], copied out of the client's reach or computed. */
static void layer_scores(struct pack *k, uint32_t layer, uint32_t gate_layer, float *ret)
{
	const struct pack_job *j = k->job;
	const uint8_t *aux = j->stage + j->geometry.aux_off;
	size_t n = (size_t)k->heads * k->tokens;

	if (j->input == STAGE_INPUT_SCORES) {
		memcpy(ret, aux + layer * n * sizeof(float), n * sizeof(float));
	} else {
		uint32_t hidden = gate_info(j->gate)->hidden;
		size_t x = (size_t)k->tokens * hidden * dtype_bytes(j->hidden_dtype);

		gate_score(j->gate, gate_layer, aux + gate_layer * x, j->hidden_dtype, hidden,
			k->tokens, j->arithmetic, GATE_ISA_AUTO, k->packer->gate_scratch, ret,
			k->tokens);
	}
}

/* Where the bands end in a sorted run. */
static void cut_run(const struct pack_job *j, const uint32_t *keys, uint32_t tokens,
	uint32_t n_planes, const uint32_t *bound, uint16_t *ret)
{
	uint32_t at = j->floor_pairs < tokens ? j->floor_pairs : tokens;

	for (uint32_t p = 0; p + 1 < n_planes; p++) {
		uint32_t end = order_count(keys, tokens, bound[p]);

		at = end > at ? end : at;
		ret[p] = (uint16_t)at;
	}
	ret[n_planes - 1] = (uint16_t)tokens;
}

static int order_layer(struct pack *k, uint32_t layer, const uint32_t *bound)
{
	struct pack_job *j = k->job;
	uint32_t gate_layer = gated(j, layer), first = layer * k->heads;
	const struct pack_kernels *kernels = k->packer->kernels;
	float *scores = k->packer->scores.p;

	if (gate_layer == UINT32_MAX) {
		for (size_t i = 0; i < (size_t)k->heads * k->n_planes; i++)
			k->cut[(size_t)first * k->n_planes + i] = (uint16_t)k->tokens;
		return KVG_CODE_OK;
	}
	layer_scores(k, layer, gate_layer, scores);
	for (uint32_t h = 0; h < k->heads; h++) {
		uint32_t *keys = k->keys + (size_t)(first + h) * k->tokens;

		if (!kernels->keys(scores + (size_t)h * k->tokens, k->tokens, keys))
			return fail(j, KVG_CODE_BAD_SCORES,
				"%s of layer %u, head %u: NaN or -inf among them",
				j->input == STAGE_INPUT_SCORES ? "scores" : "the gate's scores",
				layer, h);
		kernels->sort(keys, k->tokens, k->packer->sort.p);
		cut_run(j, keys, k->tokens, k->n_planes, bound,
			k->cut + (size_t)(first + h) * k->n_planes);
	}
	return KVG_CODE_OK;
}

static int order(struct pack *k)
{
	struct pack_job *j = k->job;
	struct packer *p = k->packer;
	size_t pairs = (size_t)k->runs * k->tokens;
	uint32_t bound[KVG_PLANES_MAX];
	int code = KVG_CODE_OK;

	if (!grow(&p->cut, (size_t)k->runs * k->n_planes * sizeof(*k->cut)) ||
		(j->input != STAGE_INPUT_NONE &&
			(!grow(&p->keys, pairs * sizeof(*k->keys)) ||
				!grow(&p->sort, k->tokens * 4u) ||
				!grow(&p->scores, (size_t)k->heads * k->tokens * sizeof(float)))))
		return fail(j, KVG_CODE_NO_MEMORY, "no memory to sort in");
	k->keys = p->keys.p;
	k->cut = p->cut.p;
	for (uint32_t i = 0; i < j->n_edges; i++)
		bound[i] = order_bound(j->edges[i]);
	if (j->input == STAGE_INPUT_HIDDEN)
		code = prepare_gate(k);
	for (uint32_t l = 0; l < j->shape->layers && code == KVG_CODE_OK; l++)
		code = order_layer(k, l, bound);
	return code;
}

/* ---- size ---------------------------------------------------------------------------------- */

static uint32_t run_begin(const struct pack *k, uint32_t run, uint32_t plane)
{
	return plane ? k->cut[(size_t)run * k->n_planes + plane - 1] : 0;
}

static uint32_t run_pairs(const struct pack *k, uint32_t run, uint32_t plane)
{
	return k->cut[(size_t)run * k->n_planes + plane] - run_begin(k, run, plane);
}

/* The keys of a run's pairs in a plane; NULL: as the tokens come. */
static const uint32_t *run_keys(const struct pack *k, uint32_t run, uint32_t plane)
{
	if (gated(k->job, run / k->heads) == UINT32_MAX)
		return NULL;
	return k->keys + (size_t)run * k->tokens + run_begin(k, run, plane);
}

static void count(struct pack *k)
{
	struct pack_job *j = k->job;
	const struct pack_kernels *kernels = k->packer->kernels;
	double mass[KVG_PLANES_MAX] = {0}, sum = 0;
	/* Log scores (KVzap) reach below 0, and so does the edge of their last band. */
	bool log_scores = j->n_edges && j->edges[j->n_edges - 1] < 0;

	for (uint32_t r = 0; r < k->runs; r++)
		for (uint32_t p = 0; p < k->n_planes; p++) {
			const uint32_t *keys = run_keys(k, r, p);
			uint32_t n = run_pairs(k, r, p);

			j->plane[p].pairs += n;
			if (!keys)
				mass[p] += n;
			else
				mass[p] += log_scores ? order_log_mass(keys, n)
						      : kernels->mass(keys, n);
		}
	for (uint32_t p = 0; p < k->n_planes; p++)
		sum += mass[p];
	for (uint32_t p = 0; p < k->n_planes; p++)
		j->plane[p].mass = sum > 0
			? (float)(mass[p] / sum)
			: (float)j->plane[p].pairs / ((float)k->runs * (float)k->tokens);
}

/* Plane 0 is always there: it says which block this is. */
static bool present(const struct pack_job *j, uint32_t plane)
{
	return plane == 0 || j->plane[plane].pairs;
}

static void release_all(struct pack_job *j)
{
	for (uint32_t p = 0; p < j->n_planes; p++) {
		if (j->plane[p].extent.pages)
			pool_release_reserved(j->pool, &j->plane[p].extent);
		j->plane[p].extent = (struct extent){0};
	}
	j->used = 0;
}

static int allocate(struct pack *k)
{
	struct pack_job *j = k->job;

	for (uint32_t p = 0; p < k->n_planes; p++) {
		struct extent *e = &j->plane[p].extent;
		int r;

		if (!present(j, p))
			continue;
		plane_geometry(k->runs, j->plane[p].pairs, p == 0 && j->token_ids ? k->tokens : 0,
			(uint32_t)k->k_row, (uint32_t)k->v_row, j->shape->opaque_bytes,
			&k->geometry[p]);
		j->plane[p].bytes = k->geometry[p].bytes;
		r = pool_alloc_reserved(j->pool, j->plane[p].bytes, j->page_shift, e);
		if (r < 0) {
			release_all(j);
			if (r == -ENOMEM)
				return fail(j, KVG_CODE_NO_MEMORY,
					"the machine has no memory for the block");
			return fail(j, KVG_CODE_NO_SPACE, "no room for a plane of %llu bytes: %s",
				(unsigned long long)k->geometry[p].bytes, strerror(-r));
		}
		j->used += extent_bytes(e);
	}
	return KVG_CODE_OK;
}

/* ---- write --------------------------------------------------------------------------------- */

static void write_cu(struct pack *k, struct sink *s, uint32_t plane)
{
	uint32_t at = 0, n;

	for (uint32_t r = 0; r < k->runs + 1;) {
		uint32_t *cu = sink_room(s, sizeof(*cu), k->runs + 1 - r, &n);

		for (uint32_t i = 0; i < n; i++, r++) {
			cu[i] = at;
			at += r < k->runs ? run_pairs(k, r, plane) : 0;
		}
		sink_put(s, n * sizeof(*cu));
	}
	sink_align(s);
}

/* Token index, or score, of every pair of a plane. */
static void write_u16(struct pack *k, struct sink *s, uint32_t plane, bool score)
{
	const struct pack_kernels *kernels = k->packer->kernels;

	for (uint32_t r = 0; r < k->runs; r++) {
		const uint32_t *keys = run_keys(k, r, plane);
		uint32_t pairs = run_pairs(k, r, plane), n;

		for (uint32_t done = 0; done < pairs; done += n) {
			uint16_t *to = sink_room(s, sizeof(*to), pairs - done, &n);

			if (!keys)
				for (uint32_t i = 0; i < n; i++)
					to[i] = score ? KVG_SCORE_PROTECTED : (uint16_t)(done + i);
			else if (score)
				kernels->scores(keys + done, n, to);
			else
				kernels->tokens(keys + done, n, to);
			sink_put(s, n * sizeof(*to));
		}
	}
	sink_align(s);
}

static void write_ids(struct pack *k, struct sink *s)
{
	const struct pack_job *j = k->job;

	if (!j->token_ids)
		return;
	if (j->ids)
		sink_bytes(s, j->ids, (size_t)k->tokens * sizeof(*j->ids));
	else
		sink_bytes(
			s, j->stage + j->geometry.tokens_off, (size_t)k->tokens * sizeof(*j->ids));
	sink_align(s);
}

/* Where a run's K rows (V rows) lie in staging. */
static const uint8_t *run_rows(const struct pack *k, uint32_t run, bool v)
{
	size_t k_bytes = k->k_row * k->tokens, v_bytes = k->v_row * k->tokens; /* of one run */
	uint32_t layer = run / k->heads, head = run % k->heads;
	const uint8_t *rows =
		k->job->stage + k->job->geometry.kv_off + layer * k->heads * (k_bytes + v_bytes);

	return v ? rows + k->heads * k_bytes + head * v_bytes : rows + head * k_bytes;
}

/* K rows (or V rows) of all runs, each to its plane; the next run's are fetched meanwhile. */
static void write_rows(struct pack *k, bool v)
{
	size_t row = v ? k->v_row : k->k_row;

	for (uint32_t r = 0; r < k->runs; r++) {
		const uint8_t *base = run_rows(k, r, v), *next = NULL;

		if (r + 1 < k->runs)
			next = run_rows(k, r + 1, v);
		for (uint32_t p = 0; p < k->n_planes; p++)
			sink_rows(&k->packer->sink[p], base, row, run_keys(k, r, p),
				run_pairs(k, r, p), next ? next + run_begin(k, r, p) * row : NULL);
	}
	for (uint32_t p = 0; p < k->n_planes; p++)
		sink_align(&k->packer->sink[p]);
}

static void write_header(struct pack *k, uint32_t plane, uint32_t body_crc)
{
	const struct pack_job *j = k->job;
	uint64_t opaque = j->shape->opaque_bytes;
	uint8_t *to = j->plane[plane].extent.addr;
	struct kvg_plane_header h = {
		.magic = KVG_PLANE_MAGIC,
		.version = KVG_SHM_VERSION,
		.plane = (uint16_t)plane,
		.n_planes = (uint16_t)k->n_planes,
		.flags = opaque ? KVG_PLANE_OPAQUE : 0,
		.key = *j->key,
		.runs = k->runs,
		.tokens = k->tokens,
		.pairs = j->plane[plane].pairs,
		.n_token_ids = plane == 0 && j->token_ids ? k->tokens : 0,
		.k_row = opaque ? (uint32_t)opaque : (uint32_t)k->k_row,
		.v_row = opaque ? (uint32_t)(opaque >> 32) : (uint32_t)k->v_row,
		.bytes = k->geometry[plane].bytes,
		.body_crc = body_crc,
	};

	memcpy(h.fingerprint, j->fingerprint, sizeof(h.fingerprint));
	plane_header_seal(&h);
	memcpy(to, &h, sizeof(h));
	memset(to + sizeof(h), 0, KVG_PLANE_HEADER_BYTES - sizeof(h));
}

static void write_planes(struct pack *k)
{
	struct pack_job *j = k->job;
	struct sink *sink = k->packer->sink;

	for (uint32_t p = 0; p < k->n_planes; p++) {
		if (!present(j, p))
			continue;
		sink_open(&sink[p], k->packer->kernels,
			(uint8_t *)j->plane[p].extent.addr + KVG_PLANE_HEADER_BYTES);
		if (k->runs)
			write_cu(k, &sink[p], p);
		if (p == 0)
			write_ids(k, &sink[p]);
		write_u16(k, &sink[p], p, false);
		write_u16(k, &sink[p], p, true);
	}
	if (j->shape->opaque_bytes) {
		sink_bytes(&sink[0], j->stage + j->geometry.kv_off, j->shape->opaque_bytes);
		sink_align(&sink[0]);
	} else {
		write_rows(k, false);
		write_rows(k, true);
	}
	for (uint32_t p = 0; p < k->n_planes; p++)
		if (present(j, p))
			write_header(k, p, sink_close(&sink[p]));
	k->packer->kernels->store_end();
}

/* ---- the whole ----------------------------------------------------------------------------- */

int pack_run(struct packer *p, struct pack_job *j)
{
	bool opaque = j->shape->opaque_bytes;
	struct pack k = {
		.job = j,
		.packer = p,
		.tokens = j->tokens,
		.heads = j->shape->heads,
		.runs = opaque ? 0 : shape_runs(j->shape),
		.n_planes = opaque ? 1 : j->n_edges + 1,
		.k_row = opaque ? 0 : shape_k_row(j->shape),
		.v_row = opaque ? 0 : shape_v_row(j->shape),
	};
	int code = KVG_CODE_OK;

	assert(j->n_edges < KVG_PLANES_MAX && j->tokens > 0 && j->tokens <= j->shape->tokens);
	memset(j->plane, 0, sizeof(j->plane));
	j->n_planes = k.n_planes;
	j->used = 0;
	j->error[0] = '\0';
	if (opaque) {
		j->plane[0].mass = 1;
	} else {
		code = order(&k);
		if (code == KVG_CODE_OK)
			count(&k);
	}
	if (code == KVG_CODE_OK)
		code = allocate(&k);
	if (code == KVG_CODE_OK)
		write_planes(&k);
	if (p->keys.bytes > SCRATCH_KEPT)
		drop(&p->keys);
	return code;
}

uint64_t pack_worst_case(const struct kv_shape *s, uint32_t n_edges, unsigned page_shift)
{
	const uint64_t page = 1ull << page_shift;
	uint64_t runs = s->opaque_bytes ? 0 : shape_runs(s), pairs = runs * s->tokens;
	uint64_t planes = s->opaque_bytes ? 1 : n_edges + 1;
	struct plane_geometry g;
	uint64_t bytes;

	/* Of an empty plane: header and cu; then every pair, as if packed without gaps; then the gaps and the last page. */
	plane_geometry((uint32_t)runs, 0, 0, 0, 0, s->opaque_bytes, &g);
	bytes = g.bytes * planes + pairs * (2 + 2 + shape_k_row(s) + shape_v_row(s));
	bytes += (uint64_t)s->tokens * 4 + KVG_PLANE_ALIGN;
	bytes += planes * (4 * (KVG_PLANE_ALIGN - 1) + page - 1);
	return bytes & ~(page - 1);
}

unsigned pack_page_shift(const struct kv_shape *s, uint32_t n_planes)
{
	uint64_t bytes = shape_kv_bytes(s, s->tokens);
	unsigned shift = __builtin_ctz(KVG_PAGE_DEFAULT);

	/* half a page a plane at most 3 % of the block */
	while ((1u << shift) > KVG_PAGE_MIN && ((uint64_t)n_planes << shift) * 100 > bytes * 2 * 3)
		shift--;
	return shift;
}

bool pack_tokens_equal(const void *plane0, uint64_t avail, const uint32_t *tokens, uint32_t n)
{
	struct plane_view v;

	return plane_open(plane0, avail, &v) == 0 && v.n_token_ids == n &&
		!memcmp(v.ids, tokens, (size_t)n * sizeof(*tokens));
}
