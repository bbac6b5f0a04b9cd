/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The product by wgmma, on Hopper. One thread fetches, two warpgroups multiply 64 tokens each by all columns of a tile,
 * and a ring of stages is between them:
 *
 *	full[s]		x and weights of a step are there		set by the copies' bytes
 *	empty[s]	nobody reads them any more			set by the warpgroups
 *
 * Two blocks of a cluster have neighbouring tokens and the same weights; each fetches half of these for both, which is what
 * keeps the second-level cache from being the limit. So a stage is filled from two sides, and is empty when the warpgroups
 * of both blocks say so.
 *
 *	shared	stage 0 .. 3 | x [128][64] | w [columns][64] |	bf16, 16-byte pieces permuted
 *		then c [128][columns + 4] and the small tensors, over the stages
 */
#ifndef KVGATE_GPU_KERNELS_GATE_WGMMA_CUH
#define KVGATE_GPU_KERNELS_GATE_WGMMA_CUH

#include "gpu/kernels/gate_tail.cuh"

#define GATE_WGMMA_THREADS 384u
#define GATE_CONSUMERS     256u

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define GATE_C8(i)                                                                                 \
	"+f"(c[i]), "+f"(c[i + 1]), "+f"(c[i + 2]), "+f"(c[i + 3]), "+f"(c[i + 4]),                \
		"+f"(c[i + 5]), "+f"(c[i + 6]), "+f"(c[i + 7])

/* c (+)= 64 by 16 of x times 16 by N of w, both in shared memory. */
template <int N> struct gate_wgmma;

template <> struct gate_wgmma<128> {
	__device__ static inline void run(float (&c)[64], uint64_t x, uint64_t w, int add)
	{
		asm volatile(
			"{ .reg .pred p; setp.ne.b32 p, %66, 0;"
			"wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
			"%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
			"%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
			"%30, %31, "
			"%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
			"%46, %47, "
			"%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
			"%62, %63"
			"}, %64, %65, p, 1, 1, 0, 0; }"
			: GATE_C8(0), GATE_C8(8), GATE_C8(16), GATE_C8(24), GATE_C8(32),
			GATE_C8(40), GATE_C8(48), GATE_C8(56)
			: "l"(x), "l"(w), "r"(add));
	}
};

template <> struct gate_wgmma<144> {
	__device__ static inline void run(float (&c)[72], uint64_t x, uint64_t w, int add)
	{
		asm volatile(
			"{ .reg .pred p; setp.ne.b32 p, %74, 0;"
			"wgmma.mma_async.sync.aligned.m64n144k16.f32.bf16.bf16 {"
			"%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
			"%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
			"%30, %31, "
			"%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
			"%46, %47, "
			"%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
			"%62, %63, "
			"%64, %65, %66, %67, %68, %69, %70, %71"
			"}, %72, %73, p, 1, 1, 0, 0; }"
			: GATE_C8(0), GATE_C8(8), GATE_C8(16), GATE_C8(24), GATE_C8(32),
			GATE_C8(40), GATE_C8(48), GATE_C8(56), GATE_C8(64)
			: "l"(x), "l"(w), "r"(add));
	}
};

template <> struct gate_wgmma<160> {
	__device__ static inline void run(float (&c)[80], uint64_t x, uint64_t w, int add)
	{
		asm volatile(
			"{ .reg .pred p; setp.ne.b32 p, %82, 0;"
			"wgmma.mma_async.sync.aligned.m64n160k16.f32.bf16.bf16 {"
			"%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
			"%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
			"%30, %31, "
			"%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
			"%46, %47, "
			"%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, "
			"%62, %63, "
			"%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, "
			"%78, %79"
			"}, %80, %81, p, 1, 1, 0, 0; }"
			: GATE_C8(0), GATE_C8(8), GATE_C8(16), GATE_C8(24), GATE_C8(32),
			GATE_C8(40), GATE_C8(48), GATE_C8(56), GATE_C8(64), GATE_C8(72)
			: "l"(x), "l"(w), "r"(add));
	}
};

/* Rows of 128 bytes, their 16-byte pieces permuted, eight rows 1024 bytes apart. */
__device__ static inline uint64_t gate_descriptor(uint32_t at)
{
	return (uint64_t)(at & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
}

__device__ static inline uint32_t gate_address(const void *p)
{
	return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

__device__ static inline void gate_barrier_init(uint32_t bar, uint32_t count)
{
	asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(bar), "r"(count) : "memory");
}

__device__ static inline void gate_barrier_expect(uint32_t bar, uint32_t bytes)
{
	asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(bar), "r"(bytes)
		     : "memory");
}

__device__ static inline void gate_barrier_wait(uint32_t bar, uint32_t parity)
{
	asm volatile("{ .reg .pred p;\n"
		     "again: mbarrier.try_wait.parity.shared::cta.b64 p, [%0], %1;\n"
		     "@!p bra again; }" ::"r"(bar),
		     "r"(parity)
		     : "memory");
}

/* On the barrier of block `rank` of the cluster that lies where this one does. */
__device__ static inline void gate_barrier_arrive(uint32_t bar, uint32_t rank)
{
	asm volatile("{ .reg .b32 there;\n"
		     "mapa.shared::cluster.u32 there, %0, %1;\n"
		     "mbarrier.arrive.shared::cluster.b64 _, [there]; }" ::"r"(bar),
		     "r"(rank)
		     : "memory");
}

__device__ static inline void gate_cluster_sync()
{
	asm volatile("barrier.cluster.arrive.release.aligned;\n"
		     "barrier.cluster.wait.acquire.aligned;" ::
			     : "memory");
}

__device__ static inline void gate_fetch_x(const gate_args &a, uint32_t to, uint32_t bar,
	uint32_t column, uint32_t token, uint32_t layer)
{
	asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes "
		     "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(to),
		     "l"(&a.x_map), "r"(bar), "r"(column), "r"(token), "r"(layer)
		     : "memory");
}

/* Half a tile's columns of weights, to this block or to all of the cluster. */
template <int CLUSTER>
__device__ static inline void gate_fetch_w(
	const gate_args &a, uint32_t to, uint32_t bar, uint32_t row)
{
	if (CLUSTER == 1)
		asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx:"
			     ":bytes "
			     "[%0], [%1, {%3, %4}], [%2];" ::"r"(to),
			     "l"(&a.w_map), "r"(bar), "r"(0), "r"(row)
			     : "memory");
	else
		asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx:"
			     ":bytes"
			     ".multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(to),
			     "l"(&a.w_map), "r"(bar), "r"(0), "r"(row),
			     "h"((uint16_t)((1 << CLUSTER) - 1))
			     : "memory");
}

/* Which part of the product a block has. */
struct gate_place {
	uint32_t tile, first, layer, rank;
};

template <int N, int CLUSTER>
__device__ static inline void gate_produce(
	const gate_args &a, const gate_place &at, uint32_t stages, uint32_t full, uint32_t empty)
{
	constexpr uint32_t X = GATE_M * 128, W = 2 * N * 128;
	const uint32_t row =
		a.w_row + (at.layer * a.tiles + at.tile) * a.steps * 2 * N + at.rank * N;

	for (uint32_t step = 0; step < a.steps; step++) {
		const uint32_t s = step % GATE_STAGES, to = stages + s * (X + W);
		const uint32_t w_at = to + X + at.rank * N * 128;

		if (step >= GATE_STAGES)
			gate_barrier_wait(empty + s * 8, (step / GATE_STAGES - 1) & 1);
		gate_barrier_expect(full + s * 8, X + W);
		gate_fetch_x(a, to, full + s * 8, step * GATE_STEP, at.first, at.layer);
		for (uint32_t half = 0; half < 2 / CLUSTER; half++)
			gate_fetch_w<CLUSTER>(a, w_at + half * N * 128, full + s * 8,
				row + step * 2 * N + half * N);
	}
}

/* One thread of a warpgroup: what it read of the stage is read. */
template <int CLUSTER> __device__ static inline void gate_release(uint32_t bar)
{
#pragma unroll
	for (uint32_t rank = 0; rank < CLUSTER; rank++)
		gate_barrier_arrive(bar, rank);
}

template <int N, int CLUSTER>
__device__ static inline void gate_consume(const gate_args &a, uint32_t stages, uint32_t full,
	uint32_t empty, uint32_t group, float (&c0)[N / 2], float (&c1)[N / 2])
{
	constexpr uint32_t X = GATE_M * 128, W = 2 * N * 128;

	for (uint32_t step = 0; step < a.steps; step++) {
		const uint32_t s = step % GATE_STAGES, at = stages + s * (X + W);
		const uint64_t x = gate_descriptor(at + group * 64 * 128);
		const uint64_t w0 = gate_descriptor(at + X), w1 = gate_descriptor(at + X + N * 128);

		gate_barrier_wait(full + s * 8, step / GATE_STAGES & 1);
		asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
		for (uint32_t k = 0; k < GATE_STEP / 16; k++) { /* 32 bytes on */
			gate_wgmma<N>::run(c0, x + 2 * k, w0 + 2 * k, step || k);
			gate_wgmma<N>::run(c1, x + 2 * k, w1 + 2 * k, step || k);
		}
		asm volatile("wgmma.commit_group.sync.aligned;\n"
			     "wgmma.wait_group.sync.aligned 1;" ::
				     : "memory");
		if (step && threadIdx.x % 128 == 0)
			gate_release<CLUSTER>(empty + (step - 1) % GATE_STAGES * 8);
	}
	asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
	for (int i = 0; i < N / 2; i++) /* not to be looked at before */
		asm volatile("" : "+f"(c0[i]), "+f"(c1[i])::"memory");
}

template <int N>
__device__ static inline void gate_stage_c(
	float *staged, uint32_t row, uint32_t lane, const float (&c)[N / 2], uint32_t column)
{
#pragma unroll
	for (int n = 0; n < N / 8; n++)
#pragma unroll
		for (int half = 0; half < 2; half++)
			*reinterpret_cast<float2 *>(staged +
				(row + half * 8 + lane / 4) * gate_pitch<2 * N>() + column + n * 8 +
				lane % 4 * 2) =
				make_float2(c[n * 4 + half * 2], c[n * 4 + half * 2 + 1]);
}

__device__ static inline void gate_consumers_sync()
{
	asm volatile("bar.sync 1, %0;" ::"n"(GATE_CONSUMERS) : "memory");
}

template <int N, int CLUSTER, int OUTPUT>
__device__ static inline void gate_consumer(
	const gate_args &a, const gate_place &at, char *shared, uint32_t full, uint32_t empty)
{
	const uint32_t thread = threadIdx.x - (GATE_WGMMA_THREADS - GATE_CONSUMERS);
	float *staged = reinterpret_cast<float *>(shared);
	const gate_small small = gate_small_at<2 * N>(staged + GATE_M * gate_pitch<2 * N>(), a);
	float c0[N / 2], c1[N / 2];

	gate_consume<N, CLUSTER>(a, gate_address(shared), full, empty, thread / 128, c0, c1);
	gate_consumers_sync(); /* nobody reads the stages any more */
	gate_stage_c<N>(staged, thread / 32 * 16, thread % 32, c0, 0);
	gate_stage_c<N>(staged, thread / 32 * 16, thread % 32, c1, N);
	if (OUTPUT == GATE_OUT_ZIP)
		gate_small_load<2 * N>(small, a, at.tile, at.layer, thread, GATE_CONSUMERS);
	else
		for (uint32_t i = thread; i < 2 * N; i += GATE_CONSUMERS)
			small.bias[i] = reinterpret_cast<const float *>(
				a.small)[a.small_layer * at.layer + (size_t)at.tile * 2 * N + i];
	gate_consumers_sync();
	gate_finish<GATE_M, 2 * N, OUTPUT>(
		a, staged, small, at.tile, at.layer, at.first, thread, GATE_CONSUMERS);
}

#endif

template <int N, int CLUSTER, int OUTPUT>
__device__ static inline void gate_by_wgmma(const gate_args &a)
{
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
	__shared__ __align__(8) uint64_t barriers[2 * GATE_STAGES];
	extern __shared__ __align__(1024) char unaligned[];
	char *shared = unaligned + (-gate_address(unaligned) & 1023);
	const uint32_t full = gate_address(barriers), empty = full + GATE_STAGES * 8;
	gate_place at;

	at.rank = blockIdx.x % CLUSTER;
	at.tile = blockIdx.x / CLUSTER;
	at.first = (blockIdx.y * CLUSTER + at.rank) * GATE_M;
	at.layer = blockIdx.z;
	if (threadIdx.x == 0) {
		for (uint32_t s = 0; s < GATE_STAGES; s++) {
			gate_barrier_init(full + s * 8, 1);
			gate_barrier_init(empty + s * 8, 2 * CLUSTER);
		}
		asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
	}
	__syncthreads();
	if (CLUSTER > 1)
		gate_cluster_sync();
	if (threadIdx.x < GATE_WGMMA_THREADS - GATE_CONSUMERS) {
		asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
		if (threadIdx.x == 0)
			gate_produce<N, CLUSTER>(a, at, gate_address(shared), full, empty);
	} else {
		asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
		gate_consumer<N, CLUSTER, OUTPUT>(a, at, shared, full, empty);
	}
	if (CLUSTER >
		1) { /* the other one may still write here, and count on this one's barriers */
		__syncthreads();
		gate_cluster_sync();
	}
#endif
}

#endif
