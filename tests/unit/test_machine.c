/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/machine.h"

static char dir[64];

static void put(const char *name, const char *text)
{
	char path[200];
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (!text) {
		assert_int_equal(mkdir(path, 0700), 0);
		return;
	}
	f = fopen(path, "w");
	assert_non_null(f);
	fputs(text, f);
	fclose(f);
}

static uint64_t limit(const char *self_text)
{
	char self[100];

	put("self", self_text);
	snprintf(self, sizeof(self), "%s/self", dir);
	return machine_memory_limit(1000, self, dir);
}

static void test_least_counts(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/kvgate-machine-XXXXXX");
	assert_non_null(mkdtemp(dir));
	put("a", NULL);
	put("a/b", NULL);
	assert_int_equal(limit("0::/a/b\n"), 1000); /* no file at all */
	put("a/memory.max", "500\n");
	put("a/b/memory.max", "max\n");
	assert_int_equal(limit("0::/a/b\n"), 500);
	put("a/b/memory.max", "300\n");
	assert_int_equal(limit("0::/a/b\n"), 300);
	assert_int_equal(limit("1:name=x:/a/b\n0::/a\n"), 500);
	assert_int_equal(limit("0::/\n"), 1000);
	put("memory.max", "200\n"); /* as a container sees its own */
	assert_int_equal(limit("0::/\n"), 200);
	assert_int_equal(limit("0::/a/b\n"), 200);
	put("memory.max", "2000\n");
	assert_int_equal(limit("0::/\n"), 1000);
	assert_int_equal(limit("nothing known"), 1000);
	assert_int_equal(machine_memory_limit(7, "/nonexistent", dir), 7);
	assert_true(machine_memory() > 0);
}

static int clean(void **state)
{
	static const char *const names[] = {"a/b/memory.max", "a/memory.max", "memory.max", "self"};
	char path[200];

	(void)state;
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		unlink(path);
	}
	snprintf(path, sizeof(path), "%s/a/b", dir);
	rmdir(path);
	snprintf(path, sizeof(path), "%s/a", dir);
	rmdir(path);
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_least_counts, clean),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
