/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every dimension is bounded before it is multiplied, so that products fit 64 bits:
 * layers (2^10) * heads (2^10) * tokens (2^16) * row (2^14) < 2^50.
 */
#include "proto/shape.h"

#include <errno.h>
#include <string.h>

static const struct {
	uint32_t dtype;
	uint32_t bytes;
	const char *name;
} dtypes[] = {
	{KVG_DTYPE_BF16, 2, "bf16"},
	{KVG_DTYPE_F16, 2, "f16"},
	{KVG_DTYPE_F32, 4, "f32"},
	{KVG_DTYPE_FP8_E4M3, 1, "fp8_e4m3"},
	{KVG_DTYPE_FP8_E5M2, 1, "fp8_e5m2"},
};
#define N_DTYPES (sizeof(dtypes) / sizeof(dtypes[0]))

size_t dtype_bytes(uint32_t dtype)
{
	for (size_t i = 0; i < N_DTYPES; i++)
		if (dtypes[i].dtype == dtype)
			return dtypes[i].bytes;
	return 0;
}

const char *dtype_name(uint32_t dtype)
{
	for (size_t i = 0; i < N_DTYPES; i++)
		if (dtypes[i].dtype == dtype)
			return dtypes[i].name;
	return NULL;
}

uint32_t dtype_from_name(const char *name)
{
	for (size_t i = 0; i < N_DTYPES; i++)
		if (!strcmp(dtypes[i].name, name))
			return dtypes[i].dtype;
	return 0;
}

uint16_t f16_from_f32(float f)
{
	union {
		float f;
		uint32_t u;
	} v = {.f = f};
	uint32_t sign = v.u >> 16 & 0x8000u, mag = v.u & 0x7fffffffu;

	if (mag > 0x7f800000u) /* NaN */
		return (uint16_t)(sign | 0x7e00u);
	if (mag >= 0x477ff000u) /* rounds to infinity */
		return (uint16_t)(sign | 0x7c00u);
	if (mag < 0x38800000u) { /* subnormal half: let the FPU round at 2^-24 */
		union {
			float f;
			uint32_t u;
		} s = {.u = mag};
		s.f += 0.5f; /* ulp of [0.5, 1) is 2^-24 */
		return (uint16_t)(sign | (s.u - 0x3f000000u));
	}
	mag += 0xfffu + (mag >> 13 & 1u); /* to nearest even */
	return (uint16_t)(sign | ((mag - 0x38000000u) >> 13));
}

float f16_to_f32(uint16_t h)
{
	union {
		uint32_t u;
		float f;
	} v;
	uint32_t sign = (uint32_t)(h & 0x8000u) << 16, exp = h >> 10 & 0x1fu, man = h & 0x3ffu;

	if (exp == 0x1f)
		v.u = sign | 0x7f800000u | man << 13;
	else if (exp)
		v.u = sign | (exp + 112u) << 23 | man << 13;
	else {
		v.f = (float)man * 0x1p-24f;
		v.u |= sign;
	}
	return v.f;
}

uint16_t bf16_from_f32(float f)
{
	union {
		float f;
		uint32_t u;
	} v = {.f = f};

	if ((v.u & 0x7fffffffu) > 0x7f800000u)
		return (uint16_t)(v.u >> 16 | 0x40u);
	return (uint16_t)((v.u + 0x7fffu + (v.u >> 16 & 1u)) >> 16);
}

int shape_check(const struct kv_shape *s, const char **ret_why)
{
	const char *why = NULL;

	if (s->tokens == 0 || s->tokens > KVG_TOKENS_MAX)
		why = "block_tokens must be 1 to 65535";
	else if (s->opaque_bytes) {
		if (s->opaque_bytes > KVG_BLOCK_BYTES_MAX)
			why = "opaque_bytes must be at most 1 GiB";
		else if (s->layers || s->heads || s->k_dim || s->v_dim || s->dtype)
			why = "an opaque layout has no layers, heads, dims or dtype: leave them 0";
	} else if (s->layers == 0 || s->layers > KVG_LAYERS_MAX)
		why = "layers must be 1 to 1024";
	else if (s->heads == 0 || s->heads > KVG_HEADS_MAX)
		why = "heads must be 1 to 1024";
	else if (s->k_dim == 0 || s->k_dim > KVG_DIM_MAX || s->v_dim > KVG_DIM_MAX || s->v_dim == 0)
		why = "k_dim and v_dim must be 1 to 4096";
	else if (dtype_bytes(s->dtype) == 0)
		why = "dtype is unknown: use bf16, f16, f32, fp8_e4m3 or fp8_e5m2";
	else if (shape_kv_bytes(s, s->tokens) > KVG_BLOCK_BYTES_MAX)
		why = "one block must be at most 1 GiB: use fewer block_tokens";
	if (!why)
		return 0;
	*ret_why = why;
	return -EINVAL;
}

uint64_t shape_kv_bytes(const struct kv_shape *s, uint32_t tokens)
{
	if (s->opaque_bytes)
		return s->opaque_bytes;
	return (uint64_t)shape_runs(s) * tokens * (shape_k_row(s) + shape_v_row(s));
}

static uint64_t align64(uint64_t n)
{
	return (n + 63) & ~63ull;
}

void stage_geometry(const struct kv_shape *s, const struct stage_format *f, uint32_t tokens,
	struct stage_geometry *ret)
{
	struct stage_geometry g = {.kv_bytes = shape_kv_bytes(s, tokens)};

	if (f->input == STAGE_INPUT_SCORES)
		g.aux_bytes = (uint64_t)shape_runs(s) * tokens * sizeof(float);
	else if (f->input == STAGE_INPUT_HIDDEN)
		g.aux_bytes = (uint64_t)f->gated_layers * tokens * f->hidden *
			dtype_bytes(f->hidden_dtype);
	g.aux_off = align64(g.kv_bytes);
	g.tokens_off = g.aux_off + align64(g.aux_bytes);
	g.tokens_bytes = (uint64_t)tokens * sizeof(uint32_t);
	g.total = (g.tokens_off + g.tokens_bytes + 4095) & ~4095ull;
	*ret = g;
}
