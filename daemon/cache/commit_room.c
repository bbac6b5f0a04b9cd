/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room for a commit is budget in the pool, quota of the tenant and a slot in the index, taken together for the worst case
 * before anything is packed. Three answers when there is none: eviction helps, so the loop turns once more; others hold
 * reservations, which will come back, so their end is waited for; neither, so somebody is refused.
 *
 * Who is refused is the youngest: a job that waits holds its parent, and that may be all that the oldest waits for.
 *
 * Tenants share the workers by bytes. Next is the one that had least of them packed, and who waited for nothing begins where
 * the last one stood: a tenant's thousand commits cost another's single one the queue in front of the workers, which is
 * short in number and in bytes. Room is reserved only for what enters that queue, so nobody holds more of it than that.
 */
#include "daemon/cache/evictor.h"
#include "daemon/cache/job.h"
#include "daemon/cache/mover.h"

#include <assert.h>
#include <errno.h>

#define ROUNDS_AT_ONCE    2 /* of eviction for one commit before the loop has its turn */
#define QUEUED_PER_WORKER (32ull << 20) /* bytes: a few milliseconds of packing */
#define FED_AT_ONCE       32 /* the workers may empty their queue as fast as it is filled */

enum room {
	ROOM,
	NO_ROOM_YET, /* in the tenant's own quota or index */
	NO_ROOM_IN_ALL_YET, /* in host_bytes: what comes free is this job's, or large ones would never have their turn */
	NO_ROOM
};

static int reserve(struct cache_job *j)
{
	struct cache_tenant *t = j->tenant;

	if (index_slots_free(t->index) <= t->reserved_slots ||
		t->used + t->reserved + t->lifting + j->worst > t->quota ||
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

/* One round of eviction for this job. */
static enum evicted evict_for(struct cache_job *j, bool *ret_own)
{
	struct cache_tenant *t = j->tenant;
	struct pool_stat st;
	const uint64_t wanted = t->used + t->reserved + t->lifting + j->worst;
	const uint64_t slots = index_slots_free(t->index) <= t->reserved_slots;

	*ret_own = slots || wanted > t->quota;
	if (*ret_own)
		return evict_round(t, wanted > t->quota ? wanted - t->quota : 0, slots);
	pool_stat(t->cache->pool, &st);
	if (st.used + st.reserved + j->worst <= st.budget)
		return EVICTED_SOME;
	return evict_anyone(t->cache, st.used + st.reserved + j->worst - st.budget);
}

static enum room make_room(struct cache_job *j)
{
	const struct cache *c = j->tenant->cache;
	bool own = false;

	if (j->worst > j->tenant->quota || j->worst > c->o.host_bytes)
		return NO_ROOM; /* emptying the cache would not help */
	for (unsigned i = 0; i < ROUNDS_AT_ONCE; i++) {
		if (reserve(j) == 0)
			return ROOM;
		if (!evict_may(j->tenant->cache))
			break;
		switch (evict_for(j, &own)) {
		case EVICTED_NOTHING:
			if ((own ? !j->tenant->reserved : !c->commits.reserved) && !mover_busy(c))
				return NO_ROOM;
			return own ? NO_ROOM_YET
				   : NO_ROOM_IN_ALL_YET; /* what ends comes back here */
		case EVICTED_LATER:
			return own ? NO_ROOM_YET : NO_ROOM_IN_ALL_YET;
		case EVICTED_SOME:
			jobs_wake(j->tenant->cache);
		}
	}
	return own ? NO_ROOM_YET : NO_ROOM_IN_ALL_YET;
}

void commit_hungry(struct cache_tenant *t)
{
	const uint64_t now = t->cache->commits.served;

	if (!t->starved.first && t->served < now)
		t->served = now;
}

static bool workers_busy(struct cache *c)
{
	return workers_full(c->commits.workers) ||
		c->commits.reserved >= c->o.pack_workers * QUEUED_PER_WORKER;
}

/* Of those whose jobs wait, the one that had least. */
static struct cache_tenant *next_tenant(struct cache *c)
{
	struct cache_tenant *least = NULL;

	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		if (t->starved.first && t->not_fed != c->commits.feeding &&
			(!least || t->served < least->served))
			least = t;
	return least;
}

/* One job of the tenant goes on, or ends, or is found to have to wait. False: so have all others. */
static bool feed(struct cache_tenant *t)
{
	struct cache *c = t->cache;
	struct cache_job *j = t->starved.first;

	if (j->cancelled) {
		job_give_up(job_pop(&t->starved));
		return true;
	}
	switch (make_room(j)) {
	case ROOM:
		job_pop(&t->starved);
		c->commits.served = t->served;
		t->served += j->worst;
		j->running = true;
		workers_submit(c->commits.workers, &j->work);
		break;
	case NO_ROOM:
		j = job_pop_last(&t->starved);
		job_refuse(j, KVG_CODE_NO_SPACE,
			"all that could make room is pinned or may not go: release pins or raise "
			"host_bytes");
		job_finish(j);
		break;
	case NO_ROOM_YET:
		t->not_fed = c->commits.feeding;
		break;
	case NO_ROOM_IN_ALL_YET:
		return false;
	}
	return true;
}

void commit_feed(struct cache *c)
{
	struct cache_tenant *t;

	c->commits.feeding++;
	verifications_feed(c);
	for (unsigned n = 0; !c->commits.stopping && !workers_busy(c) && (t = next_tenant(c));
		n++) {
		if (n == FED_AT_ONCE) {
			jobs_wake(c);
			break;
		}
		if (!feed(t))
			break;
	}
}
