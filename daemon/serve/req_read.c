/* SPDX-License-Identifier: Apache-2.0 */
/* Pins through the socket that are given back, and the segments that a client maps to read. */
#include <string.h>

#include "daemon/serve/request.h"

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
		if (!held_has(&r->session->held, h))
			acquires_released(r->session, h);
		cache_release(r->tenant->cache, h);
		charge_sub(&r->session->held_charge, 1);
		m->released++;
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_RELEASE;
	r->reply->release = m;
	return KVG_CODE_OK;
}

/* ---- segments ---- */

struct segments_args {
	size_t n;
	uint32_t device;
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
	a->device = m->device;
	if (a->n)
		memcpy(a->id, m->segments, a->n * sizeof(a->id[0]));
	return KVG_CODE_OK;
}

int run_map_segments(struct request *r)
{
	const struct segments_args *a = r->args;
	Kvgate__V1__MapSegmentsReply *m = request_new(r, 1, Kvgate__V1__MapSegmentsReply);

	unsigned device;
	int code = request_device(r, a->device, &device);

	if (code)
		return code;
	kvgate__v1__map_segments_reply__init(m);
	m->segments = request_new(r, a->n, Kvgate__V1__SegmentInfo *);
	for (size_t i = 0; i < a->n; i++) {
		struct cache_segment_info info;
		Kvgate__V1__SegmentInfo *s;

		if ((a->device ? cache_device_segment(r->tenant->cache, device, a->id[i], &info)
			       : cache_segment_get(r->tenant->cache, a->id[i], &info)) < 0)
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
