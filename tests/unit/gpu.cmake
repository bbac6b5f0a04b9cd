# SPDX-License-Identifier: Apache-2.0
# What of gpu/ needs no GPU.
kvg_test(test_attend_plan SOURCES test_attend_plan.c ${CMAKE_SOURCE_DIR}/tests/gpu/planes.c
	LIBS kvgpu kvworker LABELS unit)
if(NOT KVG_GPU_WHY_NOT)
	kvg_test(test_tier_gpu SOURCES test_tier_gpu.c LIBS kvmem LABELS unit)
	add_dependencies(test_tier_gpu cuda_fake)
endif()
