/* SPDX-License-Identifier: Apache-2.0 */
/* A keeper is a datagram socket here: what comes out of the park is read from it, and goes in again as the next daemon's. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/base/loop.h"
#include "daemon/base/park.h"

struct keeper {
	int sock;
	char name[64];
};

static void keeper_start(struct keeper *k, const char *fdstore)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int n;

	snprintf(k->name, sizeof(k->name), "@kvgate-test-park-%d", (int)getpid());
	n = snprintf(a.sun_path, sizeof(a.sun_path), "%s", k->name);
	a.sun_path[0] = '\0';
	k->sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert_true(k->sock >= 0);
	assert_int_equal(bind(k->sock, (struct sockaddr *)&a,
				 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n)),
		0);
	setenv("NOTIFY_SOCKET", k->name, 1);
	if (fdstore)
		setenv("FDSTORE", fdstore, 1);
	else
		unsetenv("FDSTORE");
}

static void keeper_stop(struct keeper *k)
{
	close(k->sock);
	unsetenv("NOTIFY_SOCKET");
	unsetenv("FDSTORE");
}

/* The next message; its fd in *ret_fd, -1: it had none. False: there is no message. */
static bool keeper_read(struct keeper *k, char text[400], int *ret_fd)
{
	char control[CMSG_SPACE(sizeof(int))];
	struct iovec iov = {.iov_base = text, .iov_len = 399};
	struct msghdr m = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control),
	};
	ssize_t n = recvmsg(k->sock, &m, MSG_CMSG_CLOEXEC);

	*ret_fd = -1;
	if (n < 0) {
		assert_int_equal(errno, EAGAIN);
		return false;
	}
	text[n] = '\0';
	if (CMSG_FIRSTHDR(&m))
		memcpy(ret_fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
	return true;
}

static void keeper_expect(struct keeper *k, const char *expected, bool with_fd)
{
	char text[400];
	int fd;

	assert_true(keeper_read(k, text, &fd));
	assert_string_equal(text, expected);
	assert_int_equal(fd >= 0, with_fd);
	if (fd >= 0)
		close(fd);
}

static int file(const char *text)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), strlen(text));
	return fd;
}

static void test_put_and_drop(void **state)
{
	struct keeper k;
	struct loop *l;
	struct park *p;
	struct park_stat st;
	int fd = file("x");

	(void)state;
	keeper_start(&k, "100");
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(park_new(l, &p), 0);
	assert_true(park_active(p));
	park_put(p, "kvg-a", fd);
	park_put(p, "kvg-b", fd);
	park_drop(p, "kvg-a");
	keeper_expect(&k, "FDSTORE=1\nFDPOLL=0\nFDNAME=kvg-a", true);
	keeper_expect(&k, "FDSTORE=1\nFDPOLL=0\nFDNAME=kvg-b", true);
	keeper_expect(&k, "FDSTOREREMOVE=1\nFDNAME=kvg-a", false);
	park_stat(p, &st);
	assert_int_equal(st.capacity, 100);
	assert_int_equal(st.kept, 1);
	assert_int_equal(st.waiting + st.refused, 0);
	park_freeze(p);
	park_drop(p, "kvg-b");
	assert_int_equal(poll(&(struct pollfd){.fd = k.sock, .events = POLLIN}, 1, 0), 0);
	park_free(p);
	loop_free(l);
	close(fd);
	keeper_stop(&k);
}

/* He does not read for a while: nothing is lost, nothing changes places, and nobody waits. */
static void test_keeper_that_is_behind(void **state)
{
	struct keeper k;
	struct loop *l;
	struct park *p;
	struct park_stat st;
	unsigned n = 0, seen = 0;
	int fd = file("x"), got;
	char name[64], text[400], expected[400];

	(void)state;
	keeper_start(&k, NULL);
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(park_new(l, &p), 0);
	do {
		snprintf(name, sizeof(name), "kvg-%u", n);
		if (n++ % 3 == 2)
			park_drop(p, name);
		else
			park_put(p, name, fd);
		park_stat(p, &st);
	} while (st.waiting < 40);
	assert_int_equal(park_settle(p, 30), -ETIMEDOUT);
	close(fd); /* what waits has copies */
	while (seen < n) {
		if (!keeper_read(&k, text, &got)) {
			loop_run_once(l, 100);
			continue;
		}
		snprintf(expected, sizeof(expected),
			seen % 3 == 2 ? "FDSTOREREMOVE=1\nFDNAME=kvg-%u"
				      : "FDSTORE=1\nFDPOLL=0\nFDNAME=kvg-%u",
			seen);
		assert_string_equal(text, expected);
		assert_int_equal(got >= 0, seen % 3 != 2);
		if (got >= 0)
			close(got);
		seen++;
	}
	assert_int_equal(park_settle(p, 0), 0);
	park_stat(p, &st);
	assert_int_equal(st.waiting + st.refused, 0);
	park_free(p);
	loop_free(l);
	keeper_stop(&k);
}

static void test_store_that_is_full_or_gone(void **state)
{
	struct keeper k;
	struct loop *l;
	struct park *p;
	struct park_stat st;
	int fd = file("x");

	(void)state;
	keeper_start(&k, "2");
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(park_new(l, &p), 0);
	park_put(p, "kvg-a", fd);
	park_put(p, "kvg-b", fd);
	park_stat(p, &st);
	assert_int_equal(st.refused, 0);
	park_put(p, "kvg-c", fd);
	park_stat(p, &st);
	assert_int_equal(st.refused, 1);
	keeper_stop(&k);
	park_put(p, "kvg-d", fd);
	park_stat(p, &st);
	assert_int_equal(st.refused, 3); /* beyond what fits, and nobody is there */
	assert_int_equal(st.waiting, 0);
	park_free(p);
	loop_free(l);
	close(fd);
}

/* What can be done without leaves room; and names are never more than an environment takes. */
static void test_room_for_what_matters(void **state)
{
	struct keeper k;
	struct loop *l;
	struct park *p;
	struct park_stat st;
	unsigned offered = 0, put = 0, bytes = 0;
	char name[PARK_NAME_MAX + 1];
	int fd = file("x"), got;
	char text[400];

	(void)state;
	keeper_start(&k, "8");
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(park_new(l, &p), 0);
	while (park_offer(p, "kvg-session", fd))
		offered++;
	assert_int_equal(offered, 6);
	park_put(p, "kvg-segment", fd);
	park_put(p, "kvg-segment", fd);
	park_stat(p, &st);
	assert_true(st.kept == 8 && st.refused == 1);
	park_drop(p, "kvg-session");
	park_drop(p, "kvg-session");
	park_drop(p, "kvg-session");
	assert_true(park_offer(p, "kvg-session", fd));
	park_free(p);
	keeper_stop(&k);

	keeper_start(&k, NULL);
	assert_int_equal(park_new(l, &p), 0);
	for (; put < 1000; put++) {
		snprintf(name, sizeof(name), "kvg-%0250u", put);
		park_put(p, name, fd);
		while (keeper_read(&k, text, &got)) {
			bytes += (unsigned)strlen(name) + 1;
			close(got);
		}
	}
	assert_true(bytes > 100000 && bytes < 128 * 1024);
	park_free(p);
	keeper_stop(&k);
	loop_free(l);
	close(fd);
}

static void test_nobody_keeps_fds(void **state)
{
	static const char *const sockets[] = {NULL, "relative", "@", "/nobody/there", "vsock:2:1"};
	struct keeper k;
	struct loop *l;
	struct park *p;
	int fd = file("x");

	(void)state;
	assert_int_equal(loop_new(&l), 0);
	for (unsigned i = 0; i < sizeof(sockets) / sizeof(sockets[0]); i++) {
		if (sockets[i])
			setenv("NOTIFY_SOCKET", sockets[i], 1);
		assert_int_equal(park_new(l, &p), 0);
		assert_false(park_active(p));
		park_put(p, "kvg-a", fd);
		park_drop(p, "kvg-a");
		assert_int_equal(park_settle(p, 1000), 0);
		assert_int_equal(park_sync(p, 1000), -ENOTCONN);
		park_free(p);
	}
	keeper_start(&k, "0");
	assert_int_equal(park_new(l, &p), 0);
	assert_false(park_active(p));
	park_free(p);
	keeper_stop(&k);
	loop_free(l);
	close(fd);
}

/* The barrier is over when he has read it, and not before. */
static void test_sync(void **state)
{
	struct keeper k;
	struct loop *l;
	struct park *p;
	int fd = file("x"), status;
	pid_t reader;

	(void)state;
	keeper_start(&k, NULL);
	assert_int_equal(loop_new(&l), 0);
	assert_int_equal(park_new(l, &p), 0);
	park_put(p, "kvg-a", fd);
	assert_int_equal(park_sync(p, 50), -ETIMEDOUT);
	reader = fork();
	if (reader == 0) {
		char text[400];
		int got;

		for (unsigned n = 0; n < 3;) {
			if (!keeper_read(&k, text, &got)) {
				usleep(1000);
				continue;
			}
			n++;
			if (got >= 0)
				close(got);
		}
		_exit(strcmp(text, "BARRIER=1") != 0);
	}
	assert_int_equal(park_sync(p, 10000), 0);
	assert_int_equal(waitpid(reader, &status, 0), reader);
	assert_int_equal(status, 0);
	park_free(p);
	loop_free(l);
	close(fd);
	keeper_stop(&k);
}

/* In a process of its own, for fds 3 and following are what was passed. */
static void pass(const char *names, unsigned n)
{
	char number[16];
	int fds[8];

	for (unsigned i = 0; i < n; i++) {
		char text[2] = {(char)('0' + i), '\0'};
		int fd = file(text);

		fds[i] = fcntl(fd, F_DUPFD_CLOEXEC, 30);
	}
	for (unsigned i = 0; i < n; i++)
		dup2(fds[i], 3 + (int)i);
	snprintf(number, sizeof(number), "%u", n);
	setenv("LISTEN_FDS", number, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	if (names)
		setenv("LISTEN_FDNAMES", names, 1);
	else
		unsetenv("LISTEN_FDNAMES");
}

static char content(int fd)
{
	char c = 0;

	return pread(fd, &c, 1, 0) == 1 ? c : '?';
}

#define MUST(fact)                                                                                 \
	do {                                                                                       \
		if (!(fact))                                                                       \
			_exit(__LINE__ & 127 ? __LINE__ & 127 : 1);                                \
	} while (0)

static void take_over(void)
{
	struct keeper k;
	struct loop *l;
	struct park *p;
	const char *name;
	char text[400];
	int fd;

	pass("kvgated.socket:kvg-one:unknown:kvg-two:kvg-two", 5);
	keeper_start(&k, NULL);
	MUST(loop_new(&l) == 0 && park_new(l, &p) == 0);
	MUST(!getenv("LISTEN_FDS"));
	MUST(!strcmp(park_name(p, 0), "kvg-one") && !strcmp(park_name(p, 1), "kvg-two"));
	MUST(!strcmp(park_name(p, 2), "kvg-two") && !park_name(p, 3));
	fd = park_take(p, 1);
	MUST(content(fd) == '3' && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
	MUST(park_take(p, 1) == -1 && park_take(p, 3) == -1);
	fd = park_next_foreign(p, &name);
	MUST(fd == 3 && content(fd) == '0' && !strcmp(name, "kvgated.socket"));
	fd = park_next_foreign(p, &name);
	MUST(fd == 5 && content(fd) == '2' && park_next_foreign(p, &name) == -1);
	MUST(park_drop_rest(p) == 2);
	MUST(fcntl(4, F_GETFD) < 0 && fcntl(7, F_GETFD) < 0);
	MUST(keeper_read(&k, text, &fd) && !strcmp(text, "FDSTOREREMOVE=1\nFDNAME=kvg-one"));
	MUST(keeper_read(&k, text, &fd) && !strcmp(text, "FDSTOREREMOVE=1\nFDNAME=kvg-two"));
	MUST(park_drop_rest(p) == 0 && !keeper_read(&k, text, &fd));
	park_free(p);
	loop_free(l);
	_exit(0);
}

static void cannot_tell_apart(void)
{
	struct loop *l;
	struct park *p;

	pass("kvg-one", 2);
	MUST(loop_new(&l) == 0 && park_new(l, &p) == -EINVAL);
	_exit(0);
}

/* Names that nobody gave are no names of ours: all go to the listener. */
static void without_names(void)
{
	struct loop *l;
	struct park *p;
	const char *name;

	pass(NULL, 1);
	MUST(loop_new(&l) == 0 && park_new(l, &p) == 0);
	MUST(!park_name(p, 0) && park_next_foreign(p, &name) == 3);
	park_free(p);
	_exit(0);
}

static void test_next_daemon(void **state)
{
	static void (*const cases[])(void) = {take_over, cannot_tell_apart, without_names};

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		pid_t pid = fork();
		int status;

		if (pid == 0)
			cases[i]();
		assert_int_equal(waitpid(pid, &status, 0), pid);
		assert_int_equal(status, 0);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_put_and_drop),
		cmocka_unit_test(test_keeper_that_is_behind),
		cmocka_unit_test(test_store_that_is_full_or_gone),
		cmocka_unit_test(test_room_for_what_matters),
		cmocka_unit_test(test_nobody_keeps_fds),
		cmocka_unit_test(test_sync),
		cmocka_unit_test(test_next_daemon),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
