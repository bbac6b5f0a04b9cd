/* SPDX-License-Identifier: Apache-2.0 */
/* What is learned: recency before there is experience, then the truth about each class, and the new truth when it changes. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

#include "daemon/cache/policy_learn.h"

static void test_classes(void **state)
{
	uint32_t none[N_TRAITS] = {0}, huge[N_TRAITS], t[N_TRAITS] = {0};

	(void)state;
	for (unsigned i = 0; i < N_TRAITS; i++) {
		huge[i] = i < TRAIT_SUPERSEDED ? UINT32_MAX - 1 : 1;
		t[i] = 1;
		assert_int_not_equal(learn_class(t), learn_class(none));
		t[i] = 0;
	}
	assert_int_equal(learn_class(none), 0);
	t[TRAIT_HITS] = 3;
	huge[TRAIT_SUPERSEDED] = 0;
	assert_int_not_equal(learn_class(t), learn_class(huge));
	none[TRAIT_HITS] = 4;
	assert_int_equal(learn_class(t), learn_class(none));
}

static void test_prior_is_recency(void **state)
{
	struct learn *l;
	uint32_t t[N_TRAITS] = {0};
	uint16_t c = learn_class(t);

	(void)state;
	assert_int_equal(learn_new(&l), 0);
	learn_enter(l, c, 0);
	for (uint64_t age = 1; age < 1ull << 30; age *= 2)
		assert_true(learn_worth(l, c, age) > learn_worth(l, c, 2 * age));
	assert_true(learn_worth(l, c, UINT64_MAX) > 0);
	learn_leave(l, c, 0);
	learn_free(l);
}

enum {
	AFTER = 200,
	OFTEN = 0,
	NEVER = 1
};

/* Each unit of time a block of each kind is used; that of `good` comes back after AFTER, that of the other never does. */
static void live(
	struct learn *l, const uint16_t class[2], unsigned good, uint64_t from, uint64_t to)
{
	for (uint64_t t = from; t < to; t++) {
		learn_advance(l, t, 8 * AFTER, 2 * AFTER);
		if (t >= from + AFTER)
			learn_reuse(l, class[good], t - AFTER, t);
		if (t >= from + 4 * AFTER)
			learn_leave(l, class[!good], t - 4 * AFTER);
		learn_enter(l, class[0], t);
		learn_enter(l, class[1], t);
	}
	for (uint64_t t = to - AFTER; t < to; t++)
		learn_leave(l, class[good], t);
	for (uint64_t t = to - 4 * AFTER; t < to; t++)
		learn_leave(l, class[!good], t);
}

static void test_truth_and_its_change(void **state)
{
	struct learn *l;
	uint32_t t[N_TRAITS] = {0};
	uint16_t class[2];
	double young, ripe;

	(void)state;
	class[OFTEN] = learn_class(t);
	t[TRAIT_HITS] = 1;
	class[NEVER] = learn_class(t);
	assert_int_equal(learn_new(&l), 0);
	live(l, class, OFTEN, 0, 600000);
	young = learn_worth(l, class[OFTEN], 2);
	ripe = learn_worth(l, class[OFTEN], AFTER * 9 / 10);
	assert_true(young > 10 * learn_worth(l, class[NEVER], 2));
	assert_true(ripe > 1.5 * young); /* what is kept for long is about to pay */
	assert_true(young > .5 / AFTER && young < 2. / AFTER);
	assert_true(learn_worth(l, class[OFTEN], 2 * AFTER) < ripe);
	live(l, class, NEVER, 600000, 1200000); /* as long again: what was must fade */
	assert_true(learn_worth(l, class[NEVER], 2) > 5 * learn_worth(l, class[OFTEN], 2));
	learn_free(l);
}

/* Of one class one in five comes back after 40, the others after 600; of the other, half and half after 40 and 60. */
static void test_the_best_plan(void **state)
{
	uint32_t t[N_TRAITS] = {0};
	uint16_t c = learn_class(t), both;
	struct learn *l;
	double w;

	(void)state;
	t[TRAIT_LAST] = 1;
	both = learn_class(t);
	assert_int_equal(learn_new(&l), 0);
	for (uint64_t now = 0; now < 300000; now++) {
		learn_advance(l, now, 1000, 1000);
		if (now >= 40 && (now - 40) % 5 == 0)
			learn_reuse(l, c, now - 40, now);
		if (now >= 600 && (now - 600) % 5)
			learn_reuse(l, c, now - 600, now);
		learn_enter(l, c, now);
		if (now >= 60 && now % 2)
			learn_reuse(l, both, now - 60, now);
		if (now >= 40 && now % 2 == 0)
			learn_reuse(l, both, now - 40, now);
		learn_enter(l, both, now);
	}
	w = learn_worth(l, c, 2); /* until 40, then give up: .2 / 40 */
	assert_true(w > .004 && w < .006);
	w = learn_worth(l, c, 100); /* until 600: 1 / 500 */
	assert_true(w > .0016 && w < .0024);
	w = learn_worth(l, c, 460);
	assert_true(w > .005 && w < .009);
	w = learn_worth(l, both, 2); /* until 60: 1 / 50 */
	assert_true(w > .017 && w < .0225);
	learn_free(l);
}

/* A block that enters now and is used again after `age`, if no other one of its kind is then. */
static void plan(struct learn *l, uint64_t due[2048], uint16_t class, uint64_t now, uint64_t age)
{
	if (due[(now + age) % 2048])
		return;
	due[(now + age) % 2048] = now + 1;
	learn_enter(l, class, now);
}

static void keep_plans(struct learn *l, uint64_t due[2048], uint16_t class, uint64_t now)
{
	if (due[now % 2048])
		learn_reuse(l, class, due[now % 2048] - 1, now);
	due[now % 2048] = 0;
}

/*
 * A trait's value may matter more the older a block is. Blocks without a use before come back soon or late, each octave
 * as likely, or never; those with one are as likely to come back at any age. Of another class with one, nothing was ever seen.
 */
static void test_a_factor_depends_on_age(void **state)
{
	static uint64_t due[2][2048];
	uint32_t t[N_TRAITS] = {0};
	uint16_t fresh = learn_class(t), used, unseen;
	struct learn *l;
	double young, old;

	(void)state;
	t[TRAIT_HITS] = 1;
	used = learn_class(t);
	t[TRAIT_TURN] = 1;
	unseen = learn_class(t);
	assert_int_equal(learn_new(&l), 0);
	learn_enter(l, unseen, 0);
	srand(7);
	for (uint64_t now = 0; now < 200000; now++) {
		learn_advance(l, now, 4000, 1000);
		keep_plans(l, due[0], fresh, now);
		keep_plans(l, due[1], used, now);
		if (now >= 2000 && now % 2)
			learn_leave(l, fresh, now - 2001);
		if (now % 2)
			learn_enter(l, fresh, now - 1);
		plan(l, due[0], fresh, now, (uint64_t)4 << rand() % 8);
		plan(l, due[1], used, now,
			1 + (uint64_t)(-300 * log((rand() + 1.) / (RAND_MAX + 1.))) % 2000);
	}
	young = learn_worth(l, unseen, 8) / learn_worth(l, used, 8);
	old = learn_worth(l, unseen, 512) / learn_worth(l, used, 512);
	assert_true(young < 2 * old && old < 2 * young); /* the same shape; one factor: 9 times */
	learn_free(l);
}

/* Every block that enters is found again, however often spans were merged in between (asserted inside). */
static void test_nobody_is_lost(void **state)
{
	enum {
		N = 5000
	};
	static uint64_t last[N];
	static uint16_t class[N];
	struct learn *l;

	(void)state;
	srand(3);
	assert_int_equal(learn_new(&l), 0);
	for (unsigned i = 0; i < N; i++) {
		uint32_t t[N_TRAITS] = {i % 9, i % 5, i % 70, i % 3, i % 2, i % N_KIN};

		class[i] = learn_class(t);
		learn_enter(l, class[i], 0);
	}
	for (uint64_t now = 1; now < 300000; now++) {
		unsigned i = (unsigned)rand() % (now % 4 ? N / 10 : N);

		learn_advance(l, now, N, N / 4);
		learn_reuse(l, class[i], last[i], now);
		learn_enter(l, class[i], now);
		last[i] = now;
	}
	learn_advance(l, 1ull << 40, N, N / 4);
	for (unsigned i = 0; i < N; i++)
		learn_leave(l, class[i], last[i]);
	learn_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_classes),
		cmocka_unit_test(test_prior_is_recency),
		cmocka_unit_test(test_truth_and_its_change),
		cmocka_unit_test(test_the_best_plan),
		cmocka_unit_test(test_a_factor_depends_on_age),
		cmocka_unit_test(test_nobody_is_lost),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
