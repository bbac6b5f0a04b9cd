/* SPDX-License-Identifier: Apache-2.0 */
/* From connect to the end: what opens a session, what ends it, and that nothing of it is left. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/unit/serve_fixture.h"

static struct serving s;

static int start(void **state)
{
	(void)state;
	serving_start(&s, "[limits]\nsessions = 3\npins = 100\nstaging_bytes = 1MiB\n");
	return 0;
}

static int stop(void **state)
{
	(void)state;
	serving_settle(&s);
	assert_int_equal(counter_get(s.scope, COUNTER_SESSIONS, 0), 0);
	assert_int_equal(counter_get(s.scope, COUNTER_STAGING, 0), 0);
	serving_stop(&s);
	return 0;
}

static void test_hello(void **state)
{
	REQUEST(q, hello, Hello, HELLO, HELLO);
	const struct kvg_shm_pins *pins;
	struct client c;
	struct answer a;
	struct stat st;

	(void)state;
	client_connect(&c, &s);
	q_body.version_min = 1;
	q_body.version_max = 7;
	q_body.features = ~0ull;
	q_body.pins = 40;
	client_ask(&c, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	assert_int_equal(a.m->hello->version, 1);
	assert_int_equal(a.m->hello->features, 0);
	assert_int_equal(a.m->hello->pins, 40);
	assert_int_equal(a.m->hello->staging_bytes, 1 << 20);
	assert_true(a.m->hello->admin); /* the daemon's own user */
	assert_int_equal(a.n_fds, 2);
	/* the index cannot be written, the pin page can, and neither changes its size */
	assert_int_equal(fcntl(a.fds[0], F_GETFL) & O_ACCMODE, O_RDONLY);
	assert_int_equal(fcntl(a.fds[1], F_GETFL) & O_ACCMODE, O_RDWR);
	assert_int_equal(ftruncate(a.fds[1], 1), -1);
	assert_int_equal(ftruncate(a.fds[1], 1 << 24), -1);
	assert_int_equal(fstat(a.fds[1], &st), 0);
	pins = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, a.fds[1], 0);
	assert_ptr_not_equal(pins, MAP_FAILED);
	assert_memory_equal(pins->magic, KVG_PIN_MAGIC, 8);
	assert_int_equal(pins->n_pins, 40);
	assert_true(pins->total_bytes <= (uint64_t)st.st_size);
	assert_true(pins->touch_off >= pins->pins_off + 40 * 8);
	assert_int_equal(pins->total_bytes, pins->touch_off + pins->n_touch * 8);
	munmap((void *)(uintptr_t)pins, (size_t)st.st_size);
	answer_free(&a);
	q_body.pins = 0;
	assert_int_equal(client_code(&c, &q), KVG_CODE_BAD_MESSAGE); /* twice */
	client_receive(&c, &a);
	assert_null(a.m); /* and that was the end */
	client_hangup(&c);
}

static void test_control(void **state)
{
	struct client c;

	(void)state;
	client_connect(&c, &s);
	client_hello(&c, true);
	assert_int_equal(counter_get(s.scope, COUNTER_SESSIONS, 0), 1);
	client_hangup(&c);
	assert_int_equal(counter_get(s.scope, COUNTER_RECLAIMED, 0), 0); /* it held nothing */
}

static void ends_with(struct client *c, Kvgate__V1__Request *q, int code)
{
	struct answer a;

	assert_int_equal(client_code(c, q), code);
	client_receive(c, &a);
	assert_null(a.m);
	client_hangup(c);
}

static void test_bad_greetings(void **state)
{
	REQUEST(hello, hello, Hello, HELLO, HELLO);
	REQUEST(stat_, stat, Stat, STAT, STAT);
	Kvgate__V1__Request empty = KVGATE__V1__REQUEST__INIT;
	struct counter_scope *nobody;
	struct client c;

	(void)state;
	client_connect(&c, &s);
	ends_with(&c, &stat_, KVG_CODE_NOT_HELLO);
	client_connect(&c, &s);
	ends_with(&c, &hello, KVG_CODE_BAD_VERSION); /* 0 to 0 */
	client_connect(&c, &s);
	hello_body.version_min = 2;
	hello_body.version_max = 9;
	ends_with(&c, &hello, KVG_CODE_BAD_VERSION);
	client_connect(&c, &s);
	hello_body.version_min = 1;
	hello_body.client = (char *)(uintptr_t) "bell \a";
	ends_with(&c, &hello, KVG_CODE_BAD_ARGUMENT);
	client_connect(&c, &s);
	ends_with(&c, &empty, KVG_CODE_BAD_MESSAGE);
	/* whoever is not known by a hello counts for nobody */
	assert_int_equal(counters_scope(s.counters, "", "", &nobody), 0);
	assert_int_equal(counter_get(nobody, COUNTER_BAD_MESSAGES, 0), 4);
	assert_int_equal(counter_get(s.scope, COUNTER_BAD_MESSAGES, 0), 0);
	assert_null(cache_tenant_next(s.cache, NULL)); /* nor has it made a tenant */
}

/* Bytes that no client sends: the session ends, the next one is served. */
static void test_garbage(void **state)
{
	struct client c;
	struct answer a;
	uint8_t junk[300];

	(void)state;
	srand(3);
	for (int round = 0; round < 300; round++) {
		size_t n = 1 + (size_t)rand() % sizeof(junk);

		client_connect(&c, &s);
		if (round % 2)
			client_hello(&c, true);
		for (size_t i = 0; i < n; i++)
			junk[i] = (uint8_t)rand();
		assert_int_equal(wire_send(c.sock, junk, n, NULL, 0), 0);
		do {
			client_receive(&c, &a);
			if (a.m)
				assert_int_not_equal(a.m->code, KVG_CODE_OK);
			else
				break;
			answer_free(&a);
		} while (1);
		close(c.sock);
	}
	client_connect(&c, &s);
	client_hello(&c, false);
	client_hangup(&c);
}

/* Why a session ended is there to be read, also when the daemon did not read all that the client had to say. */
static void test_unread_at_the_end(void **state)
{
	REQUEST(stat_, stat, Stat, STAT, STAT);
	Kvgate__V1__Request empty = KVGATE__V1__REQUEST__INIT;
	struct client c;
	struct answer a;
	int fd, before, after;

	(void)state;
	client_connect(&c, &s); /* the tenant has its own */
	client_hello(&c, true);
	client_hangup(&c);
	fd = dup(0);
	before = dup(0);
	close(before);
	client_connect(&c, &s);
	client_hello(&c, true);
	client_send(&c, &stat_);
	client_send(&c, &empty);
	for (int i = 0; i < 5; i++)
		client_send_fds(&c, &stat_, &fd, 1);
	serving_settle(&s);
	client_receive(&c, &a);
	assert_non_null(a.m);
	assert_int_equal(a.m->code, KVG_CODE_OK);
	answer_free(&a);
	client_receive(&c, &a);
	assert_non_null(a.m);
	assert_int_equal(a.m->code, KVG_CODE_BAD_MESSAGE);
	answer_free(&a);
	client_receive(&c, &a);
	assert_null(a.m);
	client_hangup(&c);
	after = dup(0); /* the lowest that is free: what came with all that is closed */
	assert_int_equal(after, before);
	close(after);
	close(fd);
}

/* Where no request can be named, the last message has id 0 and says why. */
static void ends_unasked(struct client *c, int code, const char *text)
{
	struct answer a;

	client_receive(c, &a);
	assert_non_null(a.m);
	assert_int_equal(a.m->id, 0);
	assert_int_equal(a.m->body_case, KVGATE__V1__REPLY__BODY__NOT_SET);
	assert_int_equal(a.m->code, code);
	assert_non_null(strstr(a.m->error, text));
	answer_free(&a);
	client_receive(c, &a);
	assert_null(a.m);
	client_hangup(c);
}

static void send_with_fds(int sock, unsigned n)
{
	char data[] = "x", control[CMSG_SPACE(253 * sizeof(int))] = {0};
	struct iovec iov = {data, 1};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
	struct cmsghdr *cmsg = (struct cmsghdr *)control;

	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(n * sizeof(int));
	msg.msg_controllen = CMSG_SPACE(n * sizeof(int));
	for (unsigned i = 0; i < n; i++)
		memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &sock, sizeof(int));
	assert_int_equal(sendmsg(sock, &msg, 0), 1);
}

static void test_told_why(void **state)
{
	static uint8_t longer[KVG_MESSAGE_MAX + 1];
	struct client c;

	(void)state;
	client_connect(&c, &s);
	client_hello(&c, true);
	assert_int_equal(wire_send(c.sock, "\xff\xff", 2, NULL, 0), 0);
	ends_unasked(&c, KVG_CODE_BAD_MESSAGE, "cut short");
	client_connect(&c, &s);
	client_hello(&c, true);
	assert_int_equal(send(c.sock, longer, sizeof(longer), 0), sizeof(longer));
	ends_unasked(&c, KVG_CODE_BAD_MESSAGE, "longer than 131072 bytes");
	client_connect(&c, &s);
	client_hello(&c, true);
	send_with_fds(c.sock, KVG_MESSAGE_FDS_MAX + 1);
	ends_unasked(&c, KVG_CODE_BAD_FDS, "than the 64 of a message");
	client_connect(&c, &s); /* and before hello as after it */
	send_with_fds(c.sock, 100);
	ends_unasked(&c, KVG_CODE_BAD_FDS, "than the 64 of a message");
}

static void test_fds(void **state)
{
	REQUEST(q, stat, Stat, STAT, STAT);
	struct client c;
	struct answer a;
	int fds[2] = {memfd_create("a", MFD_CLOEXEC), memfd_create("b", MFD_CLOEXEC)}, before,
	    after;

	(void)state;
	client_connect(&c, &s);
	client_hangup(&c);
	before = dup(0);
	close(before);
	for (unsigned declared = 0; declared < 4; declared++)
		for (unsigned sent = 0; sent < 3; sent++) {
			if (!declared && !sent)
				continue;
			client_connect(&c, &s);
			client_hello(&c, true);
			q.fds = declared;
			client_send_fds(&c, &q, fds, sent);
			client_receive(&c, &a);
			assert_int_equal(a.m->code, KVG_CODE_BAD_FDS);
			answer_free(&a);
			client_receive(&c, &a);
			assert_null(a.m);
			client_hangup(&c);
		}
	after = dup(0); /* the lowest number that is free: none was left open */
	close(after);
	assert_int_equal(after, before);
	close(fds[0]);
	close(fds[1]);
}

static void test_session_quota(void **state)
{
	REQUEST(q, hello, Hello, HELLO, HELLO);
	struct client c[3], more;
	struct answer a;

	(void)state;
	q_body.version_min = q_body.version_max = 1;
	for (int i = 0; i < 3; i++) {
		client_connect(&c[i], &s);
		client_hello(&c[i], i == 1);
	}
	client_connect(&more, &s);
	client_ask(&more, &q, &a);
	assert_int_equal(a.m->code, KVG_CODE_QUOTA);
	assert_non_null(strstr(a.m->error, "3 of 3 sessions; raise sessions in kvgated.conf"));
	answer_free(&a);
	client_receive(&more, &a);
	assert_null(a.m);
	client_hangup(&more);
	client_hangup(&c[1]);
	client_connect(&more, &s);
	client_hello(&more, false);
	client_hangup(&more);
	client_hangup(&c[0]);
	client_hangup(&c[2]);
}

/* Who connects and says nothing uses up no session, and not every file descriptor either. */
static void test_silent(void **state)
{
	struct client c[80], honest;
	struct answer a;
	int open = 0;

	(void)state;
	for (int i = 0; i < 80; i++)
		client_connect(&c[i], &s);
	serving_settle(&s);
	for (int i = 0; i < 80; i++) {
		char byte;

		open += recv(c[i].sock, &byte, 1, 0) < 0; /* nothing to read, and no end of file */
	}
	assert_int_equal(open, 64);
	assert_null(cache_tenant_next(s.cache, NULL));
	client_connect(&honest, &s);
	client_receive(&honest, &a); /* who is refused is told why */
	assert_int_equal(a.m->id, 0);
	assert_int_equal(a.m->code, KVG_CODE_QUOTA);
	assert_non_null(strstr(a.m->error, "64 connections that have not said hello"));
	answer_free(&a);
	client_hangup(&honest);
	for (int i = 0; i < 80; i++)
		close(c[i].sock);
	serving_settle(&s);
	client_connect(&honest, &s);
	client_hello(&honest, false);
	client_hangup(&honest);
}

/* Held: stages, pins through the socket, a commit in flight. The connection ends, and all of it is back. */
static void test_end_gives_back(void **state)
{
	REQUEST(acquire, acquire, Acquire, ACQUIRE, ACQUIRE);
	REQUEST(purge, purge, Purge, PURGE, PURGE);
	ProtobufCBinaryData key;
	uint8_t bytes[KVG_KEY_BYTES];
	struct client c, other;
	struct answer a;
	uint64_t ids[20];
	uint32_t layout;

	(void)state;
	client_connect(&other, &s);
	client_hello(&other, true);
	client_connect(&c, &s);
	client_hello(&c, false);
	layout = client_layout(&c, "m");
	client_put(&c, layout, 1);
	memset(bytes, 1, sizeof(bytes));
	key = (ProtobufCBinaryData){.len = sizeof(bytes), .data = bytes};
	acquire_body.layout = layout;
	acquire_body.keys = &key;
	acquire_body.n_keys = 1;
	for (int i = 0; i < 5; i++) {
		client_ask(&c, &acquire, &a);
		assert_int_equal(a.m->acquire->blocks[0]->code, KVG_CODE_OK);
		answer_free(&a);
	}
	client_ask(&other, &purge, &a);
	assert_int_equal(a.m->purge->pinned, 1);
	answer_free(&a);
	assert_int_equal(client_stage(&c, layout, 20, ids), 20);
	assert_true(counter_get(s.scope, COUNTER_STAGING, 0) >= 20 * 4096);
	client_send_commit(&c, ids[0], 2);
	client_hangup(&c);
	assert_int_equal(counter_get(s.scope, COUNTER_STAGING, 0), 0);
	assert_int_equal(counter_get(s.scope, COUNTER_SESSIONS, 0), 1);
	assert_int_equal(counter_get(s.scope, COUNTER_RECLAIMED, 0), 1);
	client_ask(&other, &purge, &a);
	assert_int_equal(a.m->purge->pinned, 0);
	assert_true(a.m->purge->blocks >= 1);
	answer_free(&a);
	client_hangup(&other);
}

/* Sends and never reads, until it is cut off. */
static void never_read(struct client *c, struct client *honest)
{
	REQUEST(q, stat, Stat, STAT, STAT);
	uint8_t buf[64];
	size_t n;
	int r = 0;

	q.id = 5;
	n = kvgate__v1__request__pack(&q, buf);
	for (int i = 0; i < 200000 && (r == 0 || r == -EAGAIN); i++) {
		r = wire_send(c->sock, buf, n, NULL, 0);
		assert_int_equal(loop_run_once(s.loop, 0), 0);
		if (i % 1000 == 0)
			assert_int_equal(client_code(honest, &q), KVG_CODE_OK);
	}
	assert_true(r == -EPIPE || r == -ECONNRESET);
}

static size_t lines_with(int file, const char *text)
{
	static char log[65536];
	ssize_t n = pread(file, log, sizeof(log) - 1, 0);
	size_t lines = 0;

	assert_true(n >= 0);
	log[n] = '\0';
	for (const char *p = log; (p = strstr(p, text)); p++)
		lines++;
	return lines;
}

/* Cut off, with its replies, and the others are served meanwhile; however often it does so, the log stays short. */
static void test_never_reads(void **state)
{
	int file = memfd_create("log", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
	struct client c, honest;

	(void)state;
	client_connect(&honest, &s);
	client_hello(&honest, true);
	dup2(file, STDERR_FILENO);
	for (int i = 0; i < 9; i++) {
		client_connect(&c, &s);
		client_hello(&c, true);
		never_read(&c, &honest);
		client_hangup(&c);
	}
	dup2(saved, STDERR_FILENO);
	close(saved);
	assert_int_equal(counter_get(s.scope, COUNTER_CUT_OFF, 0), 9);
	assert_int_equal(lines_with(file, "client cut off"), 4); /* 1, 2, 4, 8 */
	close(file);
	client_hangup(&honest);
}

static void test_reads_late(void **state)
{
	REQUEST(q, stat, Stat, STAT, STAT);
	struct client c;
	struct answer a;
	uint64_t expect;

	(void)state;
	client_connect(&c, &s);
	client_hello(&c, true);
	expect = c.id + 1;
	for (int i = 0; i < 800; i++) { /* more than the socket takes */
		client_send(&c, &q);
		assert_int_equal(loop_run_once(s.loop, 0), 0);
		assert_int_equal(loop_run_once(s.loop, 0), 0);
	}
	for (int i = 0; i < 800; i++) {
		client_receive(&c, &a);
		assert_non_null(a.m);
		assert_int_equal(a.m->id, expect++);
		answer_free(&a);
	}
	client_hangup(&c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_hello, start, stop),
		cmocka_unit_test_setup_teardown(test_control, start, stop),
		cmocka_unit_test_setup_teardown(test_bad_greetings, start, stop),
		cmocka_unit_test_setup_teardown(test_garbage, start, stop),
		cmocka_unit_test_setup_teardown(test_unread_at_the_end, start, stop),
		cmocka_unit_test_setup_teardown(test_told_why, start, stop),
		cmocka_unit_test_setup_teardown(test_fds, start, stop),
		cmocka_unit_test_setup_teardown(test_session_quota, start, stop),
		cmocka_unit_test_setup_teardown(test_silent, start, stop),
		cmocka_unit_test_setup_teardown(test_end_gives_back, start, stop),
		cmocka_unit_test_setup_teardown(test_never_reads, start, stop),
		cmocka_unit_test_setup_teardown(test_reads_late, start, stop),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
