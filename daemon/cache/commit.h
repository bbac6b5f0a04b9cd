/* SPDX-License-Identifier: Apache-2.0 */
/*
 * commit: staged blocks on their way into the index; private to daemon/cache.
 * Thread: the control thread; the packing itself runs on the workers. Locks: none but the workers'.
 * Blocks: never. Errors: enum kvg_code, through the callback.
 */
#ifndef KVGATE_DAEMON_CACHE_COMMIT_H
#define KVGATE_DAEMON_CACHE_COMMIT_H

#include <stdbool.h>
#include <stdint.h>

struct cache;
struct cache_job;
struct cache_tenant;
struct loop_timer;
struct workers;

struct job_list {
	struct cache_job *first, **end;
};

#define COMMIT_BUCKETS                                                                             \
	4096 /* of the table of keys in flight; sessions' quotas bound how many there are */

struct commits {
	struct workers *workers;
	struct loop_timer *
		timer; /* armed when there is something to do that must not be done where it came up */
	struct cache_job *in_flight[COMMIT_BUCKETS];
	struct job_list admit;    /* to be looked at (again) */
	struct job_list finished; /* results to be told */
	uint64_t n;               /* jobs that exist */
	uint64_t next_seq;
	uint64_t reserved; /* bytes, all tenants */
	uint64_t served;   /* cache_tenant.served of the tenant whose turn came last */
	uint64_t feeding;  /* a number for each commit_feed() */
	uint64_t defects;  /* commits that failed by no fault of their client */
	bool awake;        /* the timer is armed */
	bool stopping;     /* nothing new is begun */
};

int commits_init(struct cache *c);
void commits_fini(
	struct cache *c); /* waits for the workers; every job's end is reported to nobody */
void job_list_init(struct job_list *l);
/* Room may have been made, or never will be: starts or refuses commits that wait. */
void commits_retry(struct cache *c);

#endif
