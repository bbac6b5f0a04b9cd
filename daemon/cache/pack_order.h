/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pack_order: the order of the pairs of one (layer, head) - scores to f16, best first, ties by token.
 * Thread: any, pure. Locks: none. Blocks: never. Errors: none; the kernel keys() tells of bad scores.
 *
 * A pair is one u32 key, ascending = best first: its f16 score's bits, mapped so that greater scores are smaller
 * numbers, above its token index. Kernels (pack_kernels.h):
 *
 * keys: of scores[0..n), in the order of tokens. Finite scores beyond f16's range take its largest value, so that +inf
 * alone means protected; -0 becomes 0. False: NaN or -inf among them.
 * sort: keys as keys() left them -> best first. scratch: n keys.
 * mass: sum of min(score, 1), never less than 0 each.
 */
#ifndef KVGATE_DAEMON_CACHE_PACK_ORDER_H
#define KVGATE_DAEMON_CACHE_PACK_ORDER_H

#include <stdint.h>

/* f16 bits <-> upper half of a key; its own inverse. */
static inline uint16_t order_flip(uint16_t bits)
{
	return bits & 0x8000u ? bits : (uint16_t)(bits ^ 0x7fffu);
}
static inline uint16_t order_token(uint32_t key)
{
	return (uint16_t)key;
}
static inline uint16_t order_score(uint32_t key)
{
	return order_flip((uint16_t)(key >> 16));
}

/* The last key whose score is >= edge. */
uint32_t order_bound(float edge);
/* How many leading keys of a sorted run are <= bound. */
uint32_t order_count(const uint32_t *keys, uint32_t n, uint32_t bound);
/* As the kernel mass(), of log scores: sum of min(exp(score), 1). */
double order_log_mass(const uint32_t *keys, uint32_t n);

#endif
