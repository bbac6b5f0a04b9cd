/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/gpu/planes.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "tests/gpu/random.h"

/* Cuts `tokens` into n counts: near `share`, or anywhere; and each an eighth more or less. */
static void cut(uint32_t tokens, const float *share, uint32_t n, uint64_t *state, uint32_t *ret)
{
	uint32_t left = tokens;

	for (uint32_t i = 0; i < n; i++) {
		const float want = share
			? share[i] * (float)tokens * (1.0f + rig_uniform(state) / 8)
			: (float)rig_below(state, left + 1);
		const uint32_t count = (uint32_t)(want + (float)rig_below(state, 1000) * .001f);

		ret[i] = i == n - 1 || count > left ? left : count;
		left -= ret[i];
	}
}

static void place(struct planes *p)
{
	p->bytes = 0;
	for (uint32_t i = 0; i < p->n; i++) {
		p->at[i].pages = (p->at[i].view.bytes + PLANES_PAGE - 1) / PLANES_PAGE;
		p->at[i].offset = p->bytes;
		p->bytes += p->at[i].pages * PLANES_PAGE;
	}
}

static void init_block(struct planes *p, uint32_t b, const float *share, uint64_t *state)
{
	const struct planes_shape *s = &p->shape;
	const uint32_t runs = s->layers * s->heads, from = b * s->block;
	const uint32_t tokens = s->tokens - from < s->block ? s->tokens - from : s->block;
	uint32_t *const cu = p->cu + (size_t)b * s->n_planes * (runs + 1);
	uint32_t count[KVG_PLANES_MAX];

	for (uint32_t r = 0; r < runs; r++) {
		cut(tokens, share ? share + (size_t)r * s->n_planes : NULL, s->n_planes, state,
			count);
		for (uint32_t i = 0; i < s->n_planes; i++)
			cu[i * (runs + 1) + r + 1] = cu[i * (runs + 1) + r] + count[i];
	}
	for (uint32_t i = 0; i < s->n_planes; i++) {
		struct plane_view *v = &p->at[b * s->n_planes + i].view;
		struct plane_geometry g;

		*v = (struct plane_view){.plane = i, .runs = runs, .tokens = tokens};
		v->pairs = cu[i * (runs + 1) + runs];
		v->n_token_ids = i ? 0 : tokens;
		v->k_row = v->v_row = s->dim * 2;
		v->cu = cu + i * (runs + 1);
		plane_geometry(runs, v->pairs, v->n_token_ids, v->k_row, v->v_row, 0, &g);
		v->bytes = g.bytes;
	}
}

void planes_init(
	struct planes *p, const struct planes_shape *shape, const float *share, uint64_t seed)
{
	const uint32_t blocks = (shape->tokens + shape->block - 1) / shape->block;
	const uint32_t runs = shape->layers * shape->heads;
	uint64_t state = rig_seed(seed);

	*p = (struct planes){.shape = *shape, .n = blocks * shape->n_planes};
	assert(shape->n_planes <= KVG_PLANES_MAX);
	p->at = calloc(p->n, sizeof(*p->at));
	p->cu = calloc((size_t)p->n * (runs + 1), sizeof(*p->cu));
	assert(p->at && p->cu);
	for (uint32_t b = 0; b < blocks; b++)
		init_block(p, b, share, &state);
	place(p);
}

void planes_fini(struct planes *p)
{
	free(p->at);
	free(p->cu);
	*p = (struct planes){0};
}

void planes_shuffle(struct planes *p, uint64_t seed)
{
	uint64_t state = rig_seed(seed), bytes = 0;
	uint32_t *order = malloc(p->n * sizeof(*order));

	assert(order);
	for (uint32_t i = 0; i < p->n; i++) {
		const uint32_t j = rig_below(&state, i + 1);

		order[i] = order[j];
		order[j] = i;
	}
	for (uint32_t i = 0; i < p->n; i++) {
		struct planes_one *one = &p->at[order[i]];

		bytes += rig_below(&state, 3) * PLANES_PAGE;
		one->offset = bytes;
		bytes += one->pages * PLANES_PAGE;
	}
	p->bytes = bytes;
	free(order);
}

void planes_random(void *to, uint64_t n, uint32_t dtype, float scale, uint64_t seed)
{
	uint64_t state = rig_seed(seed);
	uint16_t *at = to;

	for (uint64_t i = 0; i < n; i++) {
		const float x = rig_uniform(&state) * scale;

		at[i] = dtype == KVG_DTYPE_BF16 ? bf16_from_f32(x) : f16_from_f32(x);
	}
}

static struct kvg_plane_header header_of(const struct planes *p, uint32_t i)
{
	const struct plane_view *v = &p->at[i].view;
	struct kvg_plane_header h = {.version = KVG_SHM_VERSION,
		.plane = v->plane,
		.n_planes = p->shape.n_planes,
		.runs = v->runs,
		.tokens = v->tokens,
		.pairs = v->pairs,
		.n_token_ids = v->n_token_ids,
		.k_row = v->k_row,
		.v_row = v->v_row,
		.bytes = v->bytes};

	memcpy(h.magic, KVG_PLANE_MAGIC, sizeof(h.magic));
	plane_header_seal(&h);
	return h;
}

uint64_t planes_head(const struct planes *p, uint32_t i, void *ret, uint64_t room)
{
	const struct plane_view *v = &p->at[i].view;
	const struct kvg_plane_header h = header_of(p, i);
	const uint64_t cu_bytes = ((uint64_t)v->runs + 1) * 4;

	assert(sizeof(h) + cu_bytes <= room);
	memcpy(ret, &h, sizeof(h));
	memcpy((char *)ret + KVG_PLANE_HEADER_BYTES, v->cu, cu_bytes);
	return KVG_PLANE_HEADER_BYTES + cu_bytes;
}

void planes_fill(const struct planes *p, void *region, uint64_t seed)
{
	for (uint32_t i = 0; i < p->n; i++) {
		const struct plane_view *v = &p->at[i].view;
		struct plane_geometry g;
		struct kvg_plane_header h;
		char *at = (char *)region + p->at[i].offset;

		plane_geometry(v->runs, v->pairs, v->n_token_ids, v->k_row, v->v_row, 0, &g);
		memset(at, 0, v->bytes);
		planes_head(p, i, at, v->bytes);
		planes_random(at + g.k_off, (uint64_t)v->pairs * p->shape.dim, p->shape.dtype, 1.0f,
			seed + 2 * i);
		planes_random(at + g.v_off, (uint64_t)v->pairs * p->shape.dim, p->shape.dtype, 1.0f,
			seed + 2 * i + 1);
		memcpy(&h, at, sizeof(h));
		h.body_crc =
			crc32c(0, at + KVG_PLANE_HEADER_BYTES, v->bytes - KVG_PLANE_HEADER_BYTES);
		plane_header_seal(&h);
		memcpy(at, &h, sizeof(h));
	}
}

void planes_plan(const struct planes *p, uint64_t region, uint32_t layer, uint32_t n_planes,
	const uint32_t *keep, struct attend_plan *plan)
{
	for (uint32_t i = 0; i < p->n; i++) {
		const uint32_t *of_plane = keep ? keep + (size_t)i * p->shape.heads : NULL;
		int r;

		if (p->at[i].view.plane >= n_planes)
			continue;
		r = attend_plan_plane(
			plan, &p->at[i].view, region + p->at[i].offset, layer, of_plane);
		assert(r == 0);
	}
}

void planes_skew(float share[PLANES_SKEW_LAYERS * 8][7])
{
	static const float best[PLANES_SKEW_KEPT] = {1 / 6.0f, 1 / 6.0f, 1 / 3.0f, 1 / 3.0f};
	static const float rest[3] = {.20f / .70f, .25f / .70f, .25f / .70f};

	/* Two thirds of the heads keep 3 %; the others .84, so that all together keep .3. */
	for (int run = 0; run < PLANES_SKEW_LAYERS * 8; run++) {
		const float kept = run % 3 == 1 ? .84f : .03f;

		for (int i = 0; i < 7; i++)
			share[run][i] = i < PLANES_SKEW_KEPT ? kept * best[i]
							     : (1.0f - kept) * rest[i - 4];
	}
}
