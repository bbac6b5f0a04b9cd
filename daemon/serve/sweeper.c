/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Freeing a GiB of shared memory page by page would keep the control thread from everything else for as long as some
 * thousand requests take. So it is done beside it: the queue goes to the thread, what is finished comes back
 * through loop_post(), where the run becomes free for new stages and the charge ends.
 *
 * Small runs are punched where they are: a hand-over costs more than they do.
 */
#include "daemon/serve/sweeper.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

#define INLINE_BYTES (256u << 10) /* some 10 us of punching */

struct sweep {
	struct loop_work done;
	struct sweep *next;
	struct sweeper *sweeper;
	struct staging *staging;
	bool whole; /* the reference goes; else only a run */
	uint64_t offset, bytes;
	struct charge charge;
};

struct sweeper {
	struct loop *loop;
	pthread_t thread;
	uint64_t backlog; /* bytes of references not gone yet; the control thread's */
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct sweep *first, **end; /* under the lock, as is stop */
	bool stop;
};

static void enqueue(struct sweeper *s, struct sweep *job)
{
	job->sweeper = s;
	job->next = NULL;
	pthread_mutex_lock(&s->lock);
	*s->end = job;
	s->end = &job->next;
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->lock);
}

static void on_done(struct loop_work *w)
{
	struct sweep *job = (struct sweep *)((char *)w - offsetof(struct sweep, done));

	if (!job->whole) { /* the session may have gone meanwhile: then this reference is the last one, and slow */
		staging_free_run(job->staging, job->offset, job->bytes);
		*job = (struct sweep){
			.sweeper = job->sweeper, .staging = job->staging, .whole = true};
		enqueue(job->sweeper, job);
		return;
	}
	job->sweeper->backlog -= job->bytes;
	charge_fini(&job->charge);
	free(job);
}

static struct sweep *dequeue(struct sweeper *s)
{
	struct sweep *job = s->first;

	if (job)
		s->first = job->next;
	if (!s->first)
		s->end = &s->first;
	return job;
}

static void sweep_one(struct sweep *job)
{
	if (job->whole)
		staging_unref(job->staging);
	else
		staging_punch(job->staging, job->offset, job->bytes);
	job->done.fn = on_done;
}

static void *sweep_all(void *arg)
{
	struct sweeper *s = arg;

	pthread_setname_np(pthread_self(), "kvg-sweeper");
	pthread_mutex_lock(&s->lock);
	while (!s->stop || s->first) {
		struct sweep *job = dequeue(s);

		if (!job) {
			pthread_cond_wait(&s->wake, &s->lock);
			continue;
		}
		pthread_mutex_unlock(&s->lock);
		sweep_one(job);
		loop_post(s->loop, &job->done);
		pthread_mutex_lock(&s->lock);
	}
	pthread_mutex_unlock(&s->lock);
	return NULL;
}

int sweeper_new(struct loop *loop, struct sweeper **ret)
{
	struct sweeper *s = calloc(1, sizeof(*s));
	int r;

	if (!s)
		return -ENOMEM;
	s->loop = loop;
	s->end = &s->first;
	pthread_mutex_init(&s->lock, NULL);
	pthread_cond_init(&s->wake, NULL);
	r = pthread_create(&s->thread, NULL, sweep_all, s);
	if (r) {
		pthread_cond_destroy(&s->wake);
		pthread_mutex_destroy(&s->lock);
		free(s);
		return -r;
	}
	*ret = s;
	return 0;
}

struct sweeper *sweeper_free(struct sweeper *s)
{
	if (!s)
		return NULL;
	pthread_mutex_lock(&s->lock);
	s->stop = true;
	pthread_cond_signal(&s->wake);
	pthread_mutex_unlock(&s->lock);
	pthread_join(s->thread, NULL);
	loop_run_posted(s->loop);
	for (struct sweep *job = dequeue(s); job; job = dequeue(s)) { /* what came back once more */
		sweep_one(job);
		on_done(&job->done);
	}
	pthread_cond_destroy(&s->wake);
	pthread_mutex_destroy(&s->lock);
	free(s);
	return NULL;
}

void sweeper_release(struct sweeper *s, struct staging *from, uint64_t offset, uint64_t bytes)
{
	struct sweep *job = bytes > INLINE_BYTES ? malloc(sizeof(*job)) : NULL;

	if (!job) {
		staging_release(from, offset, bytes);
		return;
	}
	*job = (struct sweep){.staging = staging_ref(from), .offset = offset, .bytes = bytes};
	enqueue(s, job);
}

void sweeper_unref(
	struct sweeper *s, struct staging *staging, uint64_t bytes, struct charge *charge)
{
	struct sweep *job = malloc(sizeof(*job));

	if (!job) {
		staging_unref(staging);
		charge_fini(charge);
		return;
	}
	*job = (struct sweep){.staging = staging, .whole = true, .bytes = bytes};
	if (charge->account && s->backlog + bytes > charge->account->limit[charge->resource])
		job->charge = *charge;
	else
		charge_fini(charge);
	*charge = (struct charge){0};
	s->backlog += bytes;
	enqueue(s, job);
}
