/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Acquire and prefetch over a tier below memory that does what the test says: planes come when the test lets them, in the
 * order it likes, or do not. The linker puts it between serve and the cache (--wrap).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

#include "tests/unit/serve_fixture.h"

#define PLANES   3
#define BLOCKS   8
#define REQUESTS 32 /* ACQUIRES_MAX */
static const uint32_t pairs[PLANES] = {10, 30, 60};

static struct serving s;
static struct client c;
static uint32_t layout;

/* ---- the tier ---- */

static struct below {
	uint64_t handle; /* 0: the cache's own word */
	uint8_t held, mapped;
} below[BLOCKS];
static struct cache_fetch *waiting[512];
static uint64_t waiting_for[512];
static int pins, prefetched, cancelled;

static struct below *find(struct kvg_handle h)
{
	for (int i = 0; i < BLOCKS; i++)
		if (below[i].handle == kvg_handle_pack(h))
			return &below[i];
	return NULL;
}

static float share(uint8_t planes)
{
	uint32_t n = 0;

	for (int p = 0; p < PLANES; p++)
		n += planes >> p & 1 ? pairs[p] : 0;
	return (float)n / 100.f;
}

static void show(struct below *b, struct cache_block_result *ret)
{
	ret->held = b->held;
	ret->mapped = b->mapped;
	ret->retention = share(b->held);
}

int __real_cache_acquire(struct cache_tenant *t, const struct cache_layout *l,
	const struct kvg_key *key, float min_retention, struct cache_block_result *ret);
int __wrap_cache_acquire(struct cache_tenant *t, const struct cache_layout *l,
	const struct kvg_key *key, float min_retention, struct cache_block_result *ret);
int __wrap_cache_acquire(struct cache_tenant *t, const struct cache_layout *l,
	const struct kvg_key *key, float min_retention, struct cache_block_result *ret)
{
	int code = __real_cache_acquire(t, l, key, 0, ret);

	if (code == KVG_CODE_OK && find(ret->handle)) {
		show(find(ret->handle), ret);
		if (ret->retention < min_retention) {
			cache_release(t, ret->handle);
			return KVG_CODE_BELOW_RETENTION;
		}
	}
	pins += code == KVG_CODE_OK;
	return code;
}

int __real_cache_look(struct cache_tenant *t, struct kvg_handle h, struct cache_block_result *ret);
int __wrap_cache_look(struct cache_tenant *t, struct kvg_handle h, struct cache_block_result *ret);
int __wrap_cache_look(struct cache_tenant *t, struct kvg_handle h, struct cache_block_result *ret)
{
	int code = __real_cache_look(t, h, ret);

	if (code == KVG_CODE_OK && find(h))
		show(find(h), ret);
	return code;
}

int __real_cache_inspect(struct cache_tenant *t, uint32_t l, const struct kvg_key *key,
	struct cache_block_info *ret);
int __wrap_cache_inspect(struct cache_tenant *t, uint32_t l, const struct kvg_key *key,
	struct cache_block_info *ret);
int __wrap_cache_inspect(
	struct cache_tenant *t, uint32_t l, const struct kvg_key *key, struct cache_block_info *ret)
{
	int code = __real_cache_inspect(t, l, key, ret);

	ret->n_planes = PLANES;
	for (int p = 0; p < PLANES; p++)
		ret->plane[p].pairs = pairs[p];
	return code;
}

uint8_t __wrap_cache_fetch(
	struct cache_tenant *t, struct kvg_handle h, float retention, struct cache_fetch *f);
uint8_t __wrap_cache_fetch(
	struct cache_tenant *t, struct kvg_handle h, float retention, struct cache_fetch *f)
{
	struct below *b = find(h);
	uint8_t planes = 0;

	(void)t;
	for (int p = 0; b && p < PLANES && share(b->mapped | planes) < retention; p++)
		planes |= (uint8_t)(b->held & ~b->mapped & 1u << p);
	if (!f)
		prefetched += planes;
	for (int i = 0; planes && f; i++)
		if (!waiting[i]) {
			waiting[i] = f;
			waiting_for[i] = b->handle;
			f->waiting = planes;
			f->error = 0;
			break;
		}
	return planes;
}

void __wrap_cache_fetch_cancel(struct cache_fetch *f);
void __wrap_cache_fetch_cancel(struct cache_fetch *f)
{
	for (int i = 0; i < 512; i++)
		if (waiting[i] == f) {
			waiting[i] = NULL;
			cancelled++;
			return;
		}
	fail_msg("a fetch was cancelled that nobody waits for");
}

static int n_waiting(void)
{
	int n = 0;

	for (int i = 0; i < 512; i++)
		n += waiting[i] != NULL;
	return n;
}

/* These planes of block k come, or with an error do not. */
static void arrive(int k, uint8_t planes, int error)
{
	struct below *b = &below[k];

	if (!error)
		b->mapped |= planes;
	else if (error != -ENOSPC)
		b->held &= (uint8_t)~planes;
	for (int i = 0; i < 512; i++) {
		struct cache_fetch *f = waiting[i];

		if (!f || waiting_for[i] != b->handle || !(f->waiting & planes))
			continue;
		f->waiting &= (uint8_t)~planes;
		if (error)
			f->error = error;
		if (!f->waiting)
			waiting[i] = NULL;
		f->arrived(f, planes);
	}
}

/* ---- requests ---- */

static uint8_t key_bytes[BLOCKS][KVG_KEY_BYTES];
static ProtobufCBinaryData keys[BLOCKS];

#define ACQUIRE(q, first, n)                                                                       \
	REQUEST(q, acquire, Acquire, ACQUIRE, ACQUIRE);                                            \
	q##_body.layout = layout;                                                                  \
	q##_body.keys = keys + (first);                                                            \
	q##_body.n_keys = n

static void expect_block(const struct answer *a, size_t i, int code, unsigned held, unsigned mapped)
{
	const Kvgate__V1__BlockResult *b;

	assert_true(a->m && a->m->code == KVG_CODE_OK && i < a->m->acquire->n_blocks);
	b = a->m->acquire->blocks[i];
	assert_int_equal(b->code, code);
	assert_int_equal(b->handle != 0, code == KVG_CODE_OK);
	if (code == KVG_CODE_OK || held) {
		assert_int_equal(b->held, held);
		assert_int_equal(b->mapped, mapped);
	}
}

static uint64_t released(uint64_t handle)
{
	REQUEST(q, release, Release, RELEASE, RELEASE);
	struct answer a;
	uint64_t n;

	q_body.handles = &handle;
	q_body.n_handles = 1;
	client_ask(&c, &q, &a);
	n = a.m->release->released;
	answer_free(&a);
	return n;
}

/* Blocks that a purge cannot take. */
static uint64_t pinned_blocks(void)
{
	REQUEST(q, purge, Purge, PURGE, PURGE);
	struct client other;
	struct answer a;
	uint64_t n;

	client_connect(&other, &s);
	client_hello(&other, true);
	client_ask(&other, &q, &a);
	n = a.m->purge->pinned;
	answer_free(&a);
	client_hangup(&other);
	return n;
}

static bool quiet(void)
{
	struct pollfd p = {.fd = c.sock, .events = POLLIN};

	serving_settle(&s);
	return poll(&p, 1, 0) == 0;
}

/* Bytes in the pipe, taken out. */
static ssize_t signals(int fd)
{
	char buf[8192];
	ssize_t n = read(fd, buf, sizeof(buf));

	return n < 0 && errno == EAGAIN ? 0 : n;
}

static int start(void **state)
{
	(void)state;
	serving_start(&s, "[limits]\npins = 300\n");
	client_connect(&c, &s);
	client_hello(&c, false);
	layout = client_layout(&c, "m");
	memset(below, 0, sizeof(below));
	pins = prefetched = cancelled = 0;
	for (int k = 0; k < BLOCKS; k++) {
		ACQUIRE(q, k, 1);
		struct answer a;

		memset(key_bytes[k], k + 1, KVG_KEY_BYTES);
		keys[k] = (ProtobufCBinaryData){.len = KVG_KEY_BYTES, .data = key_bytes[k]};
		client_put(&c, layout, (uint8_t)(k + 1));
		client_ask(&c, &q, &a);
		below[k] = (struct below){a.m->acquire->blocks[0]->handle, 7, 0};
		assert_int_equal(released(below[k].handle), 1);
		answer_free(&a);
	}
	return 0;
}

static int stop(void **state)
{
	(void)state;
	if (c.sock >= 0)
		client_hangup(&c);
	assert_int_equal(n_waiting(), 0);
	serving_stop(&s);
	return 0;
}

/* ---- tests ---- */

static void test_waits_for_all(void **state)
{
	ACQUIRE(q, 0, 3);
	struct answer a;

	(void)state;
	q_body.min_retention = .4f;
	below[1].mapped = 3; /* is there already */
	below[2].held = 1;   /* can never be enough */
	client_send(&c, &q);
	assert_true(quiet());
	assert_int_equal(n_waiting(), 1);
	arrive(0, 1, 0);
	assert_true(quiet());
	assert_int_equal(released(below[0].handle), 0); /* not the client's yet */
	arrive(0, 2, 0);
	client_receive(&c, &a);
	assert_int_equal(a.m->id + 1, c.id); /* the release overtook it */
	assert_int_equal(a.n_fds, 0);
	expect_block(&a, 0, KVG_CODE_OK, 7, 3);
	expect_block(&a, 1, KVG_CODE_OK, 7, 3);
	expect_block(&a, 2, KVG_CODE_BELOW_RETENTION, 0, 0);
	assert_int_equal(a.m->acquire->blocks[0]->coming, 0);
	answer_free(&a);
	assert_int_equal(pinned_blocks(), 2);
	assert_int_equal(released(below[0].handle), 1);
	assert_int_equal(released(below[1].handle), 1);
	assert_int_equal(pinned_blocks(), 0);
}

/* More is wanted than has to be there: what does not come is no reason to refuse. */
static void test_want(void **state)
{
	ACQUIRE(q, 0, 1);
	struct answer a;

	(void)state;
	q_body.min_retention = .05f;
	q_body.want = 1;
	client_send(&c, &q);
	assert_true(quiet());
	arrive(0, 1, 0);
	arrive(0, 4, -ENOSPC);
	assert_true(quiet());
	arrive(0, 2, -EBADMSG);
	client_receive(&c, &a);
	expect_block(&a, 0, KVG_CODE_OK, 5, 1);
	answer_free(&a);
}

static void test_best_plane_at_least(void **state)
{
	ACQUIRE(q, 0, 1);
	struct answer a;

	(void)state;
	client_send(&c, &q);
	assert_true(quiet());
	arrive(0, 1, 0);
	client_receive(&c, &a);
	expect_block(&a, 0, KVG_CODE_OK, 7, 1);
	answer_free(&a);
}

static void test_what_does_not_come(void **state)
{
	static const struct {
		int error, code;
	} t[] = {{-ENOSPC, KVG_CODE_NO_SPACE}, {-EBADMSG, KVG_CODE_CORRUPT},
		{-EIO, KVG_CODE_CORRUPT}, {-ENOMEM, KVG_CODE_NO_MEMORY}};
	ACQUIRE(q, 0, 4);
	struct answer a;

	(void)state;
	q_body.min_retention = 1;
	client_send(&c, &q);
	assert_true(quiet());
	for (int i = 0; i < 4; i++)
		arrive(i, 7, t[i].error);
	client_receive(&c, &a);
	assert_int_equal(a.m->acquire->n_blocks, 4);
	for (size_t i = 0; i < 4; i++)
		expect_block(&a, i, t[i].code, 0, 0);
	answer_free(&a);
	assert_int_equal(pinned_blocks(), 0);
}

/* A prefix ends where something did not come; what comes after it is not pinned. */
static void test_prefix(void **state)
{
	ACQUIRE(q, 0, 4);
	struct answer a;

	(void)state;
	q_body.prefix = true;
	client_send(&c, &q);
	assert_true(quiet());
	for (int i = 3; i >= 0; i--)
		arrive(i, 1, i == 1 ? -EIO : 0);
	client_receive(&c, &a);
	assert_int_equal(a.m->acquire->n_blocks, 2);
	expect_block(&a, 0, KVG_CODE_OK, 7, 1);
	expect_block(&a, 1, KVG_CODE_CORRUPT, 0, 0);
	answer_free(&a);
	assert_int_equal(pinned_blocks(), 1);
}

static void test_no_wait(void **state)
{
	ACQUIRE(q, 0, 2);
	struct answer a, b;
	int fd;

	(void)state;
	q_body.min_retention = .05f;
	q_body.want = 1;
	q_body.no_wait = true;
	client_ask(&c, &q, &a);
	expect_block(&a, 0, KVG_CODE_OK, 7, 0);
	assert_int_equal(a.m->acquire->blocks[0]->coming, 7);
	assert_int_equal(a.n_fds, 1);
	fd = a.fds[0];
	/* nobody can write into it, and who reads does not block */
	assert_int_equal(fcntl(fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(write(fd, "", 1), -1);
	assert_int_equal(signals(fd), 0);
	client_ask(&c, &q, &b); /* the second one brings no other */
	assert_int_equal(b.n_fds, 0);
	answer_free(&b);
	arrive(0, 1, 0);
	assert_int_equal(signals(fd), 2); /* one for each request */
	arrive(0, 2, -EIO);
	assert_int_equal(signals(fd), 2);
	assert_true(quiet());
	/* with the last pin of a block nobody waits for it any more */
	assert_int_equal(released(below[0].handle), 1);
	assert_int_equal(n_waiting(), 4);
	assert_int_equal(released(below[0].handle), 1);
	assert_int_equal(n_waiting(), 2);
	arrive(1, 7, 0);
	assert_int_equal(signals(fd), 2);
	assert_int_equal(n_waiting(), 0);
	assert_true(quiet());
	assert_int_equal(pinned_blocks(), 1);
	answer_free(&a);
}

/* What is given back was got without waiting: a request that waits for the same block goes on. */
static void test_released_beside_one_that_waits(void **state)
{
	ACQUIRE(q, 0, 1);
	struct answer a;
	uint64_t waits;

	(void)state;
	client_send(&c, &q);
	waits = c.id;
	assert_true(quiet());
	q_body.no_wait = true;
	client_ask(&c, &q, &a);
	answer_free(&a);
	assert_int_equal(n_waiting(), 2);
	assert_int_equal(released(below[0].handle), 1);
	assert_int_equal(n_waiting(), 1);
	assert_int_equal(pinned_blocks(), 1);
	arrive(0, 1, 0);
	client_receive(&c, &a);
	assert_int_equal(a.m->id, waits);
	expect_block(&a, 0, KVG_CODE_OK, 7, 1);
	answer_free(&a);
}

/* A pipe that is full, or that the client took the other end of away, is nobody's trouble. */
static void test_pipe_full_or_closed(void **state)
{
	ACQUIRE(q, 0, 1);
	struct answer a;

	(void)state;
	q_body.min_retention = 1;
	q_body.no_wait = true;
	client_ask(&c, &q, &a);
	for (int i = 0; i < 100000; i++) {
		struct cache_fetch *f = waiting[0];

		f->arrived(f, 1);
	}
	assert_true(signals(a.fds[0]) > 0);
	answer_free(&a);
	arrive(0, 7, 0);
	assert_true(quiet());
	assert_int_equal(released(below[0].handle), 1);
}

static void test_side_by_side(void **state)
{
	ACQUIRE(q, 0, BLOCKS);
	struct answer a;

	(void)state;
	for (int i = 0; i < REQUESTS; i++)
		client_send(&c, &q);
	assert_true(quiet());
	assert_int_equal(client_code(&c, &q), KVG_CODE_BUSY);
	for (int k = 0; k < BLOCKS; k++)
		arrive(k, 1, 0);
	for (int i = 0; i < REQUESTS; i++) {
		client_receive(&c, &a);
		assert_int_equal(a.m->acquire->n_blocks, BLOCKS);
		for (size_t k = 0; k < BLOCKS; k++)
			expect_block(&a, k, KVG_CODE_OK, 7, 1);
		answer_free(&a);
	}
	client_ask(&c, &q, &a); /* nothing to wait for */
	expect_block(&a, 0, KVG_CODE_OK, 7, 1);
	answer_free(&a);
}

/* Pins are paid for while they are waited for. */
static void test_quota(void **state)
{
	ACQUIRE(q, 0, 3);
	struct answer a;

	(void)state;
	for (int i = 0; i < 300; i++) {
		ACQUIRE(one, 4, 1);

		below[4].mapped = 7;
		if (i < 298)
			assert_int_equal(client_code(&c, &one), KVG_CODE_OK);
	}
	client_send(&c, &q);
	assert_true(quiet());
	arrive(0, 1, 0);
	arrive(1, 1, 0);
	client_receive(&c, &a);
	expect_block(&a, 0, KVG_CODE_OK, 7, 1);
	expect_block(&a, 1, KVG_CODE_OK, 7, 1);
	expect_block(&a, 2, KVG_CODE_QUOTA, 0, 0);
	answer_free(&a);
}

static void test_death_while_waiting(void **state)
{
	ACQUIRE(q, 0, 4);
	struct answer a;

	(void)state;
	client_send(&c, &q);
	q_body.no_wait = true;
	client_ask(&c, &q, &a);
	answer_free(&a);
	assert_int_equal(n_waiting(), 8);
	assert_int_equal(pinned_blocks(), 4);
	client_hangup(&c);
	assert_int_equal(n_waiting(), 0);
	assert_int_equal(cancelled, 8);
	assert_int_equal(pinned_blocks(), 0);
	assert_int_equal(counter_get(s.scope, COUNTER_SESSIONS, 0), 0);
}

/* The last plane has come, and the session goes before it is told. */
static void test_death_between(void **state)
{
	ACQUIRE(q, 0, 1);

	(void)state;
	client_send(&c, &q);
	assert_true(quiet());
	close(c.sock);
	c.sock = -1;
	arrive(0, 1, 0);
	serving_settle(&s);
	assert_int_equal(pinned_blocks(), 0);
}

static bool is_drained;
static void on_drained(void *userdata)
{
	(void)userdata;
	is_drained = true;
}

static void test_drain_while_waiting(void **state)
{
	ACQUIRE(q, 0, 2);
	ACQUIRE(mapped, 3, 1);
	struct answer a;

	(void)state;
	is_drained = false;
	client_send(&c, &q);
	assert_true(quiet());
	server_drain(s.server, on_drained, NULL);
	client_receive(&c, &a);
	assert_int_equal(a.m->id, c.id);
	assert_int_equal(a.m->code, KVG_CODE_SHUTTING_DOWN);
	answer_free(&a);
	assert_int_equal(n_waiting(), 0);
	assert_true(is_drained);
	/* what would have to wait is refused, what is there can be had still */
	assert_int_equal(client_code(&c, &q), KVG_CODE_SHUTTING_DOWN);
	below[3].mapped = 7;
	client_ask(&c, &mapped, &a);
	expect_block(&a, 0, KVG_CODE_OK, 7, 7);
	answer_free(&a);
}

/* server_free() with requests that wait. */
static void test_end_while_waiting(void **state)
{
	ACQUIRE(q, 0, 2);

	(void)state;
	client_send(&c, &q);
	assert_true(quiet());
	arrive(0, 1, 0);
	arrive(1, 1, 0); /* the answer is posted, and comes too late */
	close(c.sock);
	c.sock = -1;
}

static void test_bad_values(void **state)
{
	ACQUIRE(q, 0, 1);
	struct client control;

	(void)state;
	q_body.want = 1.5f;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.want = -.1f;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.want = 0;
	q_body.no_wait = true;
	client_connect(&control, &s);
	client_hello(&control, true);
	assert_int_equal(client_code(&control, &q), KVG_CODE_BAD_ARGUMENT);
	client_hangup(&control);
}

static void test_prefetch(void **state)
{
	REQUEST(q, prefetch, Prefetch, PREFETCH, PREFETCH);
	ProtobufCBinaryData some[3] = {keys[0], keys[1], {0}};
	uint8_t nobody[KVG_KEY_BYTES] = {99};
	struct answer a;

	(void)state;
	some[2] = (ProtobufCBinaryData){.len = sizeof(nobody), .data = nobody};
	q_body.layout = layout;
	q_body.keys = some;
	q_body.n_keys = 3;
	below[1].mapped = 1;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->prefetch->present, 2);
	assert_int_equal(a.m->prefetch->moving, 1);
	assert_int_equal(prefetched, 1); /* the best plane of the first */
	answer_free(&a);
	q_body.retention = 1;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->prefetch->moving, 2);
	assert_int_equal(prefetched, 1 + 7 + 6);
	answer_free(&a);
	assert_int_equal(pinned_blocks(), 0);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, start, stop)
	const struct CMUnitTest tests[] = {
		TEST(test_waits_for_all),
		TEST(test_want),
		TEST(test_best_plane_at_least),
		TEST(test_what_does_not_come),
		TEST(test_prefix),
		TEST(test_no_wait),
		TEST(test_released_beside_one_that_waits),
		TEST(test_pipe_full_or_closed),
		TEST(test_side_by_side),
		TEST(test_quota),
		TEST(test_death_while_waiting),
		TEST(test_death_between),
		TEST(test_drain_while_waiting),
		TEST(test_end_while_waiting),
		TEST(test_bad_values),
		TEST(test_prefetch),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
