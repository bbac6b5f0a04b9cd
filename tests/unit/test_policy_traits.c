/* SPDX-License-Identifier: Apache-2.0 */
/* What the policy sees in the prefix tree beside single blocks: what comes under a fork, and how long what came at once is. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/policy.h"
#include "daemon/cache/policy_learn.h"

enum {
	N = 4000
};

static struct policy *policy;
static struct policy_node node[N];
static unsigned n_nodes;

static int set_up(void **unused)
{
	(void)unused;
	n_nodes = 0;
	memset(node, 0, sizeof(node));
	return policy_new(&policy);
}

static int tear_down(void **unused)
{
	(void)unused;
	policy = policy_free(policy);
	return 0;
}

static struct policy_node *insert(struct policy_node *parent)
{
	struct policy_node *n = &node[n_nodes++];

	assert_true(n_nodes <= N);
	*n = (struct policy_node){
		.parent = parent,
		.key_hash = n_nodes * 0x9e3779b97f4a7c15ull,
		.n_planes = 1,
		.droppable_from = 1,
		.bytes = {1},
		.mass = {1},
	};
	assert_int_equal(policy_insert(policy, n), 0);
	return n;
}

/* Two applications by turns: children of the one are used again, one in `rarely` of the other's is. */
static void live(struct policy_node *root[2], unsigned times, unsigned rarely)
{
	for (unsigned i = 0; i < times; i++)
		for (unsigned r = 0; r < 2; r++) {
			struct policy_node *child;

			policy_touch(policy, root[r]);
			child = insert(root[r]);
			if (r == 0 || i % rarely == 0)
				policy_touch(policy, child);
		}
}

static void test_kin_differ(void **unused)
{
	struct policy_node *root[2] = {insert(NULL), insert(NULL)}, *last[2], *deep;

	(void)unused;
	live(root, 1000, 20);
	last[0] = insert(root[0]);
	last[1] = insert(root[1]);
	assert_int_equal(
		last[0]->own.kin, KIN_USUAL); /* half of all is its own: not twice as often */
	assert_int_equal(last[1]->own.kin, KIN_SELDOM);
	deep = insert(insert(last[1]));
	assert_int_equal(deep->own.kin, KIN_SELDOM); /* at any depth */
	assert_int_equal(insert(NULL)->own.kin, KIN_USUAL);
	assert_true(policy_value(policy, last[0], 0) > 2 * policy_value(policy, last[1], 0));
}

static void test_kin_used_often(void **unused)
{
	struct policy_node *root[2] = {insert(NULL), insert(NULL)};

	(void)unused;
	live(root, 200, 20);
	for (unsigned i = 0; i < 300; i++) /* by now the other one is most of what there is */
		insert(root[1]);
	assert_int_equal(insert(root[0])->own.kin, KIN_OFTEN);
}

static void test_kin_alike(void **unused)
{
	struct policy_node *root[2] = {insert(NULL), insert(NULL)}, *small = insert(NULL);

	(void)unused;
	live(root, 500, 1);
	for (unsigned i = 0; i < 10; i++) /* too few to tell, though never used */
		assert_int_equal(insert(small)->own.kin, KIN_USUAL);
	for (unsigned i = 1; i < n_nodes; i++)
		assert_int_equal(node[i].own.kin, KIN_USUAL);
}

/* Every block of what came at once learns its length, but for the first, and only when it ended. */
static void test_length(void **unused)
{
	struct policy_node *chain[20], *more;

	(void)unused;
	for (unsigned i = 0; i < 20; i++)
		chain[i] = insert(i ? chain[i - 1] : NULL);
	for (unsigned i = 0; i < 20; i++)
		assert_true(chain[i]->own.run == i && !chain[i]->own.length);
	for (unsigned i = 0; i < 100; i++)
		insert(NULL);
	for (unsigned i = 1; i < 20; i++)
		assert_true(chain[i]->own.run == i && chain[i]->own.length == 19);
	assert_int_equal(chain[0]->own.length, 0);
	for (unsigned i = 0; i < 20; i++)
		policy_touch(policy, chain[i]);
	more = insert(insert(insert(chain[19]))); /* a turn of its own */
	for (unsigned i = 0; i < 100; i++)
		insert(NULL);
	assert_true(more->own.length == 2 && more->parent->own.length == 2);
	assert_int_equal(chain[19]->own.length, 19);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
	const struct CMUnitTest tests[] = {
		TEST(test_kin_differ),
		TEST(test_kin_used_often),
		TEST(test_kin_alike),
		TEST(test_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
