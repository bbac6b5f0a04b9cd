/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The n-th allocation or system call of the daemon fails, for every n until n lies beyond its whole life. It may refuse
 * to start, refuse a request or end a session; it may not die of a signal, hang, or serve a wrong byte, and when it
 * serves at all, it still serves the next client.
 */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

static const char config[] =
	"[memory]\nhost_bytes = 2MiB\nsegment_bytes = 1MiB\nindex_slots = 256\nfloor = 0.3\n";

static struct kvg_layout *try_register(struct kvg_client *c)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l = NULL;
	static const uint8_t digest[32] = "torture";
	static const float edges[3] = {.75f, .5f, .25f};

	o.model = model_small.name;
	o.layers = model_small.layers;
	o.heads = model_small.heads;
	o.k_dim = o.v_dim = model_small.k_dim;
	o.dtype = model_small.dtype;
	o.block_tokens = model_small.tokens;
	o.gate_digest = digest;
	o.edges = edges;
	o.n_edges = 3;
	return kvg_layout(c, &o, &l) ? NULL : l;
}

/* One client's life; whatever fails is fine, whatever is served is compared. */
static void live(const struct daemon_process *d, uint64_t seed)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c = NULL;
	struct kvg_layout *l;
	struct kvg_key keys[40];

	o.socket = d->socket;
	o.timeout_ms = 5000;
	if (kvg_open(&o, &c))
		return;
	l = try_register(c);
	for (uint64_t i = 0; l && i < 40; i++) {
		struct kvg_stage s;
		struct kvg_commit item = {.stage = &s};
		struct kvg_commit_result result;
		struct kvg_pin pin;
		int r;

		if (kvg_stage(l, KVG_INPUT_SCORES, 1, &s) != 1)
			continue;
		content_fill(&model_small, seed + i, &s);
		kvg_key_block(l, NULL, s.tokens, s.n_tokens, &keys[i]);
		item.key = keys[i];
		r = kvg_commit(c, &item, 1, &result);
		if (r == -ETIMEDOUT)
			fail_msg("a commit was never answered");
		if (r || kvg_lookup_pin(l, &keys[i], 0.f, &pin))
			continue;
		struct kvg_plane planes[KVG_PLANES_MAX];
		if (kvg_planes(l, &pin, planes) > 0)
			content_compare(&model_small, seed + i, l, &pin);
		kvg_unpin(c, &pin, 1);
	}
	kvg_close(c);
}

/* Returns false when nothing failed any more: n lies beyond the end. */
static bool round_with(const char *kind, long n, const char *suffix)
{
	struct daemon_process d = {0};
	char inject[64], mark[] = "/tmp/kvgate-struck-XXXXXX";
	int status, fd = mkstemp(mark);
	bool hit;

	close(fd);
	unlink(mark);
	snprintf(inject, sizeof(inject), "%s:%ld%s", kind, n, suffix);
	setenv("LD_PRELOAD", KVG_INJECT, 1);
	setenv("KVG_INJECT", inject, 1);
	setenv("KVG_INJECT_STRUCK", mark, 1);
	daemon_spawn(&d, config, NULL);
	unsetenv("LD_PRELOAD");
	unsetenv("KVG_INJECT");
	unsetenv("KVG_INJECT_STRUCK");
	if (daemon_wait_ready(&d)) {
		live(&d, 1000);
		live(&d, 2000); /* whatever befell the first, the next one is served or refused */
		status = daemon_stop(&d);
	} else {
		status = d.pid ? daemon_wait(&d) : 1 << 8;
	}
	if (WIFSIGNALED(status))
		fail_msg("%s: killed by signal %d", inject, WTERMSIG(status));
	hit = access(mark, F_OK) == 0;
	unlink(mark);
	d.pid = 0;
	daemon_cleanup(&d);
	return hit;
}

static void walk(const char *kind, long dense, long limit)
{
	long n = 1;

	while (n < limit && round_with(kind, n, ""))
		n += n < dense ? 1 : 1 + n / 8;
	assert_true(n > 1); /* the first call failed at least: the injection works */
}

static void test_memory(void **state)
{
	(void)state;
	walk("memory", 250, 200000);
}

static void test_memory_runs_out(void **state)
{
	(void)state;
	for (long n = 1; n < 3000; n += 1 + n / 4)
		round_with("memory", n, ":+");
}

static void test_system_calls(void **state)
{
	static const char *const kinds[] = {"mmap", "memfd_create", "ftruncate", "fchmod", "open",
		"epoll_ctl", "accept4", "sendmsg", "recvmsg", "getsockopt", "fallocate"};

	(void)state;
	for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
		for (long n = 1; n < 400 && round_with(kinds[i], n, ""); n += n < 30 ? 1 : n / 4)
			;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_memory_runs_out),
		cmocka_unit_test(test_system_calls),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
