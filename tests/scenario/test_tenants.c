/* SPDX-License-Identifier: Apache-2.0 */
/* Tenants come from the kernel's word on who connected; nothing of one is ever seen by another. */
#include <assert.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/kvgate.pb-c.h"
#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define BLOCKS 6
#define UID_A  61001
#define UID_B  61002

static int look(void *arg)
{
	const struct chain_task *t = arg;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[BLOCKS];
	struct kvg_acquired acquired[BLOCKS];
	ssize_t n;

	chain_keys(l, &model_small, t->seed, BLOCKS, keys);
	if (kvg_prefix_lookup(l, keys, BLOCKS) != t->expect)
		return 1;
	n = kvg_acquire(l, keys, BLOCKS, 0.f, 1, acquired);
	if (n != (ssize_t)t->expect)
		return 2;
	return client_counter(c, "kvgate_blocks") != t->expect;
}

/* Asks for every segment id there could be: none of them may come. Returns the number of fds that came. */
static int map_everything(void *arg)
{
	const struct chain_task *t = arg;
	int sock = raw_connect(t->d), got = 0;
	uint32_t ids[200];
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__MapSegments m = KVGATE__V1__MAP_SEGMENTS__INIT;
	struct raw_reply r;

	raw_hello(sock);
	for (uint32_t i = 0; i < 200; i++)
		ids[i] = i;
	m.n_segments = 60;
	for (uint32_t from = 0; from < 180; from += 60) {
		m.segments = ids + from;
		q.id = 100 + from;
		q.body_case = KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS;
		q.map_segments = &m;
		raw_send(sock, &q);
		if (!raw_recv(sock, &r))
			return 99;
		got += (int)r.n_fds;
		raw_reply_free(&r);
	}
	return got;
}

static void test_users_are_apart(void **state)
{
	struct daemon_process d;
	struct chain_task a = {
		.d = &d, .tenant = "uid-61001", .seed = 5, .n = BLOCKS, .expect = BLOCKS};
	struct chain_task b = {.d = &d, .tenant = "uid-61002", .seed = 5, .n = BLOCKS, .expect = 0};

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d, "");
	assert_int_equal(child_run(UID_A, chain_put_child, &a), 0);
	assert_int_equal(child_run(UID_A, look, &a), 0);
	assert_int_equal(child_run(UID_B, look, &b), 0);
	assert_int_equal(child_run(UID_B, map_everything, &b), 0);
	assert_true(child_run(UID_A, map_everything, &a) > 0);
	/* the same contents of the other tenant are a second copy in its own segments */
	assert_int_equal(child_run(UID_B, chain_put_child, &b), 0);
	b.expect = BLOCKS;
	assert_int_equal(child_run(UID_B, look, &b), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void test_config_joins_users(void **state)
{
	struct daemon_process d;
	struct chain_task a = {.d = &d, .tenant = "team", .seed = 5, .n = BLOCKS, .expect = BLOCKS};

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"[tenant team]\nuids = 61001\ngids = 61002\n");
	assert_int_equal(child_run(UID_A, chain_put_child, &a), 0);
	assert_int_equal(child_run(UID_B, look, &a), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* What only the daemon's own user may do. */
static int try_admin(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	p.tenant = "uid-61001";
	if (kvg_policy(c, &p) == 0 || kvg_last_code(c) != KVG_CODE_DENIED)
		return 1;
	p.tenant = NULL;
	p.host_bytes = 1 << 20;
	if (kvg_policy(c, &p) == 0 || kvg_last_code(c) != KVG_CODE_DENIED)
		return 2;
	o.tenant = "uid-61001";
	if (kvg_purge(c, &o, &r) == 0 || kvg_last_code(c) != KVG_CODE_DENIED)
		return 3;
	p.host_bytes = 0;
	p.floor = .5f; /* one's own floor is one's own business */
	return kvg_policy(c, &p) == 0 && p.floor == .5f ? 0 : 4;
}

static void test_admin_only(void **state)
{
	struct daemon_process d;
	struct chain_task a = {
		.d = &d, .tenant = "uid-61001", .seed = 5, .n = BLOCKS, .expect = BLOCKS};
	struct kvg_client *c;
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d, "");
	assert_int_equal(child_run(UID_A, chain_put_child, &a), 0);
	assert_int_equal(child_run(UID_B, try_admin, &d), 0);
	assert_int_equal(child_run(UID_A, look, &a), 0);
	c = client_open(&d);
	p.tenant = "uid-61001";
	p.floor = .3f;
	assert_int_equal(kvg_policy(c, &p), 0);
	assert_true(p.floor == .3f && p.host_used > 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_users_are_apart),
		cmocka_unit_test(test_config_joins_users),
		cmocka_unit_test(test_admin_only),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
