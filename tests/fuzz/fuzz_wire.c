/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What any client can send: bytes as a Request, and as a Reply for the other direction. Whatever is accepted
 * packs, and those bytes, when they are accepted again, pack the same. (They are not when an unknown field has the
 * number 0: protobuf-c takes it in an overlong form and keeps it in the short one, which it refuses.)
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/kvgate.pb-c.h"

static uint8_t *pack(const ProtobufCMessage *m, size_t *ret_n)
{
	size_t n = protobuf_c_message_get_packed_size(m);
	uint8_t *bytes = malloc(n ? n : 1);

	assert(bytes && protobuf_c_message_pack(m, bytes) == n);
	*ret_n = n;
	return bytes;
}

static void round_trip(const ProtobufCMessageDescriptor *d, const uint8_t *data, size_t n)
{
	ProtobufCMessage *m = protobuf_c_message_unpack(d, NULL, n, data);
	uint8_t *first, *second;
	size_t n_first, n_second;

	if (!m)
		return;
	first = pack(m, &n_first);
	protobuf_c_message_free_unpacked(m, NULL);
	m = protobuf_c_message_unpack(d, NULL, n_first, first);
	if (m) {
		second = pack(m, &n_second);
		assert(n_first == n_second && !memcmp(first, second, n_first));
		protobuf_c_message_free_unpacked(m, NULL);
		free(second);
	}
	free(first);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	round_trip(&kvgate__v1__request__descriptor, data, n);
	round_trip(&kvgate__v1__reply__descriptor, data, n);
	return 0;
}
