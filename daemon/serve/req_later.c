/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Inspect and purge: what may take longer than a turn of the loop, and is answered when it is done. Everybody may do both to
 * what is his own tenant's.
 *
 *	run --> struct later, in the session's list --> the cache, over many turns --> the reply
 *
 * What was begun is ended, whoever goes meanwhile: when the session does, the request only loses the one who would be
 * answered, as commits do. A session has LATER_MAX of them, so that nobody piles up work for the control thread or the
 * workers; more are refused with BUSY.
 */
#include <errno.h>
#include <stdlib.h>

#include "daemon/serve/request.h"

#define LATER_MAX 4 /* a program that waits for each answer has one */

struct later {
	struct later *next, **link; /* of the session's, or of the orphans' */
	struct server *server;
	struct session *session; /* NULL: it is gone */
	struct tenant *tenant;   /* whose blocks these are */
	uint64_t id;             /* of the request */
};

static void later_link(struct later *l, struct later **list)
{
	l->next = *list;
	l->link = list;
	if (l->next)
		l->next->link = &l->next;
	*list = l;
}

static void later_unlink(struct later *l)
{
	*l->link = l->next;
	if (l->next)
		l->next->link = l->link;
}

static void later_free(struct later *l)
{
	struct server *server = l->server;

	later_unlink(l);
	if (l->session)
		l->session->n_later--;
	free(l);
	server_batch_done(server);
}

/* OK, BUSY, NO_MEMORY. */
static int later_new(struct request *r, struct tenant *t, struct later **ret)
{
	struct later *l;

	if (r->session->n_later == LATER_MAX)
		return request_refuse(r, KVG_CODE_BUSY,
			"%d purges and verifications of this session are under way: wait for one",
			LATER_MAX);
	l = calloc(1, sizeof(*l));
	if (!l)
		return request_errno(r, -ENOMEM);
	*l = (struct later){
		.server = r->session->server, .session = r->session, .tenant = t, .id = r->id};
	later_link(l, &r->session->later);
	r->session->n_later++;
	l->server->n_batches++;
	*ret = l;
	return KVG_CODE_OK;
}

/* What later_new() promised begins, or does not: `error` is of the cache. */
static int later_begun(struct request *r, struct later *l, int error)
{
	if (error == 0)
		r->later = true;
	else
		later_free(l);
	return error < 0 ? request_errno(r, error) : error;
}

static void later_answer(struct later *l, struct request *r)
{
	if (l->session)
		request_send(l->session, r->reply, NULL, 0);
	later_free(l);
}

void later_orphan(struct session *s)
{
	while (s->later) {
		struct later *l = s->later;

		l->session = NULL;
		later_unlink(l);
		later_link(l, &s->server->later);
	}
}

void later_cancel(struct server *s)
{
	cache_silence(s->parts.cache);
	for (struct session *session = s->sessions; session; session = session->next)
		later_orphan(session);
	while (s->later)
		later_free(s->later);
}

/* ---- inspect ---- */

struct inspect_args {
	const char *tenant;
	struct kvg_key key;
	uint32_t layout;
	bool verify;
};

int prep_inspect(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Inspect *m = q->inspect;
	struct inspect_args *a = r->args = request_new(r, 1, struct inspect_args);

	a->layout = m->layout;
	a->verify = m->verify;
	a->tenant = request_text(r, "tenant", m->tenant, OPTIONS_NAME_MAX);
	return a->tenant ? request_key(r, "key", &m->key, &a->key) : KVG_CODE_BAD_ARGUMENT;
}

static void add_planes(
	struct request *r, const struct cache_block_info *from, Kvgate__V1__BlockInfo *b)
{
	b->planes = request_new(r, from->n_planes, Kvgate__V1__PlaneInfo *);
	for (uint32_t i = 0; i < from->n_planes; i++) {
		Kvgate__V1__PlaneInfo *p = b->planes[b->n_planes++] =
			request_new(r, 1, Kvgate__V1__PlaneInfo);

		kvgate__v1__plane_info__init(p);
		p->plane = i;
		p->pairs = from->plane[i].pairs;
		p->bytes = from->plane[i].bytes;
		p->tier = from->plane[i].tier;
		p->segment = from->plane[i].segment;
		p->page = from->plane[i].page;
		p->value = from->plane[i].value;
		p->verified = from->plane[i].verified;
	}
}

static void fill_inspect(struct request *r, const struct cache_block_info *info)
{
	Kvgate__V1__InspectReply *m = request_new(r, 1, Kvgate__V1__InspectReply);

	kvgate__v1__inspect_reply__init(m);
	m->block = block_info_new(r, info);
	add_planes(r, info, m->block);
	m->layout = request_new(r, 1, Kvgate__V1__LayoutInfo);
	layout_info_fill(r, cache_layout_get(r->tenant->cache, info->layout), m->layout);
	r->reply->body_case = KVGATE__V1__REPLY__BODY_INSPECT;
	r->reply->inspect = m;
}

static void on_verified(void *userdata, const struct cache_block_info *info)
{
	struct later *l = userdata;
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;
	struct request r;

	request_resume(&r, l->server, l->tenant, l->id, &reply);
	fill_inspect(&r, info);
	later_answer(l, &r);
}

int run_inspect(struct request *r)
{
	const struct inspect_args *a = r->args;
	struct cache_block_info info;
	struct later *l;
	struct tenant *t;
	int code = request_tenant(r, a->tenant, &t);

	if (code)
		return code;
	if (a->verify) {
		code = later_new(r, t, &l);
		return code ? code
			    : later_begun(r, l,
				      cache_verify(t->cache, a->layout, &a->key, on_verified, l));
	}
	code = cache_inspect(t->cache, a->layout, &a->key, &info);
	if (code)
		return code;
	r->tenant = t;
	fill_inspect(r, &info);
	return KVG_CODE_OK;
}

/* ---- purge ---- */

struct purge_args {
	const char *tenant;
	uint32_t layout, keep_planes;
	size_t n;
	struct kvg_key *keys;
};

int prep_purge(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Purge *m = q->purge;
	struct purge_args *a = r->args = request_new(r, 1, struct purge_args);

	a->layout = m->layout;
	a->keep_planes = m->keep_planes;
	a->n = m->n_keys;
	a->tenant = request_text(r, "tenant", m->tenant, OPTIONS_NAME_MAX);
	if (!a->tenant)
		return KVG_CODE_BAD_ARGUMENT;
	if (a->keep_planes > KVG_PLANES_MAX)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"keep_planes %u: a block has at most %d", a->keep_planes, KVG_PLANES_MAX);
	return request_keys(r, m->n_keys, m->keys, &a->keys);
}

static void on_purged(void *userdata, const struct cache_purge_result *p)
{
	struct later *l = userdata;
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;
	Kvgate__V1__PurgeReply m = KVGATE__V1__PURGE_REPLY__INIT;
	struct request r;

	m.blocks = p->blocks;
	m.planes = p->planes;
	m.bytes = p->bytes;
	m.pinned = p->pinned;
	request_resume(&r, l->server, l->tenant, l->id, &reply);
	reply.body_case = KVGATE__V1__REPLY__BODY_PURGE;
	reply.purge = &m;
	later_answer(l, &r);
}

int run_purge(struct request *r)
{
	const struct purge_args *a = r->args;
	const struct cache_purge_request q = {
		.layout = a->layout,
		.keep_planes = a->keep_planes,
		.keys = a->keys,
		.n = a->n,
	};
	struct cache_layout *layout;
	struct later *l;
	struct tenant *t;
	int code = request_tenant(r, a->tenant, &t);

	if (!code && a->layout)
		code = request_layout(r, t, a->layout, &layout);
	if (!code)
		code = later_new(r, t, &l);
	return code ? code : later_begun(r, l, cache_purge_start(t->cache, &q, on_purged, l));
}
