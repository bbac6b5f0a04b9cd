/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Socket activation: whoever started kvgated has bound the socket and keeps it, so nobody is turned away while the
 * daemon is not there yet, or no more. Passed as systemd does: descriptor 3, LISTEN_FDS, LISTEN_PID.
 */
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
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define FIRST 3 /* SD_LISTEN_FDS_START */

static void make_folder(struct daemon_process *d)
{
	*d = (struct daemon_process){.dir = "/tmp/kvgate-test-XXXXXX"};
	assert(mkdtemp(d->dir));
	assert(chmod(d->dir, 0755) == 0);
	snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
	snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
}

static int bind_socket(const struct daemon_process *d, int type)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int sock = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);

	assert(sock >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", d->socket);
	assert(bind(sock, (struct sockaddr *)&a, sizeof(a)) == 0);
	assert(type == SOCK_DGRAM || listen(sock, 16) == 0);
	return sock;
}

/* In the child: `sock` as so many descriptors from 3 on, and what systemd says of them. */
static void pass(int sock, int n)
{
	char number[16];

	sock = fcntl(sock, F_DUPFD_CLOEXEC, FIRST + n); /* out of the way */
	for (int i = 0; i < n; i++)
		if (dup2(sock, FIRST + i) < 0)
			_exit(127);
	snprintf(number, sizeof(number), "%d", n);
	setenv("LISTEN_FDS", number, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
}

static void spawn(struct daemon_process *d, int sock, int n)
{
	const char *binary = getenv("KVGATED") ? getenv("KVGATED")
					       : KVG_BINARY_DIR "/daemon/kvgated";
	/* another path than the socket's: nothing may be made there */
	char elsewhere[128];
	int log;

	snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", d->dir);
	d->pid = fork();
	assert(d->pid >= 0);
	if (d->pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (log < 0 || dup2(log, 2) < 0)
		_exit(127);
	pass(sock, n);
	execl(binary, binary, "--config", "/dev/null", "--socket", elsewhere, "--host-bytes",
		"64MiB", "--segment-bytes", "4MiB", NULL);
	_exit(127);
}

static int put_and_read(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_layout *l = model_register(c, &model_small);
	struct kvg_key key;
	struct kvg_pin pin;
	int code = chain_put(c, l, &model_small, 1, 1, &key);

	if (code != KVG_CODE_OK || kvg_lookup_pin(l, &key, 1.f, &pin))
		return 1;
	content_compare(&model_small, 1, l, &pin);
	kvg_close(c);
	return 0;
}

/* Clients come before the daemon, and while it is exchanged for another: they wait, and are served. */
static void test_nobody_is_turned_away(void **state)
{
	char elsewhere[128];
	struct daemon_process d;
	pid_t early;
	int sock;

	(void)state;
	make_folder(&d);
	sock = bind_socket(&d, SOCK_SEQPACKET);
	for (int i = 0; i < 3; i++) {
		early = child_start(0, put_and_read, &d);
		usleep(20000); /* by now it has connected, and nobody has accepted */
		assert_int_equal(waitpid(early, NULL, WNOHANG), 0);
		spawn(&d, sock, 1);
		assert_int_equal(child_wait(early), 0);
		assert_int_equal(daemon_stop(&d), 0);
		assert_int_equal(access(d.socket, F_OK), 0); /* not the daemon's to remove */
	}
	snprintf(elsewhere, sizeof(elsewhere), "%s/elsewhere", d.dir);
	assert_int_equal(access(elsewhere, F_OK), -1);
	close(sock);
	daemon_cleanup(&d);
}

static void must_refuse(int type, int n)
{
	struct daemon_process d;
	int sock, status;

	make_folder(&d);
	sock = bind_socket(&d, type);
	spawn(&d, sock, n);
	status = daemon_wait(&d);
	assert_true(WIFEXITED(status) && WEXITSTATUS(status) == EXIT_FAILURE);
	assert_true(daemon_logged(&d, "ListenSequentialPacket"));
	close(sock);
	daemon_cleanup(&d);
}

static void test_wrong_sockets(void **state)
{
	(void)state;
	must_refuse(SOCK_STREAM, 1);
	must_refuse(SOCK_DGRAM, 1);
	must_refuse(SOCK_SEQPACKET, 2);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nobody_is_turned_away),
		cmocka_unit_test(test_wrong_sockets),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
