/* SPDX-License-Identifier: Apache-2.0 */
/* Tenants come from the kernel's word on who connected; nothing of one is ever seen by another. */
#include <assert.h>
#include <fcntl.h>
#include <grp.h>
#include <setjmp.h>
#include <signal.h>
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

/* A section under the name of an unconfigured user would give that user's blocks away: not even started. */
static void test_no_name_of_another(void **state)
{
	struct daemon_process d = {0};
	struct chain_task a = {
		.d = &d, .tenant = "uid-61001", .seed = 5, .n = BLOCKS, .expect = BLOCKS};
	struct chain_task b = {.d = &d, .tenant = "uid-61002", .seed = 5, .n = BLOCKS, .expect = 0};

	(void)state;
	if (!can_change_user())
		skip();
	daemon_spawn(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"[tenant uid-61002]\nuids = 61001\n",
		NULL);
	assert_int_not_equal(daemon_wait(&d), 0);
	assert_true(daemon_logged(&d, "[tenant uid-61002] has user 61001"));
	/* one's own name is fine, and so are limits for it */
	daemon_spawn(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"[tenant uid-61001]\nuids = 61001\n[tenant uid-61002]\nsessions = 3\n",
		NULL);
	assert_true(daemon_wait_ready(&d));
	assert_int_equal(child_run(UID_A, chain_put_child, &a), 0);
	assert_int_equal(child_run(UID_B, look, &b), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* The last of more groups than anybody would list still names the tenant. */
static int put_with_groups(void *arg)
{
	gid_t groups[500];

	for (int i = 0; i < 500; i++)
		groups[i] = 70000 + (gid_t)i;
	if (setgroups(500, groups) || setgid(UID_B) || setuid(UID_B))
		return 126;
	return chain_put_child(arg);
}

static void test_many_groups(void **state)
{
	struct daemon_process d;
	struct chain_task a = {.d = &d, .tenant = "team", .seed = 5, .n = BLOCKS};

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"[tenant team]\ngids = 70499\n");
	assert_int_equal(child_run(0, put_with_groups, &a), 0);
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

static int try_open(void *arg)
{
	const struct daemon_process *d = arg;
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c;

	o.socket = d->socket;
	if (kvg_open(&o, &c) == 0)
		return 0;
	return strstr(kvg_last_error(NULL), "raise max_tenants in kvgated.conf") ? 1 : 2;
}

/* Connects and says nothing, from as many users as there may be tenants and more. */
static int connect_only(void *arg)
{
	for (int i = 0; i < 5; i++)
		raw_connect(arg);
	return 0;
}

struct holder {
	pid_t pid;
	int hold; /* a pipe: a byte lets it go */
};

static int hold_session(void *arg)
{
	const struct chain_task *t = arg;
	struct kvg_client *c = client_open(t->d);
	char byte;

	if (write((int)t->seed, "x", 1) != 1)
		return 1;
	read((int)t->expect, &byte, 1); /* until the test lets go */
	kvg_close(c);
	return 0;
}

static void hold(const struct daemon_process *d, uid_t uid, struct holder *ret)
{
	int ready[2], go[2];
	struct chain_task t = {.d = d};
	char byte;

	assert_int_equal(pipe(ready), 0);
	assert_int_equal(pipe(go), 0);
	t.seed = (uint64_t)ready[1];
	t.expect = (uint32_t)go[0];
	ret->pid = child_start(uid, hold_session, &t);
	assert_int_equal(read(ready[0], &byte, 1), 1);
	close(ready[0]);
	close(ready[1]);
	close(go[0]);
	ret->hold = go[1];
}

/* Those that went are looked at as gone when the daemon has seen it. */
static void opens_soon(struct daemon_process *d, uid_t uid)
{
	int r = 1;

	for (int i = 0; i < 400 && r == 1; i++)
		r = child_run(uid, try_open, d);
	assert_int_equal(r, 0);
}

static void let_go(struct holder *h)
{
	assert_int_equal(write(h->hold, "x", 1), 1);
	close(h->hold);
	assert_int_equal(child_wait(h->pid), 0);
}

/*
 * The limit is no trap: who only connects makes no tenant, one that left nothing makes room, and an administrator gets in
 * to purge what others left.
 */
static void test_max_tenants(void **state)
{
	struct daemon_process d;
	struct holder a, b;
	struct kvg_client *c;
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;
	struct chain_task left = {.d = &d, .tenant = "uid-61003", .seed = 5, .n = BLOCKS};

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"[daemon]\nmax_tenants = 2\n");
	for (uid_t uid = 61010; uid < 61014; uid++)
		assert_int_equal(child_run(uid, connect_only, &d), 0);
	hold(&d, UID_A, &a);
	hold(&d, UID_B, &b);
	assert_int_equal(child_run(61003, try_open, &d), 1);
	let_go(&b); /* it has no blocks: its place is free */
	opens_soon(&d, 61003);
	assert_int_equal(child_run(61003, chain_put_child, &left), 0);
	assert_true(daemon_logged(&d, "tenant forgotten tenant=uid-61002"));
	assert_int_equal(child_run(UID_B, try_open, &d), 1); /* blocks keep theirs */
	c = client_open(&d);
	o.tenant = left.tenant;
	assert_int_equal(kvg_purge(c, &o, &r), 0);
	assert_int_equal(r.blocks, BLOCKS);
	kvg_close(c);
	opens_soon(&d, UID_B);
	let_go(&a);
	/* and a tenant that comes again begins anew, with all of its rights */
	left = (struct chain_task){
		.d = &d, .tenant = "uid-61001", .seed = 9, .n = BLOCKS, .expect = BLOCKS};
	opens_soon(&d, 61004);
	opens_soon(&d, 61005);
	opens_soon(&d, UID_A);
	assert_int_equal(child_run(UID_A, chain_put_child, &left), 0);
	assert_int_equal(child_run(UID_A, look, &left), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* 128 KiB of KV a block. */
static const struct test_model wide = {"wide", 8, 4, 16, 16, KVG_DTYPE_BF16, 64, 1};

static int fill(void *arg)
{
	const struct daemon_process *d = arg;
	struct kvg_client *c = client_open(d);
	struct kvg_layout *l = model_register(c, &wide);
	struct kvg_key key;

	for (uint64_t i = 0; i < 48; i++)
		if (chain_put(c, l, &wide, 1000 * i, 1, &key) != KVG_CODE_OK)
			return 1;
	return 0;
}

static void add_bytes(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	(void)tenant, (void)model, (void)tier, (void)plane;
	if (!strcmp(name, "kvgate_bytes"))
		*(double *)userdata += value;
}

static double bytes_of_all(struct kvg_client *c)
{
	double bytes = 0;

	assert_int_equal(kvg_stat(c, 1, add_bytes, &bytes), 0);
	return bytes;
}

/*
 * host_bytes is all tenants' together, and so are its watermarks: they follow the file, though neither tenant comes near
 * its own.
 */
static void test_watermarks_of_all(void **state)
{
	static const char config[] =
		"[memory]\nhost_bytes = 16MiB\nsegment_bytes = 4MiB\n"
		"index_slots = 4096\nhigh_watermark = %s\nlow_watermark = %s\n";
	struct daemon_process d;
	struct kvg_client *c;
	char text[256];
	double bytes = 0;
	FILE *f;

	(void)state;
	if (!can_change_user())
		skip();
	snprintf(text, sizeof(text), config, "1", "1");
	daemon_start(&d, text);
	c = client_open(&d);
	assert_int_equal(child_run(UID_A, fill, &d), 0);
	assert_int_equal(child_run(UID_B, fill, &d), 0);
	assert_true(bytes_of_all(c) > 12 << 20);
	f = fopen(d.config, "w");
	fprintf(f, config, "0.6", "0.5"); /* a tenant has 6.5 MiB of its 16 */
	fclose(f);
	kill(d.pid, SIGHUP);
	for (int i = 0; i < 400; i++) {
		bytes = bytes_of_all(c);
		if (bytes <= 8 << 20)
			break;
		usleep(5000);
	}
	assert_true(bytes > 4 << 20 && bytes <= 8 << 20);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_users_are_apart),
		cmocka_unit_test(test_config_joins_users),
		cmocka_unit_test(test_no_name_of_another),
		cmocka_unit_test(test_many_groups),
		cmocka_unit_test(test_admin_only),
		cmocka_unit_test(test_max_tenants),
		cmocka_unit_test(test_watermarks_of_all),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
