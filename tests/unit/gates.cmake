# SPDX-License-Identifier: Apache-2.0
kvg_test(test_gate_golden SOURCES test_gate_golden.c gate_fixture.c LIBS kvgates LABELS unit)
kvg_test(test_gate_score SOURCES test_gate_score.c gate_fixture.c LIBS kvgates LABELS unit)
