/* SPDX-License-Identifier: Apache-2.0 */
/* What is longer than a message comes in pages; what is larger than a limit is refused; and how a daemon goes down. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/serve_fixture.h"

static struct serving s;
static struct client c;

static int start(void **state)
{
	(void)state;
	serving_start(&s, "[limits]\nstaging_bytes = 4MiB\n");
	client_connect(&c, &s);
	client_hello(&c, false);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	if (c.sock >= 0)
		client_hangup(&c);
	serving_stop(&s);
	return 0;
}

static void put_many(uint32_t layout, unsigned n)
{
	REQUEST(q, commit, Commit, COMMIT, COMMIT);
	Kvgate__V1__CommitItem item[KVG_BATCH_MAX], *items[KVG_BATCH_MAX];
	static uint8_t keys[KVG_BATCH_MAX][KVG_KEY_BYTES];
	uint64_t ids[KVG_BATCH_MAX];
	static unsigned serial;
	struct answer a;

	assert_int_equal(client_stage(&c, layout, n, ids), n);
	for (unsigned i = 0; i < n; i++) {
		serial++;
		memset(keys[i], 0, sizeof(keys[i]));
		memcpy(keys[i], &serial, sizeof(serial));
		kvgate__v1__commit_item__init(&item[i]);
		item[i].stage = ids[i];
		item[i].key = (ProtobufCBinaryData){.len = KVG_KEY_BYTES, .data = keys[i]};
		if (i)
			item[i].parent = item[i - 1].key;
		items[i] = &item[i];
	}
	q_body.items = items;
	q_body.n_items = n;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->commit->n_results, n);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(a.m->commit->results[i]->code, KVG_CODE_OK);
	answer_free(&a);
}

static void put_batches(uint32_t layout, unsigned n)
{
	while (n--)
		put_many(layout, KVG_BATCH_MAX);
}

static void test_list_pages(void **state)
{
	REQUEST(q, list, List, LIST, LIST);
	uint32_t layout = client_layout(&c, "m"), other = client_layout(&c, "n");
	const unsigned sizes[] = {0, 7};
	struct answer a;

	(void)state;
	for (int i = 0; i < 8; i++) /* some 100 bytes each: more than one message */
		put_many(layout, 200);
	put_many(other, 5);
	for (int i = 0; i < 2; i++) {
		unsigned n = 0, pages = 0;

		q_body.limit = sizes[i];
		q_body.cursor = 0;
		q_body.layout = layout;
		do {
			client_ask(&c, &q, &a);
			assert_int_equal(a.m->code, KVG_CODE_OK);
			assert_true(!sizes[i] || a.m->list->n_blocks <= sizes[i]);
			n += (unsigned)a.m->list->n_blocks;
			pages++;
			q_body.cursor = a.m->list->next;
			answer_free(&a);
		} while (q_body.cursor && pages < 1000);
		assert_int_equal(n, 1600);
		assert_true(pages > 1);
	}
	q_body.layout = other;
	q_body.limit = 0;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->list->n_blocks, 5);
	answer_free(&a);
}

/* Every counter and every layout once, however many pages it takes. */
static void test_stat_pages(void **state)
{
	REQUEST(q, stat, Stat, STAT, STAT);
	unsigned layouts = 0, pages = 0;
	double sum = 0;
	char name[OPTIONS_TEXT_MAX], tenant[32];
	struct answer a;

	(void)state;
	snprintf(tenant, sizeof(tenant), "uid-%u", (unsigned)geteuid());
	for (int i = 0; i < 1000; i++) {
		struct counter_scope *scope;

		snprintf(name, sizeof(name), "%0200d", i);
		assert_int_equal(counters_scope(s.counters, tenant, name, &scope), 0);
		counter_add(scope, COUNTER_CORRUPT, 0, i);
	}
	for (int i = 0; i < 40; i++) {
		snprintf(name, sizeof(name), "%0200d", i);
		client_layout(&c, name);
	}
	do {
		client_ask(&c, &q, &a);
		assert_int_equal(a.m->code, KVG_CODE_OK);
		layouts += (unsigned)a.m->stat->n_layouts;
		for (size_t i = 0; i < a.m->stat->n_counters; i++)
			if (!strcmp(a.m->stat->counters[i]->name, counter_name(COUNTER_CORRUPT)))
				sum += a.m->stat->counters[i]->value;
		q_body.cursor = a.m->stat->next;
		answer_free(&a);
		pages++;
	} while (q_body.cursor && pages < 100);
	assert_int_equal(layouts, 40);
	assert_true(sum == 999. * 1000 / 2);
	assert_true(pages == 2 || pages == 3);
}

static void test_batches(void **state)
{
	REQUEST(abort_, abort, Abort, ABORT, ABORT);
	REQUEST(release, release, Release, RELEASE, RELEASE);
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	REQUEST(commit, commit, Commit, COMMIT, COMMIT);
	Kvgate__V1__CommitItem item = KVGATE__V1__COMMIT_ITEM__INIT, *items[60000];
	uint64_t many[KVG_BATCH_MAX + 1] = {0};
	uint8_t bytes[KVG_KEY_BYTES] = {0};
	ProtobufCBinaryData keys[KVG_BATCH_MAX + 1];

	(void)state;
	abort__body.stages = release_body.handles = many;
	abort__body.n_stages = release_body.n_handles = KVG_BATCH_MAX + 1;
	assert_int_equal(client_code(&c, &abort_), KVG_CODE_TOO_LARGE);
	assert_int_equal(client_code(&c, &release), KVG_CODE_TOO_LARGE);
	for (unsigned i = 0; i <= KVG_BATCH_MAX; i++)
		keys[i] = (ProtobufCBinaryData){.len = sizeof(bytes), .data = bytes};
	purge_body.keys = keys;
	purge_body.n_keys = KVG_BATCH_MAX + 1;
	assert_int_equal(client_code(&c, &purge), KVG_CODE_TOO_LARGE);
	purge_body.n_keys = 0;
	purge_body.keep_planes = KVG_PLANES_MAX + 1;
	assert_int_equal(client_code(&c, &purge), KVG_CODE_BAD_ARGUMENT);
	purge_body.keep_planes = 0;
	purge_body.layout = 77;
	assert_int_equal(client_code(&c, &purge), KVG_CODE_NOT_FOUND);
	/* a message full of the smallest items there are: far more memory unpacked than on the wire */
	for (unsigned i = 0; i < 60000; i++)
		items[i] = &item;
	commit_body.items = items;
	commit_body.n_items = 60000;
	assert_int_equal(client_code(&c, &commit), KVG_CODE_TOO_LARGE);
}

/* Purges and verifications are answered when they are done; a session has a few of them under way, and no more. */
static void test_answered_later(void **state)
{
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	REQUEST(inspect, inspect, Inspect, INSPECT, INSPECT);
	REQUEST(stat_, stat, Stat, STAT, STAT);
	uint32_t layout = client_layout(&c, "m");
	uint8_t key[KVG_KEY_BYTES];
	unsigned busy = 0, done = 0;
	struct answer a;

	(void)state;
	put_batches(layout, 8); /* some turns of the loop to take away */
	client_put(&c, layout, 7);
	memset(key, 7, sizeof(key));
	inspect_body.key = (ProtobufCBinaryData){.len = sizeof(key), .data = key};
	inspect_body.verify = true;
	for (unsigned i = 0; i < 9; i++)
		client_send(&c, i % 2 ? &purge : &inspect);
	for (unsigned i = 0; i < 9; i++) {
		client_receive(&c, &a);
		assert_true(a.m->code == KVG_CODE_OK || a.m->code == KVG_CODE_BUSY ||
			a.m->code == KVG_CODE_NOT_FOUND);
		busy += a.m->code == KVG_CODE_BUSY;
		done += a.m->code == KVG_CODE_OK;
		answer_free(&a);
	}
	assert_true(busy > 0 && done > 0);
	assert_int_equal(client_code(&c, &stat_), KVG_CODE_OK);
	for (unsigned i = 0; i < 9; i++) /* one after the other they are never too many */
		assert_int_equal(client_code(&c, &purge), KVG_CODE_OK);
}

/* Who asked for it may go: it is done all the same. */
static void test_asked_and_gone(void **state)
{
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	uint32_t layout = client_layout(&c, "m");
	struct counter_scope *scope;
	char tenant[32];

	(void)state;
	put_batches(layout, 4);
	snprintf(tenant, sizeof(tenant), "uid-%u", (unsigned)geteuid());
	assert_int_equal(counters_scope(s.counters, tenant, "m", &scope), 0);
	assert_int_equal(counter_get(scope, COUNTER_BLOCKS, 0), 4 * KVG_BATCH_MAX);
	client_send(&c, &purge);
	assert_int_equal(loop_run_once(s.loop, 0), 0);
	client_hangup(&c);
	assert_int_equal(counter_get(scope, COUNTER_BLOCKS, 0), 0);
}

static bool drained;

static void on_drained(void *userdata)
{
	(void)userdata;
	drained = true;
}

static void test_drain(void **state)
{
	REQUEST(stat_, stat, Stat, STAT, STAT);
	uint32_t layout = client_layout(&c, "m");
	struct answer a;
	uint64_t ids[2];

	(void)state;
	drained = false;
	assert_int_equal(client_stage(&c, layout, 2, ids), 2);
	client_send_commit(&c, ids[0], 1);
	assert_int_equal(
		loop_run_once(s.loop, 1000), 0); /* it is taken, and not yet packed and told */
	server_drain(s.server, on_drained, NULL);
	assert_false(drained);
	assert_int_equal(access(s.socket, F_OK), -1);
	client_receive(&c, &a); /* what was begun is finished */
	assert_int_equal(a.m->commit->results[0]->code, KVG_CODE_OK);
	answer_free(&a);
	serving_settle(&s);
	assert_true(drained);
	client_send_commit(&c, ids[1], 2);
	client_receive(&c, &a);
	assert_int_equal(a.m->code, KVG_CODE_SHUTTING_DOWN);
	answer_free(&a);
	assert_int_equal(-client_stage(&c, layout, 1, ids), KVG_CODE_SHUTTING_DOWN);
	assert_int_equal(client_code(&c, &stat_), KVG_CODE_OK); /* reading goes on */
}

/* The daemon may go at any moment, with everything in flight. */
static void test_torn_down(void **state)
{
	REQUEST(subscribe, subscribe, Subscribe, SUBSCRIBE, SUBSCRIBE);
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	uint32_t layout = client_layout(&c, "m");
	uint64_t ids[30];

	(void)state;
	put_batches(layout, 8);
	subscribe_body.events = 0xff;
	assert_int_equal(client_code(&c, &subscribe), KVG_CODE_OK);
	assert_int_equal(client_stage(&c, layout, 30, ids), 30);
	client_send(&c, &purge);
	for (int i = 0; i < 20; i++)
		client_send_commit(&c, ids[i], (uint8_t)(i + 1));
	for (int i = 0; i < 10; i++)
		assert_int_equal(loop_run_once(s.loop, 0), 0);
	close(c.sock); /* and the client at the same time */
	assert_int_equal(loop_run_once(s.loop, 0), 0);
	c.sock = -1;
}

static void test_reload(void **state)
{
	REQUEST(q, policy, Policy, POLICY, POLICY);
	struct options *o, *old = s.options;
	struct answer a;
	char why[300];
	static const char text[] =
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nfloor = .5\n[limits]\n"
		"staging_bytes = 64KiB\n[model m]\nfloor = .25\n";
	FILE *f = fmemopen((void *)(uintptr_t)text, strlen(text), "r");

	(void)state;
	assert_int_equal(options_new(&o), 0);
	assert_int_equal(options_read(o, f, "new", why, sizeof(why)), 0);
	fclose(f);
	assert_int_equal(options_check(o, why, sizeof(why)), 0);
	server_reload(s.server, o);
	s.options = o;
	options_free(old);
	client_ask(&c, &q, &a);
	assert_true(a.m->policy->floor == .5f);
	assert_int_equal(a.m->policy->n_models, 1);
	assert_true(a.m->policy->models[0]->floor == .25f);
	answer_free(&a);
	assert_int_equal(client_stage(&c, client_layout(&c, "m"), 100, (uint64_t[100]){0}), 16);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_list_pages, start, stop),
		cmocka_unit_test_setup_teardown(test_stat_pages, start, stop),
		cmocka_unit_test_setup_teardown(test_batches, start, stop),
		cmocka_unit_test_setup_teardown(test_answered_later, start, stop),
		cmocka_unit_test_setup_teardown(test_asked_and_gone, start, stop),
		cmocka_unit_test_setup_teardown(test_drain, start, stop),
		cmocka_unit_test_setup_teardown(test_torn_down, start, stop),
		cmocka_unit_test_setup_teardown(test_reload, start, stop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
