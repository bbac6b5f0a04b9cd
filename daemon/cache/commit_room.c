/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for a commit is budget in the pool, quota of the tenant and a slot in the index, taken together for the worst case
 * before anything is packed. Three answers when there is none: eviction helps, so the loop turns once more; others hold
 * reservations, which will come back, so their end is waited for; neither, so somebody is refused.
 *
 * Who is refused is the youngest: a job that waits holds its parent, and that may be all that the oldest waits for.
 */
#include "daemon/cache/evictor.h"
#include "daemon/cache/job.h"

#include <assert.h>
#include <errno.h>

#define ROUNDS_AT_ONCE 2 /* of eviction for one commit before the loop has its turn */

enum room {
	ROOM,
	NO_ROOM_YET,
	NO_ROOM
};

static int reserve(struct cache_job *j)
{
	struct cache_tenant *t = j->tenant;

	if (index_slots_free(t->index) <= t->reserved_slots ||
		t->used + t->reserved + j->worst > t->quota ||
		pool_reserve(t->cache->pool, j->worst) < 0)
		return -ENOSPC;
	t->reserved += j->worst;
	t->reserved_slots++;
	t->cache->commits.reserved += j->worst;
	return 0;
}

void commit_unreserve(struct cache_job *j, uint64_t used)
{
	struct cache_tenant *t = j->tenant;

	pool_unreserve(t->cache->pool, j->worst - used);
	t->reserved -= j->worst;
	t->reserved_slots--;
	t->cache->commits.reserved -= j->worst;
}

/* One round of eviction for this job. False: nothing can go. */
static bool evict_for(struct cache_job *j, bool *ret_own)
{
	struct cache_tenant *t = j->tenant;
	struct pool_stat st;
	const uint64_t wanted = t->used + t->reserved + j->worst;
	const uint64_t slots = index_slots_free(t->index) <= t->reserved_slots;

	*ret_own = slots || wanted > t->quota;
	if (*ret_own)
		return evict_round(t, wanted > t->quota ? wanted - t->quota : 0, slots);
	pool_stat(t->cache->pool, &st);
	if (st.used + st.reserved + j->worst <= st.budget)
		return true;
	return evict_anyone(t->cache, st.used + st.reserved + j->worst - st.budget);
}

static enum room make_room(struct cache_job *j)
{
	const struct cache *c = j->tenant->cache;
	bool own;

	if (j->worst > j->tenant->quota || j->worst > c->o.host_bytes)
		return NO_ROOM; /* emptying the cache would not help */
	for (unsigned i = 0; i < ROUNDS_AT_ONCE; i++) {
		if (reserve(j) == 0)
			return ROOM;
		if (!evict_may(j->tenant->cache))
			break;
		if (!evict_for(j, &own)) {
			if (own ? j->tenant->reserved > 0 : c->commits.reserved > 0)
				return NO_ROOM_YET; /* a commit that ends comes back here */
			return NO_ROOM;
		}
	}
	jobs_wake(j->tenant->cache);
	return NO_ROOM_YET;
}

/* Jobs of one tenant that want room, in their order. */
static void feed_tenant(struct cache_tenant *t)
{
	struct cache *c = t->cache;
	struct cache_job *j;

	while ((j = t->starved.first)) {
		enum room room;

		if (j->cancelled) {
			job_give_up(job_pop(&t->starved));
			continue;
		}
		room = make_room(j);
		if (room == NO_ROOM_YET)
			return;
		if (room == ROOM) {
			job_push(&c->commits.ready, job_pop(&t->starved));
			continue;
		}
		j = job_pop_last(&t->starved);
		job_refuse(j, KVG_CODE_NO_SPACE,
			"all that could make room is pinned or may not go: release pins or raise "
			"host_bytes");
		job_finish(j);
	}
}

static void feed_workers(struct cache *c)
{
	struct cache_job *j;

	while ((j = c->commits.ready.first)) {
		if (j->cancelled) {
			job_pop(&c->commits.ready);
			commit_unreserve(j, 0);
			job_give_up(j);
			continue;
		}
		if (!workers_try_submit(c->commits.workers, &j->work))
			return;
		job_pop(&c->commits.ready);
		j->running = true;
	}
}

void commit_feed(struct cache *c)
{
	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		feed_tenant(t);
	verifications_feed(c);
	feed_workers(c);
}
