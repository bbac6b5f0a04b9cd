# SPDX-License-Identifier: Apache-2.0
if(TARGET kvworker)
	foreach(module attention evict model prompt report sample)
		kvg_test(test_${module} SOURCES test_${module}.c LIBS kvworker LABELS unit)
	endforeach()
endif()
