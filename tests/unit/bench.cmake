# SPDX-License-Identifier: Apache-2.0
kvg_test(test_figure SOURCES test_figure.c ${CMAKE_SOURCE_DIR}/tests/bench/figure.c LIBS m LABELS unit)
