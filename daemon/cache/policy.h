/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy: what goes first under pressure - one value for every (block, plane).
 * Thread: one owner, the control thread. Locks: none. Blocks: never. Errors: -ENOMEM.
 *
 * value = chance of reuse (recency, frequency, place in the prefix tree) x attention mass of the plane
 * / its bytes. A block is worth nothing without its ancestors, so whole blocks go leaf before root, and
 * planes of a block go last to first. What a floor gives up goes before anything that it keeps: planes of every
 * block before any whole block. Knows nothing of memory: the trace replay drives the same code.
 */
#ifndef KVGATE_DAEMON_CACHE_POLICY_H
#define KVGATE_DAEMON_CACHE_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/shm.h"

struct policy;

struct policy_kin {
	uint32_t born, used;
};

/* Embedded in what it orders; the fields above the line are the caller's to set before policy_insert. */
struct policy_node {
	struct policy_node *parent; /* NULL at a root; must be in the policy */
	uint64_t
		key_hash; /* first 8 bytes of the block's key, for the memory of what was evicted */
	uint32_t n_planes;
	uint32_t droppable_from; /* planes >= this may go on their own (floor); n_planes = none */
	uint64_t bytes[KVG_PLANES_MAX]; /* as charged, i.e. in whole pages */
	float mass[KVG_PLANES_MAX];     /* share of the block's attention mass, sums to 1 */
	/* ---- the policy's own ---- */
	uint32_t held;     /* planes 0..held-1 are there */
	uint32_t children; /* nodes whose parent this is */
	struct policy_own {
		struct policy_node *first_child, *next, *prev; /* the tree; siblings */
		struct policy_node *recent;                    /* the child used last */
		struct policy_node *before, *behind;           /* in the list it waits in */
		uint64_t last_use, wakes;
		/* 1 + position among those that may lose a plane, go, or sink; 0 = not there */
		uint64_t at[3];
		uint32_t hits, turn, run, length, width;
		struct policy_kin children; /* how many there ever were, and were used again */
		uint16_t class;
		uint8_t superseded, list, kin;
		bool last;
	} own;
};

int policy_new(struct policy **ret);
struct policy *policy_free(struct policy *p); /* nodes need not be removed first */
/* There is a tier below: policy_least() will be asked. Before anything is inserted. */
void policy_set_lower(struct policy *p);

int policy_insert(struct policy *p, struct policy_node *n);
/* The block was read: one reader's hit. Called for every block of a prefix, root first. */
void policy_touch(struct policy *p, struct policy_node *n);
/* The block left for a reason other than the policy (purge, corruption), or was taken as a victim. Children must be gone. */
void policy_remove(struct policy *p, struct policy_node *n, bool remember);
/* Planes from `held` on are gone. */
void policy_shrink(struct policy *p, struct policy_node *n, uint32_t held);
/*
 * The opposite, for a victim that turned out to be pinned: planes 0..held-1 are there after all. Undoes policy_shrink(),
 * or policy_remove() (parent as before), as if just used; no insert came in between, so it cannot fail.
 */
void policy_restore(struct policy *p, struct policy_node *n, uint32_t held);
/* The floor changed. */
void policy_set_droppable(struct policy *p, struct policy_node *n, uint32_t droppable_from);

/*
 * The least valuable thing that may go: *ret_keep = planes that stay (0 = the whole block; then it has no
 * children). whole: a block, even where a plane might go. Returns NULL when nothing may go. Does not change the order; the
 * caller shrinks, removes or defers.
 */
struct policy_node *policy_victim(struct policy *p, bool whole, uint32_t *ret_keep);
/*
 * The least valuable thing altogether, a block's last plane or a block, whatever floors say: for a tier below, where nothing is
 * given up. *ret_keep as above.
 */
struct policy_node *policy_least(struct policy *p, uint32_t *ret_keep);
/* The victim was pinned: treat it as just used, without counting a hit. */
void policy_defer(struct policy *p, struct policy_node *n);
/* It is on its way down, and offered to nobody until it is let go, shrunk or removed. */
void policy_hold(struct policy *p, struct policy_node *n);
void policy_let_go(struct policy *p, struct policy_node *n);
/* Planes 0..held-1 are there again: they came up. Of a node that is in the policy. */
void policy_grow(struct policy *p, struct policy_node *n, uint32_t held);

/*
 * The chance of reuse alone, as a rate; also of a node that was removed and not forgotten: for those who have to choose among what is no
 * longer here.
 */
double policy_worth(const struct policy *p, const struct policy_node *n);
/* For people: value of the plane now. */
double policy_value(const struct policy *p, const struct policy_node *n, uint32_t plane);

#endif
