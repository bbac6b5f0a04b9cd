/* SPDX-License-Identifier: Apache-2.0 */
/*
 * List, stat, policy. Everybody may look at what is his own tenant's; other tenants, quotas and watermarks are for the
 * admin.
 *
 * What may be longer than a message comes in pages: an item goes in as long as the reply stays below REPLY_ROOM, and
 * the cursor says where the next page begins.
 */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/serve/request.h"

/* Envelope, tags and lengths around the items need less than this. */
#define REPLY_ROOM (KVG_MESSAGE_MAX - 1024u)
/* Items of one reply: what fits in a message, if each is as short as it can be. */
#define LIST_MAX   1536u
#define STAT_MAX   4096u
/* Slots looked at for one page, whether they fit or not: about a millisecond. */
#define LIST_LOOKS 8192u

/* ---- list ---- */

struct list_args {
	const char *tenant;
	uint64_t cursor;
	uint32_t limit, layout;
};

int prep_list(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__List *m = q->list;
	struct list_args *a = r->args = request_new(r, 1, struct list_args);

	*a = (struct list_args){.cursor = m->cursor, .layout = m->layout};
	a->tenant = request_text(r, "tenant", m->tenant, OPTIONS_NAME_MAX);
	a->limit = m->limit && m->limit < LIST_MAX ? m->limit : LIST_MAX;
	return a->tenant ? KVG_CODE_OK : KVG_CODE_BAD_ARGUMENT;
}

static ProtobufCBinaryData key_of(struct request *r, const struct kvg_key *key)
{
	return (ProtobufCBinaryData){.len = sizeof(key->b),
		.data = memcpy(request_alloc(r, 1, sizeof(key->b)), key->b, sizeof(key->b))};
}

Kvgate__V1__BlockInfo *block_info_new(struct request *r, const struct cache_block_info *from)
{
	Kvgate__V1__BlockInfo *b = request_new(r, 1, Kvgate__V1__BlockInfo);

	kvgate__v1__block_info__init(b);
	b->key = key_of(r, &from->key);
	if (from->has_parent)
		b->parent = key_of(r, &from->parent);
	b->layout = from->layout;
	b->tokens = from->tokens;
	b->depth = from->depth;
	b->handle = kvg_handle_pack(from->handle);
	b->retention = from->retention;
	b->bytes = from->bytes;
	b->value = from->value;
	b->pins = from->pins;
	b->children = from->children;
	return b;
}

int run_list(struct request *r)
{
	const struct list_args *a = r->args;
	Kvgate__V1__ListReply *m = request_new(r, 1, Kvgate__V1__ListReply);
	uint64_t cursor = a->cursor;
	uint32_t looks = LIST_LOOKS;
	struct cache_block_info info;
	struct tenant *t;
	size_t bytes = 0;
	int code = request_tenant(r, a->tenant, &t);

	if (code)
		return code;
	kvgate__v1__list_reply__init(m);
	m->blocks = request_new(r, a->limit, Kvgate__V1__BlockInfo *);
	while (m->n_blocks < a->limit &&
		bytes < REPLY_ROOM - 512) { /* a block without planes needs less than 512 */
		Kvgate__V1__BlockInfo *b;

		if (!cache_list_next(t->cache, a->layout, &cursor, &looks, &info))
			break; /* the end, or the page is long enough in coming */
		b = block_info_new(r, &info);
		bytes += kvgate__v1__block_info__get_packed_size(b) + 4;
		m->blocks[m->n_blocks++] = b;
		if (!cursor)
			break;
	}
	m->next = cursor;
	r->reply->body_case = KVGATE__V1__REPLY__BODY_LIST;
	r->reply->list = m;
	return KVG_CODE_OK;
}

/* ---- stat ---- */

struct stat_args {
	const char *tenant;
	bool all;
	uint64_t cursor;
};

int prep_stat(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Stat *m = q->stat;
	struct stat_args *a = r->args = request_new(r, 1, struct stat_args);

	a->all = m->all;
	a->cursor = m->cursor;
	a->tenant = request_text(r, "tenant", m->tenant, OPTIONS_NAME_MAX);
	if (!a->tenant)
		return KVG_CODE_BAD_ARGUMENT;
	if (a->all && !r->session->admin)
		return request_refuse(
			r, KVG_CODE_DENIED, "all tenants: %s", kvg_code_prose(KVG_CODE_DENIED));
	return KVG_CODE_OK;
}

/* Counters and then layouts are numbered through; a page is a stretch of these numbers. */
struct stat_page {
	struct request *r;
	Kvgate__V1__StatReply *m;
	uint64_t from, at;
	size_t bytes;
	bool full;
};

/* Does the item that comes next belong to this page? */
static bool page_wants(struct stat_page *p)
{
	return p->at++ >= p->from && !p->full;
}

/* The item that page_wants() was asked for needs `bytes`: is there room? If not, the next page begins with it. */
static bool page_fits(struct stat_page *p, size_t bytes)
{
	bytes += 8; /* tag and length */
	if (p->bytes + bytes > REPLY_ROOM || p->m->n_counters + p->m->n_layouts == STAT_MAX) {
		p->full = true;
		p->m->next = p->at - 1;
		return false;
	}
	p->bytes += bytes;
	return true;
}

static void add_counter(void *userdata, enum counter_id id, const char *tenant, const char *model,
	int sub, int64_t value)
{
	static const char *const tiers[] = {"none", "host", "gpu", "disk"};
	struct stat_page *p = userdata;
	bool by_tier = counter_split(id) == COUNTER_SPLIT_TIER;
	Kvgate__V1__Counter *c;

	if (!page_wants(p))
		return;
	c = request_new(p->r, 1, Kvgate__V1__Counter);
	kvgate__v1__counter__init(c);
	c->name = (char *)(uintptr_t)counter_name(id);
	c->tenant = (char *)(uintptr_t)tenant;
	c->model = (char *)(uintptr_t)model;
	if (by_tier && sub < 4)
		c->tier = (char *)(uintptr_t)tiers[sub];
	c->plane = by_tier ? -1 : sub;
	c->value = (double)value;
	/* an upper bound is enough: the numbers and tags of a counter take less than 40 bytes */
	if (page_fits(p, strlen(c->name) + strlen(tenant) + strlen(model) + 40))
		p->m->counters[p->m->n_counters++] = c;
}

static void add_layouts(struct stat_page *p, struct tenant *t)
{
	struct cache_layout *l;

	for (unsigned n = 0; (l = cache_layout_at(t->cache, n)); n++) {
		Kvgate__V1__LayoutInfo *i;

		if (!page_wants(p))
			continue;
		i = request_new(p->r, 1, Kvgate__V1__LayoutInfo);
		layout_info_fill(p->r, l, i);
		if (page_fits(p, kvgate__v1__layout_info__get_packed_size(i)))
			p->m->layouts[p->m->n_layouts++] = i;
	}
}

int run_stat(struct request *r)
{
	const struct stat_args *a = r->args;
	Kvgate__V1__StatReply *m = request_new(r, 1, Kvgate__V1__StatReply);
	struct stat_page page = {.r = r, .m = m, .from = a->cursor};
	struct server *s = r->session->server;
	struct tenant *t;
	int code = request_tenant(r, a->tenant, &t);

	if (code)
		return code;
	kvgate__v1__stat_reply__init(m);
	if (!a->cursor) {
		device_infos_fill(r, m);
		page.bytes = kvgate__v1__stat_reply__get_packed_size(m);
	}
	m->counters = request_alloc(r, STAT_MAX, sizeof(*m->counters));
	m->layouts = request_alloc(r, STAT_MAX, sizeof(*m->layouts));
	counters_each(s->parts.counters, a->all ? NULL : t->name, add_counter, &page);
	if (!a->all)
		add_layouts(&page, t);
	else
		for (t = s->tenants.first; t; t = t->next)
			add_layouts(&page, t);
	r->reply->body_case = KVGATE__V1__REPLY__BODY_STAT;
	r->reply->stat = m;
	return KVG_CODE_OK;
}

/* ---- policy ---- */

struct policy_args {
	const char *tenant, *model;
	struct cache_policy set;
};

int prep_policy(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Policy *m = q->policy;
	struct policy_args *a = r->args = request_new(r, 1, struct policy_args);

	a->tenant = request_text(r, "tenant", m->tenant, OPTIONS_NAME_MAX);
	a->model = request_text(r, "model", m->model, REQUEST_NAME_MAX);
	if (!a->tenant || !a->model)
		return KVG_CODE_BAD_ARGUMENT;
	a->set = (struct cache_policy){
		.floor = m->floor,
		.host_bytes = m->host_bytes,
		.high_watermark = m->high_watermark,
		.low_watermark = m->low_watermark,
	};
	if (!isfinite(m->floor) || !isfinite(m->high_watermark) || !isfinite(m->low_watermark) ||
		m->floor < 0 || m->floor > 1 || m->high_watermark < 0 || m->high_watermark > 1 ||
		m->low_watermark < 0 || m->low_watermark > 1)
		return request_refuse(
			r, KVG_CODE_BAD_ARGUMENT, "floor and watermarks are between 0 and 1");
	if ((a->set.host_bytes || a->set.high_watermark > 0 || a->set.low_watermark > 0) &&
		!r->session->admin)
		return request_refuse(r, KVG_CODE_DENIED, "host_bytes and watermarks: %s",
			kvg_code_prose(KVG_CODE_DENIED));
	return KVG_CODE_OK;
}

static void add_model_floors(struct request *r, const struct tenant *t, Kvgate__V1__PolicyReply *m)
{
	size_t bytes = 0;
	const char *name;
	float floor;

	m->models = request_alloc(r, STAT_MAX, sizeof(*m->models));
	for (unsigned i = 0; i < STAT_MAX && (name = cache_policy_model(t->cache, i, &floor));
		i++) {
		Kvgate__V1__ModelFloor *f = request_new(r, 1, Kvgate__V1__ModelFloor);

		kvgate__v1__model_floor__init(f);
		f->model = (char *)(uintptr_t)name;
		f->floor = floor;
		bytes += kvgate__v1__model_floor__get_packed_size(f) + 4;
		if (bytes > REPLY_ROOM)
			break;
		m->models[m->n_models++] = f;
	}
}

int run_policy(struct request *r)
{
	const struct policy_args *a = r->args;
	Kvgate__V1__PolicyReply *m = request_new(r, 1, Kvgate__V1__PolicyReply);
	struct cache_policy p;
	struct tenant *t;
	int code = request_tenant(r, a->tenant, &t);

	if (!code)
		code = cache_policy_set(t->cache, a->model, &a->set, r->why, sizeof(r->why));
	if (code)
		return code < 0 ? request_errno(r, code) : code;
	cache_policy_get(t->cache, a->model, &p);
	kvgate__v1__policy_reply__init(m);
	m->floor = p.floor;
	m->host_bytes = p.host_bytes;
	m->high_watermark = p.high_watermark;
	m->low_watermark = p.low_watermark;
	m->host_used = p.host_used;
	add_model_floors(r, t, m);
	r->reply->body_case = KVGATE__V1__REPLY__BODY_POLICY;
	r->reply->policy = m;
	return KVG_CODE_OK;
}
