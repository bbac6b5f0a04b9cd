/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The reference: the formulas of gates/README.md one after the other, for any processor. The other paths
 * are tested against this one, and this one against PyTorch.
 */
#include <math.h>
#include <string.h>

#include "gates/score.h"

#define TILE    4u
#define COLUMNS 256u
#define EPSILON 1e-6f

static float element(const struct score_x *x, size_t i)
{
	if (x->dtype == KVG_DTYPE_BF16)
		return bf16_to_f32(((const uint16_t *)x->data)[i]);
	return gate_round(((const float *)x->data)[i], x->round);
}

static void pack(const struct score_x *x, uint32_t token, uint32_t tokens, uint32_t first,
	uint32_t used, uint32_t columns, void *ret_panel)
{
	float *panel = ret_panel; /* [TILE][columns] */

	memset(panel, 0, (size_t)TILE * columns * sizeof(*panel));
	for (uint32_t t = 0; t < tokens; t++)
		for (uint32_t k = 0; k < used; k++)
			panel[t * columns + k] = element(x, (token + t) * x->stride + first + k);
}

static float weight(const struct score_w *w, unsigned block, uint32_t k, uint32_t row)
{
	const char *at = (const char *)w->blocks + block * w->next;

	if (w->wide)
		return ((const float *)at)[k * GATE_ROWS + row];
	return bf16_to_f32(((const uint16_t *)at)[k / 2 * 2 * GATE_ROWS + row * 2 + k % 2]);
}

static void multiply(const struct score_w *w, unsigned blocks, const void *panel, uint32_t columns,
	float *c, size_t c_stride, bool add)
{
	const float *x = panel;

	for (unsigned b = 0; b < blocks; b++) {
		for (uint32_t t = 0; t < TILE; t++) {
			float *sum = c + t * c_stride + b * GATE_ROWS;

			if (!add)
				memset(sum, 0, GATE_ROWS * sizeof(*sum));
			for (uint32_t k = 0; k < columns; k++)
				for (uint32_t r = 0; r < GATE_ROWS; r++)
					sum[r] += x[t * columns + k] * weight(w, b, k, r);
		}
	}
}

/* rms(v, w) = w * v / sqrt(mean(v^2) + eps) of one row of projections. */
static void normalise(const float *projected, const float *bias, const float *weight, uint32_t dim,
	uint32_t round, float *ret)
{
	float squares = 0, scale;

	for (uint32_t d = 0; d < dim; d++) {
		ret[d] = gate_round(projected[d] + bias[d], round);
		squares += ret[d] * ret[d];
	}
	scale = 1.0f / sqrtf(squares / (float)dim + EPSILON);
	for (uint32_t d = 0; d < dim; d++)
		ret[d] = weight[d] * gate_round(ret[d] * scale, round);
}

static float dot(const float *a, const float *b, uint32_t n)
{
	float sum = 0;

	for (uint32_t i = 0; i < n; i++)
		sum += a[i] * b[i];
	return sum;
}

static void fast_kvzip(const struct gate *g, const struct gate_layer *y, const struct score_c *c,
	uint32_t round, float *v, float *ret_scores, size_t score_stride)
{
	const struct gate_info *i = &g->info;
	const float root = sqrtf((float)i->dim);
	float *q = v, *k = v + i->dim;

	for (uint32_t t = 0; t < c->tokens; t++) {
		const float *row = c->values + t * c->stride;

		for (uint32_t h = 0; h < i->heads; h++) {
			uint32_t k_row = (i->heads * i->groups + h) * i->dim;
			float sum = 0;

			normalise(row + k_row, y->in.bias + k_row, y->k_norm, i->dim, round, k);
			for (uint32_t n = 0; n < i->groups; n++) {
				uint32_t q_row = (h * i->groups + n) * i->dim;
				float l, others = 0;

				normalise(row + q_row, y->in.bias + q_row, y->q_norm, i->dim, round,
					q);
				l = dot(k, q, i->dim) / root + y->b[h * i->groups + n];
				for (uint32_t s = 0; s < i->sinks; s++)
					others += expf(
						dot(y->k_base + ((size_t)h * i->sinks + s) * i->dim,
							q, i->dim) /
							root -
						l);
				sum += 1.0f / (1.0f + others);
			}
			ret_scores[h * score_stride + t] = sum / (float)i->groups;
		}
	}
}

static void gelu(const struct gate_matrix *m, const struct score_c *c, uint32_t round)
{
	for (uint32_t t = 0; t < c->tokens; t++) {
		float *row = c->values + t * c->stride;

		for (uint32_t r = 0; r < m->rows; r++) {
			float h = gate_round(row[r] + m->bias[r], round);

			h = 0.5f * h * (1.0f + erff(h * (float)M_SQRT1_2));
			row[r] = gate_round(h, round);
		}
	}
}

const struct score_ops score_scalar = {
	.tile = TILE,
	.columns = COLUMNS,
	.blocks = 2,
	.panel_bytes = sizeof(float) * TILE * COLUMNS,
	.pack = pack,
	.multiply = multiply,
	.fast_kvzip = fast_kvzip,
	.gelu = gelu,
};
