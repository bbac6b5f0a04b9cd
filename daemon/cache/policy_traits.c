// SPDX-License-Identifier: Apache-2.0
/*
 * Kin. Prompts that start alike come from the same application, and applications differ: what follows one system
 * prompt is continued, what follows another never comes again. So every block counts its children and how many of them
 * were used again. From some number on it is a fork, and what comes under it, at any depth down to the next fork, is
 * compared with the children of all forks: half as likely to be used as they, twice as likely, or usual. The
 * comparison is a relative one so that where all are alike, or there is one application only, all are usual:
 * a trait that says nothing would only thin out what is known of the other ones.
 */
#include "daemon/cache/policy_traits.h"

#include "daemon/cache/policy_learn.h"

#define KIN_FORK   16  /* children from which on their share says something */
#define KIN_MEMORY 256 /* children after which older ones count half */
#define KIN_TIMES  2   /* as much, or as little, as usual */

uint16_t traits_class(const struct policy_node *n)
{
	const uint32_t trait[N_TRAITS] = {
		[TRAIT_HITS] = n->own.hits,
		[TRAIT_TURN] = n->own.turn,
		[TRAIT_RUN] = n->own.length ? n->own.length : n->own.run,
		[TRAIT_SUPERSEDED] = n->own.superseded,
		[TRAIT_LAST] = n->own.last,
		[TRAIT_KIN] = n->own.kin,
	};

	return learn_class(trait);
}

static double share(const struct policy_kin *k)
{
	return (k->used + .5) / (k->born + 1.);
}

uint8_t traits_kin(const struct policy_kin *all, const struct policy_node *parent)
{
	if (!parent)
		return KIN_USUAL;
	if (parent->own.children.born < KIN_FORK)
		return parent->own.kin;
	if (share(&parent->own.children) * KIN_TIMES < share(all))
		return KIN_SELDOM;
	return share(&parent->own.children) > share(all) * KIN_TIMES ? KIN_OFTEN : KIN_USUAL;
}

static void born(struct policy_kin *k)
{
	if (++k->born >= KIN_MEMORY) {
		k->born /= 2;
		k->used /= 2;
	}
}

void traits_born(struct policy_kin *all, struct policy_node *parent)
{
	if (!parent)
		return;
	born(&parent->own.children);
	if (parent->own.children.born >= KIN_FORK)
		born(all);
}

void traits_used(struct policy_kin *all, struct policy_node *parent)
{
	if (!parent)
		return;
	parent->own.children.used++;
	if (parent->own.children.born >= KIN_FORK)
		all->used++;
}
