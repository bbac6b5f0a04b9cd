# SPDX-License-Identifier: Apache-2.0
foreach(name loop log order counters account options machine park)
	kvg_test(test_${name} SOURCES test_${name}.c LIBS kvbase Threads::Threads m LABELS unit)
endforeach()
kvg_test(test_keeper SOURCES test_keeper.c ${CMAKE_SOURCE_DIR}/daemon/keeper.c LIBS kvbase PkgConfig::SYSTEMD LABELS unit)
