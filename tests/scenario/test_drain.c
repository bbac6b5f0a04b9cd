/* SPDX-License-Identifier: Apache-2.0 */
/* Going down: what was begun is finished and its answer taken, however slowly; but not for longer than was said. */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/kvgate.pb-c.h"
#include "proto/wire.h"
#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define BATCHES 80 /* their answers are far more than a socket takes */

static const char config[] =
	"[memory]\nhost_bytes = 256MiB\nsegment_bytes = 64MiB\nindex_slots = 65536\n"
	"[limits]\nin_flight = 65536\n[daemon]\ndrain_seconds = ";

static uint64_t ids[BATCHES][KVG_BATCH_MAX];
static struct kvg_key keys[BATCHES][KVG_BATCH_MAX];

static void start(struct daemon_process *d, const char *drain_seconds)
{
	char text[400];

	snprintf(text, sizeof(text), "%s%s\n", config, drain_seconds);
	daemon_start(d, text);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void wait_logged(const struct daemon_process *d, const char *text)
{
	for (int i = 0; i < 2000 && !daemon_logged(d, text); i++)
		usleep(5000);
	assert_true(daemon_logged(d, text));
}

/* Blocks of some bytes each, so that what is said about them weighs more than they do. */
static struct kvg_layout *small_blocks(struct kvg_client *c, uint32_t *ret_id)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout_info i = KVG_OPTIONS_INIT(kvg_layout_info);
	struct kvg_layout *l;

	o.model = "m";
	o.opaque_bytes = 100;
	o.block_tokens = 1;
	o.key_namespace = "e";
	assert_int_equal(kvg_layout(c, &o, &l), 0);
	kvg_layout_describe(l, &i);
	*ret_id = i.id;
	return l;
}

static void stage_all(int sock, uint32_t layout)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Stage m = KVGATE__V1__STAGE__INIT;

	m.layout = layout;
	m.count = KVG_BATCH_MAX;
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_STAGE;
	q.stage = &m;
	for (unsigned b = 0; b < BATCHES; b++) {
		struct raw_reply r;

		q.id++;
		raw_send(sock, &q);
		assert_true(raw_recv(sock, &r));
		assert_int_equal(r.reply->code, KVG_CODE_OK);
		assert_int_equal(r.reply->stage->n_slots, KVG_BATCH_MAX);
		for (unsigned i = 0; i < KVG_BATCH_MAX; i++) {
			ids[b][i] = r.reply->stage->slots[i]->stage;
			for (unsigned k = 0; k < 4; k++) {
				uint64_t v = ((uint64_t)b * KVG_BATCH_MAX + i + 1) *
					0x9e3779b97f4a7c15ull * (k + 1);

				memcpy(keys[b][i].b + 8 * k, &v, 8);
			}
		}
		raw_reply_free(&r);
	}
}

/* All batches, and nobody reads. Request 1000 + b is batch b. */
static void commit_all(int sock)
{
	for (unsigned b = 0; b < BATCHES; b++) {
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		Kvgate__V1__Commit m = KVGATE__V1__COMMIT__INIT;
		Kvgate__V1__CommitItem item[KVG_BATCH_MAX], *items[KVG_BATCH_MAX];

		for (unsigned i = 0; i < KVG_BATCH_MAX; i++) {
			kvgate__v1__commit_item__init(&item[i]);
			item[i].stage = ids[b][i];
			item[i].key = (ProtobufCBinaryData){
				.len = sizeof(keys[b][i].b), .data = keys[b][i].b};
			items[i] = &item[i];
		}
		m.items = items;
		m.n_items = KVG_BATCH_MAX;
		q.id = 1000 + b;
		q.body_case = KVGATE__V1__REQUEST__BODY_COMMIT;
		q.commit = &m;
		raw_send(sock, &q);
	}
}

/* Slowly, to the end of the file. answered[b]: batch b was, with OK. */
static unsigned read_all(int sock, bool answered[BATCHES])
{
	struct raw_reply r;
	unsigned n = 0;

	while (raw_recv(sock, &r)) {
		uint64_t b = r.reply->id - 1000;

		assert_true(b < BATCHES);
		if (r.reply->code == KVG_CODE_OK) {
			assert_false(answered[b]);
			answered[b] = true;
			assert_int_equal(r.reply->commit->n_results, KVG_BATCH_MAX);
			for (unsigned i = 0; i < KVG_BATCH_MAX; i++)
				assert_int_equal(r.reply->commit->results[i]->code, KVG_CODE_OK);
			n++;
		} else {
			assert_int_equal(r.reply->code, KVG_CODE_SHUTTING_DOWN);
		}
		raw_reply_free(&r);
		usleep(2000);
	}
	return n;
}

/*
 * SIGTERM in the middle, and the writer begins to read only when the last commit is done. The writer learns of exactly
 * those blocks that were published.
 */
static void test_every_answer_arrives(void **state)
{
	struct daemon_process d;
	bool answered[BATCHES] = {false}, published[BATCHES];
	struct kvg_client *c;
	struct kvg_layout *l;
	uint32_t layout;
	unsigned n;
	int sock;

	(void)state;
	start(&d, "20");
	c = client_open(&d);
	l = small_blocks(c, &layout);
	sock = raw_connect(&d);
	raw_hello(sock);
	stage_all(sock, layout);
	commit_all(sock);
	assert_int_equal(kill(d.pid, SIGTERM), 0);
	wait_logged(&d, "going down");
	client_wait_counter(c, "kvgate_in_flight_commits", 0);
	for (unsigned b = 0; b < BATCHES; b++) {
		published[b] = kvg_prefix_lookup(l, &keys[b][0], 1);
		for (unsigned i = 1; i < KVG_BATCH_MAX; i++)
			assert_int_equal(kvg_prefix_lookup(l, &keys[b][i], 1), published[b]);
	}
	n = read_all(sock, answered);
	assert_int_equal(daemon_wait(&d), 0);
	assert_false(daemon_logged(&d, "took too long"));
	assert_true(n > BATCHES / 2);
	assert_memory_equal(answered, published, sizeof(answered));
	close(sock);
	kvg_close(c);
	daemon_cleanup(&d);
}

#define UNREAD 500 /* more answers than a socket holds */

/* Somebody who never reads what it asked for. */
static int never_reads(const struct daemon_process *d)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Abort m = KVGATE__V1__ABORT__INIT;
	int sock = raw_connect(d);

	raw_hello(sock);
	q.body_case = KVGATE__V1__REQUEST__BODY_ABORT;
	q.abort = &m;
	for (q.id = 2; q.id < UNREAD; q.id++)
		raw_send(sock, &q);
	return sock;
}

static double seconds_to_end(const char *drain_seconds, bool twice, bool says)
{
	struct daemon_process d;
	struct kvg_client *c;
	double begin, took;
	int sock;

	start(&d, drain_seconds);
	sock = never_reads(&d);
	c = client_open(&d);
	client_wait_counter(c, "kvgate_sessions", 2);
	while (client_counter(c, "kvgate_requests_total") < UNREAD) /* all of those were served */
		daemon_check_alive(&d);
	begin = now();
	assert_int_equal(kill(d.pid, SIGTERM), 0);
	if (twice) {
		wait_logged(&d, "going down");
		assert_int_equal(kill(d.pid, SIGTERM), 0);
	}
	assert_int_equal(daemon_wait(&d), 0);
	took = now() - begin;
	assert_int_equal(daemon_logged(&d, "took too long"), says);
	kvg_close(c);
	close(sock);
	daemon_cleanup(&d);
	return took;
}

static void test_drain_seconds(void **state)
{
	double took = seconds_to_end("2", false, true);

	(void)state;
	assert_true(took >= 1.9 && took < 15);
	assert_true(seconds_to_end("0", false, true) < 15);
	assert_true(seconds_to_end("3600", true, false) < 15);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_answer_arrives),
		cmocka_unit_test(test_drain_seconds),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
