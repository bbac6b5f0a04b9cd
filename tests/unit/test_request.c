/* SPDX-License-Identifier: Apache-2.0 */
/* Each operation: what it answers, and how it refuses what cannot be. */
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/serve_fixture.h"

static struct serving s;
static struct client c;
static uint32_t layout;

static int start(void **state)
{
	(void)state;
	serving_start(
		&s, "[limits]\nstaging_bytes = 1MiB\npins = 6\nin_flight = 4\nsubscriptions = 1\n");
	client_connect(&c, &s);
	client_hello(&c, false);
	layout = client_layout(&c, "m");
	return 0;
}

static int stop(void **state)
{
	(void)state;
	client_hangup(&c);
	serving_stop(&s);
	return 0;
}

static ProtobufCBinaryData key_of(uint8_t *bytes, uint8_t k)
{
	memset(bytes, k, KVG_KEY_BYTES);
	return (ProtobufCBinaryData){.len = KVG_KEY_BYTES, .data = bytes};
}

static void test_register(void **state)
{
	REQUEST(q, register_layout, RegisterLayout, REGISTER_LAYOUT, REGISTER_LAYOUT);
	uint8_t digest[32] = {1};
	float edges[KVG_PLANES_MAX] = {.9f, .8f, .7f, .6f, .5f, .4f, .3f, .2f};
	char longer[2000];
	struct answer a;

	(void)state;
	assert_int_equal(client_layout(&c, "m"), layout); /* an equal one is found again */
	assert_int_not_equal(client_layout(&c, "other"), layout);
	q_body.layers = q_body.heads = 1;
	q_body.k_dim = q_body.v_dim = 8;
	q_body.dtype = KVG_DTYPE_BF16;
	q_body.block_tokens = 4;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT); /* no model */
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	q_body.model = longer;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.model = (char *)(uintptr_t) "bad \xff\xfe";
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.model = (char *)(uintptr_t) "gut \xc3\xbc";
	assert_int_equal(client_code(&c, &q), KVG_CODE_OK);
	q_body.tp_rank = 2;
	q_body.tp_size = 2;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_LAYOUT);
	q_body.tp_rank = 1;
	q_body.gate = (char *)(uintptr_t) "auto";
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_GATE);
	q_body.gate = (char *)(uintptr_t) "nobody";
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_GATE);
	q_body.gate = (char *)(uintptr_t) "";
	q_body.gate_digest = (ProtobufCBinaryData){.len = 31, .data = digest};
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.gate_digest.len = 32;
	q_body.edges = edges;
	q_body.n_edges = KVG_PLANES_MAX;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.n_edges = 3;
	edges[1] = NAN;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	edges[1] = .8f;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	assert_int_equal(a.m->register_layout->n_edges, 3);
	assert_int_equal(a.m->register_layout->fingerprint.len, 32);
	assert_memory_equal(a.m->register_layout->gate_digest.data, digest, 32);
	answer_free(&a);
}

static void test_stage(void **state)
{
	REQUEST(q, stage, Stage, STAGE, STAGE);
	uint64_t ids[KVG_BATCH_MAX];
	struct answer a;
	int got, total = 0;

	(void)state;
	q_body.layout = layout;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT); /* none */
	q_body.count = KVG_BATCH_MAX + 1;
	assert_int_equal(client_code(&c, &q), KVG_CODE_TOO_LARGE);
	q_body.count = 1;
	q_body.input = 3;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.input = STAGE_INPUT_HIDDEN; /* without a gate of the daemon's */
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.input = 0;
	q_body.layout = 99;
	assert_int_equal(client_code(&c, &q), KVG_CODE_NOT_FOUND);
	q_body.layout = layout;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	assert_int_equal(a.n_fds, 1); /* once */
	assert_int_equal(a.m->stage->slots[0]->offset % 4096, 0);
	assert_true(a.m->stage->slots[0]->bytes >= 4 * 2 * 16 &&
		a.m->stage->slots[0]->bytes % 4096 == 0);
	assert_true(lseek(a.fds[0], 0, SEEK_END) == (off_t)a.m->stage->memfd_bytes);
	answer_free(&a);
	client_ask(&c, &q, &a);
	assert_int_equal(a.n_fds, 0);
	answer_free(&a);
	/* 1 MiB is 256 stages: as many as are left, and then none */
	while ((got = client_stage(&c, layout, 100, ids)) > 0)
		total += got;
	assert_int_equal(total, 254);
	assert_int_equal(-got, KVG_CODE_QUOTA);
	assert_int_equal(counter_get(s.scope, COUNTER_STAGING, 0), 1 << 20);
}

static void test_abort(void **state)
{
	REQUEST(q, abort, Abort, ABORT, ABORT);
	uint64_t ids[11];
	struct answer a;

	(void)state;
	assert_int_equal(client_stage(&c, layout, 10, ids), 10);
	ids[10] = 12345678;
	q_body.stages = ids;
	q_body.n_stages = 11;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->abort->aborted, 10);
	answer_free(&a);
	assert_int_equal(counter_get(s.scope, COUNTER_STAGING, 0), 0);
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->abort->aborted, 0);
	answer_free(&a);
}

/* One result for each item, in their order, whatever befalls the others. */
static void test_commit(void **state)
{
	REQUEST(q, commit, Commit, COMMIT, COMMIT);
	Kvgate__V1__CommitItem item[6], *items[6];
	uint8_t keys[6][KVG_KEY_BYTES], parent[KVG_KEY_BYTES + 1] = {0};
	static const uint32_t expect[6] = {KVG_CODE_OK, KVG_CODE_NO_STAGE, KVG_CODE_OK,
		KVG_CODE_BAD_ARGUMENT, KVG_CODE_NO_PARENT, KVG_CODE_OK};
	struct answer a;
	uint64_t ids[6];

	(void)state;
	assert_int_equal(client_stage(&c, layout, 6, ids), 6);
	for (int i = 0; i < 6; i++) {
		kvgate__v1__commit_item__init(&item[i]);
		item[i].stage = ids[i];
		item[i].key = key_of(keys[i], (uint8_t)(10 + i));
		items[i] = &item[i];
	}
	item[1].stage = ids[0];       /* used up by the first one */
	item[2].parent = item[0].key; /* in the same request, before it */
	item[3].tokens = 5;           /* of 4 */
	item[4].parent = key_of(parent, 77);
	item[5].tokens = 3;
	q_body.items = items;
	q_body.n_items = 6;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	assert_int_equal(a.m->commit->n_results, 6);
	for (int i = 0; i < 6; i++) {
		assert_int_equal(a.m->commit->results[i]->code, expect[i]);
		assert_int_equal(a.m->commit->results[i]->handle != 0, expect[i] == KVG_CODE_OK);
		assert_int_equal(a.m->commit->results[i]->error[0] != 0, expect[i] != KVG_CODE_OK);
	}
	answer_free(&a);
	serving_settle(&s);
	assert_int_equal(
		counter_get(s.scope, COUNTER_STAGING, 0), 4096); /* ids[1] was never committed */
	q_body.n_items = 0;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->commit->n_results, 0);
	answer_free(&a);
	q_body.n_items = 1;
	item[0].key.len = 31;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	item[0].key.len = 32;
	item[0].parent = (ProtobufCBinaryData){.len = 33, .data = parent};
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
}

/* Protected tokens: all of a block at most; a sum that wraps around is no way in. */
static void test_commit_protected(void **state)
{
	REQUEST(q, commit, Commit, COMMIT, COMMIT);
	static const struct {
		uint32_t first, last, tokens, code;
	} is[] = {{1, 3, 0, KVG_CODE_OK}, {2, 3, 0, KVG_CODE_BAD_ARGUMENT},
		{2, UINT32_MAX, 0, KVG_CODE_BAD_ARGUMENT}, {4, 0, 3, KVG_CODE_BAD_ARGUMENT}};
	Kvgate__V1__CommitItem item[4], *items[4];
	uint8_t keys[4][KVG_KEY_BYTES];
	struct answer a;
	uint64_t ids[4];

	(void)state;
	assert_int_equal(client_stage(&c, layout, 4, ids), 4);
	for (int i = 0; i < 4; i++) {
		kvgate__v1__commit_item__init(&item[i]);
		item[i].stage = ids[i];
		item[i].key = key_of(keys[i], (uint8_t)(50 + i));
		item[i].protect_first = is[i].first;
		item[i].protect_last = is[i].last;
		item[i].tokens = is[i].tokens;
		items[i] = &item[i];
	}
	q_body.items = items;
	q_body.n_items = 4;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	for (int i = 0; i < 4; i++)
		assert_int_equal(a.m->commit->results[i]->code, is[i].code);
	assert_non_null(strstr(a.m->commit->results[1]->error, "protect_first"));
	answer_free(&a);
}

/* More than in_flight at once: the rest is refused, and works when the first are done. */
static void test_in_flight(void **state)
{
	REQUEST(q, commit, Commit, COMMIT, COMMIT);
	Kvgate__V1__CommitItem item[10], *items[10];
	uint8_t keys[10][KVG_KEY_BYTES];
	struct answer a;
	uint64_t ids[10];
	int ok = 0, quota = 0;

	(void)state;
	assert_int_equal(client_stage(&c, layout, 10, ids), 10);
	for (int i = 0; i < 10; i++) {
		kvgate__v1__commit_item__init(&item[i]);
		item[i].stage = ids[i];
		item[i].key = key_of(keys[i], (uint8_t)(30 + i));
		items[i] = &item[i];
	}
	q_body.items = items;
	q_body.n_items = 10;
	client_ask(&c, &q, &a);
	for (int i = 0; i < 10; i++) {
		ok += a.m->commit->results[i]->code == KVG_CODE_OK;
		quota += a.m->commit->results[i]->code == KVG_CODE_QUOTA;
	}
	assert_int_equal(ok, 4);
	assert_int_equal(quota, 6);
	assert_non_null(strstr(a.m->commit->results[9]->error, "raise in_flight"));
	answer_free(&a);
	client_put(&c, layout, 99);
}

static void test_acquire_release(void **state)
{
	REQUEST(q, acquire, Acquire, ACQUIRE, ACQUIRE);
	REQUEST(r, release, Release, RELEASE, RELEASE);
	ProtobufCBinaryData keys[4];
	uint8_t bytes[4][KVG_KEY_BYTES];
	uint64_t handle[8];
	struct client other;
	struct answer a;

	(void)state;
	client_put(&c, layout, 1);
	client_put(&c, layout, 3);
	for (uint8_t i = 0; i < 4; i++)
		keys[i] = key_of(bytes[i], i);
	q_body.layout = layout;
	q_body.keys = keys;
	q_body.n_keys = 4;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->acquire->n_blocks, 4);
	for (int i = 0; i < 4; i++)
		assert_int_equal(
			a.m->acquire->blocks[i]->code, i % 2 ? KVG_CODE_OK : KVG_CODE_NOT_FOUND);
	assert_true(
		a.m->acquire->blocks[1]->retention == 1.f && a.m->acquire->blocks[1]->mapped == 1);
	handle[0] = a.m->acquire->blocks[1]->handle;
	answer_free(&a);
	q_body.prefix = 1; /* up to the first that is not there */
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->acquire->n_blocks, 1);
	answer_free(&a);
	q_body.prefix = 0;
	for (int i = 0; i < 2; i++) {
		client_ask(&c, &q, &a);
		assert_int_equal(a.m->acquire->blocks[3]->code, KVG_CODE_OK);
		answer_free(&a);
	}
	client_ask(&c, &q, &a); /* six pins are held now */
	assert_int_equal(a.m->acquire->blocks[1]->code, KVG_CODE_QUOTA);
	answer_free(&a);
	/* nobody releases what he does not hold */
	client_connect(&other, &s);
	client_hello(&other, true);
	r_body.handles = handle;
	r_body.n_handles = 1;
	client_ask(&other, &r, &a);
	assert_int_equal(a.m->release->released, 0);
	answer_free(&a);
	client_hangup(&other);
	for (int i = 1; i < 8; i++)
		handle[i] = handle[0];
	handle[7] = 0;
	r_body.n_handles = 8;
	client_ask(&c, &r, &a);
	assert_int_equal(a.m->release->released, 3);
	answer_free(&a);
	q_body.min_retention = 1.5f;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.min_retention = NAN;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.min_retention = 1;
	keys[0].len = 0;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
}

static void test_prefetch(void **state)
{
	REQUEST(q, prefetch, Prefetch, PREFETCH, PREFETCH);
	ProtobufCBinaryData keys[2];
	uint8_t bytes[2][KVG_KEY_BYTES];
	struct answer a;

	(void)state;
	client_put(&c, layout, 1);
	keys[0] = key_of(bytes[0], 0);
	keys[1] = key_of(bytes[1], 1);
	q_body.layout = layout;
	q_body.keys = keys;
	q_body.n_keys = 2;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->prefetch->present, 1);
	assert_int_equal(a.m->prefetch->moving, 0);
	answer_free(&a);
	q_body.layout = 44;
	assert_int_equal(client_code(&c, &q), KVG_CODE_NOT_FOUND);
}

static void test_inspect_and_segments(void **state)
{
	REQUEST(q, inspect, Inspect, INSPECT, INSPECT);
	REQUEST(m, map_segments, MapSegments, MAP_SEGMENTS, MAP_SEGMENTS);
	uint8_t bytes[KVG_KEY_BYTES];
	uint32_t segments[3];
	struct answer a;

	(void)state;
	client_put(&c, layout, 1);
	q_body.key = key_of(bytes, 1);
	q_body.verify = 1;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	assert_int_equal(a.m->inspect->block->n_planes, 1);
	assert_true(a.m->inspect->block->planes[0]->verified);
	assert_int_equal(a.m->inspect->layout->layout, layout);
	assert_string_equal(a.m->inspect->layout->model, "m");
	segments[0] = 0;
	segments[1] = a.m->inspect->block->planes[0]->segment;
	segments[2] = 0xffffffff;
	answer_free(&a);
	m_body.segments = segments;
	m_body.n_segments = 3;
	client_ask(&c, &m, &a);
	assert_int_equal(a.n_fds, 1);
	assert_int_equal(a.m->map_segments->n_segments, 1);
	assert_int_equal(a.m->map_segments->segments[0]->segment, segments[1]);
	assert_int_equal(fcntl(a.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	answer_free(&a);
	m_body.n_segments = KVG_MESSAGE_FDS_MAX + 1;
	m_body.segments = calloc(m_body.n_segments, sizeof(uint32_t));
	assert_int_equal(client_code(&c, &m), KVG_CODE_TOO_LARGE);
	free(m_body.segments);
	q_body.layout = layout + 1; /* the block of another layout */
	assert_int_equal(client_code(&c, &q), KVG_CODE_NOT_FOUND);
	key_of(bytes, 2);
	q_body.layout = 0;
	assert_int_equal(client_code(&c, &q), KVG_CODE_NOT_FOUND);
	q_body.key.len = 5;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
}

static void test_policy(void **state)
{
	REQUEST(q, policy, Policy, POLICY, POLICY);
	struct answer a;

	(void)state;
	client_ask(&c, &q, &a);
	assert_true(a.m->policy->floor == 1.f);
	assert_int_equal(a.m->policy->host_bytes, 64 << 20);
	answer_free(&a);
	q_body.floor = .25f;
	q_body.model = (char *)(uintptr_t) "m";
	client_ask(&c, &q, &a);
	assert_true(a.m->policy->floor == .25f);
	assert_int_equal(a.m->policy->n_models, 1);
	assert_string_equal(a.m->policy->models[0]->model, "m");
	answer_free(&a);
	q_body.floor = 1.1f;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.floor = NAN;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_ARGUMENT);
	q_body.floor = 0;
	q_body.tenant = (char *)(uintptr_t) "nobody";
	assert_int_equal(
		client_code(&c, &q), KVG_CODE_NOT_FOUND); /* an admin learns that there is none */
}

static void expect_event(struct client *of, int kind)
{
	struct answer a;

	client_receive(of, &a);
	assert_non_null(a.m);
	assert_int_equal(a.m->id, 0);
	assert_int_equal(a.m->body_case, KVGATE__V1__REPLY__BODY_EVENT);
	assert_int_equal(a.m->event->kind, kind);
	assert_int_equal(a.m->event->key.len, KVG_KEY_BYTES);
	answer_free(&a);
}

static void test_events(void **state)
{
	REQUEST(q, subscribe, Subscribe, SUBSCRIBE, SUBSCRIBE);
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	struct client w;
	struct answer a;

	(void)state;
	client_connect(&w, &s);
	client_hello(&w, true);
	q_body.events = 0xffffffff;
	client_ask(&w, &q, &a);
	assert_int_equal(a.m->subscribe->events, 1 << 1 | 1 << 2 | 1 << 3);
	answer_free(&a);
	assert_int_equal(
		client_code(&c, &q), KVG_CODE_QUOTA); /* one of this tenant's is the limit */
	client_put(&c, layout, 1);
	expect_event(&w, KVGATE__V1__EVENT_KIND__EVENT_COMMITTED);
	q_body.events = 1u << 0 |
		1u << 31; /* only what nobody can subscribe to: and nothing ends by that */
	assert_int_equal(client_code(&w, &q), KVG_CODE_BAD_ARGUMENT);
	client_put(&c, layout, 3);
	expect_event(&w, KVGATE__V1__EVENT_KIND__EVENT_COMMITTED);
	q_body.events = 1 << 3;
	assert_int_equal(client_code(&w, &q), KVG_CODE_OK);
	client_put(&c, layout, 2); /* not this kind any more */
	assert_int_equal(client_code(&c, &purge), KVG_CODE_OK);
	for (int i = 0; i < 3; i++)
		expect_event(&w, KVGATE__V1__EVENT_KIND__EVENT_EVICTED);
	q_body.events = 0;
	assert_int_equal(client_code(&w, &q), KVG_CODE_OK);
	q_body.events = 2;
	assert_int_equal(client_code(&c, &q), KVG_CODE_OK); /* it is free again */
	client_hangup(&w);
}

/* Where there is no GPU every request that names one says so, and nothing else changes. */
static void test_no_device(void **state)
{
	REQUEST(d, device, Device, DEVICE, DEVICE);
	REQUEST(map, map_segments, MapSegments, MAP_SEGMENTS, MAP_SEGMENTS);
	REQUEST(get, acquire, Acquire, ACQUIRE, ACQUIRE);
	REQUEST(want, prefetch, Prefetch, PREFETCH, PREFETCH);
	REQUEST(stat, stat, Stat, STAT, STAT);
	ProtobufCBinaryData keys[1];
	uint8_t bytes[KVG_KEY_BYTES], uuid[17] = {1};
	struct answer a;

	(void)state;
	client_put(&c, layout, 1);
	keys[0] = key_of(bytes, 1);
	d_body.uuid = (ProtobufCBinaryData){.len = 17, .data = uuid};
	assert_int_equal(client_code(&c, &d), KVG_CODE_BAD_ARGUMENT);
	d_body.uuid.len = 16;
	client_ask(&c, &d, &a);
	assert_int_equal(a.m->code, KVG_CODE_NOT_FOUND);
	assert_non_null(strstr(a.m->error, "gpu_devices"));
	answer_free(&a);
	map_body.device = 1;
	assert_int_equal(client_code(&c, &map), KVG_CODE_NOT_FOUND);
	get_body.layout = want_body.layout = layout;
	get_body.keys = want_body.keys = keys;
	get_body.n_keys = want_body.n_keys = 1;
	get_body.device = want_body.device = UINT32_MAX;
	assert_int_equal(client_code(&c, &get), KVG_CODE_NOT_FOUND);
	assert_int_equal(client_code(&c, &want), KVG_CODE_NOT_FOUND);
	client_ask(&c, &stat, &a);
	assert_int_equal(a.m->stat->n_devices, 0);
	assert_string_equal(a.m->stat->no_device, "");
	answer_free(&a);
}

/* What would bring a descriptor is not for a session that gets none. */
static void test_control_gets_no_fds(void **state)
{
	REQUEST(map, map_segments, MapSegments, MAP_SEGMENTS, MAP_SEGMENTS);
	struct client w;
	uint64_t id;
	uint32_t segment = 1;

	(void)state;
	client_put(&c, layout, 1);
	client_connect(&w, &s);
	client_hello(&w, true);
	assert_int_equal(-client_stage(&w, layout, 1, &id), KVG_CODE_BAD_ARGUMENT);
	map_body.segments = &segment;
	map_body.n_segments = 1;
	assert_int_equal(client_code(&w, &map), KVG_CODE_BAD_ARGUMENT);
	assert_int_equal(client_code(&c, &map), KVG_CODE_OK);
	assert_int_equal(client_stage(&c, layout, 1, &id), 1);
	client_hangup(&w);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_register, start, stop),
		cmocka_unit_test_setup_teardown(test_stage, start, stop),
		cmocka_unit_test_setup_teardown(test_abort, start, stop),
		cmocka_unit_test_setup_teardown(test_commit, start, stop),
		cmocka_unit_test_setup_teardown(test_commit_protected, start, stop),
		cmocka_unit_test_setup_teardown(test_in_flight, start, stop),
		cmocka_unit_test_setup_teardown(test_acquire_release, start, stop),
		cmocka_unit_test_setup_teardown(test_prefetch, start, stop),
		cmocka_unit_test_setup_teardown(test_inspect_and_segments, start, stop),
		cmocka_unit_test_setup_teardown(test_policy, start, stop),
		cmocka_unit_test_setup_teardown(test_events, start, stop),
		cmocka_unit_test_setup_teardown(test_no_device, start, stop),
		cmocka_unit_test_setup_teardown(test_control_gets_no_fds, start, stop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
