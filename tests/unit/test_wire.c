/* SPDX-License-Identifier: Apache-2.0 */
/* Messages and fds through a socket pair; every test ends with as many open fds as it began with. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/wire.h"

struct pair {
	int a, b;
	unsigned open; /* fds before */
};

static unsigned count_fds(void)
{
	DIR *d = opendir("/proc/self/fd");
	unsigned n = 0;

	assert_non_null(d);
	while (readdir(d))
		n++;
	closedir(d);
	return n;
}

static int setup(void **state)
{
	static struct pair p;
	int s[2];

	p.open = count_fds();
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, s), 0);
	p.a = s[0];
	p.b = s[1];
	*state = &p;
	return 0;
}

static int teardown(void **state)
{
	struct pair *p = *state;

	close(p->a);
	if (p->b >= 0)
		close(p->b);
	if (count_fds() != p->open) {
		print_error("%u fds open, %u before\n", count_fds(), p->open);
		return -1;
	}
	return 0;
}

static void test_the_counter_counts(void **state)
{
	unsigned before = count_fds();
	int fd = memfd_create("leak", MFD_CLOEXEC);

	(void)state;
	assert_int_equal(count_fds(), before + 1);
	close(fd);
	assert_int_equal(count_fds(), before);
}

static void test_message(void **state)
{
	struct pair *p = *state;
	char buf[16];
	int fds[4];
	unsigned n = 9;

	assert_int_equal(wire_send(p->a, "hello", 5, NULL, 0), 0);
	assert_int_equal(wire_send(p->a, "you", 3, NULL, 0), 0);
	assert_int_equal(wire_recv(p->b, buf, sizeof(buf), fds, 4, &n), 5); /* boundaries stay */
	assert_memory_equal(buf, "hello", 5);
	assert_int_equal(n, 0);
	assert_int_equal(wire_recv(p->b, buf, sizeof(buf), fds, 4, &n), 3);
}

static void send_memfds(struct pair *p, unsigned n)
{
	int fds[KVG_MESSAGE_FDS_MAX] = {0};

	for (unsigned i = 0; i < n; i++) {
		fds[i] = memfd_create("fd", MFD_CLOEXEC);
		assert_true(fds[i] >= 0);
		assert_int_equal(ftruncate(fds[i], 1000 + i), 0);
	}
	assert_int_equal(wire_send(p->a, "x", 1, fds, n), 0);
	for (unsigned i = 0; i < n; i++)
		close(fds[i]); /* they stay the sender's to close */
}

static void test_fds(void **state)
{
	struct pair *p = *state;
	const unsigned counts[] = {1, 2, KVG_MESSAGE_FDS_MAX};

	for (unsigned c = 0; c < 3; c++) {
		int fds[KVG_MESSAGE_FDS_MAX] = {0};
		unsigned n = 0;
		char buf;

		send_memfds(p, counts[c]);
		assert_int_equal(wire_recv(p->b, &buf, 1, fds, KVG_MESSAGE_FDS_MAX, &n), 1);
		assert_int_equal(n, counts[c]);
		for (unsigned i = 0; i < n; i++) {
			struct stat st;

			assert_int_equal(fstat(fds[i], &st), 0);
			assert_int_equal(st.st_size, 1000 + i); /* in order */
			assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
			close(fds[i]);
		}
	}
}

static void expect_refused(struct pair *p, size_t size, unsigned fds_size, int error)
{
	unsigned before = count_fds(), n = 77;
	int fds[KVG_MESSAGE_FDS_MAX] = {-5};
	char *buf = malloc(size + 1);

	assert_int_equal(wire_recv(p->b, buf, size, fds, fds_size, &n), error);
	assert_int_equal(n, 77);
	assert_int_equal(fds[0], -5);
	assert_int_equal(count_fds(), before);
	free(buf);
}

static void test_too_many_fds_for_the_receiver(void **state)
{
	struct pair *p = *state;

	send_memfds(p, 3);
	expect_refused(p, 16, 2, -ETOOMANYREFS);
	send_memfds(p, 1);
	expect_refused(p, 16, 0, -ETOOMANYREFS);
	test_message(state); /* the next message is whole */
}

static void test_truncated_message(void **state)
{
	struct pair *p = *state;

	assert_int_equal(wire_send(p->a, "too long", 8, NULL, 0), 0);
	expect_refused(p, 7, 4, -EMSGSIZE);
	send_memfds(p, 2);
	assert_int_equal(wire_send(p->a, "too long", 8, &p->a, 1), 0);
	{
		int fds[2];
		unsigned n;
		char buf[8];

		assert_int_equal(wire_recv(p->b, buf, 8, fds, 2, &n), 1);
		close(fds[0]);
		close(fds[1]);
	}
	expect_refused(p, 7, 4, -EMSGSIZE); /* its fd is closed too */
	test_message(state);
}

/* As a client that does not keep to wire_send() can: any number of fds, any length. */
static void send_raw(struct pair *p, size_t length, unsigned n_fds)
{
	char data[16] = "raw", control[CMSG_SPACE(253 * sizeof(int))] = {0};
	struct iovec iov = {data, length};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
	struct cmsghdr *c = (struct cmsghdr *)control;

	c->cmsg_level = SOL_SOCKET;
	c->cmsg_type = SCM_RIGHTS;
	c->cmsg_len = CMSG_LEN(n_fds * sizeof(int));
	msg.msg_controllen = CMSG_SPACE(n_fds * sizeof(int));
	for (unsigned i = 0; i < n_fds; i++)
		memcpy(CMSG_DATA(c) + i * sizeof(int), &p->a, sizeof(int));
	assert_int_equal(sendmsg(p->a, &msg, 0), length);
}

static void test_more_fds_than_a_message_holds(void **state)
{
	struct pair *p = *state;

	send_raw(p, 3, KVG_MESSAGE_FDS_MAX + 1);
	expect_refused(p, 16, KVG_MESSAGE_FDS_MAX, -ETOOMANYREFS);
	send_raw(p, 3, 253);
	expect_refused(p, 16, KVG_MESSAGE_FDS_MAX, -ETOOMANYREFS);
	test_message(state);
}

static void test_empty_message_with_fds(void **state)
{
	struct pair *p = *state;
	unsigned before = count_fds(), n = 77;
	int fds[4];
	char buf[4];

	send_raw(p, 0, 3);
	assert_int_equal(wire_recv(p->b, buf, sizeof(buf), fds, 4, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(count_fds(), before);
	send_raw(p, 0, 100); /* cut as well: refused either way */
	assert_true(wire_recv(p->b, buf, sizeof(buf), fds, 4, &n) <= 0);
	assert_int_equal(count_fds(), before);
}

static void test_sizes(void **state)
{
	struct pair *p = *state;
	char *data = malloc(KVG_MESSAGE_MAX + 1), *buf = malloc(KVG_MESSAGE_MAX);
	int fds[1];
	unsigned n;

	memset(data, 'd', KVG_MESSAGE_MAX + 1);
	assert_int_equal(wire_send(p->a, data, KVG_MESSAGE_MAX + 1, NULL, 0), -EMSGSIZE);
	assert_int_equal(wire_send(p->a, data, 0, NULL, 0), -EMSGSIZE);
	fcntl(p->a, F_SETFL,
		O_NONBLOCK); /* the largest fits an empty socket with the kernel's defaults */
	assert_int_equal(wire_send(p->a, data, KVG_MESSAGE_MAX, NULL, 0), 0);
	assert_int_equal(wire_recv(p->b, buf, KVG_MESSAGE_MAX, fds, 1, &n), KVG_MESSAGE_MAX);
	assert_memory_equal(buf, data, KVG_MESSAGE_MAX);
	free(data);
	free(buf);
}

static void test_would_block(void **state)
{
	struct pair *p = *state;
	unsigned sent = 0, n = 77;
	char buf[4096] = {0};
	int fds[1], r;

	fcntl(p->a, F_SETFL, O_NONBLOCK);
	fcntl(p->b, F_SETFL, O_NONBLOCK);
	assert_int_equal(wire_recv(p->b, buf, sizeof(buf), fds, 1, &n), -EAGAIN);
	assert_int_equal(n, 77);
	while ((r = wire_send(p->a, buf, sizeof(buf), &p->a, 1)) == 0)
		assert_true(++sent < 100000);
	assert_int_equal(r, -EAGAIN);
	while (sent--) {
		assert_int_equal(wire_recv(p->b, buf, sizeof(buf), fds, 1, &n), sizeof(buf));
		close(fds[0]);
	}
	assert_int_equal(wire_recv(p->b, buf, sizeof(buf), fds, 1, &n), -EAGAIN);
}

static void test_closed_peer(void **state)
{
	struct pair *p = *state;
	char buf[8];
	int fds[1];
	unsigned n = 77;

	assert_int_equal(wire_send(p->b, "last", 4, NULL, 0), 0);
	close(p->b);
	p->b = -1;
	assert_int_equal(
		wire_recv(p->a, buf, sizeof(buf), fds, 1, &n), 4); /* what was sent still comes */
	assert_int_equal(wire_recv(p->a, buf, sizeof(buf), fds, 1, &n), 0);
	assert_int_equal(n, 0);
	assert_int_equal(wire_send(p->a, "x", 1, NULL, 0), -EPIPE); /* and no SIGPIPE */
}

static void test_peer_closed_unread(void **state)
{
	struct pair *p = *state;
	char buf[8];
	int fds[1];
	unsigned n;

	assert_int_equal(wire_send(p->a, "unread", 6, &p->a, 1), 0);
	close(p->b);
	p->b = -1;
	assert_int_equal(wire_recv(p->a, buf, sizeof(buf), fds, 1, &n), -ECONNRESET);
}

static void test_bad_fd(void **state)
{
	struct pair *p = *state;
	int bad = -1;
	char buf[8];
	int fds[1];
	unsigned n;

	assert_int_equal(wire_send(p->a, "x", 1, &bad, 1), -EBADF);
	assert_int_equal(wire_send(-1, "x", 1, NULL, 0), -EBADF);
	assert_int_equal(wire_recv(-1, buf, sizeof(buf), fds, 1, &n), -EBADF);
}

#define WITH_PAIR(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_the_counter_counts),
		WITH_PAIR(test_message),
		WITH_PAIR(test_fds),
		WITH_PAIR(test_too_many_fds_for_the_receiver),
		WITH_PAIR(test_truncated_message),
		WITH_PAIR(test_more_fds_than_a_message_holds),
		WITH_PAIR(test_empty_message_with_fds),
		WITH_PAIR(test_sizes),
		WITH_PAIR(test_would_block),
		WITH_PAIR(test_closed_peer),
		WITH_PAIR(test_peer_closed_unread),
		WITH_PAIR(test_bad_fd),
	};

	signal(SIGPIPE, SIG_DFL); /* whatever started this may have it ignored */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
