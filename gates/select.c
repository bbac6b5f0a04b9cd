/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every rule of the field is a few cuts. A cut is a place in the order of scores: what scores more is
 * kept, and so are the first `equal` of those that score the same, in the order layer, head, token.
 *
 *   pair, layer    the int(N r)-th best score, equal = 0: strictly above it (ties at it all drop)
 *   head, kvpress  the n-th best score, equal = what is missing to n: exactly n
 *   absolute       the threshold itself, equal = all
 *   adakv-layer    a head cut for the safe share, then a layer cut through what is left
 *
 * N is the number of pairs that are ranked: protected ones (+inf) are kept before any rule looks and
 * take no part in it, in the floor neither. A rule works on a `source`, dense scores or planes, and
 * sees of it only the pairs of some runs that are not kept so far: how many there are, how they fall
 * into bins, and that a cut is made through them. So the rules are written once.
 *
 * Scores are compared as unsigned keys that ascend with them: for f32 its bits, made to ascend; for f16
 * the same in the upper half. -0 and +0 have one key. The n-th best is found digit by digit (11 bits of
 * the key at a time) from counts alone: O(n), nothing is sorted, copied or allocated.
 *
 * In planes each run descends, and the planes of a block descend one after the other (with equal scores
 * the lower token first), so that what is kept is a prefix of each run and is found by bisection.
 */
#include "gates/select.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define ALL        UINT64_MAX
#define DIGIT_BITS 11
#define DIGITS     (1u << DIGIT_BITS)
#define ADAKV_SAFE 0.2 /* share of a head's budget that no other head can take */

struct cut {
	uint32_t key;
	uint64_t equal; /* so many of those with this very key are kept */
};

/* Pairs that a digit search is still about: those whose key agrees with `key` in the bits of `mask`. */
struct digit {
	uint32_t key, mask;
	unsigned shift; /* of the digit to be counted */
};

/* Runs are numbered layer * heads + head; a range of them is [from, to). */
struct source {
	const struct source_ops *ops;
};

struct source_ops {
	unsigned key_shift;                 /* lower bits of a key are zero */
	uint32_t (*threshold)(float score); /* key of the least score that is >= this one */
	uint64_t (*left)(const struct source *s, uint32_t from, uint32_t to);
	void (*tally)(const struct source *s, uint32_t from, uint32_t to, const struct digit *d,
		uint64_t bins[DIGITS]);
	void (*keep)(const struct source *s, uint32_t from, uint32_t to, struct cut cut);
	void (*floor)(const struct source *s, uint32_t run, uint32_t pairs);
};

/* ---- cuts ---- */

/* The cut that keeps exactly the n best of what is left; 0 < n <= left. */
static struct cut cut_best(const struct source *s, uint32_t from, uint32_t to, uint64_t n)
{
	struct digit d = {.shift = 3 * DIGIT_BITS};
	uint64_t bins[DIGITS];

	do {
		uint32_t bin = DIGITS - 1;

		d.shift -= DIGIT_BITS;
		memset(bins, 0, sizeof(bins));
		s->ops->tally(s, from, to, &d, bins);
		while (bin && bins[bin] < n)
			n -= bins[bin--];
		d.key |= bin << d.shift;
		d.mask |= (DIGITS - 1) << d.shift;
	} while (d.shift > s->ops->key_shift);
	return (struct cut){.key = d.key, .equal = n};
}

static void keep_all(const struct source *s, uint32_t from, uint32_t to)
{
	s->ops->keep(s, from, to, (struct cut){.key = 0, .equal = ALL});
}

static void keep_best(const struct source *s, uint32_t from, uint32_t to, uint64_t n)
{
	if (n >= s->ops->left(s, from, to))
		keep_all(s, from, to);
	else if (n)
		s->ops->keep(s, from, to, cut_best(s, from, to, n));
}

/* Strictly above the n-th best (n = 0 counts as 1: above the best, so nothing). */
static void keep_above(const struct source *s, uint32_t from, uint32_t to, uint64_t n)
{
	struct cut cut;

	if (!s->ops->left(s, from, to))
		return;
	cut = cut_best(s, from, to, n ? n : 1);
	cut.equal = 0;
	s->ops->keep(s, from, to, cut);
}

/* int(n * share), as the papers' Python has it. */
static uint64_t part(uint64_t n, double share)
{
	return (uint64_t)((double)n * share);
}

/* ---- rules ---- */

static void select_layer(const struct source *s, uint32_t from, uint32_t to, double r)
{
	keep_above(s, from, to, part(s->ops->left(s, from, to), r));
}

/*
 * The safe pairs stand above all others in the layer's order: what is left is cut where the layer's
 * n-th best then falls. At most a fifth of n is safe, so the cut never falls among the safe ones.
 */
static void select_adakv(const struct source *s, uint32_t from, uint32_t to, double r)
{
	uint64_t n = part(s->ops->left(s, from, to), r), safe = 0;

	for (uint32_t run = from; run < to; run++) {
		uint64_t mine = part(part(s->ops->left(s, run, run + 1), r), ADAKV_SAFE);

		keep_best(s, run, run + 1, mine);
		safe += mine;
	}
	keep_above(s, from, to, n - safe);
}

static void select_rule(
	const struct select_params *p, const struct source *s, uint32_t layers, uint32_t heads)
{
	uint32_t runs = layers * heads;
	uint64_t n;

	if (p->rule == SELECT_ABSOLUTE) {
		s->ops->keep(s, 0, runs, (struct cut){s->ops->threshold(p->threshold), ALL});
		return;
	}
	if (p->retained >= 1) {
		keep_all(s, 0, runs);
		return;
	}
	switch (p->rule) {
	case SELECT_PAIR:
		select_layer(s, 0, runs, p->retained);
		break;
	case SELECT_LAYER:
		for (uint32_t at = 0; at < runs; at += heads)
			select_layer(s, at, at + heads, p->retained);
		break;
	case SELECT_HEAD:
		for (uint32_t at = 0; at < runs; at++)
			keep_best(s, at, at + 1, part(s->ops->left(s, at, at + 1), p->retained));
		break;
	case SELECT_ADAKV_LAYER:
		for (uint32_t at = 0; at < runs; at += heads)
			select_adakv(s, at, at + heads, p->retained);
		break;
	case SELECT_KVPRESS: /* counts what is removed */
		n = s->ops->left(s, 0, runs);
		keep_best(s, 0, runs, n - part(n, 1 - p->retained));
		break;
	case SELECT_ABSOLUTE:
		break;
	}
}

static void select_from(
	const struct select_params *p, const struct source *s, uint32_t layers, uint32_t heads)
{
	select_rule(p, s, layers, heads);
	if (p->floor)
		for (uint32_t run = 0; run < layers * heads; run++)
			s->ops->floor(s, run, p->floor);
}

static bool params_valid(const struct select_params *p, uint32_t layers, uint32_t heads)
{
	if (!layers || !heads || (uint64_t)layers * heads > UINT32_MAX)
		return false;
	if (p->rule == SELECT_ABSOLUTE)
		return !isnan(p->threshold);
	return p->rule >= SELECT_PAIR && p->rule <= SELECT_KVPRESS && p->retained >= 0;
}

int select_rule_from_name(const char *name)
{
	static const char *const names[] = {
		[SELECT_PAIR] = "pair",
		[SELECT_LAYER] = "layer",
		[SELECT_HEAD] = "head",
		[SELECT_ADAKV_LAYER] = "adakv-layer",
		[SELECT_KVPRESS] = "kvpress",
		[SELECT_ABSOLUTE] = "absolute",
	};

	for (int i = SELECT_PAIR; i <= SELECT_ABSOLUTE; i++)
		if (!strcmp(name, names[i]))
			return i;
	return 0;
}

/* ---- dense scores ---- */

struct dense {
	struct source source;
	const float *scores;
	uint64_t tokens; /* of a run */
	uint8_t *keep;   /* NULL: nothing is kept so far */
};

static uint32_t dense_key(float score)
{
	union {
		float f;
		uint32_t u;
	} v = {.f = score};

	if (v.u == 0x80000000u)
		v.u = 0;
	return v.u & 0x80000000u ? ~v.u : v.u | 0x80000000u;
}

static float dense_score(uint32_t key)
{
	union {
		uint32_t u;
		float f;
	} v = {.u = key & 0x80000000u ? key & 0x7fffffffu : ~key};

	return v.f;
}

static uint64_t dense_left(const struct source *s, uint32_t from, uint32_t to)
{
	const struct dense *d = (const struct dense *)s;
	uint64_t left = 0;

	for (uint64_t i = from * d->tokens; i < to * d->tokens; i++)
		left += !d->keep[i];
	return left;
}

static void dense_tally(const struct source *s, uint32_t from, uint32_t to,
	const struct digit *digit, uint64_t bins[DIGITS])
{
	const struct dense *d = (const struct dense *)s;
	const struct digit g = *digit;

	for (uint64_t i = from * d->tokens; i < to * d->tokens; i++) {
		uint32_t key = dense_key(d->scores[i]);

		if ((key & g.mask) == g.key && !(d->keep && d->keep[i]))
			bins[key >> g.shift & (DIGITS - 1)]++;
	}
}

static void dense_keep(const struct source *s, uint32_t from, uint32_t to, struct cut cut)
{
	const struct dense *d = (const struct dense *)s;
	const uint64_t key = (uint64_t)cut.key + (cut.equal != ALL), end = to * d->tokens;

	for (uint64_t i = from * d->tokens; i < end; i++)
		d->keep[i] |= dense_key(d->scores[i]) >= key;
	if (cut.equal == ALL)
		return;
	for (uint64_t i = from * d->tokens; i < end && cut.equal; i++)
		if (!d->keep[i] && dense_key(d->scores[i]) == cut.key) {
			d->keep[i] = 1;
			cut.equal--;
		}
}

static void dense_floor(const struct source *s, uint32_t run, uint32_t pairs)
{
	const struct dense *d = (const struct dense *)s;
	uint32_t kept = 0;

	for (uint64_t i = run * d->tokens; i < (run + 1) * d->tokens && kept < pairs; i++)
		kept += d->keep[i] && d->scores[i] < INFINITY;
	keep_best(s, run, run + 1, pairs - kept);
}

static const struct source_ops dense_ops = {
	.key_shift = 0,
	.threshold = dense_key,
	.left = dense_left,
	.tally = dense_tally,
	.keep = dense_keep,
	.floor = dense_floor,
};

int select_dense(const struct select_params *p, const float *scores, uint32_t layers,
	uint32_t heads, uint32_t tokens, uint8_t *ret_keep)
{
	struct dense d = {{&dense_ops}, scores, tokens, ret_keep};
	uint64_t n = (uint64_t)layers * heads * tokens;

	if (!params_valid(p, layers, heads))
		return -EINVAL;
	for (uint64_t i = 0; i < n; i++)
		if (isnan(scores[i]))
			return -EINVAL;
	for (uint64_t i = 0; i < n; i++)
		ret_keep[i] = scores[i] == INFINITY;
	select_from(p, &d.source, layers, heads);
	return 0;
}

/* ---- planes ---- */

struct planes {
	struct source source;
	const struct select_block *blocks;
	uint32_t n_blocks, runs;
	uint32_t *len; /* [block][plane][run], kept so far */
};

/* The pairs of one run in one plane of one block, best first. */
struct piece {
	const uint16_t *score;
	uint32_t n;
	uint32_t *len;
};

static uint32_t half_key(uint16_t score)
{
	uint32_t bits = score == 0x8000u ? 0 : (uint32_t)score << 16;

	return bits & 0x80000000u ? ~bits & 0xffff0000u : bits | 0x80000000u;
}

uint16_t select_f16_at_least(float threshold)
{
	uint16_t nearest = f16_from_f32(threshold);

	if (f16_to_f32(nearest) >= threshold)
		return nearest;
	return nearest & 0x8000u ? nearest - 1 : nearest + 1; /* towards +inf */
}

static uint32_t half_threshold(float score)
{
	return half_key(select_f16_at_least(score));
}

/* Pieces of a run over the whole context, in token order of the blocks and best first in each. */
static uint64_t n_pieces(const struct planes *p)
{
	return (uint64_t)p->n_blocks * KVG_PLANES_MAX;
}

static struct piece piece_at(const struct planes *p, uint64_t at, uint32_t run)
{
	const struct select_block *b = &p->blocks[at / KVG_PLANES_MAX];
	uint32_t plane = at % KVG_PLANES_MAX;
	struct piece piece = {.len = &p->len[at * p->runs + run]};

	if (plane < b->n_planes && b->plane[plane].runs) {
		const uint32_t *cu = b->plane[plane].cu + run;

		piece.score = b->plane[plane].score + cu[0];
		piece.n = cu[1] - cu[0];
	}
	return piece;
}

/* The end of the leading pairs whose key is at least `key`, those before `from` being known to be. */
static uint32_t piece_end(const struct piece *piece, uint32_t from, uint64_t key)
{
	uint32_t n = piece->n - from;
	const uint16_t *score;

	if (!n)
		return from;
	score = piece->score + from;
	if (half_key(score[0]) < key)
		return from;
	if (half_key(score[n - 1]) >= key)
		return piece->n;
	while (n > 1) { /* score[0] is in, score[n] is not */
		uint32_t half = n / 2;

		if (half_key(score[half]) >= key)
			score += half;
		n -= half;
	}
	return (uint32_t)(score + 1 - piece->score);
}

/* Pieces outside, runs inside: as they lie in memory. */
static uint64_t planes_left(const struct source *s, uint32_t from, uint32_t to)
{
	const struct planes *p = (const struct planes *)s;
	uint64_t left = 0;

	for (uint64_t at = 0; at < n_pieces(p); at++)
		for (uint32_t run = from; run < to; run++) {
			struct piece piece = piece_at(p, at, run);

			left += piece.n - *piece.len;
		}
	return left;
}

static void planes_tally(const struct source *s, uint32_t from, uint32_t to, const struct digit *d,
	uint64_t bins[DIGITS])
{
	const struct planes *p = (const struct planes *)s;
	uint64_t above = ((uint64_t)d->key | (uint32_t)~d->mask) + 1;

	for (uint64_t at = 0; at < n_pieces(p); at++)
		for (uint32_t run = from; run < to; run++) {
			struct piece piece = piece_at(p, at, run);
			uint32_t i = piece_end(&piece, *piece.len, above);
			uint32_t end = piece_end(&piece, i, d->key);

			for (; i < end; i++)
				bins[half_key(piece.score[i]) >> d->shift & (DIGITS - 1)]++;
		}
}

static void planes_keep(const struct source *s, uint32_t from, uint32_t to, struct cut cut)
{
	const struct planes *p = (const struct planes *)s;
	uint64_t key = (uint64_t)cut.key + (cut.equal != ALL);

	for (uint64_t at = 0; at < n_pieces(p); at++)
		for (uint32_t run = from; run < to; run++) {
			struct piece piece = piece_at(p, at, run);

			*piece.len = piece_end(&piece, *piece.len, key);
		}
	if (cut.equal == ALL)
		return;
	for (uint32_t run = from; run < to; run++)
		for (uint64_t at = 0; at < n_pieces(p) && cut.equal; at++) {
			struct piece piece = piece_at(p, at, run);
			uint32_t equal = piece_end(&piece, *piece.len, cut.key) - *piece.len;

			if (equal > cut.equal)
				equal = (uint32_t)cut.equal;
			*piece.len += equal;
			cut.equal -= equal;
		}
}

/* Here the floor holds in every block: the next best pairs of its planes, one plane after the other. */
static void planes_floor(const struct source *s, uint32_t run, uint32_t pairs)
{
	const struct planes *p = (const struct planes *)s;

	for (uint64_t block = 0; block < n_pieces(p); block += KVG_PLANES_MAX) {
		uint32_t missing = pairs;

		for (uint64_t at = block; at < block + KVG_PLANES_MAX && missing; at++) {
			struct piece piece = piece_at(p, at, run);
			uint32_t counted =
				*piece.len - piece_end(&piece, 0, half_key(KVG_SCORE_PROTECTED));

			missing -= counted < missing ? counted : missing;
		}
		for (uint64_t at = block; at < block + KVG_PLANES_MAX && missing; at++) {
			struct piece piece = piece_at(p, at, run);
			uint32_t more = piece.n - *piece.len;

			if (more > missing)
				more = missing;
			*piece.len += more;
			missing -= more;
		}
	}
}

static const struct source_ops planes_ops = {
	.key_shift = 16,
	.threshold = half_threshold,
	.left = planes_left,
	.tally = planes_tally,
	.keep = planes_keep,
	.floor = planes_floor,
};

int select_planes(const struct select_params *p, const struct select_block *blocks,
	uint32_t n_blocks, uint32_t layers, uint32_t heads, uint32_t *ret_len)
{
	struct planes s = {{&planes_ops}, blocks, n_blocks, layers * heads, ret_len};

	if (!params_valid(p, layers, heads))
		return -EINVAL;
	for (uint32_t b = 0; b < n_blocks; b++) {
		if (blocks[b].n_planes > KVG_PLANES_MAX)
			return -EINVAL;
		for (uint32_t i = 0; i < blocks[b].n_planes; i++)
			if (blocks[b].plane[i].runs && blocks[b].plane[i].runs != s.runs)
				return -EINVAL;
	}
	for (uint64_t at = 0; at < n_pieces(&s); at++)
		for (uint32_t run = 0; run < s.runs; run++) {
			struct piece piece = piece_at(&s, at, run);

			*piece.len = piece_end(&piece, 0, half_key(KVG_SCORE_PROTECTED));
		}
	select_from(p, &s.source, layers, heads);
	return 0;
}

/* ---- the paper's own schedules ---- */

void select_window(uint64_t context, uint64_t chunk, uint64_t window, double r,
	uint64_t *ret_window, double *ret_retained)
{
	double wanted = r * (double)context;

	if (context < chunk)
		window = part(context, 0.02);
	if (r < 1 && wanted < (double)window) {
		window = (uint64_t)wanted;
		r = 0;
	} else if (r < 1 && context > window) {
		r = (wanted - (double)window) / (double)(context - window);
	}
	*ret_window = window;
	*ret_retained = r;
}

float select_decode_threshold(const float *scores, uint64_t n_rows, uint64_t budget_rows)
{
	struct dense rows = {{&dense_ops}, scores, n_rows, NULL};

	if (n_rows <= budget_rows)
		return -INFINITY;
	if (!budget_rows)
		return INFINITY;
	return dense_score(cut_best(&rows.source, 0, 1, budget_rows).key);
}
