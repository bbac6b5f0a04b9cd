/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The Qwen3 decoder, from top to bottom. All spans' tokens are rows of the same matrices, so that
 * weights are read once for all of them; only attention looks at each span by itself.
 *
 *	x = embedding[token]
 *	each layer:
 *	    h = rms(x)		qkv = h Wqkv		q, k = rotate(rms(q), rms(k))
 *	    k, v to the sequence's own rows
 *	    x += attention(q | planes, own rows) Wo
 *	    h = rms(x)		x += (silu(h Wgate) * (h Wup)) Wdown
 *	logits = rms(x) Wlogits
 */
#include "client/worker/forward.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <cblas.h>

#include "proto/kvgate-types.h"

struct forward {
	const struct model *model;
	struct attention *attention;
	struct kv_run *own;      /* [kv_heads] */
	struct kv_rows *kv_rows; /* [kv_heads] */
	uint32_t max_rows;
	float *x;        /* [rows][hidden] */
	float *h;        /* [rows][hidden], x after a norm */
	float *qkv;      /* [rows][(heads + 2 kv_heads) * head_dim] */
	float *attended; /* [rows][heads * head_dim] */
	float *mlp;      /* [rows][2 mlp] */
	float *angle;    /* [rows][head_dim]: cosines, then sines */
	float *logits;   /* [max_logits][vocab] */
	uint32_t max_logits;
	struct span *last; /* [rows], spans cut to the rows whose logits are wanted */
};

int forward_new(const struct model *m, uint32_t rows, enum attention_isa isa, struct forward **ret)
{
	const struct model_config *c = &m->config;
	struct forward *f = calloc(1, sizeof(*f));
	int r;

	if (!f)
		return -ENOMEM;
	f->model = m;
	f->max_rows = rows;
	f->x = malloc((size_t)rows * c->hidden * sizeof(float));
	f->h = malloc((size_t)rows * c->hidden * sizeof(float));
	f->qkv = malloc((size_t)rows * (c->heads + 2 * c->kv_heads) * c->head_dim * sizeof(float));
	f->attended = malloc((size_t)rows * c->heads * c->head_dim * sizeof(float));
	f->mlp = malloc((size_t)rows * 2 * c->mlp * sizeof(float));
	f->angle = malloc((size_t)rows * c->head_dim * sizeof(float));
	f->last = malloc(rows * sizeof(*f->last));
	f->own = malloc(c->kv_heads * sizeof(*f->own));
	f->kv_rows = malloc(c->kv_heads * sizeof(*f->kv_rows));
	r = attention_new(c->kv_heads, c->head_dim, c->head_dim, isa, &f->attention);
	if (r < 0 || !f->own || !f->kv_rows || !f->x || !f->h || !f->qkv || !f->attended ||
		!f->mlp || !f->angle || !f->last) {
		forward_free(f);
		return -ENOMEM;
	}
	*ret = f;
	return 0;
}

struct forward *forward_free(struct forward *f)
{
	if (f) {
		attention_free(f->attention);
		free(f->x);
		free(f->h);
		free(f->qkv);
		free(f->attended);
		free(f->mlp);
		free(f->angle);
		free(f->logits);
		free(f->last);
		free(f->own);
		free(f->kv_rows);
		free(f);
	}
	return NULL;
}

uint32_t forward_rows(const struct forward *f)
{
	return f->max_rows;
}

/* ---- pieces ---- */

/* y [rows][out] = x [rows][in] w^T, added to what is there with `add`. w is [out][in]. */
static void product(float *y, const float *x, const float *w, uint32_t rows, uint32_t in,
	uint32_t out, bool add)
{
	const float beta = add ? 1.0f : 0.0f;

	if (rows == 1)
		cblas_sgemv(CblasRowMajor, CblasNoTrans, (int)out, (int)in, 1.0f, w, (int)in, x, 1,
			beta, y, 1);
	else
		cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)out, (int)in,
			1.0f, x, (int)in, w, (int)in, beta, y, (int)out);
}

/* Eight sums side by side: faster than one, and closer to the true sum. */
static float sum_of_squares(const float *x, uint32_t n)
{
	float part[8] = {0.0f};
	uint32_t i = 0;

	for (; i + 8 <= n; i += 8)
		for (uint32_t j = 0; j < 8; j++)
			part[j] += x[i + j] * x[i + j];
	for (; i < n; i++)
		part[0] += x[i] * x[i];
	return ((part[0] + part[4]) + (part[1] + part[5])) +
		((part[2] + part[6]) + (part[3] + part[7]));
}

static void rms(float *y, const float *x, const float *weight, uint32_t n, float eps)
{
	const float scale = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + eps);

	for (uint32_t i = 0; i < n; i++)
		y[i] = weight[i] * (x[i] * scale);
}

static void rms_rows(
	const struct forward *f, float *y, const float *x, const float *weight, uint32_t rows)
{
	const uint32_t n = f->model->config.hidden;

	for (uint32_t i = 0; i < rows; i++)
		rms(y + (size_t)i * n, x + (size_t)i * n, weight, n, f->model->config.rms_eps);
}

/* Cosines and sines of one position, in f32 throughout as the reference has them. */
static void angles(float *ret, uint32_t position, uint32_t dim, float theta)
{
	const uint32_t half = dim / 2;

	for (uint32_t i = 0; i < half; i++) {
		const float exponent = (float)(2 * i) / (float)dim;
		const float angle = (float)position * (1.0f / powf(theta, exponent));

		ret[i] = cosf(angle);
		ret[half + i] = sinf(angle);
	}
}

/* Pairs are (i, i + dim / 2). */
static void rotate(float *x, const float *angle, uint32_t dim)
{
	const uint32_t half = dim / 2;

	for (uint32_t i = 0; i < half; i++) {
		const float a = x[i], b = x[half + i];

		x[i] = a * angle[i] - b * angle[half + i];
		x[half + i] = b * angle[i] + a * angle[half + i];
	}
}

static void silu_times(float *gate, const float *up, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++)
		gate[i] = gate[i] / (1.0f + expf(-gate[i])) * up[i];
}

/* ---- one layer ---- */

static uint32_t qkv_width(const struct model_config *c)
{
	return (c->heads + 2 * c->kv_heads) * c->head_dim;
}

static void norm_and_rotate(struct forward *f, const struct model_layer *w, uint32_t rows)
{
	const struct model_config *c = &f->model->config;

	for (uint32_t i = 0; i < rows; i++)
		for (uint32_t h = 0; h < c->heads + c->kv_heads; h++) {
			float *head = f->qkv + (size_t)i * qkv_width(c) + (size_t)h * c->head_dim;

			rms(head, head, h < c->heads ? w->q_norm : w->k_norm, c->head_dim,
				c->rms_eps);
			rotate(head, f->angle + (size_t)i * c->head_dim, c->head_dim);
		}
}

/* Appends the K and V of a span's rows to the sequence; qkv is its first row. */
static void append(const struct span *s, uint32_t layer, const float *qkv)
{
	const struct model_config *c = s->sequence->config;
	const size_t bytes = c->head_dim * sizeof(float);

	for (uint32_t h = 0; h < c->kv_heads; h++) {
		const uint32_t run = layer * c->kv_heads + h, n = s->sequence->n[run];
		const float *k = qkv + (size_t)(c->heads + h) * c->head_dim;
		const float *v = k + (size_t)c->kv_heads * c->head_dim;

		assert(s->n <= s->sequence->capacity - n);
		for (uint32_t i = 0; i < s->n; i++) {
			memcpy(sequence_k(s->sequence, run, n + i), k + (size_t)i * qkv_width(c),
				bytes);
			memcpy(sequence_v(s->sequence, run, n + i), v + (size_t)i * qkv_width(c),
				bytes);
		}
		s->sequence->n[run] = n + s->n;
	}
}

static const struct kv_rows *planes_of(
	struct forward *f, const struct context *context, uint32_t layer)
{
	const uint32_t heads = f->model->config.kv_heads;
	const uint32_t *first = context->first + layer * heads;

	for (uint32_t h = 0; h < heads; h++)
		f->kv_rows[h] = (struct kv_rows){.run = context->run + first[h],
			.n_runs = first[h + 1] - first[h],
			.dtype = context->dtype};
	return f->kv_rows;
}

static const struct kv_rows *own_rows_of(
	struct forward *f, const struct sequence *s, uint32_t layer)
{
	const uint32_t heads = f->model->config.kv_heads;

	for (uint32_t h = 0; h < heads; h++) {
		const uint32_t run = layer * heads + h;

		f->own[h] = (struct kv_run){
			.k = sequence_k(s, run, 0), .v = sequence_v(s, run, 0), .n = s->n[run]};
		f->kv_rows[h] =
			(struct kv_rows){.run = &f->own[h], .n_runs = 1, .dtype = KVG_DTYPE_F32};
	}
	return f->kv_rows;
}

/* One span: first what lies in planes, then the own rows, each query up to itself. */
static void attend(struct forward *f, const struct span *s, uint32_t layer, uint32_t row)
{
	const struct model_config *c = &f->model->config;
	const struct context *context = s->sequence->context;
	const uint32_t group = model_group(c), width = c->heads * c->head_dim;
	const uint32_t step = ATTENTION_QUERIES_MAX / group ? ATTENTION_QUERIES_MAX / group : 1;

	for (uint32_t i = 0; i < s->n; i += step) {
		const uint32_t n = s->n - i < step ? s->n - i : step;
		const size_t at = (size_t)row + i;

		attention_begin(
			f->attention, f->qkv + at * qkv_width(c), n * group, group, qkv_width(c));
		if (context && context->pairs)
			attention_rows(f->attention, planes_of(f, context, layer));
		attention_rows_causal(
			f->attention, own_rows_of(f, s->sequence, layer), s->n - i - 1);
		attention_end(f->attention, f->attended + at * width, width);
	}
}

/* Queries, keys and values of all rows; the latter two become the sequences'. */
static int project(struct forward *f, const struct span *spans, uint32_t n_spans, uint32_t layer,
	uint32_t rows)
{
	const struct model_config *c = &f->model->config;
	const struct model_layer *w = &f->model->layer[layer];
	uint32_t row = 0;
	int r = 0;

	rms_rows(f, f->h, f->x, w->attention_norm, rows);
	product(f->qkv, f->h, w->qkv, rows, c->hidden, qkv_width(c), false);
	norm_and_rotate(f, w, rows);
	for (uint32_t i = 0; r == 0 && i < n_spans; row += spans[i++].n) {
		struct sequence *s = spans[i].sequence;
		const float *qkv = f->qkv + (size_t)row * qkv_width(c);

		append(&spans[i], layer, qkv);
		if (s->observe)
			r = s->observe(s->userdata, s,
				&(struct observation){.layer = layer,
					.n = spans[i].n,
					.x = f->h + (size_t)row * c->hidden,
					.q = qkv,
					.stride = qkv_width(c)});
	}
	return r;
}

/*
 * What the last layer makes of a row is read by that row's logits alone. Cuts spans and rows to
 * those: in a prompt's prefill nearly nothing is left. Returns the rows that are.
 */
static uint32_t cut_to_logits(struct forward *f, const struct span *spans, uint32_t n_spans)
{
	const size_t x = f->model->config.hidden, qkv = qkv_width(&f->model->config);
	uint32_t from = 0, to = 0;

	for (uint32_t i = 0; i < n_spans; i++) {
		const uint32_t n = spans[i].n_logits;

		from += spans[i].n - n;
		memmove(f->x + to * x, f->x + from * x, n * x * sizeof(float));
		memmove(f->qkv + to * qkv, f->qkv + from * qkv, n * qkv * sizeof(float));
		f->last[i] = spans[i];
		f->last[i].n = n;
		from += n;
		to += n;
	}
	return to;
}

static void attention_block(struct forward *f, const struct span *spans, uint32_t n_spans,
	uint32_t layer, uint32_t rows)
{
	const struct model_config *c = &f->model->config;
	uint32_t row = 0;

	for (uint32_t i = 0; i < n_spans; row += spans[i++].n)
		attend(f, &spans[i], layer, row);
	product(f->x, f->attended, f->model->layer[layer].output, rows, c->heads * c->head_dim,
		c->hidden, true);
}

static void mlp_block(struct forward *f, uint32_t layer, uint32_t rows)
{
	const struct model_config *c = &f->model->config;
	const struct model_layer *w = &f->model->layer[layer];

	rms_rows(f, f->h, f->x, w->mlp_norm, rows);
	product(f->mlp, f->h, w->gate_up, rows, c->hidden, 2 * c->mlp, false);
	for (uint32_t i = 0; i < rows; i++) {
		float *gate = f->mlp + (size_t)i * 2 * c->mlp;

		silu_times(gate, gate + c->mlp, c->mlp);
	}
	cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)rows, (int)c->hidden, (int)c->mlp,
		1.0f, f->mlp, (int)(2 * c->mlp), w->down, (int)c->mlp, 1.0f, f->x, (int)c->hidden);
}

/* ---- all of it ---- */

static uint32_t embed(struct forward *f, const struct span *spans, uint32_t n_spans)
{
	const struct model_config *c = &f->model->config;
	uint32_t row = 0;

	for (uint32_t i = 0; i < n_spans; i++)
		for (uint32_t j = 0; j < spans[i].n; j++, row++) {
			assert(row < f->max_rows && spans[i].tokens[j] < c->vocab);
			memcpy(f->x + (size_t)row * c->hidden,
				f->model->embedding + (size_t)spans[i].tokens[j] * c->hidden,
				c->hidden * sizeof(float));
			angles(f->angle + (size_t)row * c->head_dim,
				spans[i].sequence->position + j, c->head_dim, c->rope_theta);
		}
	return row;
}

static int logits(struct forward *f, uint32_t rows)
{
	const struct model_config *c = &f->model->config;

	if (rows > f->max_logits) {
		float *more = realloc(f->logits, (size_t)rows * c->vocab * sizeof(float));

		if (!more)
			return -ENOMEM;
		f->logits = more;
		f->max_logits = rows;
	}
	rms_rows(f, f->h, f->x, f->model->norm, rows);
	product(f->logits, f->h, f->model->logits, rows, c->hidden, c->vocab, false);
	return 0;
}

int forward_run(
	struct forward *f, const struct span *spans, uint32_t n_spans, const float **ret_logits)
{
	const uint32_t layers = f->model->config.layers;
	const struct span *left = spans;
	uint32_t rows = embed(f, spans, n_spans);
	int r;

	for (uint32_t layer = 0; layer < layers; layer++) {
		r = project(f, spans, n_spans, layer, rows);
		if (r < 0)
			return r;
		if (layer == layers - 1) {
			rows = cut_to_logits(f, spans, n_spans);
			left = f->last;
		}
		if (rows == 0)
			break;
		attention_block(f, left, n_spans, layer, rows);
		mlp_block(f, layer, rows);
	}
	r = rows ? logits(f, rows) : 0;
	if (r < 0)
		return r;
	for (uint32_t i = 0; i < n_spans; i++)
		spans[i].sequence->position += spans[i].n;
	if (ret_logits)
		*ret_logits = f->logits;
	return 0;
}

int forward_prefill(struct forward *f, struct sequence *s, const uint32_t *tokens, uint32_t n,
	const float **ret_logits)
{
	int r = 0;

	for (uint32_t done = 0; r == 0 && done < n;) {
		const uint32_t some = n - done < f->max_rows ? n - done : f->max_rows;
		const struct span span = {.sequence = s,
			.tokens = tokens + done,
			.n = some,
			.n_logits = done + some == n};

		r = forward_run(f, &span, 1, ret_logits);
		done += some;
	}
	return r;
}
