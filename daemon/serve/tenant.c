/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tenant is made when the first of its sessions says hello. It stays when the last one is gone, since its blocks do; when it
 * has none of these either and others need its place, it is forgotten. Its name is that
 * of the [tenant NAME] section that names the user or a group of his, else uid-UID, so that users whom nobody
 * configured are kept apart.
 */
#include "daemon/serve/tenant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"

static void set_policy(struct tenant *t, const char *model, const struct cache_policy *p)
{
	char why[200];

	if (cache_policy_configure(t->cache, model, p, why, sizeof(why)))
		log_warning("policy not taken over", "tenant=%s model=\"%s\" why=\"%s\"", t->name,
			model, why);
}

/* What was set at run time stays until the configuration says something new; `was`: the last one, NULL at first. */
static void apply_policy(struct tenant *t, const struct options *o, const struct options *was)
{
	const struct cache_policy all = {
		.high_watermark = (float)o->high_watermark,
		.low_watermark = (float)o->low_watermark,
	};

	set_policy(t, "", &all);
	for (size_t i = 0; was && i < was->n_models; i++) {
		const struct options_model *now = options_model_find(o, was->models[i].name);

		if (was->models[i].floor > 0 && (!now || now->floor <= 0))
			cache_policy_forget(t->cache, was->models[i].name);
	}
	for (size_t i = 0; i < o->n_models; i++) {
		const struct options_model *m = &o->models[i];
		const struct cache_policy one = {.floor = (float)m->floor};

		if (m->floor > 0)
			set_policy(t, m->name, &one);
	}
}

static int apply(
	struct tenant *t, struct cache *c, const struct options *o, const struct options *was)
{
	const struct options_tenant *section = options_tenant_find(o, t->name);
	const struct options_limits *l = section ? &section->limits : &o->limits;
	const struct cache_limits limits = {
		.host_bytes = l->host_bytes, .disk_bytes = l->disk_bytes, .floor = (float)l->floor};
	int r = 0;

	if (t->cache)
		cache_tenant_limit(t->cache, &limits);
	else
		r = cache_tenant_open(c, t->name, &limits, &t->cache);
	if (r < 0)
		return r;
	account_set_limit(&t->account, ACCOUNT_SESSIONS, (uint64_t)l->sessions);
	account_set_limit(&t->account, ACCOUNT_STAGING, l->staging_bytes);
	account_set_limit(&t->account, ACCOUNT_PINS, (uint64_t)l->pins);
	account_set_limit(&t->account, ACCOUNT_IN_FLIGHT, (uint64_t)l->in_flight);
	account_set_limit(&t->account, ACCOUNT_SUBSCRIPTIONS, (uint64_t)l->subscriptions);
	account_set_limit(&t->account, ACCOUNT_REPLIES, l->reply_bytes);
	t->session_pins = (uint32_t)l->session_pins;
	t->share_of_pins = (uint32_t)(l->pins / 2 / l->sessions);
	account_set_limit(&t->account, ACCOUNT_PAGE_PINS,
		(uint64_t)l->pins - (uint64_t)t->share_of_pins * (uint64_t)l->sessions);
	apply_policy(t, o, was);
	return 0;
}

struct tenant *tenants_find(const struct tenants *ts, const char *name)
{
	for (struct tenant *t = ts->first; t; t = t->next)
		if (!strcmp(t->name, name))
			return t;
	return NULL;
}

static void tenant_free(struct tenant *t)
{
	account_fini(&t->account);
	free(t);
}

static bool idle(const struct tenant *t)
{
	return !t->users && account_idle(&t->account) && cache_tenant_idle(t->cache);
}

/* The one that has been there longest of those that nobody would miss. */
static bool forget_one(struct tenants *ts, struct counters *counters)
{
	struct tenant **found = NULL, *t;

	for (struct tenant **at = &ts->first; *at; at = &(*at)->next)
		if (idle(*at))
			found = at;
	if (!found)
		return false;
	t = *found;
	*found = t->next;
	ts->n--;
	log_info("tenant forgotten", "tenant=%s why=\"it has neither sessions nor blocks\"",
		t->name);
	cache_tenant_close(t->cache);
	counters_forget(counters, t->name);
	tenant_free(t);
	return true;
}

static int add(struct tenants *ts, struct cache *c, struct counters *counters,
	const struct options *o, const char *name, struct tenant **ret)
{
	struct tenant *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return -ENOMEM;
	snprintf(t->name, sizeof(t->name), "%s", name);
	r = counters_scope(counters, t->name, "", &t->scope);
	account_init(&t->account, t->name, t->scope);
	if (r == 0)
		r = apply(t, c, o, NULL);
	if (r < 0) {
		free(t);
		return r;
	}
	t->next = ts->first;
	ts->first = t;
	ts->n++;
	*ret = t;
	return 0;
}

int tenants_get(struct tenants *ts, struct cache *c, struct counters *counters,
	const struct options *o, const struct peer *p, bool always, struct tenant **ret,
	char *ret_why, size_t why_size)
{
	const struct options_tenant *section = options_tenant_of(o, p->uid, p->gids, p->n_gids);
	char name[OPTIONS_NAME_MAX];
	struct tenant *t;
	int r;

	if (section)
		memcpy(name, section->name, sizeof(name));
	else
		snprintf(name, sizeof(name), "uid-%u", (unsigned)p->uid);
	t = tenants_find(ts, name);
	if (t) {
		*ret = t;
		return 0;
	}
	if (ts->n >= o->max_tenants && !forget_one(ts, counters) && !always) {
		snprintf(ret_why, why_size,
			"%lld tenants have sessions or blocks: raise max_tenants in kvgated.conf, "
			"or purge what one of them left (kvgatectl purge --all --tenant NAME)",
			(long long)ts->n);
		return -EDQUOT;
	}
	r = add(ts, c, counters, o, name, ret);
	if (r < 0)
		snprintf(ret_why, why_size, "tenant %s: %s", name, strerror(-r));
	return r;
}

int tenants_adopt(
	struct tenants *ts, struct cache *c, struct counters *counters, const struct options *o)
{
	struct cache_tenant *one = NULL;
	struct tenant *t;
	int r = 0;

	while (r == 0 && (one = cache_tenant_next(c, one)))
		r = add(ts, c, counters, o, cache_tenant_name(one), &t);
	return r;
}

void tenants_reload(
	struct tenants *ts, struct cache *c, const struct options *o, const struct options *was)
{
	for (struct tenant *t = ts->first; t; t = t->next) {
		int r = apply(t, c, o, was);

		if (r < 0)
			log_warning("limits not taken over", "tenant=%s error=\"%s\"", t->name,
				strerror(-r));
	}
}

void tenants_fini(struct tenants *ts)
{
	while (ts->first) {
		struct tenant *t = ts->first;

		ts->first = t->next;
		tenant_free(t);
	}
	ts->n = 0;
}
