/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Memory sees one read and one write of every byte, and what is checksummed is what is stored, whatever the client does
 * to its staging memory meanwhile. Rows of whole lines pass through registers (kernel lines()), if the processor has what
 * that needs; everything else is gathered into a small buffer that stays in the first-level cache, and when that is full
 * its checksum is taken and it is stored.
 */
#include "daemon/cache/pack_sink.h"

#include <assert.h>
#include <string.h>

#include "daemon/cache/pack_kernels.h"
#include "daemon/cache/pack_order.h"
#include "proto/plane.h"

#define LINE KVG_PLANE_ALIGN

static void flush(struct sink *s)
{
	uint32_t whole = s->fill & ~(LINE - 1);

	s->crc = crc32c(s->crc, s->buffer, whole);
	if (s->stream)
		s->kernels->store(s->dst, s->buffer, whole);
	else
		memcpy(s->dst, s->buffer, whole);
	s->dst += whole;
	s->fill -= whole;
	memcpy(s->buffer, s->buffer + whole, s->fill);
}

void sink_open(struct sink *s, const struct pack_kernels *kernels, bool stream, void *dst)
{
	assert((uintptr_t)dst % LINE == 0);
	s->kernels = kernels;
	s->stream = stream;
	s->dst = dst;
	s->fill = 0;
	s->crc = 0;
}

void *sink_room(struct sink *s, size_t size, uint32_t n, uint32_t *ret_n)
{
	uint32_t fit = (uint32_t)((SINK_BYTES - s->fill) / size);

	if (fit == 0) {
		flush(s);
		fit = (uint32_t)((SINK_BYTES - s->fill) / size);
	}
	*ret_n = n < fit ? n : fit;
	return s->buffer + s->fill;
}

/* Nothing of a line is in the buffer, nor will be. */
static bool direct(struct sink *s, size_t row)
{
	return s->kernels->lines && row % LINE == 0 && s->fill % LINE == 0;
}

static void put_lines(struct sink *s, const uint8_t *base, size_t row, const uint32_t *keys,
	uint32_t n, const uint8_t *ahead)
{
	if (s->fill)
		flush(s);
	s->crc = s->kernels->lines(s->crc, s->dst, base, row, keys, n, ahead, s->stream);
	s->dst += n * row;
}

void sink_bytes(struct sink *s, const void *src, size_t n)
{
	const uint8_t *p = src;

	if (n >= LINE && direct(s, LINE)) {
		put_lines(s, p, n & ~(size_t)(LINE - 1), NULL, 1, NULL);
		p += n & ~(size_t)(LINE - 1);
		n %= LINE;
	}
	while (n) {
		uint32_t k;
		void *room = sink_room(s, 1, n < SINK_BYTES ? (uint32_t)n : SINK_BYTES, &k);

		memcpy(room, p, k);
		sink_put(s, k);
		p += k;
		n -= k;
	}
}

void sink_rows(struct sink *s, const uint8_t *base, size_t row, const uint32_t *keys, uint32_t n,
	const uint8_t *ahead)
{
	if (!keys) {
		sink_bytes(s, base, n * row);
		return;
	}
	if (n && direct(s, row)) { /* of a plane without pairs the sink is not even open */
		put_lines(s, base, row, keys, n, ahead);
		return;
	}
	if (row > SINK_BYTES / 4) {
		for (uint32_t i = 0; i < n; i++)
			sink_bytes(s, base + order_token(keys[i]) * row, row);
		return;
	}
	for (uint32_t k; n; n -= k, keys += k) {
		uint8_t *room = sink_room(s, row, n, &k);

		s->kernels->rows(room, base, row, keys, k, ahead);
		sink_put(s, k * row);
		if (ahead)
			ahead += k * row;
	}
}

void sink_align(struct sink *s)
{
	uint32_t n = -s->fill % LINE;

	memset(s->buffer + s->fill, 0, n); /* the buffer is whole lines: there is room */
	s->fill += n;
}

uint32_t sink_close(struct sink *s)
{
	assert(s->fill % LINE == 0);
	flush(s);
	return s->crc;
}
