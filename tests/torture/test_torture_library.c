/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The n-th allocation or system call of a client process fails, in the library as anywhere else. The library reports an
 * error; it does not crash, leak a held block, or hand out a wrong byte. The client is this program again, with
 * --client, under the injecting preload.
 */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

static const char *self;

/* 0: everything worked; 1: an error was reported; 2: something worse. */
static int client(const char *socket)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_client *c = NULL;
	struct kvg_layout *l = NULL;
	struct kvg_stage s;
	struct kvg_commit item = {.stage = &s};
	struct kvg_commit_result result;
	struct kvg_pin pin;
	struct kvg_plane planes[KVG_PLANES_MAX];
	int r = 1;

	o.socket = socket;
	o.timeout_ms = 5000;
	if (kvg_open(&o, &c))
		return c ? 2 : 1;
	lo.model = model_small.name;
	lo.layers = model_small.layers;
	lo.heads = model_small.heads;
	lo.k_dim = lo.v_dim = model_small.k_dim;
	lo.dtype = model_small.dtype;
	lo.block_tokens = model_small.tokens;
	if (kvg_layout(c, &lo, &l))
		goto out;
	if (kvg_stage(l, KVG_INPUT_NONE, 1, &s) != 1)
		goto out;
	s.aux_bytes = 0;
	content_fill(&model_small, 3, &s);
	kvg_key_block(l, NULL, s.tokens, s.n_tokens, &item.key);
	if (kvg_commit(c, &item, 1, &result))
		goto out;
	if (result.code != KVG_CODE_OK && result.code != KVG_CODE_EXISTS)
		goto out;
	r = kvg_lookup_pin(l, &item.key, 1.f, &pin);
	if (r)
		goto out;
	r = 1;
	if (kvg_planes(l, &pin, planes) == 1) {
		content_compare(&model_small, 3, l, &pin);
		r = 0;
	}
	kvg_unpin(c, &pin, 1);
out:
	kvg_close(c);
	return r ? 1 : 0;
}

static int exec_client(void *arg)
{
	execl(self, self, "--client", (const char *)arg, (char *)NULL);
	return 99;
}

static void test_library(void **state)
{
	static const char *const kinds[] = {"memory", "mmap", "sendmsg", "recvmsg", "open"};
	struct daemon_process d;
	struct kvg_client *watcher;

	(void)state;
	daemon_start(&d, "");
	watcher = client_open(&d);
	for (size_t k = 0; k < sizeof(kinds) / sizeof(kinds[0]); k++) {
		int clean = 0, refused = 0;

		for (long n = 1; n < 2000 && clean < 3; n++) {
			char inject[64];
			int r;
			pid_t pid;

			snprintf(inject, sizeof(inject), "%s:%ld", kinds[k], n);
			setenv("LD_PRELOAD", KVG_INJECT, 1);
			setenv("KVG_INJECT", inject, 1);
			pid = child_start(0, exec_client, d.socket);
			unsetenv("LD_PRELOAD");
			unsetenv("KVG_INJECT");
			r = child_wait(pid);
			/* 127: the dynamic loader itself ran out of memory before main */
			if (r != 0 && r != 1 && r != 127)
				fail_msg("%s: exit status %d", inject, r);
			clean = r == 0 ? clean + 1 : 0;
			refused += r != 0;
		}
		if (strcmp(kinds[k],
			    "open")) /* the injection works: without it nothing would ever fail */
			assert_true(refused > 0);
	}
	client_wait_counter(watcher, "kvgate_sessions", 1);
	client_wait_counter(watcher, "kvgate_staging_bytes", 0);
	kvg_close(watcher);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_library),
	};

	self = argv[0];
	if (argc == 3 && !strcmp(argv[1], "--client"))
		return client(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
