// SPDX-License-Identifier: Apache-2.0
/*
 * Tiles of 128 query rows, of which eight warps have 16 each; with a head of 256 four warps, which need the registers.
 * One block on a multiprocessor.
 */
#include "gpu/kernels/attend.cuh"

#define KERNEL(type, dim)                                                                                             \
	extern "C" __global__ void __launch_bounds__(ATTEND_THREADS(0, dim), 1)                                                         \
		attend_prefill_##dim##_##type(const __grid_constant__ struct attend_args a)                         \
	{                                                                                                            \
		attend<of_##type, dim, ATTEND_TILE_ROWS(0, dim) / 16, 1>(a);                                                                     \
	}                                                                                                            \
	extern "C" __global__ void attend_prefill_merge_##dim##_##type(const __grid_constant__ struct attend_args a)   \
	{                                                                                                            \
		merge<of_##type, dim, ATTEND_TILE_ROWS(0, dim)>(a);                                                 \
	}

KERNEL(bf16, 64)
KERNEL(bf16, 96)
KERNEL(bf16, 128)
KERNEL(bf16, 256)
KERNEL(f16, 64)
KERNEL(f16, 96)
KERNEL(f16, 128)
KERNEL(f16, 256)
