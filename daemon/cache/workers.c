/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two lists under one lock: `todo`, which the workers empty, and `finished`, which the loop takes as a whole when the
 * eventfd wakes it. An eventfd of our own and not loop_post(): it can be taken out of the loop, so that nothing of a cache
 * that was freed is left in the loop's queue.
 */
#include "daemon/cache/workers.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "daemon/base/loop.h"

#define QUEUED_PER_WORKER                                                                          \
	8 /* keeps a worker busy while the loop is; more would only hold staging memory */

struct list {
	struct work *first, **end;
};

struct worker {
	struct workers *workers;
	pthread_t thread;
	void *context;
};

struct workers {
	struct workers_ops ops;
	struct loop_source *source;
	int event;
	unsigned n_contexts, n_threads, queue_max;
	pthread_mutex_t lock; /* protects what follows, up to `worker` */
	pthread_cond_t wake;
	unsigned queued;
	bool stop;
	struct list todo, finished;
	struct worker worker[];
};

static void list_init(struct list *l)
{
	l->first = NULL;
	l->end = &l->first;
}

static void list_push(struct list *l, struct work *w)
{
	w->next = NULL;
	*l->end = w;
	l->end = &w->next;
}

static struct work *list_pop(struct list *l)
{
	struct work *w = l->first;

	if (w) {
		l->first = w->next;
		if (!l->first)
			l->end = &l->first;
	}
	return w;
}

static void *worker_main(void *arg)
{
	struct worker *me = arg;
	struct workers *w = me->workers;

	pthread_mutex_lock(&w->lock);
	for (;;) {
		struct work *item = list_pop(&w->todo);
		bool first;

		if (!item) {
			if (w->stop)
				break;
			pthread_cond_wait(&w->wake, &w->lock);
			continue;
		}
		w->queued--;
		pthread_mutex_unlock(&w->lock);
		item->run(item, me->context);
		pthread_mutex_lock(&w->lock);
		first = !w->finished.first;
		list_push(&w->finished, item);
		if (first)
			eventfd_write(w->event, 1);
	}
	pthread_mutex_unlock(&w->lock);
	return NULL;
}

static void report(struct workers *w)
{
	struct work *item, *next;

	pthread_mutex_lock(&w->lock);
	item = w->finished.first;
	list_init(&w->finished);
	pthread_mutex_unlock(&w->lock);
	for (; item; item = next) {
		next = item->next;
		item->done(item);
	}
}

static void on_event(void *userdata, uint32_t events)
{
	struct workers *w = userdata;
	eventfd_t n;

	(void)events;
	eventfd_read(w->event, &n);
	report(w);
	w->ops.idle(w->ops.userdata);
}

static int start_threads(struct workers *w, unsigned n)
{
	sigset_t all, old;
	int r = 0;

	sigfillset(&all); /* signals are the loop's */
	pthread_sigmask(SIG_SETMASK, &all, &old);
	for (; r == 0 && w->n_threads < n; w->n_threads += r == 0)
		r = -pthread_create(&w->worker[w->n_threads].thread, NULL, worker_main,
			&w->worker[w->n_threads]);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	for (unsigned i = 0; i < w->n_threads; i++)
		pthread_setname_np(w->worker[i].thread, "kvg-pack");
	return r;
}

int workers_new(struct loop *loop, unsigned n, const struct workers_ops *ops, struct workers **ret)
{
	struct workers *w = calloc(1, sizeof(*w) + n * sizeof(w->worker[0]));
	int r = 0;

	assert(n);
	if (!w)
		return -ENOMEM;
	w->ops = *ops;
	w->queue_max = n * QUEUED_PER_WORKER;
	pthread_mutex_init(&w->lock, NULL);
	pthread_cond_init(&w->wake, NULL);
	list_init(&w->todo);
	list_init(&w->finished);
	w->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (w->event < 0)
		r = -errno;
	if (r == 0)
		r = loop_add_fd(loop, w->event, EPOLLIN, on_event, w, &w->source);
	for (; r == 0 && w->n_contexts < n; w->n_contexts += r == 0) {
		w->worker[w->n_contexts].workers = w;
		r = ops->context_new(&w->worker[w->n_contexts].context);
	}
	if (r == 0)
		r = start_threads(w, n);
	if (r < 0) {
		workers_free(w);
		return r;
	}
	*ret = w;
	return 0;
}

struct workers *workers_free(struct workers *w)
{
	if (!w)
		return NULL;
	pthread_mutex_lock(&w->lock);
	w->stop = true;
	pthread_cond_broadcast(&w->wake);
	pthread_mutex_unlock(&w->lock);
	for (unsigned i = 0; i < w->n_threads; i++)
		pthread_join(w->worker[i].thread, NULL);
	report(w);
	loop_del_fd(w->source);
	if (w->event >= 0)
		close(w->event);
	for (unsigned i = 0; i < w->n_contexts; i++)
		w->ops.context_free(w->worker[i].context);
	pthread_cond_destroy(&w->wake);
	pthread_mutex_destroy(&w->lock);
	free(w);
	return NULL;
}

bool workers_full(struct workers *w)
{
	bool full;

	pthread_mutex_lock(&w->lock);
	full = w->queued >= w->queue_max;
	pthread_mutex_unlock(&w->lock);
	return full;
}

void workers_submit(struct workers *w, struct work *item)
{
	pthread_mutex_lock(&w->lock);
	assert(w->queued < w->queue_max);
	w->queued++;
	list_push(&w->todo, item);
	pthread_cond_signal(&w->wake);
	pthread_mutex_unlock(&w->lock);
}
