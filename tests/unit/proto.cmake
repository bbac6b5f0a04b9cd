# SPDX-License-Identifier: Apache-2.0
kvg_test(test_proto SOURCES test_proto.c LIBS kvproto LABELS unit)
kvg_test(test_proto_shm SOURCES test_proto_shm.c LIBS kvproto LABELS unit)
kvg_test(test_shape SOURCES test_shape.c LIBS kvproto LABELS unit)
kvg_test(test_plane SOURCES test_plane.c LIBS kvproto LABELS unit)
kvg_test(test_key SOURCES test_key.c LIBS kvproto LABELS unit)
kvg_test(test_wire SOURCES test_wire.c LIBS kvproto LABELS unit)
kvg_test(test_map SOURCES test_map.c LIBS kvproto LABELS unit)
