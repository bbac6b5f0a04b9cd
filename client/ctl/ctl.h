/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ctl: what the subcommands of kvgatectl share - options, the connection, output for people and for programs.
 * Thread: the only one. Locks: none. Blocks: on the daemon. Errors: an exit status; the text is already on stderr.
 */
#ifndef KVGATE_CLIENT_CTL_CTL_H
#define KVGATE_CLIENT_CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <json-c/json.h>

#include "client/include/kvgate.h"

enum {
	CTL_OK = 0,
	CTL_FAILED = 1,
	CTL_USAGE = 2
};

/* Options every subcommand takes, wherever they stand on the line. */
struct ctl_options {
	const char *socket;
	bool json;
	uint64_t timeout_ms;
};
extern struct ctl_options ctl_options;

enum ctl_kind {
	CTL_SWITCH,
	CTL_TEXT,
	CTL_NUMBER,
	CTL_SIZE,
	CTL_REAL
};
struct ctl_flag {
	const char *name; /* without the dashes */
	const char *arg;  /* what the help calls its value; NULL for switches */
	const char *prose;
	enum ctl_kind kind;
	void *to; /* bool, const char *, uint64_t (number and size), double */
};

/*
 * Takes flags (ended by a NULL name) and the common options out of argv; operands are moved to argv[1..*ret_n].
 * argv[0] is the subcommand's name. Negative: go on; otherwise the exit status (help was asked for, or an error was told).
 */
int ctl_parse(int argc, char **argv, const struct ctl_flag *flags, int *ret_n);

/* A connection for tools, or NULL with the reason told. */
struct kvg_client *ctl_open(void);
/* Tells why a call failed and what to do; returns CTL_FAILED. */
int ctl_failed(const struct kvg_client *c, int r, const char *what);
/* Tells what is wrong with the command line; returns CTL_USAGE. */
int ctl_usage(const char *command, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- format.c ---- */

struct ctl_text {
	char s[32];
};
struct ctl_text ctl_bytes(double n);              /* "12.3 MiB" */
struct ctl_text ctl_count(double n);              /* "12.3k" */
struct ctl_text ctl_percent(double share);        /* "12.3 %" */
int ctl_parse_size(const char *s, uint64_t *ret); /* "64MiB", "1.5G", "4096"; -EINVAL */
/* A bar of `width` cells, `share` of them filled; plain ASCII. */
void ctl_bar(char *ret, size_t size, unsigned width, double share);
const char *ctl_tier(uint32_t tier);
const char *ctl_event(int kind);

/* Takes the object, prints it (pretty, or on one line), frees it. */
void ctl_json(struct json_object *o);
void ctl_json_line(struct json_object *o);
struct json_object *ctl_json_real(double n);
struct json_object *ctl_json_key(const struct kvg_key *k);
struct json_object *ctl_json_layout(const struct kvg_layout_entry *l);
struct json_object *ctl_json_block(const struct kvg_block_entry *b);

/* ---- counters.c: a snapshot of every counter ---- */

struct ctl_counter {
	char name[64], tenant[64], model[128], tier[16];
	int plane;
	double value;
};
struct ctl_counters {
	struct ctl_counter *c;
	size_t n, size;
};
int ctl_counters_read(struct kvg_client *c, bool all, struct ctl_counters *ret);
void ctl_counters_fini(struct ctl_counters *s);
/* Sum over every label; plane -1: over all planes too. */
double ctl_counters_sum(const struct ctl_counters *s, const char *name, int plane);
/* The same, of one tier: "host", "disk". */
double ctl_counters_tier(const struct ctl_counters *s, const char *name, const char *tier);

#define COMMAND(name, operands, prose) int ctl_##name(int argc, char **argv);
#include "client/ctl/commands.def"
#undef COMMAND

#endif
