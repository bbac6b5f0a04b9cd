# SPDX-License-Identifier: Apache-2.0
kvg_test(test_gate_golden SOURCES test_gate_golden.c gate_fixture.c LIBS kvgates LABELS unit)
kvg_test(test_gate_score SOURCES test_gate_score.c gate_fixture.c LIBS kvgates LABELS unit)
kvg_test(test_gate_safetensors SOURCES test_gate_safetensors.c LIBS kvgates LABELS unit)
kvg_test(test_gate_pickle SOURCES test_gate_pickle.c LIBS kvgates LABELS unit)
kvg_test(test_gate_load SOURCES test_gate_load.c gate_fixture.c LIBS kvgates LABELS unit)
kvg_test(test_gate_archive SOURCES test_gate_archive.c LIBS kvgates LABELS unit)
