/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planes back into the two forms that kernels without ragged runs want. Dense scatters every row to its token's
 * place; flat appends runs, which are contiguous in a plane, one memcpy each for K and V.
 *
 * A run is taken as cu says only after it was held against the plane's pairs, a token index only after it was
 * held against the block's tokens: a damaged plane gives -EBADMSG, never a write outside dst.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/plane.h"

/* Run r of a plane: first pair and number of pairs. */
static int run_of(const struct plane_view *v, uint32_t r, uint32_t *ret_at, uint32_t *ret_n)
{
	uint32_t at = v->cu[r], end = v->cu[r + 1];

	if (at > end || end > v->pairs || end - at > v->tokens)
		return -EBADMSG;
	*ret_at = at;
	*ret_n = end - at;
	return 0;
}

static int bad_plane(struct kvg_client *c, unsigned plane)
{
	return client_fail(c, -EBADMSG, KVG_CODE_CORRUPT,
		"plane %u has runs that cannot be; purge the block", plane);
}

static int refuse_opaque(struct kvg_layout *l)
{
	if (!l->shape.opaque_bytes)
		return 0;
	return client_fail(
		l->client, -EINVAL, 0, "opaque blocks have no pairs; read them with kvg_planes()");
}

/* Rows to the places their tokens have in [tokens][row]. Fixed sizes let the compiler keep rows in registers. */
static int scatter(uint8_t *dst, const uint8_t *src, const uint16_t *index, uint32_t n,
	uint32_t tokens, size_t row)
{
#define SCATTER(bytes)                                                                             \
	for (uint32_t i = 0; i < n; i++) {                                                         \
		uint32_t t = index[i];                                                             \
		if (t >= tokens)                                                                   \
			return -EBADMSG;                                                           \
		memcpy(dst + t * (bytes), src + i * (bytes), bytes);                               \
	}                                                                                          \
	return 0
	switch (row) {
	case 64:
		SCATTER((size_t)64);
	case 128:
		SCATTER((size_t)128);
	case 256:
		SCATTER((size_t)256);
	default:
		SCATTER(row);
	}
#undef SCATTER
}

static int dense_plane(
	const struct kvg_layout *l, const struct plane_view *v, uint8_t *dst, uint8_t *present)
{
	const size_t k_head = (size_t)v->tokens * l->k_row, v_head = (size_t)v->tokens * l->v_row;
	const uint32_t heads = l->shape.heads;
	const size_t layer_bytes = heads * (k_head + v_head);

	for (uint32_t r = 0; r < l->runs; r++) {
		uint8_t *layer = dst + r / heads * layer_bytes;
		uint32_t at, n, h = r % heads;

		if (run_of(v, r, &at, &n) < 0 ||
			scatter(layer + h * k_head, v->k + (size_t)at * l->k_row, v->index + at, n,
				v->tokens, l->k_row) < 0 ||
			scatter(layer + heads * k_head + h * v_head, v->v + (size_t)at * l->v_row,
				v->index + at, n, v->tokens, l->v_row) < 0)
			return -EBADMSG;
		for (uint32_t i = 0; present && i < n; i++) {
			uint32_t t = v->index[at + i];

			if (t < v->tokens)
				present[(size_t)r * v->tokens + t] = 1;
		}
	}
	return 0;
}

int kvg_gather_dense(struct kvg_layout *l, const struct kvg_pin *pin, void *dst, size_t dst_bytes,
	uint8_t *ret_present)
{
	struct plane_view v[KVG_PLANES_MAX];
	unsigned bits;
	int r = refuse_opaque(l);

	if (r == 0)
		r = pin_views(l, pin, v, &bits);
	if (r < 0)
		return r;
	if (dst_bytes < shape_kv_bytes(&l->shape, pin->tokens))
		return client_fail(l->client, -ENOSPC, 0,
			"a block of %u tokens takes %llu bytes, not %zu", pin->tokens,
			(unsigned long long)shape_kv_bytes(&l->shape, pin->tokens), dst_bytes);
	if (ret_present)
		memset(ret_present, 0, (size_t)l->runs * pin->tokens);
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++)
		if ((bits >> p & 1) && dense_plane(l, &v[p], dst, ret_present) < 0)
			return bad_plane(l->client, p);
	return 0;
}

/* ---- flat ---- */

struct flat {
	uint8_t *k, *v;
	uint32_t *positions;
	const uint32_t *end; /* [runs] first row behind each run */
	uint32_t *at;        /* [runs] next row to fill */
};

/* Adds the lengths of one plane's runs to count[runs]. */
static int count_runs(const struct plane_view *v, uint64_t *count)
{
	for (uint32_t r = 0; r < v->runs; r++) {
		uint32_t at, n;

		if (run_of(v, r, &at, &n) < 0)
			return -EBADMSG;
		count[r] += n;
	}
	return 0;
}

static int append_runs(const struct kvg_layout *l, const struct plane_view *v, uint32_t first_token,
	const struct flat *f)
{
	for (uint32_t r = 0; r < v->runs; r++) {
		uint32_t at, n, to = f->at[r];

		if (run_of(v, r, &at, &n) < 0 || n > f->end[r] - to)
			return -EBADMSG;
		memcpy(f->k + (size_t)to * l->k_row, v->k + (size_t)at * l->k_row,
			(size_t)n * l->k_row);
		memcpy(f->v + (size_t)to * l->v_row, v->v + (size_t)at * l->v_row,
			(size_t)n * l->v_row);
		for (uint32_t i = 0; f->positions && i < n; i++)
			f->positions[to + i] = first_token + v->index[at + i];
		f->at[r] = to + n;
	}
	return 0;
}

/* Runs fn over every plane of every block, in order. */
static int each_plane(struct kvg_layout *l, const struct kvg_pin *pins, size_t n,
	int (*fn)(void *userdata, const struct plane_view *v, uint32_t first_token), void *userdata)
{
	uint32_t first_token = 0;

	for (size_t i = 0; i < n; i++) {
		struct plane_view v[KVG_PLANES_MAX];
		unsigned bits;
		int r = pin_views(l, &pins[i], v, &bits);

		if (r < 0)
			return r;
		for (unsigned p = 0; p < KVG_PLANES_MAX; p++)
			if ((bits >> p & 1) && fn(userdata, &v[p], first_token) < 0)
				return bad_plane(l->client, p);
		first_token += pins[i].tokens;
	}
	return 0;
}

static int count_fn(void *userdata, const struct plane_view *v, uint32_t first_token)
{
	(void)first_token;
	return count_runs(v, userdata);
}

struct append {
	const struct kvg_layout *layout;
	struct flat flat;
};

static int append_fn(void *userdata, const struct plane_view *v, uint32_t first_token)
{
	const struct append *a = userdata;

	return append_runs(a->layout, v, first_token, &a->flat);
}

static int flat_cu(struct kvg_layout *l, const struct kvg_pin *pins, size_t n, uint32_t *cu)
{
	uint64_t *count = calloc(l->runs, sizeof(*count)), sum = 0;
	int r;

	if (!count)
		return client_fail(l->client, -ENOMEM, 0, "out of memory");
	r = each_plane(l, pins, n, count_fn, count);
	for (uint32_t i = 0; i < l->runs && r == 0; i++) {
		cu[i] = (uint32_t)sum;
		sum += count[i];
		if (sum > UINT32_MAX)
			r = client_fail(l->client, -EOVERFLOW, 0,
				"more than 2^32 pairs: gather fewer blocks at a time");
	}
	if (r == 0)
		cu[l->runs] = (uint32_t)sum;
	free(count);
	return r;
}

int kvg_gather_flat(struct kvg_layout *l, const struct kvg_pin *pins, size_t n, void *k, void *v,
	uint32_t *positions, uint32_t *cu, size_t sum_max)
{
	struct append a = {
		.layout = l, .flat = {.k = k, .v = v, .positions = positions, .end = cu + 1}};
	int r = refuse_opaque(l);

	if (r == 0)
		r = flat_cu(l, pins, n, cu);
	if (r < 0 || !k)
		return r;
	if (!v)
		return client_fail(l->client, -EINVAL, 0, "k without v");
	if (cu[l->runs] > sum_max)
		return client_fail(
			l->client, -ENOSPC, 0, "%u rows do not fit %zu", cu[l->runs], sum_max);
	a.flat.at = malloc(l->runs * sizeof(*a.flat.at));
	if (!a.flat.at)
		return client_fail(l->client, -ENOMEM, 0, "out of memory");
	memcpy(a.flat.at, cu, l->runs * sizeof(*cu));
	r = each_plane(l, pins, n, append_fn, &a);
	free(a.flat.at);
	return r;
}
