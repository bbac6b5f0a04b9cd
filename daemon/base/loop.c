/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One epoll set, level-triggered. A round takes the events that are ready.
 *
 * A callback may remove any source, also one whose event waits later in the same round. So a removed source is only
 * marked and unlinked from epoll; its memory goes when the round is over (`graveyard`). The same for timers.
 *
 * Timers are a plain list: the daemon has a handful of them, and finding the next one is a few loads. One timerfd is
 * set to the earliest, so that a round in which none is due does not even ask for the time.
 *
 * Work from other threads goes through a locked queue and an eventfd. The queue is taken as a whole and run in its
 * order; what is posted meanwhile runs in the next round, so that nobody can starve the fds.
 */
#include "daemon/base/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define EVENTS_PER_ROUND 64 /* bounds a round; what is left over comes with the next one */
#define SIGNALS_MAX      65 /* signal numbers of Linux */

struct loop_source {
	struct loop *loop;
	int fd;
	loop_fd_fn fn; /* NULL: removed, waiting in the graveyard */
	void *userdata;
	struct loop_source *next_dead;
};

struct loop_timer {
	struct loop *loop;
	loop_timer_fn fn; /* NULL: removed */
	void *userdata;
	uint64_t due; /* 0: disarmed */
	uint64_t period;
	struct loop_timer *next, **link;
};

struct loop {
	pthread_t owner;
	int epoll;
	bool quit;
	uint64_t turn;
	unsigned n_sources;
	struct loop_source *graveyard;
	struct loop_timer *timers, *dead_timers;
	int timer_fd;
	struct loop_source *timer_source;
	uint64_t wake; /* what timer_fd is set to, 0: nothing */

	sigset_t signals;
	struct loop_source *signal_source;
	struct {
		loop_signal_fn fn;
		void *userdata;
	} on_signal[SIGNALS_MAX];

	int post_fd;
	struct loop_source *post_source;
	pthread_mutex_t post_lock; /* protects the two below */
	struct loop_work *posted, **posted_end;
};

uint64_t loop_now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

void loop_assert_owner(const struct loop *l)
{
	assert(pthread_equal(l->owner, pthread_self()));
}

/* ---- fds ---- */

int loop_add_fd(struct loop *l, int fd, uint32_t events, loop_fd_fn fn, void *userdata,
	struct loop_source **ret)
{
	struct loop_source *s;
	struct epoll_event e = {.events = events};

	loop_assert_owner(l);
	s = malloc(sizeof(*s));
	if (!s)
		return -ENOMEM;
	*s = (struct loop_source){.loop = l, .fd = fd, .fn = fn, .userdata = userdata};
	e.data.ptr = s;
	if (epoll_ctl(l->epoll, EPOLL_CTL_ADD, fd, &e) < 0) {
		int r = -errno;

		free(s);
		return r;
	}
	l->n_sources++;
	*ret = s;
	return 0;
}

int loop_set_events(struct loop_source *s, uint32_t events)
{
	struct epoll_event e = {.events = events, .data.ptr = s};

	loop_assert_owner(s->loop);
	return epoll_ctl(s->loop->epoll, EPOLL_CTL_MOD, s->fd, &e) < 0 ? -errno : 0;
}

struct loop_source *loop_del_fd(struct loop_source *s)
{
	struct loop *l;

	if (!s)
		return NULL;
	l = s->loop;
	loop_assert_owner(l);
	assert(s->fn);
	epoll_ctl(l->epoll, EPOLL_CTL_DEL, s->fd, NULL);
	s->fn = NULL;
	s->next_dead = l->graveyard;
	l->graveyard = s;
	l->n_sources--;
	return NULL;
}

static void bury(struct loop *l)
{
	while (l->graveyard) {
		struct loop_source *s = l->graveyard;

		l->graveyard = s->next_dead;
		free(s);
	}
	while (l->dead_timers) {
		struct loop_timer *t = l->dead_timers;

		l->dead_timers = t->next;
		free(t);
	}
}

/* ---- timers ---- */

int loop_add_timer(struct loop *l, loop_timer_fn fn, void *userdata, struct loop_timer **ret)
{
	struct loop_timer *t;

	loop_assert_owner(l);
	t = malloc(sizeof(*t));
	if (!t)
		return -ENOMEM;
	*t = (struct loop_timer){.loop = l, .fn = fn, .userdata = userdata};
	t->next = l->timers;
	t->link = &l->timers;
	if (t->next)
		t->next->link = &t->next;
	l->timers = t;
	*ret = t;
	return 0;
}

static struct loop_timer *earliest(const struct loop *l)
{
	struct loop_timer *first = NULL;

	for (struct loop_timer *t = l->timers; t; t = t->next)
		if (t->due && (!first || t->due < first->due))
			first = t;
	return first;
}

static void set_wake(struct loop *l, uint64_t at)
{
	const struct itimerspec when = {
		.it_value = {.tv_sec = (time_t)(at / 1000000000u),
			.tv_nsec = (long)(at % 1000000000u)},
	};
	int r = timerfd_settime(l->timer_fd, TFD_TIMER_ABSTIME, &when, NULL);

	assert(r == 0);
	l->wake = at;
}

int loop_arm(struct loop_timer *t, uint64_t after_ns, uint64_t period_ns)
{
	struct loop *l = t->loop;

	loop_assert_owner(l);
	t->due = loop_now_ns() + after_ns;
	t->period = period_ns;
	if (!l->wake || t->due < l->wake)
		set_wake(l, t->due);
	return 0;
}

/* timer_fd stays as it is: it may wake the loop once for nothing. */
void loop_disarm(struct loop_timer *t)
{
	loop_assert_owner(t->loop);
	t->due = 0;
}

struct loop_timer *loop_del_timer(struct loop_timer *t)
{
	struct loop *l;

	if (!t)
		return NULL;
	l = t->loop;
	loop_assert_owner(l);
	assert(t->fn);
	*t->link = t->next;
	if (t->next)
		t->next->link = t->link;
	t->fn = NULL;
	t->next = l->dead_timers;
	l->dead_timers = t;
	return NULL;
}

/* Every timer that is due at `now`, once. A period that was missed altogether is not made up for. */
static void on_timer_fd(void *userdata, uint32_t events)
{
	struct loop *l = userdata;
	uint64_t now = loop_now_ns(), expirations;
	struct loop_timer *t;

	(void)events;
	if (read(l->timer_fd, &expirations, sizeof(expirations)) < 0)
		return; /* armed again since */
	l->wake = 0;
	for (t = earliest(l); t && t->due <= now; t = earliest(l)) {
		if (!t->period)
			t->due = 0;
		else if (t->due + t->period > now)
			t->due += t->period;
		else
			t->due = now + t->period;
		t->fn(t->userdata);
	}
	if (t && (!l->wake || t->due < l->wake))
		set_wake(l, t->due);
}

/* ---- signals ---- */

static void on_signal_fd(void *userdata, uint32_t events)
{
	struct loop *l = userdata;
	struct signalfd_siginfo info;

	(void)events;
	while (read(l->signal_source->fd, &info, sizeof(info)) == sizeof(info))
		if (info.ssi_signo < SIGNALS_MAX && l->on_signal[info.ssi_signo].fn)
			l->on_signal[info.ssi_signo].fn(
				l->on_signal[info.ssi_signo].userdata, (int)info.ssi_signo);
}

int loop_add_signal(struct loop *l, int signo, loop_signal_fn fn, void *userdata)
{
	sigset_t one;
	int fd, r;

	loop_assert_owner(l);
	assert(signo > 0 && signo < SIGNALS_MAX);
	sigemptyset(&one);
	sigaddset(&one, signo);
	sigaddset(&l->signals, signo);
	l->on_signal[signo].fn = fn;
	l->on_signal[signo].userdata = userdata;
	r = pthread_sigmask(SIG_BLOCK, &one, NULL);
	if (r)
		return -r;
	fd = signalfd(l->signal_source ? l->signal_source->fd : -1, &l->signals,
		SFD_CLOEXEC | SFD_NONBLOCK);
	if (fd < 0)
		return -errno;
	if (l->signal_source)
		return 0;
	r = loop_add_fd(l, fd, EPOLLIN, on_signal_fd, l, &l->signal_source);
	if (r < 0)
		close(fd);
	return r;
}

/* ---- work from other threads ---- */

void loop_post(struct loop *l, struct loop_work *w)
{
	bool first;

	w->next = NULL;
	pthread_mutex_lock(&l->post_lock);
	first = !l->posted;
	*l->posted_end = w;
	l->posted_end = &w->next;
	/* under the lock, so that the loop cannot be torn down between queue and wake-up */
	if (first)
		eventfd_write(l->post_fd, 1);
	pthread_mutex_unlock(&l->post_lock);
}

void loop_run_posted(struct loop *l)
{
	struct loop_work *w, *next;
	eventfd_t n;

	loop_assert_owner(l);
	pthread_mutex_lock(&l->post_lock);
	eventfd_read(l->post_fd, &n);
	w = l->posted;
	l->posted = NULL;
	l->posted_end = &l->posted;
	pthread_mutex_unlock(&l->post_lock);
	for (; w; w = next) {
		next = w->next; /* fn may free or post the item again */
		w->fn(w);
	}
}

static void on_post(void *userdata, uint32_t events)
{
	(void)events;
	loop_run_posted(userdata);
}

/* ---- the loop ---- */

int loop_new(struct loop **ret)
{
	struct loop *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return -ENOMEM;
	l->owner = pthread_self();
	l->epoll = l->post_fd = l->timer_fd = -1;
	l->posted_end = &l->posted;
	sigemptyset(&l->signals);
	pthread_mutex_init(&l->post_lock, NULL);
	l->epoll = epoll_create1(EPOLL_CLOEXEC);
	if (l->epoll < 0)
		goto error;
	l->post_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	l->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (l->post_fd < 0 || l->timer_fd < 0)
		goto error;
	r = loop_add_fd(l, l->post_fd, EPOLLIN, on_post, l, &l->post_source);
	if (r == 0)
		r = loop_add_fd(l, l->timer_fd, EPOLLIN, on_timer_fd, l, &l->timer_source);
	if (r == 0) {
		*ret = l;
		return 0;
	}
	errno = -r;
error:
	r = -errno;
	loop_free(l);
	return r;
}

struct loop *loop_free(struct loop *l)
{
	if (!l)
		return NULL;
	loop_assert_owner(l);
	if (l->signal_source) {
		int fd = l->signal_source->fd;

		loop_del_fd(l->signal_source);
		close(fd);
	}
	loop_del_fd(l->post_source);
	loop_del_fd(l->timer_source);
	assert(l->n_sources == 0 && !l->timers);
	bury(l);
	if (l->post_fd >= 0)
		close(l->post_fd);
	if (l->timer_fd >= 0)
		close(l->timer_fd);
	if (l->epoll >= 0)
		close(l->epoll);
	pthread_mutex_destroy(&l->post_lock);
	free(l);
	return NULL;
}

int loop_run_once(struct loop *l, int timeout_ms)
{
	struct epoll_event events[EVENTS_PER_ROUND];
	int n;

	loop_assert_owner(l);
	l->turn++;
	n = epoll_wait(l->epoll, events, EVENTS_PER_ROUND, timeout_ms);
	if (n < 0 && errno != EINTR)
		return -errno;
	for (int i = 0; i < n; i++) {
		struct loop_source *s = events[i].data.ptr;

		if (s->fn)
			s->fn(s->userdata, events[i].events);
	}
	bury(l);
	return 0;
}

uint64_t loop_turn(const struct loop *l)
{
	return l->turn;
}

int loop_run(struct loop *l)
{
	int r = 0;

	l->quit = false;
	while (!l->quit && r == 0)
		r = loop_run_once(l, -1);
	return r;
}

void loop_quit(struct loop *l)
{
	loop_assert_owner(l);
	l->quit = true;
}
