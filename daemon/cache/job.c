/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lists are singly linked with a pointer to the end: a job is in one of them at a time, so it carries one link. The table of
 * keys in flight is apart from them: most jobs are in a list and in the table.
 */
#include "daemon/cache/job.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/evictor.h"

struct cache_job *job_of(struct work *w)
{
	return (struct cache_job *)((char *)w - offsetof(struct cache_job, work));
}

/* ---- lists, the table ---- */

void job_list_init(struct job_list *l)
{
	l->first = NULL;
	l->end = &l->first;
}

void job_push(struct job_list *l, struct cache_job *j)
{
	j->next = NULL;
	*l->end = j;
	l->end = &j->next;
}

struct cache_job *job_pop(struct job_list *l)
{
	struct cache_job *j = l->first;

	if (j) {
		l->first = j->next;
		if (!l->first)
			l->end = &l->first;
	}
	return j;
}

static const struct cache_job *last(const struct job_list *l)
{
	return (const struct cache_job *)((const char *)l->end - offsetof(struct cache_job, next));
}

/* In the order of submission: a child whose parent has just come goes before what was submitted after it. */
void job_push_ordered(struct job_list *l, struct cache_job *j)
{
	struct cache_job **at = &l->first;

	if (l->first && last(l)->seq < j->seq)
		at = l->end; /* the common case */
	while (*at && (*at)->seq < j->seq)
		at = &(*at)->next;
	j->next = *at;
	*at = j;
	if (!j->next)
		l->end = &j->next;
}

struct cache_job *job_pop_last(struct job_list *l)
{
	struct cache_job **at = &l->first, *j;

	while ((*at)->next)
		at = &(*at)->next;
	j = *at;
	*at = NULL;
	l->end = at;
	return j;
}

static void append(struct job_list *l, struct job_list *from)
{
	if (from->first) {
		*l->end = from->first;
		l->end = from->end;
		job_list_init(from);
	}
}

static struct cache_job **bucket(struct cache *c, const struct kvg_key *key)
{
	return &c->commits.in_flight[kvg_key_bucket(key, COMMIT_BUCKETS)];
}

struct cache_job *job_in_flight(
	struct cache *c, const struct cache_layout *l, const struct kvg_key *key)
{
	struct cache_job *j = *bucket(c, key);

	while (j && (j->layout != l || memcmp(&j->key, key, sizeof(*key))))
		j = j->next_in_flight;
	return j;
}

void job_table_add(struct cache *c, struct cache_job *j)
{
	struct cache_job **at = bucket(c, &j->key);

	j->next_in_flight = *at;
	*at = j;
	j->in_table = true;
}

static void table_remove(struct cache *c, struct cache_job *j)
{
	struct cache_job **at = bucket(c, &j->key);

	while (*at != j)
		at = &(*at)->next_in_flight;
	*at = j->next_in_flight;
	j->in_table = false;
}

void jobs_wake(struct cache *c)
{
	if (!c->commits.awake)
		loop_arm(c->commits.timer, 0, 0);
	c->commits.awake = true;
}

/* ---- the end of a job ---- */

void job_refuse(struct cache_job *j, int code, const char *why)
{
	j->result.code = code;
	snprintf(j->result.error, sizeof(j->result.error), "%s", why);
}

/* The result stands. Whoever waited is looked at again; the callback comes later. */
void job_finish(struct cache_job *j)
{
	struct cache *c = j->tenant->cache;
	struct counter_scope *s = j->layout->counters;

	if (j->in_table)
		table_remove(c, j);
	if (j->parent) {
		j->parent->uses--;
		j->parent = NULL;
		evict_ask_again(c);
	}
	if (j->staging)
		j->staging = staging_unref(j->staging);
	if (j->result.code == KVG_CODE_EXISTS)
		counter_add(s, COUNTER_COMMIT_EXISTS, 0, 1);
	else if (j->result.code != KVG_CODE_OK && !j->cancelled)
		counter_add(s, COUNTER_COMMIT_REFUSED, 0, 1);
	if (j->result.code == KVG_CODE_COLLISION)
		counter_add(s, COUNTER_COLLISIONS, 0, 1);
	append(&c->commits.admit, &j->waiters);
	job_push(&c->commits.finished, j);
}

void job_give_up(struct cache_job *j)
{
	job_refuse(j, KVG_CODE_SHUTTING_DOWN, "cancelled");
	job_finish(j);
}

void jobs_deliver(struct cache *c)
{
	struct cache_job *j;

	while ((j = job_pop(&c->commits.finished))) {
		counter_add(j->tenant->counters, COUNTER_IN_FLIGHT, 0, -1);
		c->commits.n--;
		if (!j->cancelled && !c->commits.stopping)
			j->done(j->userdata, &j->result);
		cache_layout_drop(j->layout);
		free(j);
	}
}
