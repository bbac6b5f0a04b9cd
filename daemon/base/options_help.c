/* SPDX-License-Identifier: Apache-2.0 */
/* The table as text: what --help prints, and the parameter list of kvgated.conf(5). */
#include <ctype.h>
#include <string.h>

#include "daemon/base/options.h"

static const struct {
	const char *name, *prose;
} sections[] = {
	{"daemon", "The daemon itself."},
	{"memory", "Memory, and what leaves it first."},
	{"disk",
		"A tier below memory, on files or block devices (here the names may stand without "
		"their disk_)."},
	{"gpu",
		"GPUs, which hold replicas of what memory and disk hold (here the names may stand "
		"without their gpu_)."},
	{"limits", "What one tenant may have, unless its own section says otherwise."},
};

static const struct {
	const char *key, *arg, *prose;
} repeated[] = {
	{"[tenant NAME]", NULL,
		"Users that share one cache. Without such a section every user is a tenant of its "
		"own, named uid-UID; a "
		"section of that name sets its limits, and has no other user."},
	{"uids", "list", "users by number or name, separated by commas"},
	{"gids", "list", "groups; a user whom another section names counts there"},
	{"[gate NAME]", NULL, "A gate that clients may name when they register a layout."},
	{"file", "path",
		"an official Fast KVzip .pt, a KVzap folder, or a safetensors file of kvgatectl "
		"gate convert"},
	{"[model NAME]", NULL, "What holds for the layouts of one model, in every tenant."},
	{"floor", "share", "retention floor of the model"},
	{"gate", "name", "the gate that a client gets when it asks for gate \"auto\""},
};

static const char *arg_of(enum option_type t)
{
	static const char *const names[] = {[OPTION_BYTES] = "size",
		[OPTION_INT] = "number",
		[OPTION_RATIO] = "share",
		[OPTION_BOOL] = "yes|no",
		[OPTION_MODE] = "mode",
		[OPTION_TEXT] = "text",
		[OPTION_CHOICE] = "word"};

	return names[t];
}

/* "default 50%, 1MiB to 100%, restart" */
static void print_facts(FILE *to, const struct option_info *i)
{
	fprintf(to, "default %s", i->dflt[0] ? i->dflt : "empty");
	if (i->type == OPTION_CHOICE) {
		fputs("; one of ", to);
		for (const char *p = i->min; *p; p++)
			*p == ' ' ? fputs(", ", to) : fputc(*p, to);
	} else if (i->type != OPTION_TEXT && i->type != OPTION_BOOL) {
		fprintf(to, "; %s to %s", i->min, i->max);
	}
	if (i->reload)
		fputs("; SIGHUP", to);
}

static void print_flag(FILE *to, const char *name)
{
	fputs("  --", to);
	for (; *name; name++)
		fputc(*name == '_' ? '-' : *name, to);
}

/* Words of `text`, broken before column 100, after an indent of 6. */
static void print_wrapped(FILE *to, const char *text)
{
	size_t column = 0;

	while (*text) {
		size_t n = strcspn(text, " ");

		if (column == 0 || column + 1 + n > 94) {
			fputs(column ? "\n      " : "      ", to);
			column = n;
		} else {
			fputc(' ', to);
			column += n + 1;
		}
		fwrite(text, 1, n, to);
		text += n;
		text += strspn(text, " ");
	}
	fputc('\n', to);
}

void options_help(FILE *to)
{
	fputs("usage: kvgated [--config FILE] [--NAME VALUE | --NAME=VALUE]...\n\n"
	      "Owns the KV-cache memory of this machine and shares it between inference "
	      "processes.\n\n"
	      "  --config FILE   configuration (default " OPTIONS_CONFIG_DEFAULT ")\n"
	      "  --keeper        a parent that keeps the memory while the daemon "
	      "dies and starts again\n"
	      "  --help, --version\n\n"
	      "A parameter is `name = value` under [section] in the file, KVGATED_NAME in the "
	      "environment, or a\n"
	      "flag; the flag wins, then the environment. SIGHUP: read again without a restart.\n",
		to);
	for (size_t s = 0; s < sizeof(sections) / sizeof(sections[0]); s++) {
		fprintf(to, "\n[%s] %s\n", sections[s].name, sections[s].prose);
		for (size_t i = 0; i < OPTION_N; i++) {
			const struct option_info *o = &option_table[i];

			if (strcmp(o->section, sections[s].name))
				continue;
			print_flag(to, o->name);
			fprintf(to, " %s  (", arg_of(o->type));
			print_facts(to, o);
			fputs(")\n", to);
			print_wrapped(to, o->prose);
		}
	}
	for (size_t i = 0; i < sizeof(repeated) / sizeof(repeated[0]); i++) {
		if (repeated[i].arg)
			fprintf(to, "  %s = %s\n", repeated[i].key, repeated[i].arg);
		else
			fprintf(to, "\n%s\n", repeated[i].key);
		print_wrapped(to, repeated[i].prose);
		if (i == 2) {
			fputs("  ", to);
#define TENANT(key, type, option) fputs(#key " ", to);
#include "daemon/base/options.def"
			fputs("= ...\n      this tenant's own, instead of those of [limits] and "
			      "[memory]\n",
				to);
		}
	}
}

/* With a capital and, as mdoc wants it, every sentence on a line of its own. */
static void print_sentences(FILE *to, const char *text)
{
	const char *end;

	fputc(toupper((unsigned char)*text++), to);
	while ((end = strstr(text, ". "))) {
		fprintf(to, "%.*s.\n", (int)(end - text), text);
		text = end + 2;
	}
	fputs(text, to);
}

void options_help_mdoc(FILE *to)
{
	for (size_t s = 0; s < sizeof(sections) / sizeof(sections[0]); s++) {
		fprintf(to, ".Ss [%s]\n%s\n.Bl -tag -width Ds\n", sections[s].name,
			sections[s].prose);
		for (size_t i = 0; i < OPTION_N; i++) {
			const struct option_info *o = &option_table[i];

			if (strcmp(o->section, sections[s].name))
				continue;
			fprintf(to, ".It Cm %s No = Ar %s\n", o->name, arg_of(o->type));
			print_sentences(to, o->prose);
			fputs("\n(", to);
			print_facts(to, o);
			fputs(").\n", to);
		}
		fputs(".El\n", to);
	}
	for (size_t i = 0; i < sizeof(repeated) / sizeof(repeated[0]); i++) {
		if (!repeated[i].arg) {
			fprintf(to, "%s.Ss %s\n", i ? ".El\n" : "", repeated[i].key);
			print_sentences(to, repeated[i].prose);
			fputs("\n.Bl -tag -width Ds\n", to);
			continue;
		}
		fprintf(to, ".It Cm %s No = Ar %s\n", repeated[i].key, repeated[i].arg);
		print_sentences(to, repeated[i].prose);
		fputs(".\n", to);
		if (i == 2) {
#define TENANT(key, type, option)                                                                  \
	fprintf(to,                                                                                \
		".It Cm " #key " No = Ar %s\nThis tenant's own, instead of\n.Cm " #option " .\n",  \
		arg_of(OPTION_##type));
#include "daemon/base/options.def"
		}
	}
	fputs(".El\n", to);
}
