/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Every numeric type is parsed into a double, so that one range check serves all of them: the largest integer that a
 * parameter may hold lies far below 2^53, and whatever is larger is out of range anyway. Default, min and max in the
 * table pass through the same parser as what a person writes.
 */
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/options.h"

#define RELOAD  true
#define RESTART false
const struct option_info option_table[OPTION_N] = {
#define OPTION(section, name, type, dflt, min, max, when, prose)                                   \
	{#section, #name, OPTION_##type, dflt, min, max, prose, when,                              \
		offsetof(struct options, name)},
#include "daemon/base/options.def"
};

static const struct {
	const char *name;
	double factor;
} units[] = {{"", 1}, {"B", 1}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40},
	{"K", 0x1p10}, {"M", 0x1p20}, {"G", 0x1p30}, {"T", 0x1p40}};

/* A decimal number and where it ends; not "inf", "nan", "0x1p3", which strtod() would take. */
static int parse_decimal(const char *text, bool fraction, double *ret, const char **ret_end)
{
	const char *p = text + (text[0] == '-'), *digits = p;
	char *end;

	while (isdigit((unsigned char)*p))
		p++;
	if (fraction && *p == '.' && isdigit((unsigned char)p[1]))
		for (p++; isdigit((unsigned char)*p); p++)
			;
	if (p == digits)
		return -EINVAL;
	if (*p == 'x' || *p == 'X' || *p == 'e' || *p == 'E')
		return -EINVAL;
	*ret = strtod(text, &end);
	*ret_end = p;
	return end == p && isfinite(*ret) ? 0 : -EINVAL;
}

static int parse_bytes(const char *text, uint64_t machine_bytes, double *ret)
{
	const char *end;
	double n;

	if (parse_decimal(text, true, &n, &end) < 0 || n < 0)
		return -EINVAL;
	while (*end == ' ')
		end++;
	if (!strcmp(end, "%")) {
		*ret = floor(n / 100 * (double)machine_bytes / 4096) * 4096;
		return 0;
	}
	for (size_t i = 0; i < sizeof(units) / sizeof(units[0]); i++)
		if (!strcmp(end, units[i].name)) {
			*ret = n * units[i].factor;
			return *ret == floor(*ret) ? 0 : -EINVAL;
		}
	return -EINVAL;
}

static int parse_ratio(const char *text, double *ret)
{
	const char *end;
	double n;

	if (parse_decimal(text, true, &n, &end) < 0)
		return -EINVAL;
	if (!strcmp(end, "%"))
		n /= 100;
	else if (*end)
		return -EINVAL;
	*ret = n;
	return 0;
}

static int parse_mode(const char *text, double *ret)
{
	char *end;
	unsigned long mode;

	if (!isdigit((unsigned char)text[0]))
		return -EINVAL;
	errno = 0;
	mode = strtoul(text, &end, 8);
	if (*end || errno)
		return -EINVAL;
	*ret = (double)mode;
	return 0;
}

/* The position of a word among others that are separated by blanks. */
static int parse_choice(const char *words, const char *text, double *ret)
{
	size_t n = strlen(text);

	for (unsigned i = 0; *words; i++) {
		size_t word = strcspn(words, " ");

		if (word == n && !memcmp(words, text, n)) {
			*ret = i;
			return 0;
		}
		words += word;
		words += strspn(words, " ");
	}
	return -EINVAL;
}

static int parse_bool(const char *text, double *ret)
{
	/* yes and no at even and odd places */
	int r = parse_choice("no yes false true off on 0 1", text, ret);

	if (r == 0)
		*ret = fmod(*ret, 2);
	return r;
}

int option_parse(const struct option_info *i, const char *text, uint64_t machine_bytes, double *ret)
{
	const char *end;

	switch (i->type) {
	case OPTION_BYTES:
		return parse_bytes(text, machine_bytes, ret);
	case OPTION_INT:
		return parse_decimal(text, false, ret, &end) < 0 || *end ? -EINVAL : 0;
	case OPTION_RATIO:
		return parse_ratio(text, ret);
	case OPTION_BOOL:
		return parse_bool(text, ret);
	case OPTION_MODE:
		return parse_mode(text, ret);
	case OPTION_CHOICE:
		return parse_choice(i->min, text, ret);
	case OPTION_TEXT:
		*ret = (double)strlen(text);
		return 0;
	}
	return -EINVAL;
}

void option_format_bytes(double bytes, char *ret, size_t size)
{
	static const char *const names[] = {"B", "KiB", "MiB", "GiB", "TiB"};
	unsigned unit = 0;

	while (unit < 4 && bytes >= 1024) {
		bytes /= 1024;
		unit++;
	}
	snprintf(ret, size, "%.*f%s", bytes == floor(bytes) ? 0 : 1, bytes, names[unit]);
}

static const char *expected(enum option_type type)
{
	switch (type) {
	case OPTION_BYTES:
		return "a size like 512MiB, 4GiB or 25% (of the machine's memory)";
	case OPTION_INT:
		return "a whole number";
	case OPTION_RATIO:
		return "a share like 0.9 or 90%";
	case OPTION_BOOL:
		return "yes or no";
	case OPTION_MODE:
		return "an octal mode like 0660";
	case OPTION_CHOICE:
		return "one of: ";
	case OPTION_TEXT:
		break;
	}
	return "a text";
}

static int out_of_range(const struct option_info *i, const char *text, uint64_t machine_bytes,
	char *ret_why, size_t why_size)
{
	char machine[32], of[64] = "";

	if (strchr(i->max, '%')) {
		option_format_bytes((double)machine_bytes, machine, sizeof(machine));
		snprintf(of, sizeof(of), " (of this machine's %s)", machine);
	}
	if (i->type == OPTION_TEXT)
		snprintf(ret_why, why_size, "%s has %zu characters: use %s to %s", i->name,
			strlen(text), i->min, i->max);
	else
		snprintf(ret_why, why_size, "%s = %s is out of range: use %s to %s%s", i->name,
			text, i->min, i->max, of);
	return -EINVAL;
}

static void store(const struct option_info *i, double v, const char *text, void *field)
{
	switch (i->type) {
	case OPTION_BYTES:
		*(uint64_t *)field = (uint64_t)v;
		break;
	case OPTION_INT:
		*(int64_t *)field = (int64_t)v;
		break;
	case OPTION_RATIO:
		*(double *)field = v;
		break;
	case OPTION_BOOL:
		*(bool *)field = v != 0;
		break;
	case OPTION_MODE:
		*(uint32_t *)field = (uint32_t)v;
		break;
	case OPTION_CHOICE:
		*(unsigned *)field = (unsigned)v;
		break;
	case OPTION_TEXT:
		memcpy(field, text, strlen(text) + 1);
		break;
	}
}

/* Of a text, min and max are its length. */
static void limits(
	const struct option_info *i, uint64_t machine_bytes, double *ret_min, double *ret_max)
{
	static const struct option_info length = {.type = OPTION_INT};
	const struct option_info *by = i->type == OPTION_TEXT ? &length : i;

	if (i->type == OPTION_CHOICE || i->type == OPTION_BOOL) {
		*ret_min = 0;
		*ret_max = HUGE_VAL;
		return;
	}
	if (option_parse(by, i->min, machine_bytes, ret_min) < 0 ||
		option_parse(by, i->max, machine_bytes, ret_max) < 0)
		assert(!"a limit in options.def that is not a value");
}

int option_set(const struct option_info *i, const char *text, uint64_t machine_bytes, void *field,
	char *ret_why, size_t why_size)
{
	double v, min, max;

	if (option_parse(i, text, machine_bytes, &v) < 0) {
		snprintf(ret_why, why_size, "%s = %s: use %s%s", i->name, text, expected(i->type),
			i->type == OPTION_CHOICE ? i->min : "");
		return -EINVAL;
	}
	limits(i, machine_bytes, &min, &max);
	if (v < min || v > max)
		return out_of_range(i, text, machine_bytes, ret_why, why_size);
	store(i, v, text, field);
	return 0;
}

void option_set_default(const struct option_info *i, uint64_t machine_bytes, void *field)
{
	double v, min, max;

	if (option_parse(i, i->dflt, machine_bytes, &v) < 0)
		assert(!"a default in options.def that is not a value");
	limits(i, machine_bytes, &min, &max);
	store(i, v > max ? max : v, i->dflt, field);
}
