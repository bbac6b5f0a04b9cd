# SPDX-License-Identifier: Apache-2.0
kvg_test(test_policy SOURCES test_policy.c LIBS kvcache LABELS unit)
kvg_test(test_policy_traits SOURCES test_policy_traits.c LIBS kvcache LABELS unit)
kvg_test(test_policy_learn SOURCES test_policy_learn.c LIBS kvcache LABELS unit)
kvg_test(test_policy_ghost SOURCES test_policy_ghost.c LIBS kvcache LABELS unit)
set(replay ${CMAKE_SOURCE_DIR}/client/ctl/replay)
kvg_test(test_policy_replay SOURCES test_policy_replay.c ${replay}_trace.c ${replay}_kvgate.c ${replay}_rivals.c
	LIBS kvcache PkgConfig::JSON_C LABELS unit)
