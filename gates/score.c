/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Scoring is one matrix product and some arithmetic on its few results. The product is cut into panels, so
 * that what is read again and again stays in the second-level cache: for each stretch of columns, all tokens
 * of a chunk are packed once (about 0.3 to 0.6 MB), then the weights pass over them by one or two blocks of
 * 16 rows, so weights come from memory once a chunk, and a block stays in the first-level cache:
 *
 *     c[token][row] += panel[token][column] * w[row][column]      columns outermost, then rows, then tokens
 *
 * bf16 times bf16 is exact in f32 and all paths add up in f32, so `exact` and `fast` have the same product;
 * they differ in what is rounded afterwards, to the gate's dtype or not at all. Only f32 hidden states are another
 * matter: `exact` rounds them to the gate's dtype first, as the reference is given them; `fast` does not. Wherever one
 * side is no bf16, products are f32's, even where there are better instructions for bf16.
 */
#include "gates/score.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ALIGN 64u

struct gate_scratch {
	uint32_t tokens; /* of one chunk */
	void *panels;
	float *wide; /* one block of weights, for paths that widen them */
	float *c;    /* [tokens][rows of the first matrix] */
	float *out;  /* [tokens][rows of the second] */
	float *v;
};

static uint32_t min_u32(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static uint32_t round_up(uint32_t n, uint32_t to)
{
	return (n + to - 1) / to * to;
}

static const struct score_ops *ops_of(enum gate_isa isa)
{
	switch (isa) {
#ifdef SCORE_X86
	case GATE_ISA_AVX2:
		return &score_avx2;
	case GATE_ISA_AVX512:
		return &score_avx512;
	case GATE_ISA_AVX512_BF16:
		return &score_avx512_bf16;
	case GATE_ISA_AMX_BF16:
		return &score_amx_bf16;
#endif
	default:
		return &score_scalar;
	}
}

static const struct score_ops *pick(
	const struct gate *g, enum gate_isa isa, const struct score_x *x)
{
	const struct score_ops *ops = ops_of(isa == GATE_ISA_AUTO ? g->info.isa : isa);

#ifdef SCORE_X86
	if (ops->bf16 &&
		(g->info.dtype != KVG_DTYPE_BF16 ||
			(x->dtype != KVG_DTYPE_BF16 && x->round != KVG_DTYPE_BF16)))
		return &score_avx512;
#else
	(void)x;
#endif
	return ops;
}

/* ---- scratch ---- */

static void *allocate(size_t bytes)
{
	return aligned_alloc(ALIGN, (bytes + ALIGN - 1) / ALIGN * ALIGN);
}

int gate_scratch_new(const struct gate *g, uint32_t tokens, struct gate_scratch **ret)
{
	const struct gate_layer *y = &g->layers[0];
	struct gate_scratch *s = calloc(1, sizeof(*s));
	size_t panels = 0, wide = 0;

	if (!s)
		return -ENOMEM;
	s->tokens = min_u32(SCORE_CHUNK, round_up(tokens ? tokens : 1, SCORE_CHUNK / 3));
	for (enum gate_isa isa = GATE_ISA_SCALAR; isa <= GATE_ISA_AMX_BF16; isa++) {
		const struct score_ops *ops = ops_of(isa);
		size_t bytes = s->tokens / ops->tile * ops->panel_bytes;

		if (bytes > panels)
			panels = bytes;
		if (ops->widen && ops->columns > wide)
			wide = ops->columns;
	}
	s->panels = allocate(panels);
	s->wide = allocate((wide + 1) * GATE_ROWS * sizeof(*s->wide));
	s->c = allocate((size_t)s->tokens * y->in.blocks * GATE_ROWS * sizeof(*s->c));
	s->out = allocate(((size_t)s->tokens * y->out.blocks * GATE_ROWS + 1) * sizeof(*s->out));
	s->v = allocate((score_lanes_floats(&g->info) + 1) * sizeof(*s->v));
	if (!s->panels || !s->wide || !s->c || !s->out || !s->v) {
		gate_scratch_free(s);
		return -ENOMEM;
	}
	*ret = s;
	return 0;
}

struct gate_scratch *gate_scratch_free(struct gate_scratch *s)
{
	if (!s)
		return NULL;
	free(s->panels);
	free(s->wide);
	free(s->c);
	free(s->out);
	free(s->v);
	free(s);
	return NULL;
}

/* ---- one chunk ---- */

static void pack_panels(const struct score_ops *ops, const struct gate_matrix *m,
	const struct score_x *x, uint32_t tokens, uint32_t first, uint32_t columns, char *panels)
{
	uint32_t used = min_u32(columns, m->columns - first);

	for (uint32_t t = 0; t < tokens; t += ops->tile, panels += ops->panel_bytes)
		ops->pack(x, t, min_u32(ops->tile, tokens - t), first, used, columns, panels);
}

/* Blocks from b on, columns from `first` on. Widening costs the kernel's time for a third of a tile. */
static struct score_w weights_at(const struct score_ops *ops, const struct gate_matrix *m,
	uint32_t b, uint32_t first, uint32_t columns, float *wide)
{
	size_t column = GATE_ROWS * (m->wide ? sizeof(float) : sizeof(uint16_t));
	struct score_w w = {.wide = m->wide, .next = m->depth * column};

	w.blocks = (const char *)m->w + b * w.next + first * column;
	if (ops->widen && !m->wide) {
		ops->widen(w.blocks, columns, wide);
		w.blocks = wide;
		w.wide = true;
	}
	return w;
}

static void project(const struct score_ops *ops, const struct gate_matrix *m,
	const struct score_x *x, struct gate_scratch *s, const struct score_c *c)
{
	if (ops->begin)
		ops->begin();
	for (uint32_t first = 0; first < m->depth; first += ops->columns) {
		uint32_t columns = min_u32(ops->columns, m->depth - first);

		pack_panels(ops, m, x, c->tokens, first, columns, s->panels);
		for (uint32_t b = 0; b < m->blocks; b += ops->blocks) {
			struct score_w w = weights_at(ops, m, b, first, columns, s->wide);
			const char *panel = s->panels;

			for (uint32_t t = 0; t < c->tokens; t += ops->tile) {
				ops->multiply(&w, min_u32(ops->blocks, m->blocks - b), panel,
					columns, c->values + t * c->stride + b * GATE_ROWS,
					c->stride, first > 0);
				panel += ops->panel_bytes;
			}
		}
	}
	if (ops->end)
		ops->end();
}

static void put_linear(const struct gate_matrix *m, const struct score_c *c, uint32_t round,
	float *ret_scores, size_t score_stride)
{
	for (uint32_t r = 0; r < m->rows; r++) {
		for (uint32_t t = 0; t < c->tokens; t++) {
			float v = c->values[t * c->stride + r] + m->bias[r];

			ret_scores[r * score_stride + t] = gate_round(v, round);
		}
	}
}

static void score_chunk(const struct gate *g, const struct gate_layer *y, const struct score_x *x,
	uint32_t tokens, enum gate_isa isa, struct gate_scratch *s, float *ret_scores,
	size_t score_stride)
{
	const struct score_ops *ops = pick(g, isa, x);
	struct score_c c = {s->c, (size_t)y->in.blocks * GATE_ROWS, tokens};
	struct score_c out = {s->out, (size_t)y->out.blocks * GATE_ROWS, tokens};
	struct score_x h = {s->c, KVG_DTYPE_F32, c.stride, x->round};

	project(ops, &y->in, x, s, &c);
	switch (g->info.kind) {
	case GATE_FAST_KVZIP:
		ops->fast_kvzip(g, y, &c, x->round, s->v, ret_scores, score_stride);
		break;
	case GATE_KVZAP_LINEAR:
		put_linear(&y->in, &c, x->round, ret_scores, score_stride);
		break;
	case GATE_KVZAP_MLP:
		ops->gelu(&y->in, &c, x->round);
		project(pick(g, isa, &h), &y->out, &h, s, &out);
		put_linear(&y->out, &out, x->round, ret_scores, score_stride);
		break;
	}
}

void gate_score(const struct gate *g, uint32_t layer, const void *x, uint32_t x_dtype,
	size_t x_stride, uint32_t tokens, enum gate_arithmetic arithmetic, enum gate_isa isa,
	struct gate_scratch *scratch, float *ret_scores, size_t score_stride)
{
	assert(layer < g->info.layers);
	assert(x_dtype == KVG_DTYPE_BF16 || x_dtype == KVG_DTYPE_F32);
	for (uint32_t t = 0; t < tokens; t += scratch->tokens) {
		struct score_x rows = {
			.data = (const char *)x + t * x_stride * dtype_bytes(x_dtype),
			.dtype = x_dtype,
			.stride = x_stride,
			.round = arithmetic == GATE_EXACT ? g->info.dtype : KVG_DTYPE_F32,
		};

		score_chunk(g, &g->layers[layer], &rows, min_u32(scratch->tokens, tokens - t), isa,
			scratch, ret_scores + t, score_stride);
	}
}

/* ---- many layers, many threads ---- */

struct score_job {
	const struct gate *g;
	const char *x;
	uint32_t x_dtype, tokens;
	enum gate_arithmetic arithmetic;
	enum gate_isa isa;
	float *scores;
	uint32_t chunk, chunks; /* tokens of one piece, pieces of one layer */
	_Atomic uint32_t next;  /* layer * chunks + piece */
};

struct score_worker {
	struct score_job *job;
	struct gate_scratch *scratch;
	pthread_t thread;
	bool started;
};

static void *work(void *userdata)
{
	struct score_worker *w = userdata;
	struct score_job *j = w->job;
	const struct gate_info *i = &j->g->info;
	size_t row = i->hidden * dtype_bytes(j->x_dtype);
	uint32_t n;

	while ((n = atomic_fetch_add(&j->next, 1)) < i->layers * j->chunks) {
		uint32_t layer = n / j->chunks, first = n % j->chunks * j->chunk;

		gate_score(j->g, layer, j->x + ((size_t)layer * j->tokens + first) * row,
			j->x_dtype, i->hidden, min_u32(j->chunk, j->tokens - first), j->arithmetic,
			j->isa, w->scratch,
			j->scores + (size_t)layer * i->heads * j->tokens + first, j->tokens);
	}
	return NULL;
}

int gate_score_all(const struct gate *g, const void *x, uint32_t x_dtype, uint32_t tokens,
	enum gate_arithmetic arithmetic, enum gate_isa isa, unsigned n_threads, float *ret_scores)
{
	struct score_job job = {.g = g,
		.x = x,
		.x_dtype = x_dtype,
		.tokens = tokens,
		.arithmetic = arithmetic,
		.isa = isa,
		.scores = ret_scores,
		.chunk = min_u32(tokens, SCORE_CHUNK)};
	struct score_worker *workers;
	int r = 0;

	if (tokens == 0)
		return 0;
	job.chunks = (tokens + job.chunk - 1) / job.chunk;
	n_threads = min_u32(n_threads ? n_threads : 1, g->info.layers * job.chunks);
	workers = calloc(n_threads, sizeof(*workers));
	if (!workers)
		return -ENOMEM;
	for (unsigned i = 0; i < n_threads && r == 0; i++) {
		workers[i].job = &job;
		r = gate_scratch_new(g, job.chunk, &workers[i].scratch);
	}
	/* A thread that cannot be started leaves its share to the others; the caller is always one of them. */
	for (unsigned i = 1; i < n_threads && r == 0; i++)
		workers[i].started = pthread_create(&workers[i].thread, NULL, work, &workers[i]) ==
			0;
	if (r == 0)
		work(&workers[0]);
	for (unsigned i = 0; i < n_threads; i++) {
		if (workers[i].started)
			pthread_join(workers[i].thread, NULL);
		gate_scratch_free(workers[i].scratch);
	}
	free(workers);
	return r;
}
