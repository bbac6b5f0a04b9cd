/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bitmap: runs of bits in an array of 64-bit words.
 * Thread: as the memory it works on. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_DAEMON_MEM_BITMAP_H
#define KVGATE_DAEMON_MEM_BITMAP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline size_t bitmap_words(uint32_t bits)
{
	return ((size_t)bits + 63) / 64;
}

static inline bool bitmap_test(const uint64_t *map, uint32_t bit)
{
	return map[bit / 64] >> (bit % 64) & 1;
}

/* The bits of word `w` that lie in [from, end). */
static inline uint64_t bitmap_mask(size_t w, uint32_t from, uint32_t end)
{
	uint64_t mask = ~0ull;

	if (from > w * 64)
		mask &= ~0ull << (from % 64);
	if (end < w * 64 + 64)
		mask &= ~0ull >> (64 - end % 64);
	return mask;
}

static inline void bitmap_set(uint64_t *map, uint32_t from, uint32_t n)
{
	for (size_t w = from / 64; w * 64 < (uint64_t)from + n; w++)
		map[w] |= bitmap_mask(w, from, from + n);
}

static inline void bitmap_clear(uint64_t *map, uint32_t from, uint32_t n)
{
	for (size_t w = from / 64; w * 64 < (uint64_t)from + n; w++)
		map[w] &= ~bitmap_mask(w, from, from + n);
}

static inline uint32_t bitmap_count(const uint64_t *map, uint32_t from, uint32_t n)
{
	uint32_t count = 0;

	for (size_t w = from / 64; w * 64 < (uint64_t)from + n; w++)
		count += (uint32_t)__builtin_popcountll(map[w] & bitmap_mask(w, from, from + n));
	return count;
}

/* First bit at or after `from` and before `end` that is set; `end` when there is none. */
static inline uint32_t bitmap_next_set(const uint64_t *map, uint32_t from, uint32_t end)
{
	for (size_t w = from / 64; w * 64 < end; w++) {
		uint64_t bits = map[w] & bitmap_mask(w, from, end);

		if (bits)
			return (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(bits);
	}
	return end;
}

static inline uint32_t bitmap_next_clear(const uint64_t *map, uint32_t from, uint32_t end)
{
	for (size_t w = from / 64; w * 64 < end; w++) {
		uint64_t bits = ~map[w] & bitmap_mask(w, from, end);

		if (bits)
			return (uint32_t)(w * 64) + (uint32_t)__builtin_ctzll(bits);
	}
	return end;
}

#endif
