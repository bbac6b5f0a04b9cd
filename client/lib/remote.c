/* SPDX-License-Identifier: Apache-2.0 */
/* What needs the socket: hints and events. Batches are cut to what one message may hold. */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

ssize_t prefetch_all(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float retention,
	uint32_t device)
{
	ProtobufCBinaryData bytes[KVG_BATCH_MAX];
	ssize_t present = 0;

	for (size_t done = 0; done < n;) {
		Kvgate__V1__Prefetch m = KVGATE__V1__PREFETCH__INIT;
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		struct reply reply;
		int r;

		m.layout = l->id;
		m.n_keys = n - done < KVG_BATCH_MAX ? n - done : KVG_BATCH_MAX;
		keys_to_bytes(keys + done, m.n_keys, bytes);
		m.keys = bytes;
		m.retention = retention;
		m.device = device;
		q.body_case = KVGATE__V1__REQUEST__BODY_PREFETCH;
		q.prefetch = &m;
		r = client_call(l->client, &q, &reply);
		if (r < 0)
			return r;
		present += reply.msg->prefetch->present;
		reply_fini(&reply);
		done += m.n_keys;
	}
	return present;
}

ssize_t kvg_prefetch(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float retention)
{
	return prefetch_all(l, keys, n, retention, 0);
}

/* ---- events ---- */

int kvg_subscribe(struct kvg_client *c, uint32_t events, kvg_event_fn fn, void *userdata)
{
	Kvgate__V1__Subscribe m = KVGATE__V1__SUBSCRIBE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	int r;

	if (events && !fn)
		return client_fail(c, -EINVAL, 0, "events without a function to take them");
	m.events = events;
	q.body_case = KVGATE__V1__REQUEST__BODY_SUBSCRIBE;
	q.subscribe = &m;
	r = client_call(c, &q, &reply);
	if (r < 0)
		return r;
	reply_fini(&reply);
	c->events = events;
	c->event_fn = events ? fn : NULL;
	c->event_userdata = userdata;
	return 0;
}

int subscribe_again(struct kvg_client *c)
{
	return c->events ? kvg_subscribe(c, c->events, c->event_fn, c->event_userdata) : 0;
}

void event_deliver(struct kvg_client *c, const Kvgate__V1__Event *m)
{
	struct kvg_event e = {
		.kind = (int)m->kind,
		.tenant = m->tenant,
		.layout = m->layout,
		.held = m->held,
		.handle = kvg_handle_unpack(m->handle),
		.bytes = m->bytes,
		.count = m->count,
	};

	if (m->key.len)
		memcpy(e.key.b, m->key.data, sizeof(e.key.b));
	if (c->event_fn)
		c->event_fn(c->event_userdata, &e);
}
