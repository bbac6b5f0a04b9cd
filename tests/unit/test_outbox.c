/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/serve/outbox.h"
#include "proto/wire.h"

static struct counters *counters;
static struct account account;
static int sv[2];

static int setup(void **state)
{
	struct counter_scope *scope;

	(void)state;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sv) < 0 ||
		counters_new(&counters) || counters_scope(counters, "t", "", &scope))
		return -1;
	account_init(&account, "t", scope);
	account_set_limit(&account, ACCOUNT_REPLIES, 1 << 30);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	account_fini(&account);
	counters_free(counters);
	close(sv[0]);
	close(sv[1]);
	return 0;
}

static void expect(uint32_t n)
{
	int fds[KVG_MESSAGE_FDS_MAX];
	uint32_t got[64];
	unsigned n_fds;

	assert_true(wire_recv(sv[1], got, sizeof(got), fds, KVG_MESSAGE_FDS_MAX, &n_fds) ==
		sizeof(got));
	assert_int_equal(got[0], n);
	assert_int_equal(n_fds, n % 2); /* the odd ones brought a memfd of their number's size */
	if (n_fds) {
		struct stat st;

		assert_int_equal(fstat(fds[0], &st), 0);
		assert_int_equal(st.st_size, n);
		close(fds[0]);
	}
}

static int send_number(struct outbox *o, uint32_t n, bool *waiting)
{
	uint32_t message[64] = {n};
	int r, fd = -1;

	if (n % 2) {
		fd = memfd_create("n", MFD_CLOEXEC);
		assert_int_equal(ftruncate(fd, n), 0);
	}
	r = outbox_send(o, &account, message, sizeof(message), &fd, n % 2, waiting);
	if (fd >= 0)
		close(fd); /* what waits has its own */
	return r;
}

/* In order, with their fds, whether they had to wait or not. */
static void test_order(void **state)
{
	bool waiting = false;
	uint32_t sent = 0, received = 0;
	struct outbox o;

	(void)state;
	outbox_init(&o, sv[0]);
	while (sent < 600)
		assert_int_equal(send_number(&o, sent++, &waiting), 0);
	assert_non_null(o.first);
	assert_true(account.used[ACCOUNT_REPLIES] > 0);
	while (received < 100)
		expect(received++);
	while (sent < 700) /* there is room again; but behind those that wait */
		assert_int_equal(send_number(&o, sent++, &waiting), 0);
	do {
		assert_int_equal(outbox_flush(&o, &waiting), 0);
		expect(received++);
	} while (received < sent);
	assert_int_equal(outbox_flush(&o, &waiting), 0);
	assert_false(waiting);
	assert_int_equal(account.used[ACCOUNT_REPLIES], 0);
	outbox_fini(&o);
}

static void test_bounded(void **state)
{
	struct outbox o;
	bool waiting = false;
	uint32_t n = 0;
	int r;

	(void)state;
	outbox_init(&o, sv[0]);
	while ((r = send_number(&o, n, &waiting)) == 0 && n < 100000)
		n += 2;
	assert_int_equal(r, -ENOBUFS);
	assert_true(account.used[ACCOUNT_REPLIES] <= OUTBOX_BYTES_MAX);
	outbox_fini(&o);
	assert_int_equal(account.used[ACCOUNT_REPLIES], 0);
	account_set_limit(&account, ACCOUNT_REPLIES,
		5000); /* the tenant's bound comes before the session's */
	outbox_init(&o, sv[0]);
	while ((r = send_number(&o, n, &waiting)) == 0 && n < 100000)
		n += 2;
	assert_int_equal(r, -EDQUOT);
	outbox_fini(&o);
}

static unsigned offer_until_lost(struct outbox *o)
{
	uint32_t message[64] = {0};
	bool waiting = false;
	unsigned n = 0;
	int r;

	while ((r = outbox_offer(o, &account, message, sizeof(message), &waiting)) == 0)
		n++;
	assert_int_equal(r, -ENOBUFS);
	return n;
}

/* What may be lost takes half of the room at most, and is no refusal of a quota. */
static void test_offers(void **state)
{
	struct outbox o, other;
	bool waiting = false;
	uint32_t n = 0;
	int pair[2], r;

	(void)state;
	outbox_init(&o, sv[0]);
	offer_until_lost(&o);
	assert_in_range(
		account.used[ACCOUNT_REPLIES], OUTBOX_BYTES_MAX / 2 - 1000, OUTBOX_BYTES_MAX / 2);
	assert_int_equal(offer_until_lost(&o), 0);
	while ((r = send_number(&o, n, &waiting)) == 0 && n < 100000)
		n += 2;
	assert_int_equal(r, -ENOBUFS);
	assert_true(account.used[ACCOUNT_REPLIES] > OUTBOX_BYTES_MAX - 1000);
	/* the tenant's half: with what the first one has waiting, nothing is left of it */
	account_set_limit(&account, ACCOUNT_REPLIES, 2 * OUTBOX_BYTES_MAX - 2000);
	assert_int_equal(
		socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair), 0);
	outbox_init(&other, pair[0]);
	assert_true(offer_until_lost(&other) > 0); /* the socket's own room is nobody's */
	assert_null(other.first);
	assert_int_equal(send_number(&other, 0, &waiting), 0);
	assert_non_null(other.first);
	assert_int_equal(counter_get(account.scope, COUNTER_QUOTA_REFUSALS, 0), 0);
	outbox_fini(&other);
	outbox_fini(&o);
	close(pair[0]);
	close(pair[1]);
}

static void test_hung_up(void **state)
{
	struct outbox o;
	bool waiting = false;

	(void)state;
	outbox_init(&o, sv[0]);
	shutdown(sv[1], SHUT_RDWR);
	assert_int_equal(send_number(&o, 0, &waiting), -EPIPE);
	assert_int_equal(outbox_offer(&o, &account, "x", 1, &waiting), -EPIPE);
	outbox_fini(&o);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_order, setup, teardown),
		cmocka_unit_test_setup_teardown(test_bounded, setup, teardown),
		cmocka_unit_test_setup_teardown(test_offers, setup, teardown),
		cmocka_unit_test_setup_teardown(test_hung_up, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
