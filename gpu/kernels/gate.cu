// SPDX-License-Identifier: Apache-2.0
// Names say the columns of a tile, and of wgmma how many blocks share its weights. A grid is tiles (times the cluster), blocks of
// tokens (divided by it), layers.
#include "gpu/kernels/gate_mma.cuh"
#include "gpu/kernels/gate_wgmma.cuh"

#define BY_WGMMA(name, n, cluster, output)                                                         \
	extern "C" __global__ void __cluster_dims__(cluster, 1, 1)                                 \
		__launch_bounds__(GATE_WGMMA_THREADS, 1)                                           \
			name(const __grid_constant__ gate_args a)                                  \
	{                                                                                          \
		gate_by_wgmma<n, cluster, output>(a);                                              \
	}
#define BY_MMA(name, columns, output)                                                              \
	extern "C" __global__ void __launch_bounds__(GATE_MMA_THREADS)                             \
		name(const __grid_constant__ gate_args a)                                          \
	{                                                                                          \
		gate_by_mma<columns, output>(a);                                                   \
	}

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
BY_WGMMA(gate_zip_wgmma_320_2, 160, 2, GATE_OUT_ZIP)
BY_WGMMA(gate_zip_wgmma_320_1, 160, 1, GATE_OUT_ZIP)
BY_WGMMA(gate_zip_wgmma_288_2, 144, 2, GATE_OUT_ZIP)
BY_WGMMA(gate_zip_wgmma_288_1, 144, 1, GATE_OUT_ZIP)
BY_WGMMA(gate_zip_wgmma_256_2, 128, 2, GATE_OUT_ZIP)
BY_WGMMA(gate_zip_wgmma_256_1, 128, 1, GATE_OUT_ZIP)
BY_WGMMA(gate_gelu_wgmma_256_2, 128, 2, GATE_OUT_GELU)
BY_WGMMA(gate_gelu_wgmma_256_1, 128, 1, GATE_OUT_GELU)
#endif
BY_MMA(gate_zip_mma_320, 320, GATE_OUT_ZIP)
BY_MMA(gate_zip_mma_288, 288, GATE_OUT_ZIP)
BY_MMA(gate_zip_mma_256, 256, GATE_OUT_ZIP)
BY_MMA(gate_gelu_mma_256, 256, GATE_OUT_GELU)
BY_MMA(gate_linear_mma_64, 64, GATE_OUT_LINEAR)
