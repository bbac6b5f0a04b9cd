/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The plan of the GPU's attention, without a GPU: addresses are the host's, and the kernels' twin reads what they would.
 * Its results must be those of the worker's attention over the same rows, which knows nothing of plans.
 */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "client/worker/attention.h"
#include "gpu/attend_plan.h"
#include "gpu/driver.h"
#include "tests/gpu/planes.h"
#include "tests/gpu/random.h"

#define SEQUENCES_MAX 3
#define TAIL_MAX      40u

struct fixture {
	struct attend_shape shape;
	struct planes_shape of_planes;
	uint32_t n_sequences, tokens[SEQUENCES_MAX], tail[SEQUENCES_MAX], all_tokens;
	struct planes planes[SEQUENCES_MAX];
	char *region[SEQUENCES_MAX];
	uint32_t *keep[SEQUENCES_MAX];
	uint16_t *k_tail[SEQUENCES_MAX], *v_tail[SEQUENCES_MAX]; /* [heads][tail][dim] */
	uint16_t *q, *out;
	float *lse;
};

static void fixture_init(struct fixture *f, const struct attend_shape *shape, uint32_t n_sequences,
	uint32_t tokens_max, uint64_t seed)
{
	uint64_t state = rig_seed(seed);
	size_t n;

	*f = (struct fixture){.shape = *shape, .n_sequences = n_sequences};
	f->of_planes = (struct planes_shape){.layers = 2,
		.heads = shape->heads,
		.dim = shape->dim,
		.dtype = shape->dtype,
		.tokens = 1 + rig_below(&state, 700),
		.block = 128,
		.n_planes = 1 + rig_below(&state, 7)};
	for (uint32_t i = 0; i < n_sequences; i++) {
		const size_t row = (size_t)shape->dim * shape->heads;

		f->tokens[i] = 1 + rig_below(&state, tokens_max);
		f->tail[i] = f->tokens[i] - 1 + rig_below(&state, TAIL_MAX);
		f->all_tokens += f->tokens[i];
		planes_init(&f->planes[i], &f->of_planes, NULL, seed + i);
		f->region[i] = aligned_alloc(64, f->planes[i].bytes);
		planes_fill(&f->planes[i], f->region[i], seed * 1000 + i);
		f->keep[i] = malloc((f->planes[i].n * shape->heads) * sizeof(uint32_t));
		for (uint32_t j = 0; j < f->planes[i].n * shape->heads; j++)
			f->keep[i][j] = rig_below(&state, 3) ? 1000 : rig_below(&state, 30);
		f->k_tail[i] = aligned_alloc(64, (f->tail[i] * row * 2 + 64) / 64 * 64);
		f->v_tail[i] = aligned_alloc(64, (f->tail[i] * row * 2 + 64) / 64 * 64);
		planes_random(f->k_tail[i], f->tail[i] * row, shape->dtype, 1.0f, seed + 77);
		planes_random(f->v_tail[i], f->tail[i] * row, shape->dtype, 1.0f, seed + 78);
	}
	n = (size_t)f->all_tokens * shape->heads * shape->group;
	f->q = malloc(n * shape->dim * 2);
	f->out = malloc(n * shape->dim * 2);
	f->lse = malloc(n * sizeof(*f->lse));
	planes_random(f->q, n * shape->dim, shape->dtype, 5.0f, seed + 99);
	memset(f->out, 0xa5, n * shape->dim * 2);
}

static void fixture_fini(struct fixture *f)
{
	for (uint32_t i = 0; i < f->n_sequences; i++) {
		planes_fini(&f->planes[i]);
		free(f->region[i]);
		free(f->keep[i]);
		free(f->k_tail[i]);
		free(f->v_tail[i]);
	}
	free(f->q);
	free(f->out);
	free(f->lse);
}

static uint64_t address(const void *p)
{
	return (uint64_t)(uintptr_t)p;
}

static struct attend_plan *plan_of(const struct fixture *f, uint32_t processors)
{
	struct attend_plan *p;

	assert_int_equal(attend_plan_new(&f->shape, processors, &p), 0);
	for (uint32_t i = 0; i < f->n_sequences; i++) {
		assert_int_equal(attend_plan_sequence(p, f->tokens[i], f->tokens[i] - 1), 0);
		planes_plan(&f->planes[i], address(f->region[i]), 1, f->of_planes.n_planes,
			f->keep[i], p);
		for (uint32_t h = 0; h < f->shape.heads; h++) {
			const size_t at = (size_t)h * f->tail[i] * f->shape.dim;

			assert_int_equal(attend_plan_run(p, h, address(f->k_tail[i] + at),
						 address(f->v_tail[i] + at), f->tail[i]),
				0);
		}
	}
	return p;
}

static void run_twin(struct fixture *f, const struct attend_arrays *a)
{
	const struct attend_args args = {
		.q = address(f->q),
		.out = address(f->out),
		.lse = address(f->lse),
		.runs = address(a->runs),
		.tiles = address(a->tiles),
		.items = address(a->items),
		.n_items = a->n_items,
		.heads = f->shape.heads,
		.group = f->shape.group,
		.q_stride = f->shape.heads * f->shape.group * f->shape.dim,
		.scale = 1.0f / sqrtf((float)f->shape.dim),
	};

	assert_int_equal(attend_twin(&args, a->n_tiles, f->shape.dim, f->shape.dtype), 0);
}

/* The runs of one head, of planes' bytes and of the tail, as the worker takes them. */
static uint32_t runs_of(const struct fixture *f, uint32_t i, uint32_t head, struct kv_run *ret)
{
	const struct planes *p = &f->planes[i];
	const size_t tail = (size_t)head * f->tail[i] * f->shape.dim;
	uint32_t n = 0;

	for (uint32_t j = 0; j < p->n; j++) {
		const char *payload = f->region[i] + p->at[j].offset;
		const uint32_t keep = f->keep[i][j * f->shape.heads + head];
		struct plane_view v;
		const uint32_t *cu;

		assert_int_equal(plane_verify(payload, p->at[j].view.bytes), 0);
		assert_int_equal(plane_open(payload, p->at[j].view.bytes, &v), 0);
		cu = &v.cu[f->shape.heads + head];
		ret[n++] = (struct kv_run){.k = v.k + (size_t)cu[0] * v.k_row,
			.v = v.v + (size_t)cu[0] * v.v_row,
			.n = keep < cu[1] - cu[0] ? keep : cu[1] - cu[0]};
	}
	ret[n++] = (struct kv_run){f->k_tail[i] + tail, f->v_tail[i] + tail, f->tail[i]};
	return n;
}

/* Token by token: what it takes at once is bounded. */
static void compare_sequence(const struct fixture *f, uint32_t i, uint32_t first)
{
	const uint32_t heads = f->shape.heads, group = f->shape.group, dim = f->shape.dim;
	const size_t row = (size_t)heads * group * dim;
	struct kv_run *run = malloc(heads * (f->planes[i].n + 1) * sizeof(*run));
	struct kv_rows rows[heads];
	struct attention *a;
	float *q = malloc(row * 4), *out = malloc(row * 4);

	assert_int_equal(attention_new(heads, dim, dim, attention_isa_best(), &a), 0);
	for (uint32_t h = 0; h < heads; h++) {
		rows[h].run = run + h * (f->planes[i].n + 1);
		rows[h].n_runs = runs_of(f, i, h, run + h * (f->planes[i].n + 1));
		rows[h].dtype = f->shape.dtype;
	}
	for (uint32_t t = 0; t < f->tokens[i]; t++) {
		const uint16_t *q16 = f->q + (first + t) * row, *got = f->out + (first + t) * row;

		for (size_t c = 0; c < row; c++)
			q[c] = f->shape.dtype == KVG_DTYPE_BF16 ? bf16_to_f32(q16[c])
								: f16_to_f32(q16[c]);
		attention_begin(a, q, group, group, row);
		attention_rows_causal(a, rows, f->tokens[i] - 1 - t);
		attention_end(a, out, row);
		for (size_t c = 0; c < row; c++) {
			const float x = f->shape.dtype == KVG_DTYPE_BF16 ? bf16_to_f32(got[c])
									 : f16_to_f32(got[c]);

			assert_true(fabsf(x - out[c]) <= 1e-4f + fabsf(out[c]) * 0x1p-8f);
		}
	}
	attention_free(a);
	free(run);
	free(q);
	free(out);
}

static void check(const struct attend_shape *shape, uint32_t n_sequences, uint32_t tokens_max,
	uint32_t processors, uint64_t seed)
{
	struct fixture f;
	struct attend_plan *p;
	struct attend_arrays a;
	uint32_t first = 0;

	fixture_init(&f, shape, n_sequences, tokens_max, seed);
	p = plan_of(&f, processors);
	assert_int_equal(attend_plan_seal(p), 0);
	a = attend_plan_arrays(p);
	assert_int_equal(a.tokens, f.all_tokens);
	assert_true(a.blocks >= 1 && a.blocks <= a.n_items);
	run_twin(&f, &a);
	for (uint32_t i = 0; i < n_sequences; i++) {
		compare_sequence(&f, i, first);
		first += f.tokens[i];
	}
	attend_plan_free(p);
	fixture_fini(&f);
}

static void test_against_worker(void **state)
{
	static const uint32_t dims[] = {64, 96, 128, 256};

	(void)state;
	for (uint32_t i = 0; i < 12; i++) {
		const struct attend_shape shape = {.heads = 1 + i % 3,
			.group = 1 + i % 5,
			.dim = dims[i % 4],
			.dtype = i / 4 % 2 ? KVG_DTYPE_F16 : KVG_DTYPE_BF16};

		check(&shape, 1 + i % 3, 1, 1 + i * 3 % 20, 100 + i);
		check(&shape, 1 + i % 2, i % 2 ? 90 : 5, 1 + i * 7 % 30, 200 + i);
	}
}

/* Every row of a tile is in one item, parts are numbered in the order of rows, large items come first. */
static void check_items(const struct attend_arrays *a)
{
	uint64_t parts = 0;

	for (uint32_t t = 0; t < a->n_tiles; t++) {
		uint32_t row = 0, n = 0;

		for (bool found = true; found;) {
			found = false;
			for (uint32_t i = 0; i < a->n_items && n < a->tiles[t].parts; i++) {
				const struct attend_item *item = &a->items[i];

				if (item->tile != t || item->row != row)
					continue;
				if (a->tiles[t].parts > 1)
					assert_int_equal(item->part, a->tiles[t].part + n);
				assert_true(a->runs[item->run].first <= row &&
					row < a->runs[item->run].first + a->runs[item->run].rows);
				row += item->rows;
				n++;
				found = true;
				break;
			}
		}
		assert_int_equal(n, a->tiles[t].parts);
		parts += n > 1 ? n : 0;
	}
	assert_int_equal(parts, a->n_parts);
	for (uint32_t i = 1; i < a->n_items; i++)
		assert_true(a->items[i].rows <= a->items[i - 1].rows);
}

/* Of very uneven heads: what blocks do when they take pieces as they come ends well together. */
static void test_balance(void **state)
{
	const struct attend_shape shape = {
		.heads = 8, .group = 4, .dim = 128, .dtype = KVG_DTYPE_BF16};
	const uint32_t rows[8] = {131072, 3000, 2000, 131072, 10, 4000, 1, 3500}, blocks = 264;
	uint64_t load[264] = {0}, most = 0, all = 0;
	struct attend_plan *p;
	struct attend_arrays a;

	(void)state;
	assert_int_equal(attend_plan_new(&shape, blocks / 2, &p), 0);
	assert_int_equal(attend_plan_sequence(p, 1, 0), 0);
	for (uint32_t h = 0; h < 8; h++)
		for (uint32_t i = 0, left = rows[h]; left; i++) {
			const uint32_t n = left < 37 ? left : 37;

			assert_int_equal(attend_plan_run(p, h, i * 16, i * 16, n), 0);
			left -= n;
		}
	assert_int_equal(attend_plan_seal(p), 0);
	a = attend_plan_arrays(p);
	assert_int_equal(a.blocks, blocks);
	check_items(&a);
	for (uint32_t i = 0; i < a.n_items; i++) {
		uint32_t least = 0;

		for (uint32_t b = 1; b < blocks; b++)
			if (load[b] < load[least])
				least = b;
		load[least] += a.items[i].rows;
		all += a.items[i].rows;
	}
	for (uint32_t b = 0; b < blocks; b++)
		most = load[b] > most ? load[b] : most;
	assert_int_equal(all, a.rows);
	assert_true((double)most < 1.25 * (double)all / blocks);
	attend_plan_free(p);
}

static void test_refusals(void **state)
{
	struct attend_shape shape = {.heads = 2, .group = 4, .dim = 128, .dtype = KVG_DTYPE_BF16};
	const uint32_t cu[5] = {0, 3, 3, 4, 9};
	struct plane_view v = {
		.runs = 4, .tokens = 16, .pairs = 9, .k_row = 256, .v_row = 256, .cu = cu};
	struct attend_plan *p = NULL;

	(void)state;
	shape.dim = 80;
	assert_int_equal(attend_plan_new(&shape, 1, &p), -EINVAL);
	shape.dim = 128;
	shape.dtype = KVG_DTYPE_F32;
	assert_int_equal(attend_plan_new(&shape, 1, &p), -EINVAL);
	shape.dtype = KVG_DTYPE_F16;
	shape.group = ATTEND_GROUP_MAX + 1;
	assert_int_equal(attend_plan_new(&shape, 1, &p), -EINVAL);
	shape.group = 4;
	assert_int_equal(attend_plan_new(&shape, 0, &p), -EINVAL);
	assert_null(p);
	assert_int_equal(attend_plan_new(&shape, 1, &p), 0);
	assert_int_equal(attend_plan_run(p, 0, 0, 0, 1), -EINVAL); /* of no sequence */
	assert_int_equal(attend_plan_seal(p), -EINVAL);
	assert_int_equal(attend_plan_sequence(p, 0, 0), -EINVAL);
	assert_int_equal(attend_plan_sequence(p, 3, 2), 0);
	assert_int_equal(attend_plan_run(p, 2, 0, 0, 1), -EINVAL);
	assert_int_equal(attend_plan_run(p, 0, 8, 0, 1), -EINVAL);
	assert_int_equal(attend_plan_plane(p, &v, 64, 2, NULL), -EINVAL);
	v.v_row = 128;
	assert_int_equal(attend_plan_plane(p, &v, 64, 1, NULL), -EINVAL);
	v.v_row = 256;
	assert_int_equal(attend_plan_plane(p, &v, 64, 1, NULL), 0);
	assert_int_equal(attend_plan_seal(p), -EINVAL); /* head 0 has 1 row, and 2 are unseen */
	assert_int_equal(attend_plan_run(p, 0, 0, 0, 1), 0);
	assert_int_equal(attend_plan_seal(p), 0);
	assert_int_equal(attend_plan_seal(p), -EINVAL);
	assert_int_equal(attend_plan_run(p, 0, 0, 0, 1), -EINVAL);
	attend_plan_free(p);
}

/* Where there is no GPU, or no CUDA, there is a reason. */
static void test_driver_says_why(void **state)
{
	char why[GPU_WHY_BYTES] = "";
	struct gpu_driver *d = NULL;
	const int r = gpu_driver_open(&d, why, sizeof(why));

	(void)state;
	if (r < 0) {
		assert_null(d);
		assert_true(strlen(why) > 10);
	}
	gpu_driver_close(d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_against_worker),
		cmocka_unit_test(test_balance),
		cmocka_unit_test(test_refusals),
		cmocka_unit_test(test_driver_says_why),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
