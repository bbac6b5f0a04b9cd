# SPDX-License-Identifier: Apache-2.0
kvg_test(test_figure SOURCES test_figure.c ${CMAKE_SOURCE_DIR}/tests/bench/figure.c LIBS m LABELS unit)
if(NOT KVGATE_SANITIZE)
	add_test(NAME quality_samples COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/quality_samples.sh ${CMAKE_BINARY_DIR}
		${CMAKE_SOURCE_DIR})
	set_tests_properties(quality_samples PROPERTIES LABELS scenario TIMEOUT 120
		ENVIRONMENT OPENBLAS_NUM_THREADS=1)
endif()
