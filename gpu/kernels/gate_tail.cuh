/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What follows the product, for a tile of it in shared memory: c[token][column], f32 without bias, rows PITCH apart. One
 * thread has one token and one head, so no sum crosses threads, neighbours are neighbouring tokens, and what depends on
 * the head alone is read by a warp at once.
 *
 * Rounding is that of gates/score_scalar.c, operation by operation, up to the norms; sums of dot products are fused, and
 * exp is the processor's.
 */
#ifndef KVGATE_GPU_KERNELS_GATE_TAIL_CUH
#define KVGATE_GPU_KERNELS_GATE_TAIL_CUH

#include <cuda_bf16.h>

#include "gpu/kernels/gate.h"

#define GATE_EPSILON 1e-6f

template <int COLUMNS> __device__ constexpr int gate_pitch()
{
	return COLUMNS + 4; /* 8 threads that read 16 bytes each of 8 rows meet no bank twice */
}

__device__ static inline float gate_round(float v, bool exact)
{
	return exact ? __bfloat162float(__float2bfloat16_rn(v)) : v;
}

/* Of two at once: there is a fast instruction for that, and a slow one for a single value. */
__device__ static inline void gate_round2(float &a, float &b, bool exact)
{
	const __nv_bfloat162 both = __floats2bfloat162_rn(a, b);

	if (exact) {
		a = __low2float(both);
		b = __high2float(both);
	}
}

/* One row of the projection, normalised; c and bias are 16 floats each, aligned to 16 bytes. */
__device__ static inline void gate_normalise(
	const float *c, const float *bias, const float *norm, bool exact, float ret[GATE_DIM])
{
	float squares = 0, scale;

#pragma unroll
	for (int i = 0; i < (int)GATE_DIM; i += 4) {
		const float4 v = *reinterpret_cast<const float4 *>(c + i);
		const float4 b = *reinterpret_cast<const float4 *>(bias + i);

		ret[i] = v.x + b.x;
		ret[i + 1] = v.y + b.y;
		ret[i + 2] = v.z + b.z;
		ret[i + 3] = v.w + b.w;
		gate_round2(ret[i], ret[i + 1], exact);
		gate_round2(ret[i + 2], ret[i + 3], exact);
	}
#pragma unroll
	for (int i = 0; i < (int)GATE_DIM; i++)
		squares = __fadd_rn(squares, __fmul_rn(ret[i], ret[i]));
	scale = __fdiv_rn(
		1.0f, __fsqrt_rn(__fadd_rn(__fmul_rn(squares, 1.0f / GATE_DIM), GATE_EPSILON)));
#pragma unroll
	for (int i = 0; i < (int)GATE_DIM; i += 4) {
		const float4 w = *reinterpret_cast<const float4 *>(norm + i);

#pragma unroll
		for (int k = 0; k < 4; k++)
			ret[i + k] = __fmul_rn(ret[i + k], scale);
		gate_round2(ret[i], ret[i + 1], exact);
		gate_round2(ret[i + 2], ret[i + 3], exact);
		ret[i] *= w.x;
		ret[i + 1] *= w.y;
		ret[i + 2] *= w.z;
		ret[i + 3] *= w.w;
	}
}

__device__ static inline float gate_dot(const float a[GATE_DIM], const float b[GATE_DIM])
{
	float sum = 0;

#pragma unroll
	for (int i = 0; i < (int)GATE_DIM; i++)
		sum = fmaf(a[i], b[i], sum);
	return sum;
}

/* Sums over the sinks of exp(z - l), for two queries at once. */
__device__ static inline void gate_sinks(const float *k_base, uint32_t sinks,
	const float q0[GATE_DIM], const float q1[GATE_DIM], float l0, float l1, float *ret0,
	float *ret1)
{
	float sum0 = 0, sum1 = 0;

#pragma unroll 4
	for (uint32_t s = 0; s < sinks; s++, k_base += GATE_DIM) {
		float z0 = 0, z1 = 0;

#pragma unroll
		for (int i = 0; i < (int)GATE_DIM; i += 4) {
			const float4 k = *reinterpret_cast<const float4 *>(k_base + i);

			z0 = fmaf(k.x, q0[i], z0);
			z1 = fmaf(k.x, q1[i], z1);
			z0 = fmaf(k.y, q0[i + 1], z0);
			z1 = fmaf(k.y, q1[i + 1], z1);
			z0 = fmaf(k.z, q0[i + 2], z0);
			z1 = fmaf(k.z, q1[i + 2], z1);
			z0 = fmaf(k.w, q0[i + 3], z0);
			z1 = fmaf(k.w, q1[i + 3], z1);
		}
		sum0 += __expf(fmaf(z0, 0.25f, -l0));
		sum1 += __expf(fmaf(z1, 0.25f, -l1));
	}
	*ret0 = sum0;
	*ret1 = sum1;
}

/* Where a tile's share of the small tensors lies in shared memory. */
struct gate_small {
	float *bias, *q_norm, *k_norm, *k_base, *b;
};

template <int COLUMNS>
__device__ static inline gate_small gate_small_at(float *at, const gate_args &a)
{
	gate_small s;

	s.bias = at;
	s.q_norm = s.bias + COLUMNS;
	s.k_norm = s.q_norm + GATE_DIM;
	s.k_base = s.k_norm + GATE_DIM;
	s.b = s.k_base + a.tile_heads * a.sinks * GATE_DIM;
	return s;
}

template <int COLUMNS>
__device__ static inline void gate_small_load(const gate_small &s, const gate_args &a,
	uint32_t tile, uint32_t layer, uint32_t thread, uint32_t threads)
{
	const float *from = reinterpret_cast<const float *>(a.small) + a.small_layer * layer;
	const float *norms = from + (size_t)a.tiles * COLUMNS, *k_base = norms + 2 * GATE_DIM;
	const float *b = k_base + (size_t)a.heads * a.sinks * GATE_DIM;
	const uint32_t first = tile * a.tile_heads;
	const uint32_t heads = min(a.tile_heads, a.heads - first);

	for (uint32_t i = thread; i < (uint32_t)COLUMNS; i += threads)
		s.bias[i] = from[(size_t)tile * COLUMNS + i];
	for (uint32_t i = thread; i < 2 * GATE_DIM; i += threads)
		s.q_norm[i] = norms[i];
	for (uint32_t i = thread; i < heads * a.sinks * GATE_DIM; i += threads)
		s.k_base[i] = k_base[(size_t)first * a.sinks * GATE_DIM + i];
	for (uint32_t i = thread; i < heads * a.groups; i += threads)
		s.b[i] = b[first * a.groups + i];
}

/* The score of one head from its rows of the projection: its queries, then its key. */
__device__ static inline float gate_head(
	const gate_args &a, const gate_small &s, const float *c, const float *bias, uint32_t head)
{
	const float *k_base = s.k_base + head * a.sinks * GATE_DIM, *b = s.b + head * a.groups;
	const bool exact = a.exact;
	float k[GATE_DIM], q0[GATE_DIM], q1[GATE_DIM], sum = 0;

	gate_normalise(c + a.groups * GATE_DIM, bias + a.groups * GATE_DIM, s.k_norm, exact, k);
	for (uint32_t g = 0; g < a.groups; g += 2) {
		const uint32_t other = min(g + 1, a.groups - 1);
		float l0, l1, sinks0, sinks1;

		gate_normalise(c + g * GATE_DIM, bias + g * GATE_DIM, s.q_norm, exact, q0);
		gate_normalise(c + other * GATE_DIM, bias + other * GATE_DIM, s.q_norm, exact, q1);
		l0 = gate_dot(k, q0) * 0.25f + b[g];
		l1 = gate_dot(k, q1) * 0.25f + b[other];
		gate_sinks(k_base, a.sinks, q0, q1, l0, l1, &sinks0, &sinks1);
		sum += 1.0f / (1.0f + sinks0);
		if (other > g)
			sum += 1.0f / (1.0f + sinks1);
	}
	return sum / (float)a.groups;
}

template <int M, int COLUMNS>
__device__ static inline void gate_zip(const gate_args &a, const float *c, const gate_small &s,
	uint32_t tile, uint32_t layer, uint32_t first, uint32_t thread, uint32_t threads)
{
	const uint32_t heads = min(a.tile_heads, a.heads - tile * a.tile_heads);
	const uint32_t width = (a.groups + 1) * GATE_DIM;
	float *out = reinterpret_cast<float *>(a.out) + a.out_layer * layer;

	for (uint32_t i = thread; i < heads * M; i += threads) {
		const uint32_t t = i % M, head = i / M;

		if (first + t < a.tokens)
			out[(tile * a.tile_heads + head) * a.out_stride + first + t] = gate_head(a,
				s, c + t * gate_pitch<COLUMNS>() + head * width,
				s.bias + head * width, head);
	}
}

template <int M, int COLUMNS>
__device__ static inline void gate_linear(const gate_args &a, const float *c, const float *bias,
	uint32_t tile, uint32_t layer, uint32_t first, uint32_t thread, uint32_t threads)
{
	const uint32_t rows = min((uint32_t)COLUMNS, a.rows - tile * COLUMNS);
	float *out = reinterpret_cast<float *>(a.out) + a.out_layer * layer;

	for (uint32_t i = thread; i < rows * M; i += threads) {
		const uint32_t t = i % M, row = i / M;

		if (first + t < a.tokens)
			out[(size_t)(tile * COLUMNS + row) * a.out_stride + first + t] =
				gate_round(c[t * gate_pitch<COLUMNS>() + row] + bias[row], a.exact);
	}
}

/* With the exact erf; rounded whether exact or not, for bf16 is what the second product takes. */
template <int M, int COLUMNS>
__device__ static inline void gate_gelu(const gate_args &a, const float *c, const float *bias,
	uint32_t tile, uint32_t layer, uint32_t first, uint32_t thread, uint32_t threads)
{
	const uint32_t rows = min((uint32_t)COLUMNS, a.rows - tile * COLUMNS);
	__nv_bfloat16 *out = reinterpret_cast<__nv_bfloat16 *>(a.out) + a.out_layer * layer;

	for (uint32_t i = thread; i < (uint32_t)(M * COLUMNS); i += threads) {
		const uint32_t t = i / COLUMNS, row = i % COLUMNS;
		const float h = gate_round(c[t * gate_pitch<COLUMNS>() + row] + bias[row], a.exact);

		if (first + t < a.tokens && row < rows)
			out[(size_t)(first + t) * a.out_stride + tile * COLUMNS + row] =
				__float2bfloat16_rn(
					0.5f * h * (1.0f + erff(h * 0.70710678118654752440f)));
	}
}

template <int M, int COLUMNS, int OUTPUT>
__device__ static inline void gate_finish(const gate_args &a, const float *c, const gate_small &s,
	uint32_t tile, uint32_t layer, uint32_t first, uint32_t thread, uint32_t threads)
{
	if (OUTPUT == GATE_OUT_ZIP)
		gate_zip<M, COLUMNS>(a, c, s, tile, layer, first, thread, threads);
	else if (OUTPUT == GATE_OUT_LINEAR)
		gate_linear<M, COLUMNS>(a, c, s.bias, tile, layer, first, thread, threads);
	else
		gate_gelu<M, COLUMNS>(a, c, s.bias, tile, layer, first, thread, threads);
}

#endif
