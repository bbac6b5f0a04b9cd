/* SPDX-License-Identifier: Apache-2.0 */
/* Subscribers hear of commits, shrinks and evictions of their own tenant; who reads too slowly is told what it missed. */
#include <assert.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/kvgate.pb-c.h"
#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define SUBSCRIBERS 16 /* as many as the default quota allows */
#define ROUNDS      20
#define CHAIN       60
#define REPLIES     380 /* more than a socket takes */

struct heard {
	unsigned count[4];
	uint32_t held;
	struct kvg_key last;
};

static void hear(void *userdata, const struct kvg_event *e)
{
	struct heard *h = userdata;

	assert(e->kind >= 0 && e->kind < 4);
	h->count[e->kind]++;
	h->held = e->held;
	h->last = e->key;
}

static void wait_for(struct kvg_client *c, struct heard *h, int kind, unsigned count)
{
	for (int i = 0; i < 100 && h->count[kind] < count; i++) {
		struct pollfd p = {.fd = kvg_fd(c), .events = POLLIN};

		poll(&p, 1, 100);
		assert_int_equal(kvg_dispatch(c), 0);
	}
	assert_int_equal(h->count[kind], count);
}

static void test_events(void **state)
{
	struct daemon_process d;
	struct kvg_client *c, *writer;
	struct kvg_layout *l;
	struct kvg_key keys[5];
	struct heard h = {0};
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	assert_int_equal(kvg_subscribe(c, 1 << 1 | 1 << 2 | 1 << 3, hear, &h), 0);
	writer = client_open(&d);
	l = model_register(writer, &model_small);
	assert_int_equal(chain_put(writer, l, &model_small, 1, 5, keys), KVG_CODE_OK);
	wait_for(c, &h, 1, 5);
	assert_memory_equal(&h.last, &keys[4], sizeof(keys[4]));
	assert_int_equal(h.held, 15);
	o.keep_planes = 1;
	assert_int_equal(kvg_purge(writer, &o, &r), 0);
	wait_for(c, &h, 2, 5);
	assert_int_equal(h.held, 1);
	o.keep_planes = 0;
	assert_int_equal(kvg_purge(writer, &o, &r), 0);
	wait_for(c, &h, 3, 5);
	assert_int_equal(kvg_subscribe(c, 0, NULL, NULL), 0);
	assert_int_equal(chain_put(writer, l, &model_small, 50, 5, keys), KVG_CODE_OK);
	assert_int_equal(kvg_dispatch(c), 0);
	assert_int_equal(h.count[1], 5);
	kvg_close(writer);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* What pressure does is heard of as well: planes first, and whole blocks when nothing else is left to take. */
static void test_pressure(void **state)
{
	struct daemon_process d;
	struct kvg_client *c, *writer;
	struct kvg_layout *l;
	struct kvg_key key;
	struct heard h = {0};

	(void)state;
	daemon_start(&d,
		"[memory]\nhost_bytes = 4MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
		"floor = 0.3\n");
	c = client_open(&d);
	assert_int_equal(kvg_subscribe(c, 1 << 2 | 1 << 3, hear, &h), 0);
	writer = client_open(&d);
	l = model_register(writer, &model_small);
	for (uint64_t i = 0; i < 1500; i++) {
		assert_int_equal(chain_put(writer, l, &model_small, i, 1, &key), KVG_CODE_OK);
		assert_int_equal(kvg_dispatch(c), 0);
		if (h.count[3] == 0 && h.count[2] > 0)
			assert_in_range(
				h.held, 1, 7); /* the best plane is still there, the last is not */
	}
	assert_true(h.count[2] > 0 && h.count[3] > 0);
	wait_for(c, &h, 3, (unsigned)client_counter(writer, "kvgate_evicted_blocks_total"));
	assert_true(
		client_counter(writer, "kvgate_evicted_planes_total") >= h.count[2] + h.count[3]);
	assert_int_equal(h.count[0], 0);
	assert_int_equal(h.count[1], 0); /* not asked for */
	kvg_close(writer);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static int raw_subscribe(const struct daemon_process *d)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Subscribe m = KVGATE__V1__SUBSCRIBE__INIT;
	int sock = raw_connect(d);

	raw_hello(sock);
	m.events = 1 << 1 | 1 << 2 | 1 << 3;
	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_SUBSCRIBE;
	q.subscribe = &m;
	assert_int_equal(raw_ask(sock, &q), KVG_CODE_OK);
	return sock;
}

/* Requests whose answers nobody reads yet. */
static int raw_pipeline(const struct daemon_process *d)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Abort m = KVGATE__V1__ABORT__INIT;
	int sock = raw_connect(d);

	raw_hello(sock);
	q.body_case = KVGATE__V1__REQUEST__BODY_ABORT;
	q.abort = &m;
	for (q.id = 2; q.id < 2 + REPLIES; q.id++)
		raw_send(sock, &q);
	return sock;
}

/* Three events for every block: committed, shrunk, evicted. */
static void make_events(struct kvg_client *c)
{
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key keys[CHAIN];

	for (uint64_t round = 0; round < ROUNDS; round++) {
		struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
		struct kvg_purge_result r;

		assert_int_equal(
			chain_put(c, l, &model_small, round * 100, CHAIN, keys), KVG_CODE_OK);
		o.keep_planes = 2;
		assert_int_equal(kvg_purge(c, &o, &r), 0);
		o.keep_planes = 0;
		assert_int_equal(kvg_purge(c, &o, &r), 0);
	}
}

/* Reads until everything is accounted for, although nothing happens any more. Returns how many were lost. */
static uint64_t read_events(int sock)
{
	uint64_t got = 0, lost = 0;

	while (got + lost < 3 * CHAIN * ROUNDS) {
		const Kvgate__V1__Event *e;
		struct raw_reply r;

		assert_true(raw_recv(sock, &r));
		assert_int_equal(r.reply->body_case, KVGATE__V1__REPLY__BODY_EVENT);
		e = r.reply->event;
		if (e->kind == KVGATE__V1__EVENT_KIND__EVENT_LOST) {
			assert_true(e->count > 0 && e->tenant[0]);
			lost += e->count;
		} else {
			got++;
		}
		raw_reply_free(&r);
	}
	assert_int_equal(got + lost, 3 * CHAIN * ROUNDS);
	return lost;
}

static void read_replies(int sock)
{
	for (uint64_t id = 2; id < 2 + REPLIES; id++) {
		struct raw_reply r;

		assert_true(raw_recv(sock, &r));
		assert_int_equal(r.reply->id, id);
		raw_reply_free(&r);
	}
}

/*
 * Nobody reads while all of it happens. Whoever it is, the tenant's room for what waits is far too small; so events are lost,
 * and neither a subscriber nor a worker of the same tenant is.
 */
static void slow_subscribers(const char *config, unsigned n)
{
	struct daemon_process d;
	int sock[SUBSCRIBERS], worker;
	struct kvg_client *c;
	uint64_t lost = 0;

	daemon_start(&d, config);
	c = client_open(&d);
	for (unsigned i = 0; i < n; i++)
		sock[i] = raw_subscribe(&d);
	make_events(c);
	worker = raw_pipeline(&d);
	client_wait_counter(c, "kvgate_sessions", n + 2);
	for (unsigned i = 0; i < n; i++) {
		uint64_t of_this = read_events(sock[i]);

		assert_true(of_this > 0);
		lost += of_this;
	}
	read_replies(worker);
	assert_true(client_counter(c, "kvgate_events_lost_total") == (double)lost);
	assert_true(client_counter(c, "kvgate_sessions_cut_off_total") == 0);
	assert_true(client_counter(c, "kvgate_sessions") == n + 2);
	for (unsigned i = 0; i < n; i++)
		close(sock[i]);
	close(worker);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void test_many_slow_subscribers(void **state)
{
	(void)state;
	slow_subscribers("", SUBSCRIBERS);
}

static void test_slow_subscriber_of_a_small_tenant(void **state)
{
	(void)state;
	slow_subscribers("[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
			 "[limits]\nreply_bytes = 256KiB\n",
		1);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_events),
		cmocka_unit_test(test_pressure),
		cmocka_unit_test(test_many_slow_subscribers),
		cmocka_unit_test(test_slow_subscriber_of_a_small_tenant),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
