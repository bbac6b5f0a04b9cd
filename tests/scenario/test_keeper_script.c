/* SPDX-License-Identifier: Apache-2.0 */
/* kvgated-keeper, the start script: starts, restarts without a loss, and stops; and says what does not work. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define BLOCKS 6

static struct daemon_process d; /* not started by the harness: only its paths */

static int script(const char *verb)
{
	char command[512];
	int status;

	snprintf(command, sizeof(command),
		"sh %s/systemd/kvgated-keeper %s --config %s --socket %s >>%s/said 2>&1",
		KVG_BINARY_DIR, verb, d.config, d.socket, d.dir);
	status = system(command);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static int setup(void **state)
{
	char pidfile[128];
	FILE *f;

	(void)state;
	d = (struct daemon_process){.dir = "/tmp/kvgate-test-XXXXXX"};
	assert_non_null(mkdtemp(d.dir));
	snprintf(d.socket, sizeof(d.socket), "%s/sock", d.dir);
	snprintf(d.config, sizeof(d.config), "%s/conf", d.dir);
	snprintf(d.log, sizeof(d.log), "%s/log", d.dir);
	snprintf(pidfile, sizeof(pidfile), "%s/pid", d.dir);
	setenv("KEEPER_PROGRAM",
		getenv("KVGATED") ? getenv("KVGATED") : KVG_BINARY_DIR "/daemon/kvgated", 1);
	setenv("KEEPER_PIDFILE", pidfile, 1);
	setenv("KEEPER_LOG", d.log, 1);
	setenv("KEEPER_SECONDS", "30", 1);
	setenv("KEEPER_USER", "", 1);
	f = fopen(d.config, "we");
	assert_non_null(f);
	fputs("[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n", f);
	fclose(f);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	script("stop");
	daemon_cleanup(&d);
	return 0;
}

static void test_contents_survive(void **state)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	struct kvg_client *c;
	struct kvg_layout *l;
	pid_t before, after;

	(void)state;
	assert_int_equal(script("status"), 3);
	assert_int_equal(script("start"), 0);
	assert_int_equal(script("status"), 0);
	assert_int_equal(script("start"), 1); /* it runs */
	o.socket = d.socket;
	o.resume_ms = 20000;
	assert_int_equal(kvg_open(&o, &c), 0);
	l = model_register(c, &model_small);
	assert_int_equal(chain_put(c, l, &model_small, 1, BLOCKS, keys), KVG_CODE_OK);
	before = daemon_serving(&d);
	assert_int_equal(script("restart"), 0);
	after = daemon_serving(&d);
	assert_int_not_equal(before, after);
	assert_true(client_counter(c, "kvgate_blocks") == BLOCKS);
	assert_int_equal(kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins), BLOCKS);
	for (unsigned b = 0; b < BLOCKS; b++)
		content_compare(&model_small, 1 + b, l, &pins[b]);
	kvg_close(c);
	assert_int_equal(script("stop"), 0);
	assert_int_equal(script("status"), 3);
	assert_int_equal(script("stop"), 0);
	assert_true(access(d.socket, F_OK) < 0);
}

static void test_cannot_start(void **state)
{
	FILE *f = fopen(d.config, "we");

	(void)state;
	fputs("[memory]\nhost_bytes = much\n", f);
	fclose(f);
	assert_int_equal(script("start"), 1);
	assert_int_equal(script("status"), 3);
}

/* A pid that another program has now is not the keeper's. */
static void test_stale_pidfile(void **state)
{
	FILE *f = fopen(getenv("KEEPER_PIDFILE"), "we");

	(void)state;
	fprintf(f, "%d\n", (int)getpid());
	fclose(f);
	assert_int_equal(script("status"), 3);
	assert_int_equal(script("start"), 0);
	assert_int_equal(script("status"), 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_contents_survive, setup, teardown),
		cmocka_unit_test_setup_teardown(test_cannot_start, setup, teardown),
		cmocka_unit_test_setup_teardown(test_stale_pidfile, setup, teardown),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
