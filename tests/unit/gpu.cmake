# SPDX-License-Identifier: Apache-2.0
# What of gpu/ needs no GPU.
kvg_test(test_attend_plan SOURCES test_attend_plan.c ${CMAKE_SOURCE_DIR}/tests/gpu/planes.c
	LIBS kvgpu kvworker LABELS unit)
if(NOT KVG_GPU_WHY_NOT)
	foreach(name tier_gpu copier)
		kvg_test(test_${name} SOURCES test_${name}.c LIBS kvmem LABELS unit)
		add_dependencies(test_${name} cuda_fake kvgate-mover)
	endforeach()
endif()
if(NOT KVG_GPU_WHY_NOT)
	kvg_test(test_replica SOURCES test_replica.c cache_fixture.c fake_gate.c LIBS kvcache LABELS unit)
	kvg_test(test_replica_adopt SOURCES test_replica_adopt.c lives.c cache_fixture.c fake_gate.c LIBS kvcache LABELS unit)
	foreach(name replica replica_adopt)
		add_dependencies(test_${name} cuda_fake kvgate-mover)
	endforeach()
endif()
