/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Subscribe, and the delivery of events. An event is a reply with id 0. A subscriber that reads too slowly loses events
 * and nothing else: an event that finds no room beside replies (outbox_offer) is counted, and how many are missing is
 * said before the next one that fits, or when everything that waited is read.
 */
#include <string.h>

#include "daemon/serve/request.h"

#define EVENTS_ALL                                                                                 \
	(1u << KVGATE__V1__EVENT_KIND__EVENT_COMMITTED |                                           \
		1u << KVGATE__V1__EVENT_KIND__EVENT_SHRUNK |                                       \
		1u << KVGATE__V1__EVENT_KIND__EVENT_EVICTED)

struct subscribe_args {
	uint32_t events;
	const char *tenant;
};

int prep_subscribe(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Subscribe *m = q->subscribe;
	struct subscribe_args *a = r->args = request_new(r, 1, struct subscribe_args);

	a->events = m->events &
		EVENTS_ALL;          /* kinds that only newer daemons know never happen here */
	if (m->events && !a->events) /* 0 would end the subscription, which nobody asked for */
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"events 0x%x: none of them is known here; use 0x%x for all, 0 to end it",
			m->events, EVENTS_ALL);
	a->tenant = request_text(r, "tenant", m->tenant, OPTIONS_NAME_MAX);
	return a->tenant ? KVG_CODE_OK : KVG_CODE_BAD_ARGUMENT;
}

void events_unsubscribe(struct session *s)
{
	struct session **p = &s->server->subscribers;

	if (!s->events)
		return;
	while (*p != s)
		p = &(*p)->next_subscriber;
	*p = s->next_subscriber;
	s->events_of->users--;
	s->events = 0;
	s->events_lost = 0;
	charge_fini(&s->subscription);
}

int run_subscribe(struct request *r)
{
	const struct subscribe_args *a = r->args;
	Kvgate__V1__SubscribeReply *m = request_new(r, 1, Kvgate__V1__SubscribeReply);
	struct session *s = r->session;
	struct tenant *t;
	int code = request_tenant(r, a->tenant, &t);

	if (code)
		return code;
	events_unsubscribe(s);
	if (a->events) {
		if (charge_add(&s->subscription, &r->tenant->account, ACCOUNT_SUBSCRIPTIONS, 1) < 0)
			return request_over_quota(r, ACCOUNT_SUBSCRIPTIONS);
		s->events = a->events;
		s->events_of = t;
		t->users++;
		s->next_subscriber = s->server->subscribers;
		s->server->subscribers = s;
	}
	kvgate__v1__subscribe_reply__init(m);
	m->events = s->events;
	r->reply->body_case = KVGATE__V1__REPLY__BODY_SUBSCRIBE;
	r->reply->subscribe = m;
	return KVG_CODE_OK;
}

static bool offer_event(struct session *s, Kvgate__V1__Event *e)
{
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;

	reply.body_case = KVGATE__V1__REPLY__BODY_EVENT;
	reply.event = e;
	return request_offer(s, &reply);
}

/* False: there is no room even to say so. */
static bool tell_lost(struct session *s)
{
	Kvgate__V1__Event lost = KVGATE__V1__EVENT__INIT;

	if (!s->events_lost)
		return true;
	lost.kind = KVGATE__V1__EVENT_KIND__EVENT_LOST;
	lost.tenant = s->events_of->name;
	lost.count = s->events_lost;
	if (!offer_event(s, &lost))
		return false;
	s->events_lost = 0;
	return true;
}

void events_catch_up(struct session *s)
{
	tell_lost(s);
}

static void deliver(struct session *s, Kvgate__V1__Event *e)
{
	if (!tell_lost(s) || !offer_event(s, e))
		session_lost_event(s);
}

void events_deliver(void *userdata, const struct cache_event *from)
{
	struct server *server = userdata;
	Kvgate__V1__Event e = KVGATE__V1__EVENT__INIT;

	if (!server->subscribers)
		return;
	e.kind = (Kvgate__V1__EventKind)from->kind;
	e.tenant = (char *)(uintptr_t)cache_tenant_name(from->tenant);
	e.key = (ProtobufCBinaryData){
		.len = sizeof(from->key.b), .data = (uint8_t *)(uintptr_t)from->key.b};
	e.layout = from->layout;
	e.handle = kvg_handle_pack(from->handle);
	e.held = from->held;
	e.bytes = from->bytes;
	for (struct session *s = server->subscribers; s; s = s->next_subscriber)
		if (s->events & 1u << from->kind && s->events_of->cache == from->tenant)
			deliver(s, &e);
}
