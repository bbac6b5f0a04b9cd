/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack_sink: the body of one plane as it is written - bytes in order, copied and checksummed in one pass.
 * Thread: one owner. Locks: none. Blocks: never. Errors: none; the caller knows the sizes.
 */
#ifndef KVGATE_DAEMON_CACHE_PACK_SINK_H
#define KVGATE_DAEMON_CACHE_PACK_SINK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pack_kernels;

#define SINK_BYTES 4096u /* of eight planes, 32 KiB: they stay in the first-level cache */

struct sink {
	_Alignas(64) uint8_t buffer[SINK_BYTES];
	const struct pack_kernels *kernels;
	bool stream;
	uint8_t *dst; /* where the buffer's bytes go; 64-byte aligned */
	uint32_t fill;
	uint32_t crc;
};

/* dst: 64-byte aligned. stream: so much that it had better not pass through the caches. */
void sink_open(struct sink *s, const struct pack_kernels *kernels, bool stream, void *dst);
void sink_bytes(struct sink *s, const void *src, size_t n);
/* Room for some of `n` items of `size` bytes (<= SINK_BYTES / 4), at least one; say with sink_put() how much was used. */
void *sink_room(struct sink *s, size_t size, uint32_t n, uint32_t *ret_n);
static inline void sink_put(struct sink *s, size_t bytes)
{
	s->fill += (uint32_t)bytes;
}
/*
 * n rows of `row` bytes each: those that keys name, out of base[]; keys NULL: the first n. `ahead`: n rows that will be
 * asked for soon, or NULL.
 */
void sink_rows(struct sink *s, const uint8_t *base, size_t row, const uint32_t *keys, uint32_t n,
	const uint8_t *ahead);
/* Zeros up to the next section. */
void sink_align(struct sink *s);
/* After sink_align(): everything is written, if not yet seen by others (kernel store_end()); the checksum of it. */
uint32_t sink_close(struct sink *s);

#endif
