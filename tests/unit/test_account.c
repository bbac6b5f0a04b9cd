/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/account.h"

static struct counters *counters;
static struct counter_scope *scope;
static struct account a;

static int setup(void **state)
{
	(void)state;
	if (counters_new(&counters) || counters_scope(counters, "t", "", &scope))
		return -1;
	account_init(&a, "t", scope);
	account_set_limit(&a, ACCOUNT_STAGING, 100);
	account_set_limit(&a, ACCOUNT_PINS, 2);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	account_fini(&a);
	counters_free(counters);
	return 0;
}

static void test_charges(void **state)
{
	struct charge x = {0}, y = {0};

	(void)state;
	assert_int_equal(charge_add(&x, &a, ACCOUNT_STAGING, 60), 0);
	assert_int_equal(charge_add(&y, &a, ACCOUNT_STAGING, 41), -EDQUOT);
	assert_int_equal(y.amount, 0);
	assert_int_equal(charge_add(&y, &a, ACCOUNT_STAGING, 40), 0);
	assert_int_equal(account_left(&a, ACCOUNT_STAGING), 0);
	assert_int_equal(counter_get(scope, COUNTER_STAGING, 0), 100);
	assert_int_equal(charge_add(&x, &a, ACCOUNT_STAGING, 1), -EDQUOT);
	assert_int_equal(x.amount, 60); /* refused: as it was */
	charge_sub(&x, 10);
	assert_int_equal(charge_add(&y, &a, ACCOUNT_STAGING, 10), 0);
	assert_int_equal(charge_add(&(struct charge){0}, &a, ACCOUNT_STAGING, UINT64_MAX), -EDQUOT);
	assert_int_equal(counter_get(scope, COUNTER_QUOTA_REFUSALS, 0), 3);
	charge_fini(&x);
	charge_fini(&x);
	charge_fini(&y);
	assert_int_equal(a.used[ACCOUNT_STAGING], 0);
	assert_int_equal(counter_get(scope, COUNTER_STAGING, 0), 0);
}

static void test_take(void **state)
{
	struct charge whole = {0}, part = {0};

	(void)state;
	assert_int_equal(charge_add(&whole, &a, ACCOUNT_STAGING, 70), 0);
	charge_take(&whole, 30, &part);
	assert_int_equal(a.used[ACCOUNT_STAGING], 70);
	charge_fini(&whole);
	assert_int_equal(a.used[ACCOUNT_STAGING], 30);
	charge_fini(&part);
	assert_int_equal(a.used[ACCOUNT_STAGING], 0);
}

/* A lower limit takes nothing away; it grants nothing more. */
static void test_limit_below_use(void **state)
{
	struct charge x = {0};

	(void)state;
	assert_int_equal(charge_add(&x, &a, ACCOUNT_PINS, 2), 0);
	account_set_limit(&a, ACCOUNT_PINS, 1);
	assert_int_equal(account_left(&a, ACCOUNT_PINS), 0);
	assert_int_equal(charge_add(&x, &a, ACCOUNT_PINS, 1), -EDQUOT);
	charge_sub(&x, 1);
	assert_int_equal(charge_add(&x, &a, ACCOUNT_PINS, 1), -EDQUOT);
	charge_fini(&x);
	assert_int_equal(charge_add(&x, &a, ACCOUNT_PINS, 1), 0);
	charge_fini(&x);
}

static void test_text(void **state)
{
	struct charge x = {0};
	char why[200];

	(void)state;
	assert_int_equal(charge_add(&x, &a, ACCOUNT_PINS, 2), 0);
	account_refusal(&a, ACCOUNT_PINS, why, sizeof(why));
	assert_string_equal(
		why, "tenant t has 2 of 2 pins through the socket; raise pins in kvgated.conf");
	charge_fini(&x);
}

static size_t lines_logged(int file)
{
	char text[4096];
	ssize_t n = pread(file, text, sizeof(text), 0);
	size_t lines = 0;

	for (ssize_t i = 0; i < n; i++)
		lines += text[i] == '\n';
	return lines;
}

/* A client that tries on and on fills no log, nor one that goes round and round its limit. */
static void test_logged_less_and_less(void **state)
{
	int file = memfd_create("log", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
	struct charge x = {0}, y = {0};

	(void)state;
	dup2(file, STDERR_FILENO);
	assert_int_equal(charge_add(&x, &a, ACCOUNT_STAGING, 100), 0);
	for (int i = 0; i < 1000; i++)
		assert_int_equal(charge_add(&x, &a, ACCOUNT_STAGING, 1), -EDQUOT);
	assert_int_equal(lines_logged(file), 10); /* 1, 2, 4 ... 512 */
	assert_int_equal(counter_get(scope, COUNTER_QUOTA_REFUSALS, 0), 1000);
	for (int i = 0; i < 1000; i++) {
		charge_fini(&x);
		assert_int_equal(charge_add(&x, &a, ACCOUNT_STAGING, 100), 0);
		assert_int_equal(charge_add(&x, &a, ACCOUNT_STAGING, 1), -EDQUOT);
	}
	assert_int_equal(lines_logged(file), 11); /* and 1024 */
	assert_int_equal(charge_add(&y, &a, ACCOUNT_PINS, 3), -EDQUOT);
	assert_int_equal(lines_logged(file), 12); /* another quota is another thing to say */
	charge_fini(&x);
	dup2(saved, STDERR_FILENO);
	close(saved);
	close(file);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_charges, setup, teardown),
		cmocka_unit_test_setup_teardown(test_take, setup, teardown),
		cmocka_unit_test_setup_teardown(test_limit_below_use, setup, teardown),
		cmocka_unit_test_setup_teardown(test_text, setup, teardown),
		cmocka_unit_test_setup_teardown(test_logged_less_and_less, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
