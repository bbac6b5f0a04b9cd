/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy_learn: how likely blocks like this one are to be used again, learned from what happened to all of them.
 * Thread: the policy's. Locks: none. Blocks: never. Errors: -ENOMEM from learn_new(), nothing later.
 *
 * Time is counted in uses. A block enters a class when it is used, and leaves it when it is used again, when
 * something else about it changes, or when it is forgotten; whether it is still held makes no difference.
 */
#ifndef KVGATE_DAEMON_CACHE_POLICY_LEARN_H
#define KVGATE_DAEMON_CACHE_POLICY_LEARN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What tells blocks apart. Small numbers are exact, large ones fall into octaves. */
enum trait {
	TRAIT_HITS,       /* times it was used again */
	TRAIT_TURN,       /* how often its chain had been continued after a hit when it came */
	TRAIT_RUN,        /* blocks from the last such hit to this one, later to the chain's end */
	TRAIT_SUPERSEDED, /* enum superseded */
	TRAIT_LAST,       /* nothing ever came after it in its chain: 0 or 1 */
	TRAIT_KIN,        /* enum kin */
	N_TRAITS
};
enum superseded {
	SUPERSEDED_NO,
	SUPERSEDED_WIDE, /* a younger sibling of it, or of an ancestor, was used since; many siblings */
	SUPERSEDED_NARROW, /* the same with few siblings: a conversation that went another way */
	N_SUPERSEDED
};
enum kin {
	KIN_USUAL,
	KIN_SELDOM, /* what comes under the same fork is seldom used again, beside what is usual */
	KIN_OFTEN,
	N_KIN
};

struct learn;

int learn_new(struct learn **ret);
struct learn *learn_free(struct learn *l);

uint16_t learn_class(const uint32_t trait[N_TRAITS]);
/* The clock never goes back. `known`: blocks that are held or remembered. */
void learn_advance(struct learn *l, uint64_t now, size_t known, size_t held);
void learn_enter(struct learn *l, uint16_t class, uint64_t last_use);
void learn_leave(struct learn *l, uint16_t class, uint64_t last_use);
/* Leaves the class by being used again, now. */
void learn_reuse(struct learn *l, uint16_t class, uint64_t last_use, uint64_t now);
/* Uses to be expected per unit of time that it is kept on, if it is kept for as long as that pays best. */
double learn_worth(const struct learn *l, uint16_t class, uint64_t age);

#endif
