/* SPDX-License-Identifier: Apache-2.0 */
/* What the policy promises whatever it learned: order within blocks and chains, floors, the least value, nobody lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/policy.h"

#define PLANES 5
#define SAMPLE 64 /* up to here the choice is exact */

static struct policy *policy;
static uint64_t state;

static uint64_t random_below(uint64_t n)
{
	state = state * 6364136223846793005ull + 1442695040888963407ull;
	return (state >> 33) % n;
}

static int set_up(void **unused)
{
	(void)unused;
	state = 1;
	return policy_new(&policy);
}

static int tear_down(void **unused)
{
	(void)unused;
	policy = policy_free(policy);
	return 0;
}

static void insert(struct policy_node *n, struct policy_node *parent, uint64_t key, uint32_t from)
{
	*n = (struct policy_node){
		.parent = parent,
		.key_hash = key * 0x9e3779b97f4a7c15ull,
		.n_planes = PLANES,
		.droppable_from = from,
		.bytes = {100, 100, 200, 300, 300},
		.mass = {.6f, .2f, .1f, .06f, .04f},
	};
	assert_int_equal(policy_insert(policy, n), 0);
}

static void take(struct policy_node *v, uint32_t keep)
{
	if (keep)
		policy_shrink(policy, v, keep);
	else
		policy_remove(policy, v, true);
}

static void evict(void)
{
	uint32_t keep;
	struct policy_node *v = policy_victim(policy, false, &keep);

	take(v, keep);
}

static void check_offer(const struct policy_node *v, uint32_t keep)
{
	assert_true(v->held && v->held <= v->n_planes);
	if (v->held > v->droppable_from) {
		assert_int_equal(keep, v->held - 1);
	} else {
		assert_int_equal(keep, 0);
		assert_int_equal(v->children, 0);
	}
}

/* A forest grown at random goes plane by plane, and only when no plane may go, leaf by leaf, until nothing is left. */
static void test_planes_then_leaves(void **unused)
{
	enum {
		N = 3000
	};
	static struct policy_node node[N];
	unsigned planes = 0, blocks = 0;
	struct policy_node *v;
	uint32_t keep;

	(void)unused;
	for (unsigned i = 0; i < N; i++) {
		insert(&node[i], i < 5 ? NULL : &node[random_below(i)], i,
			1 + (uint32_t)random_below(PLANES));
		planes += PLANES - node[i].droppable_from;
	}
	while ((v = policy_victim(policy, false, &keep))) {
		check_offer(v, keep);
		assert_int_equal(keep > 0, planes > 0);
		planes -= keep > 0;
		blocks += keep == 0;
		take(v, keep);
	}
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(node[i].held, 0);
	assert_int_equal(planes, 0);
	assert_int_equal(blocks, N);
	assert_null(policy_victim(policy, false, &keep));
}

/* Who needs a place in the index gains nothing by a plane. */
static void test_a_whole_block(void **unused)
{
	enum {
		N = 300
	};
	static struct policy_node node[N];
	struct policy_node *v;
	unsigned blocks = 0;
	uint32_t keep;

	(void)unused;
	for (unsigned i = 0; i < N; i++)
		insert(&node[i], i < 5 ? NULL : &node[random_below(i)], i, 1);
	while ((v = policy_victim(policy, true, &keep))) {
		assert_true(keep == 0 && !v->children && v->held == PLANES);
		take(v, keep);
		blocks++;
	}
	assert_int_equal(blocks, N);
}

static void test_lossless_never_shrinks(void **unused)
{
	struct policy_node node[20];
	struct policy_node *v;
	uint32_t keep;

	(void)unused;
	for (unsigned i = 0; i < 20; i++)
		insert(&node[i], i ? &node[i - 1] : NULL, i, PLANES);
	for (unsigned i = 20; i-- > 0;) { /* one chain: from its end, whatever anything is worth */
		v = policy_victim(policy, false, &keep);
		assert_ptr_equal(v, &node[i]);
		assert_int_equal(keep, 0);
		take(v, keep);
	}
}

static void test_floor_may_move(void **unused)
{
	struct policy_node node[2];
	uint32_t keep;

	(void)unused;
	insert(&node[0], NULL, 0, 2);
	insert(&node[1], &node[0], 1, PLANES);
	for (unsigned i = 0; i < 3; i++) {
		struct policy_node *v = policy_victim(policy, false, &keep);

		if (v != &node[0])
			break;
		policy_shrink(policy, v, keep);
	}
	policy_set_droppable(policy, &node[0], PLANES);
	policy_set_droppable(policy, &node[1], 4);
	assert_ptr_equal(policy_victim(policy, false, &keep), &node[1]);
	assert_int_equal(keep, 4);
	policy_set_droppable(policy, &node[1], 5);
	assert_ptr_equal(policy_victim(policy, false, &keep), &node[1]);
	assert_int_equal(keep, 0);
}

/* Who knows nothing orders by recency. */
static void test_without_experience_it_is_lru(void **unused)
{
	static struct policy_node node[SAMPLE];
	static const unsigned used[] = {9, 3, 40, 0};
	uint32_t keep;
	unsigned at = 0;

	(void)unused;
	for (unsigned i = 0; i < SAMPLE; i++)
		insert(&node[i], NULL, i, PLANES);
	for (unsigned i = 0; i < 4; i++)
		policy_touch(policy, &node[used[i]]);
	for (unsigned i = 0; i < SAMPLE; i++) {
		if (i == 9 || i == 3 || i == 40 || i == 0)
			continue;
		assert_ptr_equal(policy_victim(policy, false, &keep), &node[i]);
		take(&node[i], keep);
	}
	for (; at < 4; at++) {
		assert_ptr_equal(policy_victim(policy, false, &keep), &node[used[at]]);
		take(&node[used[at]], keep);
	}
}

/* ---- the least value, by looking at all ------------------------------------------------------- */

static double offer_value(const struct policy_node *n)
{
	double worth = policy_value(policy, n, 0) * (double)n->bytes[0] / (double)n->mass[0];
	double mass = 0, bytes = 0;

	if (n->held > n->droppable_from)
		return policy_value(policy, n, n->held - 1);
	for (uint32_t p = 0; p < n->held; p++) {
		mass += (double)n->mass[p];
		bytes += (double)n->bytes[p];
	}
	return worth * mass / bytes;
}

static bool may_go(const struct policy_node *n, bool plane)
{
	if (plane)
		return n->held > n->droppable_from && n->own.list != 2; /* deferred */
	return n->held && !n->own.list && !n->children;
}

/* How many have less value than what is offered. */
static unsigned rank(const struct policy_node *node, unsigned n, unsigned *ret_candidates)
{
	uint32_t keep;
	struct policy_node *v = policy_victim(policy, false, &keep);
	double value = offer_value(v);
	unsigned lower = 0;

	check_offer(v, keep);
	for (unsigned i = 0; i < n && !keep; i++)
		assert_false(may_go(&node[i], true));
	*ret_candidates = 0;
	for (unsigned i = 0; i < n; i++) {
		if (!may_go(&node[i], keep > 0))
			continue;
		++*ret_candidates;
		lower += offer_value(&node[i]) < value * (1 - 1e-9);
	}
	assert_ptr_equal(policy_victim(policy, false, &keep) ? v : NULL, v);
	return lower;
}

/* Steps as a cache makes them: some blocks popular, chains that grow, pressure. */
static void step(struct policy_node *node, unsigned n)
{
	unsigned i = (unsigned)(random_below(n) * random_below(n) / n);
	struct policy_node *parent = i % 8 ? &node[i - 1] : NULL;

	if (node[i].held)
		policy_touch(policy, &node[i]);
	else if (!parent || parent->held)
		insert(&node[i], parent, i, 1 + i % PLANES);
}

static void press(struct policy_node *node, unsigned n, unsigned held)
{
	unsigned there = 0;

	for (unsigned i = 0; i < n; i++)
		there += node[i].held > 0;
	while (there > held) {
		uint32_t keep;
		struct policy_node *v = policy_victim(policy, false, &keep);

		check_offer(v, keep);
		there -= keep == 0;
		take(v, keep);
	}
}

static void test_the_least_goes(void **unused)
{
	enum {
		N = 400
	};
	static struct policy_node node[N];
	unsigned candidates, few = 0;

	(void)unused;
	memset(node, 0, sizeof(node));
	for (unsigned i = 0; i < 40000; i++) {
		step(node, N);
		if (i % 3)
			continue;
		press(node, N, 60);
		if (i > 5000) {
			unsigned lower = rank(node, N, &candidates);

			assert_true(candidates);
			if (candidates > SAMPLE)
				continue;
			few++;
			assert_int_equal(lower, 0);
		}
	}
	assert_true(few > 5000);
}

static void test_among_many_nearly_the_least_goes(void **unused)
{
	enum {
		N = 20000
	};
	static struct policy_node node[N];
	unsigned candidates, lower;

	(void)unused;
	memset(node, 0, sizeof(node));
	for (unsigned i = 0; i < 200000; i++)
		step(node, N);
	for (unsigned i = 0; i < 300; i++) {
		lower = rank(node, N, &candidates);
		assert_true(candidates > 1000 && lower < candidates / 10);
		evict();
	}
}

/* ---- those who wait --------------------------------------------------------------------------- */

static void test_deferred_sit_out(void **unused)
{
	struct policy_node node[30];
	bool seen[30] = {0};
	struct policy_node *v;
	uint32_t keep;
	unsigned n = 0;

	(void)unused;
	for (unsigned i = 0; i < 30; i++)
		insert(&node[i], NULL, i, PLANES);
	while ((v = policy_victim(policy, false, &keep))) {
		assert_false(seen[v - node]);
		seen[v - node] = true;
		n++;
		policy_defer(policy, v);
	}
	assert_int_equal(n, 30); /* each once, then NULL, then again */
	assert_non_null(policy_victim(policy, false, &keep));
}

static void test_restored_is_as_before(void **unused)
{
	struct policy_node node[3];
	uint32_t keep;

	(void)unused;
	for (unsigned i = 0; i < 3; i++)
		insert(&node[i], i ? &node[i - 1] : NULL, i, 2);
	policy_shrink(policy, &node[2], 2);
	policy_remove(policy, &node[2], true);
	policy_remove(policy, &node[1], false);
	assert_int_equal(node[0].children, 0);
	policy_restore(policy, &node[1], PLANES);
	policy_restore(policy, &node[2], PLANES);
	assert_true(node[0].children == 1 && node[1].children == 1 && !node[2].children);
	assert_true(node[1].held == PLANES && node[2].held == PLANES);
	for (unsigned i = 0; i < 3 * (PLANES - 2) + 3;) {
		struct policy_node *v = policy_victim(policy, false, &keep);

		if (!v)
			continue;
		check_offer(v, keep);
		take(v, keep);
		i++;
	}
	assert_false(node[0].held);
}

/* ---- forks ------------------------------------------------------------------------------------ */

static void test_a_fork_supersedes_what_it_leaves(void **unused)
{
	struct policy_node node[6], many[64];

	(void)unused;
	insert(&node[0], NULL, 0, PLANES);
	for (unsigned i = 1; i < 4; i++)
		insert(&node[i], &node[i - 1], i, PLANES);
	policy_touch(policy, &node[0]);
	policy_touch(policy, &node[1]);
	insert(&node[4], &node[1], 4, PLANES); /* instead of 2 and 3 */
	assert_true(node[2].own.superseded && node[3].own.superseded);
	assert_false(node[0].own.superseded || node[1].own.superseded || node[4].own.superseded);
	insert(&node[5], &node[4], 5, PLANES);
	for (unsigned i = 0; i < 3; i++)
		policy_touch(policy, &node[i]); /* and back, but not as far as 3 */
	assert_true(node[4].own.superseded && node[5].own.superseded && node[3].own.superseded);
	assert_false(node[2].own.superseded);

	insert(&many[0], NULL, 100, PLANES);
	for (unsigned i = 1; i < 64; i++)
		insert(&many[i], &many[0], 100 + i, PLANES);
	assert_true(many[1].own.superseded);
	assert_false(many[60].own.superseded); /* under a system prompt siblings say nothing */
}

/* ---- learning --------------------------------------------------------------------------------- */

/* Hits in percent of the second half of `uses` uses of blocks that `next` names, at a capacity. */
static unsigned hit_rate(unsigned n, unsigned capacity, unsigned uses, unsigned (*next)(unsigned i))
{
	struct policy_node *node = calloc(n, sizeof(*node));
	unsigned held = 0, hits = 0;

	for (unsigned i = 0; i < uses; i++) {
		unsigned b = next(i);

		if (node[b].held) {
			policy_touch(policy, &node[b]);
			hits += i >= uses / 2;
			continue;
		}
		insert(&node[b], NULL, b, PLANES);
		if (++held > capacity) {
			evict();
			held--;
		}
	}
	policy = policy_free(policy);
	free(node);
	assert_int_equal(policy_new(&policy), 0);
	return hits * 100 / (uses - uses / 2);
}

static unsigned in_a_circle(unsigned i)
{
	return i % 1000;
}

static unsigned some_often(unsigned i)
{
	return i % 2 ? i / 2 * 7919 % 100 : 100 + i / 2;
}

/* LRU has 0 and 0: the circle is larger than the cache, and between two uses of the popular 200 others pass. */
static void test_it_learns(void **unused)
{
	(void)unused;
	assert_true(hit_rate(1000, 500, 40000, in_a_circle) > 30);
	assert_true(hit_rate(30000, 150, 40000, some_often) > 40);
}

/* Where newcomers are worth least, a chain is still not broken under its writer's hands. */
static void test_the_end_of_a_growing_chain_is_left_alone(void **unused)
{
	enum {
		CIRCLE = 300
	};
	static struct policy_node circle[CIRCLE], chain[20];
	unsigned held = 0;

	(void)unused;
	memset(circle, 0, sizeof(circle));
	for (unsigned i = 0; i < 30000; i++) {
		struct policy_node *n = &circle[i % CIRCLE];

		if (n->held) {
			policy_touch(policy, n);
			continue;
		}
		insert(n, NULL, i % CIRCLE, PLANES);
		if (++held > 100) {
			evict();
			held--;
		}
	}
	for (unsigned i = 0; i < 20; i++) {
		insert(&chain[i], i ? &chain[i - 1] : NULL, CIRCLE + i, PLANES);
		evict();
	}
	for (unsigned i = 0; i < 20; i++)
		assert_true(chain[i].held);
	for (held = 100; held; held--)
		evict();
	assert_false(chain[0].held); /* when nothing else is left, it goes as well */
}

/* ---- anything goes ---------------------------------------------------------------------------- */

static void test_degenerate(void **unused)
{
	struct policy_node node[4] = {0};
	uint32_t keep;

	(void)unused;
	assert_null(policy_victim(policy, false, &keep));
	policy_free(NULL);
	for (unsigned i = 0; i < 4; i++) { /* no bytes, no mass, the same key */
		node[i] = (struct policy_node){.n_planes = 1, .droppable_from = 1, .key_hash = 5};
		assert_int_equal(policy_insert(policy, &node[i]), 0);
		policy_touch(policy, &node[i]);
	}
	for (unsigned i = 0; i < 4; i++)
		policy_remove(policy, &node[i], i % 2);
	assert_null(policy_victim(policy, false, &keep));
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(policy_insert(policy, &node[i]), 0);
	for (unsigned i = 0; i < 4; i++)
		evict();
	assert_null(policy_victim(policy, false, &keep));
}

static void test_any_order_of_operations(void **unused)
{
	enum {
		N = 500
	};
	static struct policy_node node[N];
	uint32_t keep;

	(void)unused;
	memset(node, 0, sizeof(node));
	for (unsigned i = 0; i < 200000; i++) {
		struct policy_node *n = &node[random_below(N)];
		struct policy_node *v;

		switch (random_below(8)) {
		case 0:
			if (n->held && !n->children)
				policy_remove(policy, n, random_below(2));
			break;
		case 1:
			v = policy_victim(policy, false, &keep);
			if (v && random_below(2))
				policy_defer(policy, v);
			break;
		case 2:
			v = policy_victim(policy, false, &keep);
			if (!v)
				break;
			check_offer(v, keep);
			uint32_t held = v->held;

			take(v, keep);
			if (!random_below(3))
				policy_restore(policy, v, held);
			break;
		case 3:
			if (n->held)
				policy_set_droppable(policy, n, 1 + (uint32_t)random_below(PLANES));
			break;
		default:
			step(node, N);
		}
	}
	for (unsigned n = 0; n < 2;) { /* NULL once may only mean that the rest was deferred */
		struct policy_node *v = policy_victim(policy, false, &keep);

		n = v ? 0 : n + 1;
		if (v)
			take(v, keep);
	}
	for (unsigned i = 0; i < N; i++)
		assert_false(node[i].held);
}

/* With a tier below, floors do not count: whatever is worth least sinks first, the last plane of one or all of another. */
static void test_the_least_sinks(void **unused)
{
	enum {
		N = SAMPLE / 2
	};
	static struct policy_node node[N];
	unsigned blocks = 0, mixed = 0;
	struct policy_node *v;
	uint32_t keep;

	(void)unused;
	policy_set_lower(policy);
	for (unsigned i = 0; i < N; i++)
		insert(&node[i], NULL, i, PLANES);
	for (unsigned i = 0; i < 20 * N; i++)
		policy_touch(policy, &node[random_below(N) * random_below(N) / N]);
	while (blocks < N) {
		v = policy_least(policy, &keep);
		if (!v)
			continue; /* the young go when nothing else is left */
		for (unsigned i = 0; i < N; i++)
			if (node[i].held > 1 && keep)
				assert_true(policy_value(policy, &node[i], node[i].held - 1) >=
					policy_value(policy, v, keep));
		assert_true(!keep || keep == v->held - 1);
		mixed += keep && blocks;
		blocks += !keep;
		take(v, keep);
	}
	assert_true(mixed > 0); /* not first all planes, then all blocks */
	assert_null(policy_least(policy, &keep));
}

/* What is on its way is offered to nobody, and what came back may go again. */
static void test_on_the_way(void **unused)
{
	static struct policy_node node[4];
	uint32_t keep;

	(void)unused;
	policy_set_lower(policy);
	for (unsigned i = 0; i < 4; i++)
		insert(&node[i], NULL, i, 1);
	policy_hold(policy, &node[0]);
	for (unsigned i = 0; i < 3 * PLANES; i++) {
		struct policy_node *v = policy_least(policy, &keep);

		policy_touch(policy, &node[0]); /* no use wakes it */
		if (!v)
			continue;
		assert_ptr_not_equal(v, &node[0]);
		take(v, keep);
	}
	policy_shrink(policy, &node[0], 2);
	policy_let_go(policy, &node[0]);
	assert_ptr_equal(policy_least(policy, &keep), &node[0]);
	assert_int_equal(keep, 1);
	policy_grow(policy, &node[0], PLANES);
	assert_int_equal(node[0].held, PLANES);
	assert_ptr_equal(policy_victim(policy, false, &keep), &node[0]);
	assert_int_equal(keep, PLANES - 1);
}

static void test_a_million(void **unused)
{
	const unsigned n = 1000000;
	struct policy_node *node = calloc(n, sizeof(*node));
	unsigned gone = 0;
	uint32_t keep;

	(void)unused;
	assert_non_null(node);
	for (unsigned i = 0; i < n; i++)
		insert(&node[i], i % 50 ? &node[i - 1] : NULL, i, PLANES);
	for (unsigned i = 0; i < n; i += 3)
		policy_touch(policy, &node[i]);
	for (; gone < n / 2; gone++) {
		struct policy_node *v = policy_victim(policy, false, &keep);

		check_offer(v, keep);
		take(v, keep);
	}
	for (unsigned i = 0; i < n; i++) {
		gone -= !node[i].held;
		assert_true(!node[i].held || !node[i].parent || node[i].parent->held);
	}
	assert_int_equal(gone, 0);
	policy = policy_free(policy);
	free(node);
	assert_int_equal(policy_new(&policy), 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_planes_then_leaves),
		TEST(test_a_whole_block),
		TEST(test_lossless_never_shrinks),
		TEST(test_floor_may_move),
		TEST(test_without_experience_it_is_lru),
		TEST(test_the_least_goes),
		TEST(test_among_many_nearly_the_least_goes),
		TEST(test_deferred_sit_out),
		TEST(test_the_end_of_a_growing_chain_is_left_alone),
		TEST(test_restored_is_as_before),
		TEST(test_a_fork_supersedes_what_it_leaves),
		TEST(test_it_learns),
		TEST(test_degenerate),
		TEST(test_the_least_sinks),
		TEST(test_on_the_way),
		TEST(test_any_order_of_operations),
		TEST(test_a_million),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
