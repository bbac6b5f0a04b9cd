/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every reader ends here, with a list of tensors. One of them, present in layer 0, tells the kind; the
 * kind's parts (gate_parts) tell what each layer has, once the sizes were read off the first layer's shapes.
 * Then each part of each layer must be there with exactly the shape that follows, and nothing else: so
 * sizes that do not fit together need no checks of their own.
 *
 * The first projection's dtype is the gate's, and the model's: bf16, f16 or f32. Nothing is rounded on the way in:
 * what a model multiplies in that dtype may come in another one, but then its values must be in both. bf16
 * weights are held as bf16, others as f32.
 */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate_private.h"
#include "gates/score.h"
#include "gates/why.h"

#define ALIGN 64u

struct building {
	const struct safetensors_tensor *tensors;
	uint32_t n;
	char *why;
	size_t why_size;
};

#define refuse(bu, error, ...) why((bu)->why, (bu)->why_size, error, __VA_ARGS__)

/* ---- tensors ---- */

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct safetensors_tensor *)a)->name,
		((const struct safetensors_tensor *)b)->name);
}

static const struct safetensors_tensor *find(
	const struct building *bu, uint32_t layer, const char *suffix)
{
	char name[64];
	struct safetensors_tensor key = {.name = name};

	snprintf(name, sizeof(name), "layers.%u.%s", layer, suffix);
	return bsearch(&key, bu->tensors, bu->n, sizeof(key), by_name);
}

static float element(const struct safetensors_tensor *t, uint64_t i)
{
	const uint8_t *p = (const uint8_t *)t->data + i * safetensors_dtype_bytes(t->dtype);
	uint32_t low = (uint32_t)p[0] | (uint32_t)p[1] << 8;
	union {
		uint32_t u;
		float f;
	} v;

	switch (t->dtype) {
	case SAFETENSORS_BF16:
		return bf16_to_f32((uint16_t)low);
	case SAFETENSORS_F16:
		return f16_to_f32((uint16_t)low);
	default:
		v.u = low | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
		return v.f;
	}
}

static uint32_t gate_dtype(const struct safetensors_tensor *projection)
{
	switch (projection->dtype) {
	case SAFETENSORS_BF16:
		return KVG_DTYPE_BF16;
	case SAFETENSORS_F16:
		return KVG_DTYPE_F16;
	default: /* or refused, when it is looked at like all others */
		return KVG_DTYPE_F32;
	}
}

static int check_values(
	const struct building *bu, const struct safetensors_tensor *t, const struct gate_part *p)
{
	uint64_t n = t->bytes / safetensors_dtype_bytes(t->dtype);
	uint32_t dtype = gate_dtype(&(struct safetensors_tensor){.dtype = p->dtype});

	for (uint64_t i = 0; i < n; i++) {
		float f = element(t, i);

		if (!isfinite(f))
			return refuse(bu, -EINVAL, "%s holds NaN or infinity", t->name);
		if (t->dtype != p->dtype && gate_round(f, dtype) != f)
			return refuse(bu, -EINVAL,
				"%s is %s and would be rounded to the %s of the projections; save "
				"the gate in one dtype",
				t->name, safetensors_dtype_name(t->dtype),
				safetensors_dtype_name(p->dtype));
	}
	return 0;
}

static int check_tensor(
	const struct building *bu, const struct safetensors_tensor *t, const struct gate_part *p)
{
	if (t->dtype != SAFETENSORS_BF16 && t->dtype != SAFETENSORS_F16 &&
		t->dtype != SAFETENSORS_F32)
		return refuse(bu, -EINVAL, "%s is %s; gates are BF16, F16 or F32", t->name,
			safetensors_dtype_name(t->dtype));
	if (t->ndim != p->ndim || memcmp(t->shape, p->shape, t->ndim * sizeof(*t->shape)) != 0)
		return refuse(
			bu, -EINVAL, "%s has not the shape that the first layer asks for", t->name);
	return check_values(bu, t, p);
}

/* ---- sizes ---- */

static int wrong_shape(
	const struct building *bu, const struct safetensors_tensor *t, const char *wanted)
{
	return refuse(bu, -EINVAL, "%s: its shape should be %s", t->name, wanted);
}

static int size_fast_kvzip(const struct building *bu, struct gate_info *info)
{
	const struct safetensors_tensor *base = find(bu, 0, "k_base"), *b = find(bu, 0, "b");
	const struct safetensors_tensor *q = find(bu, 0, "q_proj.weight");

	if (!b || !q)
		return refuse(
			bu, -EINVAL, "layer 0 has k_base but not %s", b ? "q_proj.weight" : "b");
	if (base->ndim != 4 || base->shape[1] != 1)
		return wrong_shape(bu, base, "[H, 1, S, d']");
	if (b->ndim != 3 || b->shape[1] != 1)
		return wrong_shape(bu, b, "[H, 1, G]");
	if (q->ndim != 2)
		return wrong_shape(bu, q, "[H G d', D]");
	if (base->shape[0] > KVG_HEADS_MAX || base->shape[2] > GATE_SINKS_MAX ||
		base->shape[3] > GATE_DIM_MAX || b->shape[2] > GATE_GROUPS_MAX ||
		base->shape[0] * (b->shape[2] + 1) * base->shape[3] > GATE_ROWS_MAX ||
		q->shape[1] > KVG_HIDDEN_MAX)
		return refuse(bu, -EINVAL,
			"a gate larger than any model: H %" PRIu64 ", G %" PRIu64 ", S %" PRIu64
			", d' %" PRIu64 ", D %" PRIu64,
			base->shape[0], b->shape[2], base->shape[2], base->shape[3], q->shape[1]);
	info->kind = GATE_FAST_KVZIP;
	info->dtype = gate_dtype(q);
	info->heads = (uint32_t)base->shape[0];
	info->groups = (uint32_t)b->shape[2];
	info->sinks = (uint32_t)base->shape[2];
	info->dim = (uint32_t)base->shape[3];
	info->hidden = (uint32_t)q->shape[1];
	if (!info->heads || !info->groups || !info->sinks || !info->dim || !info->hidden)
		return refuse(bu, -EINVAL, "a gate with a size of zero");
	return 0;
}

static int size_kvzap(const struct building *bu, struct gate_info *info)
{
	const struct safetensors_tensor *in = find(bu, 0, "weight"), *out = in;

	info->kind = GATE_KVZAP_LINEAR;
	if (!in) {
		info->kind = GATE_KVZAP_MLP;
		in = find(bu, 0, "0.weight");
		out = find(bu, 0, "2.weight");
	}
	if (!in || !out)
		return refuse(bu, -EINVAL,
			"not a gate: no layers.0.k_base, no layers.0.weight, no "
			"layers.0.0.weight with layers.0.2.weight");
	if (in->ndim != 2)
		return wrong_shape(bu, in, "[rows, D]");
	if (out->ndim != 2)
		return wrong_shape(bu, out, "[H, hidden]");
	if (in->shape[0] > KVG_HIDDEN_MAX || in->shape[1] > KVG_HIDDEN_MAX ||
		out->shape[0] > KVG_HEADS_MAX)
		return refuse(bu, -EINVAL,
			"a gate larger than any model: H %" PRIu64 ", D %" PRIu64, out->shape[0],
			in->shape[1]);
	info->dtype = gate_dtype(in);
	info->heads = (uint32_t)out->shape[0];
	info->hidden = (uint32_t)in->shape[1];
	info->mlp = info->kind == GATE_KVZAP_MLP ? (uint32_t)in->shape[0] : 0;
	if (!info->heads || !info->hidden || !in->shape[0])
		return refuse(bu, -EINVAL, "a gate with a size of zero");
	return 0;
}

/* ---- packing ---- */

static void *allocate(uint64_t bytes)
{
	bytes = (bytes + ALIGN - 1) & ~(uint64_t)(ALIGN - 1);
	return aligned_alloc(ALIGN, bytes ? bytes : ALIGN);
}

static uint64_t packed_values(uint64_t rows, uint64_t columns)
{
	return (rows + GATE_ROWS - 1) / GATE_ROWS * GATE_ROWS *
		((columns + GATE_DEPTH - 1) / GATE_DEPTH * GATE_DEPTH);
}

static size_t element_bytes(const struct gate_matrix *m)
{
	return m->wide ? sizeof(float) : sizeof(uint16_t);
}

static int matrix_init(struct gate_matrix *m, uint32_t rows, uint32_t columns, uint32_t dtype)
{
	uint64_t weights, bias;

	m->wide = dtype != KVG_DTYPE_BF16;
	m->rows = rows;
	m->columns = columns;
	m->blocks = (rows + GATE_ROWS - 1) / GATE_ROWS;
	m->depth = (columns + GATE_DEPTH - 1) / GATE_DEPTH * GATE_DEPTH;
	weights = packed_values(rows, columns) * element_bytes(m);
	bias = (uint64_t)m->blocks * GATE_ROWS * sizeof(*m->bias);
	m->w = allocate(weights);
	m->bias = allocate(bias);
	if (!m->w || !m->bias)
		return -ENOMEM;
	memset(m->w, 0, weights);
	memset(m->bias, 0, bias);
	return 0;
}

static void matrix_fini(struct gate_matrix *m)
{
	free(m->w);
	free(m->bias);
}

static size_t place_of(const struct gate_matrix *m, uint32_t row, uint32_t column)
{
	size_t block = (size_t)(row / GATE_ROWS) * m->depth * GATE_ROWS;

	if (m->wide)
		return block + (size_t)column * GATE_ROWS + row % GATE_ROWS;
	return block + (size_t)(column / 2) * 2 * GATE_ROWS + row % GATE_ROWS * 2 + column % 2;
}

float gate_matrix_at(const struct gate_matrix *m, uint32_t row, uint32_t column)
{
	size_t at = place_of(m, row, column);

	return m->wide ? ((const float *)m->w)[at] : bf16_to_f32(((const uint16_t *)m->w)[at]);
}

static void put_weight(struct gate_matrix *m, uint32_t row, uint32_t column, float value)
{
	size_t at = place_of(m, row, column);

	if (m->wide)
		((float *)m->w)[at] = value;
	else
		((uint16_t *)m->w)[at] = bf16_from_f32(value);
}

static void pack(struct gate_matrix *m, uint32_t first_row, const struct safetensors_tensor *t)
{
	uint64_t i = 0;

	for (uint32_t r = 0; r < t->shape[0]; r++)
		for (uint32_t c = 0; c < m->columns; c++, i++)
			put_weight(m, first_row + r, c, element(t, i));
}

static void pack_bias(struct gate_matrix *m, const struct safetensors_tensor *t)
{
	for (uint32_t i = 0; i < t->shape[0]; i++)
		m->bias[i] = element(t, i);
}

static int copy_floats(const struct safetensors_tensor *t, float **ret)
{
	uint64_t n = t->bytes / safetensors_dtype_bytes(t->dtype);
	float *f = allocate(n * sizeof(*f));

	if (!f)
		return -ENOMEM;
	for (uint64_t i = 0; i < n; i++)
		f[i] = element(t, i);
	*ret = f;
	return 0;
}

static int build_fast_kvzip(
	const struct building *bu, const struct gate_info *info, uint32_t l, struct gate_layer *y)
{
	uint32_t q_rows = info->heads * info->groups * info->dim;
	int r = matrix_init(&y->in, q_rows + info->heads * info->dim, info->hidden, info->dtype);

	if (r < 0)
		return r;
	pack(&y->in, 0, find(bu, l, "q_proj.weight"));
	pack(&y->in, q_rows, find(bu, l, "k_proj.weight"));
	pack_bias(&y->in, find(bu, l, "q_proj.bias"));
	r = copy_floats(find(bu, l, "b"), &y->b);
	if (r == 0)
		r = copy_floats(find(bu, l, "k_base"), &y->k_base);
	if (r == 0)
		r = copy_floats(find(bu, l, "q_norm.weight"), &y->q_norm);
	if (r == 0)
		r = copy_floats(find(bu, l, "k_norm.weight"), &y->k_norm);
	return r;
}

static int build_matrix(const struct building *bu, uint32_t dtype, uint32_t l, const char *weight,
	const char *bias, struct gate_matrix *m)
{
	const struct safetensors_tensor *w = find(bu, l, weight);
	int r = matrix_init(m, (uint32_t)w->shape[0], (uint32_t)w->shape[1], dtype);

	if (r < 0)
		return r;
	pack(m, 0, w);
	pack_bias(m, find(bu, l, bias));
	return 0;
}

static int build_layer(
	const struct building *bu, const struct gate_info *info, uint32_t l, struct gate_layer *y)
{
	int r;

	switch (info->kind) {
	case GATE_FAST_KVZIP:
		return build_fast_kvzip(bu, info, l, y);
	case GATE_KVZAP_LINEAR:
		return build_matrix(bu, info->dtype, l, "weight", "bias", &y->in);
	case GATE_KVZAP_MLP:
		r = build_matrix(bu, info->dtype, l, "0.weight", "0.bias", &y->in);
		return r < 0 ? r : build_matrix(bu, info->dtype, l, "2.weight", "2.bias", &y->out);
	}
	return -EINVAL;
}

/* ---- whole ---- */

/* Few columns, or rows, are padded to many, so a small file could ask for much memory. */
static int check_memory(const struct building *bu, const struct gate_info *info)
{
	uint64_t rows = (uint64_t)info->heads * (info->groups + 1) * info->dim;
	uint64_t bytes = info->dtype == KVG_DTYPE_BF16 ? sizeof(uint16_t) : sizeof(float), n;

	if (info->kind == GATE_KVZAP_LINEAR)
		rows = info->heads;
	else if (info->kind == GATE_KVZAP_MLP)
		rows = info->mlp;
	n = packed_values(rows, info->hidden) + packed_values(info->heads, info->mlp);
	if (n > GATE_BYTES_MAX / bytes / info->layers)
		return refuse(bu, -EINVAL,
			"its weights would take %" PRIu64 " MB of memory, at most %llu are given",
			(n * bytes * info->layers) >> 20, GATE_BYTES_MAX >> 20);
	return 0;
}

static int check_layers(const struct building *bu, struct gate_info *info)
{
	struct gate_part parts[GATE_PARTS_MAX];
	unsigned n_parts = gate_parts(info, parts);
	int r;

	if (bu->n % n_parts || bu->n / n_parts > KVG_LAYERS_MAX)
		return refuse(bu, -EINVAL,
			"%u tensors; a gate of this kind has %u in each layer, in "
			"at most %u layers",
			bu->n, n_parts, KVG_LAYERS_MAX);
	info->layers = bu->n / n_parts;
	r = check_memory(bu, info);
	if (r < 0)
		return r;
	for (uint32_t l = 0; l < info->layers; l++) {
		for (unsigned i = 0; i < n_parts; i++) {
			const struct safetensors_tensor *t = find(bu, l, parts[i].suffix);

			if (!t)
				return refuse(bu, -EINVAL,
					"layers.%u.%s is missing among %u layers", l,
					parts[i].suffix, info->layers);
			r = check_tensor(bu, t, &parts[i]);
			if (r < 0)
				return r;
		}
	}
	return 0;
}

int gate_build(const struct safetensors_tensor *tensors, uint32_t n, struct gate **ret,
	char *ret_why, size_t why_size)
{
	struct building bu = {tensors, n, ret_why, why_size};
	struct gate_info info = {0};
	struct gate *g;
	int r;

	r = find(&bu, 0, "k_base") ? size_fast_kvzip(&bu, &info) : size_kvzap(&bu, &info);
	if (r == 0)
		r = check_layers(&bu, &info);
	if (r < 0)
		return r;
	g = calloc(1, sizeof(*g));
	if (!g)
		return refuse(&bu, -ENOMEM, "out of memory");
	g->info = info;
	g->info.isa = score_best_isa(info.dtype);
	g->layers = calloc(info.layers, sizeof(*g->layers));
	r = g->layers ? 0 : -ENOMEM;
	for (uint32_t l = 0; r == 0 && l < info.layers; l++)
		r = build_layer(&bu, &info, l, &g->layers[l]);
	if (r == 0)
		r = gate_digest(g, g->info.digest);
	if (r < 0) {
		gate_free(g);
		return refuse(&bu, r, "%s", strerror(-r));
	}
	*ret = g;
	return 0;
}

struct gate *gate_free(struct gate *g)
{
	if (!g)
		return NULL;
	for (uint32_t l = 0; g->layers && l < g->info.layers; l++) {
		struct gate_layer *y = &g->layers[l];

		matrix_fini(&y->in);
		matrix_fini(&y->out);
		free(y->b);
		free(y->k_base);
		free(y->q_norm);
		free(y->k_norm);
	}
	free(g->layers);
	free(g->training);
	free(g);
	return NULL;
}

const struct gate_info *gate_info(const struct gate *g)
{
	return &g->info;
}
