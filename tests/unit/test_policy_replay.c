/* SPDX-License-Identifier: Apache-2.0 */
/* Replay: traces are read or refused with a line number; the rivals are what they claim to be; the policy beats them. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/ctl/replay.h"

#define CONVERSATION KVG_SOURCE_DIR "/tests/bench/traces/mooncake_conversation.jsonl"

static int read_text(const char *text, struct trace *ret, char *why, size_t size)
{
	char path[] = "/tmp/kvg_trace_XXXXXX";
	int fd = mkstemp(path), r;

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	close(fd);
	r = trace_read(path, ret, why, size);
	unlink(path);
	return r;
}

static uint64_t hits(const struct trace *t, enum replay_policy p, uint64_t capacity, double floor)
{
	const struct replay_setup s = {capacity, 1000, floor};
	struct replay_result r;

	assert_int_equal(replay_run(t, p, &s, &r), 0);
	assert_int_equal(r.references, t->n);
	assert_true(r.hits <= r.references);
	assert_true(floor < 1 || r.held <= capacity);
	assert_true(r.retention <= 1 + 1e-9 && r.retention >= floor - 1e-9);
	return r.hits;
}

static void test_reading(void **state)
{
	static const struct {
		const char *text, *says;
	} bad[] = {
		{"", "holds no request"},
		{"{\"hash_ids\":[1]}\n[1]\n", "line 2 is no JSON object"},
		{"\n{\"hash_ids\":[1\n", "line 2 is no JSON object"},
		{"{\"timestamp\":0}", "line 1 has no array"},
		{"{\"hash_ids\":7}", "line 1 has no array"},
		{"{\"hash_ids\":[1,\"2\"]}", "line 1 has something else"},
		{"{\"hash_ids\":[1,2.5]}", "line 1 has something else"},
		{"{\"hash_ids\":[[1]]}", "line 1 has something else"},
	};
	struct trace t;
	char why[200];

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		why[0] = 0;
		assert_int_equal(read_text(bad[i].text, &t, why, sizeof(why)), -EINVAL);
		assert_non_null(strstr(why, bad[i].says));
	}
	assert_int_equal(trace_read("/nowhere/at/all", &t, why, sizeof(why)), -ENOENT);
	assert_int_equal(
		read_text("{\"hash_ids\":[18446744073709551615,-1,9223372036854775807]}\n"
			  "\n{\"hash_ids\":[],\"x\":1}\n{\"hash_ids\":[9223372036854775807]}",
			&t, why, sizeof(why)),
		0);
	assert_true(t.n == 4 && t.n_requests == 3);
	assert_true(t.block[2] == t.block[3] && t.block[0] != t.block[2]);
	trace_fini(&t);
}

static void test_setups_that_cannot_be(void **state)
{
	static const struct replay_setup bad[] = {{0, 1, 1}, {1, 0, 1}, {1, 1, 0}, {1, 1, 1.1},
		{1ull << 40, 1, 1}, {1, 1ull << 40, 1}};
	struct replay_result r;
	struct trace t;
	char why[100];

	(void)state;
	assert_int_equal(read_text("{\"hash_ids\":[1,2]}", &t, why, sizeof(why)), 0);
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		assert_int_equal(replay_run(&t, REPLAY_KVGATE, &bad[i], &r), -EINVAL);
	for (int p = 0; p < N_REPLAY_POLICIES; p++)
		assert_int_equal(hits(&t, (enum replay_policy)p, 1, 1), 0);
	trace_fini(&t);
}

/* By hand: 1-2 and 1-3 and 1-2 again, room for two. LRU: the 2 of the third request went, and with a root gone nothing hits. */
static void test_by_hand(void **state)
{
	struct trace t;
	char why[100];

	(void)state;
	assert_int_equal(
		read_text("{\"hash_ids\":[1,2]}\n{\"hash_ids\":[1,3]}\n{\"hash_ids\":[1,2]}\n", &t,
			why, sizeof(why)),
		0);
	assert_int_equal(hits(&t, REPLAY_LRU, 2, 1), 2);
	assert_int_equal(hits(&t, REPLAY_OPTIMUM, 2, 1), 3);
	assert_int_equal(hits(&t, REPLAY_LRU, 3, 1), 3);
	assert_int_equal(hits(&t, REPLAY_LRU, 1, 1), 0);
	assert_int_equal(hits(&t, REPLAY_OPTIMUM, 1, 1), 2);
	trace_fini(&t);
}

/* Chains over a few roots, at random: nobody beats the optimum; with room for all, all have the same hits. */
static void test_bounds(void **state)
{
	static char text[1 << 20];
	size_t n = 0;
	struct trace t;
	char why[100];

	(void)state;
	srand(11);
	for (int i = 0; i < 2000; i++) {
		unsigned root = (unsigned)rand() % 40, length = 1 + (unsigned)rand() % 12;
		unsigned branch = (unsigned)rand() % 3;

		n += (size_t)sprintf(text + n, "{\"hash_ids\":[%u", root);
		for (unsigned d = 1; d < length; d++)
			n += (size_t)sprintf(text + n, ",%u", 100 + (root * 3 + branch) * 20 + d);
		n += (size_t)sprintf(text + n, "]}\n");
	}
	assert_int_equal(read_text(text, &t, why, sizeof(why)), 0);
	for (uint64_t capacity = 1; capacity < 4096; capacity *= 2) {
		uint64_t best = hits(&t, REPLAY_OPTIMUM, capacity, 1);

		for (int p = 0; p < REPLAY_OPTIMUM; p++) {
			assert_true(hits(&t, (enum replay_policy)p, capacity, 1) <= best);
			if (capacity >= 2048)
				assert_int_equal(
					hits(&t, (enum replay_policy)p, capacity, 1), best);
		}
		assert_true(hits(&t, REPLAY_KVGATE, capacity, .3) <=
			hits(&t, REPLAY_OPTIMUM, capacity * 10 / 3 + 1, 1));
	}
	trace_fini(&t);
}

/*
 * Documents by Zipf's law, each with a question that never comes again: what counting is made for. A policy that learns
 * must find out that it is, and not be worse than S3-FIFO, which knows, by more than that takes.
 */
static void test_popular_documents(void **state)
{
	enum {
		DOCUMENTS = 2000,
		REQUESTS = 10000
	};
	static double up_to[DOCUMENTS];
	char *text = malloc(REQUESTS * 160), why[100];
	struct trace t;
	size_t n = 0;

	(void)state;
	assert_non_null(text);
	srand(4);
	for (unsigned d = 0; d < DOCUMENTS; d++)
		up_to[d] = (d ? up_to[d - 1] : 0) + pow(d + 1, -.9);
	for (unsigned i = 0; i < REQUESTS; i++) {
		double x = up_to[DOCUMENTS - 1] * rand() / RAND_MAX;
		unsigned d = 0;

		while (up_to[d] < x)
			d++;
		n += (size_t)sprintf(text + n, "{\"hash_ids\":[1");
		for (unsigned b = 0; b < 2 + d * 7 % 11; b++)
			n += (size_t)sprintf(text + n, ",%u", 100 + d * 16 + b);
		n += (size_t)sprintf(text + n, ",%u]}\n", 1000000 + i);
	}
	assert_int_equal(read_text(text, &t, why, sizeof(why)), 0);
	free(text);
	for (uint64_t capacity = 500; capacity <= 8000; capacity *= 4) {
		uint64_t own = hits(&t, REPLAY_KVGATE, capacity, 1);

		assert_true(own > hits(&t, REPLAY_LRU, capacity, 1));
		assert_true(own * 100 > hits(&t, REPLAY_S3FIFO, capacity, 1) * 98);
	}
	trace_fini(&t);
}

/* The figures the reference of the trace's distribution prints for LRU, and what the policy is there for. */
static void test_conversation(void **state)
{
	struct trace t;
	char why[200];

	(void)state;
	assert_int_equal(trace_read(CONVERSATION, &t, why, sizeof(why)), 0);
	assert_true(t.n == 288500 && t.n_blocks == 182790 && t.n_requests == 12031);
	assert_in_range(hits(&t, REPLAY_LRU, 1000, 1) * 1000 / t.n, 44, 45);
	assert_in_range(hits(&t, REPLAY_LRU, 10000, 1) * 1000 / t.n, 211, 212);
	assert_true(hits(&t, REPLAY_KVGATE, 1000, 1) * 100 > 8 * t.n);
	assert_true(hits(&t, REPLAY_KVGATE, 3000, 1) * 100 > 13 * t.n);
	assert_true(hits(&t, REPLAY_KVGATE, 10000, 1) * 100 > 24 * t.n);
	assert_true(hits(&t, REPLAY_KVGATE, 30000, 1) * 100 > 33 * t.n);
	trace_fini(&t);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_reading),
		cmocka_unit_test(test_setups_that_cannot_be),
		cmocka_unit_test(test_by_hand),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_popular_documents),
		cmocka_unit_test(test_conversation),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
