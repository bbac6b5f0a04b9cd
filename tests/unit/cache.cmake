# SPDX-License-Identifier: Apache-2.0
foreach(name index pins layout block commit evictor purge verify cache cache_stress adopt)
	kvg_test(test_${name} SOURCES test_${name}.c cache_fixture.c fake_gate.c LIBS kvcache LABELS unit)
endforeach()
