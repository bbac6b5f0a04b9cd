/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The configuration file. inih calls back with names and values but not with line numbers, so the lines are counted
 * where it reads them: the callback for a line runs before the next one is read. Only the first thing that is wrong
 * is reported, since the later ones are often its consequence.
 *
 * Sections that may come often ([tenant NAME], ...) are arrays of structs that begin with their name.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/options.h"

static bool name_ok(const char *name, size_t size, bool model)
{
	size_t n = strlen(name);

	if (n == 0 || n >= size)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)name[i]) &&
			!strchr(model ? "._-/:+@ " : "._-", name[i]))
			return false;
	return true;
}

struct reading {
	struct options *o;
	FILE *f;
	const char *name;
	unsigned line;
	bool failed, list; /* list: the last value may go on in an indented line */
	char *why;
	size_t why_size;
};

static int fail_line(struct reading *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static int fail_line(struct reading *r, const char *fmt, ...)
{
	char text[400];
	va_list args;

	if (r->failed)
		return 0; /* inih: not taken */
	va_start(args, fmt);
	vsnprintf(text, sizeof(text), fmt, args);
	va_end(args);
	snprintf(r->why, r->why_size, "%s:%u: %s", r->name, r->line, text);
	r->failed = true;
	return 0;
}

/* The position of the section's own struct, added at its end when it is new; NULL when it cannot be. */
static void *section_slot(struct reading *r, void **array, size_t *n, size_t size, const char *name)
{
	char *p = *array;

	for (size_t i = 0; i < *n; i++)
		if (!strcmp(p + i * size, name)) /* every such struct begins with its name */
			return p + i * size;
	if (*n == OPTIONS_SECTIONS_MAX) {
		fail_line(r, "more than %d sections of one kind", OPTIONS_SECTIONS_MAX);
		return NULL;
	}
	p = realloc(*array, (*n + 1) * size);
	if (!p) {
		fail_line(r, "out of memory");
		return NULL;
	}
	*array = p;
	p += (*n)++ * size;
	memset(p, 0, size);
	memcpy(p, name, strlen(name) + 1);
	return p;
}

static int parse_id(const char *word, bool group, uint32_t *ret)
{
	char *end;
	unsigned long v;

	if (isdigit((unsigned char)word[0])) {
		errno = 0;
		v = strtoul(word, &end, 10);
		if (*end || errno || v >= UINT32_MAX) /* (uid_t)-1 is nobody's */
			return -EINVAL;
		*ret = (uint32_t)v;
	} else if (group) {
		const struct group *g = getgrnam(word);

		if (!g)
			return -EINVAL;
		*ret = g->gr_gid;
	} else {
		const struct passwd *p = getpwnam(word);

		if (!p)
			return -EINVAL;
		*ret = p->pw_uid;
	}
	return 0;
}

/* "980, alice": added to what earlier lines gave. */
static int add_ids(struct reading *r, const char *value, bool group, struct options_ids *ids)
{
	const char *p = value;

	r->list = true;
	while (*(p += strspn(p, ", \t"))) {
		size_t n = strcspn(p, ", \t");
		char word[OPTIONS_NAME_MAX];
		uint32_t *more, id;

		snprintf(word, sizeof(word), "%.*s", (int)n, p);
		if (n >= sizeof(word) || parse_id(word, group, &id) < 0)
			return fail_line(r, "%s: no such %s on this machine", word,
				group ? "group" : "user");
		if (ids->n == OPTIONS_IDS_MAX)
			return fail_line(r, "more than %d ids: use a group", OPTIONS_IDS_MAX);
		more = realloc(ids->id, (ids->n + 1) * sizeof(*more));
		if (!more)
			return fail_line(r, "out of memory");
		ids->id = more;
		ids->id[ids->n++] = id;
		p += n;
	}
	return 1;
}

static int set_value(struct reading *r, const struct option_info *i, const char *value, void *field)
{
	char why[300];

	if (option_set(i, value, r->o->machine_bytes, field, why, sizeof(why)) < 0)
		return fail_line(r, "%s", why);
	return 1;
}

static struct options_tenant *tenant_slot(struct reading *r, const char *name)
{
	return section_slot(
		r, (void **)&r->o->tenants, &r->o->n_tenants, sizeof(struct options_tenant), name);
}

static struct options_gate *gate_slot(struct reading *r, const char *name)
{
	return section_slot(
		r, (void **)&r->o->gates, &r->o->n_gates, sizeof(struct options_gate), name);
}

static int in_tenant(struct reading *r, const char *section, const char *name, const char *value)
{
	struct options_tenant *t = tenant_slot(r, section);

	if (!t)
		return 0;
	if (!strcmp(name, "uids"))
		return add_ids(r, value, false, &t->uids);
	if (!strcmp(name, "gids"))
		return add_ids(r, value, true, &t->gids);
	for (size_t i = 0; i < OPTION_TENANT_N; i++) {
		struct option_info info;

		if (strcmp(name, option_tenant_table[i].key))
			continue;
		if (t->own & 1u << i)
			return fail_line(r, "%s is given twice", name);
		t->own |= 1u << i;
		info = option_table[option_tenant_table[i].option];
		info.name = name;
		return set_value(
			r, &info, value, (char *)&t->limits + option_tenant_table[i].offset);
	}
	return fail_line(
		r, "%s is not a parameter of [tenant NAME]; kvgated --help lists them", name);
}

static int in_gate(struct reading *r, const char *section, const char *name, const char *value)
{
	struct options_gate *g = gate_slot(r, section);

	if (!g)
		return 0;
	if (strcmp(name, "file"))
		return fail_line(r, "%s is not a parameter of [gate NAME]; it has file", name);
	if (g->file[0])
		return fail_line(r, "%s is given twice", name);
	if (strlen(value) >= sizeof(g->file) || !value[0])
		return fail_line(r, "file has %zu characters: use 1 to %zu", strlen(value),
			sizeof(g->file) - 1);
	memcpy(g->file, value, strlen(value) + 1);
	return 1;
}

static int in_model(struct reading *r, const char *section, const char *name, const char *value)
{
	struct options_model *m =
		section_slot(r, (void **)&r->o->models, &r->o->n_models, sizeof(*m), section);

	if (!m)
		return 0;
	if (!strcmp(name, "floor"))
		return set_value(r, &option_table[OPTION_ID_floor], value, &m->floor);
	if (strcmp(name, "gate"))
		return fail_line(
			r, "%s is not a parameter of [model NAME]; it has floor and gate", name);
	if (!name_ok(value, sizeof(m->gate), false))
		return fail_line(r, "gate = %s: use the name of a [gate NAME] section", value);
	memcpy(m->gate, value, strlen(value) + 1);
	return 1;
}

/* Under [disk] `size` is disk_size, under [gpu] `bytes` is gpu_bytes: names are unique in the environment and among flags, and short in their section. */
static unsigned find_in_section(const char *section, const char *name)
{
	char full[OPTIONS_TEXT_MAX];
	const int n = snprintf(full, sizeof(full), "%s_%s", section, name);
	unsigned i = (size_t)n < sizeof(full) ? option_find(full, (size_t)n) : OPTION_N;

	return i == OPTION_N || strcmp(option_table[i].section, section)
		? option_find(name, strlen(name))
		: i;
}

static int in_option(struct reading *r, const char *section, const char *name, const char *value)
{
	unsigned i = find_in_section(section, name);

	if (i == OPTION_N)
		return fail_line(r, "%s is not a parameter; kvgated --help lists them", name);
	if (strcmp(option_table[i].section, section))
		return fail_line(r, "%s belongs under [%s]", name, option_table[i].section);
	if (r->o->given[i])
		return fail_line(r, "%s is given twice", name);
	r->o->given[i] = true;
	return set_value(r, &option_table[i], value, (char *)r->o + option_table[i].offset);
}

typedef int (*section_fn)(
	struct reading *r, const char *section, const char *name, const char *value);

/* What takes the values of [section]; *ret_name is behind the section's first word. NULL: failed. */
static section_fn section_kind(struct reading *r, const char *section, const char **ret_name)
{
	static const struct {
		const char *prefix;
		section_fn fn;
		size_t name_size;
	} kinds[] = {
		{"tenant ", in_tenant, OPTIONS_NAME_MAX},
		{"gate ", in_gate, OPTIONS_NAME_MAX},
		{"model ", in_model, OPTIONS_TEXT_MAX},
	};

	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++) {
		size_t prefix = strlen(kinds[i].prefix);

		if (strncmp(section, kinds[i].prefix, prefix))
			continue;
		*ret_name = section + prefix + strspn(section + prefix, " ");
		if (name_ok(*ret_name, kinds[i].name_size, kinds[i].fn == in_model))
			return kinds[i].fn;
		fail_line(r, "[%s]: a name has 1 to %zu letters, digits, '.', '_' and '-'", section,
			kinds[i].name_size - 1);
		return NULL;
	}
	for (unsigned i = 0; i < OPTION_N; i++)
		if (!strcmp(option_table[i].section, section)) {
			*ret_name = section;
			return in_option;
		}
	fail_line(r, "no section [%s]; kvgated --help lists them", section);
	return NULL;
}

static int on_value(void *userdata, const char *section, const char *name, const char *value)
{
	struct reading *r = userdata;
	char text[OPTIONS_TEXT_MAX * 2];
	size_t n = strlen(value);
	const char *of;
	section_fn fn = section_kind(r, section, &of);

	if (!fn)
		return 0;
	for (size_t i = 0; i + 1 < n; i++) /* inih knows `;` only */
		if (isspace((unsigned char)value[i]) && value[i + 1] == '#')
			n = i;
	while (n && isspace((unsigned char)value[n - 1]))
		n--;
	if (n >= sizeof(text))
		return fail_line(r, "%s: the value is too long", name);
	memcpy(text, value, n);
	text[n] = '\0';
	r->list = false;
	return fn(r, of, name, text);
}

/* A section is looked at where it begins: inih would pass over one without values. */
static void on_section(struct reading *r, const char *line)
{
	char section[OPTIONS_TEXT_MAX + 16];
	size_t n = strcspn(line + 1, "]");
	const char *of;
	section_fn fn;

	if (n >= sizeof(section)) {
		fail_line(r, "the name of the section is too long");
		return;
	}
	memcpy(section, line + 1, n);
	section[n] = '\0';
	fn = section_kind(r, section, &of);
	if (fn == in_tenant)
		tenant_slot(r, of);
	else if (fn == in_gate)
		gate_slot(r, of);
}

static char *read_line(char *line, int size, void *stream)
{
	struct reading *r = stream;
	size_t n, blanks;

	if (r->failed || !fgets(line, size, r->f))
		return NULL;
	r->line++;
	n = strlen(line);
	if (n + 1 == (size_t)size && line[n - 1] != '\n' && !feof(r->f)) {
		fail_line(r,
			"the line is longer than %d characters; lists may go on in an indented "
			"line",
			size - 2);
		return NULL;
	}
	blanks = strspn(line, " \t");
	if (line[blanks] == '[')
		on_section(r, line + blanks);
	if (!r->list || line[blanks] == '[' ||
		strchr(line, '=')) /* inih would go on with the last value */
		memmove(line, line + blanks, n + 1 - blanks);
	return line;
}

int options_read(struct options *o, FILE *f, const char *name, char *ret_why, size_t why_size)
{
	struct reading r = {.o = o, .f = f, .name = name, .why = ret_why, .why_size = why_size};
	int bad;

	/* inih passes the stream to read_line() and the userdata to on_value(): the same here */
	bad = ini_parse_stream(read_line, &r, on_value, &r);
	if (!r.failed && bad) {
		r.line = bad > 0 ? (unsigned)bad : r.line;
		fail_line(&r, "neither [section] nor `name = value` nor a comment");
	}
	if (!r.failed && ferror(f))
		fail_line(&r, "cannot be read");
	memset(o->given, 0, sizeof(o->given)); /* one source may override another, not itself */
	return r.failed ? -EINVAL : 0;
}
