/* SPDX-License-Identifier: Apache-2.0 */
/* libkvgate against the real kvgated: every call once, on blocks whose every byte is known. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define BLOCKS 6

static struct daemon_process d;
static struct kvg_client *c;
static struct kvg_layout *l;
static struct kvg_key key[BLOCKS];

static int setup(void **state)
{
	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	l = model_register(c, &model_small);
	assert_int_equal(chain_put(c, l, &model_small, 1, BLOCKS, key), KVG_CODE_OK);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	kvg_close(c);
	daemon_check_alive(&d);
	daemon_stop(&d);
	daemon_cleanup(&d);
	return 0;
}

static void test_read_by_another(void **state)
{
	struct kvg_client *other = client_open(&d);
	struct kvg_layout *ol = model_register(other, &model_small);
	uint64_t pairs = (uint64_t)model_small.layers * model_small.heads * model_small.tokens;
	struct kvg_pin pin[BLOCKS];

	(void)state;
	assert_int_equal(kvg_prefix_lookup(ol, key, BLOCKS), BLOCKS);
	assert_int_equal(kvg_prefix_pin(ol, key, BLOCKS, 1, pin), BLOCKS);
	for (unsigned i = 0; i < BLOCKS; i++) {
		assert_true(pin[i].retention == 1.0f);
		assert_int_equal(content_compare(&model_small, 1 + i, ol, &pin[i]), pairs);
		assert_int_equal(kvg_verify(ol, &pin[i]), 0);
	}
	kvg_unpin(other, pin, BLOCKS);
	kvg_close(other);
}

static void test_prefix_from_tokens(void **state)
{
	uint32_t tokens[BLOCKS * 32 + 5];
	struct kvg_pin pin[BLOCKS];
	struct kvg_key got[BLOCKS];

	(void)state;
	for (unsigned i = 0; i < BLOCKS; i++)
		content_tokens(1 + i, 32, tokens + i * 32);
	assert_int_equal(kvg_prefix_pin_tokens(l, tokens, BLOCKS * 32 + 5, 1, pin, got), BLOCKS);
	assert_memory_equal(got, key, sizeof(key));
	kvg_unpin(c, pin, BLOCKS);
	tokens[3 * 32]++;
	assert_int_equal(kvg_prefix_pin_tokens(l, tokens, BLOCKS * 32, 1, pin, NULL), 3);
	kvg_unpin(c, pin, 3);
}

/* What is committed cannot be written, whatever the client tries. */
static void test_planes_are_read_only(void **state)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_pin pin;
	void *page;

	(void)state;
	assert_int_equal(kvg_lookup_pin(l, &key[0], 1, &pin), 0);
	assert_true(kvg_planes(l, &pin, plane) > 1);
	page = (void *)((uintptr_t)plane[0].k & ~(uintptr_t)4095);
	assert_int_equal(mprotect(page, 4096, PROT_READ | PROT_WRITE), -1);
	assert_int_equal(errno, EACCES);
	kvg_unpin(c, &pin, 1);
}

static void test_gather_and_select(void **state)
{
	struct kvg_select_options so = KVG_OPTIONS_INIT(kvg_select_options);
	const uint32_t runs = model_small.layers * model_small.heads, row = 32;
	const uint32_t all = BLOCKS * 32 * runs;
	uint8_t *k = malloc(all * row), *v = malloc(all * row),
		*dense = malloc(runs * 32 * 2 * row), want[32];
	uint32_t *len = calloc((size_t)BLOCKS * KVG_PLANES_MAX * runs, sizeof(*len)),
		 *at = malloc(all * sizeof(*at));
	uint32_t cu[9], kept = 0;
	struct kvg_pin pin[BLOCKS];

	(void)state;
	assert_int_equal(kvg_prefix_pin(l, key, BLOCKS, 1, pin), BLOCKS);
	assert_int_equal(kvg_gather_flat(l, pin, BLOCKS, k, v, at, cu, all), 0);
	assert_int_equal(cu[runs], all);
	for (uint32_t r = 0; r < runs; r++)
		for (uint32_t i = cu[r]; i < cu[r + 1]; i++) {
			content_row(1 + at[i] / 32, r / 2, 0, r % 2, at[i] % 32, want, row);
			assert_memory_equal(k + i * row, want, row);
			content_row(1 + at[i] / 32, r / 2, 1, r % 2, at[i] % 32, want, row);
			assert_memory_equal(v + i * row, want, row);
		}
	assert_int_equal(kvg_gather_dense(l, &pin[2], dense, runs * 32 * 2 * row, NULL), 0);
	content_row(3, 1, 1, 1, 7, want, row);
	assert_memory_equal(dense + ((1 * 2 + 1) * 2 + 1) * 32 * row + 7 * row, want, row);
	so.rule = "pair";
	so.retained = 0.25;
	assert_int_equal(kvg_select(l, pin, BLOCKS, &so, len), 0);
	for (uint32_t i = 0; i < BLOCKS * KVG_PLANES_MAX * runs; i++)
		kept += len[i];
	assert_in_range(kept, all / 4 - all / 50,
		all / 4 + all / 50); /* the daemon's floor protects some */
	kvg_unpin(c, pin, BLOCKS);
	free(k), free(v), free(dense), free(len), free(at);
}

static void purge(
	uint32_t keep_planes, const struct kvg_key *k, size_t n, struct kvg_purge_result *ret)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);

	o.keep_planes = keep_planes;
	o.keys = k;
	o.n_keys = n;
	assert_int_equal(kvg_purge(c, &o, ret), 0);
}

/* A pin outlives the purge; what is not pinned shrinks, and then says so. */
static void test_pins_hold(void **state)
{
	struct kvg_purge_result r;
	struct kvg_pin pin, less;

	(void)state;
	assert_int_equal(kvg_lookup_pin(l, &key[5], 1, &pin), 0);
	purge(2, key, BLOCKS, &r);
	assert_int_equal(r.pinned, 1);
	assert_int_equal(kvg_lookup_pin(l, &key[4], 1, &less), -ENODATA);
	assert_int_equal(kvg_lookup_pin(l, &key[4], 0.2f, &less), 0);
	assert_int_equal(less.mapped, 3);
	assert_true(content_compare(&model_small, 5, l, &less) > 0);
	kvg_unpin(c, &less, 1);
	purge(0, NULL, 0, &r);
	assert_true(r.pinned > 0);
	assert_int_equal(kvg_verify(l, &pin), 0);
	assert_true(content_compare(&model_small, 6, l, &pin) > 0);
	kvg_unpin(c, &pin, 1);
	purge(0, NULL, 0, &r);
	assert_int_equal(r.pinned, 0);
	assert_int_equal(kvg_prefix_lookup(l, key, BLOCKS), 0);
	assert_int_equal(kvg_lookup_pin(l, &key[0], 0, &pin), -ENOENT);
}

static void test_acquire(void **state)
{
	struct kvg_acquired got[BLOCKS + 1];
	struct kvg_key more[BLOCKS + 1];
	struct kvg_purge_result r;

	(void)state;
	memcpy(more, key, sizeof(key));
	memset(&more[BLOCKS], 0xab, sizeof(more[BLOCKS]));
	assert_int_equal(kvg_prefetch(l, more, BLOCKS + 1, 1), BLOCKS);
	assert_int_equal(kvg_acquire(l, more, BLOCKS + 1, 1, 0, got), BLOCKS);
	assert_int_equal(got[BLOCKS].code, KVG_CODE_NOT_FOUND);
	purge(0, NULL, 0, &r);
	assert_int_equal(r.blocks, 0);
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(kvg_release(c, &got[i].handle, 1), 0);
	purge(0, NULL, 0, &r);
	assert_int_equal(r.blocks, BLOCKS);
}

/* With one tier all that is held is mapped: nobody waits, and nothing arrives. */
static void test_acquire_start(void **state)
{
	struct kvg_acquired got[BLOCKS], look;
	struct kvg_pin pins[BLOCKS];
	struct kvg_purge_result r;
	uint8_t coming[BLOCKS];

	(void)state;
	assert_int_equal(kvg_acquire_start(l, key, BLOCKS, 1, 1, 1, got, coming), BLOCKS);
	assert_int_equal(coming[0], 0);
	assert_true(kvg_arrival_fd(c) >= 0);
	assert_int_equal(kvg_arrival_wait(c, 0), 0);
	assert_int_equal(kvg_acquired_look(c, got[1].handle, &look), 0);
	assert_int_equal(look.held, got[1].held);
	assert_int_equal(look.mapped, look.held);
	assert_int_equal(kvg_prefix_fetch(l, key, BLOCKS, 1, 1, pins), BLOCKS);
	assert_true(content_compare(&model_small, 1, l, &pins[0]) > 0);
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(kvg_release(c, &got[i].handle, 1), 0);
	purge(0, NULL, 0, &r);
	assert_int_equal(r.pinned, BLOCKS);
	kvg_unpin(c, pins, BLOCKS);
	purge(0, NULL, 0, &r);
	assert_int_equal(r.pinned, 0);
	assert_int_equal(kvg_acquired_look(c, got[1].handle, &look), -ESTALE);
}

/* ---- event loop ---- */

struct seen {
	unsigned commits, committed, evicted;
};

static void on_commit(void *userdata, int64_t ticket, int error,
	const struct kvg_commit_result *results, size_t n)
{
	struct seen *s = userdata;

	assert_true(ticket > 0);
	assert_int_equal(error, 0);
	assert_int_equal(n, 1);
	assert_int_equal(results[0].code, KVG_CODE_OK);
	s->commits++;
}

static void on_event(void *userdata, const struct kvg_event *e)
{
	struct seen *s = userdata;

	s->committed += e->kind == 1;
	s->evicted += e->kind == 3;
}

static void test_event_loop(void **state)
{
	struct kvg_key k;
	struct kvg_purge_result r;
	struct seen s = {0};
	struct kvg_stage st;
	struct kvg_commit item = {.stage = &st, .parent = &key[BLOCKS - 1]};
	uint32_t tokens[32];

	(void)state;
	assert_int_equal(kvg_subscribe(c, 1u << 1 | 1u << 3, on_event, &s), 0);
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &st), 1);
	content_fill(&model_small, 50, &st);
	content_tokens(50, 32, tokens);
	kvg_key_block(l, &key[BLOCKS - 1], tokens, 32, &k);
	item.key = k;
	assert_true(kvg_commit_start(c, &item, 1, on_commit, &s) > 0);
	purge(0, key, 0, &r); /* a blocking call in between takes nothing away from the loop */
	for (int i = 0; i < 100 && (!s.commits || !s.committed); i++) {
		struct pollfd p = {.fd = kvg_fd(c), .events = POLLIN};

		poll(&p, 1, 100);
		assert_int_equal(kvg_dispatch(c), 0);
	}
	assert_int_equal(s.commits, 1);
	assert_int_equal(s.committed, 1);
	purge(0, &k, 1, &r);
	assert_int_equal(r.blocks, 1);
	for (int i = 0; i < 100 && !s.evicted; i++) {
		struct pollfd p = {.fd = kvg_fd(c), .events = POLLIN};

		poll(&p, 1, 100);
		assert_int_equal(kvg_dispatch(c), 0);
	}
	assert_int_equal(s.evicted, 1);
	assert_int_equal(kvg_subscribe(c, 0, NULL, NULL), 0);
}

/* ---- other kinds of blocks ---- */

static void test_shorter_block(void **state)
{
	struct kvg_commit_result result;
	struct kvg_stage st;
	struct kvg_commit item = {.stage = &st, .parent = &key[BLOCKS - 1]};
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_pin pin;
	uint32_t tokens[9];
	int n;

	(void)state;
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &st), 1);
	assert_int_equal(kvg_stage_tokens(l, KVG_INPUT_SCORES, &st, 9), 0);
	content_fill(&model_small, 70, &st);
	content_tokens(70, 9, tokens);
	kvg_key_block(l, &key[BLOCKS - 1], tokens, 9, &item.key);
	item.protect_first = 2;
	item.protect_last = 3;
	assert_int_equal(kvg_commit(c, &item, 1, &result), 0);
	assert_string_equal(result.error, "");
	assert_int_equal(kvg_lookup_pin(l, &item.key, 1, &pin), 0);
	assert_int_equal(pin.tokens, 9);
	assert_int_equal(content_compare(&model_small, 70, l, &pin), 9 * 8);
	n = kvg_planes(l, &pin, plane);
	for (int p = 0; p < n; p++)
		for (uint32_t i = 0; i < plane[p].pairs; i++)
			assert_int_equal(plane[p].score[i] == 0x7c00,
				plane[p].index[i] < 2 || plane[p].index[i] >= 6);
	kvg_unpin(c, &pin, 1);
}

static void test_opaque_blocks(void **state)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_commit_result result;
	struct kvg_commit item = {0};
	struct kvg_layout *opaque;
	struct kvg_stage st;
	struct kvg_pin pin;

	(void)state;
	o.model = "opaque";
	o.opaque_bytes = 100001;
	o.key_namespace = "engine v1";
	assert_int_equal(kvg_layout(c, &o, &opaque), 0);
	assert_int_equal(kvg_stage(opaque, KVG_INPUT_NONE, 1, &st), 1);
	assert_int_equal(st.kv_bytes, 100001);
	memset(st.kv, 0x77, st.kv_bytes);
	st.tokens = NULL;
	item.stage = &st;
	item.key = key[0]; /* the same 32 bytes as in the other layout, and another block */
	assert_int_equal(kvg_commit(c, &item, 1, &result), 0);
	assert_string_equal(result.error, "");
	assert_int_equal(kvg_lookup_pin(opaque, &key[0], 1, &pin), 0);
	assert_int_equal(kvg_planes(opaque, &pin, plane), 1);
	assert_int_equal(plane[0].opaque_bytes, 100001);
	assert_int_equal(((const uint8_t *)plane[0].k)[100000], 0x77);
	assert_null(plane[0].cu);
	assert_int_equal(kvg_verify(opaque, &pin), 0);
	assert_int_equal(kvg_gather_dense(opaque, &pin, &o, sizeof(o), NULL), -EINVAL);
	kvg_unpin(c, &pin, 1);
	assert_int_equal(kvg_lookup_pin(l, &key[0], 1, &pin), 0);
	assert_int_equal(content_compare(&model_small, 1, l, &pin), 32 * 8);
	kvg_unpin(c, &pin, 1);
}

/* ---- refusals ---- */

static void test_refusals_say_why(void **state)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_commit_result result;
	struct kvg_stage st;
	struct kvg_commit item = {.stage = &st};
	struct kvg_layout *none;

	(void)state;
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &st), 1);
	content_fill(&model_small, 90, &st);
	assert_int_equal(kvg_commit(c, &item, 1, &result), 0); /* a key of zeros */
	assert_int_equal(result.code, KVG_CODE_BAD_KEY);
	assert_true(result.error[0]);
	assert_int_equal(kvg_commit(c, &item, 1, &result), 0); /* its stage is used up */
	assert_int_equal(result.code, KVG_CODE_NO_STAGE);
	o.model = "m";
	o.layers = o.heads = o.k_dim = o.v_dim = 1;
	o.dtype = KVG_DTYPE_F32;
	o.gate = "nobody's gate";
	assert_int_equal(kvg_layout(c, &o, &none), -EINVAL);
	assert_int_equal(kvg_last_code(c), KVG_CODE_BAD_GATE);
	assert_true(kvg_last_error(c)[0]);
}

/* ---- control ---- */

static int count_block(void *userdata, const struct kvg_block_entry *b)
{
	unsigned *n = userdata;

	(void)b;
	return ++*n == 4;
}

static int sum_blocks(void *userdata, const struct kvg_block_entry *b)
{
	*(uint64_t *)userdata += b->bytes;
	return 0;
}

static void count_layout(void *userdata, const struct kvg_layout_entry *e)
{
	assert_string_equal(e->model, "small");
	assert_int_equal(e->n_edges, 3);
	++*(unsigned *)userdata;
}

static void test_control(void **state)
{
	struct kvg_options co = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_list_options lo = KVG_OPTIONS_INIT(kvg_list_options);
	struct kvg_inspect_options io = KVG_OPTIONS_INIT(kvg_inspect_options);
	struct kvg_block_entry b = KVG_OPTIONS_INIT(kvg_block_entry);
	struct kvg_layout_entry e = KVG_OPTIONS_INIT(kvg_layout_entry);
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);
	struct kvg_client *tool;
	uint64_t bytes = 0, of_planes = 0;
	unsigned n = 0;

	(void)state;
	co.socket = d.socket;
	co.control = 1;
	assert_int_equal(kvg_open(&co, &tool), 0);
	assert_int_equal(kvg_list(tool, &lo, count_block, &n), 0);
	assert_int_equal(n, 4); /* it stopped when told */
	assert_int_equal(kvg_list(tool, &lo, sum_blocks, &bytes), 0);
	assert_true(client_counter(tool, "kvgate_plane_bytes") == (double)bytes);
	io.key = key[2];
	io.verify = 1;
	assert_int_equal(kvg_inspect(tool, &io, &b, &e), 0);
	assert_memory_equal(&b.parent, &key[1], sizeof(key[1]));
	assert_int_equal(b.depth, 2);
	assert_int_equal(b.n_planes, 4);
	for (unsigned i = 0; i < b.n_planes; i++) {
		of_planes += b.planes[i].bytes;
		assert_true(b.planes[i].verified);
	}
	assert_int_equal(of_planes, b.bytes);
	assert_string_equal(e.model, "small");
	io.key.b[0] ^= 1;
	assert_int_equal(kvg_inspect(tool, &io, &b, &e), -ENOENT);
	n = 0;
	assert_int_equal(kvg_layouts(tool, NULL, count_layout, &n), 0);
	assert_int_equal(n, 1);
	p.model = "small";
	p.floor = 0.5f;
	assert_int_equal(kvg_policy(tool, &p), 0);
	assert_true(p.floor == 0.5f && p.host_bytes > 0 && p.host_used >= bytes);
	kvg_close(tool);
}

/* The lab's gate through the public calls; its mathematics has tests of its own. */
static void test_gate(void **state)
{
	uint32_t layers, heads, groups, hidden, n_edges, tokens = 5;
	float edges[KVG_PLANES_MAX - 1], *x, *exact, *fast;
	uint8_t digest[32];
	struct kvg_gate *g;

	(void)state;
	assert_int_equal(kvg_gate_open("/nonexistent/gate", &g), -ENOENT);
	assert_non_null(strstr(kvg_last_error(NULL), "/nonexistent/gate"));
	assert_int_equal(kvg_gate_open(KVG_SOURCE_DIR "/client/demo/lab/gate.safetensors", &g), 0);
	kvg_gate_describe(g, &layers, &heads, &groups, &hidden, digest, &n_edges, edges);
	kvg_gate_describe(g, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
	x = malloc(tokens * hidden * sizeof(*x));
	exact = malloc(2 * heads * tokens * sizeof(*exact));
	fast = exact + heads * tokens;
	for (uint32_t i = 0; i < tokens * hidden; i++)
		x[i] = (float)((int)(i * 7919 % 200) - 100) / 50;
	assert_int_equal(kvg_gate_score(g, layers, x, KVG_DTYPE_F32, tokens, 1, exact), -EINVAL);
	assert_int_equal(kvg_gate_score(g, 0, x, KVG_DTYPE_F16, tokens, 1, exact), -EINVAL);
	assert_int_equal(
		kvg_gate_score(g, 0, x, KVG_DTYPE_F32, 2, 1, exact), 0); /* the scratch grows */
	assert_int_equal(kvg_gate_score(g, 0, x, KVG_DTYPE_F32, tokens, 1, exact), 0);
	assert_int_equal(kvg_gate_score(g, 0, x, KVG_DTYPE_F32, tokens, 0, fast), 0);
	for (uint32_t i = 0; i < heads * tokens; i++) {
		assert_true(exact[i] >= 0 && exact[i] <= 1);
		assert_true(exact[i] - fast[i] < 0.05f && fast[i] - exact[i] < 0.05f);
	}
	free(x);
	free(exact);
	kvg_gate_close(g);
	kvg_gate_close(NULL);
}

static void test_daemon_goes_away(void **state)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_pin pin;
	struct kvg_stage st;

	(void)state;
	assert_int_equal(kvg_lookup_pin(l, &key[0], 1, &pin), 0);
	assert_true(kvg_planes(l, &pin, plane) > 0);
	daemon_stop(&d);
	assert_int_equal(
		content_compare(&model_small, 1, l, &pin), 32 * 8); /* the pages are still ours */
	assert_true(kvg_stage(l, KVG_INPUT_NONE, 1, &st) < 0);
	assert_int_equal(kvg_lookup_pin(l, &key[0], 1, &pin), -ENOTCONN);
	assert_true(kvg_dispatch(c) < 0);
	kvg_close(c);
	daemon_cleanup(&d);
	setup(state);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_read_by_another),
		TEST(test_prefix_from_tokens),
		TEST(test_planes_are_read_only),
		TEST(test_gather_and_select),
		TEST(test_pins_hold),
		TEST(test_acquire),
		TEST(test_acquire_start),
		TEST(test_event_loop),
		TEST(test_shorter_block),
		TEST(test_opaque_blocks),
		TEST(test_refusals_say_why),
		TEST(test_control),
		cmocka_unit_test(test_gate),
		TEST(test_daemon_goes_away),
	};

	return cmocka_run_group_tests_name("client_e2e", tests, NULL, NULL);
}
