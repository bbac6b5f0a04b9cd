/* SPDX-License-Identifier: Apache-2.0 */
/* One process puts, others read the same pages, and nobody but the daemon can change them. */
#include <assert.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define BLOCKS 20
#define UID_A  61001

static int get(void *arg)
{
	const struct chain_task *t = arg;
	struct kvg_client *c = client_open(t->d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	size_t n;

	chain_keys(l, &model_small, t->seed, BLOCKS, keys);
	n = kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins);
	if (n != t->expect)
		return 1;
	for (size_t i = 0; i < n; i++) {
		uint64_t pairs = content_compare(&model_small, t->seed + i, l, &pins[i]);

		if (pairs != (uint64_t)model_small.layers * model_small.heads * model_small.tokens)
			return 2;
		if (pins[i].retention != 1.f || kvg_verify(l, &pins[i]))
			return 3;
	}
	kvg_unpin(c, pins, n);
	kvg_close(c);
	return 0;
}

static void test_two_processes(void **state)
{
	struct daemon_process d;
	struct chain_task t = {.d = &d, .seed = 7, .n = BLOCKS, .expect = BLOCKS};
	struct chain_task other = {.d = &d, .seed = 8, .n = BLOCKS, .expect = 0};

	(void)state;
	daemon_start(&d, "");
	assert_int_equal(child_run(0, chain_put_child, &t), 0);
	assert_int_equal(child_run(0, get, &t), 0);
	assert_int_equal(child_run(0, get, &other), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void test_eight_readers_at_once(void **state)
{
	struct daemon_process d;
	struct chain_task t = {.d = &d, .seed = 7, .n = BLOCKS, .expect = BLOCKS};
	struct kvg_client *c;
	pid_t pids[8];
	double used;

	(void)state;
	daemon_start(&d, "");
	assert_int_equal(child_run(0, chain_put_child, &t), 0);
	c = client_open(&d);
	used = client_counter(c, "kvgate_bytes");
	assert_true(used > 0);
	for (int i = 0; i < 8; i++)
		pids[i] = child_start(0, get, &t);
	for (int i = 0; i < 8; i++)
		assert_int_equal(child_wait(pids[i]), 0);
	assert_true(client_counter(c, "kvgate_bytes") == used); /* one copy for all of them */
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* The same tokens under another identity are another block. */
static void test_identity(void **state)
{
	struct daemon_process d;
	struct test_model other = model_small;
	struct kvg_client *c;
	struct kvg_layout *a, *b;
	struct kvg_key ka[2], kb[2];

	(void)state;
	other.name = "another model";
	daemon_start(&d, "");
	c = client_open(&d);
	a = model_register(c, &model_small);
	b = model_register(c, &other);
	assert_int_equal(chain_put(c, a, &model_small, 1, 2, ka), KVG_CODE_OK);
	chain_keys(b, &other, 1, 2, kb);
	assert_memory_not_equal(&ka[0], &kb[0], sizeof(ka[0]));
	assert_int_equal(kvg_prefix_lookup(a, ka, 2), 2);
	assert_int_equal(kvg_prefix_lookup(b, kb, 2), 0);
	/* the other layout's keys, asked for under this layout, are a miss as well */
	assert_int_equal(kvg_prefix_lookup(b, ka, 2), 0);
	/* putting the same again is no second copy */
	assert_int_equal(chain_put(c, a, &model_small, 1, 2, ka), KVG_CODE_EXISTS);
	assert_true(client_counter(c, "kvgate_blocks") == 2);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static const void *first_row(const struct daemon_process *d, struct kvg_client **ret_c)
{
	struct kvg_client *c = client_open(d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_plane planes[KVG_PLANES_MAX];
	struct kvg_key key;
	struct kvg_pin pin;

	chain_keys(l, &model_small, 7, 1, &key);
	assert(kvg_lookup_pin(l, &key, 0.f, &pin) == 0);
	assert(kvg_planes(l, &pin, planes) > 0);
	*ret_c = c;
	return planes[0].k;
}

static int write_committed(void *arg)
{
	struct kvg_client *c;
	volatile uint8_t *p = (uint8_t *)(uintptr_t)first_row(arg, &c);

	*p = 1;
	return 0;
}

static int remap_committed(void *arg)
{
	struct kvg_client *c;
	uintptr_t p = (uintptr_t)first_row(arg, &c);

	return mprotect((void *)(p & ~(uintptr_t)4095), 4096, PROT_READ | PROT_WRITE) == 0;
}

static int writable(int fd)
{
	char path[64];
	int again;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	again = open(path, O_RDWR | O_CLOEXEC);
	return again >= 0 ||
		mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED ||
		fchmod(fd, 0666) == 0 || ftruncate(fd, 0) == 0;
}

/* The index and every segment, tried for writing in every way there is. Counts the ones that let us; 99: too few. */
static int reopen_committed(void *arg)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;
	Kvgate__V1__MapSegments m = KVGATE__V1__MAP_SEGMENTS__INIT;
	struct raw_reply r;
	uint32_t ids[60];
	int sock = raw_connect(arg), opened;
	unsigned segments;

	h.version_min = h.version_max = 1;
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &h;
	raw_send(sock, &q);
	if (!raw_recv(sock, &r) || r.n_fds != 2)
		return 98;
	opened = writable(r.fds[0]);
	raw_reply_free(&r);
	for (uint32_t i = 0; i < 60; i++)
		ids[i] = i;
	m.n_segments = 60;
	m.segments = ids;
	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS;
	q.map_segments = &m;
	raw_send(sock, &q);
	if (!raw_recv(sock, &r))
		return 97;
	segments = r.n_fds;
	for (unsigned i = 0; i < segments; i++)
		opened += writable(r.fds[i]);
	raw_reply_free(&r);
	return segments ? opened : 99;
}

static void test_committed_memory_is_read_only(void **state)
{
	struct daemon_process d;
	struct chain_task t = {.d = &d, .seed = 7, .n = BLOCKS, .expect = BLOCKS};
	uid_t uid = can_change_user() ? UID_A : 0;

	(void)state;
	daemon_start(&d, "");
	assert_int_equal(child_run(uid, chain_put_child, &t), 0);
	assert_int_equal(child_run(uid, write_committed, &d), 128 + SIGSEGV);
	assert_int_equal(child_run(uid, remap_committed, &d), 0);
	if (uid)
		assert_int_equal(child_run(uid, reopen_committed, &d), 0);
	assert_int_equal(child_run(uid, get, &t), 0);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_two_processes),
		cmocka_unit_test(test_eight_readers_at_once),
		cmocka_unit_test(test_identity),
		cmocka_unit_test(test_committed_memory_is_read_only),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
