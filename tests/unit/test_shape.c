/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <errno.h>
#include <math.h>
#include <string.h>

#include "proto/shape.h"

static float from_bits(uint32_t u)
{
	float f;

	memcpy(&f, &u, sizeof(f));
	return f;
}

static uint32_t to_bits(float f)
{
	uint32_t u;

	memcpy(&u, &f, sizeof(u));
	return u;
}

/* ---- f16: what the bits mean, from the definition ---- */

static float half_value(uint16_t h)
{
	int exponent = h >> 10 & 31, fraction = h & 1023;
	double magnitude = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);

	if (exponent == 31)
		magnitude = fraction ? (double)NAN : (double)INFINITY;
	return (float)(h & 0x8000 ? -magnitude : magnitude);
}

static void test_f16_to_f32(void **state)
{
	(void)state;
	for (unsigned h = 0; h < 65536; h++) {
		float want = half_value((uint16_t)h), got = f16_to_f32((uint16_t)h);

		if (isnan(want))
			assert_true(isnan(got));
		else
			assert_int_equal(to_bits(got), to_bits(want));
#ifdef __FLT16_MAX__
		{
			_Float16 v;

			memcpy(&v, &h, sizeof(v));
			assert_true(isnan(want) ? isnan((float)v) : (float)v == got);
		}
#endif
	}
}

/* Every half, the middle to the next one, and the floats on both sides of the middle. */
static void test_f16_rounding(void **state)
{
	(void)state;
	for (unsigned h = 0; h < 0x7c00; h++) {
		float here = half_value((uint16_t)h);
		float next = h == 0x7bff ? 65536.f : half_value((uint16_t)(h + 1));
		float middle = here + (next - here) / 2;

		for (unsigned sign = 0; sign <= 0x8000; sign += 0x8000) {
			float s = sign ? -1.f : 1.f;

			assert_int_equal(f16_from_f32(s * here), h | sign);
			assert_int_equal(f16_from_f32(s * middle), (h + (h & 1)) | sign);
			assert_int_equal(f16_from_f32(s * nextafterf(middle, 0)), h | sign);
			assert_int_equal(
				f16_from_f32(s * nextafterf(middle, INFINITY)), (h + 1) | sign);
		}
	}
	assert_int_equal(f16_from_f32(INFINITY), 0x7c00);
	assert_int_equal(f16_from_f32(-INFINITY), 0xfc00);
	assert_int_equal(f16_from_f32(3e38f), 0x7c00);
	assert_int_equal(f16_from_f32(1e-45f), 0);
	assert_true(isnan(f16_to_f32(f16_from_f32(NAN))));
	assert_true(isnan(
		f16_to_f32(f16_from_f32(from_bits(0x7f800001))))); /* payload in the low bits */
}

static void test_bf16(void **state)
{
	(void)state;
	for (uint32_t b = 0; b < 65536; b++) {
		float f = bf16_to_f32((uint16_t)b);
		uint32_t bits = b << 16, even = b + (b & 1);

		if (isnan(f)) {
			assert_true(isnan(bf16_to_f32(bf16_from_f32(f))));
			assert_true(isnan(bf16_to_f32(bf16_from_f32(from_bits(bits | 1)))));
			continue;
		}
		assert_int_equal(to_bits(f), bits);
		assert_int_equal(bf16_from_f32(f), b);
		if (isinf(f))
			continue;
		assert_int_equal(bf16_from_f32(from_bits(bits + 0x7fff)), b);
		assert_int_equal(bf16_from_f32(from_bits(bits + 0x8000)), even);
		assert_int_equal(bf16_from_f32(from_bits(bits + 0x8001)), b + 1);
	}
	assert_true(isnan(bf16_to_f32(bf16_from_f32(from_bits(0x7f800001)))));
}

#ifdef __FLT16_MAX__
static void test_f16_random(void **state)
{
	uint32_t u = 1;

	(void)state;
	for (int i = 0; i < 2000000; i++) {
		float f = from_bits(u = u * 1664525u + 1013904223u);
		_Float16 want = (_Float16)f;
		uint16_t bits;

		memcpy(&bits, &want, sizeof(bits));
		if (!isnan(f))
			assert_int_equal(f16_from_f32(f), bits);
	}
}
#endif

/* ---- dtypes ---- */

static void test_dtypes(void **state)
{
	static const struct {
		uint32_t dtype;
		size_t bytes;
		const char *name;
	} known[] = {{1, 2, "bf16"}, {2, 2, "f16"}, {3, 4, "f32"}, {4, 1, "fp8_e4m3"},
		{5, 1, "fp8_e5m2"}};

	(void)state;
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
		assert_int_equal(dtype_bytes(known[i].dtype), known[i].bytes);
		assert_string_equal(dtype_name(known[i].dtype), known[i].name);
		assert_int_equal(dtype_from_name(known[i].name), known[i].dtype);
	}
	assert_int_equal(dtype_bytes(0), 0);
	assert_int_equal(dtype_bytes(6), 0);
	assert_int_equal(dtype_bytes(UINT32_MAX), 0);
	assert_null(dtype_name(0));
	assert_int_equal(dtype_from_name("fp4"), 0);
	assert_int_equal(dtype_from_name(""), 0);
}

/* ---- shapes ---- */

static const struct kv_shape qwen = {.layers = 36,
	.heads = 8,
	.tokens = 256,
	.k_dim = 128,
	.v_dim = 128,
	.dtype = KVG_DTYPE_BF16};

static void expect_shape(struct kv_shape s, const char *word)
{
	const char *why = NULL;
	int r = shape_check(&s, &why);

	if (!word) {
		assert_int_equal(r, 0);
		assert_null(why);
	} else {
		assert_int_equal(r, -EINVAL);
		assert_non_null(strstr(why, word));
	}
}

#define WITH(field, value)                                                                         \
	({                                                                                         \
		struct kv_shape s_ = qwen;                                                         \
		s_.field = value;                                                                  \
		s_;                                                                                \
	})

static void test_shape_check(void **state)
{
	static const uint32_t absurd[] = {0, 1u << 31, UINT32_MAX};
	const struct kv_shape opaque = {.tokens = 256, .opaque_bytes = 1 << 20};

	(void)state;
	expect_shape(qwen, NULL);
	for (size_t i = 0; i < 3; i++) {
		expect_shape(WITH(layers, absurd[i]), "layers");
		expect_shape(WITH(heads, absurd[i]), "heads");
		expect_shape(WITH(tokens, absurd[i]), "block_tokens");
		expect_shape(WITH(k_dim, absurd[i]), "k_dim");
		expect_shape(WITH(v_dim, absurd[i]), "v_dim");
		expect_shape(WITH(dtype, absurd[i]), "dtype");
	}
	expect_shape(WITH(layers, KVG_LAYERS_MAX + 1), "layers");
	expect_shape(WITH(heads, KVG_HEADS_MAX + 1), "heads");
	expect_shape(WITH(tokens, KVG_TOKENS_MAX + 1), "block_tokens");
	expect_shape(WITH(k_dim, KVG_DIM_MAX + 1), "k_dim");
	expect_shape(WITH(v_dim, KVG_DIM_MAX + 1), "v_dim");
	expect_shape(WITH(dtype, 6), "dtype");
	/* each number allowed, the product not: 2^10 * 2^10 * 65535 * 2 * 4096 * 4 bytes */
	expect_shape((struct kv_shape){KVG_LAYERS_MAX, KVG_HEADS_MAX, KVG_TOKENS_MAX, KVG_DIM_MAX,
			     KVG_DIM_MAX, KVG_DTYPE_F32},
		"1 GiB");
	/* exactly 1 GiB, and one token more */
	expect_shape((struct kv_shape){1, 1, 32768, 4096, 4096, KVG_DTYPE_F32}, NULL);
	expect_shape((struct kv_shape){1, 1, 32769, 4096, 4096, KVG_DTYPE_F32}, "1 GiB");

	expect_shape(opaque, NULL);
	expect_shape(WITH(opaque_bytes, 1), "opaque");
	expect_shape((struct kv_shape){.tokens = 1, .opaque_bytes = KVG_BLOCK_BYTES_MAX}, NULL);
	expect_shape(
		(struct kv_shape){.tokens = 1, .opaque_bytes = KVG_BLOCK_BYTES_MAX + 1}, "opaque");
	expect_shape((struct kv_shape){.tokens = 1, .opaque_bytes = UINT64_MAX}, "opaque");
	expect_shape((struct kv_shape){.opaque_bytes = 1}, "block_tokens");
}

static void test_sizes(void **state)
{
	struct kv_shape uneven = WITH(v_dim, 64), opaque = {.tokens = 256, .opaque_bytes = 12345};

	(void)state;
	assert_int_equal(shape_runs(&qwen), 288);
	assert_int_equal(shape_kv_bytes(&qwen, 256), 36ull * 8 * 256 * 2 * 128 * 2);
	assert_int_equal(shape_kv_bytes(&uneven, 10), 36ull * 8 * 10 * (128 + 64) * 2);
	assert_int_equal(shape_k_row(&uneven), 256);
	assert_int_equal(shape_v_row(&uneven), 128);
	assert_int_equal(shape_kv_bytes(&opaque, 256), 12345);
}

static void test_stage_geometry(void **state)
{
	struct kv_shape s = {.layers = 2,
		.heads = 3,
		.tokens = 7,
		.k_dim = 5,
		.v_dim = 3,
		.dtype = KVG_DTYPE_FP8_E4M3};
	struct stage_format none = {STAGE_INPUT_NONE}, scores = {STAGE_INPUT_SCORES};
	struct stage_format hidden = {STAGE_INPUT_HIDDEN, 1, 9, KVG_DTYPE_BF16};
	struct kv_shape opaque = {.tokens = 4, .opaque_bytes = 4097};
	struct stage_geometry g;

	(void)state;
	stage_geometry(&s, &none, 7, &g); /* 336 bytes */
	assert_int_equal(g.kv_off, 0);
	assert_int_equal(g.kv_bytes, 2 * 3 * 7 * 8);
	assert_int_equal(g.aux_bytes, 0);
	assert_int_equal(g.tokens_off, 384);
	assert_int_equal(g.tokens_bytes, 28);
	assert_int_equal(g.total, 4096);
	stage_geometry(&s, &scores, 7, &g);
	assert_int_equal(g.aux_off, 384);
	assert_int_equal(g.aux_bytes, 2 * 3 * 7 * 4);
	assert_int_equal(g.tokens_off, 384 + 192);
	stage_geometry(&s, &scores, 5, &g); /* a shorter block is packed */
	assert_int_equal(g.kv_bytes, 2 * 3 * 5 * 8);
	assert_int_equal(g.aux_off, 256);
	stage_geometry(&s, &hidden, 7, &g);
	assert_int_equal(g.aux_bytes, 7 * 9 * 2);
	stage_geometry(&opaque, &none, 4, &g);
	assert_int_equal(g.kv_bytes, 4097);
	assert_int_equal(g.tokens_off, 4160);
	assert_int_equal(g.total, 8192);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_f16_to_f32),
		cmocka_unit_test(test_f16_rounding),
#ifdef __FLT16_MAX__
		cmocka_unit_test(test_f16_random),
#endif
		cmocka_unit_test(test_bf16),
		cmocka_unit_test(test_dtypes),
		cmocka_unit_test(test_shape_check),
		cmocka_unit_test(test_sizes),
		cmocka_unit_test(test_stage_geometry),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
