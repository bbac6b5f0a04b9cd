/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernels compute, as plainly as it can be said; the measure of their tests. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/kernels/attend.h"
#include "gpu/kernels/move.h"
#include "proto/shape.h"

static const void *host(uint64_t address)
{
	return (const void *)(uintptr_t)address;
}

static void *host_out(uint64_t address)
{
	return (void *)(uintptr_t)address;
}

void move_twin(const struct move_args *args)
{
	const uint64_t *to = host(args->to), *from = host(args->from);

	for (uint32_t i = 0; i < args->pages; i++)
		memcpy(host_out(to[i]), host(from[i]), args->page_bytes);
}

static double element(const void *row, uint32_t i, uint32_t dtype)
{
	const uint16_t bits = ((const uint16_t *)row)[i];

	return dtype == KVG_DTYPE_BF16 ? bf16_to_f32(bits) : f16_to_f32(bits);
}

/* One query row of one tile: what it has seen so far. */
struct sum {
	double max, sum;
	double *o; /* [dim] */
};

static void add_row(struct sum *s, double score, const void *v, uint32_t dim, uint32_t dtype)
{
	const double max = fmax(s->max, score);
	const double old = s->sum > 0.0 ? exp(s->max - max) : 0.0, new = exp(score - max);

	s->sum = s->sum * old + new;
	for (uint32_t c = 0; c < dim; c++)
		s->o[c] = s->o[c] * old + new *element(v, c, dtype);
	s->max = max;
}

static void add_item(const struct attend_args *a, const struct attend_tile *t,
	const struct attend_item *item, uint32_t r, uint32_t dim, uint32_t dtype, struct sum *s)
{
	const struct attend_run *run = (const struct attend_run *)host(a->runs) + item->run;
	const uint32_t row = t->row + r, token = row / a->group, head = t->head * a->group;
	const uint16_t *q = (const uint16_t *)host(a->q) +
		(size_t)(t->token + token) * a->q_stride + (size_t)(head + row % a->group) * dim;

	for (uint32_t i = item->row; i < item->row + item->rows; i++) {
		const uint16_t *k, *v;
		double score = 0.0;

		while (i >= run->first + run->rows)
			run++;
		if (i >= t->seen + token)
			break;
		k = (const uint16_t *)host(run->k) + (size_t)(i - run->first) * dim;
		v = (const uint16_t *)host(run->v) + (size_t)(i - run->first) * dim;
		for (uint32_t c = 0; c < dim; c++)
			score += element(q, c, dtype) * element(k, c, dtype);
		add_row(s, score * (double)a->scale, v, dim, dtype);
	}
}

static void write_row(const struct attend_args *a, const struct attend_tile *t, uint32_t r,
	uint32_t dim, uint32_t dtype, const struct sum *s)
{
	const uint32_t row = t->row + r, token = t->token + row / a->group;
	const uint32_t head = t->head * a->group + row % a->group;
	uint16_t *out =
		(uint16_t *)host_out(a->out) + (size_t)token * a->q_stride + (size_t)head * dim;

	for (uint32_t c = 0; c < dim; c++) {
		const float x = s->sum > 0.0 ? (float)(s->o[c] / s->sum) : 0.0f;

		out[c] = dtype == KVG_DTYPE_BF16 ? bf16_from_f32(x) : f16_from_f32(x);
	}
	if (a->lse)
		((float *)host_out(a->lse))[(size_t)token * a->heads * a->group + head] =
			s->sum > 0.0 ? (float)(s->max + log(s->sum)) : -INFINITY;
}

/* The tile's items, in the order of their rows: each row belongs to one. NULL behind the last. */
static const struct attend_item *item_at(const struct attend_args *a, uint32_t tile, uint32_t row)
{
	const struct attend_item *items = host(a->items);

	for (uint32_t i = 0; i < a->n_items; i++)
		if (items[i].tile == tile && items[i].row == row)
			return &items[i];
	return NULL;
}

static int twin_tile(
	const struct attend_args *a, uint32_t tile, uint32_t dim, uint32_t dtype, double *o)
{
	const struct attend_tile *t = (const struct attend_tile *)host(a->tiles) + tile;

	for (uint32_t r = 0; r < t->rows; r++) {
		struct sum s = {.max = -INFINITY, .o = o};
		const struct attend_item *item;
		uint32_t parts = 0, row = 0;

		memset(o, 0, dim * sizeof(*o));
		while (parts < t->parts && (item = item_at(a, tile, row))) {
			if (item->part != (t->parts > 1 ? t->part + parts : ATTEND_PART_NONE))
				return -EINVAL;
			add_item(a, t, item, r, dim, dtype, &s);
			row += item->rows;
			parts++;
		}
		if (parts != t->parts)
			return -EINVAL;
		write_row(a, t, r, dim, dtype, &s);
	}
	return 0;
}

int attend_twin(const struct attend_args *args, uint32_t n_tiles, uint32_t dim, uint32_t dtype)
{
	double *o = malloc(dim * sizeof(*o));
	int r = o ? 0 : -ENOMEM;

	for (uint32_t i = 0; i < n_tiles && r == 0; i++)
		r = twin_tile(args, i, dim, dtype, o);
	free(o);
	return r;
}
