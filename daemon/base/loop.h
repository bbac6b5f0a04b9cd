/* SPDX-License-Identifier: Apache-2.0 */
/*
 * loop: epoll event loop - fds, timers, signals, work posted from other threads.
 * Thread: the thread that made it owns it (asserted); only loop_post() may be called from others.
 * Locks: one around the post queue. Blocks: loop_run() only. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_BASE_LOOP_H
#define KVGATE_DAEMON_BASE_LOOP_H

#include <signal.h>
#include <stdint.h>

struct loop;
struct loop_source; /* an fd */
struct loop_timer;

int loop_new(struct loop **ret);
struct loop *loop_free(struct loop *l); /* no sources or timers left (asserted) */

/* events: EPOLLIN ...; the source borrows fd. Removing a source in its own or another callback is safe. */
typedef void (*loop_fd_fn)(void *userdata, uint32_t events);
int loop_add_fd(struct loop *l, int fd, uint32_t events, loop_fd_fn fn, void *userdata,
	struct loop_source **ret);
int loop_set_events(struct loop_source *s, uint32_t events);
struct loop_source *loop_del_fd(struct loop_source *s); /* NULL in, NULL out */

/* CLOCK_MONOTONIC; period 0: once, then disarmed. */
typedef void (*loop_timer_fn)(void *userdata);
int loop_add_timer(struct loop *l, loop_timer_fn fn, void *userdata, struct loop_timer **ret);
int loop_arm(struct loop_timer *t, uint64_t after_ns, uint64_t period_ns);
void loop_disarm(struct loop_timer *t);
struct loop_timer *loop_del_timer(struct loop_timer *t);

/* Blocks the signal in the calling thread and delivers it here. */
typedef void (*loop_signal_fn)(void *userdata, int signo);
int loop_add_signal(struct loop *l, int signo, loop_signal_fn fn, void *userdata);

/* Runs fn on the loop's thread soon. Caller's memory, from any thread; the item must not be posted already. */
struct loop_work {
	void (*fn)(struct loop_work *w);
	struct loop_work *next;
};
void loop_post(struct loop *l, struct loop_work *w);
/* Runs what was posted so far: before memory goes that posted items lie in. */
void loop_run_posted(struct loop *l);

int loop_run(struct loop *l); /* until loop_quit(); 0 or negative errno */
void loop_quit(struct loop *l);
/* One round: waits up to timeout_ms (-1 = for ever). For tests. */
int loop_run_once(struct loop *l, int timeout_ms);
/* Which round this is, so that somebody can bound what he does in one. */
uint64_t loop_turn(const struct loop *l);
uint64_t loop_now_ns(void); /* CLOCK_MONOTONIC */
void loop_assert_owner(const struct loop *l);

#endif
