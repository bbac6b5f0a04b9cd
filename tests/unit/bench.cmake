# SPDX-License-Identifier: Apache-2.0
kvg_test(test_figure SOURCES test_figure.c ${CMAKE_SOURCE_DIR}/tests/bench/figure.c LIBS m LABELS unit)
if(NOT KVGATE_SANITIZE)
	foreach(name quality_samples quality_smoke)
		add_test(NAME ${name} COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/${name}.sh ${CMAKE_BINARY_DIR}
			${CMAKE_SOURCE_DIR})
		set_tests_properties(${name} PROPERTIES LABELS scenario TIMEOUT 600
			ENVIRONMENT OPENBLAS_NUM_THREADS=1)
	endforeach()
endif()
