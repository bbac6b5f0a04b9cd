/* SPDX-License-Identifier: Apache-2.0 */
/*
 * options: parameters from options.def - defaults, then file, then environment, then flags.
 * Thread: any; a loaded `struct options` is not changed any more. Locks: none. Blocks: reads a file.
 * Errors: -EINVAL and others, with a text that says where, what, and what to do.
 */
#ifndef KVGATE_DAEMON_BASE_OPTIONS_H
#define KVGATE_DAEMON_BASE_OPTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define OPTIONS_CONFIG_DEFAULT "/etc/kvgated/kvgated.conf"
#define OPTIONS_NAME_MAX                                                                           \
	64 /* of a tenant or a gate, with its end: both appear in logs and replies */
#define OPTIONS_TEXT_MAX 256 /* of any text value, with its end; a model's name */
#define OPTIONS_SECTIONS_MAX                                                                       \
	1024                 /* tenants, gates and models each: a file is written by a person */
#define OPTIONS_IDS_MAX 1024 /* uids or gids of one tenant */

enum option_type {
	OPTION_BYTES,
	OPTION_INT,
	OPTION_RATIO,
	OPTION_BOOL,
	OPTION_MODE,
	OPTION_TEXT,
	OPTION_CHOICE,
};

#define OPTION_FIELD_BYTES(name)  uint64_t name
#define OPTION_FIELD_INT(name)    int64_t name
#define OPTION_FIELD_RATIO(name)  double name
#define OPTION_FIELD_BOOL(name)   bool name
#define OPTION_FIELD_MODE(name)   uint32_t name
#define OPTION_FIELD_TEXT(name)   char name[OPTIONS_TEXT_MAX]
#define OPTION_FIELD_CHOICE(name) unsigned name /* position of the word in the table */

enum option_id {
#define OPTION(section, name, type, dflt, min, max, when, prose) OPTION_ID_##name,
#include "daemon/base/options.def"
	OPTION_N
};

/* What a tenant may have of each; of a [tenant NAME] section, or of everybody else. */
struct options_limits {
#define TENANT(key, type, option) OPTION_FIELD_##type(key);
#include "daemon/base/options.def"
};

struct options_ids {
	uint32_t *id;
	size_t n;
};

struct options_tenant {
	char name[OPTIONS_NAME_MAX];
	struct options_ids uids, gids;
	struct options_limits limits;
	uint32_t own; /* bits: limits that stand in the section */
};

struct options_gate {
	char name[OPTIONS_NAME_MAX];
	char file[OPTIONS_TEXT_MAX];
};

struct options_model {
	char name[OPTIONS_TEXT_MAX];
	double floor;                /* 0: the tenant's */
	char gate[OPTIONS_NAME_MAX]; /* what a client gets that asks for gate "auto"; "" = none */
};

enum options_action {
	OPTIONS_RUN,
	OPTIONS_HELP,
	OPTIONS_HELP_MDOC,
	OPTIONS_VERSION
};

struct options {
#define OPTION(section, name, type, dflt, min, max, when, prose) OPTION_FIELD_##type(name);
#include "daemon/base/options.def"
	enum options_action action;
	char config[OPTIONS_TEXT_MAX]; /* the file that was read, or "" */
	uint64_t machine_bytes;        /* what a % is of */
	struct options_limits limits;  /* of tenants without a section */
	struct options_tenant *tenants;
	struct options_gate *gates;
	struct options_model *models;
	size_t n_tenants, n_gates, n_models;
	bool given[OPTION_N]; /* while one file is read: each stands in it once */
};

/* Defaults only; options_read() and options_check() may follow. */
int options_new(struct options **ret);
struct options *options_free(struct options *o);

/* Everything a daemon does at start, and again on SIGHUP. argv[0] is skipped; envp as environ. */
int options_load(int argc, char *const *argv, char *const *envp, struct options **ret,
	char *ret_why, size_t why_size);

/* One file's contents; `name` is for messages. */
int options_read(struct options *o, FILE *f, const char *name, char *ret_why, size_t why_size);
/* What cannot be seen value by value; fills in the tenants' limits. */
int options_check(struct options *o, char *ret_why, size_t why_size);

/* The section that names this user or one of these groups (users first), or NULL. */
const struct options_tenant *options_tenant_of(
	const struct options *o, uid_t uid, const gid_t *gids, size_t n_gids);
const struct options_tenant *options_tenant_find(const struct options *o, const char *name);
const struct options_model *options_model_find(const struct options *o, const char *name);

/*
 * `o` is to follow `old` in a running daemon: what cannot change without a restart stays as it is in `old`. fn is called
 * for every parameter that differs.
 */
typedef void (*options_diff_fn)(void *userdata, const char *name, bool reload);
int options_follow(struct options *o, const struct options *old, options_diff_fn fn, void *userdata,
	char *ret_why, size_t why_size);

/* --help, and the same as mdoc for kvgated.conf(5). */
void options_help(FILE *to);
void options_help_mdoc(FILE *to);

/* ---- the table, for options*.c and their tests ---- */

struct option_info {
	const char *section, *name;
	enum option_type type;
	const char *dflt, *min, *max, *prose;
	bool reload;
	size_t offset;
};
extern const struct option_info option_table[OPTION_N];
/* '-' may stand for '_', letters may be of either case. OPTION_N: none. */
unsigned option_find(const char *name, size_t n);

enum {
#define TENANT(key, type, option) OPTION_TENANT_##key,
#include "daemon/base/options.def"
	OPTION_TENANT_N
};
struct option_tenant_info {
	const char *key;
	enum option_id option;
	size_t offset; /* in struct options_limits */
};
extern const struct option_tenant_info option_tenant_table[OPTION_TENANT_N];

/* Text to number: bytes, a count, a ratio, 0 or 1, a mode, the position of a word. -EINVAL. */
int option_parse(
	const struct option_info *i, const char *text, uint64_t machine_bytes, double *ret);
/* Parses, checks the range, stores into a field of the option's type. */
int option_set(const struct option_info *i, const char *text, uint64_t machine_bytes, void *field,
	char *ret_why, size_t why_size);
/* A default larger than this machine allows is lowered to what it does allow. */
void option_set_default(const struct option_info *i, uint64_t machine_bytes, void *field);
/* "256MiB" */
void option_format_bytes(double bytes, char *ret, size_t size);

#endif
