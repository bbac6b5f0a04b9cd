# SPDX-License-Identifier: Apache-2.0
file(GLOB PACK CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/daemon/cache/pack*.c)
kvg_test(test_arena SOURCES test_arena.c LIBS kvmem LABELS unit)
kvg_test(test_segment SOURCES test_segment.c LIBS kvmem LABELS unit)
kvg_test(test_pool SOURCES test_pool.c LIBS kvmem LABELS unit)
kvg_test(test_staging SOURCES test_staging.c ${CMAKE_SOURCE_DIR}/daemon/cache/staging.c LIBS kvmem LABELS unit)
kvg_test(test_pack_order SOURCES test_pack_order.c ${PACK} fake_gate.c LIBS kvmem m LABELS unit)
kvg_test(test_pack SOURCES test_pack.c ${PACK} fake_gate.c LIBS kvmem m LABELS unit)
