# SPDX-License-Identifier: Apache-2.0
kvg_test(test_select SOURCES test_select.c ${CMAKE_SOURCE_DIR}/gates/select.c LIBS kvproto m LABELS unit)
