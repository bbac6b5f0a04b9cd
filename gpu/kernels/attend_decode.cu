// SPDX-License-Identifier: Apache-2.0
/*
 * Up to 16 query rows of each KV head. Two blocks on a multiprocessor, of four computing warps and one that fetches;
 * the bound counts a warp more, so that registers are left over for blocks of a kernel that moves pages meanwhile.
 */
#include "gpu/kernels/attend.cuh"

#define KERNEL(type, dim, blocks)                                                                                     \
	extern "C" __global__ void __launch_bounds__(192, blocks)                                                    \
		attend_decode_##dim##_##type(const __grid_constant__ struct attend_args a)                          \
	{                                                                                                            \
		attend<of_##type, dim, 1, 4>(a);                                                                     \
	}                                                                                                            \
	extern "C" __global__ void attend_decode_merge_##dim##_##type(const __grid_constant__ struct attend_args a)   \
	{                                                                                                            \
		merge<of_##type, dim, ATTEND_TILE_ROWS(1, dim)>(a);                                                 \
	}

KERNEL(bf16, 64, 2)
KERNEL(bf16, 96, 2)
KERNEL(bf16, 128, 2)
KERNEL(bf16, 256, 1)
KERNEL(f16, 64, 2)
KERNEL(f16, 96, 2)
KERNEL(f16, 128, 2)
KERNEL(f16, 256, 1)
