/* SPDX-License-Identifier: Apache-2.0 */
/*
 * job: one commit on its way - its state, the lists it stands in, its end; private to daemon/cache/commit*.c.
 * Thread: the control thread; a worker while `running`. Locks: none. Blocks: never. Errors: enum kvg_code.
 */
#ifndef KVGATE_DAEMON_CACHE_JOB_H
#define KVGATE_DAEMON_CACHE_JOB_H

#include "daemon/cache/pack.h"
#include "daemon/cache/tenant.h"
#include "daemon/cache/workers.h"

struct cache_job {
	struct work work;
	struct cache_job *next;           /* in the list it is in */
	struct cache_job *next_in_flight; /* in the table */
	struct job_list waiters;
	struct cache_tenant *tenant;
	struct cache_layout *layout;
	struct staging *staging; /* NULL when no longer needed */
	uint64_t seq;
	bool in_table, running, cancelled, check_key, has_parent;
	struct kvg_key key, parent_key;
	struct block *parent; /* held */
	struct kv_shape shape;
	struct pack_job pack;
	uint64_t worst; /* page bytes to reserve */
	cache_commit_fn done;
	void *userdata;
	struct cache_commit_result result;
	uint32_t ids[]; /* [tokens], when they were staged */
};

struct cache_job *job_of(struct work *w);

void job_push(struct job_list *l, struct cache_job *j);
void job_push_ordered(struct job_list *l, struct cache_job *j); /* by submission */
struct cache_job *job_pop(struct job_list *l);                  /* NULL: empty */
struct cache_job *job_pop_last(struct job_list *l);             /* not empty */

/* The table of keys in flight. */
struct cache_job *job_in_flight(
	struct cache *c, const struct cache_layout *l, const struct kvg_key *key);
void job_table_add(struct cache *c, struct cache_job *j);

/* The result, not yet the end. */
void job_refuse(struct cache_job *j, int code, const char *why);
/* The result stands: whoever waited is to be looked at again, the callback to be called: commits_retry() sees to both. */
void job_finish(struct cache_job *j);
void job_give_up(struct cache_job *j); /* refused and finished: cancelled */
/* Calls back for what has finished. From the loop only. */
void jobs_deliver(struct cache *c);
/* The commits' timer comes with the next turn of the loop. */
void jobs_wake(struct cache *c);

/* commit_room.c: jobs that wait for room, and for the workers. */
void commit_feed(struct cache *c);
void commit_hungry(struct cache_tenant *t); /* a job of this tenant is about to wait */
void commit_unreserve(struct cache_job *j, uint64_t used); /* `used` of it is a block's now */

/* commit_pack.c: what the workers do with a job, and the workers. idle runs after every batch of results. */
void commit_prepare(struct cache_job *j);
int commit_workers_new(struct cache *c, void (*idle)(void *cache));

#endif
