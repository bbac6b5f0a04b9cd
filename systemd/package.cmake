# SPDX-License-Identifier: Apache-2.0
# cpack -G DEB: one package with the daemon, the tools, the library and what builds against it, the units, and
# /etc/kvgated/kvgated.conf as a file that is the administrator's. Only from a build for /usr: the units name its programs,
# and the folder of libraries depends on it.
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME kvgate)
set(CPACK_PACKAGE_CONTACT "kvgate maintainers <kvgate@localhost>" CACHE STRING "who made the package")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "machine-wide KV cache for LLM inference, ordered by learned gates")
set(CPACK_PACKAGE_DESCRIPTION
	"kvgated owns the KV cache memory of a machine and shares it between inference processes that come, crash and go.
Under memory pressure the least important pairs of everything leave before the whole of anything does.
This package has the daemon with its systemd units, kvgatectl, kvgate-worker, libkvgate and its headers.")
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION admin)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS ${CMAKE_BINARY_DIR}/client/lib)
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
# What makes the user and the folders; systemd itself need not run, nor be there.
set(CPACK_DEBIAN_PACKAGE_DEPENDS
	"init-system-helpers, systemd | systemd-standalone-sysusers, systemd | systemd-standalone-tmpfiles")
set(debian ${CMAKE_CURRENT_LIST_DIR}/debian)
set(control ${CMAKE_BINARY_DIR}/debian)
file(WRITE ${control}/conffiles "/etc/kvgated/kvgated.conf\n")
file(WRITE ${control}/triggers "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${control}/conffiles ${control}/triggers ${debian}/postinst ${debian}/prerm
	${debian}/postrm)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_PROJECT_CONFIG_FILE ${CMAKE_CURRENT_LIST_DIR}/package_check.cmake)

# Paths outside the prefix, hence in no other way of installing.
install(FILES systemd/kvgated.conf DESTINATION /etc/kvgated COMPONENT package EXCLUDE_FROM_ALL)
install(FILES ${debian}/copyright DESTINATION /usr/share/doc/kvgate COMPONENT package EXCLUDE_FROM_ALL)
set(CPACK_INSTALL_CMAKE_PROJECTS "${CMAKE_BINARY_DIR};kvgate;ALL;/;${CMAKE_BINARY_DIR};kvgate;package;/")
set(CPACK_BUILD_PREFIX ${CMAKE_INSTALL_PREFIX})
include(CPack)
