/* SPDX-License-Identifier: Apache-2.0 */
/* Who is at the other end: user, process, and every one of its groups, however many there are. */
#include <errno.h>
#include <grp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/serve/peer.h"

static int sv[2];

static void look(struct peer *p)
{
	assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv), 0);
	assert_int_equal(peer_init(p, sv[0]), 0);
}

static void done(struct peer *p)
{
	peer_fini(p);
	peer_fini(p); /* as often as one likes */
	close(sv[0]);
	close(sv[1]);
}

static void test_myself(void **state)
{
	struct peer p;

	(void)state;
	look(&p);
	assert_int_equal(p.uid, getuid());
	assert_int_equal(p.pid, getpid());
	assert_int_equal(p.gids[0], getgid());
	assert_int_equal(p.n_gids, 1 + getgroups(0, NULL));
	done(&p);
}

static void test_no_socket(void **state)
{
	struct peer p;

	(void)state;
	assert_int_equal(peer_init(&p, -1), -EBADF);
	peer_fini(&p);
}

static void has_groups(size_t n)
{
	static gid_t groups[PEER_GROUPS_MAX];
	struct peer p;

	for (size_t i = 0; i < n; i++)
		groups[i] = 100000 + (gid_t)i;
	assert_int_equal(setgroups(n, groups), 0);
	look(&p);
	assert_int_equal(p.n_gids, n + 1);
	assert_int_equal(p.gids[0], getgid());
	for (size_t i = 0; i < n; i++)
		assert_int_equal(p.gids[1 + i], groups[i]);
	done(&p);
}

static void test_many_groups(void **state)
{
	gid_t *saved;
	int n;

	(void)state;
	if (geteuid())
		skip(); /* only root may choose its groups */
	n = getgroups(0, NULL);
	saved = calloc((size_t)n + 1, sizeof(*saved));
	assert_int_equal(getgroups(n, saved), n);
	has_groups(0);
	has_groups(1);
	has_groups(127);
	has_groups(128);
	has_groups(129);
	has_groups(3000);
	has_groups(PEER_GROUPS_MAX);
	assert_int_equal(setgroups((size_t)n, saved), 0);
	free(saved);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_myself),
		cmocka_unit_test(test_no_socket),
		cmocka_unit_test(test_many_groups),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
