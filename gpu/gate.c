/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A gate goes to the device once, in the form of gpu/kernels/gate.h, all layers one after the other, so that one launch
 * scores any range of them. How wide a tile of Fast KVzip's projection is depends on the gate: whole heads go into it, and
 * of the widths there are kernels for, the one that leaves the fewest columns empty is taken.
 *
 * KVzap has matrices of a row a head (LINEAR), and before them, if it is an MLP, one of `mlp` rows (GELU), whose results lie
 * in the job's scratch.
 */
#include "gpu/gate.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate_private.h"
#include "gates/why.h"
#include "gpu/kernels/gate.h"
#include "gpu/table.h"

#define CLUSTER 2u

/* Launches of one matrix; NULL where there is no such kernel. */
struct kernels {
	CUfunction wgmma[CLUSTER]; /* by blocks that share weights, less one */
	CUfunction mma;
	uint32_t wgmma_shared, mma_shared, stages; /* stages: of mma */
};

/* A weight matrix of every layer, on the device. */
struct matrix {
	enum gate_output output;
	uint32_t rows, columns; /* columns: of the weights, which is the hidden size */
	uint32_t width;         /* of a tile */
	uint32_t tiles, tile_heads, steps;
	uint64_t w_layer, small_layer; /* elements */
	CUdeviceptr w, small;
	CUtensorMap w_map;
	struct kernels kernels;
};

struct gpu_gate {
	struct gpu_device *device;
	struct gpu_module *module;
	struct gate_info info;
	struct matrix in, out; /* out: KVzap MLP */
};

static uint32_t div_up(uint32_t n, uint32_t by)
{
	return (n + by - 1) / by;
}

/* ---- tiles --------------------------------------------------------------------------------- */

static void tile_heads(struct matrix *m, const struct gate_info *i)
{
	static const uint32_t widths[] = {320, 288, 256};
	uint32_t best = UINT32_MAX;

	for (size_t n = 0; n < sizeof(widths) / sizeof(widths[0]); n++) {
		uint32_t heads = widths[n] / ((i->groups + 1) * GATE_DIM);
		uint32_t tiles = heads ? div_up(i->heads, heads) : 0;

		if (!tiles || tiles * widths[n] >= best)
			continue;
		best = tiles * widths[n];
		m->width = widths[n];
		m->tiles = tiles;
		m->tile_heads = heads;
	}
}

/* Which row of the matrix is column `c` of tile `t`; UINT32_MAX: none. */
static uint32_t row_at(const struct matrix *m, const struct gate_info *i, uint32_t t, uint32_t c)
{
	uint32_t head, at, wide = (i->groups + 1) * GATE_DIM;

	if (m->output != GATE_OUT_ZIP)
		return t * m->width + c < m->rows ? t * m->width + c : UINT32_MAX;
	head = t * m->tile_heads + c / wide;
	at = c % wide;
	if (c / wide >= m->tile_heads || head >= i->heads)
		return UINT32_MAX;
	if (at < i->groups * GATE_DIM)
		return head * i->groups * GATE_DIM + at;
	return (i->heads * i->groups + head) * GATE_DIM + at - i->groups * GATE_DIM;
}

/* One layer's weights as the kernels want them; `to` is zero before. */
static void put_weights(const struct matrix *m, const struct gate_info *i,
	const struct gate_matrix *from, uint16_t *to)
{
	for (uint32_t t = 0; t < m->tiles; t++)
		for (uint32_t c = 0; c < m->width; c++) {
			uint32_t row = row_at(m, i, t, c);

			for (uint32_t k = 0; row != UINT32_MAX && k < m->columns; k++) {
				size_t line = ((size_t)t * m->steps + k / GATE_STEP) * m->width + c;
				uint32_t piece = (k % GATE_STEP / 8) ^ (c & 7);

				to[line * GATE_STEP + piece * 8 + k % 8] =
					bf16_from_f32(gate_matrix_at(from, row, k));
			}
		}
}

static void put_small(const struct matrix *m, const struct gate_info *i, const struct gate_layer *y,
	const struct gate_matrix *from, float *to)
{
	for (uint32_t n = 0; n < m->tiles * m->width; n++) {
		uint32_t row = row_at(m, i, n / m->width, n % m->width);

		to[n] = row != UINT32_MAX && from->bias ? from->bias[row] : 0;
	}
	if (m->output != GATE_OUT_ZIP)
		return;
	to += m->tiles * m->width;
	memcpy(to, y->q_norm, GATE_DIM * sizeof(*to));
	memcpy(to + GATE_DIM, y->k_norm, GATE_DIM * sizeof(*to));
	to += 2 * GATE_DIM;
	memcpy(to, y->k_base, (size_t)i->heads * i->sinks * GATE_DIM * sizeof(*to));
	memcpy(to + (size_t)i->heads * i->sinks * GATE_DIM, y->b,
		(size_t)i->heads * i->groups * sizeof(*to));
}

/* ---- kernels ------------------------------------------------------------------------------- */

/* Of a block: the stages, and over them, once they are used up, the product and what goes with it. */
static uint32_t shared_bytes(
	const struct gpu_gate *g, const struct matrix *m, uint32_t tokens, uint32_t stages)
{
	uint32_t ring = stages * (tokens + m->width) * GATE_STEP * 2;
	uint32_t c = tokens * (m->width + 4) + m->width;

	if (m->output == GATE_OUT_ZIP)
		c += 2 * GATE_DIM + m->tile_heads * (g->info.sinks * GATE_DIM + g->info.groups);
	return ring > c * 4 ? ring : c * 4;
}

/* Of all layers: lines of GATE_STEP weights, as they lie; half a tile's columns of them go at once. */
static int map_w(struct gpu_gate *g, struct matrix *m, char *ret_why, size_t why_size)
{
	const cuuint64_t size[] = {GATE_STEP, g->info.layers * m->w_layer / GATE_STEP};
	const cuuint64_t stride[] = {GATE_STEP * 2};
	const cuuint32_t box[] = {GATE_STEP, m->width / 2}, step[] = {1, 1};

	if (size[1] > INT32_MAX)
		return why(ret_why, why_size, -EOPNOTSUPP, "the gate has too many weights");
	return cu(gpu_device_driver(g->device), ret_why, why_size, cuTensorMapEncodeTiled,
		&m->w_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)(uintptr_t)m->w, size,
		stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE,
		CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static int find_kernels(struct gpu_gate *g, struct matrix *m, char *ret_why, size_t why_size)
{
	static const char *const outputs[] = {
		[GATE_OUT_ZIP] = "zip", [GATE_OUT_LINEAR] = "linear", [GATE_OUT_GELU] = "gelu"};
	const struct gpu_device_info *info = gpu_device_info(g->device);
	struct kernels *k = &m->kernels;
	char name[64];
	int r;

	for (k->stages = 3; k->stages > 2; k->stages--)
		if (shared_bytes(g, m, GATE_M_MMA, k->stages) <= info->shared_max)
			break;
	k->mma_shared = shared_bytes(g, m, GATE_M_MMA, k->stages);
	snprintf(name, sizeof(name), "gate_%s_mma_%u", outputs[m->output], m->width);
	r = gpu_module_function(g->module, name, k->mma_shared, &k->mma, ret_why, why_size);
	if (r < 0 || m->output == GATE_OUT_LINEAR || info->major != 9)
		return r;
	k->wgmma_shared = 1024 + shared_bytes(g, m, GATE_M, GATE_STAGES);
	r = map_w(g, m, ret_why, why_size);
	for (uint32_t cluster = 1; cluster <= CLUSTER && r == 0; cluster++) {
		snprintf(name, sizeof(name), "gate_%s_wgmma_%u_%u", outputs[m->output], m->width,
			cluster);
		r = gpu_module_function(g->module, name, k->wgmma_shared, &k->wgmma[cluster - 1],
			ret_why, why_size);
	}
	return r;
}

/* ---- a gate -------------------------------------------------------------------------------- */

static int upload(struct gpu_gate *g, const void *data, size_t bytes, CUdeviceptr *ret,
	char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(g->device);
	int r = cu(d, ret_why, why_size, cuMemAlloc, ret, bytes);

	if (r < 0)
		return r;
	return cu(d, ret_why, why_size, cuMemcpyHtoD, *ret, data, bytes);
}

static int matrix_new(struct gpu_gate *g, const struct gate *from, bool second, struct matrix *m,
	char *ret_why, size_t why_size)
{
	const struct gate_info *i = &g->info;
	size_t w, small;
	uint16_t *weights;
	float *rest;
	int r;

	m->steps = div_up(m->columns, GATE_STEP);
	if (!m->tiles)
		m->tiles = div_up(m->rows, m->width);
	m->w_layer = (uint64_t)m->tiles * m->steps * m->width * GATE_STEP;
	m->small_layer = (uint64_t)m->tiles * m->width;
	if (m->output == GATE_OUT_ZIP)
		m->small_layer += 2 * GATE_DIM + (uint64_t)i->heads * i->sinks * GATE_DIM +
			(uint64_t)i->heads * i->groups;
	w = m->w_layer * i->layers;
	small = m->small_layer * i->layers;
	weights = calloc(w, sizeof(*weights));
	rest = calloc(small, sizeof(*rest));
	r = weights && rest ? 0 : why(ret_why, why_size, -ENOMEM, "out of memory");
	for (uint32_t l = 0; r == 0 && l < i->layers; l++) {
		const struct gate_layer *y = &from->layers[l];

		put_weights(m, i, second ? &y->out : &y->in, weights + m->w_layer * l);
		put_small(m, i, y, second ? &y->out : &y->in, rest + m->small_layer * l);
	}
	if (r == 0)
		r = upload(g, weights, w * sizeof(*weights), &m->w, ret_why, why_size);
	if (r == 0)
		r = upload(g, rest, small * sizeof(*rest), &m->small, ret_why, why_size);
	if (r == 0)
		r = find_kernels(g, m, ret_why, why_size);
	free(weights);
	free(rest);
	return r;
}

static int check(const struct gate_info *i, char *ret_why, size_t why_size)
{
	if (i->dtype != KVG_DTYPE_BF16)
		return why(ret_why, why_size, -EOPNOTSUPP, "the gate's weights are not bf16");
	if (i->hidden % 8 || i->mlp % 8)
		return why(ret_why, why_size, -EOPNOTSUPP,
			"a hidden size of %u, or %u of the gate's own, is no multiple of 8",
			i->hidden, i->mlp);
	if (i->kind != GATE_FAST_KVZIP)
		return 0;
	if (i->dim != GATE_DIM || (i->groups + 1) * GATE_DIM > GATE_COLUMNS ||
		i->sinks > GATE_SINKS)
		return why(ret_why, why_size, -EOPNOTSUPP,
			"a gate of width %u with %u query heads a KV head and %u sinks; %u, up to "
			"%u and %u go",
			i->dim, i->groups, i->sinks, GATE_DIM, GATE_COLUMNS / GATE_DIM - 1,
			GATE_SINKS);
	return 0;
}

int gpu_gate_new(struct gpu_device *dev, const struct gate *from, struct gpu_gate **ret,
	char *ret_why, size_t why_size)
{
	struct gpu_gate *g;
	int r = check(&from->info, ret_why, why_size);

	if (r < 0)
		return r;
	g = aligned_alloc(_Alignof(struct gpu_gate), sizeof(*g));
	if (!g)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	memset(g, 0, sizeof(*g));
	g->device = dev;
	g->info = from->info;
	g->in = (struct matrix){.rows = from->layers[0].in.rows, .columns = g->info.hidden};
	switch (g->info.kind) {
	case GATE_FAST_KVZIP:
		g->in.output = GATE_OUT_ZIP;
		tile_heads(&g->in, &g->info);
		break;
	case GATE_KVZAP_LINEAR:
		g->in.output = GATE_OUT_LINEAR;
		g->in.width = GATE_LINEAR;
		break;
	case GATE_KVZAP_MLP:
		g->in.output = GATE_OUT_GELU;
		g->in.width = GATE_MLP;
		g->out = (struct matrix){.output = GATE_OUT_LINEAR,
			.rows = g->info.heads,
			.columns = g->info.mlp,
			.width = GATE_LINEAR};
		break;
	}
	r = gpu_module_load(dev, "gate", &g->module, ret_why, why_size);
	if (r == 0)
		r = matrix_new(g, from, false, &g->in, ret_why, why_size);
	if (r == 0 && g->out.rows)
		r = matrix_new(g, from, true, &g->out, ret_why, why_size);
	if (r < 0) {
		gpu_gate_free(g);
		return r;
	}
	*ret = g;
	return 0;
}

struct gpu_gate *gpu_gate_free(struct gpu_gate *g)
{
	const struct gpu_driver *d;

	if (!g)
		return NULL;
	d = gpu_device_driver(g->device);
	for (int i = 0; i < 2; i++) {
		const struct matrix *m = i ? &g->out : &g->in;

		if (m->w)
			d->cuMemFree(m->w);
		if (m->small)
			d->cuMemFree(m->small);
	}
	gpu_module_free(g->module);
	free(g);
	return NULL;
}

uint64_t gpu_gate_bytes(const struct gpu_gate *g)
{
	return g->info.layers *
		(2 * (g->in.w_layer + g->out.w_layer) +
			4 * (g->in.small_layer + g->out.small_layer));
}

/* ---- scoring ------------------------------------------------------------------------------- */

uint64_t gpu_gate_scratch(const struct gpu_gate *g, uint32_t layers, uint32_t tokens)
{
	return 2ull * layers * tokens * g->info.mlp;
}

static int map_x(const struct gpu_gate *g, const struct matrix *m, struct gate_args *a,
	uint32_t layers, char *ret_why, size_t why_size)
{
	const cuuint64_t size[] = {m->columns, a->tokens, layers};
	const cuuint64_t stride[] = {a->x_stride * 2, a->x_layer * 2};
	const cuuint32_t box[] = {GATE_STEP, GATE_M, 1}, step[] = {1, 1, 1};

	return cu(gpu_device_driver(g->device), ret_why, why_size, cuTensorMapEncodeTiled,
		&a->x_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, (void *)(uintptr_t)a->x, size,
		stride, box, step, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
		CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* One matrix; what is read and written is in `a`. */
static int launch(const struct gpu_gate *g, const struct matrix *m, const struct gpu_gate_job *j,
	struct gate_args *a, char *ret_why, size_t why_size)
{
	const struct kernels *k = &m->kernels;
	struct gpu_launch l = {.stream = j->stream, .grid = {m->tiles, 0, j->layers}};
	int r;

	a->w = m->w + 2 * m->w_layer * j->layer;
	a->w_layer = m->w_layer;
	a->w_row = (uint32_t)(m->w_layer / GATE_STEP * j->layer);
	a->w_map = m->w_map;
	a->small = m->small + 4 * m->small_layer * j->layer;
	a->small_layer = m->small_layer;
	a->tokens = j->tokens;
	a->hidden = m->columns;
	a->rows = m->rows;
	a->steps = m->steps;
	a->tiles = m->tiles;
	a->tile_heads = m->tile_heads;
	a->heads = g->info.heads;
	a->groups = g->info.groups;
	a->sinks = g->info.sinks;
	a->exact = j->arithmetic == GATE_EXACT;
	a->stages = k->stages;
	if (j->path != GPU_GATE_MMA && k->wgmma[0]) {
		uint32_t blocks = div_up(j->tokens, GATE_M);
		uint32_t cluster = blocks > 1 ? CLUSTER : 1;

		r = map_x(g, m, a, j->layers, ret_why, why_size);
		if (r < 0)
			return r;
		l.function = k->wgmma[cluster - 1];
		l.grid[0] *= cluster;
		l.grid[1] = div_up(blocks, cluster);
		l.block[0] = 384;
		l.shared = k->wgmma_shared;
	} else {
		l.function = k->mma;
		l.grid[1] = div_up(j->tokens, GATE_M_MMA);
		l.block[0] = 256;
		l.shared = k->mma_shared;
	}
	return gpu_launch(g->device, &l, a, ret_why, why_size);
}

int gpu_gate_score(
	const struct gpu_gate *g, const struct gpu_gate_job *j, char *ret_why, size_t why_size)
{
	struct gate_args a = {.x = j->x, .x_stride = j->x_stride, .x_layer = j->x_layer};
	int r;

	assert(j->layers <= g->info.layers && j->layer <= g->info.layers - j->layers);
	if (j->tokens == 0 || j->layers == 0)
		return 0;
	if (j->x % 16 || j->x_stride % 8 || j->x_layer % 8)
		return why(ret_why, why_size, -EINVAL,
			"hidden states do not lie at multiples of 16 bytes");
	if (g->info.kind == GATE_KVZAP_MLP) {
		a.out = j->scratch;
		a.out_stride = g->info.mlp;
		a.out_layer = (uint64_t)j->tokens * g->info.mlp;
		r = launch(g, &g->in, j, &a, ret_why, why_size);
		if (r < 0)
			return r;
		a.x = j->scratch;
		a.x_stride = a.out_stride;
		a.x_layer = a.out_layer;
	}
	a.out = j->scores;
	a.out_stride = j->score_stride;
	a.out_layer = j->score_layer;
	return launch(g, g->out.rows ? &g->out : &g->in, j, &a, ret_why, why_size);
}
