/* SPDX-License-Identifier: Apache-2.0 */
/* Hello: versions and features, and what a session is given to read with - the index, and a pin page of its own. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/serve/away.h"
#include "daemon/serve/request.h"

/* Bits of optional behaviour that this daemon knows; none exist in version 1. */
#define FEATURES 0ull

#ifndef KVG_VERSION
#define KVG_VERSION "0"
#endif

struct hello_args {
	uint64_t features;
	bool control;
	uint32_t pins;
	uint64_t resume;
};

int prep_hello(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Hello *m = q->hello;
	struct hello_args *a = r->args = request_new(r, 1, struct hello_args);
	char *client;

	if (m->version_min > KVG_PROTOCOL_VERSION || m->version_max < KVG_PROTOCOL_VERSION)
		return request_refuse(r, KVG_CODE_BAD_VERSION,
			"the client speaks versions %u to %u, the daemon %u; update the older side",
			m->version_min, m->version_max, KVG_PROTOCOL_VERSION);
	client = request_text(r, "client", m->client, REQUEST_NAME_MAX);
	if (!client)
		return KVG_CODE_BAD_ARGUMENT;
	for (char *quote = client; (quote = strchr(quote, '"'));)
		*quote = '\''; /* it stands in quotes in the log */
	snprintf(r->session->client, sizeof(r->session->client), "%s", client);
	a->features = m->features & FEATURES;
	a->control = m->control;
	a->pins = m->pins;
	a->resume = m->resume;
	if (a->resume && a->control)
		return request_refuse(
			r, KVG_CODE_BAD_ARGUMENT, "a control session has nothing to resume");
	return KVG_CODE_OK;
}

/* From a greeting to a session of its tenant. */
static int admit(struct request *r)
{
	struct session *s = r->session;
	struct server *server = s->server;
	const struct options *o = server->parts.options;
	int error;

	if (s->server->n_sessions > o->max_sessions)
		return request_refuse(r, KVG_CODE_QUOTA,
			"%lld sessions are open; raise max_sessions in kvgated.conf",
			(long long)o->max_sessions);
	error = tenants_get(&server->tenants, server->parts.cache, server->parts.counters, o,
		&s->peer, s->admin, &r->tenant, r->why, sizeof(r->why));
	if (error == -EDQUOT)
		return KVG_CODE_QUOTA;
	if (error < 0)
		return request_errno(r, error);
	session_greeted(s, r->tenant);
	if (charge_add(&s->presence, &r->tenant->account, ACCOUNT_SESSIONS, 1) < 0)
		return request_over_quota(r, ACCOUNT_SESSIONS);
	return KVG_CODE_OK;
}

/*
 * Every session has a share of the tenant's pins to itself; what it wants beyond that comes from what is not shared out, as
 * long as there is any. So one that asks for everything leaves the next ones enough to work with.
 */
static int grant_pins(struct request *r, uint32_t wanted, uint32_t *ret)
{
	struct tenant *t = r->tenant;
	const uint64_t left = account_left(&t->account, ACCOUNT_PAGE_PINS);
	uint64_t n = wanted ? wanted : t->session_pins;

	if (n > t->share_of_pins + left)
		n = t->share_of_pins + left;
	if (n == 0)
		n = 1;
	if (n > t->share_of_pins &&
		charge_add(&r->session->page_pins, &t->account, ACCOUNT_PAGE_PINS,
			n - t->share_of_pins) < 0)
		return request_over_quota(r, ACCOUNT_PAGE_PINS);
	*ret = (uint32_t)n;
	return KVG_CODE_OK;
}

/* What a session that reads needs: the index and its own pin page. */
static int attach(struct request *r, uint32_t wanted, uint32_t *ret_pins)
{
	struct session *s = r->session;
	int error, code = grant_pins(r, wanted, ret_pins);

	if (code)
		return code;
	error = pinpage_attach(&s->pinpage, r->tenant->cache, *ret_pins);
	if (error < 0)
		return request_errno(r, error);
	away_keep(s);
	return KVG_CODE_OK;
}

static int open_session(struct request *r, const struct hello_args *a, uint32_t *ret_pins)
{
	struct session *s = r->session;
	int code = a->resume ? away_resume(r, a->resume) : admit(r);

	if (!code && a->resume)
		*ret_pins = s->pinpage.page.n_pins;
	else if (!code && !a->control)
		code = attach(r, a->pins, ret_pins);
	if (code || a->control)
		return code;
	r->fds[r->n_fds++] = cache_tenant_index_fd(r->tenant->cache);
	r->fds[r->n_fds++] = s->pinpage.fd;
	return KVG_CODE_OK;
}

int run_hello(struct request *r)
{
	const struct hello_args *a = r->args;
	struct session *s = r->session;
	struct tenant *t;
	Kvgate__V1__HelloReply *m = request_new(r, 1, Kvgate__V1__HelloReply);
	int code;

	kvgate__v1__hello_reply__init(m);
	code = open_session(r, a, &m->pins);
	if (code)
		return code;
	t = r->tenant;
	s->control = a->control;
	s->state = SESSION_OPEN;
	m->version = KVG_PROTOCOL_VERSION;
	m->features = a->features;
	m->daemon = (char *)(uintptr_t) "kvgated " KVG_VERSION;
	m->tenant = t->name;
	m->session = s->id;
	m->staging_bytes = t->account.limit[ACCOUNT_STAGING];
	m->admin = s->admin;
	r->reply->body_case = KVGATE__V1__REPLY__BODY_HELLO;
	r->reply->hello = m;
	log_debug("session opens", "session=%llu tenant=%s pid=%d client=\"%s\"",
		(unsigned long long)s->id, t->name, (int)s->peer.pid, s->client);
	return KVG_CODE_OK;
}
