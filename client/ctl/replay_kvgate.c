/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives the policy as the daemon does: a block that is there is touched, one that is missing is inserted below its
 * predecessor, and as soon as the budget is exceeded the policy's victims go. A request whose chain is broken under its
 * hands (it alone is larger than the budget) stops inserting, as a commit without its parent is refused.
 *
 * Planes are those of the lab model: bands of .05 .05 .10 .10 .20 .25 .25 of the pairs, and the attention mass of
 * a band taken as its share of the sum of all gate scores. The numbers come from client/demo/lab/ref.safetensors
 * (tests/ref/trace_plane_mass.py prints them).
 */
#include "client/ctl/replay.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/cache/policy.h"

#define PLANES 7
static const double share[PLANES] = {.05, .05, .10, .10, .20, .25, .25};
static const float mass[PLANES] = {.7349f, .0905f, .0739f, .0334f, .0360f, .0227f, .0087f};

struct run {
	struct policy *policy;
	struct policy_node *node; /* by block; held = 0: not there */
	uint64_t bytes[PLANES];
	uint32_t droppable_from;
	uint64_t used, budget;
	double retained; /* sum over hits */
};

static double retention(const struct policy_node *n)
{
	double sum = 0;

	for (uint32_t p = 0; p < n->held; p++)
		sum += share[p];
	return sum;
}

static void make_room(struct run *run)
{
	while (run->used > run->budget) {
		uint32_t keep;
		struct policy_node *n = policy_victim(run->policy, false, &keep);

		assert(n); /* nothing is pinned here */
		for (uint32_t p = keep; p < n->held; p++)
			run->used -= n->bytes[p];
		if (keep)
			policy_shrink(run->policy, n, keep);
		else
			policy_remove(run->policy, n, true);
	}
}

static int insert(struct run *run, uint32_t block, struct policy_node *parent)
{
	struct policy_node *n = &run->node[block];
	int r;

	*n = (struct policy_node){
		.parent = parent,
		.key_hash = (block + 1) * 0x9e3779b97f4a7c15ull,
		.n_planes = PLANES,
		.droppable_from = run->droppable_from,
	};
	for (uint32_t p = 0; p < PLANES; p++) {
		n->bytes[p] = run->bytes[p];
		n->mass[p] = mass[p];
	}
	r = policy_insert(run->policy, n);
	if (r < 0)
		return r;
	for (uint32_t p = 0; p < PLANES; p++)
		run->used += n->bytes[p];
	make_room(run);
	return 0;
}

static int request(struct run *run, const uint32_t *block, size_t n, struct replay_result *ret)
{
	struct policy_node *parent = NULL;

	for (size_t i = 0; i < n && run->node[block[i]].held; i++) {
		ret->hits++;
		run->retained += retention(&run->node[block[i]]);
	}
	for (size_t i = 0; i < n; i++) {
		struct policy_node *node = &run->node[block[i]];
		int r = 0;

		if (node->held)
			policy_touch(run->policy, node);
		else if (!parent || parent->held)
			r = insert(run, block[i], parent);
		else
			break;
		if (r < 0)
			return r;
		parent = node;
	}
	return 0;
}

static void set_up(struct run *run, const struct replay_setup *setup)
{
	double kept = 0, end = 0;
	uint64_t before = 0;

	for (uint32_t p = 0; p < PLANES; p++) {
		uint64_t at;

		end += share[p];
		at = p == PLANES - 1 ? setup->block_bytes
				     : (uint64_t)(end * (double)setup->block_bytes + .5);
		run->bytes[p] = at - before;
		before = at;
		if (kept < setup->floor - 1e-6)
			run->droppable_from = p + 1;
		kept += share[p];
	}
	run->budget = setup->capacity * setup->block_bytes;
}

int replay_kvgate(
	const struct trace *t, const struct replay_setup *setup, struct replay_result *ret)
{
	struct run run = {0};
	int r = policy_new(&run.policy);

	if (r < 0)
		return r;
	set_up(&run, setup);
	run.node = calloc(t->n_blocks, sizeof(*run.node));
	if (!run.node)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < t->n_requests; i++)
		r = request(&run, t->block + t->start[i], t->start[i + 1] - t->start[i], ret);
	for (uint32_t i = 0; r == 0 && i < t->n_blocks; i++)
		ret->held += run.node[i].held > 0;
	ret->retention = ret->hits ? run.retained / (double)ret->hits : 1;
	policy_free(run.policy);
	free(run.node);
	return r;
}
