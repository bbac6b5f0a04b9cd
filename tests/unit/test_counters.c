/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/base/counters.h"

struct seen {
	unsigned n;
	int64_t sum;
	int sub;
};

static void see(void *userdata, enum counter_id id, const char *tenant, const char *model, int sub,
	int64_t value)
{
	struct seen *s = userdata;

	(void)id, (void)tenant, (void)model;
	s->n++;
	s->sum += value;
	s->sub = sub;
}

static void test_scopes(void **state)
{
	struct counter_scope *a, *b, *again, *model;
	struct counters *c;
	struct seen s = {0};

	(void)state;
	assert_int_equal(counters_new(&c), 0);
	assert_int_equal(counters_scope(c, "a", "", &a), 0);
	assert_int_equal(counters_scope(c, "b", "", &b), 0);
	assert_int_equal(counters_scope(c, "a", "m", &model), 0);
	assert_int_equal(counters_scope(c, "a", "", &again), 0);
	assert_ptr_equal(a, again);
	assert_ptr_not_equal(a, b);
	assert_ptr_not_equal(a, model);
	counters_each(c, NULL, see, &s);
	assert_int_equal(s.n, 0); /* zeros are not shown */
	counter_add(a, COUNTER_REQUESTS, 0, 3);
	counter_add(a, COUNTER_REQUESTS, 0, 4);
	counter_set(b, COUNTER_SESSIONS, 0, 9);
	counter_add(model, COUNTER_EVICTED_PLANES, 7, 5);
	assert_int_equal(counter_get(a, COUNTER_REQUESTS, 0), 7);
	counters_each(c, NULL, see, &s);
	assert_int_equal(s.n, 3);
	assert_int_equal(s.sum, 21);
	s = (struct seen){0};
	counters_each(c, "b", see, &s);
	assert_int_equal(s.n, 1);
	assert_int_equal(s.sum, 9);
	assert_int_equal(s.sub, -1); /* not split */
	s = (struct seen){0};
	counters_each(c, "a", see, &s);
	assert_int_equal(s.n, 2);
	assert_int_equal(s.sub, 7);
	counter_set(b, COUNTER_SESSIONS, 0, 0);
	s = (struct seen){0};
	counters_each(c, "b", see, &s);
	assert_int_equal(s.n, 0);
	counters_free(c);
}

/* Names are what metrics are found by. */
static void test_table(void **state)
{
	(void)state;
	for (unsigned i = 0; i < COUNTER_N; i++) {
		const char *name = counter_name(i);
		size_t n = strlen(name);

		assert_int_equal(strncmp(name, "kvgate_", 7), 0);
		assert_true(strlen(counter_prose(i)) > 5);
		/* what only grows ends in _total, what goes both ways does not */
		assert_int_equal(!counter_is_gauge(i), n > 6 && !strcmp(name + n - 6, "_total"));
		for (unsigned k = 0; k < i; k++)
			assert_string_not_equal(name, counter_name(k));
	}
	assert_int_equal(counter_split(COUNTER_BYTES), COUNTER_SPLIT_TIER);
	assert_int_equal(counter_split(COUNTER_PAYLOAD), COUNTER_SPLIT_PLANE);
}

/* A tenant that is no more has no counters; the others, and those that come later, are as they were. */
static void test_forget(void **state)
{
	struct counters *c;
	struct counter_scope *a, *b, *of_model, *again, *last;

	(void)state;
	assert_int_equal(counters_new(&c), 0);
	assert_int_equal(counters_scope(c, "a", "", &a), 0);
	assert_int_equal(counters_scope(c, "b", "", &b), 0);
	assert_int_equal(counters_scope(c, "a", "m", &of_model), 0);
	counter_add(a, COUNTER_COMMITS, 0, 5);
	counter_add(b, COUNTER_COMMITS, 0, 6);
	counters_forget(c, "nobody");
	counters_forget(c, "a");
	assert_int_equal(
		counters_scope(c, "last", "", &last), 0); /* the end of the list is right */
	assert_int_equal(counters_scope(c, "a", "", &again), 0);
	assert_int_equal(counter_get(again, COUNTER_COMMITS, 0), 0);
	assert_int_equal(counters_scope(c, "b", "", &again), 0);
	assert_ptr_equal(again, b);
	assert_int_equal(counter_get(b, COUNTER_COMMITS, 0), 6);
	assert_int_equal(counters_scope(c, "last", "", &again), 0);
	assert_ptr_equal(again, last);
	counters_forget(c, "a");
	counters_forget(c, "b");
	counters_forget(c, "last");
	assert_int_equal(counters_scope(c, "b", "", &b), 0);
	counters_free(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scopes),
		cmocka_unit_test(test_table),
		cmocka_unit_test(test_forget),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
