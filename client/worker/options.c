/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The table is options.def; the struct, the parser and --help are made from it. An option is
 * --name VALUE or --name=VALUE, as getopt_long has it.
 */
#include "client/worker/options.h"

#include <errno.h>
#include <getopt.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "proto/shape.h"

enum kind {
	KIND_TEXT,
	KIND_COUNT,
	KIND_REAL,
	KIND_FLAG,
	KIND_LIST,
	KIND_FILES,
};

struct row {
	enum kind kind;
	size_t offset;
	const char *name, *argument, *help;
};

static const struct row rows[] = {
#define ROW(kind, field, name, argument, help)                                                     \
	{kind, offsetof(struct options, field), name, argument, help},
#define TEXT(field, option, argument, preset, help)  ROW(KIND_TEXT, field, option, argument, help)
#define COUNT(field, option, argument, preset, help) ROW(KIND_COUNT, field, option, argument, help)
#define REAL(field, option, argument, preset, help)  ROW(KIND_REAL, field, option, argument, help)
#define FLAG(field, option, argument, preset, help)  ROW(KIND_FLAG, field, option, argument, help)
#define LIST(field, option, argument, preset, help)  ROW(KIND_LIST, field, option, argument, help)
#define FILES(field, option, argument, preset, help) ROW(KIND_FILES, field, option, argument, help)
#include "client/worker/options.def"
#undef TEXT
#undef COUNT
#undef REAL
#undef FLAG
#undef LIST
#undef FILES
};
enum {
	ROWS = sizeof(rows) / sizeof(rows[0])
};

static const struct options presets = {
#define TEXT(field, option, argument, preset, help)  .field = preset,
#define COUNT(field, option, argument, preset, help) .field = preset,
#define REAL(field, option, argument, preset, help)  .field = preset,
#define FLAG(field, option, argument, preset, help)  .field = preset,
#define LIST(field, option, argument, preset, help)
#define FILES(field, option, argument, preset, help)
#include "client/worker/options.def"
#undef TEXT
#undef COUNT
#undef REAL
#undef FLAG
#undef LIST
#undef FILES
};

static void help(void)
{
	printf("kvgate-worker --model DIR [options]: a small inference process that shares its KV "
	       "through kvgated.\n\n");
	for (int i = 0; i < ROWS; i++) {
		char left[40];

		snprintf(left, sizeof(left), "--%s %s", rows[i].name,
			rows[i].argument ? rows[i].argument : "");
		printf("  %-22s %s\n", left, rows[i].help);
	}
}

static int bad(const struct row *row, const char *value, const char *what)
{
	fprintf(stderr, "kvgate-worker: --%s %s: %s\n", row->name, value, what);
	return -EINVAL;
}

static int take(struct options *o, const struct row *row, const char *value)
{
	void *field = (char *)o + row->offset;
	struct texts *list = field;
	char *end;

	switch (row->kind) {
	case KIND_TEXT:
		*(const char **)field = value;
		return 0;
	case KIND_FLAG:
		*(bool *)field = true;
		return 0;
	case KIND_COUNT: {
		unsigned long long n = strtoull(value, &end, 10);

		if (end == value || *end || value[0] == '-' || n >= UINT32_MAX)
			return bad(row, value, "a whole number is needed");
		*(uint32_t *)field = (uint32_t)n;
		return 0;
	}
	case KIND_REAL: {
		double d = strtod(value, &end);

		if (end == value || *end || !(d >= 0.0 && d < 1e6))
			return bad(row, value, "a number from 0 on is needed");
		*(double *)field = d;
		return 0;
	}
	case KIND_LIST:
	case KIND_FILES:
		if (list->n == TEXTS_MAX)
			return bad(row, value, "too many");
		list->of[list->n].text = value;
		list->of[list->n++].is_file = row->kind == KIND_FILES;
		return 0;
	}
	return -EINVAL;
}

/* The index of `word` in a NULL-terminated list of words, or -1 and a text. */
static int choose(const char *option, const char *word, const char *const *words)
{
	for (int i = 0; words[i]; i++)
		if (!strcmp(word, words[i]))
			return i;
	fprintf(stderr, "kvgate-worker: --%s %s: use", option, word);
	for (int i = 0; words[i]; i++)
		fprintf(stderr, "%s %s", i ? "," : "", words[i]);
	fputc('\n', stderr);
	return -1;
}

static int complain(const char *what)
{
	fprintf(stderr, "kvgate-worker: %s; --help lists all options\n", what);
	return -EINVAL;
}

/* What cannot be said of one option alone. */
static int check(struct options *o)
{
	static const char *const modes[] = {"optional", "required", "off", NULL};
	static const char *const formats[] = {"lab", "bytes", "tokens", NULL};
	static const char *const dtypes[] = {"bf16", "f16", "f32", NULL};
	const int mode = choose("cache", o->cache, modes);
	const int format = choose("format", o->format, formats);
	const bool evicts = o->evict_retained < 1.0 || o->decode_budget > 0;

	if (mode < 0 || format < 0 || choose("kv-dtype", o->dtype, dtypes) < 0)
		return -EINVAL;
	o->cache_mode = o->no_cache ? CACHE_OFF : (enum cache_mode)mode;
	o->prompt_format = o->tokens ? FORMAT_TOKENS : (enum prompt_format)format;
	o->kv_dtype = dtype_from_name(o->dtype);
	if (!o->model)
		return complain("--model is needed");
	if (o->prompt_format == FORMAT_TOKENS ? !o->tokens || o->prompts.n : !o->prompts.n)
		return complain("no prompt: give --prompt or --prompt-file, or --tokens");
	if (o->questions.n && o->prompt_format != FORMAT_LAB)
		return complain("--question belongs to --format lab");
	if (!o->chunk || !o->block_tokens || !o->threads || !o->evict_chunk)
		return complain(
			"--chunk, --block-tokens, --threads and --evict-chunk are 1 at least");
	if (o->retention > 1.0 || o->min_retention > 1.0 || o->evict_retained > 1.0)
		return complain("shares are 0 to 1");
	if (o->gate && o->gate_name)
		return complain("--gate scores here, --gate-name in the daemon: give one");
	if (evicts && (!o->gate || o->cache_mode != CACHE_OFF))
		return complain("--evict and --decode-budget need --gate and --cache off");
	return 0;
}

int options_parse(int argc, char **argv, struct options *ret)
{
	struct option longs[ROWS + 2] = {{"help", no_argument, NULL, 'h'}};
	int at, r = 0;

	*ret = presets;
	optind = 1; /* tests parse more than once */
	for (int i = 0; i < ROWS; i++)
		longs[i + 1] = (struct option){.name = rows[i].name,
			.has_arg = rows[i].argument ? required_argument : no_argument};
	for (int c; r == 0 && (c = getopt_long(argc, argv, "h", longs, &at)) != -1;) {
		if (c == 'h') {
			help();
			return 1;
		}
		r = c == 0 ? take(ret, &rows[at - 1], optarg) : -EINVAL;
	}
	if (r == 0 && optind < argc)
		r = complain("arguments are given as options");
	return r < 0 ? r : check(ret);
}
