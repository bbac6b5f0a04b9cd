/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attached: a client that lives as long as its test wants, while daemons come and go under it. Reads commands from
 * standard input, `VERB [SEED]`, and answers each with one line: what came of it, or the name of the error. What a block
 * holds follows from its seed, so whoever has put it, whoever reads it compares every byte; a difference ends the process.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/harness.h"

struct attached {
	struct kvg_client *client;
	struct kvg_layout *layout;
	struct kvg_pin pin; /* of hold */
	uint64_t seed;
};

static const char *error_name(int r)
{
	const char *name = strerrorname_np(-r);

	return name ? name : "?";
}

static const char *do_close(struct attached *a, uint64_t seed)
{
	(void)seed;
	kvg_close(a->client);
	*a = (struct attached){0};
	return "closed";
}

static const char *do_open(struct attached *a, uint64_t seed)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	int r;

	do_close(a, seed);
	o.resume_ms = 10000;
	r = kvg_open(&o, &a->client);
	if (r < 0)
		return error_name(r);
	a->layout = model_register(a->client, &model_small);
	return "open";
}

static struct kvg_key key_of(struct attached *a, uint64_t seed)
{
	struct kvg_key key;

	chain_keys(a->layout, &model_small, seed, 1, &key);
	return key;
}

static const char *do_put(struct attached *a, uint64_t seed)
{
	struct kvg_stage s;
	struct kvg_commit_result result = {0};
	struct kvg_commit item = {.stage = &s, .key = key_of(a, seed)};
	int r = (int)kvg_stage(a->layout, KVG_INPUT_SCORES, 1, &s);

	if (r < 0)
		return error_name(r);
	content_fill(&model_small, seed, &s);
	r = kvg_commit(a->client, &item, 1, &result);
	return r < 0 ? error_name(r) : kvg_code_name(result.code);
}

static const char *look(struct attached *a, uint64_t seed, struct kvg_pin *ret)
{
	struct kvg_key key = key_of(a, seed);
	int r = kvg_lookup_pin(a->layout, &key, 1.f, ret);

	if (r < 0)
		return r == -ENOENT ? "miss" : error_name(r);
	content_compare(&model_small, seed, a->layout, ret);
	return "same";
}

static const char *do_get(struct attached *a, uint64_t seed)
{
	struct kvg_pin pin;
	const char *found = look(a, seed, &pin);

	if (!strcmp(found, "same"))
		kvg_unpin(a->client, &pin, 1);
	return found;
}

static const char *do_hold(struct attached *a, uint64_t seed)
{
	a->seed = seed;
	return look(a, seed, &a->pin);
}

static const char *do_held(struct attached *a, uint64_t seed)
{
	(void)seed;
	content_compare(&model_small, a->seed, a->layout, &a->pin);
	return "same";
}

/* A round trip, for what a lookup in mapped memory cannot notice: whether somebody is there. */
static const char *do_ping(struct attached *a, uint64_t seed)
{
	struct kvg_stage s;
	int r = (int)kvg_stage(a->layout, KVG_INPUT_SCORES, 1, &s);

	(void)seed;
	if (r < 0)
		return error_name(r);
	kvg_abort(a->client, &s, 1);
	return "there";
}

static const struct {
	const char *verb;
	const char *(*run)(struct attached *a, uint64_t seed);
	bool needs_session;
} commands[] = {
	{"open", do_open, false},
	{"close", do_close, false},
	{"put", do_put, true},
	{"get", do_get, true},
	{"hold", do_hold, true},
	{"held", do_held, true},
	{"ping", do_ping, true},
};

static const char *run(struct attached *a, const char *verb, uint64_t seed)
{
	for (size_t i = 0; i < sizeof(commands) / sizeof(commands[0]); i++)
		if (!strcmp(commands[i].verb, verb))
			return commands[i].needs_session && !a->layout ? "no session"
								       : commands[i].run(a, seed);
	return "no such command";
}

int main(void)
{
	struct attached a = {0};
	char line[64], verb[16];
	unsigned long long seed;

	while (fgets(line, sizeof(line), stdin)) {
		seed = 0;
		if (sscanf(line, "%15s %llu", verb, &seed) < 1)
			continue;
		puts(run(&a, verb, seed));
		fflush(stdout);
	}
	do_close(&a, 0);
	return 0;
}
