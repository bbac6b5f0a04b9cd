/* SPDX-License-Identifier: Apache-2.0 */
/*
 * policy_traits: what a block's place in the tree and its past say about it, as a class to learn about.
 * Thread: the policy's. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_DAEMON_CACHE_POLICY_TRAITS_H
#define KVGATE_DAEMON_CACHE_POLICY_TRAITS_H

#include <stdint.h>

#include "daemon/cache/policy.h"

uint16_t traits_class(const struct policy_node *n);
/* A new block's kin, from its parent's children so far. `all`: the children of all forks. */
uint8_t traits_kin(const struct policy_kin *all, const struct policy_node *parent);
/* A child of parent came for the first time, or was used for the first time since. */
void traits_born(struct policy_kin *all, struct policy_node *parent);
void traits_used(struct policy_kin *all, struct policy_node *parent);

#endif
