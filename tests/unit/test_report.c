/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The text of an answer: every token is in it, and what JSON gets is UTF-8.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/worker/report.h"

static void check_escape(const char *bytes, size_t n, const char *expected)
{
	char *escaped = report_escape(bytes, n);

	assert_non_null(escaped);
	assert_string_equal(escaped, expected);
	free(escaped);
}

static void test_escape(void **unused)
{
	(void)unused;
	check_escape("", 0, "");
	check_escape("plain \"text\"\n", 13, "plain \"text\"\n");
	check_escape("a\0b", 3, "a\\x00b");
	check_escape("a\\x00", 5, "a\\x5cx00");
	check_escape("\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80", 11,
		"\xc3\xa9 \xe2\x82\xac \xf0\x9f\x98\x80");
	check_escape("\xf4\x8f\xbf\xbf\xed\x9f\xbf", 7, "\xf4\x8f\xbf\xbf\xed\x9f\xbf");
	check_escape("\x80\xff", 2, "\\x80\\xff");
	check_escape("\xc3", 1, "\\xc3"); /* cut short */
	check_escape("\xe2\x82z", 3, "\\xe2\\x82z");
	check_escape("\xc0\xaf", 2, "\\xc0\\xaf"); /* overlong */
	check_escape("\xe0\x9f\xbf", 3, "\\xe0\\x9f\\xbf");
	check_escape("\xf0\x8f\xbf\xbf", 4, "\\xf0\\x8f\\xbf\\xbf");
	check_escape("\xed\xa0\x80", 3, "\\xed\\xa0\\x80"); /* a surrogate */
	check_escape("\xf4\x90\x80\x80", 4, "\\xf4\\x90\\x80\\x80");
	check_escape("\xf5\x80\x80\x80", 4, "\\xf5\\x80\\x80\\x80");
}

static void test_text(void **unused)
{
	static const uint32_t tokens[] = {'a', 0, 255, 258, 300};
	static const char expected[] = "a\0\xff<q> 300";
	size_t bytes;
	char *text = report_text(FORMAT_LAB, tokens, 5, &bytes);

	(void)unused;
	assert_non_null(text);
	assert_int_equal(bytes, sizeof(expected) - 1);
	assert_memory_equal(text, expected, sizeof(expected));
	free(text);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_escape),
		cmocka_unit_test(test_text),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
