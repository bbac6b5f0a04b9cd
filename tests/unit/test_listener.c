/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/base/loop.h"
#include "daemon/base/park.h"
#include "daemon/serve/listener.h"

static char dir[64], path[80], lock[96], why[400];
static struct loop *loop;
static int accepted;

static void on_connection(void *userdata, int sock)
{
	(void)userdata;
	assert_true(fcntl(sock, F_GETFL) & O_NONBLOCK);
	assert_true(fcntl(sock, F_GETFD) & FD_CLOEXEC);
	close(sock);
	accepted++;
}

static struct park *park;

static int try_listen(const char *at, struct listener **ret)
{
	why[0] = '\0';
	return listener_new(loop, park, at, 0640, on_connection, NULL, ret, why, sizeof(why));
}

static int setup(void **state)
{
	(void)state;
	strcpy(dir, "/tmp/kvgate-listener-XXXXXX");
	accepted = 0;
	if (!mkdtemp(dir) || loop_new(&loop))
		return -1;
	snprintf(path, sizeof(path), "%s/sock", dir);
	snprintf(lock, sizeof(lock), "%s.lock", path);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	loop_free(loop);
	unlink(path);
	unlink(lock);
	return rmdir(dir);
}

static int connect_to(const char *at)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	strcpy(a.sun_path, at);
	if (connect(s, (struct sockaddr *)&a, sizeof(a)) < 0) {
		int r = -errno;

		close(s);
		return r;
	}
	return s;
}

static void test_serves(void **state)
{
	struct listener *l;
	struct stat st;
	int s[3];

	(void)state;
	assert_int_equal(try_listen(path, &l), 0);
	assert_int_equal(stat(path, &st), 0);
	assert_int_equal(st.st_mode & 0777, 0640);
	for (int i = 0; i < 3; i++)
		s[i] = connect_to(path);
	assert_int_equal(loop_run_once(loop, 1000), 0);
	assert_int_equal(accepted, 3);
	for (int i = 0; i < 3; i++)
		close(s[i]);
	listener_close(l);
	assert_int_equal(connect_to(path), -ENOENT);
	listener_free(l);
}

static void test_second(void **state)
{
	struct listener *l, *other;

	(void)state;
	assert_int_equal(try_listen(path, &l), 0);
	assert_int_equal(try_listen(path, &other), -EADDRINUSE);
	assert_non_null(strstr(why, "another kvgated"));
	assert_int_equal(access(path, F_OK), 0);
	listener_close(l); /* closed to newcomers, the lock still stands */
	assert_int_equal(try_listen(path, &other), -EADDRINUSE);
	listener_free(l);
	assert_int_equal(try_listen(path, &l), 0);
	listener_free(l);
}

static void test_left_behind(void **state)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	struct listener *l;

	(void)state;
	strcpy(a.sun_path, path);
	assert_int_equal(bind(s, (struct sockaddr *)&a, sizeof(a)), 0);
	assert_int_equal(listen(s, 1), 0);
	assert_int_equal(try_listen(path, &l), -EADDRINUSE); /* somebody answers there */
	assert_non_null(strstr(why, "another program"));
	close(s);
	assert_int_equal(try_listen(path, &l), 0); /* nobody does any more */
	listener_free(l);
}

static void test_not_a_socket(void **state)
{
	struct listener *l;
	int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);

	(void)state;
	close(fd);
	assert_int_equal(try_listen(path, &l), -EEXIST);
	assert_non_null(strstr(why, "not a socket"));
	assert_int_equal(access(path, F_OK), 0);
}

static void test_bad_paths(void **state)
{
	char nowhere[120], longer[300];
	struct listener *l;

	(void)state;
	snprintf(nowhere, sizeof(nowhere), "%s/no/sock", dir);
	assert_int_equal(try_listen(nowhere, &l), -ENOENT);
	assert_non_null(strstr(why, "make the folder"));
	memset(longer, 'x', sizeof(longer) - 1);
	longer[sizeof(longer) - 1] = '\0';
	assert_int_equal(try_listen(longer, &l), -ENAMETOOLONG);
}

/* As systemd does it: fd 3, $LISTEN_FDS and $LISTEN_PID. In a child, since fd 3 must be free for it. */
static int activated(int type)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct listener *l;
	char pid[32];
	int s = socket(AF_UNIX, type, 0), c;

	strcpy(a.sun_path, path);
	if (bind(s, (struct sockaddr *)&a, sizeof(a)) < 0 || listen(s, 5) < 0 || dup2(s, 3) != 3)
		return 10;
	snprintf(pid, sizeof(pid), "%d", (int)getpid());
	setenv("LISTEN_PID", pid, 1);
	setenv("LISTEN_FDS", "1", 1);
	if (loop_new(&loop) || park_new(loop, &park))
		return 11;
	if (try_listen("/nonexistent/ignored", &l) < 0)
		return 12;
	c = connect_to(path);
	if (c < 0 || loop_run_once(loop, 1000) || accepted != 1)
		return 13;
	listener_free(l);
	return access(path, F_OK) == 0 ? 0 : 14; /* systemd's socket file stays */
}

static void test_activation(void **state)
{
	int status;

	(void)state;
	for (int round = 0; round < 2; round++) {
		pid_t pid = fork();

		if (pid == 0)
			_exit(activated(round ? SOCK_STREAM : SOCK_SEQPACKET));
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(WEXITSTATUS(status), round ? 12 : 0);
		unlink(path);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_serves, setup, teardown),
		cmocka_unit_test_setup_teardown(test_second, setup, teardown),
		cmocka_unit_test_setup_teardown(test_left_behind, setup, teardown),
		cmocka_unit_test_setup_teardown(test_not_a_socket, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bad_paths, setup, teardown),
		cmocka_unit_test_setup_teardown(test_activation, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
