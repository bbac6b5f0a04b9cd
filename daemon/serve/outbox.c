/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Nearly every message leaves in outbox_send() and costs no allocation. One that the socket does not take is copied,
 * with duplicates of its fds, and everything after it queues behind it.
 */
#include "daemon/serve/outbox.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "proto/wire.h"

struct outbox_message {
	struct outbox_message *next;
	size_t n;
	unsigned n_fds;
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned char data[];
};

void outbox_init(struct outbox *o, int sock)
{
	*o = (struct outbox){.sock = sock};
	o->end = &o->first;
}

static size_t cost(const struct outbox_message *m)
{
	return sizeof(*m) + m->n;
}

static void message_free(struct outbox_message *m)
{
	for (unsigned i = 0; i < m->n_fds; i++)
		close(m->fds[i]);
	free(m);
}

void outbox_fini(struct outbox *o)
{
	while (o->first) {
		struct outbox_message *m = o->first;

		o->first = m->next;
		message_free(m);
	}
	o->end = &o->first;
	charge_fini(&o->charge);
}

static int keep(struct outbox *o, struct account *a, const void *data, size_t n, const int *fds,
	unsigned n_fds)
{
	struct outbox_message *m;
	int r;

	if (!a || o->charge.amount + sizeof(*m) + n > OUTBOX_BYTES_MAX)
		return -ENOBUFS;
	m = malloc(sizeof(*m) + n);
	if (!m)
		return -ENOMEM;
	*m = (struct outbox_message){.n = n};
	memcpy(m->data, data, n);
	for (; m->n_fds < n_fds; m->n_fds++) {
		m->fds[m->n_fds] = fcntl(fds[m->n_fds], F_DUPFD_CLOEXEC, 3);
		if (m->fds[m->n_fds] < 0) {
			r = -errno;
			message_free(m);
			return r;
		}
	}
	r = charge_add(&o->charge, a, ACCOUNT_REPLIES, cost(m));
	if (r < 0) {
		message_free(m);
		return r;
	}
	*o->end = m;
	o->end = &m->next;
	return 0;
}

int outbox_send(struct outbox *o, struct account *a, const void *data, size_t n, const int *fds,
	unsigned n_fds, bool *ret_waiting)
{
	int r = -EAGAIN;

	if (!o->first)
		r = wire_send(o->sock, data, n, fds, n_fds);
	if (r == -EAGAIN)
		r = keep(o, a, data, n, fds, n_fds);
	if (r == 0)
		*ret_waiting = o->first != NULL;
	return r;
}

static bool room_beside_replies(const struct outbox *o, const struct account *a, size_t n)
{
	const uint64_t bytes = sizeof(struct outbox_message) + n;

	return o->charge.amount + bytes <= OUTBOX_BYTES_MAX / 2 &&
		a->used[ACCOUNT_REPLIES] + bytes <= a->limit[ACCOUNT_REPLIES] / 2;
}

int outbox_offer(struct outbox *o, struct account *a, const void *data, size_t n, bool *ret_waiting)
{
	int r = -EAGAIN;

	if (!o->first)
		r = wire_send(o->sock, data, n, NULL, 0);
	if (r == -EAGAIN)
		r = room_beside_replies(o, a, n) ? keep(o, a, data, n, NULL, 0) : -ENOBUFS;
	if (r == 0)
		*ret_waiting = o->first != NULL;
	return r == -ENOMEM ? -ENOBUFS : r;
}

int outbox_flush(struct outbox *o, bool *ret_waiting)
{
	while (o->first) {
		struct outbox_message *m = o->first;
		int r = wire_send(o->sock, m->data, m->n, m->fds, m->n_fds);

		if (r == -EAGAIN)
			break;
		if (r < 0)
			return r;
		o->first = m->next;
		if (!o->first)
			o->end = &o->first;
		charge_sub(&o->charge, cost(m));
		message_free(m);
	}
	*ret_waiting = o->first != NULL;
	return 0;
}
