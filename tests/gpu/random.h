/* SPDX-License-Identifier: Apache-2.0 */
/*
 * random: xorshift64*; the same seed gives the same numbers everywhere. KVGATE_SEED in the environment changes all.
 * Thread: any, its own state. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_TESTS_GPU_RANDOM_H
#define KVGATE_TESTS_GPU_RANDOM_H

#include <stdint.h>
#include <stdlib.h>

static inline uint64_t rig_random(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dull;
}

static inline uint64_t rig_seed(uint64_t salt)
{
	const char *given = getenv("KVGATE_SEED");
	uint64_t s = (given ? strtoull(given, NULL, 0) : 1) * 0x9e3779b97f4a7c15ull + salt;

	for (int i = 0; i < 4; i++)
		s = (s ^ s >> 31) * 0x94d049bb133111ebull + 1;
	return s ? s : 1;
}

static inline uint64_t rig_below(uint64_t *state, uint64_t n)
{
	return (rig_random(state) >> 16) % n;
}

/* -1 .. 1 */
static inline float rig_uniform(uint64_t *state)
{
	return (float)(int32_t)(rig_random(state) >> 32) * 0x1p-31f;
}

#endif
