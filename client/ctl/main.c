/* SPDX-License-Identifier: Apache-2.0 */
/* kvgatectl: finds the subcommand in the table and runs it. */
#include "client/ctl/ctl.h"

#include <stdio.h>
#include <string.h>

static const struct command {
	const char *name, *operands, *prose;
	int (*run)(int argc, char **argv);
} commands[] = {
#define COMMAND(name, operands, prose) {#name, operands, prose, ctl_##name},
#include "client/ctl/commands.def"
#undef COMMAND
};
#define N_COMMANDS (sizeof(commands) / sizeof(commands[0]))

static void help(FILE *to)
{
	fprintf(to,
		"kvgatectl [--socket PATH] [--json] [--timeout MS] COMMAND [operands and "
		"options]\n\n");
	for (size_t i = 0; i < N_COMMANDS; i++) {
		char head[64];

		snprintf(head, sizeof(head), "%s%s%s", commands[i].name,
			commands[i].operands[0] ? " " : "", commands[i].operands);
		fprintf(to, "  %-26s %s\n", head, commands[i].prose);
	}
	fprintf(to,
		"\nkvgatectl COMMAND --help lists its options; kvgatectl(1) has examples.\n"
		"The socket is --socket, $KVGATE_SOCKET, or /run/kvgated/kvgated.sock.\n");
}

/* The first word that is neither an option nor the value of a common one. */
static int find_command(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		if (argv[i][0] != '-')
			return i;
		if (!strcmp(argv[i], "--socket") || !strcmp(argv[i], "--timeout"))
			i++;
	}
	return 0;
}

int main(int argc, char **argv)
{
	int at = find_command(argc, argv);

	if (!at) {
		for (int i = 1; i < argc; i++) {
			if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
				help(stdout);
				return CTL_OK;
			}
			if (!strcmp(argv[i], "--version"))
				return ctl_version(1, (char *[]){(char[]){"version"}, NULL});
		}
		help(stderr);
		return CTL_USAGE;
	}
	for (size_t i = 0; i < N_COMMANDS; i++)
		if (!strcmp(argv[at], commands[i].name)) {
			/* the command's name goes first, what stood before it follows */
			char *name = argv[at];

			memmove(&argv[2], &argv[1], (size_t)(at - 1) * sizeof(*argv));
			argv[1] = name;
			return commands[i].run(argc - 1, argv + 1);
		}
	fprintf(stderr, "kvgatectl: no command '%s'; kvgatectl --help lists them\n", argv[at]);
	return CTL_USAGE;
}
