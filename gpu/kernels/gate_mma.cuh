/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The product by mma.sync, on whatever has no wgmma. Eight warps, two along the tokens and four along the columns of a
 * tile; x and weights come by cp.async, some steps ahead.
 *
 *	shared	stage 0 .. | x [64][64] | w [columns][64] |	bf16, 16-byte pieces permuted
 *		then c [64][columns + 4] and the small tensors, over the stages
 */
#ifndef KVGATE_GPU_KERNELS_GATE_MMA_CUH
#define KVGATE_GPU_KERNELS_GATE_MMA_CUH

#include "gpu/kernels/gate_tail.cuh"

#define GATE_MMA_THREADS 256u

__device__ static inline uint32_t gate_shared(const void *p)
{
	return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

/* 16 bytes; zero where there is nothing to read. */
__device__ static inline void gate_copy16(uint32_t to, const void *from, bool there)
{
	asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
		     "r"(there ? 16 : 0)
		     : "memory");
}

__device__ static inline void gate_matrices(uint32_t at, uint32_t r[4])
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
		     : "r"(at)
		     : "memory");
}

__device__ static inline void gate_mma(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
	asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
		     "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
		     : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
		     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Piece `piece` of row `row` of a tile at `base`. */
__device__ static inline uint32_t gate_piece(uint32_t base, uint32_t row, uint32_t piece)
{
	return base + row * 128 + ((piece ^ (row & 7)) << 4);
}

template <int COLUMNS>
__device__ static inline void gate_mma_load(const gate_args &a, uint32_t stage, uint32_t step,
	const __nv_bfloat16 *x, const char *w, uint32_t first)
{
	const uint32_t w_at = stage + GATE_M_MMA * 128;

	for (uint32_t i = threadIdx.x; i < GATE_M_MMA * 8; i += GATE_MMA_THREADS) {
		const uint32_t row = i / 8, piece = i % 8, column = step * GATE_STEP + piece * 8;
		const bool there = first + row < a.tokens && column < a.hidden;

		gate_copy16(gate_piece(stage, row, piece),
			there ? x + (first + row) * a.x_stride + column : x, there);
	}
	w += (size_t)step * COLUMNS * 128;
	for (uint32_t i = threadIdx.x; i < COLUMNS * 8; i += GATE_MMA_THREADS)
		gate_copy16(w_at + i * 16, w + i * 16, true);
}

template <int TILES>
__device__ static inline void gate_mma_step(
	uint32_t x_at, uint32_t w_at, uint32_t lane, float (&c)[2][TILES][4])
{
#pragma unroll
	for (uint32_t half = 0; half < 2; half++) { /* 32 columns of x */
		uint32_t x[2][2][4];

#pragma unroll
		for (uint32_t m = 0; m < 2; m++)
#pragma unroll
			for (uint32_t k = 0; k < 2; k++)
				gate_matrices(gate_piece(x_at, m * 16 + lane % 16,
						      half * 4 + k * 2 + lane / 16),
					x[m][k]);
#pragma unroll
		for (uint32_t n = 0; n < TILES; n++) {
			uint32_t w[4];

			gate_matrices(gate_piece(w_at, n * 8 + lane % 8, half * 4 + lane / 8), w);
#pragma unroll
			for (uint32_t m = 0; m < 2; m++) {
				gate_mma(c[m][n], x[m][0], w[0], w[1]);
				gate_mma(c[m][n], x[m][1], w[2], w[3]);
			}
		}
	}
}

template <int COLUMNS, int OUTPUT> __device__ static inline void gate_by_mma(const gate_args &a)
{
	constexpr int TILES = COLUMNS / 32; /* of 8 columns, of a warp */
	constexpr uint32_t STAGE = (GATE_M_MMA + COLUMNS) * 128;
	extern __shared__ __align__(1024) char shared[];
	const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
	const uint32_t tile = blockIdx.x, first = blockIdx.y * GATE_M_MMA, layer = blockIdx.z;
	const uint32_t row0 = warp % 2 * 32, column0 = warp / 2 * (COLUMNS / 4);
	const uint32_t base = gate_shared(shared);
	const __nv_bfloat16 *x = reinterpret_cast<const __nv_bfloat16 *>(a.x) + a.x_layer * layer;
	const char *w = reinterpret_cast<const char *>(a.w) +
		2 * (a.w_layer * layer + (size_t)tile * a.steps * COLUMNS * GATE_STEP);
	float c[2][TILES][4] = {}, *staged = reinterpret_cast<float *>(shared);
	gate_small small;

	for (uint32_t step = 0; step + 1 < a.stages; step++) {
		if (step < a.steps)
			gate_mma_load<COLUMNS>(a, base + step * STAGE, step, x, w, first);
		asm volatile("cp.async.commit_group;" ::: "memory");
	}
	for (uint32_t step = 0; step < a.steps; step++) {
		const uint32_t ahead = step + a.stages - 1, at = base + step % a.stages * STAGE;

		/* Two stages at least, so the one that is needed is the oldest, or none is behind it. */
		if (a.stages > 2)
			asm volatile("cp.async.wait_group 1;" ::: "memory");
		else
			asm volatile("cp.async.wait_group 0;" ::: "memory");
		__syncthreads();
		if (ahead < a.steps)
			gate_mma_load<COLUMNS>(
				a, base + ahead % a.stages * STAGE, ahead, x, w, first);
		asm volatile("cp.async.commit_group;" ::: "memory");
		gate_mma_step<TILES>(at + row0 * 128, at + (GATE_M_MMA + column0) * 128, lane, c);
	}
	asm volatile("cp.async.wait_group 0;" ::: "memory");
	__syncthreads();
#pragma unroll
	for (int m = 0; m < 2; m++)
#pragma unroll
		for (int n = 0; n < TILES; n++)
#pragma unroll
			for (int half = 0; half < 2; half++)
				*reinterpret_cast<float2 *>(staged +
					(row0 + m * 16 + half * 8 + lane / 4) *
						gate_pitch<COLUMNS>() +
					column0 + n * 8 + lane % 4 * 2) =
					make_float2(c[m][n][half * 2], c[m][n][half * 2 + 1]);
	small = gate_small_at<COLUMNS>(staged + GATE_M_MMA * gate_pitch<COLUMNS>(), a);
	if (OUTPUT == GATE_OUT_ZIP)
		gate_small_load<COLUMNS>(small, a, tile, layer, threadIdx.x, GATE_MMA_THREADS);
	else
		for (uint32_t i = threadIdx.x; i < COLUMNS; i += GATE_MMA_THREADS)
			small.bias[i] = reinterpret_cast<const float *>(
				a.small)[a.small_layer * layer + (size_t)tile * COLUMNS + i];
	__syncthreads();
	gate_finish<GATE_M_MMA, COLUMNS, OUTPUT>(
		a, staged, small, tile, layer, first, threadIdx.x, GATE_MMA_THREADS);
}

#endif
