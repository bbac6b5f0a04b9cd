/* SPDX-License-Identifier: Apache-2.0 */
/*
 * zip: members of a zip archive that are stored as they are, in memory.
 * Thread: one reader of one archive. Locks: none. Blocks: never.
 * Errors: -EBADMSG for anything that does not add up, is compressed or encrypted; -ENOENT, -ENOMEM.
 */
#ifndef KVGATE_GATES_ZIP_H
#define KVGATE_GATES_ZIP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct zip_member {
	const char *name; /* not terminated */
	size_t name_bytes;
	const uint8_t *data;
	size_t bytes;
	uint32_t crc;
	bool verified;
};

struct zip;

/* The bytes stay the caller's and outlive the archive. */
int zip_open(const void *data, size_t bytes, struct zip **ret, char *ret_why, size_t why_size);
struct zip *zip_close(struct zip *z);

uint32_t zip_count(const struct zip *z);
const struct zip_member *zip_at(const struct zip *z, uint32_t i); /* in the order of names */

/* A member whose CRC was found right, now or before. -ENOENT leaves ret_why alone. */
int zip_read(struct zip *z, const char *name, size_t name_bytes, const struct zip_member **ret,
	char *ret_why, size_t why_size);

#endif
