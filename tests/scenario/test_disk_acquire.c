/* SPDX-License-Identifier: Apache-2.0 */
/*
 * More than memory holds, and a disk below it: nothing that was committed is missing, whoever asks, in whatever way, and after
 * whatever end of the daemon; and every byte is the right one.
 */
#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define CHAINS  40 /* of 8 blocks of 128 KiB: 40 MiB and more, in 16 MiB */
#define BLOCKS  8
#define READERS 6

static struct daemon_process d;
static char config[700];
static struct kvg_client *c;
static struct kvg_layout *l;

static uint64_t seed_of(unsigned chain)
{
	return 1000u * (uint64_t)chain;
}

static void start_with(const char *const *flags)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);

	daemon_spawn(&d, config, flags);
	if (!daemon_wait_ready(&d))
		fail_msg("kvgated does not serve");
	o.socket = d.socket;
	o.resume_ms = flags ? 20000 : 0;
	assert_int_equal(kvg_open(&o, &c), 0);
	l = model_register(c, &model_deep);
}

static void start_again(void)
{
	start_with(NULL);
}

/* Everything committed, and most of it pressed out of memory. */
static int setup_with(const char *const *flags)
{
	struct kvg_key keys[BLOCKS];

	d = (struct daemon_process){.dir = "/tmp/kvgate-test-XXXXXX"};
	assert_non_null(mkdtemp(d.dir));
	assert_int_equal(chmod(d.dir, 0755), 0);
	snprintf(d.socket, sizeof(d.socket), "%s/sock", d.dir);
	snprintf(d.config, sizeof(d.config), "%s/conf", d.dir);
	snprintf(d.log, sizeof(d.log), "%s/log", d.dir);
	snprintf(config, sizeof(config),
		"[memory]\nhost_bytes = 16MiB\nsegment_bytes = 4MiB\nindex_slots = 65536\n"
		"[disk]\npaths = %s/planes\nsize = 256MiB\n",
		d.dir);
	start_with(flags);
	for (unsigned i = 0; i < CHAINS; i++)
		assert_int_equal(
			chain_put(c, l, &model_deep, seed_of(i), BLOCKS, keys), KVG_CODE_OK);
	assert_true(client_counter(c, "kvgate_demoted_planes_total") > 0);
	assert_true(client_counter(c, "kvgate_evicted_blocks_total") == 0);
	return 0;
}

static int setup(void **state)
{
	(void)state;
	return setup_with(NULL);
}

static int setup_keeper(void **state)
{
	static const char *const keeper[] = {"--keeper", NULL};

	(void)state;
	return setup_with(keeper);
}

static int teardown(void **state)
{
	(void)state;
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
	return 0;
}

static bool is_whole(const struct kvg_pin *p)
{
	return p->retention >= 1.f;
}

/* Fetches a chain and compares all of it. Blocks that are there. */
static size_t read_chain(struct kvg_client *client, struct kvg_layout *layout, unsigned chain)
{
	const uint64_t all = (uint64_t)model_deep.layers * model_deep.heads * model_deep.tokens;
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	ssize_t n;

	chain_keys(layout, &model_deep, seed_of(chain), BLOCKS, keys);
	n = kvg_prefix_fetch(layout, keys, BLOCKS, 1.f, 1.f, pins);
	assert(n >= 0);
	for (ssize_t b = 0; b < n; b++) {
		assert(is_whole(&pins[b]));
		assert(content_compare(
			       &model_deep, seed_of(chain) + (uint64_t)b, layout, &pins[b]) == all);
		assert(kvg_verify(layout, &pins[b]) == 0);
	}
	kvg_unpin(client, pins, (size_t)n);
	return (size_t)n;
}

/* A chain whose first block is below: one is, as they do not fit. */
static unsigned cold_chain(struct kvg_key *ret_keys)
{
	for (unsigned i = 0; i < CHAINS; i++) {
		struct kvg_pin pin;
		int r;

		chain_keys(l, &model_deep, seed_of(i), BLOCKS, ret_keys);
		r = kvg_lookup_pin(l, ret_keys, 1.f, &pin);
		if (r == -ENODATA)
			return i;
		if (r == 0)
			kvg_unpin(c, &pin, 1);
	}
	fail_msg("all of it is in memory");
	return 0;
}

/* Nothing of it is in memory. */
static bool is_below(unsigned chain)
{
	struct kvg_key keys[BLOCKS];
	bool below = true;

	chain_keys(l, &model_deep, seed_of(chain), BLOCKS, keys);
	for (unsigned b = 0; b < BLOCKS; b++) {
		struct kvg_pin pin;
		const int r = kvg_lookup_pin(l, &keys[b], 0.f, &pin);

		below &= r == -ENODATA;
		if (r == 0)
			kvg_unpin(c, &pin, 1);
	}
	return below;
}

static uint64_t purge_all(struct kvg_client *client)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	assert(kvg_purge(client, &o, &r) == 0);
	return r.pinned;
}

/* ---- tests ---- */

static void test_everything_is_there(void **state)
{
	(void)state;
	for (unsigned round = 0; round < 3; round++)
		for (unsigned i = 0; i < CHAINS; i++)
			assert_int_equal(read_chain(c, l, (i * 7 + round) % CHAINS), BLOCKS);
	assert_true(client_counter(c, "kvgate_promoted_planes_total") > 0);
	assert_true(client_counter(c, "kvgate_corrupt_total") == 0);
	assert_int_equal(purge_all(c), 0);
}

static void test_acquire(void **state)
{
	struct kvg_acquired got[BLOCKS];
	struct kvg_handle handles[BLOCKS];
	struct kvg_key keys[BLOCKS];
	unsigned chain = cold_chain(keys);

	(void)state;
	assert_int_equal(kvg_acquire(l, keys, BLOCKS, 1.f, 0, got), BLOCKS);
	for (unsigned b = 0; b < BLOCKS; b++) {
		struct kvg_pin pin;

		assert_int_equal(got[b].mapped, got[b].held);
		assert_int_equal(kvg_lookup_pin(l, &keys[b], 1.f, &pin), 0);
		content_compare(&model_deep, seed_of(chain) + b, l, &pin);
		kvg_unpin(c, &pin, 1);
		handles[b] = got[b].handle;
	}
	assert_int_equal(purge_all(c), BLOCKS);
	assert_int_equal(kvg_release(c, handles, BLOCKS), 0);
	assert_int_equal(purge_all(c), 0);
}

/* As little as is wanted comes up, and it is the best. */
static void test_best_planes_only(void **state)
{
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	unsigned chain = cold_chain(keys);

	(void)state;
	assert_int_equal(kvg_prefix_fetch(l, keys, 1, 0.f, .05f, pins), 1);
	assert_true(pins[0].mapped & 1);
	assert_true(pins[0].retention >= .05f && !is_whole(&pins[0]));
	assert_int_equal(
		pins[0].mapped & (pins[0].mapped + 1), 0); /* from the best on, without a gap */
	content_compare(&model_deep, seed_of(chain), l, &pins[0]);
	kvg_unpin(c, pins, 1);
}

/* Looks until every plane of every block has come. */
static void wait_for_all(const struct kvg_acquired *got, size_t n)
{
	for (int round = 0; round < 10000; round++) {
		size_t whole = 0;

		for (size_t i = 0; i < n; i++) {
			struct kvg_acquired now;

			assert_int_equal(kvg_acquired_look(c, got[i].handle, &now), 0);
			assert_int_equal(now.held, got[i].held);
			whole += now.mapped == now.held;
		}
		if (whole == n)
			return;
		assert_int_equal(kvg_arrival_wait(c, 10000), 1);
	}
	fail_msg("planes do not come");
}

static void test_without_waiting(void **state)
{
	struct kvg_acquired got[BLOCKS];
	struct kvg_handle handles[BLOCKS];
	struct kvg_key keys[BLOCKS];
	uint8_t coming[BLOCKS];
	unsigned chain = cold_chain(keys);

	(void)state;
	assert_int_equal(kvg_acquire_start(l, keys, BLOCKS, 0.f, 1.f, 1, got, coming), BLOCKS);
	assert_true(coming[0] != 0);
	wait_for_all(got, BLOCKS);
	assert_int_equal(read_chain(c, l, chain), BLOCKS);
	for (unsigned b = 0; b < BLOCKS; b++)
		handles[b] = got[b].handle;
	assert_int_equal(kvg_release(c, handles, BLOCKS), 0);
	assert_int_equal(purge_all(c), 0);
}

static void test_prefetch(void **state)
{
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pin;
	int r = -ENODATA;

	(void)state;
	cold_chain(keys);
	assert_int_equal(kvg_prefetch(l, keys, 1, 1.f), 1);
	for (int i = 0; i < 2000 && r == -ENODATA; i++) {
		r = kvg_lookup_pin(l, keys, 1.f, &pin);
		if (r < 0)
			poll(NULL, 0, 5);
	}
	assert_int_equal(r, 0);
	kvg_unpin(c, &pin, 1);
}

static void test_below_retention(void **state)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result purged;
	struct kvg_acquired got;
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pin;
	unsigned chain = cold_chain(keys);

	(void)state;
	o.keys = keys;
	o.n_keys = 1;
	o.keep_planes = 1;
	assert_int_equal(kvg_purge(c, &o, &purged), 0);
	assert_int_equal(kvg_acquire(l, keys, 1, 1.f, 0, &got), 0);
	assert_int_equal(got.code, KVG_CODE_BELOW_RETENTION);
	assert_int_equal(kvg_prefix_fetch(l, keys, 1, 1.f, 1.f, &pin), 0);
	assert_int_equal(kvg_prefix_fetch(l, keys, 1, 0.f, 1.f, &pin), 1);
	assert_int_equal(pin.mapped, 1);
	content_compare(&model_deep, seed_of(chain), l, &pin);
	kvg_unpin(c, &pin, 1);
}

/* All of memory pinned: what cannot come up is refused, and comes when there is room. */
static void test_no_room(void **state)
{
	static struct kvg_pin pins[CHAINS * BLOCKS];
	struct kvg_acquired got;
	struct kvg_key keys[BLOCKS];
	size_t n = 0;

	(void)state;
	for (unsigned i = 0; i < CHAINS; i++) {
		ssize_t r;

		chain_keys(l, &model_deep, seed_of(i), BLOCKS, keys);
		r = kvg_prefix_fetch(l, keys, BLOCKS, 1.f, 1.f, pins + n);
		n += r > 0 ? (size_t)r : 0;
		if (r < BLOCKS)
			break;
	}
	assert_true(n > 16 && n < CHAINS * BLOCKS);
	cold_chain(keys);
	assert_int_equal(kvg_acquire(l, keys, 1, 1.f, 0, &got), 0);
	assert_int_equal(got.code, KVG_CODE_NO_SPACE);
	kvg_unpin(c, pins, n);
	for (unsigned i = 0; i < CHAINS; i++)
		assert_int_equal(read_chain(c, l, i), BLOCKS);
}

static int read_child(void *arg)
{
	struct kvg_client *mine = client_open(&d);
	struct kvg_layout *layout = model_register(mine, &model_deep);
	unsigned seed = *(unsigned *)arg;

	for (int i = 0; i < 60; i++) {
		seed = seed * 1103515245u + 12345u;
		if (read_chain(mine, layout, (seed >> 16) % CHAINS) != BLOCKS)
			return 1;
	}
	kvg_close(mine);
	return 0;
}

static void test_many_readers(void **state)
{
	pid_t pid[READERS];
	unsigned seed[READERS];

	(void)state;
	for (unsigned i = 0; i < READERS; i++) {
		seed[i] = i + 1;
		pid[i] = child_start(0, read_child, &seed[i]);
	}
	for (unsigned i = 0; i < READERS; i++)
		assert_int_equal(child_wait(pid[i]), 0);
	client_wait_counter(c, "kvgate_sessions", 1);
	assert_int_equal(purge_all(c), 0);
}

/* Asks for everything, again and again, until it is killed. */
static int greedy_child(void *arg)
{
	struct kvg_client *mine = client_open(&d);
	struct kvg_layout *layout = model_register(mine, &model_deep);

	for (unsigned i = 0;; i++) {
		struct kvg_acquired got[BLOCKS];
		struct kvg_key keys[BLOCKS];
		bool wait = i % 2;

		chain_keys(layout, &model_deep, seed_of(i % CHAINS), BLOCKS, keys);
		if (wait)
			kvg_acquire(layout, keys, BLOCKS, 1.f, 0, got);
		else
			kvg_acquire_start(layout, keys, BLOCKS, 0.f, 1.f, 0, got, NULL);
		for (unsigned b = 0; b < BLOCKS; b++)
			if (got[b].code == KVG_CODE_OK)
				kvg_release(mine, &got[b].handle, 1);
	}
	return *(int *)arg;
}

static void test_killed_while_waiting(void **state)
{
	int unused = 0;

	(void)state;
	for (int round = 0; round < 12; round++) {
		pid_t pid[2];

		for (int i = 0; i < 2; i++)
			pid[i] = child_start(0, greedy_child, &unused);
		poll(NULL, 0, 20 + round * 7);
		for (int i = 0; i < 2; i++) {
			assert_int_equal(kill(pid[i], SIGKILL), 0);
			assert_int_equal(child_wait(pid[i]), 128 + SIGKILL);
		}
		daemon_check_alive(&d);
	}
	client_wait_counter(c, "kvgate_sessions", 1);
	for (unsigned i = 0; i < CHAINS; i++)
		assert_int_equal(read_chain(c, l, i), BLOCKS);
	assert_int_equal(purge_all(c), 0);
}

/* Nobody kept the memory: all is on disk. */
static void test_cold_restart(void **state)
{
	(void)state;
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	assert_false(daemon_logged(&d, "not waiting for it"));
	start_again();
	for (unsigned i = 0; i < CHAINS; i++)
		assert_int_equal(read_chain(c, l, i), BLOCKS);
	assert_true(client_counter(c, "kvgate_disk_lost_planes_total") == 0);
}

/*
 * With kill -9, and nobody who keeps it, what only memory had is lost: of most blocks that is the best plane. What lies on disk as
 * a whole is found, and nothing is wrong.
 */
static void test_killed(void **state)
{
	bool below[CHAINS];
	size_t n = 0;

	(void)state;
	for (unsigned i = 0; i < CHAINS; i++)
		below[i] = is_below(i);
	kvg_close(c);
	assert_int_equal(kill(d.pid, SIGKILL), 0);
	daemon_wait(&d);
	start_again();
	for (unsigned i = 0; i < CHAINS; i++) {
		const size_t there = read_chain(c, l, i);

		assert_true(there == BLOCKS || !below[i]);
		n += there;
	}
	assert_true(n < CHAINS * BLOCKS);
	assert_int_equal(purge_all(c), 0);
}

/* The memory is kept, the disk is there: nothing is lost, not even for who is asking at that moment. */
static void test_killed_under_a_keeper(void **state)
{
	struct kvg_acquired got[BLOCKS];
	struct kvg_key keys[BLOCKS];

	(void)state;
	for (unsigned life = 0; life < 4; life++) {
		cold_chain(keys);
		assert_int_equal(
			kvg_acquire_start(l, keys, BLOCKS, 0.f, 1.f, 1, got, NULL), BLOCKS);
		kill(daemon_serving(&d), SIGKILL);
		for (unsigned i = 0; i < CHAINS; i++)
			assert_int_equal(read_chain(c, l, (i + life * 11) % CHAINS), BLOCKS);
		assert_true(client_counter(c, "kvgate_blocks") == CHAINS * BLOCKS);
	}
	assert_int_equal(purge_all(c), 0);
}

static void test_purged_for_good(void **state)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result purged;
	struct kvg_key keys[BLOCKS], one[BLOCKS];
	unsigned chain = cold_chain(keys);

	(void)state;
	o.keys = keys;
	o.n_keys = 1;
	assert_int_equal(kvg_purge(c, &o, &purged), 0);
	assert_int_equal(purged.blocks, BLOCKS); /* and all below it */
	assert_int_equal(kvg_prefix_lookup(l, keys, 1), 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	start_again();
	for (unsigned b = 0; b < BLOCKS; b++)
		assert_int_equal(kvg_prefix_lookup(l, &keys[b], 1), 0);
	for (unsigned i = 0; i < CHAINS; i++)
		assert_int_equal(read_chain(c, l, i), i == chain ? 0 : BLOCKS);
	assert_int_equal(purge_all(c), 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	start_again();
	for (unsigned i = 0; i < CHAINS; i++) {
		chain_keys(l, &model_deep, seed_of(i), BLOCKS, one);
		assert_int_equal(kvg_prefix_lookup(l, one, 1), 0);
	}
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_everything_is_there),
		TEST(test_acquire),
		TEST(test_best_planes_only),
		TEST(test_without_waiting),
		TEST(test_prefetch),
		TEST(test_below_retention),
		TEST(test_no_room),
		TEST(test_many_readers),
		TEST(test_killed_while_waiting),
		TEST(test_cold_restart),
		TEST(test_killed),
		cmocka_unit_test_setup_teardown(test_killed_under_a_keeper, setup_keeper, teardown),
		TEST(test_purged_for_good),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
