/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Heads keep between a few rows and all of them, so work is dealt out by rows, not by heads. With W blocks at work at
 * once and `share` stages for each of them in the even case, a tile of n stages is cut, from its first row on, into
 *
 *	n / share  pieces of 1/2 share
 *	n / share  pieces of 1/4 share
 *	           pieces of 1/8 share: the rest
 *
 * and blocks take pieces as they come, the largest first. So those that are slower get less - not all multiprocessors
 * are as near to all memory, and where another kernel's blocks are, there is room for one of ours instead of two - and
 * at the end nobody waits for more than a small piece. Fewer and larger pieces are cheaper as long as nothing else runs:
 * one of a whole share each is a tenth faster on a short context, and half slower beside a kernel that moves pages. A
 * tile of a small piece or two is not cut, nor one of many that keep all blocks busy anyway.
 */
#include "gpu/attend_plan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_MIN 4u /* stages; less is not worth the merge */
#define PARTS_MAX 8u /* of a share */

struct runs {
	struct attend_run *at;
	uint32_t n, room;
	uint32_t rows; /* of all */
};

struct sequence {
	uint32_t token, tokens, unseen;
};

struct attend_plan {
	struct attend_shape shape;
	uint32_t processors;
	bool sealed;
	struct sequence *sequence;
	uint32_t n_sequences, tokens, tokens_max;
	struct runs *group; /* [sequences][heads] */
	uint64_t rows;

	struct attend_run *runs;
	struct attend_tile *tiles;
	struct attend_item *items;
	uint32_t n_runs, n_tiles, n_items, items_room, n_parts;
};

/* Doubles as needed; false: no memory. */
static bool make_room(void **at, uint32_t *room, uint32_t need, size_t size)
{
	uint32_t n = *room ? *room : 16;
	void *more;

	while (n < need)
		n *= 2;
	if (n == *room)
		return true;
	more = realloc(*at, n * size);
	if (!more)
		return false;
	*at = more;
	*room = n;
	return true;
}

int attend_plan_new(const struct attend_shape *shape, uint32_t processors, struct attend_plan **ret)
{
	struct attend_plan *p;

	if (!shape->heads || shape->heads > KVG_HEADS_MAX || !shape->group ||
		shape->group > ATTEND_GROUP_MAX || !processors)
		return -EINVAL;
	if (shape->dim != 64 && shape->dim != 96 && shape->dim != 128 && shape->dim != 256)
		return -EINVAL;
	if (shape->dtype != KVG_DTYPE_BF16 && shape->dtype != KVG_DTYPE_F16)
		return -EINVAL;
	p = calloc(1, sizeof(*p));
	if (!p)
		return -ENOMEM;
	p->shape = *shape;
	p->processors = processors;
	*ret = p;
	return 0;
}

struct attend_plan *attend_plan_free(struct attend_plan *p)
{
	if (!p)
		return NULL;
	for (size_t i = 0; i < (size_t)p->n_sequences * p->shape.heads; i++)
		free(p->group[i].at);
	free(p->group);
	free(p->sequence);
	free(p->runs);
	free(p->tiles);
	free(p->items);
	free(p);
	return NULL;
}

int attend_plan_sequence(struct attend_plan *p, uint32_t tokens, uint32_t unseen)
{
	const size_t heads = p->shape.heads, n = p->n_sequences;
	struct sequence *sequence;
	struct runs *group;

	if (p->sealed || !tokens || tokens > UINT32_MAX / 2 - p->tokens)
		return -EINVAL;
	sequence = realloc(p->sequence, (n + 1) * sizeof(*sequence));
	if (!sequence)
		return -ENOMEM;
	p->sequence = sequence;
	group = realloc(p->group, (n + 1) * heads * sizeof(*group));
	if (!group)
		return -ENOMEM;
	p->group = group;
	memset(group + n * heads, 0, heads * sizeof(*group));
	sequence[n] = (struct sequence){.token = p->tokens, .tokens = tokens, .unseen = unseen};
	p->n_sequences++;
	p->tokens += tokens;
	p->tokens_max = tokens > p->tokens_max ? tokens : p->tokens_max;
	return 0;
}

int attend_plan_run(struct attend_plan *p, uint32_t head, uint64_t k, uint64_t v, uint32_t rows)
{
	struct runs *r;

	if (p->sealed || !p->n_sequences || head >= p->shape.heads || k % 16 || v % 16)
		return -EINVAL;
	r = &p->group[(size_t)(p->n_sequences - 1) * p->shape.heads + head];
	if (rows > UINT32_MAX / 2 - r->rows)
		return -EINVAL;
	if (!rows)
		return 0;
	if (!make_room((void **)&r->at, &r->room, r->n + 1, sizeof(*r->at)))
		return -ENOMEM;
	r->at[r->n++] = (struct attend_run){.k = k, .v = v, .first = r->rows, .rows = rows};
	r->rows += rows;
	p->rows += rows;
	return 0;
}

int attend_plan_plane(struct attend_plan *p, const struct plane_view *plane, uint64_t payload,
	uint32_t layer, const uint32_t *keep)
{
	const uint32_t heads = p->shape.heads, row = p->shape.dim * 2;
	struct plane_geometry g;

	if (plane->opaque || plane->k_row != row || plane->v_row != row ||
		layer >= plane->runs / heads || plane->runs % heads)
		return -EINVAL;
	plane_geometry(plane->runs, plane->pairs, plane->n_token_ids, row, row, 0, &g);
	for (uint32_t h = 0; h < heads; h++) {
		const uint32_t *const cu = &plane->cu[layer * heads + h];
		const uint32_t there = cu[1] - cu[0];
		const uint64_t offset = (uint64_t)cu[0] * row;
		const int r = attend_plan_run(p, h, payload + g.k_off + offset,
			payload + g.v_off + offset, keep && keep[h] < there ? keep[h] : there);

		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- dealing out ---- */

struct dealing {
	bool decode;
	uint32_t stage_rows, tile_rows;
	uint64_t share; /* stages */
};

static uint32_t stages_of(const struct dealing *d, uint32_t rows)
{
	return (rows + d->stage_rows - 1) / d->stage_rows;
}

/* KV rows that any of the tile's query rows sees. */
static uint32_t rows_of_tile(
	const struct attend_plan *p, const struct attend_tile *t, uint32_t group_rows)
{
	const uint64_t sees = (uint64_t)t->seen + (t->row + t->rows - 1) / p->shape.group;

	return sees < group_rows ? (uint32_t)sees : group_rows;
}

static bool add_item(struct attend_plan *p, const struct attend_item *item)
{
	if (!make_room((void **)&p->items, &p->items_room, p->n_items + 1, sizeof(*p->items)))
		return false;
	p->items[p->n_items++] = *item;
	return true;
}

/* What is cut off `rows` from the front on. */
struct cut {
	uint32_t tile, run, run_end;
	uint32_t row, rows;
};

static bool cut_off(struct attend_plan *p, struct cut *c, uint32_t rows)
{
	struct attend_item item = {
		.tile = c->tile,
		.run = c->run,
		.run_end = c->run_end,
		.row = c->row,
		.rows = rows < c->rows ? rows : c->rows,
	};

	item.part = p->tiles[c->tile].parts++;
	c->row += item.rows;
	c->rows -= item.rows;
	while (c->rows && c->row >= p->runs[c->run].first + p->runs[c->run].rows)
		c->run++;
	return add_item(p, &item);
}

static uint32_t piece(const struct dealing *d, uint64_t stages)
{
	const uint64_t rows = (stages < PIECE_MIN ? PIECE_MIN : stages) * d->stage_rows;

	return rows < UINT32_MAX / 2 ? (uint32_t)rows : UINT32_MAX / 2;
}

static bool deal_tile(struct attend_plan *p, const struct dealing *d, struct cut *c)
{
	const uint32_t stages = stages_of(d, c->rows);
	struct attend_tile *const t = &p->tiles[c->tile];

	t->part = p->n_parts;
	if (stages <= PIECE_MIN + 1 || stages <= d->share / 4)
		return cut_off(p, c, c->rows);
	for (uint32_t part = stages < d->share ? 4 : 2; c->rows; part *= 2)
		for (uint64_t n = stages / d->share; (n || part >= PARTS_MAX) && c->rows; n--)
			if (!cut_off(p, c, piece(d, d->share / part)))
				return false;
	return true;
}

static int by_size(const void *a, const void *b)
{
	const struct attend_item *x = a, *y = b;

	if (x->rows != y->rows)
		return x->rows < y->rows ? 1 : -1;
	if (x->tile != y->tile)
		return x->tile < y->tile ? -1 : 1;
	return x->row < y->row ? -1 : x->row > y->row;
}

static bool flatten(struct attend_plan *p, const struct dealing *d)
{
	const size_t groups = (size_t)p->n_sequences * p->shape.heads;
	size_t n_runs = 0, n_tiles = 0;

	for (size_t i = 0; i < groups; i++) {
		const struct sequence *s = &p->sequence[i / p->shape.heads];

		n_runs += p->group[i].n;
		n_tiles += ((uint64_t)s->tokens * p->shape.group + d->tile_rows - 1) / d->tile_rows;
	}
	if (n_runs > UINT32_MAX || n_tiles > UINT32_MAX / 8)
		return false;
	p->runs = malloc((n_runs ? n_runs : 1) * sizeof(*p->runs));
	p->tiles = calloc(n_tiles, sizeof(*p->tiles));
	if (!p->runs || !p->tiles)
		return false;
	for (size_t i = 0; i < groups; i++) {
		const struct runs *r = &p->group[i];

		if (r->n)
			memcpy(p->runs + p->n_runs, r->at, r->n * sizeof(*r->at));
		p->n_runs += r->n;
	}
	return true;
}

static void tile_group(struct attend_plan *p, const struct dealing *d, size_t i)
{
	const struct sequence *s = &p->sequence[i / p->shape.heads];
	const uint32_t rows = p->group[i].rows, all = s->tokens * p->shape.group;

	for (uint32_t row = 0; row < all; row += d->tile_rows)
		p->tiles[p->n_tiles++] = (struct attend_tile){
			.token = s->token,
			.head = i % p->shape.heads,
			.row = row,
			.rows = all - row < d->tile_rows ? all - row : d->tile_rows,
			.seen = rows - s->unseen,
		};
}

/* Walks all tiles twice: what there is in all, then the pieces. */
static bool deal(struct attend_plan *p, struct dealing *d)
{
	const size_t groups = (size_t)p->n_sequences * p->shape.heads;
	const uint64_t blocks = (uint64_t)p->processors * ATTEND_BLOCKS(d->decode, p->shape.dim);
	uint64_t stages = 0;
	uint32_t run = 0, tile = 0;

	for (size_t i = 0; i < groups; i++) {
		const uint32_t first = p->n_tiles;

		tile_group(p, d, i);
		for (uint32_t t = first; t < p->n_tiles; t++)
			stages += stages_of(d, rows_of_tile(p, &p->tiles[t], p->group[i].rows));
	}
	d->share = stages ? (stages + blocks - 1) / blocks : 1;
	for (size_t i = 0; i < groups; i++) {
		const struct sequence *s = &p->sequence[i / p->shape.heads];
		const uint32_t end = run + p->group[i].n;
		const uint64_t tiles =
			((uint64_t)s->tokens * p->shape.group + d->tile_rows - 1) / d->tile_rows;

		for (uint64_t n = 0; n < tiles; n++, tile++) {
			struct cut c = {.tile = tile, .run = run, .run_end = end};

			c.rows = rows_of_tile(p, &p->tiles[tile], p->group[i].rows);
			if (!deal_tile(p, d, &c))
				return false;
			if (p->tiles[tile].parts > 1)
				p->n_parts += p->tiles[tile].parts;
		}
		run = end;
	}
	return true;
}

static void number_parts(struct attend_plan *p)
{
	for (uint32_t i = 0; i < p->n_items; i++) {
		const struct attend_tile *t = &p->tiles[p->items[i].tile];

		p->items[i].part = t->parts > 1 ? t->part + p->items[i].part : ATTEND_PART_NONE;
	}
}

int attend_plan_seal(struct attend_plan *p)
{
	struct dealing d = {.decode = p->tokens_max <= 16 / p->shape.group};

	if (p->sealed || !p->n_sequences)
		return -EINVAL;
	for (size_t i = 0; i < (size_t)p->n_sequences * p->shape.heads; i++)
		if (p->group[i].rows < p->sequence[i / p->shape.heads].unseen)
			return -EINVAL;
	d.tile_rows = ATTEND_TILE_ROWS(d.decode, p->shape.dim);
	d.stage_rows = ATTEND_STAGE_ROWS(d.decode, p->shape.dim);
	p->sealed = true;
	if (!flatten(p, &d) || !deal(p, &d))
		return -ENOMEM;
	number_parts(p);
	qsort(p->items, p->n_items, sizeof(*p->items), by_size);
	return 0;
}

struct attend_arrays attend_plan_arrays(const struct attend_plan *p)
{
	const bool decode = p->tokens_max <= 16 / p->shape.group;
	const uint32_t blocks = p->processors * ATTEND_BLOCKS(decode, p->shape.dim);

	return (struct attend_arrays){
		.shape = p->shape,
		.decode = decode,
		.runs = p->runs,
		.tiles = p->tiles,
		.items = p->items,
		.n_runs = p->n_runs,
		.n_tiles = p->n_tiles,
		.n_items = p->n_items,
		.n_parts = p->n_parts,
		.tokens = p->tokens,
		.blocks = p->n_items < blocks ? p->n_items : blocks,
		.rows = p->rows,
	};
}

uint64_t attend_partials_bytes(const struct attend_arrays *a)
{
	const uint64_t rows = ATTEND_TILE_ROWS(a->decode, a->shape.dim);

	return a->n_parts * rows * (a->shape.dim + 2) * sizeof(float);
}
