/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack_kernels: the loops of packing, written three times - plainly, with AVX2 and with AVX-512.
 * Thread: any, pure. Locks: none. Blocks: never. Errors: keys() says whether the scores are good.
 */
#ifndef KVGATE_DAEMON_CACHE_PACK_KERNELS_H
#define KVGATE_DAEMON_CACHE_PACK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What each does is said in pack_order.h and pack_sink.h. */
struct pack_kernels {
	const char *name;
	bool (*runs_here)(void); /* this processor has what they need */
	bool (*keys)(const float *scores, uint32_t n, uint32_t *ret_keys);
	void (*sort)(uint32_t *keys, uint32_t n, uint32_t *scratch);
	void (*tokens)(const uint32_t *keys, uint32_t n, uint16_t *ret);
	void (*scores)(const uint32_t *keys, uint32_t n, uint16_t *ret);
	double (*mass)(const uint32_t *keys, uint32_t n);
	/* Rows that keys name, out of base[], one after the other; n rows at `ahead` are wanted soon (NULL: none). */
	void (*rows)(uint8_t *to, const uint8_t *base, size_t row, const uint32_t *keys, uint32_t n,
		const uint8_t *ahead);
	/*
	 * As rows, of whole lines (64 bytes), and to where they stay: aligned, around the caches if `stream`. keys NULL:
	 * the first n rows. Every byte is read once; returns the CRC32C of what `crc` is of and these bytes behind it.
	 * NULL: rows go through a buffer.
	 */
	uint32_t (*lines)(uint32_t crc, uint8_t *to, const uint8_t *base, size_t row,
		const uint32_t *keys, uint32_t n, const uint8_t *ahead, bool stream);
	/* Whole lines, 64-byte aligned, to memory that nobody here reads soon. */
	void (*store)(uint8_t *to, const uint8_t *from, size_t bytes);
	void (*store_end)(
		void); /* what was stored is seen by others before what is written from here on */
};

extern const struct pack_kernels pack_kernels_plain, pack_kernels_avx2, pack_kernels_vpclmul,
	pack_kernels_avx512;
/* The n-th best for this processor; NULL: so many there are not. The last are the plain ones. */
const struct pack_kernels *pack_kernels_best(unsigned n);

#endif
