/* SPDX-License-Identifier: Apache-2.0 */
/* Taking away on request: in slices, while blocks come and go, tenants by turns; and what is told of it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "tests/unit/cache_fixture.h"

static struct fixture f;
static struct heard {
	unsigned shrunk, evicted;
	uint64_t bytes;
	uint32_t held;
} heard;

static void hear(void *userdata, const struct cache_event *e)
{
	struct heard *h = userdata;

	h->shrunk += e->kind == CACHE_EVENT_SHRUNK;
	h->evicted += e->kind == CACHE_EVENT_EVICTED;
	h->bytes += e->kind == CACHE_EVENT_COMMITTED ? 0 : e->bytes;
	h->held = e->held;
}

static int setup(void **state)
{
	(void)state;
	fixture_options(&f);
	f.o.host_bytes = 64 << 20;
	f.o.segment_bytes = 4 << 20;
	fixture_start(&f);
	heard = (struct heard){0};
	cache_on_event(f.cache, hear, &heard);
	return 0;
}

static bool present(const struct kvg_key *key)
{
	return block_find(f.tenant, f.layout->id, key);
}

/* Chains of `length` blocks. */
static void put_chains(struct kvg_key *key, unsigned n, unsigned length)
{
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(
			put_block(&f, f.layout, i, i % length ? &key[i - 1] : NULL, &key[i]),
			KVG_CODE_OK);
}

struct purged {
	struct cache_purge_result r;
	unsigned calls;
};

static void on_purged(void *userdata, const struct cache_purge_result *r)
{
	struct purged *p = userdata;

	p->r = *r;
	p->calls++;
}

static void begin(struct cache_tenant *t, const struct kvg_key *keys, size_t n, struct purged *ret)
{
	const struct cache_purge_request q = {.keys = keys, .n = n};

	*ret = (struct purged){.calls = 0};
	assert_int_equal(cache_purge_start(t, &q, on_purged, ret), 0);
	assert_int_equal(ret->calls, 0); /* never from within */
}

static void wait_for(struct purged *p)
{
	for (unsigned i = 0; !p->calls; i++) {
		assert_true(i < 1000);
		run_loop(&f, 1);
	}
	run_loop(&f, 5);
	assert_int_equal(p->calls, 1);
}

static void test_what_goes(void **state)
{
	struct cache_layout *other = fixture_layout(&f, f.tenant, "other", "");
	struct kvg_key key[12], apart;
	struct cache_purge_result r;
	struct cache_block_info info;
	uint64_t cursor = 0, used;
	uint32_t looks = 1000;
	unsigned n = 0;

	(void)state;
	put_chains(key, 12, 6);
	assert_int_equal(put_block(&f, other, 50, NULL, &apart), KVG_CODE_OK);
	while (cache_list_next(f.tenant, 0, &cursor, &looks, &info))
		n++;
	assert_true(n == 13 && cursor == 0);
	for (n = 0; cache_list_next(f.tenant, other->id, &cursor, &looks, &info);)
		n++;
	assert_int_equal(n, 1);
	assert_memory_equal(&info.key, &apart, sizeof(apart));
	looks = 5; /* not found yet, but there is more */
	assert_false(cache_list_next(f.tenant, other->id, &cursor, &looks, &info));
	assert_true(cursor == 5 && looks == 0);
	looks = 8;
	assert_true(cache_list_next(f.tenant, other->id, &cursor, &looks, &info));
	assert_true(cursor == 13 && looks == 0);
	cursor = 0;

	used = f.tenant->used;
	cache_purge(f.tenant, f.layout->id, NULL, 2, &r);
	assert_true(r.planes == 24 && r.blocks == 0 && r.pinned == 0);
	assert_true(f.tenant->used < used && heard.shrunk == 12 && heard.held == 3 &&
		heard.bytes == r.bytes);
	cache_purge(f.tenant, f.layout->id, NULL, 2, &r);
	assert_int_equal(r.planes, 0);
	assert_int_equal(inspect_block(&f, f.tenant, &key[4], true, &info), KVG_CODE_OK);
	assert_true(info.retention > .4f && info.retention < .6f && info.plane[1].verified &&
		info.plane[3].tier == KVG_TIER_NONE && info.plane[3].pairs);
	cache_purge(f.tenant, f.layout->id, &key[8], 0,
		&r); /* the third of its chain, and what hangs on it */
	assert_int_equal(r.blocks, 4);
	assert_true(present(&key[7]) && !present(&key[8]) && !present(&key[11]));
	assert_true(present(&key[5]));
	cache_purge(f.tenant, 99, NULL, 0, &r);
	assert_int_equal(r.blocks, 0);
	cache_purge(f.tenant, f.layout->id, NULL, 0, &r);
	assert_true(r.blocks == 8 && f.tenant->n_blocks == 1);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.blocks == 1 && f.tenant->used == 0 && heard.evicted == 13);
	assert_int_equal(counter_get(f.layout->counters, COUNTER_PURGED_BLOCKS, 0), 12);
	assert_int_equal(inspect_block(&f, f.tenant, &key[4], true, &info), KVG_CODE_NOT_FOUND);
}

/* One request of many keys: a child before its parent, one twice, one that is not there. */
static void test_keys(void **state)
{
	struct kvg_key key[12], asked[5];
	struct purged p;

	(void)state;
	put_chains(key, 12, 6);
	asked[0] = key[4];
	asked[1] = key[2];
	asked[2] = key[2];
	asked[3] = (struct kvg_key){{7}};
	asked[4] = key[11];
	begin(f.tenant, asked, 5, &p);
	memset(asked, 0, sizeof(asked)); /* copied */
	wait_for(&p);
	assert_true(p.r.blocks == 5 && p.r.pinned == 0 && p.r.planes == 20);
	for (unsigned i = 0; i < 12; i++)
		assert_int_equal(present(&key[i]), i < 2 || (i >= 6 && i < 11));
}

/* However much there is, a turn of the loop takes a batch. */
static void test_slices(void **state)
{
	enum {
		N = 900
	};
	struct kvg_key key[N];
	struct purged p;
	unsigned turns = 0;

	(void)state;
	put_chains(key, N, 5);
	begin(f.tenant, NULL, 0, &p);
	while (!p.calls) {
		const uint64_t before = f.tenant->n_blocks;

		run_loop(&f, 1);
		assert_true(before - f.tenant->n_blocks <= PIN_SET_MAX);
		turns++;
	}
	assert_true(turns >= N / PIN_SET_MAX && f.tenant->n_blocks == 0);
	assert_true(p.r.blocks == N && p.r.pinned == 0);
	run_loop(&f, 5);
	assert_int_equal(p.calls, 1);
}

/* What is published after the request stays, and keeps what it stands on. */
static void test_committed_meanwhile(void **state)
{
	enum {
		LENGTH = 300,
		N = 2 * LENGTH,
		AT = 100
	};
	struct kvg_key key[N];
	struct put put[3];
	struct purged p;

	(void)state;
	put_chains(key, N, LENGTH);
	begin(f.tenant, NULL, 0, &p);
	run_loop(&f, 1);
	assert_in_range(f.tenant->n_blocks, LENGTH + AT + 1, N - 1);
	/* where the walk has not been, where it is just now, and a new root */
	put_stage(&f, f.layout, 1000, &key[AT], &put[0]);
	put_stage(&f, f.layout, 1001, &key[LENGTH + AT], &put[1]);
	put_stage(&f, f.layout, 1002, NULL, &put[2]);
	for (unsigned i = 0; i < 3; i++)
		put_start(&f, f.tenant, &put[i]);
	for (unsigned i = 0; i < 3; i++)
		put_wait(&f, &put[i]);
	wait_for(&p);
	for (unsigned i = 0; i < 3; i++)
		assert_true(put[i].result.code == KVG_CODE_OK && present(&put[i].q.key));
	for (unsigned i = 0; i < N; i++)
		assert_int_equal(present(&key[i]), i % LENGTH <= AT);
	assert_int_equal(p.r.blocks, N - 2 * (AT + 1));
	assert_int_equal(p.r.pinned, 2 * (AT + 1));
}

/* The same for one that waits its turn: what counts is when it was asked for. */
static void test_committed_before_its_turn(void **state)
{
	enum {
		MISSING = 200000
	};
	struct kvg_key *missing = calloc(MISSING, sizeof(*missing)), key[10], on_top;
	struct purged first, p;

	(void)state;
	put_chains(key, 10, 10);
	begin(f.tenant, missing, MISSING, &first); /* some hundred turns for nothing */
	begin(f.tenant, NULL, 0, &p);
	assert_int_equal(put_block(&f, f.layout, 1000, &key[4], &on_top), KVG_CODE_OK);
	assert_true(!first.calls && !p.calls);
	while (!p.calls)
		run_loop(&f, 1);
	assert_true(first.calls == 1 && first.r.blocks == 0);
	assert_true(present(&on_top) && present(&key[4]) && !present(&key[5]));
	assert_true(p.r.blocks == 5 && p.r.pinned == 5);
	free(missing);
}

/* Pressure, or another purge, takes what the walk stands on. */
static void test_gone_meanwhile(void **state)
{
	enum {
		N = 600
	};
	struct kvg_key key[N];
	struct cache_purge_result r;
	struct purged p;
	uint64_t left;

	(void)state;
	for (unsigned round = 0; round < 3; round++) {
		put_chains(key, N, 7);
		begin(f.tenant, NULL, 0, &p);
		run_loop(&f, 2);
		left = f.tenant->n_blocks;
		assert_in_range(left, 1, N - 1);
		if (round < 2) {
			/* 0: all of it. 1: the chain in which the walk stands, the youngest there is */
			cache_purge(f.tenant, 0, round ? &key[(left - 1) / 7 * 7] : NULL, 0, &r);
		} else {
			for (unsigned i = 0; i < 20; i++)
				evict_round(f.tenant, 1 << 20, 0);
			r.blocks = left - f.tenant->n_blocks;
		}
		assert_true(r.blocks > 0);
		wait_for(&p);
		assert_int_equal(p.r.blocks + r.blocks, N);
		assert_int_equal(f.tenant->n_blocks, 0);
	}
}

static void test_tenants_by_turns(void **state)
{
	enum {
		N = 500
	};
	struct cache_tenant *other = fixture_tenant(&f, "two", f.o.host_bytes, 1.0f);
	struct cache_layout *l = fixture_layout(&f, other, "model", "");
	struct purged p, q, second;
	struct kvg_key key[N];

	(void)state;
	put_chains(key, N, 1);
	for (unsigned i = 0; i < 20; i++) {
		struct put put;

		put_stage(&f, l, i, NULL, &put);
		put_start(&f, other, &put);
		put_wait(&f, &put);
	}
	begin(f.tenant, NULL, 0, &p);
	begin(f.tenant, key, 1, &second);
	begin(other, NULL, 0, &q);
	while (!q.calls) /* not behind all of the other's */
		run_loop(&f, 1);
	assert_true(!p.calls && !second.calls && f.tenant->n_blocks > 0);
	wait_for(&second); /* but behind the first of its own */
	assert_true(p.calls == 1 && p.r.blocks == N && second.r.blocks == 0);
}

/* Who asked may go: the purge does not. */
static void test_silence(void **state)
{
	struct kvg_key key[400];
	struct purged p;

	(void)state;
	put_chains(key, 400, 5);
	begin(f.tenant, NULL, 0, &p);
	cache_silence(f.cache);
	run_loop(&f, 20);
	assert_true(!p.calls && f.tenant->n_blocks == 0);
	put_chains(key, 400, 5);
	begin(f.tenant, NULL, 0, &p); /* and the cache goes in the middle of it */
	run_loop(&f, 1);
	cache_silence(f.cache);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FIXTURE_TEST_WITH(test_what_goes, setup),
		FIXTURE_TEST_WITH(test_keys, setup),
		FIXTURE_TEST_WITH(test_slices, setup),
		FIXTURE_TEST_WITH(test_committed_meanwhile, setup),
		FIXTURE_TEST_WITH(test_committed_before_its_turn, setup),
		FIXTURE_TEST_WITH(test_gone_meanwhile, setup),
		FIXTURE_TEST_WITH(test_tenants_by_turns, setup),
		FIXTURE_TEST_WITH(test_silence, setup),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
