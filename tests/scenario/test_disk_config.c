/* SPDX-License-Identifier: Apache-2.0 */
/* [disk] as a person may write it: what cannot be is refused, and the log says what to do. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

static void refuse(const char *disk, const char *state_folder, const char *says)
{
	struct daemon_process d = {0};
	char config[900];

	snprintf(config, sizeof(config),
		"[memory]\nhost_bytes = 16MiB\nsegment_bytes = 4MiB\n[disk]\n%s", disk);
	if (state_folder)
		setenv("STATE_DIRECTORY", state_folder, 1);
	else
		unsetenv("STATE_DIRECTORY");
	daemon_spawn(&d, config, NULL);
	assert_false(daemon_wait_ready(&d));
	if (!daemon_logged(&d, says))
		fail_msg("`%s`: does not say `%s`", disk, says);
	daemon_cleanup(&d);
}

static void test_refused(void **state)
{
	char many[300] = "paths = /a";

	(void)state;
	refuse("paths = planes\n", NULL, "set $STATE_DIRECTORY");
	refuse("paths = planes\n", "", "set $STATE_DIRECTORY");
	refuse("paths = planes\nsize = 1GiB\n", "elsewhere", "set $STATE_DIRECTORY");
	refuse("paths = /nowhere/planes\n", NULL, "kvgatectl disk format /nowhere/planes");
	refuse("paths = planes\n", "/nowhere:/else", "kvgatectl disk format /nowhere/planes");
	refuse("paths = /nowhere/planes\nsize = 1GiB\n", NULL, "/nowhere/planes: ");
	refuse("paths = /a::/b\n", NULL, "empty path");
	refuse("paths = :\n", NULL, "empty path");
	refuse("paths = /a:\n", NULL, "empty path");
	refuse("paths = /a:/b:/a\n", NULL, "/a twice");
	for (char i = 'b'; i <= 'q'; i++)
		snprintf(many + strlen(many), 8, ":/%c", i);
	refuse(strcat(many, "\n"), NULL, "more than 16 paths");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
