/* SPDX-License-Identifier: Apache-2.0 */
/* kvgated: reads its options, then daemon_run() does the rest; with --keeper, its own parent. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/options.h"
#include "daemon/daemon.h"
#include "daemon/keeper.h"

/* The file's name and not /proc/self/exe: after an upgrade, the next daemon is the new one. */
static int keep(char *const *argv)
{
	char program[4096];
	ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);

	if (n < 0) {
		log_error("cannot tell which program to run", "error=\"%m\"");
		return EXIT_FAILURE;
	}
	program[n] = '\0';
	return keeper_run(program, argv);
}

/* Wherever it stands; the daemon is started with the others. */
static bool take_flag(int *argc, char **argv, const char *flag)
{
	int n = 0;

	for (int i = 0; i < *argc; i++)
		if (i == 0 || strcmp(argv[i], flag))
			argv[n++] = argv[i];
	argv[n] = NULL;
	if (n == *argc)
		return false;
	*argc = n;
	return true;
}

int main(int argc, char **argv)
{
	struct options *o;
	char why[600];

	if (take_flag(&argc, argv, "--keeper"))
		return keep(argv);
	if (options_load(argc, argv, environ, &o, why, sizeof(why)) < 0) {
		log_error("bad configuration", "why=\"%s\"", why);
		return EXIT_FAILURE;
	}
	switch (o->action) {
	case OPTIONS_RUN:
		return daemon_run(o, argc, argv, environ);
	case OPTIONS_HELP:
		options_help(stdout);
		break;
	case OPTIONS_HELP_MDOC:
		options_help_mdoc(stdout);
		break;
	case OPTIONS_VERSION:
		puts("kvgated " KVG_VERSION);
		break;
	}
	options_free(o);
	return fflush(stdout) ? EXIT_FAILURE : EXIT_SUCCESS;
}
