/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever one client sends, the others are served as before, and it is told what was wrong. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/wire.h"
#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define BLOCKS 4

static struct daemon_process d;
static struct kvg_client *honest;
static struct kvg_layout *layout;
static struct kvg_key keys[BLOCKS];

static int setup(void **state)
{
	(void)state;
	daemon_start(&d, "");
	honest = client_open(&d);
	layout = model_register(honest, &model_small);
	return chain_put(honest, layout, &model_small, 1, BLOCKS, keys) != KVG_CODE_OK;
}

/* After every attack the honest client still has everything. */
static int unharmed(void **state)
{
	struct kvg_pin pins[BLOCKS];

	(void)state;
	daemon_check_alive(&d);
	if (kvg_prefix_pin(layout, keys, BLOCKS, 1.f, pins) != BLOCKS)
		return -1;
	for (int i = 0; i < BLOCKS; i++)
		content_compare(&model_small, 1 + (uint64_t)i, layout, &pins[i]);
	kvg_unpin(honest, pins, BLOCKS);
	client_wait_counter(honest, "kvgate_staging_bytes", 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	kvg_close(honest);
	if (daemon_stop(&d))
		return -1;
	daemon_cleanup(&d);
	return 0;
}

static bool ended(int sock)
{
	struct raw_reply r;

	while (raw_recv(sock, &r)) /* an error reply may come first */
		raw_reply_free(&r);
	close(sock);
	return true;
}

static void test_garbage(void **state)
{
	uint8_t junk[4096];
	int s;

	(void)state;
	srand(1);
	for (int round = 0; round < 50; round++) {
		size_t n = 1 + (size_t)rand() % sizeof(junk);

		for (size_t i = 0; i < n; i++)
			junk[i] = (uint8_t)rand();
		s = raw_connect(&d);
		if (round & 1)
			raw_hello(s);
		raw_send_bytes(s, junk, n, NULL, 0);
		assert_true(ended(s));
	}
	s = raw_connect(&d); /* a whole message that is empty */
	raw_hello(s);
	assert_int_equal(send(s, "", 0, MSG_NOSIGNAL), 0);
	assert_true(ended(s));
}

static void test_hello(void **state)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;
	Kvgate__V1__Stat stat = KVGATE__V1__STAT__INIT;
	int s = raw_connect(&d);

	(void)state;
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_STAT;
	q.stat = &stat;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_NOT_HELLO);
	assert_true(ended(s));
	s = raw_connect(&d);
	h.version_min = 77;
	h.version_max = 78;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &h;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_BAD_VERSION);
	assert_true(ended(s));
	s = raw_connect(&d); /* a newer client that still speaks version 1 is served */
	h.version_min = 1;
	h.features = ~0ull;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_OK);
	close(s);
	s = raw_connect(&d); /* hello twice */
	raw_hello(s);
	q.id = 2;
	assert_int_not_equal(raw_ask(s, &q), KVG_CODE_OK);
	close(s);
}

/* Once the sessions of earlier tests have ended: the same number for a while. */
static unsigned settled_fds(void)
{
	unsigned n = daemon_count_fds(&d);

	for (int same = 0; same < 20; same++) {
		unsigned now = daemon_count_fds(&d);

		if (now != n)
			same = 0;
		n = now;
		usleep(5000);
	}
	return n;
}

static void test_file_descriptors(void **state)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Stat stat = KVGATE__V1__STAT__INIT;
	unsigned before = settled_fds();
	int fds[4], s;

	(void)state;
	for (int i = 0; i < 4; i++)
		fds[i] = memfd_create("stray", MFD_CLOEXEC);
	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_STAT;
	q.stat = &stat;
	for (uint32_t declared = 0; declared < 6;
		declared += 4) { /* undeclared; declared but not wanted */
		s = raw_connect(&d);
		raw_hello(s);
		q.fds = declared;
		raw_send_fds(s, &q, fds, 4);
		assert_true(ended(s));
	}
	s = raw_connect(&d); /* declared, but none sent */
	raw_hello(s);
	q.fds = 3;
	raw_send(s, &q);
	assert_true(ended(s));
	for (int i = 0; i < 4; i++)
		close(fds[i]);
	for (int i = 0; i < 400 && daemon_count_fds(&d) != before; i++)
		usleep(5000);
	assert_int_equal(daemon_count_fds(&d), before);
}

static void refuse_layout(struct kvg_client *c, struct kvg_layout_options o, int error, int code)
{
	struct kvg_layout *l = NULL;

	o.size = sizeof(o);
	assert_int_equal(kvg_layout(c, &o, &l), error);
	assert_int_equal(kvg_last_code(c), code);
	assert_true(strlen(kvg_last_error(c)) > 10);
}

static void test_layouts_that_do_not_add_up(void **state)
{
	struct kvg_client *c = client_open(&d);
	struct kvg_layout_options good = {.model = "m",
		.layers = 2,
		.heads = 2,
		.k_dim = 8,
		.v_dim = 8,
		.dtype = KVG_DTYPE_BF16,
		.block_tokens = 16,
		.rope = "",
		.eviction = "",
		.revision = ""};
	struct kvg_layout_options o;
	static const uint8_t digest[32] = {1};
	float nan_edge[1] = {NAN}, rising[2] = {.1f, .2f};

	(void)state;
#define REFUSE(field, value)                                                                       \
	do {                                                                                       \
		o = good;                                                                          \
		o.field = value;                                                                   \
		refuse_layout(c, o, -EINVAL, KVG_CODE_BAD_LAYOUT);                                 \
	} while (0)
	REFUSE(layers, 0);
	REFUSE(layers, 0xffffffffu);
	REFUSE(heads, 0);
	REFUSE(heads, 70000);
	REFUSE(k_dim, 0);
	REFUSE(v_dim, 0x40000000u);
	REFUSE(dtype, 99);
	REFUSE(block_tokens, 65536);
	REFUSE(opaque_bytes, 100);
#undef REFUSE
	o = good;
	o.layers = o.heads = 1024;
	o.k_dim = o.v_dim = 4096;
	o.block_tokens = 65535;
	refuse_layout(c, o, -EINVAL, KVG_CODE_BAD_LAYOUT);
	o = good;
	o.gate = "no such gate";
	refuse_layout(c, o, -EINVAL, KVG_CODE_BAD_GATE);
	o = good;
	o.gate_digest = digest;
	o.edges = nan_edge;
	o.n_edges = 1;
	refuse_layout(c, o, -EINVAL, KVG_CODE_BAD_ARGUMENT);
	o.edges = rising;
	o.n_edges = 2;
	refuse_layout(c, o, -EINVAL, KVG_CODE_BAD_ARGUMENT);
	kvg_close(c);
}

static int commit_code(struct kvg_client *c, const struct kvg_stage *s, const struct kvg_key *key,
	const struct kvg_key *parent)
{
	struct kvg_commit item = {.stage = s, .key = *key, .parent = parent};
	struct kvg_commit_result r;

	assert_int_equal(kvg_commit(c, &item, 1, &r), 0);
	if (r.code != KVG_CODE_OK && r.code != KVG_CODE_EXISTS)
		assert_true(strlen(r.error) > 5 || r.code);
	return r.code;
}

static void test_commits_that_cannot_be(void **state)
{
	struct kvg_client *c = client_open(&d);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_stage s, never = {.id = 987654321};
	struct kvg_key key, nobody;
	float *score;

	(void)state;
	memset(&nobody, 0x5a, sizeof(nobody));
#define STAGED(seed)                                                                               \
	do {                                                                                       \
		assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &s), 1);                        \
		content_fill(&model_small, seed, &s);                                              \
		kvg_key_block(l, NULL, s.tokens, s.n_tokens, &key);                                \
	} while (0)
	STAGED(500);
	score = s.aux;
	score[17] = NAN;
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_BAD_SCORES);
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_NO_STAGE); /* used up */
	STAGED(500);
	score = s.aux;
	score[17] = -INFINITY;
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_BAD_SCORES);
	STAGED(500);
	s.tokens[3]++;
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_BAD_KEY);
	STAGED(500);
	assert_int_equal(commit_code(c, &s, &key, &nobody), KVG_CODE_NO_PARENT);
	STAGED(500);
	assert_int_equal(commit_code(c, &never, &key, NULL), KVG_CODE_NO_STAGE);
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_OK);
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_NO_STAGE); /* twice */
	STAGED(500);
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_EXISTS);
	STAGED(501);
	assert_int_equal(kvg_abort(c, &s, 1), 0);
	assert_int_equal(commit_code(c, &s, &key, NULL), KVG_CODE_NO_STAGE);
#undef STAGED
	kvg_close(c);
}

/* A foreign key that comes again with other tokens is a collision: neither stored nor served. */
static void test_collision(void **state)
{
	struct kvg_client *c = client_open(&d);
	struct kvg_layout_options o = {.size = sizeof(o),
		.model = "m",
		.layers = 1,
		.heads = 1,
		.k_dim = 8,
		.v_dim = 8,
		.dtype = KVG_DTYPE_BF16,
		.block_tokens = 4,
		.key_namespace = "engine"};
	struct kvg_layout *l;
	struct kvg_stage s;
	struct kvg_key key = {{42}};

	(void)state;
	assert_int_equal(kvg_layout(c, &o, &l), 0);
	for (uint32_t i = 0; i < 3; i++) {
		uint32_t first = i == 1 ? 999 : 7;

		assert_int_equal(kvg_stage(l, KVG_INPUT_NONE, 1, &s), 1);
		memset(s.kv, 1, s.kv_bytes);
		for (uint32_t t = 0; t < 4; t++)
			s.tokens[t] = first + t;
		assert_int_equal(commit_code(c, &s, &key, NULL),
			i == 0           ? KVG_CODE_OK
				: i == 1 ? KVG_CODE_COLLISION
					 : KVG_CODE_EXISTS);
	}
	kvg_close(c);
}

/* Numbers and lengths that do not fit, straight onto the wire. */
static void test_odd_requests(void **state)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Acquire acquire = KVGATE__V1__ACQUIRE__INIT;
	Kvgate__V1__Release release = KVGATE__V1__RELEASE__INIT;
	Kvgate__V1__Stage stage = KVGATE__V1__STAGE__INIT;
	Kvgate__V1__Inspect inspect = KVGATE__V1__INSPECT__INIT;
	ProtobufCBinaryData short_key = {.len = 7, .data = (uint8_t *)"1234567"};
	ProtobufCBinaryData many[400];
	uint64_t handles[3] = {0, ~0ull, 1ull << 32 | 5};
	int s = raw_connect(&d);

	(void)state;
	raw_hello(s);
	q.id = 5;
	q.body_case = KVGATE__V1__REQUEST__BODY_ACQUIRE;
	q.acquire = &acquire;
	acquire.layout = 1;
	acquire.n_keys = 1;
	acquire.keys = &short_key;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_BAD_ARGUMENT);
	for (int i = 0; i < 400; i++)
		many[i] = (ProtobufCBinaryData){.len = 32, .data = keys[0].b};
	acquire.n_keys = 400;
	acquire.keys = many;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_TOO_LARGE);
	acquire.layout = 12345;
	acquire.n_keys = 1;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_NOT_FOUND);
	q.body_case = KVGATE__V1__REQUEST__BODY_RELEASE;
	q.release = &release;
	release.n_handles = 3;
	release.handles = handles;
	assert_true(raw_ask(s, &q) >= 0);
	q.body_case = KVGATE__V1__REQUEST__BODY_STAGE;
	q.stage = &stage;
	stage.layout = 1;
	stage.count = 0xffffffffu;
	stage.input = 1;
	assert_int_not_equal(raw_ask(s, &q), -1);
	stage.count = 1;
	stage.input = 77;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_BAD_ARGUMENT);
	q.body_case = KVGATE__V1__REQUEST__BODY_INSPECT;
	q.inspect = &inspect;
	inspect.key = short_key;
	assert_int_equal(raw_ask(s, &q), KVG_CODE_BAD_ARGUMENT);
	q.id = 0; /* ids begin at 1 */
	assert_int_not_equal(raw_ask(s, &q), KVG_CODE_OK);
	close(s);
}

/* Somebody who sends and never reads is cut off and costs nobody anything. */
static void test_never_reads(void **state)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Stat stat = KVGATE__V1__STAT__INIT;
	uint8_t buf[256];
	size_t n;
	int s = raw_connect(&d), r = 0;

	(void)state;
	raw_hello(s);
	fcntl(s, F_SETFL, O_NONBLOCK);
	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_STAT;
	q.stat = &stat;
	n = kvgate__v1__request__pack(&q, buf);
	for (int i = 0; i < 200000 && (r == 0 || r == -EAGAIN); i++) {
		r = wire_send(s, buf, n, NULL, 0);
		if (r == -EAGAIN && i % 1000 == 0)
			unharmed(state);
	}
	assert_true(r == -EAGAIN || r == -EPIPE || r == -ECONNRESET);
	close(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_teardown(test_garbage, unharmed),
		cmocka_unit_test_teardown(test_hello, unharmed),
		cmocka_unit_test_teardown(test_file_descriptors, unharmed),
		cmocka_unit_test_teardown(test_layouts_that_do_not_add_up, unharmed),
		cmocka_unit_test_teardown(test_commits_that_cannot_be, unharmed),
		cmocka_unit_test_teardown(test_collision, unharmed),
		cmocka_unit_test_teardown(test_odd_requests, unharmed),
		cmocka_unit_test_teardown(test_never_reads, unharmed),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
