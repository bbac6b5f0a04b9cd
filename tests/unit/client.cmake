# SPDX-License-Identifier: Apache-2.0
if(TARGET kvgate_static)
	foreach(name test_client test_client_end test_client_read test_client_fetch test_client_resume)
		kvg_test(${name} SOURCES ${name}.c client_fake.c LIBS kvgate_static Threads::Threads LABELS unit)
		target_include_directories(${name} PRIVATE ${CMAKE_CURRENT_SOURCE_DIR})
	endforeach()
endif()
if(TARGET kvgated)
	kvg_test(test_client_e2e SOURCES test_client_e2e.c LIBS kvharness kvgate LABELS scenario)
endif()

# The public header in every language it promises.
find_program(KVG_CXX NAMES c++ g++ clang++ clang++-14 clang-14)
set(use_header ${CMAKE_CURRENT_SOURCE_DIR}/use_header.c)
set(strict -pedantic -Wall -Wextra -Werror -fsyntax-only -I${CMAKE_SOURCE_DIR}/client/include
	-I${CMAKE_SOURCE_DIR}/proto)
foreach(std c99 c11 gnu17)
	add_test(NAME kvgate_h_${std} COMMAND ${CMAKE_C_COMPILER} -std=${std} ${strict} ${use_header})
	set_tests_properties(kvgate_h_${std} PROPERTIES LABELS unit)
endforeach()
foreach(std c++11 c++14 c++17 c++20 c++2b)
	if(KVG_CXX)
		add_test(NAME kvgate_h_${std} COMMAND ${KVG_CXX} -x c++ -std=${std} ${strict}
			${use_header})
		set_tests_properties(kvgate_h_${std} PROPERTIES LABELS unit)
	endif()
endforeach()

if(TARGET kvgate AND NOT KVGATE_SANITIZE)
	add_test(NAME client_install COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/client_install.sh ${CMAKE_BINARY_DIR}
		${CMAKE_SOURCE_DIR} ${CMAKE_C_COMPILER})
	set_tests_properties(client_install PROPERTIES LABELS unit)
endif()
if(TARGET kvgatectl AND TARGET kvgated AND NOT KVGATE_SANITIZE)
	add_test(NAME ctl_e2e COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/ctl_e2e.sh ${CMAKE_BINARY_DIR}
		${CMAKE_SOURCE_DIR} ${CMAKE_C_COMPILER})
	set_tests_properties(ctl_e2e PROPERTIES LABELS scenario TIMEOUT 180)
endif()
if(TARGET kvgate-worker AND TARGET kvgated AND NOT KVGATE_SANITIZE)
	add_test(NAME demo_smoke COMMAND python3 ${CMAKE_SOURCE_DIR}/client/demo/demo.py ${CMAKE_BINARY_DIR}
		${CMAKE_SOURCE_DIR}/client/demo/lab 8)
	set_tests_properties(demo_smoke PROPERTIES LABELS scenario TIMEOUT 600 ENVIRONMENT OPENBLAS_NUM_THREADS=1)
endif()
