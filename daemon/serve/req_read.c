/* SPDX-License-Identifier: Apache-2.0 */
/* Pins through the socket, hints, and the segments that a client maps to read. */
#include <errno.h>
#include <math.h>
#include <string.h>

#include "daemon/serve/request.h"

struct keys_args { /* of acquire and prefetch */
	uint32_t layout;
	size_t n;
	struct kvg_key *keys;
	float retention;
	bool prefix;
};

static int check_retention(struct request *r, float retention)
{
	if (isfinite(retention) && retention >= 0 && retention <= 1)
		return KVG_CODE_OK;
	return request_refuse(
		r, KVG_CODE_BAD_ARGUMENT, "retention %g: use 0 to 1", (double)retention);
}

/* ---- acquire ---- */

int prep_acquire(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Acquire *m = q->acquire;
	struct keys_args *a = r->args = request_new(r, 1, struct keys_args);

	*a = (struct keys_args){.layout = m->layout,
		.n = m->n_keys,
		.retention = m->min_retention,
		.prefix = m->prefix};
	if (check_retention(r, m->min_retention))
		return KVG_CODE_BAD_ARGUMENT;
	return request_keys(r, m->n_keys, m->keys, &a->keys);
}

static int acquire_one(struct request *r, const struct cache_layout *l, const struct kvg_key *key,
	float min_retention, struct cache_block_result *ret)
{
	struct session *s = r->session;
	int code;

	if (held_reserve(&s->held) < 0)
		return KVG_CODE_NO_MEMORY;
	if (charge_add(&s->held_charge, &r->tenant->account, ACCOUNT_PINS, 1) < 0)
		return KVG_CODE_QUOTA;
	code = cache_acquire(r->tenant->cache, l, key, min_retention, ret);
	if (code == KVG_CODE_OK)
		held_add(&s->held, ret->handle);
	else
		charge_sub(&s->held_charge, 1);
	return code < 0 ? request_errno(r, code) : code;
}

int run_acquire(struct request *r)
{
	const struct keys_args *a = r->args;
	Kvgate__V1__AcquireReply *m = request_new(r, 1, Kvgate__V1__AcquireReply);
	struct cache_layout *l;
	int code = request_layout(r, r->tenant, a->layout, &l);

	if (code)
		return code;
	kvgate__v1__acquire_reply__init(m);
	m->blocks = request_new(r, a->n, Kvgate__V1__BlockResult *);
	for (size_t i = 0; i < a->n; i++) {
		Kvgate__V1__BlockResult *b = m->blocks[i] =
			request_new(r, 1, Kvgate__V1__BlockResult);
		struct cache_block_result result = {0};

		kvgate__v1__block_result__init(b);
		b->code = (uint32_t)acquire_one(r, l, &a->keys[i], a->retention, &result);
		b->handle = b->code == KVG_CODE_OK ? kvg_handle_pack(result.handle) : 0;
		b->retention = result.retention;
		b->held = result.held;
		b->mapped = result.mapped;
		m->n_blocks++;
		if (a->prefix && b->code != KVG_CODE_OK)
			break;
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_ACQUIRE;
	r->reply->acquire = m;
	return KVG_CODE_OK;
}

/* ---- release ---- */

struct release_args {
	size_t n;
	uint64_t *handles;
};

int prep_release(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Release *m = q->release;
	struct release_args *a = r->args = request_new(r, 1, struct release_args);

	if (m->n_handles > KVG_BATCH_MAX)
		return request_refuse(r, KVG_CODE_TOO_LARGE,
			"%zu handles: use at most %u a request", m->n_handles, KVG_BATCH_MAX);
	a->n = m->n_handles;
	a->handles = request_new(r, a->n, uint64_t);
	if (a->n)
		memcpy(a->handles, m->handles, a->n * sizeof(*a->handles));
	return KVG_CODE_OK;
}

int run_release(struct request *r)
{
	const struct release_args *a = r->args;
	Kvgate__V1__ReleaseReply *m = request_new(r, 1, Kvgate__V1__ReleaseReply);

	kvgate__v1__release_reply__init(m);
	for (size_t i = 0; i < a->n; i++) {
		struct kvg_handle h = kvg_handle_unpack(a->handles[i]);

		if (!held_remove(&r->session->held, h))
			continue;
		cache_release(r->tenant->cache, h);
		charge_sub(&r->session->held_charge, 1);
		m->released++;
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_RELEASE;
	r->reply->release = m;
	return KVG_CODE_OK;
}

/* ---- prefetch: there is one tier, so what is there is there already ---- */

int prep_prefetch(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Prefetch *m = q->prefetch;
	struct keys_args *a = r->args = request_new(r, 1, struct keys_args);

	*a = (struct keys_args){.layout = m->layout, .n = m->n_keys, .retention = m->retention};
	if (check_retention(r, m->retention))
		return KVG_CODE_BAD_ARGUMENT;
	return request_keys(r, m->n_keys, m->keys, &a->keys);
}

int run_prefetch(struct request *r)
{
	const struct keys_args *a = r->args;
	Kvgate__V1__PrefetchReply *m = request_new(r, 1, Kvgate__V1__PrefetchReply);
	struct cache_layout *l;
	int code = request_layout(r, r->tenant, a->layout, &l);

	if (code)
		return code;
	kvgate__v1__prefetch_reply__init(m);
	for (size_t i = 0; i < a->n; i++)
		m->present += cache_present_in(r->tenant->cache, l, &a->keys[i]);
	r->reply->body_case = KVGATE__V1__REPLY__BODY_PREFETCH;
	r->reply->prefetch = m;
	return KVG_CODE_OK;
}

/* ---- segments ---- */

struct segments_args {
	size_t n;
	uint32_t id[KVG_MESSAGE_FDS_MAX];
};

int prep_map_segments(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__MapSegments *m = q->map_segments;
	struct segments_args *a = r->args = request_new(r, 1, struct segments_args);

	if (m->n_segments > KVG_MESSAGE_FDS_MAX)
		return request_refuse(r, KVG_CODE_TOO_LARGE,
			"%zu segments: use at most %u a request", m->n_segments,
			KVG_MESSAGE_FDS_MAX);
	a->n = m->n_segments;
	if (a->n)
		memcpy(a->id, m->segments, a->n * sizeof(a->id[0]));
	return KVG_CODE_OK;
}

int run_map_segments(struct request *r)
{
	const struct segments_args *a = r->args;
	Kvgate__V1__MapSegmentsReply *m = request_new(r, 1, Kvgate__V1__MapSegmentsReply);

	kvgate__v1__map_segments_reply__init(m);
	m->segments = request_new(r, a->n, Kvgate__V1__SegmentInfo *);
	for (size_t i = 0; i < a->n; i++) {
		struct cache_segment_info info;
		Kvgate__V1__SegmentInfo *s;

		if (cache_segment_get(r->tenant->cache, a->id[i], &info) < 0)
			continue;
		s = m->segments[m->n_segments++] = request_new(r, 1, Kvgate__V1__SegmentInfo);
		kvgate__v1__segment_info__init(s);
		s->segment = info.id;
		s->bytes = info.bytes;
		s->page_shift = info.page_shift;
		s->tier = info.tier;
		r->fds[r->n_fds++] = info.fd;
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_MAP_SEGMENTS;
	r->reply->map_segments = m;
	return KVG_CODE_OK;
}
