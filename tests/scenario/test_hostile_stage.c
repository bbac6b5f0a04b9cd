/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A client changes what it staged while it is packed: noise over everything, holes where there were bytes, token ids that
 * are right every other moment. What is published then is nobody's loss but its own, yet it is whole in itself: checksums,
 * runs and order hold, through all planes, and the token ids are those that the key was made of. And it writes where
 * nothing is staged.
 */
#include <assert.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "gates/select.h"
#include "tests/lib/harness.h"

#define BLOCKS 60
#define PAGE   4096u
#define FLOOR_PAIRS                                                                                \
	1 /* a 256th of the tokens, rounded up: so many of each run are in the first plane */

static const struct test_model model = {
	"hostile", 8, 4, 128, 128, KVG_DTYPE_BF16, 128, 5}; /* 2 MiB: it takes a while */

struct vandal {
	uint8_t *at;
	size_t n;
	bool flip; /* there and back again */
	atomic_bool started, stop;
};

static void *vandalize(void *arg)
{
	struct vandal *v = arg;
	uintptr_t page = (uintptr_t)v->at & ~(uintptr_t)(PAGE - 1);
	unsigned seed = 3;

	atomic_store(&v->started, true);
	while (!atomic_load_explicit(&v->stop, memory_order_relaxed)) {
		if (v->flip) {
			volatile uint8_t *byte = v->at + (size_t)rand_r(&seed) % v->n;

			*byte ^= 1;
			for (int i = 0; i < 5; i++) /* wrong about half of the time */
				rand_r(&seed);
			*byte ^= 1;
			for (int i = 0; i < 4; i++)
				rand_r(&seed);
			continue;
		}
		*(volatile uint8_t *)(v->at + (size_t)rand_r(&seed) % v->n) =
			(uint8_t)rand_r(&seed);
		if (rand_r(&seed) % 200 == 0)
			madvise((void *)page, (v->n + PAGE - 1) & ~(size_t)(PAGE - 1), MADV_REMOVE);
	}
	return NULL;
}

/* Which part of the stage: all of it, scores alone, K and V alone, or the token ids. */
static void choose(struct vandal *v, const struct kvg_stage *s, int i)
{
	const size_t all = (size_t)((uint8_t *)(s->tokens + s->n_tokens) - (uint8_t *)s->kv);
	uint8_t *const at[] = {s->kv, s->aux, s->kv, (uint8_t *)s->tokens};
	const size_t n[] = {all, s->aux_bytes, s->kv_bytes, s->n_tokens * sizeof(*s->tokens)};

	v->at = at[i % 4];
	v->n = n[i % 4];
	v->flip = i % 4 == 3;
	atomic_store(&v->started, false);
	atomic_store(&v->stop, false);
}

static bool expected(int code)
{
	return code == KVG_CODE_OK || code == KVG_CODE_BAD_KEY || code == KVG_CODE_BAD_SCORES;
}

/* As numbers that stand in the order of the scores. */
static int ordered(uint16_t f16)
{
	return f16 & 0x8000 ? 0xffff - f16 : 0x8000 + f16;
}

static int bound(const struct kvg_layout_info *info, uint32_t band)
{
	return ordered(select_f16_at_least(info->edges[band]));
}

/* From plane to plane of each run no score rises, and each lies between the edges of its band. */
static void check_order(const struct kvg_plane *plane, int n, const struct kvg_layout_info *info)
{
	for (uint32_t run = 0; run < model.layers * model.heads; run++) {
		int last = INT_MAX;

		for (int p = 0; p < n; p++) {
			const uint32_t band = plane[p].plane;

			for (uint32_t i = plane[p].cu[run]; i < plane[p].cu[run + 1]; i++) {
				const int score = ordered(plane[p].score[i]);
				const uint32_t rank = i - plane[p].cu[run];

				assert(score <= last);
				last = score;
				/* the best pairs are in the first plane whatever their score */
				if (band + 1 < model.n_planes && (band || rank >= FLOOR_PAIRS))
					assert(score >= bound(info, band));
				if (band)
					assert(score < bound(info, band - 1));
			}
		}
	}
}

static void check_whole(
	struct kvg_client *c, struct kvg_layout *l, const struct kvg_key *key, uint64_t seed)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	uint32_t tokens[128];
	int n;
	struct kvg_inspect_options o = KVG_OPTIONS_INIT(kvg_inspect_options);
	struct kvg_block_entry e = KVG_OPTIONS_INIT(kvg_block_entry);
	struct kvg_layout_info info = KVG_OPTIONS_INIT(kvg_layout_info);
	struct kvg_pin pin;

	assert(kvg_lookup_pin(l, key, 1.f, &pin) == 0);
	assert(kvg_verify(l, &pin) == 0);
	n = kvg_planes(l, &pin, plane);
	assert(n > 0 && plane[0].tokens);
	kvg_layout_describe(l, &info);
	check_order(plane, n, &info);
	content_tokens(seed, model.tokens, tokens);
	assert(memcmp(plane[0].tokens, tokens, sizeof(tokens)) == 0);
	o.key = *key;
	o.verify = 1;
	assert(kvg_inspect(c, &o, &e, NULL) == 0);
	for (uint32_t p = 0; p < e.n_planes; p++)
		assert(e.planes[p].tier == 0 || e.planes[p].verified);
	kvg_unpin(c, &pin, 1);
}

static int attack(void *arg)
{
	int published = 0;

	for (int i = 0; i < BLOCKS; i++) {
		/* it goes on for a moment when the stage is given back: a session that does so too often is cut off */
		struct kvg_client *c = client_open(arg);
		struct kvg_layout *l = model_register(c, &model);
		struct kvg_commit_result result;
		struct kvg_commit item;
		struct kvg_stage s;
		struct kvg_key key;
		struct vandal v;
		pthread_t thread;

		assert(kvg_stage(l, KVG_INPUT_SCORES, 1, &s) == 1);
		content_fill(&model, (uint64_t)i, &s);
		chain_keys(l, &model, (uint64_t)i, 1, &key);
		item = (struct kvg_commit){&s, key, NULL};
		choose(&v, &s, i);
		assert(pthread_create(&thread, NULL, vandalize, &v) == 0);
		while (!atomic_load(&v.started))
			sched_yield();
		assert(kvg_commit(c, &item, 1, &result) == 0);
		atomic_store(&v.stop, true);
		pthread_join(thread, NULL);
		if (!expected(result.code)) {
			fprintf(stderr, "code %d %s\n", result.code, result.error);
			return 1;
		}
		if (result.code == KVG_CODE_OK) {
			check_whole(c, l, &key, (uint64_t)i);
			published++;
		}
		kvg_close(c);
	}
	return published ? 0 : 2;
}

static void test_changed_while_packed(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;

	(void)state;
	daemon_start(&d, "");
	assert_int_equal(child_run(0, attack, &d), 0);
	c = client_open(&d);
	assert_true(client_counter(c, "kvgate_corrupt_total") == 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* Waits until the counter has grown. */
static bool grows(struct kvg_client *c, const char *name, double from)
{
	for (int i = 0; i < 400; i++) {
		if (client_counter(c, name) > from)
			return true;
		usleep(10000);
	}
	return false;
}

/* Memory that nobody granted is taken away; what is staged beside it is committed as it was. */
static int write_beside(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model);
	struct kvg_commit_result result;
	struct kvg_commit item;
	struct kvg_stage s;
	struct kvg_key key;
	struct kvg_pin pin;
	uint8_t *beside;

	assert(kvg_stage(l, KVG_INPUT_SCORES, 1, &s) == 1);
	content_fill(&model, 7, &s);
	chain_keys(l, &model, 7, 1, &key);
	beside = (uint8_t *)s.kv + (16u << 20);
	for (double found = 0; found < 3; found++) {
		memset(beside, 1, 1 << 20);
		if (!grows(c, "kvgate_staging_outside_total", found) || beside[0] || beside[9999])
			return 1;
	}
	item = (struct kvg_commit){&s, key, NULL};
	assert(kvg_commit(c, &item, 1, &result) == 0);
	if (result.code != KVG_CODE_OK || kvg_lookup_pin(l, &key, 1.f, &pin))
		return 2;
	content_compare(&model, 7, l, &pin);
	kvg_unpin(c, &pin, 1);
	return 0;
}

/* Goes on and on with a little, or writes a lot: the session ends, and its memory goes. */
static int write_until_cut_off(void *arg, size_t bytes, unsigned times)
{
	struct kvg_client *c = client_open(arg), *watch = client_open(arg);
	struct kvg_layout *l = model_register(c, &model);
	struct kvg_stage s;
	uint8_t *beside;
	double before;

	client_wait_counter(watch, "kvgate_sessions", 2); /* none of an earlier child's is left */
	before = client_counter(watch, "kvgate_staging_outside_total");
	assert(kvg_stage(l, KVG_INPUT_SCORES, 1, &s) == 1);
	content_fill(&model, 8, &s); /* as much as it may have is there */
	beside = (uint8_t *)s.kv + (16u << 20);
	for (unsigned i = 0; i < times && client_counter(watch, "kvgate_sessions") > 1; i++) {
		memset(beside, 1, bytes); /* a look may come in the middle of it */
		if (!grows(watch, "kvgate_staging_outside_total", before + i))
			break; /* cut off just then, or else the next line fails */
	}
	client_wait_counter(watch, "kvgate_sessions", 1);
	client_wait_counter(watch, "kvgate_staging_bytes", 0);
	return kvg_stage(l, KVG_INPUT_SCORES, 1, &s) == 1 ? 2 : 0;
}

static int write_often(void *arg)
{
	return write_until_cut_off(arg, 100, 12);
}

static int write_much(void *arg)
{
	return write_until_cut_off(arg, 40 << 20, 12);
}

static void test_outside_of_stages(void **state)
{
	struct daemon_process d;

	(void)state;
	daemon_start(&d, "");
	assert_int_equal(child_run(0, write_beside, &d), 0);
	assert_int_equal(child_run(0, write_often, &d), 0);
	assert_int_equal(child_run(0, write_much, &d), 0);
	assert_true(daemon_logged(&d, "writes outside its stages"));
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_changed_while_packed),
		cmocka_unit_test(test_outside_of_stages),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
