# SPDX-License-Identifier: Apache-2.0
foreach(module proto proto_shm shape plane key wire)
	kvg_test(test_${module} SOURCES test_${module}.c LIBS kvproto LABELS unit)
endforeach()
