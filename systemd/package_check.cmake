# SPDX-License-Identifier: Apache-2.0
# Read by cpack before anything else.
if(NOT CPACK_BUILD_PREFIX STREQUAL "/usr")
	message(FATAL_ERROR "this build is for ${CPACK_BUILD_PREFIX}: for a package, configure with -DCMAKE_INSTALL_PREFIX=/usr")
endif()
