/* SPDX-License-Identifier: Apache-2.0 */
/*
 * score_lanes: what follows the product, for one token in each lane of a vector. Included once by each vector
 * path, which says before how wide a vector is (LANES) and with which instructions (SCORE_TARGET).
 * Thread: any, pure. Locks: none. Blocks: never. Errors: none; NaN stays NaN.
 *
 * With tokens in the lanes there are no sums across a vector, and gate width, groups and sinks may be any.
 */
#ifndef KVGATE_GATES_SCORE_LANES_H
#define KVGATE_GATES_SCORE_LANES_H

#include <math.h>

#include "gates/score.h"

#define EPSILON 1e-6f

typedef float lanes __attribute__((vector_size(LANES * 4)));
typedef uint32_t lane_bits __attribute__((vector_size(LANES * 4)));

/* a where the mask is set, else b. */
SCORE_TARGET static inline lanes lanes_select(lane_bits mask, lanes a, lanes b)
{
	return (lanes)(((lane_bits)a & mask) | ((lane_bits)b & ~mask));
}

SCORE_TARGET static inline lanes lanes_all(float f)
{
	return (lanes){0} + f;
}

SCORE_TARGET static inline lanes lanes_load(const float *p)
{
	lanes v;

	__builtin_memcpy(&v, p, sizeof(v));
	return v;
}

SCORE_TARGET static inline void lanes_store(float *p, lanes v)
{
	__builtin_memcpy(p, &v, sizeof(v));
}

SCORE_TARGET static inline lanes lanes_round_bf16(lanes v)
{
	lane_bits bits = (lane_bits)v;
	lane_bits nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;

	return lanes_select((lane_bits)(v == v), (lanes)nearest, v);
}

/* Below 2^-14 an f16 is a multiple of 2^-24, which is f32's unit from 1/2 to 1; above 65504 comes infinity. */
SCORE_TARGET static inline lanes lanes_round_f16(lanes v)
{
	lane_bits sign = (lane_bits)v & 0x80000000, size = (lane_bits)v & 0x7fffffff;
	lanes nearest = (lanes)((size + 0xfff + (size >> 13 & 1)) & 0xffffe000);
	lanes small = ((lanes)size + 0.5f) - 0.5f;

	nearest = lanes_select((lane_bits)((lanes)size < 0x1p-14f), small, nearest);
	nearest = lanes_select((lane_bits)(nearest > 65504.0f), lanes_all(INFINITY), nearest);
	return lanes_select((lane_bits)(v == v), (lanes)((lane_bits)nearest | sign), v);
}

/* gate_round() of each lane: to the nearest, ties to even; NaN stays NaN. */
SCORE_TARGET static inline lanes lanes_round(lanes v, uint32_t dtype)
{
	switch (dtype) {
	case KVG_DTYPE_BF16:
		return lanes_round_bf16(v);
	case KVG_DTYPE_F16:
		return lanes_round_f16(v);
	}
	return v;
}

SCORE_TARGET static inline lanes lanes_root(lanes v)
{
	for (unsigned i = 0; i < LANES; i++)
		v[i] = __builtin_sqrtf(v[i]);
	return v;
}

/*
 * exp to 2 units in the last place: 2^n times the series on [-ln 2 / 2, ln 2 / 2]. Arguments are kept
 * where the result is finite and normal; at the ends a score is 0 or 1 anyway. A NaN is given back as it came: with
 * its low bits the power of two would be some number.
 */
SCORE_TARGET static inline lanes lanes_exp(lanes x)
{
	const float nearest =
		12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest whole number in the low bits */
	const lanes given = x;
	lanes t, n, p;

	x = lanes_select((lane_bits)(x > 88.0f), lanes_all(88.0f), x);
	x = lanes_select((lane_bits)(x < -87.0f), lanes_all(-87.0f), x);
	t = x * 1.44269504f + nearest;
	n = t - nearest;
	x = x - n * 0.693359375f;
	x = x + n * 2.12194440e-4f; /* ln 2 in two parts */
	p = x * (1.0f / 5040) + 1.0f / 720;
	p = p * x + 1.0f / 120;
	p = p * x + 1.0f / 24;
	p = p * x + 1.0f / 6;
	p = p * x + 0.5f;
	p = p * x + 1.0f;
	p = p * x + 1.0f;
	p = (lanes)((lane_bits)p + ((lane_bits)t << 23));
	return lanes_select((lane_bits)(given == given), p, given);
}

/* x times the normal distribution function; erfc(z) = t exp(P(t) - z^2), t = 1 / (1 + z / 2), z >= 0, P fitted to 7e-8. */
SCORE_TARGET static inline lanes lanes_gelu(lanes x)
{
	lanes z = (lanes)((lane_bits)x & 0x7fffffff) * (float)M_SQRT1_2;
	lanes t = 1.0f / (z * 0.5f + 1.0f), p, tail;

	p = t * 0.16550989f - 0.79146307f;
	p = p * t + 1.41320312f;
	p = p * t - 1.03165746f;
	p = p * t + 0.19146232f;
	p = p * t - 0.13963148f;
	p = p * t + 0.08116461f;
	p = p * t + 0.37722340f;
	p = p * t + 0.99968636f;
	p = p * t - 1.26549757f;
	tail = t * lanes_exp(p - z * z) * 0.5f;
	return x * lanes_select((lane_bits)(x > 0.0f), 1.0f - tail, tail);
}

/* ---- Fast KVzip ---- */

/* Column `row` of LANES tokens' projections from token t on; lanes beyond the end repeat the last one. */
SCORE_TARGET static inline lanes lanes_gather(const struct score_c *c, uint32_t t, uint32_t row)
{
	const float *from = c->values + t * c->stride + row;
	uint32_t last = c->tokens - t - 1;
	float v[LANES];

	for (uint32_t i = 0; i < LANES; i++)
		v[i] = from[(i < last ? i : last) * c->stride];
	return lanes_load(v);
}

/* ret[d] = w[d] * round(v[d] / sqrt(mean(v^2) + eps)), v = round(projection + bias) */
SCORE_TARGET static inline void lanes_normalise(const struct score_c *c, uint32_t t, uint32_t row,
	const float *bias, const float *weight, uint32_t dim, uint32_t round, float *ret)
{
	lanes squares = {0}, scale, v;

	for (uint32_t d = 0; d < dim; d++) {
		v = lanes_round(lanes_gather(c, t, row + d) + bias[row + d], round);
		squares += v * v;
		lanes_store(ret + d * LANES, v);
	}
	scale = 1.0f / lanes_root(squares / (float)dim + EPSILON);
	for (uint32_t d = 0; d < dim; d++) {
		v = lanes_load(ret + d * LANES) * scale;
		lanes_store(ret + d * LANES, lanes_round(v, round) * weight[d]);
	}
}

/* Sum over the sinks of exp(z - l). */
SCORE_TARGET static inline lanes lanes_sinks(
	const float *k_base, uint32_t sinks, uint32_t dim, const float *q, float scale, lanes l)
{
	lanes sum = {0};

	for (uint32_t s = 0; s < sinks; s++, k_base += dim) {
		lanes z = {0};

		for (uint32_t d = 0; d < dim; d++)
			z += lanes_load(q + d * LANES) * k_base[d];
		sum += lanes_exp(z * scale - l);
	}
	return sum;
}

SCORE_TARGET static inline lanes lanes_head(const struct gate_info *i, const struct gate_layer *y,
	const struct score_c *c, uint32_t t, uint32_t h, uint32_t round, float *v)
{
	const float scale = 1.0f / __builtin_sqrtf((float)i->dim);
	float *q = v, *k = v + (size_t)i->dim * LANES;
	lanes score = {0};

	lanes_normalise(
		c, t, (i->heads * i->groups + h) * i->dim, y->in.bias, y->k_norm, i->dim, round, k);
	for (uint32_t n = h * i->groups; n < (h + 1) * i->groups; n++) {
		lanes l = {0};

		lanes_normalise(c, t, n * i->dim, y->in.bias, y->q_norm, i->dim, round, q);
		for (uint32_t d = 0; d < i->dim; d++)
			l += lanes_load(k + d * LANES) * lanes_load(q + d * LANES);
		l = l * scale + y->b[n];
		score += 1.0f /
			(1.0f +
				lanes_sinks(y->k_base + (size_t)h * i->sinks * i->dim, i->sinks,
					i->dim, q, scale, l));
	}
	return score / (float)i->groups;
}

SCORE_TARGET static void lanes_fast_kvzip(const struct gate *g, const struct gate_layer *y,
	const struct score_c *c, uint32_t round, float *v, float *ret_scores, size_t score_stride)
{
	for (uint32_t t = 0; t < c->tokens; t += LANES) {
		size_t n = c->tokens - t < LANES ? c->tokens - t : LANES;

		for (uint32_t h = 0; h < g->info.heads; h++) {
			lanes score = lanes_head(&g->info, y, c, t, h, round, v);

			__builtin_memcpy(
				ret_scores + h * score_stride + t, &score, n * sizeof(float));
		}
	}
}

/* ---- KVzap ---- */

/* Rows beyond m->rows are computed too: there is room for whole blocks, and their weights are zero. */
SCORE_TARGET static void lanes_gelu_rows(
	const struct gate_matrix *m, const struct score_c *c, uint32_t round)
{
	for (uint32_t t = 0; t < c->tokens; t++) {
		float *row = c->values + t * c->stride;

		for (uint32_t r = 0; r < m->blocks * GATE_ROWS; r += LANES) {
			lanes v = lanes_load(row + r) + lanes_load(m->bias + r);

			v = lanes_gelu(lanes_round(v, round));
			lanes_store(row + r, lanes_round(v, round));
		}
	}
}

/* ---- packing for products in f32 ---- */

SCORE_TARGET static inline void lanes_pack_row(
	const struct score_x *x, size_t at, uint32_t used, float *ret)
{
	const float *f = (const float *)x->data + at;
	const uint16_t *b = (const uint16_t *)x->data + at;
	float tail[LANES] = {0};
	uint32_t k = 0;

	if (x->dtype == KVG_DTYPE_BF16) {
		for (; k < used; k++)
			ret[k] = bf16_to_f32(b[k]);
	} else if (x->round == KVG_DTYPE_F32) {
		__builtin_memcpy(ret, f, used * sizeof(*f));
	} else {
		for (; k + LANES <= used; k += LANES)
			lanes_store(ret + k, lanes_round(lanes_load(f + k), x->round));
		__builtin_memcpy(tail, f + k, (used - k) * sizeof(*f));
		lanes_store(tail, lanes_round(lanes_load(tail), x->round));
		__builtin_memcpy(ret + k, tail, (used - k) * sizeof(*f));
	}
}

/* A panel is [token][columns] f32, rows `columns_max` apart. */
SCORE_TARGET static inline void lanes_pack(const struct score_x *x, uint32_t token, uint32_t tokens,
	uint32_t first, uint32_t used, uint32_t columns_max, uint32_t tile, float *panel)
{
	for (uint32_t t = 0; t < tile; t++, panel += columns_max) {
		uint32_t filled = t < tokens ? used : 0;

		if (t < tokens)
			lanes_pack_row(x, (token + t) * x->stride + first, used, panel);
		__builtin_memset(panel + filled, 0, (columns_max - filled) * sizeof(*panel));
	}
}

#endif
