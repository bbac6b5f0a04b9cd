/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/bench/figure.h"

static char line[512], complaint[512];

/* What a bench with this one figure prints and says, and its exit status. */
static int bench(const struct figure_line *f)
{
	int out[2], err[2], status;
	ssize_t n;
	pid_t pid;

	fflush(NULL);
	assert_true(pipe(out) == 0 && pipe(err) == 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		dup2(out[1], STDOUT_FILENO);
		dup2(err[1], STDERR_FILENO);
		figure_print(f, "beside %d others", 3);
		_exit(figure_status());
	}
	close(out[1]);
	close(err[1]);
	n = read(out[0], line, sizeof(line) - 1);
	line[n > 0 ? n : 0] = 0;
	n = read(err[0], complaint, sizeof(complaint) - 1);
	complaint[n > 0 ? n : 0] = 0;
	close(out[0]);
	close(err[0]);
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void test_at_most(void **state)
{
	struct figure_line f = {"core", "reclaim_ms", "ms", 50, FIGURE_NONE, FIGURE_NONE, false};

	(void)state;
	assert_int_equal(bench(&f), 0);
	assert_string_equal(line,
		"{\"suite\":\"core\",\"name\":\"reclaim_ms\",\"value\":50,\"unit\":\"ms\","
		"\"limit\":50,"
		"\"limit_what\":\"beside 3 others; it must be at most 50\",\"ratio\":1}\n");
	assert_string_equal(complaint, "");
	f.value = 50.01;
	assert_int_equal(bench(&f), 1);
	assert_string_equal(complaint, "reclaim_ms: 50.01, must be at most 50\n");
	f.unbound = true;
	assert_int_equal(bench(&f), 0);
	assert_non_null(
		strstr(line, "\"limit\":null,\"limit_what\":\"beside 3 others\",\"ratio\":null}"));
}

static void test_at_least(void **state)
{
	struct figure_line f = {"policy", "hit_rate_1k", "%", 8, 19, FIGURE_NONE, false};

	(void)state;
	assert_int_equal(bench(&f), 0);
	assert_non_null(strstr(line, "\"limit\":19,"));
	f.value = 7.99;
	assert_int_equal(bench(&f), 1);
	assert_string_equal(complaint, "hit_rate_1k: 7.99, must be at least 8\n");
}

/* The value is a speed and the limit the rival's: what is asked for is a share of it. */
static void test_ratio(void **state)
{
	struct figure_line f = {"core", "key_chain_GBps", "GB/s", .95, 1, FIGURE_NONE, false};

	(void)state;
	assert_int_equal(bench(&f), 0);
	f.value = .89;
	assert_int_equal(bench(&f), 1);
	assert_string_equal(complaint, "key_chain_GBps: a ratio of 0.89, must be at least 0.9\n");
	f.ratio = .91; /* the median of the turns' ratios, not the ratio of the medians */
	assert_int_equal(bench(&f), 0);
}

static void test_no_bound(void **state)
{
	struct figure_line f = {"core", "nothing_asks_for_this", "us", 1e9, 4, FIGURE_NONE, false};

	(void)state;
	assert_int_equal(bench(&f), 0);
	assert_non_null(strstr(line, "\"limit_what\":\"beside 3 others\","));
}

static void test_order(void **state)
{
	double v[] = {5, 1, 4, 2, 3};

	(void)state;
	assert_true(figure_median(v, 5) == 3 && figure_quantile(v, 5, 0) == 1 &&
		figure_quantile(v, 5, 1) == 5);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_at_most),
		cmocka_unit_test(test_at_least),
		cmocka_unit_test(test_ratio),
		cmocka_unit_test(test_no_bound),
		cmocka_unit_test(test_order),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
