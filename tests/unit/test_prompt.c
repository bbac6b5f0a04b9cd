/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Prompts as the command line names them: what is in a file of token ids, and what cannot be.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/worker/prompt.h"

static char path[] = "/tmp/kvgate-prompt-XXXXXX", why[300];

/* Reads a file of this text as --tokens; the vocabulary has 300 tokens. */
static int read_tokens(const char *text, struct prompt **ret, uint32_t *ret_n)
{
	const struct options o = {
		.tokens = path, .prompt_format = FORMAT_TOKENS, .protect = UINT32_MAX};
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	fputs(text, f);
	fclose(f);
	why[0] = '\0';
	return prompts_read(&o, 300, ret, ret_n, why, sizeof(why));
}

static int make_file(void **unused)
{
	(void)unused;
	return mkstemp(path) < 0;
}

static int remove_file(void **unused)
{
	(void)unused;
	return unlink(path);
}

static void test_tokens(void **unused)
{
	struct prompt *p;
	uint32_t n;

	(void)unused;
	assert_int_equal(read_tokens("1 2,3\n\n 299\t0\n", &p, &n), 0);
	assert_int_equal(n, 2);
	assert_int_equal(p[0].n, 3);
	assert_int_equal(p[0].tokens[2], 3);
	assert_int_equal(p[0].context_end, 3);
	assert_int_equal(p[1].tokens[0], 299);
	assert_int_equal(p[1].tokens[1], 0);
	prompts_free(p, n);
}

static void test_refused(void **unused)
{
	static const char *const bad[][2] = {
		{"4294967297\n", "whole numbers"}, /* token 1, were it cut to 32 bits */
		{"18446744073709551617\n", "whole numbers"},
		{"-1\n", "whole numbers"},
		{"+1\n", "whole numbers"},
		{"1 x\n", "whole numbers"},
		{"1 2x\n", "whole numbers"},
		{"300\n", "vocabulary"},
		{"", "no prompt"},
		{"\n\n", "no prompt"},
		{" \n", "empty prompt"},
	};
	struct prompt *p;
	uint32_t n;

	(void)unused;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (read_tokens(bad[i][0], &p, &n) != -EINVAL)
			fail_msg("'%s' was taken", bad[i][0]);
		if (!strstr(why, bad[i][1]))
			fail_msg("of '%s' it is said: %s", bad[i][0], why);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_tokens),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, make_file, remove_file);
}
