# SPDX-License-Identifier: Apache-2.0
# What of gpu/ needs no GPU.
kvg_test(test_attend_plan SOURCES test_attend_plan.c ${CMAKE_SOURCE_DIR}/tests/gpu/planes.c
	LIBS kvgpu kvworker LABELS unit)
