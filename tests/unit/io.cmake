# SPDX-License-Identifier: Apache-2.0
kvg_test(test_io_queue SOURCES test_io_queue.c LIBS kvio LABELS unit)
kvg_test(test_io SOURCES test_io.c LIBS kvio LABELS unit)
