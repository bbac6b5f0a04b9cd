/* SPDX-License-Identifier: Apache-2.0 */
/* Quotas: a refusal is an ordinary answer, hits only who asked, and what was freed can be used again. */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
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

#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define UID_A 61001
#define UID_B 61002

static const char config[] =
	"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
	"[tenant small]\nuids = 61001\nhost_bytes = 8MiB\nstaging_bytes = 1MiB\n"
	"sessions = 2\npins = 40\nsession_pins = 16\nin_flight = 4\n";

static int staging(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_stage s[512];
	ssize_t got = 0, n;

	while ((n = kvg_stage(l, KVG_INPUT_SCORES, 100, s + got)) > 0 && got < 400)
		got += n;
	if (n != -EDQUOT || got == 0 || kvg_last_code(c) != KVG_CODE_QUOTA)
		return 1;
	if (kvg_abort(c, s, (size_t)got)) /* given back: the same again */
		return 2;
	n = kvg_stage(l, KVG_INPUT_SCORES, 1, s);
	kvg_close(c);
	return n == 1 ? 0 : 3;
}

static int sessions(void *arg)
{
	const struct daemon_process *d = arg;
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *a = client_open(d), *b = client_open(d), *c = NULL;
	int r;

	o.socket = d->socket;
	r = kvg_open(&o, &c);
	if (r == 0 || !strstr(kvg_last_error(NULL), "session"))
		return 1;
	kvg_close(b);
	for (int i = 0; i < 100 && (r = kvg_open(&o, &c)) != 0; i++)
		;
	kvg_close(a);
	return r ? 2 : 0;
}

static int pins(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key key;
	struct kvg_pin pin[64];
	struct kvg_acquired held;
	struct kvg_handle block = {0};
	int n = 0;

	if (chain_put(c, l, &model_small, 5, 1, &key) != KVG_CODE_OK)
		return 1;
	while (n < 64 && kvg_lookup_pin(l, &key, 0.f, &pin[n]) == 0)
		n++;
	if (n != 16 || kvg_lookup_pin(l, &key, 0.f, &pin[n]) != -EAGAIN)
		return 2;
	kvg_unpin(c, &pin[3], 1);
	if (kvg_lookup_pin(l, &key, 0.f, &pin[3]))
		return 3;
	kvg_unpin(c, pin, 16);
	/* through the socket, the same quota is the tenant's */
	for (n = 0; n < 64 && kvg_acquire(l, &key, 1, 0.f, 0, &held) == 1; n++)
		block = held.handle;
	if (n != 40 || held.code != KVG_CODE_QUOTA)
		return 4;
	if (kvg_release(c, &block, 1))
		return 5;
	return kvg_acquire(l, &key, 1, 0.f, 0, &held) == 1 ? 0 : 6;
}

/* Returns how many pins a session got that asked for `wanted`. */
static uint32_t pins_of(const struct daemon_process *d, uint32_t wanted, struct kvg_client **ret)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_session_info i = KVG_OPTIONS_INIT(kvg_session_info);

	o.socket = d->socket;
	o.pins = wanted;
	if (kvg_open(&o, ret))
		return 0;
	kvg_session(*ret, &i);
	return i.pins;
}

/* All sessions of a tenant together have 40 pins, 10 of which are the second one's whatever the first one takes. */
static int pins_together(void *arg)
{
	struct kvg_client *a, *b;

	if (pins_of(arg, 1000000, &a) != 30 || pins_of(arg, 1000000, &b) != 10)
		return 1;
	kvg_close(a);
	kvg_close(b);
	if (pins_of(arg, 3, &a) != 3 || pins_of(arg, 0, &b) != 16)
		return 2;
	kvg_close(a);
	kvg_close(b);
	return 0;
}

/* A batch of more commits than may be in flight: the first ones are, the others are refused one by one. */
static int in_flight(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_stage s[10];
	struct kvg_commit items[10] = {0};
	struct kvg_commit_result r[10];
	const double before = client_counter(c, "kvgate_blocks");

	for (int round = 0; round < 3; round++) {
		if (kvg_stage(l, KVG_INPUT_SCORES, 10, s) != 10)
			return 1;
		for (int i = 0; i < 10; i++) {
			content_fill(&model_small, 500 + (uint64_t)(10 * round + i), &s[i]);
			items[i].stage = &s[i];
			kvg_key_block(l, NULL, s[i].tokens, s[i].n_tokens, &items[i].key);
		}
		kvg_commit(c, items, 10, r);
		for (int i = 0; i < 10; i++)
			if (r[i].code != (i < 4 ? KVG_CODE_OK : KVG_CODE_QUOTA))
				return 2;
		if (!strstr(r[9].error, "raise in_flight in kvgated.conf"))
			return 3;
	}
	if (client_counter(c, "kvgate_staging_bytes") != 0)
		return 4; /* each stage is used up, whatever the result */
	return client_counter(c, "kvgate_blocks") == before + 4 * 3 ? 0 : 5;
}

/* The tenant's own quota evicts the tenant's own blocks; the neighbour keeps all of its. */
static int fill(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key key;

	for (uint64_t i = 0; i < 1500; i++)
		if (chain_put(c, l, &model_small, 10000 + i, 1, &key) != KVG_CODE_OK)
			return 1;
	return client_counter(c, "kvgate_bytes") <= 8 << 20 &&
			client_counter(c, "kvgate_evicted_blocks_total") > 0
		? 0
		: 2;
}

static int keep(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[50];

	return chain_put(c, l, &model_small, 1, 50, keys) == KVG_CODE_OK ? 0 : 1;
}

static int kept(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[50];

	chain_keys(l, &model_small, 1, 50, keys);
	return kvg_prefix_lookup(l, keys, 50) == 50 ? 0 : 1;
}

static void test_quotas(void **state)
{
	struct daemon_process d;

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d, config);
	assert_int_equal(child_run(UID_A, staging, &d), 0);
	assert_int_equal(child_run(UID_A, sessions, &d), 0);
	assert_int_equal(child_run(UID_A, pins, &d), 0);
	assert_int_equal(child_run(UID_A, pins_together, &d), 0);
	assert_int_equal(child_run(UID_A, in_flight, &d), 0);
	assert_int_equal(child_run(UID_B, keep, &d), 0);
	assert_int_equal(child_run(UID_A, fill, &d), 0);
	assert_int_equal(child_run(UID_B, kept, &d), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* As many workers as a tenant may have: each gets its pins, and together they are what one scan can look at. */
static void test_pins_of_many_sessions(void **state)
{
	struct daemon_process d;
	struct kvg_client *c[256], *more;
	uint32_t sum = 0;

	(void)state;
	daemon_start(&d, "");
	for (int i = 0; i < 256; i++) {
		uint32_t n = pins_of(&d, 0, &c[i]);

		assert_true(i < 16 ? n == 4096 : n >= 256 && n <= 4096);
		sum += n;
	}
	for (int i = 0; i < 256; i++)
		kvg_close(c[i]);
	assert_int_equal(sum, 131072);
	sum = 0;
	for (int i = 0; i < 256; i++) { /* and the same when each asks for all there could be */
		uint32_t n = pins_of(&d, UINT32_MAX, &c[i]);

		assert_true(n >= 256);
		sum += n;
	}
	assert_int_equal(sum, 131072);
	for (int i = 0; i < 256; i++)
		kvg_close(c[i]);
	assert_int_equal(daemon_stop(&d), 0);
	/* fewer pins than sessions: who comes too late is told what to do */
	daemon_spawn(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"[limits]\npins = 20\nsession_pins = 16\n",
		NULL);
	assert_true(daemon_wait_ready(&d));
	assert_int_equal(pins_of(&d, 0, &c[0]), 16);
	assert_int_equal(pins_of(&d, 0, &c[1]), 4);
	assert_int_equal(pins_of(&d, 0, &more), 0);
	assert_non_null(strstr(kvg_last_error(NULL), "raise pins in kvgated.conf"));
	kvg_close(c[0]);
	kvg_close(c[1]);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* Everything pinned: a commit is refused with NO_SPACE, and works again after the pins are gone. */
static void test_all_pinned(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key;
	static struct kvg_pin pin[4096];
	size_t n = 0;
	int code;

	(void)state;
	daemon_start(&d,
		"[memory]\nhost_bytes = 8MiB\nsegment_bytes = 4MiB\nindex_slots = "
		"4096\n[limits]\nsession_pins = 4096\n");
	c = client_open(&d);
	l = model_register(c, &model_small);
	/* near the end, what is not pinned yet may be gone before it is: only it can make room */
	while (n < 4096 && (code = chain_put(c, l, &model_small, n, 1, &key)) == KVG_CODE_OK &&
		kvg_lookup_pin(l, &key, 1.f, &pin[n]) == 0)
		n++;
	assert_true(n > 50 && n < 4096);
	assert_true(code == KVG_CODE_OK || code == KVG_CODE_NO_SPACE || code == KVG_CODE_QUOTA);
	for (size_t i = 0; i < n; i++)
		content_compare(&model_small, i, l, &pin[i]);
	kvg_unpin(c, pin, n);
	assert_int_equal(chain_put(c, l, &model_small, 9999, 1, &key), KVG_CODE_OK);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* Maps the tenant's segments by hand and reads all of them, the holes too. */
static int read_holes(void *arg)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__MapSegments m = KVGATE__V1__MAP_SEGMENTS__INIT;
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	int sock = raw_connect(arg);
	struct raw_reply r;
	uint32_t id = 1;
	struct kvg_key key;
	const volatile uint8_t *p;
	uint64_t bytes;

	if (chain_put(c, l, &model_small, 1, 1, &key) != KVG_CODE_OK)
		return 1;
	raw_hello(sock);
	m.segments = &id;
	m.n_segments = 1;
	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS;
	q.map_segments = &m;
	raw_send(sock, &q);
	if (!raw_recv(sock, &r) || r.n_fds != 1)
		return 2;
	bytes = r.reply->map_segments->segments[0]->bytes;
	p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, r.fds[0], 0);
	if (p == MAP_FAILED)
		return 3;
	for (uint64_t at = 0; at < bytes; at += 4096)
		(void)p[at];
	return 0;
}

static uint64_t segment_memory(const struct daemon_process *d)
{
	char path[64], name[128];
	uint64_t bytes = 0;
	struct dirent *e;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
	dir = opendir(path);
	assert(dir);
	while ((e = readdir(dir))) {
		ssize_t n = readlinkat(dirfd(dir), e->d_name, name, sizeof(name) - 1);

		name[n < 0 ? 0 : n] = '\0';
		if (strstr(name, "memfd:kvgate-segment") &&
			fstatat(dirfd(dir), e->d_name, &st, 0) == 0)
			bytes = (uint64_t)st.st_blocks * 512;
	}
	closedir(dir);
	return bytes;
}

/* Reading where nothing is makes the kernel put memory there: it counts for nobody, so it goes again. */
static void test_holes(void **state)
{
	struct daemon_process d;

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d,
		"[memory]\nhost_bytes = 8MiB\nsegment_bytes = 32MiB\nindex_slots = 4096\n"
		"huge_pages = no\nprefault = no\n");
	assert_int_equal(child_run(UID_A, read_holes, &d), 0);
	for (int i = 0; i < 1000 && segment_memory(&d) > 1 << 20; i++)
		usleep(5000);
	assert_in_range(segment_memory(&d), 4096, 1 << 20);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_quotas),
		cmocka_unit_test(test_pins_of_many_sessions),
		cmocka_unit_test(test_all_pinned),
		cmocka_unit_test(test_holes),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
