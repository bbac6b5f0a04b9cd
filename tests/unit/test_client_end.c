/* SPDX-License-Identifier: Apache-2.0 */
/* A daemon that ends a connection says why, and the caller is told, at whatever moment it happens. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/lib/client.h"
#include "client_fake.h"

static struct fake fake;
static unsigned fds_before;

static int setup(void **state)
{
	(void)state;
	fds_before = fake_count_fds();
	fake_init(&fake);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fake_fini(&fake);
	assert_int_equal(fake_count_fds(), fds_before);
	return 0;
}

static struct kvg_client *open_client(void)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c;

	o.socket = fake.socket;
	assert_int_equal(kvg_open(&o, &c), 0);
	return c;
}

static void count_counter(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	(void)name, (void)tenant, (void)model, (void)tier, (void)plane, (void)value;
	++*(unsigned *)userdata;
}

/* Why it ends, and then, or instead of an answer, the end. */
static bool says_why_and_goes(struct fake *f, const Kvgate__V1__Request *q,
	Kvgate__V1__Reply *reply, int *fds, unsigned *n_fds)
{
	if (q->body_case != KVGATE__V1__REQUEST__BODY_STAT)
		return fake_fill_usual(f, q, reply, fds, n_fds);
	reply->id = 0;
	reply->code = KVG_CODE_BAD_FDS;
	reply->error = (char *)(uintptr_t) "three of them are too many";
	fake_send(f, reply, NULL, 0);
	shutdown(f->conn, SHUT_RDWR);
	return false;
}

static void test_told_why_it_ends(void **state)
{
	struct kvg_client *c = open_client();
	unsigned n = 0;

	(void)state;
	fake.handler = says_why_and_goes;
	assert_int_equal(kvg_stat(c, 0, count_counter, &n), -EBADMSG);
	assert_string_equal(kvg_last_error(c), "three of them are too many");
	assert_int_equal(kvg_last_code(c), KVG_CODE_BAD_FDS);
	assert_int_equal(kvg_stat(c, 0, count_counter, &n), -EBADMSG); /* once and for all */
	assert_non_null(strstr(kvg_last_error(c), "open a new one"));
	assert_int_equal(kvg_dispatch(c), -EBADMSG);
	kvg_close(c);
	fake.handler = NULL;
}

/* It was said between two calls: the next one finds nobody to send to, and still learns why. */
static void test_told_why_between_calls(void **state)
{
	struct kvg_client *c = open_client();
	Kvgate__V1__Reply end = KVGATE__V1__REPLY__INIT;
	unsigned n = 0;

	(void)state;
	end.code = KVG_CODE_SHUTTING_DOWN;
	end.error = (char *)(uintptr_t) "it was a pleasure";
	fake_send(&fake, &end, NULL, 0);
	shutdown(fake.conn, SHUT_RDWR);
	assert_int_equal(kvg_stat(c, 0, count_counter, &n), -ESHUTDOWN);
	assert_string_equal(kvg_last_error(c), "it was a pleasure");
	assert_int_equal(kvg_last_code(c), KVG_CODE_SHUTTING_DOWN);
	kvg_close(c);
}

/* Instead of an answer to hello. */
static bool refuses(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	(void)f, (void)q, (void)fds, (void)n_fds;
	reply->id = 0;
	reply->code = KVG_CODE_QUOTA;
	return true; /* without a text: that of the code */
}

static void test_told_why_at_hello(void **state)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c;

	(void)state;
	o.socket = fake.socket;
	fake.handler = refuses;
	assert_int_equal(kvg_open(&o, &c), -EDQUOT);
	assert_string_equal(kvg_last_error(NULL), kvg_code_prose(KVG_CODE_QUOTA));
}

/* A code that no refusal has is an end all the same. */
static void test_end_with_an_odd_code(void **state)
{
	struct kvg_client *c = open_client();
	Kvgate__V1__Reply end = KVGATE__V1__REPLY__INIT;

	(void)state;
	end.code = KVG_CODE_EXISTS;
	fake_send(&fake, &end, NULL, 0);
	assert_int_equal(kvg_dispatch(c), -EPROTO);
	kvg_close(c);
	c = open_client();
	end.code = 4000;
	fake_send(&fake, &end, NULL, 0);
	assert_int_equal(kvg_dispatch(c), -EREMOTEIO);
	kvg_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_told_why_it_ends),
		TEST(test_told_why_between_calls),
		TEST(test_told_why_at_hello),
		TEST(test_end_with_an_odd_code),
	};

	return cmocka_run_group_tests_name("client_end", tests, NULL, NULL);
}
