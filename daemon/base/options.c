/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three sources write into one struct, each over the one before: file, environment, flags. They differ in how a name
 * is spelled and in what a message calls the place; the value goes through option_set() in all of them.
 */
#include "daemon/base/options.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/machine.h"

#define ENV_PREFIX "KVGATED_"

/* ---- names ---- */

const struct option_tenant_info option_tenant_table[OPTION_TENANT_N] = {
#define TENANT(key, type, option) {#key, OPTION_ID_##option, offsetof(struct options_limits, key)},
#include "daemon/base/options.def"
};
static_assert(OPTION_TENANT_N <= 32, "options_tenant.own has a bit for each");

unsigned option_find(const char *name, size_t n)
{
	for (unsigned i = 0; i < OPTION_N; i++) {
		const char *known = option_table[i].name;
		size_t at = 0;

		while (at < n && known[at] &&
			(tolower((unsigned char)name[at]) == known[at] ||
				(name[at] == '-' && known[at] == '_')))
			at++;
		if (at == n && !known[at])
			return i;
	}
	return OPTION_N;
}

static int fail(char *ret_why, size_t why_size, const char *place, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int fail(char *ret_why, size_t why_size, const char *place, const char *fmt, ...)
{
	size_t n = (size_t)snprintf(ret_why, why_size, "%s: ", place);
	va_list args;

	va_start(args, fmt);
	if (n < why_size)
		vsnprintf(ret_why + n, why_size - n, fmt, args);
	va_end(args);
	return -EINVAL;
}

/* ---- environment and flags ---- */

static int set_from(struct options *o, unsigned i, const char *text, const char *place,
	char *ret_why, size_t why_size)
{
	char why[400];

	if (option_set(&option_table[i], text, o->machine_bytes, (char *)o + option_table[i].offset,
		    why, sizeof(why)) < 0)
		return fail(ret_why, why_size, place, "%s", why);
	return 0;
}

static int read_environment(struct options *o, char *const *envp, char *ret_why, size_t why_size)
{
	for (; *envp; envp++) {
		const char *name = *envp + strlen(ENV_PREFIX), *eq = strchr(*envp, '=');
		unsigned i;
		int r;

		if (strncmp(*envp, ENV_PREFIX, strlen(ENV_PREFIX)) || !eq)
			continue;
		i = option_find(name, (size_t)(eq - name));
		if (i == OPTION_N)
			return fail(ret_why, why_size, "environment",
				"%.*s is not a parameter; kvgated --help lists them",
				(int)(eq - *envp), *envp);
		r = set_from(o, i, eq + 1, "environment", ret_why, why_size);
		if (r < 0)
			return r;
	}
	return 0;
}

struct flag {
	const char *name, *value; /* name without dashes; value NULL: none given */
	size_t name_length;
};

static bool is(const struct flag *f, const char *name)
{
	return f->name_length == strlen(name) && !memcmp(f->name, name, f->name_length);
}

/* The flag at argv[*at], which moves past it and its value. */
static int next_flag(
	int argc, char *const *argv, int *at, struct flag *ret, char *ret_why, size_t why_size)
{
	static const char *const alone[] = {"help", "help-mdoc", "version"};
	const char *arg = argv[(*at)++], *eq;

	*ret = (struct flag){0};
	if (strncmp(arg, "--", 2) || !arg[2])
		return fail(
			ret_why, why_size, arg, "flags begin with --; kvgated --help lists them");
	eq = strchr(arg, '=');
	*ret = (struct flag){
		.name = arg + 2,
		.name_length = eq ? (size_t)(eq - arg - 2) : strlen(arg + 2),
		.value = eq ? eq + 1 : NULL,
	};
	for (size_t i = 0; i < sizeof(alone) / sizeof(alone[0]); i++)
		if (!strcmp(ret->name, alone[i]))
			return 0;
	if (!is(ret, "config") && option_find(ret->name, ret->name_length) == OPTION_N)
		return fail(ret_why, why_size, arg, "no such flag; kvgated --help lists them");
	if (!ret->value && *at < argc)
		ret->value = argv[(*at)++];
	if (!ret->value)
		return fail(ret_why, why_size, arg, "needs a value");
	return 0;
}

/* First round: which file and what to do at all. Second round: the parameters. */
static int read_flags(struct options *o, int argc, char *const *argv, bool parameters,
	char *ret_why, size_t why_size)
{
	for (int at = 1; at < argc;) {
		const char *arg = argv[at];
		struct flag f;
		unsigned i;
		int r = next_flag(argc, argv, &at, &f, ret_why, why_size);

		if (r < 0)
			return r;
		if (is(&f, "config")) {
			if (strlen(f.value) >= sizeof(o->config))
				return fail(ret_why, why_size, arg, "the path is too long");
			memcpy(o->config, f.value, strlen(f.value) + 1);
			continue;
		}
		if (!f.value) {
			o->action = is(&f, "help")  ? OPTIONS_HELP
				: is(&f, "version") ? OPTIONS_VERSION
						    : OPTIONS_HELP_MDOC;
			continue;
		}
		if (!parameters)
			continue;
		i = option_find(f.name, f.name_length);
		r = set_from(o, i, f.value, arg, ret_why, why_size);
		if (r < 0)
			return r;
	}
	return 0;
}

/* ---- whole ---- */

int options_new(struct options **ret)
{
	struct options *o = calloc(1, sizeof(*o));

	if (!o)
		return -ENOMEM;
	o->machine_bytes = machine_memory();
	for (unsigned i = 0; i < OPTION_N; i++)
		option_set_default(
			&option_table[i], o->machine_bytes, (char *)o + option_table[i].offset);
	*ret = o;
	return 0;
}

struct options *options_free(struct options *o)
{
	if (!o)
		return NULL;
	for (size_t i = 0; i < o->n_tenants; i++) {
		free(o->tenants[i].uids.id);
		free(o->tenants[i].gids.id);
	}
	free(o->tenants);
	free(o->gates);
	free(o->models);
	free(o);
	return NULL;
}

static size_t type_size(enum option_type t)
{
	switch (t) {
	case OPTION_BYTES:
	case OPTION_INT:
	case OPTION_RATIO:
		return 8;
	case OPTION_BOOL:
		return sizeof(bool);
	case OPTION_MODE:
	case OPTION_CHOICE:
		return 4;
	case OPTION_TEXT:
		break;
	}
	return OPTIONS_TEXT_MAX;
}

/* What the section does not say, [limits] and [memory] do. */
static void inherit(const struct options *o, struct options_limits *l, uint32_t own)
{
	for (size_t i = 0; i < OPTION_TENANT_N; i++) {
		const struct option_info *info = &option_table[option_tenant_table[i].option];

		if (!(own & 1u << i))
			memcpy((char *)l + option_tenant_table[i].offset,
				(const char *)o + info->offset, type_size(info->type));
	}
	if (!l->host_bytes || l->host_bytes > o->host_bytes)
		l->host_bytes = o->host_bytes;
}

static bool has_id(const struct options_ids *ids, uint32_t id)
{
	for (size_t i = 0; i < ids->n; i++)
		if (ids->id[i] == id)
			return true;
	return false;
}

/* An id that two tenants claim; true when there is one. */
static bool claimed_twice(const struct options_ids *a, const struct options_ids *b, uint32_t *ret)
{
	for (size_t i = 0; i < a->n; i++)
		if (has_id(b, a->id[i])) {
			*ret = a->id[i];
			return true;
		}
	return false;
}

/*
 * uid-N is the tenant of user N where no section names him (daemon/serve/tenant.c). A section may set its limits, but
 * anybody else in it would share that user's memory.
 */
static int check_tenant_name(
	const struct options_tenant *t, const char *place, char *ret_why, size_t why_size)
{
	const size_t digits = strncmp(t->name, "uid-", 4) ? 0 : strspn(t->name + 4, "0123456789");
	char own[OPTIONS_NAME_MAX];

	if (!digits || t->name[4 + digits])
		return 0;
	for (size_t i = 0; i < t->uids.n; i++) {
		snprintf(own, sizeof(own), "uid-%u", (unsigned)t->uids.id[i]);
		if (strcmp(own, t->name))
			return fail(ret_why, why_size, place,
				"[tenant %s] has user %u: only user %s may be in it, or choose "
				"another name",
				t->name, (unsigned)t->uids.id[i], t->name + 4);
	}
	if (t->gids.n)
		return fail(ret_why, why_size, place,
			"[tenant %s] has group %u: only user %s may be in it, or choose another "
			"name",
			t->name, (unsigned)t->gids.id[0], t->name + 4);
	return 0;
}

static int check_tenants(const struct options *o, const char *place, char *ret_why, size_t why_size)
{
	for (size_t i = 0; i < o->n_tenants; i++) {
		int r = check_tenant_name(&o->tenants[i], place, ret_why, why_size);

		if (r < 0)
			return r;
	}
	for (size_t i = 0; i < o->n_tenants; i++)
		for (size_t k = i + 1; k < o->n_tenants; k++) {
			const struct options_tenant *a = &o->tenants[i], *b = &o->tenants[k];
			bool user = true;
			uint32_t id;

			if (!claimed_twice(&a->uids, &b->uids, &id)) {
				user = false;
				if (!claimed_twice(&a->gids, &b->gids, &id))
					continue;
			}
			return fail(ret_why, why_size, place,
				"[tenant %s] and [tenant %s] both have %s %u: whose is its memory?",
				a->name, b->name, user ? "user" : "group", (unsigned)id);
		}
	return 0;
}

static int check_sections(
	const struct options *o, const char *place, char *ret_why, size_t why_size)
{
	for (size_t i = 0; i < o->n_gates; i++)
		if (!o->gates[i].file[0])
			return fail(ret_why, why_size, place, "[gate %s] has no file",
				o->gates[i].name);
	for (size_t i = 0; i < o->n_models; i++) {
		bool known = !o->models[i].gate[0];

		for (size_t g = 0; g < o->n_gates; g++)
			known |= !strcmp(o->models[i].gate, o->gates[g].name);
		if (!known)
			return fail(ret_why, why_size, place,
				"[model %s] names gate %s: there is no [gate %s]",
				o->models[i].name, o->models[i].gate, o->models[i].gate);
	}
	return 0;
}

int options_check(struct options *o, char *ret_why, size_t why_size)
{
	const char *place = o->config[0] ? o->config : "options";
	int r;

	if (o->segment_bytes & (o->segment_bytes - 1))
		return fail(ret_why, why_size, place,
			"segment_bytes is not a power of two: use 64MiB, 128MiB, 256MiB ...");
	if (o->low_watermark > o->high_watermark)
		return fail(ret_why, why_size, place,
			"low_watermark = %g is above high_watermark = %g: lower it",
			o->low_watermark, o->high_watermark);
	inherit(o, &o->limits, 0);
	for (size_t i = 0; i < o->n_tenants; i++)
		inherit(o, &o->tenants[i].limits, o->tenants[i].own);
	r = check_tenants(o, place, ret_why, why_size);
	return r < 0 ? r : check_sections(o, place, ret_why, why_size);
}

static int read_file(struct options *o, char *ret_why, size_t why_size)
{
	bool asked = o->config[0];
	const char *path = asked ? o->config : OPTIONS_CONFIG_DEFAULT;
	FILE *f = fopen(path, "re");
	int r;

	if (!f && errno == ENOENT && !asked)
		return 0;
	if (!f) {
		r = -errno;
		fail(ret_why, why_size, path, "%s", strerror(-r));
		return r;
	}
	if (!asked)
		strcpy(o->config, OPTIONS_CONFIG_DEFAULT);
	r = options_read(o, f, path, ret_why, why_size);
	fclose(f);
	return r;
}

int options_load(int argc, char *const *argv, char *const *envp, struct options **ret,
	char *ret_why, size_t why_size)
{
	struct options *o;
	int r = options_new(&o);

	if (r < 0) {
		fail(ret_why, why_size, "options", "out of memory");
		return r;
	}
	r = read_flags(o, argc, argv, false, ret_why, why_size);
	if (r == 0 && o->action == OPTIONS_RUN) {
		r = read_file(o, ret_why, why_size);
		if (r == 0)
			r = read_environment(o, envp, ret_why, why_size);
		if (r == 0)
			r = read_flags(o, argc, argv, true, ret_why, why_size);
		if (r == 0)
			r = options_check(o, ret_why, why_size);
	}
	if (r < 0) {
		options_free(o);
		return r;
	}
	*ret = o;
	return 0;
}

/* ---- looking things up ---- */

const struct options_tenant *options_tenant_of(
	const struct options *o, uid_t uid, const gid_t *gids, size_t n_gids)
{
	for (size_t i = 0; i < o->n_tenants; i++)
		if (has_id(&o->tenants[i].uids, uid))
			return &o->tenants[i];
	for (size_t i = 0; i < o->n_tenants; i++)
		for (size_t g = 0; g < n_gids; g++)
			if (has_id(&o->tenants[i].gids, gids[g]))
				return &o->tenants[i];
	return NULL;
}

const struct options_tenant *options_tenant_find(const struct options *o, const char *name)
{
	for (size_t i = 0; i < o->n_tenants; i++)
		if (!strcmp(o->tenants[i].name, name))
			return &o->tenants[i];
	return NULL;
}

const struct options_model *options_model_find(const struct options *o, const char *name)
{
	for (size_t i = 0; i < o->n_models; i++)
		if (!strcmp(o->models[i].name, name))
			return &o->models[i];
	return NULL;
}

int options_follow(struct options *o, const struct options *old, options_diff_fn fn, void *userdata,
	char *ret_why, size_t why_size)
{
	for (unsigned i = 0; i < OPTION_N; i++) {
		const struct option_info *info = &option_table[i];
		char *now = (char *)o + info->offset;
		const char *before = (const char *)old + info->offset;
		bool differ = info->type == OPTION_TEXT
			? strcmp(now, before) != 0
			: memcmp(now, before, type_size(info->type)) != 0;

		if (!differ)
			continue;
		fn(userdata, info->name, info->reload);
		if (!info->reload)
			memcpy(now, before, type_size(info->type));
	}
	return options_check(o, ret_why, why_size);
}
