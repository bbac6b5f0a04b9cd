/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A daemon that has seen everything once needs no more memory, however long it goes on: sessions, stages, commits under
 * pressure, pins, verifications, purges, listings, floors, events, refusals. What grows has a limit, and is full after the first
 * rounds: of each tenant the memory of what was evicted (a ring of 44 bytes for each of 16,384 blocks, or of four times what is
 * held, rounded up to a power of two), the classes that its order has learned (all allocated at once, resident as they come),
 * the tables of blocks and pins (doubled up to the quota); of each worker its scratch; the arena of requests.
 *
 * What the allocator has given out is compared, not what is resident: a few bytes more in each round would be seen. Its
 * caches of each thread count as given out, so the program runs itself again without them.
 */
#include <malloc.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/serve_fixture.h"

#define WARM   (40000 / KVG_BATCH_MAX) /* rounds until the memory of evicted blocks is full */
#define ROUNDS 60
#define SPREAD                                                                                     \
	1024 /* less than a tenth of a byte for each of the blocks that came and went in these */
#define NO_CACHES "glibc.malloc.tcache_count=0"

static struct serving s;
static unsigned serial;

static ProtobufCBinaryData key_data(uint8_t key[KVG_KEY_BYTES], unsigned n)
{
	memset(key, 0, KVG_KEY_BYTES);
	memcpy(key, &n, sizeof(n));
	memcpy(key + 8, &n, sizeof(n));
	return (ProtobufCBinaryData){.len = KVG_KEY_BYTES, .data = key};
}

/* Chains of eight. */
static void put_batch(struct client *c, uint32_t layout)
{
	REQUEST(q, commit, Commit, COMMIT, COMMIT);
	static uint8_t keys[KVG_BATCH_MAX][KVG_KEY_BYTES];
	Kvgate__V1__CommitItem item[KVG_BATCH_MAX], *items[KVG_BATCH_MAX];
	uint64_t ids[KVG_BATCH_MAX];
	struct answer a;

	assert_int_equal(client_stage(c, layout, KVG_BATCH_MAX, ids), KVG_BATCH_MAX);
	for (unsigned i = 0; i < KVG_BATCH_MAX; i++) {
		kvgate__v1__commit_item__init(&item[i]);
		item[i].stage = ids[i];
		item[i].key = key_data(keys[i], ++serial * 2654435761u);
		if (i % 8)
			item[i].parent = item[i - 1].key;
		items[i] = &item[i];
	}
	q_body.items = items;
	q_body.n_items = KVG_BATCH_MAX;
	client_ask(c, &q, &a);
	assert_int_equal(a.m->commit->results[KVG_BATCH_MAX - 1]->code, KVG_CODE_OK);
	answer_free(&a);
}

/* What is there, pinned, looked at, and taken away. */
static void use(struct client *c, uint32_t layout)
{
	REQUEST(acquire, acquire, Acquire, ACQUIRE, ACQUIRE);
	REQUEST(inspect, inspect, Inspect, INSPECT, INSPECT);
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	REQUEST(list, list, List, LIST, LIST);
	REQUEST(policy, policy, Policy, POLICY, POLICY);
	REQUEST(stat_, stat, Stat, STAT, STAT);
	uint8_t key[KVG_KEY_BYTES];
	ProtobufCBinaryData last = key_data(key, serial * 2654435761u);

	acquire_body.layout = inspect_body.layout = purge_body.layout = layout;
	acquire_body.keys = purge_body.keys = &last;
	acquire_body.n_keys = purge_body.n_keys = 1;
	assert_int_equal(client_code(c, &acquire), KVG_CODE_OK);
	inspect_body.key = last;
	inspect_body.verify = true;
	assert_int_equal(client_code(c, &inspect), KVG_CODE_OK);
	assert_int_equal(client_code(c, &purge), KVG_CODE_OK); /* pinned */
	assert_int_equal(client_code(c, &list), KVG_CODE_OK);
	assert_int_equal(client_code(c, &stat_), KVG_CODE_OK);
	policy_body.floor = serial & 1 ? .5f : .6f;
	policy_body.model = (char *)(uintptr_t) "m";
	assert_int_equal(client_code(c, &policy), KVG_CODE_OK);
	purge_body.layout = 99;
	assert_int_equal(client_code(c, &purge), KVG_CODE_NOT_FOUND);
}

static void one_round(void)
{
	REQUEST(subscribe, subscribe, Subscribe, SUBSCRIBE, SUBSCRIBE);
	struct client c, deaf, mad;
	uint64_t ids[20];
	uint32_t layout;

	client_connect(&c, &s);
	client_connect(&deaf, &s);
	client_connect(&mad, &s);
	client_hello(&c, false);
	client_hello(&deaf, true);
	subscribe_body.events = 0xff;
	assert_int_equal(client_code(&deaf, &subscribe), KVG_CODE_OK);
	assert_int_equal(client_code(&mad, &subscribe), KVG_CODE_NOT_HELLO);
	layout = client_layout(&c, "m");
	put_batch(&c, layout);
	use(&c, layout);
	assert_int_equal(client_stage(&c, layout, 20, ids), 20);
	client_send_commit(&c, ids[0], (uint8_t)serial);
	close(mad.sock);
	close(deaf.sock);
	client_hangup(&c); /* with stages, a pin, and a commit under way */
}

/* With no block there and no session. */
static size_t given_out_empty(void)
{
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	struct mallinfo2 m;
	struct client c;

	client_connect(&c, &s);
	client_hello(&c, true);
	assert_int_equal(client_code(&c, &purge), KVG_CODE_OK);
	client_hangup(&c);
	m = mallinfo2();
	return m.uordblks + m.hblkhd;
}

static void test_plateau(void **state)
{
	size_t warm, then;

	(void)state;
	if (!mallinfo2().uordblks)
		skip(); /* a sanitizer's allocator does not tell; it looks for leaks by itself */
	serving_start(&s, "[limits]\ntenant_host_bytes = 2MiB\n");
	for (unsigned i = 0; i < WARM; i++)
		one_round();
	warm = given_out_empty();
	for (unsigned i = 0; i < ROUNDS; i++)
		one_round();
	then = given_out_empty();
	print_message("%zu bytes after %d rounds, %zu after %d more\n", warm, WARM, then, ROUNDS);
	assert_true(then <= warm + SPREAD);
	serving_stop(&s);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_plateau),
	};
	const char *set = getenv("GLIBC_TUNABLES");

	(void)argc;
	if (!set || strcmp(set, NO_CACHES)) {
		setenv("GLIBC_TUNABLES", NO_CACHES, 1);
		execv("/proc/self/exe", argv);
		return 1;
	}
	return cmocka_run_group_tests(tests, NULL, NULL);
}
