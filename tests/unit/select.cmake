# SPDX-License-Identifier: Apache-2.0
kvg_test(test_select SOURCES test_select.c LIBS kvgates LABELS unit)
