/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A scope is one (tenant, model) with room for every counter and every split. Who counts keeps the scope's pointer, so
 * that counting is one addition; scopes are found by name only when a tenant or a layout is made. They stay until their
 * tenant is forgotten: a counter that only grows may not start again at zero while somebody watches it.
 */
#include "daemon/base/counters.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct counter_scope {
	struct counter_scope *next;
	uint64_t used; /* bits of counters that were ever written: most of a scope never is */
	int64_t value[COUNTER_N][COUNTER_SUBS];
	const char *model; /* behind the tenant's name */
	char tenant[];
};

struct counters {
	struct counter_scope *first, **end;
};

enum kind {
	COUNTER,
	GAUGE
};
enum split {
	NONE = COUNTER_SPLIT_NONE,
	TIER = COUNTER_SPLIT_TIER,
	PLANE = COUNTER_SPLIT_PLANE
};

static const struct {
	const char *name, *prose;
	enum kind kind;
	enum split split;
} table[COUNTER_N] = {
#define COUNTER(id, name, kind, split, prose) [COUNTER_##id] = {name, prose, kind, split},
#include "daemon/base/counters.def"
#undef COUNTER
};

static_assert(COUNTER_N <= 64, "counter_scope.used has a bit for each");

int counters_new(struct counters **ret)
{
	struct counters *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->end = &c->first;
	*ret = c;
	return 0;
}

struct counters *counters_free(struct counters *c)
{
	if (!c)
		return NULL;
	while (c->first) {
		struct counter_scope *s = c->first;

		c->first = s->next;
		free(s);
	}
	free(c);
	return NULL;
}

int counters_scope(
	struct counters *c, const char *tenant, const char *model, struct counter_scope **ret)
{
	size_t tenant_size = strlen(tenant) + 1, model_size = strlen(model) + 1;
	struct counter_scope *s;

	for (s = c->first; s; s = s->next)
		if (!strcmp(s->tenant, tenant) && !strcmp(s->model, model)) {
			*ret = s;
			return 0;
		}
	s = calloc(1, sizeof(*s) + tenant_size + model_size);
	if (!s)
		return -ENOMEM;
	memcpy(s->tenant, tenant, tenant_size);
	s->model = memcpy(s->tenant + tenant_size, model, model_size);
	*c->end = s;
	c->end = &s->next;
	*ret = s;
	return 0;
}

void counters_forget(struct counters *c, const char *tenant)
{
	struct counter_scope **at = &c->first;

	while (*at) {
		struct counter_scope *s = *at;

		if (strcmp(s->tenant, tenant)) {
			at = &s->next;
			continue;
		}
		*at = s->next;
		free(s);
	}
	c->end = at;
}

static int64_t *slot(struct counter_scope *s, enum counter_id id, unsigned sub)
{
	assert(id < COUNTER_N && sub < COUNTER_SUBS);
	assert(sub == 0 || table[id].split != NONE);
	s->used |= 1ull << id;
	return &s->value[id][sub];
}

void counter_add(struct counter_scope *s, enum counter_id id, unsigned sub, int64_t n)
{
	*slot(s, id, sub) += n;
}

void counter_set(struct counter_scope *s, enum counter_id id, unsigned sub, int64_t value)
{
	*slot(s, id, sub) = value;
}

int64_t counter_get(const struct counter_scope *s, enum counter_id id, unsigned sub)
{
	assert(id < COUNTER_N && sub < COUNTER_SUBS);
	return s->value[id][sub];
}

static void each_sub(
	const struct counter_scope *s, enum counter_id id, counter_fn fn, void *userdata)
{
	bool split = table[id].split != NONE;

	for (unsigned sub = 0; sub < (split ? COUNTER_SUBS : 1); sub++)
		if (s->value[id][sub])
			fn(userdata, id, s->tenant, s->model, split ? (int)sub : -1,
				s->value[id][sub]);
}

void counters_each(const struct counters *c, const char *tenant, counter_fn fn, void *userdata)
{
	for (const struct counter_scope *s = c->first; s; s = s->next) {
		if (tenant && strcmp(s->tenant, tenant))
			continue;
		for (uint64_t left = s->used; left; left &= left - 1)
			each_sub(s, (enum counter_id)__builtin_ctzll(left), fn, userdata);
	}
}

const char *counter_name(enum counter_id id)
{
	return table[id].name;
}

const char *counter_prose(enum counter_id id)
{
	return table[id].prose;
}

int counter_is_gauge(enum counter_id id)
{
	return table[id].kind == GAUGE;
}

enum counter_split counter_split(enum counter_id id)
{
	return (enum counter_split)table[id].split;
}
