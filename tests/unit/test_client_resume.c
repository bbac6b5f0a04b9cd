/* SPDX-License-Identifier: Apache-2.0 */
/* The daemon comes and goes; what is pinned stays, and a session is taken up again where the next daemon has it. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
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

#define SESSION 4711u

static struct fake fake;
static unsigned fds_before;

/* What the daemon has of an older session. */
static enum {
	HAS_IT,
	HAS_NOTHING,
	HAS_ANOTHER_INDEX
} next_daemon;
static uint64_t resumed;
static int another_index = -1;

static bool restarted(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds)
{
	bool answers = fake_fill_usual(f, q, reply, fds, n_fds);

	if (q->body_case == KVGATE__V1__REQUEST__BODY_COMMIT)
		return false; /* it was still packing */
	if (q->body_case != KVGATE__V1__REQUEST__BODY_HELLO)
		return answers;
	reply->hello->session = SESSION;
	if (!q->hello->resume)
		return true;
	resumed = q->hello->resume;
	if (next_daemon == HAS_NOTHING) {
		reply->code = KVG_CODE_NO_SESSION;
		reply->body_case = KVGATE__V1__REPLY__BODY__NOT_SET;
		*n_fds = 0;
	} else if (next_daemon == HAS_ANOTHER_INDEX) {
		fds[0] = another_index;
	}
	return true;
}

static int setup(void **state)
{
	(void)state;
	fds_before = fake_count_fds();
	fake_init(&fake);
	fake.handler = restarted;
	next_daemon = HAS_IT;
	resumed = 0;
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	fake_fini(&fake);
	assert_int_equal(fake_count_fds(), fds_before);
	return 0;
}

static struct kvg_client *open_client(int resume_ms)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c;

	o.socket = fake.socket;
	o.resume_ms = resume_ms;
	assert_int_equal(kvg_open(&o, &c), 0);
	return c;
}

static struct kvg_layout *open_layout(struct kvg_client *c)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	const float edges[] = {.5f, .25f};
	const uint8_t digest[32] = {1};
	struct kvg_layout *l;

	o.model = "fake";
	o.layers = FAKE_LAYERS;
	o.heads = FAKE_HEADS;
	o.k_dim = FAKE_K_DIM;
	o.v_dim = FAKE_V_DIM;
	o.dtype = KVG_DTYPE_BF16;
	o.block_tokens = FAKE_TOKENS;
	o.gate_digest = digest;
	o.edges = edges;
	o.n_edges = FAKE_PLANES - 1;
	assert_int_equal(kvg_layout(c, &o, &l), 0);
	return l;
}

/* Another daemon adopts the index: the old connection ends, the epoch grows. */
static void restart(void)
{
	unsigned hellos = fake.n_requests[KVGATE__V1__REQUEST__BODY_HELLO];

	atomic_fetch_add(&fake.index->epoch, 1);
	shutdown(fake.conn, SHUT_RDWR);
	for (int i = 0; i < 2000 && fake.conn >= 0; i++)
		usleep(1000);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_HELLO], hellos);
}

static void count_events(void *userdata, const struct kvg_event *e)
{
	(void)e;
	++*(unsigned *)userdata;
}

static void took(
	void *userdata, int64_t ticket, int error, const struct kvg_commit_result *r, size_t n)
{
	(void)ticket, (void)r, (void)n;
	*(int *)userdata = error;
}

/* Pins, layouts and pointers are as they were; lookups say -ENOTCONN until somebody asks for the session. */
static void test_resume(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct kvg_plane before[KVG_PLANES_MAX], after[KVG_PLANES_MAX];
	struct kvg_pin pin, other;
	struct kvg_key key;
	unsigned events = 0;

	(void)state;
	fake_key(1, &key);
	fake_put(&fake, &key, 1, 7);
	assert_int_equal(kvg_subscribe(c, 2, count_events, &events), 0);
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), 0);
	assert_int_equal(kvg_planes(l, &pin, before), FAKE_PLANES);
	assert_int_equal(kvg_resume(c), 0); /* nothing to do */
	assert_int_equal(resumed, 0);
	restart();
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &other), -ENOTCONN);
	assert_int_equal(kvg_planes(l, &pin, after), FAKE_PLANES); /* it is pinned, daemon or not */
	assert_int_equal(kvg_resume(c), 0);
	assert_int_equal(resumed, SESSION);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_REGISTER_LAYOUT], 2);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_SUBSCRIBE], 2);
	assert_int_equal(kvg_planes(l, &pin, after), FAKE_PLANES);
	for (int i = 0; i < (int)FAKE_PLANES; i++)
		assert_ptr_equal(before[i].k, after[i].k);
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &other), 0);
	assert_int_not_equal(other.index, pin.index);
	kvg_unpin(c, &pin, 1);
	kvg_unpin(c, &other, 1);
	for (uint32_t i = 0; i < FAKE_PINS; i++)
		assert_int_equal(c->pins.pin[i], 0);
	kvg_close(c);
}

/* Who asked for it notices nothing, in lookups or in calls. */
static void test_by_itself(void **state)
{
	struct kvg_client *c = open_client(5000);
	struct kvg_layout *l = open_layout(c);
	struct kvg_stage stage;
	struct kvg_key key;
	struct kvg_pin pin;

	(void)state;
	fake_key(1, &key);
	fake_put(&fake, &key, 1, 7);
	restart();
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), 0);
	assert_int_equal(resumed, SESSION);
	kvg_unpin(c, &pin, 1);
	resumed = 0;
	restart();
	assert_int_equal(kvg_prefix_lookup(l, &key, 1), 1);
	assert_int_equal(resumed, SESSION);
	resumed = 0;
	restart();
	while (kvg_dispatch(c) == 0) /* notices */
		usleep(1000);
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &stage), 1);
	assert_int_equal(resumed, SESSION);
	memset(stage.kv, 1, stage.kv_bytes);
	assert_int_equal(kvg_abort(c, &stage, 1), 0);
	kvg_close(c);
}

/* Stages are gone, but whoever writes to one meanwhile writes to memory; commits in flight are told. */
static void test_what_is_lost(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct kvg_commit item = {0};
	struct kvg_stage old, stage;
	struct pollfd p;
	int error = 0;

	(void)state;
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &old), 1);
	memset(old.kv, 1, old.kv_bytes);
	item.stage = &old;
	p = (struct pollfd){.fd = kvg_fd(c), .events = POLLIN};
	assert_true(kvg_commit_start(c, &item, 1, took, &error) > 0);
	while (!fake.n_requests[KVGATE__V1__REQUEST__BODY_COMMIT])
		usleep(1000);
	restart();
	assert_int_equal(kvg_resume(c), 0);
	memset(old.kv, 2, old.kv_bytes);
	assert_int_equal(kvg_dispatch(c), 0);
	assert_int_equal(error, -ECONNRESET);
	assert_int_equal(kvg_stage(l, KVG_INPUT_SCORES, 1, &stage), 1);
	memset(stage.kv, 3, stage.kv_bytes);
	assert_int_equal(*(uint8_t *)old.kv, 2);
	assert_int_equal(poll(&p, 1, 0), 0);
	shutdown(fake.conn, SHUT_RDWR);
	assert_int_equal(poll(&p, 1, 5000), 1); /* the fd looks at the new connection */
	kvg_close(c);
}

/* No daemon, one that has nothing, one with another index. */
static void test_refused(void **state)
{
	struct kvg_client *c = open_client(0);
	struct kvg_layout *l = open_layout(c);
	struct kvg_key key;
	struct kvg_pin pin;
	uint8_t copy[4096];

	(void)state;
	fake_key(1, &key);
	fake_put(&fake, &key, 1, 7);
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), 0);
	next_daemon = HAS_NOTHING;
	restart();
	assert_int_equal(kvg_resume(c), -ESTALE);
	assert_int_equal(kvg_resume(c), -ESTALE);
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), -ENOTCONN);
	kvg_close(c);

	c = open_client(5000);
	l = open_layout(c);
	another_index =
		fake_memfd(fake.index->total_bytes, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	memcpy(copy, fake.index, sizeof(copy));
	copy[offsetof(struct kvg_shm_index, instance)] ^= 1;
	((struct kvg_shm_index *)(void *)copy)->crc = index_crc((const void *)copy);
	assert_int_equal(pwrite(another_index, copy, sizeof(copy), 0), sizeof(copy));
	{
		int ro = fake_read_only(another_index);

		close(another_index);
		another_index = ro;
	}
	next_daemon = HAS_ANOTHER_INDEX;
	restart();
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), -ENOTCONN);
	assert_int_equal(kvg_resume(c), -ESTALE);
	assert_non_null(strstr(kvg_last_error(c), "open a new one"));
	kvg_close(c);
	close(another_index);

	c = open_client(0);
	unlink(fake.socket);
	restart();
	assert_int_equal(kvg_resume(c), -ENOENT);
	assert_int_equal(kvg_resume(c), -ENOENT); /* and again, when there may be one */
	kvg_close(c);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_resume, setup, teardown),
		cmocka_unit_test_setup_teardown(test_by_itself, setup, teardown),
		cmocka_unit_test_setup_teardown(test_what_is_lost, setup, teardown),
		cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
