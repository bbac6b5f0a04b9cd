/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block is packed in three steps:
 *
 *	order	every gated (layer, head): score, sort, and where the bands end in it (`cut`)
 *	size	the planes' pairs are known now: an extent each
 *	write	pack_write.c
 *
 * A run that is not gated needs no keys: it is in plane 0 as it stands.
 */
#include "daemon/cache/pack.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/cache/pack_order.h"
#include "daemon/cache/pack_private.h"

#define SCRATCH_KEPT (64u << 20) /* more than this is given back after the block that needed it */
#define CORE_CACHE   (2u << 20)  /* where the system does not tell */

/*
 * Twice a core's own cache: of more than that, read and written, nothing is left there for who reads it next, and lines
 * need not be fetched only to be overwritten.
 */
static uint64_t stream_from(void)
{
	long bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);

	return 2 * (bytes > 0 ? (uint64_t)bytes : CORE_CACHE);
}

int packer_new(struct packer **ret)
{
	struct packer *p = aligned_alloc(_Alignof(struct packer), sizeof(*p));

	if (!p)
		return -ENOMEM;
	memset(p, 0, sizeof(*p));
	p->kernels = pack_kernels_best(0);
	p->stream_from = stream_from();
	*ret = p;
	return 0;
}

void packer_set_kernels(struct packer *p, const struct pack_kernels *kernels)
{
	p->kernels = kernels;
}

static void drop(struct scratch *s)
{
	free(s->p);
	*s = (struct scratch){0};
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
			if (r != -ENOSPC && r != -EFBIG)
				return fail(j, KVG_CODE_INTERNAL,
					"the kernel gave no memory for the block: %s",
					strerror(-r));
			return fail(j, KVG_CODE_NO_SPACE, "no room for a plane of %llu bytes",
				(unsigned long long)k->geometry[p].bytes);
		}
		j->used += extent_bytes(e);
	}
	return KVG_CODE_OK;
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
		pack_write(&k);
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
