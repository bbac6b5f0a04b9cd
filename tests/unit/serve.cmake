# SPDX-License-Identifier: Apache-2.0
if(NOT TARGET kvserve)
	return()
endif()
foreach(name held outbox peer stages listener)
	kvg_test(test_${name} SOURCES test_${name}.c LIBS kvserve kvcache kvbase kvproto Threads::Threads m LABELS unit)
endforeach()
foreach(name session request request_limits plateau)
	kvg_test(test_${name} SOURCES test_${name}.c serve_fixture.c LIBS kvserve kvcache kvbase kvproto
		Threads::Threads m LABELS unit)
endforeach()
