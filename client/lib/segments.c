/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Segments are mapped whole, once, when a pinned plane first lies in one, and found again by id in a small open
 * addressing table. Ids are never reused, so a mapping never has to be taken back to stay right; that of a segment
 * which the daemon gave up costs address space only, since its pages were punched out.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#define SEGMENTS_TABLE_FIRST 16u

static size_t place(uint32_t id, size_t size)
{
	return (id * 2654435769u) & (size - 1);
}

const struct segment_map *segment_find(const struct kvg_client *c, uint32_t id)
{
	if (!c->segments_size || !id)
		return NULL;
	for (size_t i = place(id, c->segments_size);; i = (i + 1) & (c->segments_size - 1)) {
		if (c->segments[i].id == id)
			return &c->segments[i];
		if (!c->segments[i].id)
			return NULL;
	}
}

static void put(struct segment_map *table, size_t size, const struct segment_map *s)
{
	size_t i = place(s->id, size);

	while (table[i].id)
		i = (i + 1) & (size - 1);
	table[i] = *s;
}

/* Room for one more, the table at most half full. */
static int reserve(struct kvg_client *c)
{
	size_t size = c->segments_size ? c->segments_size * 2 : SEGMENTS_TABLE_FIRST;
	struct segment_map *table;

	if ((c->n_segments + 1) * 2 <= c->segments_size)
		return 0;
	table = calloc(size, sizeof(*table));
	if (!table)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	for (size_t i = 0; i < c->segments_size; i++)
		if (c->segments[i].id)
			put(table, size, &c->segments[i]);
	free(c->segments);
	c->segments = table;
	c->segments_size = size;
	return 0;
}

static int map_one(struct kvg_client *c, const Kvgate__V1__SegmentInfo *info, int fd)
{
	struct segment_map s = {
		.id = info->segment, .page_shift = info->page_shift, .bytes = info->bytes};
	const char *why;
	void *base;
	int r;

	if (segment_find(c, s.id))
		return 0;
	if (s.id == 0 || info->tier != KVG_TIER_HOST || s.page_shift < 12 || s.page_shift > 21)
		return client_fail(c, -EPROTO, 0, "segment %u: tier %u, page shift %u", s.id,
			info->tier, s.page_shift);
	r = reserve(c);
	if (r < 0)
		return r;
	r = shared_map(fd, s.bytes, false, &base, &why);
	if (r < 0)
		return client_fail(c, r, 0, "segment %u: %s", s.id, why);
	s.base = base;
	put(c->segments, c->segments_size, &s);
	c->n_segments++;
	return 0;
}

static int map_batch(struct kvg_client *c, const uint32_t *ids, size_t n)
{
	Kvgate__V1__MapSegments m = KVGATE__V1__MAP_SEGMENTS__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	int r;

	m.segments = (uint32_t *)(uintptr_t)ids;
	m.n_segments = n;
	q.body_case = KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS;
	q.map_segments = &m;
	r = client_call(c, &q, &reply);
	if (r < 0)
		return r;
	for (size_t i = 0; i < reply.msg->map_segments->n_segments && r == 0; i++)
		r = map_one(c, reply.msg->map_segments->segments[i], reply.fds[i]);
	reply_fini(&reply);
	return r;
}

int segments_map(struct kvg_client *c, const uint32_t *ids, size_t n)
{
	uint32_t missing[KVG_MESSAGE_FDS_MAX];
	size_t n_missing = 0;
	int r;

	for (size_t i = 0; i < n; i++) {
		bool known = segment_find(c, ids[i]) != NULL;

		for (size_t k = 0; k < n_missing && !known; k++)
			known = missing[k] == ids[i];
		if (known)
			continue;
		missing[n_missing++] = ids[i];
		if (n_missing == KVG_MESSAGE_FDS_MAX) {
			r = map_batch(c, missing, n_missing);
			if (r < 0)
				return r;
			n_missing = 0;
		}
	}
	return n_missing ? map_batch(c, missing, n_missing) : 0;
}

void segments_fini(struct kvg_client *c)
{
	for (size_t i = 0; i < c->segments_size; i++)
		if (c->segments[i].id)
			munmap((void *)(uintptr_t)c->segments[i].base, c->segments[i].bytes);
	free(c->segments);
	c->segments = NULL;
	c->n_segments = c->segments_size = 0;
}
