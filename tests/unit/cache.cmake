# SPDX-License-Identifier: Apache-2.0
foreach(name index pins layout block commit evictor purge verify cache cache_stress)
	kvg_test(test_${name} SOURCES test_${name}.c cache_fixture.c fake_gate.c LIBS kvcache LABELS unit)
endforeach()
kvg_test(test_mover SOURCES test_mover.c cache_fixture.c fake_gate.c disk_ram.c LIBS kvcache LABELS unit)
foreach(name adopt adopt_disk)
	kvg_test(test_${name} SOURCES test_${name}.c lives.c cache_fixture.c fake_gate.c LIBS kvcache LABELS unit)
endforeach()
# Their many children need not wait a second each for races at their end, as ThreadSanitizer has it.
set_tests_properties(test_adopt test_adopt_disk PROPERTIES ENVIRONMENT "OPENBLAS_NUM_THREADS=1;TSAN_OPTIONS=atexit_sleep_ms=0")
