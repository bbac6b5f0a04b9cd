/* SPDX-License-Identifier: Apache-2.0 */
/*
 * `kvgated --keeper`: the daemon is killed under its clients, several times, and they go on as if nothing had been - same
 * session, same pins, same bytes, new blocks. Without a keeper the same client finds nothing.
 */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define BLOCKS 6

static const char config[] =
	"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n";

static struct kvg_client *open_client(const struct daemon_process *d)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c;

	o.socket = d->socket;
	o.resume_ms = 20000;
	assert_int_equal(kvg_open(&o, &c), 0);
	return c;
}

static void test_killed(void **state)
{
	static const char *const keeper[] = {"--keeper", NULL};
	struct daemon_process d = {0};
	struct kvg_session_info before = {.size = sizeof(before)}, after = {.size = sizeof(after)};
	struct kvg_key keys[BLOCKS], more;
	struct kvg_pin pins[BLOCKS], again[BLOCKS];
	struct kvg_client *c;
	struct kvg_layout *l;

	(void)state;
	daemon_spawn(&d, config, keeper);
	assert_true(daemon_wait_ready(&d));
	c = open_client(&d);
	l = model_register(c, &model_small);
	kvg_session(c, &before);
	assert_int_equal(chain_put(c, l, &model_small, 1, BLOCKS, keys), KVG_CODE_OK);
	assert_int_equal(kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins), BLOCKS);
	for (uint64_t life = 0; life < 5; life++) {
		pid_t pid = daemon_serving(&d);

		assert_int_not_equal(pid, d.pid);
		kill(pid, SIGKILL);
		for (int i = 0; i < BLOCKS; i++) /* nobody is there, and they are readable */
			content_compare(&model_small, 1 + (uint64_t)i, l, &pins[i]);
		/* by itself in a call, after that in lookups */
		assert_int_equal(chain_put(c, l, &model_small, 100 + life, 1, &more), KVG_CODE_OK);
		kvg_session(c, &after);
		assert_true(after.id == before.id);
		assert_int_equal(kvg_prefix_pin(l, keys, BLOCKS, 1.f, again), BLOCKS);
		for (int i = 0; i < BLOCKS; i++) {
			content_compare(&model_small, 1 + (uint64_t)i, l, &pins[i]);
			content_compare(&model_small, 1 + (uint64_t)i, l, &again[i]);
		}
		kvg_unpin(c, again, BLOCKS);
		assert_int_equal(chain_put(c, l, &model_small, 1, 1, &more), KVG_CODE_EXISTS);
		assert_true(client_counter(c, "kvgate_blocks") == (double)(BLOCKS + life + 1));
	}
	kvg_unpin(c, pins, BLOCKS);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0); /* both end */
	daemon_cleanup(&d);
}

static void test_nobody_keeps(void **state)
{
	struct daemon_process d;
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	struct kvg_client *c;
	struct kvg_layout *l;

	(void)state;
	daemon_start(&d, config);
	c = open_client(&d);
	l = model_register(c, &model_small);
	assert_int_equal(chain_put(c, l, &model_small, 1, BLOCKS, keys), KVG_CODE_OK);
	assert_int_equal(kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins), BLOCKS);
	content_compare(&model_small, 1, l, &pins[0]); /* maps the segment */
	kill(d.pid, SIGKILL);
	daemon_wait(&d);
	daemon_spawn(&d, config, NULL);
	assert_true(daemon_wait_ready(&d));
	assert_int_equal(kvg_resume(c), -ESTALE);
	for (int i = 0; i < BLOCKS; i++) /* what is pinned is readable all the same */
		content_compare(&model_small, 1 + (uint64_t)i, l, &pins[i]);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_nobody_keeps),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
