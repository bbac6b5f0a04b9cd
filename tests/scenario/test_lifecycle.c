/* SPDX-License-Identifier: Apache-2.0 */
/* Start, stop, reload, second starts, bad configurations, and what systemd is told. */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

static void must_refuse(const char *config, const char *says)
{
	struct daemon_process d = {0};
	int status;

	daemon_spawn(&d, config, NULL);
	status = daemon_wait(&d);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 0);
	if (!daemon_logged(&d, says))
		fail_msg("`%s` did not make it say `%s`", config, says);
	daemon_cleanup(&d);
}

static void test_bad_configurations(void **state)
{
	(void)state;
	must_refuse("[memory]\nhost_bites = 1GiB\n", "host_bites");
	must_refuse("[memory]\nhost_bytes = banana\n", "host_bytes");
	must_refuse("[memory]\nhost_bytes = 1\n", "host_bytes");
	must_refuse("[memory]\nhost_bytes = 99999999TiB\n", "host_bytes");
	must_refuse("[memory]\nhost_bytes = 64MiB\nsegment_bytes = 5000\n", "segment_bytes");
	must_refuse("[memory]\nhost_bytes = 64MiB\nindex_slots = 0\n", "index_slots");
	must_refuse("[memory]\nhost_bytes = 64MiB\nfloor = 1.5\n", "floor");
	must_refuse("[memory]\nhost_bytes = 64MiB\nnuma_node = 1000\n", "numa_node");
	must_refuse("[nonsense]\na = 1\n", "nonsense");
	must_refuse(
		"[memory]\nhost_bytes = 64MiB\n[gate g]\nfile = /nonexistent/gate.pt\n", "gate.pt");
	must_refuse("no section at all", "conf");
}

static void test_second_daemon(void **state)
{
	struct daemon_process a, b = {0};
	struct kvg_client *c;
	int status;

	(void)state;
	daemon_start(&a, "");
	b = a;
	b.pid = 0;
	daemon_spawn(&b, "", NULL);
	status = daemon_wait(&b);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 0);
	daemon_check_alive(&a);
	c = client_open(&a); /* the first still serves, on the same socket */
	kvg_close(c);
	assert_int_equal(daemon_stop(&a), 0);
	/* and when it is gone, its socket path is free again */
	daemon_spawn(&a, "", NULL);
	assert_true(daemon_wait_ready(&a));
	assert_int_equal(daemon_stop(&a), 0);
	daemon_cleanup(&a);
}

static void test_socket_path_taken(void **state)
{
	struct daemon_process d = {0};
	int fd, status;

	(void)state;
	daemon_start(&d, "");
	assert_int_equal(daemon_stop(&d), 0);
	fd = open(d.socket, O_CREAT | O_WRONLY | O_CLOEXEC, 0600); /* a file of somebody else */
	assert_true(fd >= 0);
	close(fd);
	daemon_spawn(&d, "", NULL);
	status = daemon_wait(&d);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) != 0);
	assert_true(daemon_logged(&d, "sock"));
	assert_int_equal(access(d.socket, F_OK), 0); /* and it is still there */
	daemon_cleanup(&d);
}

/* SIGKILL leaves socket and lock file behind; the next start takes over. */
static void test_after_sigkill(void **state)
{
	struct daemon_process d;

	(void)state;
	daemon_start(&d, "");
	kill(d.pid, SIGKILL);
	daemon_wait(&d);
	daemon_spawn(&d, "", NULL);
	assert_true(daemon_wait_ready(&d));
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void test_client_sees_the_end(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key keys[3];
	struct kvg_pin pins[3];
	struct kvg_stage s;

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	l = model_register(c, &model_small);
	assert_int_equal(chain_put(c, l, &model_small, 1, 3, keys), KVG_CODE_OK);
	assert_int_equal(kvg_prefix_pin(l, keys, 3, 1.f, pins), 3);
	for (int i = 0; i < 3; i++)
		content_compare(&model_small, 1 + (uint64_t)i, l, &pins[i]);
	assert_int_equal(daemon_stop(&d), 0);
	/* what was pinned and mapped stays readable; requests fail at once and say why */
	for (int i = 0; i < 3; i++)
		content_compare(&model_small, 1 + (uint64_t)i, l, &pins[i]);
	assert_true(kvg_stage(l, KVG_INPUT_SCORES, 1, &s) < 0);
	assert_true(strlen(kvg_last_error(c)) > 5);
	kvg_unpin(c, pins, 3);
	kvg_close(c);
	daemon_cleanup(&d);
}

static void configure(const struct daemon_process *d, const char *config)
{
	FILE *f = fopen(d->config, "w");

	assert(f);
	fputs(config, f);
	fclose(f);
	assert_int_equal(kill(d->pid, SIGHUP), 0);
}

static void wait_logged(const struct daemon_process *d, const char *text)
{
	for (int i = 0; i < 2000 && !daemon_logged(d, text); i++)
		usleep(5000);
	if (!daemon_logged(d, text))
		fail_msg("it did not log `%s`", text);
}

/* What differs is said when it holds, and not of a file that is refused for its gate. */
static void test_reload_says_what_holds(void **state)
{
	static const char memory[] =
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n";
	struct daemon_process d;
	char config[300];

	(void)state;
	daemon_start(&d, memory);
	snprintf(config, sizeof(config),
		"%sfloor = 0.5\nhuge_pages = no\n[gate g]\nfile = /nonexistent/gate.pt\n", memory);
	configure(&d, config);
	wait_logged(&d, "gate cannot be loaded");
	assert_false(daemon_logged(&d, "parameter"));
	snprintf(config, sizeof(config), "%sfloor = 0.5\nhuge_pages = no\n", memory);
	configure(&d, config);
	wait_logged(&d, "configuration taken over");
	assert_true(daemon_logged(&d, "parameter changed name=floor"));
	assert_true(daemon_logged(&d, "parameter not changed: it needs a restart name=huge_pages"));
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void test_reload(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);
	FILE *f;

	(void)state;
	daemon_start(&d,
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\nfloor = "
		"0.5\n");
	c = client_open(&d);
	assert_int_equal(kvg_policy(c, &p), 0);
	assert_true(p.floor == .5f);
	f = fopen(d.config, "w"); /* a broken file changes nothing and is said */
	fputs("[memory]\nhost_bytes = banana\n", f);
	fclose(f);
	kill(d.pid, SIGHUP);
	for (int i = 0; i < 400 && !daemon_logged(&d, "banana"); i++)
		usleep(5000);
	assert_true(daemon_logged(&d, "banana"));
	daemon_check_alive(&d);
	f = fopen(d.config, "w");
	fputs("[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\nfloor = "
	      "0.25\n",
		f);
	fclose(f);
	kill(d.pid, SIGHUP);
	for (int i = 0; i < 400; i++) {
		struct kvg_policy now = KVG_OPTIONS_INIT(kvg_policy);

		assert_int_equal(kvg_policy(c, &now), 0);
		p = now;
		if (p.floor == .25f)
			break;
		usleep(5000);
	}
	assert_true(p.floor == .25f);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

static void set_floor_of(void *userdata, const char *model, float floor)
{
	if (!strcmp(model, "m"))
		*(float *)userdata = floor;
}

/* What a person set stays over a reload, unless the file says something new; what left the file is no more. */
static void test_reload_and_run_time(void **state)
{
	static const char before[] = "[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\n"
				     "index_slots = 4096\nfloor = 0.5\n[model m]\nfloor = 0.25\n";
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);
	float of_m = 0;
	FILE *f;

	(void)state;
	daemon_start(&d, before);
	c = client_open(&d);
	p.high_watermark = .75f;
	p.low_watermark = .5f;
	p.model_floor = set_floor_of;
	p.userdata = &of_m;
	assert_int_equal(kvg_policy(c, &p), 0);
	assert_true(p.floor == .5f && of_m == .25f);
	f = fopen(d.config, "w");
	fputs("[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
	      "floor = 0.125\n",
		f);
	fclose(f);
	kill(d.pid, SIGHUP);
	for (int i = 0; i < 400 && p.floor != .125f; i++) {
		struct kvg_policy now = KVG_OPTIONS_INIT(kvg_policy);

		usleep(5000);
		of_m = 0;
		now.model_floor = set_floor_of;
		now.userdata = &of_m;
		assert_int_equal(kvg_policy(c, &now), 0);
		p = now;
	}
	assert_true(p.floor == .125f);
	assert_true(p.high_watermark == .75f && p.low_watermark == .5f);
	assert_true(of_m == 0);
	p = (struct kvg_policy)KVG_OPTIONS_INIT(kvg_policy);
	p.host_bytes = 65 << 20; /* more than there is */
	assert_int_equal(kvg_policy(c, &p), -EINVAL);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* Reads datagrams as systemd would until one holds `text`. */
static bool notified(int sock, const char *text)
{
	char buf[2048];
	struct timeval timeout = {.tv_sec = 10};

	setsockopt(sock, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	for (;;) {
		ssize_t n = recv(sock, buf, sizeof(buf) - 1, 0);

		if (n < 0)
			return false;
		buf[n] = '\0';
		if (strstr(buf, text))
			return true;
	}
}

static void test_notify(void **state)
{
	struct daemon_process d = {0};
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	(void)state;
	snprintf(a.sun_path, sizeof(a.sun_path), "/tmp/kvgate-notify-%d", (int)getpid());
	unlink(a.sun_path);
	assert_int_equal(bind(sock, (struct sockaddr *)&a, sizeof(a)), 0);
	setenv("NOTIFY_SOCKET", a.sun_path, 1);
	setenv("WATCHDOG_USEC", "200000", 1);
	daemon_spawn(&d, "", NULL);
	unsetenv("NOTIFY_SOCKET");
	unsetenv("WATCHDOG_USEC");
	assert_true(notified(sock, "READY=1"));
	assert_true(notified(sock, "WATCHDOG=1"));
	assert_true(notified(sock, "WATCHDOG=1"));
	kill(d.pid, SIGTERM);
	assert_true(notified(sock, "STOPPING=1"));
	assert_int_equal(daemon_wait(&d), 0);
	close(sock);
	unlink(a.sun_path);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_bad_configurations),
		cmocka_unit_test(test_second_daemon),
		cmocka_unit_test(test_socket_path_taken),
		cmocka_unit_test(test_after_sigkill),
		cmocka_unit_test(test_client_sees_the_end),
		cmocka_unit_test(test_reload),
		cmocka_unit_test(test_reload_says_what_holds),
		cmocka_unit_test(test_reload_and_run_time),
		cmocka_unit_test(test_notify),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
