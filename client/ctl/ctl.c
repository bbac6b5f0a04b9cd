/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Options by table: `--name value` and `--name=value`, in any order with operands, `--` ends them. The help of a
 * subcommand is printed from the same table.
 */
#include "client/ctl/ctl.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct ctl_options ctl_options;

static const struct ctl_flag common[] = {
	{"socket", "PATH", "the daemon's socket", CTL_TEXT, &ctl_options.socket},
	{"json", NULL, "output for programs", CTL_SWITCH, &ctl_options.json},
	{"timeout", "MS", "wait at most so long for the daemon (10000)", CTL_NUMBER,
		&ctl_options.timeout_ms},
	{0},
};

int ctl_usage(const char *command, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	fprintf(stderr, "kvgatectl %s: ", command);
	vfprintf(stderr, fmt, args);
	fprintf(stderr, "; see kvgatectl %s --help\n", command);
	va_end(args);
	return CTL_USAGE;
}

static const struct ctl_flag *find(const struct ctl_flag *flags, const char *name, size_t n)
{
	for (; flags->name; flags++)
		if (strlen(flags->name) == n && !strncmp(flags->name, name, n))
			return flags;
	return NULL;
}

static void print_flags(const struct ctl_flag *flags)
{
	for (; flags->name; flags++) {
		char head[48];

		snprintf(head, sizeof(head), "--%s%s%s", flags->name, flags->arg ? " " : "",
			flags->arg ? flags->arg : "");
		printf("  %-26s %s\n", head, flags->prose);
	}
}

static int help(const char *command, const struct ctl_flag *flags)
{
	static const struct {
		const char *name, *operands, *prose;
	} table[] = {
#define COMMAND(name, operands, prose) {#name, operands, prose},
#include "client/ctl/commands.def"
#undef COMMAND
	};

	for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
		if (!strcmp(table[i].name, command))
			printf("kvgatectl %s %s\n%s\n\n", command, table[i].operands,
				table[i].prose);
	print_flags(flags);
	print_flags(common);
	return CTL_OK;
}

static int set(const char *command, const struct ctl_flag *f, const char *value)
{
	char *end;

	errno = 0;
	switch (f->kind) {
	case CTL_SWITCH:
		*(bool *)f->to = true;
		return -1;
	case CTL_TEXT:
		*(const char **)f->to = value;
		return -1;
	case CTL_NUMBER:
		*(uint64_t *)f->to = strtoull(value, &end, 10);
		if (errno || end == value || *end || *value == '-')
			return ctl_usage(command, "--%s wants a number, not '%s'", f->name, value);
		return -1;
	case CTL_SIZE:
		if (ctl_parse_size(value, f->to) < 0)
			return ctl_usage(command, "--%s wants a size such as 64MiB, not '%s'",
				f->name, value);
		return -1;
	case CTL_REAL:
		*(double *)f->to = strtod(value, &end);
		if (errno || end == value || *end)
			return ctl_usage(command, "--%s wants a number, not '%s'", f->name, value);
		return -1;
	}
	return -1;
}

/* Option argv[*at]; moves *at over a value in a word of its own. */
static int take_flag(int argc, char **argv, int *at, const struct ctl_flag *flags)
{
	const char *word = argv[*at] + 2, *equals = strchr(word, '=');
	size_t n = equals ? (size_t)(equals - word) : strlen(word);
	const struct ctl_flag *f = find(flags, word, n);

	if (!f)
		f = find(common, word, n);
	if (!f)
		return ctl_usage(argv[0], "no option '%s'", argv[*at]);
	if (f->kind == CTL_SWITCH)
		return equals ? ctl_usage(argv[0], "--%s takes no value", f->name)
			      : set(argv[0], f, NULL);
	if (equals)
		return set(argv[0], f, equals + 1);
	if (*at + 1 >= argc)
		return ctl_usage(argv[0], "--%s wants %s", f->name, f->arg);
	return set(argv[0], f, argv[++*at]);
}

int ctl_parse(int argc, char **argv, const struct ctl_flag *flags, int *ret_n)
{
	bool only_operands = false;
	int n = 0;

	for (int i = 1; i < argc; i++) {
		int r;

		if (only_operands || argv[i][0] != '-' || !argv[i][1]) {
			argv[1 + n++] = argv[i];
		} else if (!strcmp(argv[i], "--")) {
			only_operands = true;
		} else if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h")) {
			return help(argv[0], flags);
		} else if (argv[i][1] != '-') {
			return ctl_usage(argv[0], "no option '%s'", argv[i]);
		} else {
			r = take_flag(argc, argv, &i, flags);
			if (r >= 0)
				return r;
		}
	}
	*ret_n = n;
	return -1;
}

struct kvg_client *ctl_open(void)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c;

	o.socket = ctl_options.socket;
	o.name = "kvgatectl";
	o.control = 1;
	o.timeout_ms = ctl_options.timeout_ms < INT32_MAX ? (int)ctl_options.timeout_ms : -1;
	if (kvg_open(&o, &c) < 0) {
		fprintf(stderr, "kvgatectl: %s\n", kvg_last_error(NULL));
		return NULL;
	}
	return c;
}

int ctl_failed(const struct kvg_client *c, int r, const char *what)
{
	const char *text = kvg_last_error(c);
	int code = kvg_last_code(c);

	fprintf(stderr, "kvgatectl: %s: %s\n", what, text[0] ? text : strerror(-r));
	if (code && strcmp(text, kvg_code_prose(code)))
		fprintf(stderr, "kvgatectl: %s: %s\n", kvg_code_name(code), kvg_code_prose(code));
	return CTL_FAILED;
}
