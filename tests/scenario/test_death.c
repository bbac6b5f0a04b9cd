/* SPDX-License-Identifier: Apache-2.0 */
/* A client that is gone holds nothing: pins, stages, commits in flight, sessions, quota. */
#include <assert.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"
#include "tests/lib/huge.h"
#include "tests/lib/raw.h"

#define BLOCKS 30
#define ROUNDS 25

struct task {
	const struct daemon_process *d;
	int ready; /* pipe: a byte when everything is held */
	int commit;
};

static int hold(void *arg)
{
	const struct task *t = arg;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	struct kvg_stage stages[BLOCKS];
	struct kvg_acquired acquired[BLOCKS];

	chain_keys(l, &model_small, 3, BLOCKS, keys);
	if (kvg_prefix_pin(l, keys, BLOCKS, 0.f, pins) != BLOCKS)
		return 1;
	if (kvg_acquire(l, keys, BLOCKS, 0.f, 1, acquired) != BLOCKS)
		return 2;
	if (kvg_stage(l, KVG_INPUT_SCORES, BLOCKS, stages) <= 0)
		return 3;
	if (t->commit) { /* a commit whose answer nobody will read */
		struct kvg_commit item = {.stage = &stages[0]};

		content_fill(&model_small, 1000, &stages[0]);
		kvg_key_block(l, NULL, stages[0].tokens, model_small.tokens, &item.key);
		if (kvg_commit_start(c, &item, 1, NULL, NULL) <= 0)
			return 4;
	}
	if (write(t->ready, "x", 1) != 1)
		return 5;
	pause();
	return 0;
}

static void kill_one(const struct daemon_process *d, int commit)
{
	struct task t = {.d = d, .commit = commit};
	int p[2];
	char b;
	pid_t pid;

	assert_int_equal(pipe(p), 0);
	t.ready = p[1];
	pid = child_start(0, hold, &t);
	close(p[1]);
	assert_int_equal(read(p[0], &b, 1), 1);
	close(p[0]);
	kill(pid, SIGKILL);
	assert_int_equal(child_wait(pid), 128 + SIGKILL);
}

static void test_sigkill_gives_everything_back(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key keys[BLOCKS];
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result purged;
	unsigned fds;
	double sessions;

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	l = model_register(c, &model_small);
	assert_int_equal(chain_put(c, l, &model_small, 3, BLOCKS, keys), KVG_CODE_OK);
	sessions = client_counter(c, "kvgate_sessions");
	fds = daemon_count_fds(&d);
	for (int i = 0; i < ROUNDS; i++)
		kill_one(&d, i & 1);
	client_wait_counter(c, "kvgate_sessions", sessions);
	client_wait_counter(c, "kvgate_staging_bytes", 0);
	client_wait_counter(c, "kvgate_in_flight_commits", 0);
	assert_true(client_counter(c, "kvgate_sessions_reclaimed_total") == ROUNDS);
	for (int i = 0; i < 2000 && daemon_count_fds(&d) != fds; i++)
		usleep(5000); /* memory is given back beside the daemon's own thread */
	assert_int_equal(daemon_count_fds(&d), fds);
	/* nothing is pinned any more: everything can be purged */
	assert_int_equal(kvg_purge(c, &o, &purged), 0);
	assert_int_equal(purged.pinned, 0);
	assert_true(purged.blocks >= BLOCKS);
	assert_true(client_counter(c, "kvgate_bytes") == 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/*
 * A stage of some size lies in huge pages where there are any: the kernel takes a dead client's memory apart before it
 * closes its socket, and with small ones that is what takes long.
 */
static void test_stages_in_huge_pages(void **state)
{
	struct daemon_process d;
	struct kvg_stage s[4];
	struct kvg_client *c;
	struct kvg_layout *l;
	uint8_t *memory;

	(void)state;
	if (!huge_possible())
		skip();
	daemon_start(&d, "[memory]\nhost_bytes = 64MiB\nsegment_bytes = 16MiB\n");
	c = client_open(&d);
	l = model_register(c, &model_wide);
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 4, s), 4);
	memory = (uint8_t *)s[0].kv -
		(uintptr_t)s[0].kv % HUGE_BYTES; /* the first lies at its beginning */
	assert_int_equal(huge_mapped(memory), 16ull << 20);
	assert_int_equal(kvg_abort(c, &s[1], 2), 0);
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &s[1]), 1);
	memset(s[1].kv, 1, s[1].kv_bytes);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

struct heir {
	const struct daemon_process *d;
	int tell; /* a pipe: the heir tells what it sees */
};

/* Holds something, and dies while a child of its own has inherited the socket: there is no end of the file. */
static int leave_a_heir(void *arg)
{
	const struct heir *t = arg;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_stage stages[BLOCKS];
	char byte = 'h';

	if (kvg_stage(l, KVG_INPUT_SCORES, BLOCKS, stages) <= 0)
		return 1;
	if (fork())
		return 0;
	if (write(t->tell, &byte, 1) != 1)
		_exit(1);
	/* the session is over when the socket says so, though its fd is open here */
	for (int i = 0; i < 10000 && kvg_dispatch(c) == 0; i++)
		usleep(1000);
	if (kvg_dispatch(c) == 0)
		_exit(2);
	byte = 'e';
	_exit(write(t->tell, &byte, 1) != 1);
}

static void test_socket_outlives_its_process(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	int tell[2];
	struct heir t = {.d = &d};
	char byte;

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	assert_int_equal(pipe(tell), 0);
	t.tell = tell[1];
	assert_int_equal(child_run(0, leave_a_heir, &t), 0);
	close(tell[1]);
	client_wait_counter(c, "kvgate_sessions", 1);
	client_wait_counter(c, "kvgate_staging_bytes", 0);
	assert_true(client_counter(c, "kvgate_sessions_reclaimed_total") == 1);
	assert_int_equal(read(tell[0], &byte, 1), 1);
	assert_int_equal(byte, 'h');
	assert_int_equal(read(tell[0], &byte, 1), 1); /* it is there, and was told */
	assert_int_equal(byte, 'e');
	close(tell[0]);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void ends_because(const struct daemon_process *d, const char *why)
{
	for (int i = 0; i < 2000 && !daemon_logged(d, why); i++)
		usleep(5000);
	if (!daemon_logged(d, why))
		fail_msg("the log does not say %s", why);
}

/* Why a session ended is in the log, each in its own words. */
static void test_log_says_why(void **state)
{
	struct heir t;
	struct daemon_process d;
	int tell[2], sock;

	(void)state;
	daemon_start(&d, "[daemon]\nlog_level = debug\n");
	kvg_close(client_open(&d));
	ends_because(&d, "why=\"end of file\"");
	sock = raw_connect(&d);
	raw_send_bytes(sock, "nonsense", 8, NULL, 0);
	ends_because(&d, "why=\"refused\"");
	close(sock);
	assert_int_equal(pipe(tell), 0);
	t = (struct heir){.d = &d, .tell = tell[1]};
	assert_int_equal(child_run(0, leave_a_heir, &t), 0);
	ends_because(&d, "why=\"its process is gone\"");
	close(tell[0]);
	close(tell[1]);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* The fd counter above counts: an open session shows in it. */
static void test_fd_counter_counts(void **state)
{
	struct daemon_process d;
	struct kvg_client *a, *b;
	unsigned one;

	(void)state;
	daemon_start(&d, "");
	a = client_open(&d);
	one = daemon_count_fds(&d);
	b = client_open(&d);
	assert_true(daemon_count_fds(&d) > one);
	kvg_close(b);
	kvg_close(a);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_sigkill_gives_everything_back),
		cmocka_unit_test(test_stages_in_huge_pages),
		cmocka_unit_test(test_socket_outlives_its_process),
		cmocka_unit_test(test_log_says_why),
		cmocka_unit_test(test_fd_counter_counts),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
