/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack_kernels: the loops of packing, written twice - plainly, and with AVX-512.
 * Thread: any, pure. Locks: none. Blocks: never. Errors: keys() says whether the scores are good.
 */
#ifndef KVGATE_DAEMON_CACHE_PACK_KERNELS_H
#define KVGATE_DAEMON_CACHE_PACK_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What each does is said in pack_order.h and pack_sink.h. */
struct pack_kernels {
	bool (*keys)(const float *scores, uint32_t n, uint32_t *ret_keys);
	void (*sort)(uint32_t *keys, uint32_t n, uint32_t *scratch);
	void (*tokens)(const uint32_t *keys, uint32_t n, uint16_t *ret);
	void (*scores)(const uint32_t *keys, uint32_t n, uint16_t *ret);
	double (*mass)(const uint32_t *keys, uint32_t n);
	/* Rows that keys name, out of base[], one after the other; n rows at `ahead` are wanted soon (NULL: none). */
	void (*rows)(uint8_t *to, const uint8_t *base, size_t row, const uint32_t *keys, uint32_t n,
		const uint8_t *ahead);
	/* Whole lines, 64-byte aligned, to memory that nobody here reads soon. */
	void (*store)(uint8_t *to, const uint8_t *from, size_t bytes);
	void (*store_end)(
		void); /* what was stored is seen by others before what is written from here on */
};

extern const struct pack_kernels pack_kernels_plain;
const struct pack_kernels *pack_kernels_best(void); /* for this processor */

#endif
