/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Everything whose size a later memcpy relies on is checked here, once for all requests, so that the parts of the
 * client may copy 32 bytes out of a field called `key` without a thought. A field that may be absent (a
 * root's parent, no gate) is empty or whole, nothing between.
 *
 * A message that answers no request (id 0) is an event, or the reason why the daemon ends the session.
 */
#include "client/lib/reply.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

#include "proto/shm.h"

static bool is_key(const ProtobufCBinaryData *b)
{
	return b->len == KVG_KEY_BYTES;
}

static bool is_key_or_none(const ProtobufCBinaryData *b)
{
	return b->len == 0 || is_key(b);
}

static bool edges_ok(const float *edges, size_t n)
{
	if (n > KVG_PLANES_MAX - 1)
		return false;
	for (size_t i = 0; i < n; i++)
		if (!isfinite(edges[i]) || (i && edges[i] > edges[i - 1]))
			return false;
	return true;
}

static bool block_ok(const Kvgate__V1__BlockInfo *b)
{
	if (!is_key(&b->key) || !is_key_or_none(&b->parent) || b->n_planes > KVG_PLANES_MAX)
		return false;
	for (size_t i = 0; i < b->n_planes; i++)
		if (b->planes[i]->plane >= KVG_PLANES_MAX)
			return false;
	return true;
}

static bool layout_ok(const Kvgate__V1__LayoutInfo *l)
{
	return edges_ok(l->edges, l->n_edges) && is_key_or_none(&l->fingerprint);
}

static bool list_ok(const Kvgate__V1__ListReply *l)
{
	for (size_t i = 0; i < l->n_blocks; i++)
		if (!block_ok(l->blocks[i]))
			return false;
	return true;
}

static bool inspect_ok(const Kvgate__V1__InspectReply *i)
{
	return i->block && i->layout && block_ok(i->block) && layout_ok(i->layout);
}

static bool stat_ok(const Kvgate__V1__StatReply *s)
{
	for (size_t i = 0; i < s->n_layouts; i++)
		if (!layout_ok(s->layouts[i]))
			return false;
	return true;
}

static bool body_ok(const Kvgate__V1__Reply *m)
{
	switch (m->body_case) {
	case KVGATE__V1__REPLY__BODY_REGISTER_LAYOUT: {
		const Kvgate__V1__RegisterLayoutReply *l = m->register_layout;

		return is_key(&l->fingerprint) && is_key_or_none(&l->gate_digest) &&
			edges_ok(l->edges, l->n_edges);
	}
	case KVGATE__V1__REPLY__BODY_LIST:
		return list_ok(m->list);
	case KVGATE__V1__REPLY__BODY_INSPECT:
		return inspect_ok(m->inspect);
	case KVGATE__V1__REPLY__BODY_STAT:
		return stat_ok(m->stat);
	case KVGATE__V1__REPLY__BODY_EVENT:
		return is_key_or_none(&m->event->key);
	case KVGATE__V1__REPLY__BODY_MAP_SEGMENTS:
		return m->map_segments->n_segments == m->fds;
	default:
		return true;
	}
}

static void close_all(const int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (fds[i] >= 0)
			close(fds[i]);
}

bool reply_is_end(const Kvgate__V1__Reply *m)
{
	return m->id == 0 && m->code != KVG_CODE_OK &&
		m->body_case == KVGATE__V1__REPLY__BODY__NOT_SET;
}

static bool id_ok(const Kvgate__V1__Reply *m)
{
	if (m->body_case == KVGATE__V1__REPLY__BODY_EVENT)
		return m->id == 0 && m->code == KVG_CODE_OK;
	return m->id != 0 || reply_is_end(m);
}

int reply_parse(const uint8_t *data, size_t n, const int *fds, unsigned n_fds, struct reply *ret)
{
	Kvgate__V1__Reply *m = kvgate__v1__reply__unpack(NULL, n, data);

	if (!m)
		goto bad;
	if (m->fds != n_fds || !id_ok(m) || !body_ok(m))
		goto bad;
	*ret = (struct reply){.msg = m, .n_fds = n_fds};
	for (unsigned i = 0; i < n_fds; i++)
		ret->fds[i] = fds[i];
	return 0;
bad:
	if (m)
		kvgate__v1__reply__free_unpacked(m, NULL);
	close_all(fds, n_fds);
	return -EBADMSG;
}

void reply_fini(struct reply *r)
{
	close_all(r->fds, r->n_fds);
	if (r->msg)
		kvgate__v1__reply__free_unpacked(r->msg, NULL);
	*r = (struct reply){0};
}

int code_errno(uint32_t code)
{
	switch (code) {
	case KVG_CODE_OK:
	case KVG_CODE_EXISTS:
		return 0;
	case KVG_CODE_NOT_FOUND:
	case KVG_CODE_NO_PARENT:
	case KVG_CODE_NO_STAGE:
		return -ENOENT;
	case KVG_CODE_BAD_MESSAGE:
	case KVG_CODE_BAD_FDS:
	case KVG_CODE_CORRUPT:
		return -EBADMSG;
	case KVG_CODE_BAD_VERSION:
	case KVG_CODE_NOT_HELLO:
		return -EPROTO;
	case KVG_CODE_BAD_ARGUMENT:
	case KVG_CODE_BAD_LAYOUT:
	case KVG_CODE_BAD_SCORES:
	case KVG_CODE_BAD_GATE:
	case KVG_CODE_BAD_KEY:
		return -EINVAL;
	case KVG_CODE_COLLISION:
		return -EEXIST;
	case KVG_CODE_QUOTA:
		return -EDQUOT;
	case KVG_CODE_NO_SPACE:
		return -ENOSPC;
	case KVG_CODE_NO_MEMORY:
		return -ENOMEM;
	case KVG_CODE_DENIED:
		return -EACCES;
	case KVG_CODE_BELOW_RETENTION:
		return -ENODATA;
	case KVG_CODE_BUSY:
		return -EBUSY;
	case KVG_CODE_SHUTTING_DOWN:
		return -ESHUTDOWN;
	case KVG_CODE_TOO_LARGE:
		return -E2BIG;
	default:
		return -EREMOTEIO;
	}
}
