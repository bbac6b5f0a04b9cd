# SPDX-License-Identifier: Apache-2.0
# cmake -DIN=page.in -DOUT=page -DKVGATED=binary -P manual.cmake: puts the parameter table into a manual page.
execute_process(COMMAND ${KVGATED} --help-mdoc OUTPUT_VARIABLE PARAMETERS COMMAND_ERROR_IS_FATAL ANY)
string(STRIP "${PARAMETERS}" PARAMETERS)
configure_file(${IN} ${OUT} @ONLY)
