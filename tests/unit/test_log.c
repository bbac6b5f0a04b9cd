/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/log.h"

static char text[8192];

/* What `act` writes to standard error. */
static const char *written(void (*act)(void))
{
	int file = memfd_create("log", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_true(file >= 0 && saved >= 0);
	dup2(file, STDERR_FILENO);
	act();
	dup2(saved, STDERR_FILENO);
	close(saved);
	n = pread(file, text, sizeof(text) - 1, 0);
	assert_true(n >= 0);
	text[n] = '\0';
	close(file);
	return text;
}

static void lines(void)
{
	errno = EBUSY;
	log_error("it broke", "uid=%d why=\"%s\"", 7, "no");
	log_warning("odd");
	log_info("fine", "n=%u", 1u);
	log_debug("detail");
	assert_int_equal(errno, EBUSY);
}

static void test_lines(void **state)
{
	(void)state;
	assert_string_equal(
		written(lines), "error it broke uid=7 why=\"no\"\nwarning odd\ninfo fine n=1\n");
	log_set_level(LOG_LEVEL_DEBUG);
	assert_non_null(strstr(written(lines), "debug detail\n"));
	log_set_level(LOG_LEVEL_ERROR);
	assert_string_equal(written(lines), "error it broke uid=7 why=\"no\"\n");
	log_set_level(LOG_LEVEL_INFO);
}

static void forged(void)
{
	log_info("client", "name=\"%s\"", "x\nerror all is lost\x1b[2J\t\x7f");
}

static void test_no_forged_line(void **state)
{
	(void)state;
	assert_string_equal(written(forged), "info client name=\"x?error all is lost?[2J??\"\n");
}

static void longer(void)
{
	char long_text[5000];

	memset(long_text, 'a', sizeof(long_text) - 1);
	long_text[sizeof(long_text) - 1] = '\0';
	log_info("long", "text=%s", long_text);
	log_info("after");
}

static void test_long_line(void **state)
{
	const char *s = written(longer), *end = strchr(s, '\n');

	(void)state;
	assert_int_equal(end - s, 1023);
	assert_memory_equal(end - 3, "...", 3);
	assert_string_equal(end + 1, "info after\n");
}

static void test_level_names(void **state)
{
	(void)state;
	assert_int_equal(log_level_from_name("error"), LOG_LEVEL_ERROR);
	assert_int_equal(log_level_from_name("debug"), LOG_LEVEL_DEBUG);
	assert_int_equal(log_level_from_name("loud"), -EINVAL);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_lines),
		cmocka_unit_test(test_no_forged_line),
		cmocka_unit_test(test_long_line),
		cmocka_unit_test(test_level_names),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
