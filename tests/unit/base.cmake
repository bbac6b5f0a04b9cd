# SPDX-License-Identifier: Apache-2.0
foreach(name loop log counters account options machine park)
	kvg_test(test_${name} SOURCES test_${name}.c LIBS kvbase Threads::Threads m LABELS unit)
endforeach()
