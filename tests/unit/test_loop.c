/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/loop.h"

struct event {
	struct loop_source *source, *victim; /* victim: removed by the callback */
	int fd, count;
};

static void on_event(void *userdata, uint32_t events)
{
	struct event *e = userdata;

	assert_true(events & EPOLLIN);
	e->count++;
	e->victim = loop_del_fd(e->victim);
}

static void add(struct loop *l, struct event *e)
{
	*e = (struct event){.fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK)};
	assert_int_equal(loop_add_fd(l, e->fd, EPOLLIN, on_event, e, &e->source), 0);
}

/* Level-triggered: what is not taken is reported again, until the source is gone. */
static void test_fd(void **state)
{
	struct loop *l;
	struct event e;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	add(l, &e);
	for (int i = 1; i <= 3; i++) {
		assert_int_equal(loop_run_once(l, 1000), 0);
		assert_int_equal(e.count, i);
	}
	assert_int_equal(loop_set_events(e.source, 0), 0);
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(e.count, 3);
	assert_null(loop_del_fd(e.source));
	assert_null(loop_del_fd(NULL));
	close(e.fd);
	loop_free(l);
}

/* Two sources are ready in the same round, and each removes the other: the second one is never called. */
static void test_remove_other(void **state)
{
	struct loop *l;
	struct event a, b;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	add(l, &a);
	add(l, &b);
	a.victim = b.source;
	b.victim = a.source;
	assert_int_equal(loop_run_once(l, 1000), 0);
	assert_int_equal(a.count + b.count, 1);
	loop_del_fd(a.count ? a.source : b.source);
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(a.count + b.count, 1);
	close(a.fd);
	close(b.fd);
	loop_free(l);
}

static void test_remove_itself(void **state)
{
	struct loop *l;
	struct event e;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	add(l, &e);
	e.victim = e.source;
	assert_int_equal(loop_run_once(l, 1000), 0);
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(e.count, 1);
	close(e.fd);
	loop_free(l);
}

struct tick {
	struct loop_timer *timer, *victim;
	uint64_t at;
	int count;
};

static void on_tick(void *userdata)
{
	struct tick *t = userdata;

	t->count++;
	t->at = loop_now_ns();
	t->victim = loop_del_timer(t->victim);
}

static void run_for(struct loop *l, uint64_t ns)
{
	uint64_t end = loop_now_ns() + ns;

	while (loop_now_ns() < end)
		assert_int_equal(loop_run_once(l, 1), 0);
}

static void test_timers(void **state)
{
	struct tick once = {0}, often = {0}, never = {0};
	uint64_t start = loop_now_ns();
	struct loop *l;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &once, &once.timer), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &often, &often.timer), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &never, &never.timer), 0);
	loop_arm(once.timer, 20000000, 0);
	loop_arm(often.timer, 5000000, 5000000);
	loop_arm(never.timer, 1000000, 1000000);
	loop_disarm(never.timer);
	run_for(l, 100000000);
	assert_int_equal(once.count, 1);
	assert_true(once.at - start >= 20000000); /* never early */
	assert_true(often.count >= 3 && often.count <= 20);
	assert_int_equal(never.count, 0);
	/* a later one may be armed to be the next */
	loop_disarm(often.timer);
	loop_arm(once.timer, 3600000000000ull, 0);
	loop_arm(never.timer, 1000000, 0);
	run_for(l, 20000000);
	assert_int_equal(never.count, 1);
	assert_int_equal(once.count, 1);
	loop_del_timer(once.timer);
	loop_del_timer(often.timer);
	loop_del_timer(never.timer);
	assert_null(loop_del_timer(NULL));
	loop_free(l);
}

/* The next timer is the next one, whichever was armed first. */
static void test_earlier_timer(void **state)
{
	struct tick late = {0}, early = {0};
	struct loop *l;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &late, &late.timer), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &early, &early.timer), 0);
	loop_arm(late.timer, 3600000000000ull, 0);
	loop_arm(early.timer, 1000000, 0);
	assert_int_equal(loop_run_once(l, 5000), 0);
	assert_int_equal(early.count, 1);
	assert_int_equal(late.count, 0);
	loop_del_timer(late.timer);
	loop_del_timer(early.timer);
	loop_free(l);
}

static void test_timer_removes_timers(void **state)
{
	struct tick a = {0}, b = {0};
	struct loop *l;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &a, &a.timer), 0);
	assert_int_equal(loop_add_timer(l, on_tick, &b, &b.timer), 0);
	a.victim = b.timer;
	b.victim = a.timer;
	loop_arm(a.timer, 0, 0);
	loop_arm(b.timer, 0, 0);
	run_for(l, 5000000);
	assert_int_equal(a.count + b.count, 1);
	loop_del_timer(a.count ? a.timer : b.timer);
	loop_free(l);
}

static int got_signal;

static void on_signal(void *userdata, int signo)
{
	got_signal = signo;
	loop_quit(userdata);
}

static void test_signals(void **state)
{
	struct loop *l;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(loop_add_signal(l, SIGUSR1, on_signal, l), 0);
	assert_int_equal(loop_add_signal(l, SIGUSR2, on_signal, l), 0);
	kill(getpid(), SIGUSR2);
	assert_int_equal(loop_run(l), 0);
	assert_int_equal(got_signal, SIGUSR2);
	kill(getpid(), SIGUSR1);
	assert_int_equal(loop_run(l), 0);
	assert_int_equal(got_signal, SIGUSR1);
	loop_free(l);
}

#define WORKERS 4
#define POSTS   2000

struct item {
	struct loop_work work;
	struct loop *loop;
	int worker, n, again;
};
static int next_n[WORKERS], seen;

static void on_work(struct loop_work *w)
{
	struct item *i = (struct item *)w; /* work is its first member */

	if (i->worker >= 0)
		assert_int_equal(
			i->n, next_n[i->worker]++); /* in the order of each thread's posts */
	seen++;
	if (i->again-- > 0)
		loop_post(i->loop, w);
}

struct poster {
	struct loop *loop;
	struct item items[POSTS];
};

static void *post_all(void *arg)
{
	struct poster *p = arg;

	for (int i = 0; i < POSTS; i++)
		loop_post(p->loop, &p->items[i].work);
	return NULL;
}

static void test_post(void **state)
{
	static struct poster posters[WORKERS];
	pthread_t threads[WORKERS];
	struct loop *l;

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	for (int w = 0; w < WORKERS; w++) {
		posters[w].loop = l;
		for (int i = 0; i < POSTS; i++)
			posters[w].items[i] =
				(struct item){.work.fn = on_work, .worker = w, .n = i};
		assert_int_equal(pthread_create(&threads[w], NULL, post_all, &posters[w]), 0);
	}
	for (int i = 0; i < 100000 && seen < WORKERS * POSTS; i++)
		assert_int_equal(loop_run_once(l, 1000), 0);
	assert_int_equal(seen, WORKERS * POSTS);
	for (int w = 0; w < WORKERS; w++)
		pthread_join(threads[w], NULL);
	loop_free(l);
}

/* An item that posts itself again runs in the next round, so that fds have their turn. */
static void test_post_again(void **state)
{
	struct item i = {.work.fn = on_work, .worker = -1, .again = 2};
	struct loop *l;

	(void)state;
	seen = 0;
	assert_int_equal(loop_new(&l), 0);
	i.loop = l;
	loop_post(l, &i.work);
	for (int round = 1; round <= 3; round++) {
		assert_int_equal(loop_run_once(l, 1000), 0);
		assert_int_equal(seen, round);
	}
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(seen, 3);
	i.again = 0;
	loop_post(l, &i.work);
	loop_run_posted(l);
	assert_int_equal(seen, 4);
	assert_int_equal(loop_run_once(l, 0), 0);
	assert_int_equal(seen, 4);
	loop_free(l);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_fd),
		cmocka_unit_test(test_remove_other),
		cmocka_unit_test(test_remove_itself),
		cmocka_unit_test(test_timers),
		cmocka_unit_test(test_earlier_timer),
		cmocka_unit_test(test_timer_removes_timers),
		cmocka_unit_test(test_signals),
		cmocka_unit_test(test_post),
		cmocka_unit_test(test_post_again),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
