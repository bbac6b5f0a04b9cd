/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writers, readers, purgers and a killer at once under memory pressure: every byte that is served is compared. Bounded
 * in rounds, not in time.
 */
#include <assert.h>
#include <errno.h>
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

#define CHAINS 60
#define BLOCKS 6
#define ROUNDS 150

struct task {
	const struct daemon_process *d;
	unsigned seed;
	bool writes;
};

static int work(void *arg)
{
	const struct task *t = arg;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_small);
	unsigned seed = t->seed;

	for (int i = 0; i < ROUNDS; i++) {
		uint64_t chain = 1000u * (uint64_t)((unsigned)rand_r(&seed) % CHAINS);
		struct kvg_key keys[BLOCKS];
		struct kvg_pin pins[BLOCKS];
		size_t n;

		if (t->writes) {
			int code = chain_put(c, l, &model_small, chain, BLOCKS, keys);

			/* a parent may be evicted between two commits */
			if (code != KVG_CODE_OK && code != KVG_CODE_EXISTS &&
				code != KVG_CODE_NO_PARENT && code != KVG_CODE_NO_SPACE)
				return 1;
		}
		chain_keys(l, &model_small, chain, BLOCKS, keys);
		n = kvg_prefix_pin(l, keys, BLOCKS, 0.f, pins);
		for (size_t b = 0; b < n; b++) {
			uint64_t pairs = content_compare(&model_small, chain + b, l, &pins[b]);
			float share = (float)pairs /
				(float)(model_small.layers * model_small.heads *
					model_small.tokens);

			if (share < pins[b].retention - 1e-4f)
				return 2;
		}
		kvg_unpin(c, pins, n);
	}
	kvg_close(c);
	return 0;
}

static void test_everything_at_once(void **state)
{
	struct daemon_process d;
	struct task tasks[6];
	pid_t pids[6];
	struct kvg_client *c;
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	(void)state;
	daemon_start(&d,
		"[memory]\nhost_bytes = 4MiB\nsegment_bytes = 1MiB\nindex_slots = 1024\nfloor = "
		"0.3\n");
	c = client_open(&d);
	for (int i = 0; i < 6; i++) {
		tasks[i] = (struct task){.d = &d, .seed = (unsigned)i, .writes = i < 3};
		pids[i] = child_start(0, work, &tasks[i]);
	}
	for (int i = 0; i < 20; i++) { /* sessions that die in the middle */
		struct task victim = {.d = &d, .seed = 100u + (unsigned)i, .writes = true};
		pid_t pid = child_start(0, work, &victim);

		usleep(10000);
		kill(pid, SIGKILL);
		child_wait(pid);
		o.keep_planes = i % 3 ? 1 : 0;
		if (i % 5 == 0)
			assert_int_equal(kvg_purge(c, &o, &r), 0);
	}
	for (int i = 0; i < 6; i++)
		assert_int_equal(child_wait(pids[i]), 0);
	client_wait_counter(c, "kvgate_sessions", 1);
	client_wait_counter(c, "kvgate_staging_bytes", 0);
	o.keep_planes = 0;
	assert_int_equal(kvg_purge(c, &o, &r), 0);
	assert_int_equal(r.pinned, 0);
	assert_true(client_counter(c, "kvgate_bytes") == 0);
	assert_true(client_counter(c, "kvgate_blocks") == 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_everything_at_once),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
