# SPDX-License-Identifier: Apache-2.0
foreach(name index pins layout block commit evictor purge verify cache cache_stress adopt)
	kvg_test(test_${name} SOURCES test_${name}.c cache_fixture.c fake_gate.c LIBS kvcache LABELS unit)
endforeach()
kvg_test(test_mover SOURCES test_mover.c cache_fixture.c fake_gate.c disk_ram.c LIBS kvcache LABELS unit)
# Its many children need not wait a second each for races at their end, as ThreadSanitizer has it.
set_tests_properties(test_adopt PROPERTIES ENVIRONMENT "OPENBLAS_NUM_THREADS=1;TSAN_OPTIONS=atexit_sleep_ms=0")
