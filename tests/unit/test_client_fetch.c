/* SPDX-License-Identifier: Apache-2.0 */
/* What lies below memory: prefixes that are fetched, acquires that do not wait, and a daemon that brings up what the test says. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/lib/client.h"
#include "client_fake.h"

#define BLOCKS 6u
#define ALL    ((1u << FAKE_PLANES) - 1)

static struct fake fake;
static struct kvg_client *client;
static struct kvg_layout *layout;
static unsigned fds_before;
static struct kvg_key key[BLOCKS + 1]; /* the last one is nowhere */
static uint32_t slot[BLOCKS];

/* ---- the daemon ---- */

static int refuses;       /* this code */
static unsigned readable; /* planes that can be brought up */
static float wanted;
static bool waited;
static int pipe_fd[2];
static bool pipe_sent;
static unsigned acquired, released;

static uint64_t word_of(unsigned block)
{
	return fake.entries[slot[block]].word;
}

static void set_planes(unsigned block, unsigned held, unsigned mapped)
{
	struct kvg_shm_entry *e = &fake.entries[slot[block]];

	atomic_store(&e->word, kvg_word(kvg_word_gen(e->word), 1, (uint8_t)held, (uint8_t)mapped));
}

static float share(unsigned block, unsigned planes)
{
	const struct kvg_shm_entry *e = &fake.entries[slot[block]];
	uint32_t all = 0, there = 0;

	for (unsigned p = 0; p < FAKE_PLANES; p++) {
		all += e->plane[p].pairs;
		there += planes >> p & 1 ? e->plane[p].pairs : 0;
	}
	return (float)there / (float)all;
}

static int acquire_block(unsigned i, const Kvgate__V1__Acquire *m, Kvgate__V1__BlockResult *b)
{
	const float want = m->want > m->min_retention ? m->want : m->min_retention;
	unsigned held = kvg_word_held(word_of(i)), mapped = kvg_word_mapped(word_of(i));

	if (share(i, held) < m->min_retention)
		return KVG_CODE_BELOW_RETENTION;
	b->coming = m->no_wait ? held & ~mapped : 0;
	for (unsigned p = 0; p < FAKE_PLANES && !m->no_wait; p++)
		if (!mapped || share(i, mapped) < want)
			mapped |= held & readable & 1u << p;
	set_planes(i, held, mapped);
	if (!m->no_wait && (!mapped || share(i, mapped) < m->min_retention))
		return KVG_CODE_NO_SPACE;
	b->handle = (uint64_t)kvg_word_gen(word_of(i)) << 32 | slot[i];
	b->held = held;
	b->mapped = mapped;
	b->retention = share(i, held);
	acquired++;
	return KVG_CODE_OK;
}

static bool answer(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply, int *fds,
	unsigned *n_fds)
{
	static Kvgate__V1__AcquireReply m;
	static Kvgate__V1__BlockResult b[KVG_BATCH_MAX], *list[KVG_BATCH_MAX];

	if (q->body_case == KVGATE__V1__REQUEST__BODY_RELEASE)
		released += (unsigned)q->release->n_handles;
	if (q->body_case != KVGATE__V1__REQUEST__BODY_ACQUIRE)
		return fake_fill_usual(f, q, reply, fds, n_fds);
	if (refuses) {
		reply->code = (uint32_t)refuses;
		return true;
	}
	wanted = q->acquire->want;
	waited = !q->acquire->no_wait;
	kvgate__v1__acquire_reply__init(&m);
	for (size_t i = 0; i < q->acquire->n_keys; i++) {
		unsigned block = 0;

		while (block < BLOCKS && memcmp(key[block].b, q->acquire->keys[i].data, 32))
			block++;
		kvgate__v1__block_result__init(&b[i]);
		b[i].code = block == BLOCKS ? KVG_CODE_NOT_FOUND
					    : (uint32_t)acquire_block(block, q->acquire, &b[i]);
		list[i] = &b[i];
		m.n_blocks = i + 1;
		if (b[i].code && q->acquire->prefix)
			break;
	}
	m.blocks = list;
	if (q->acquire->no_wait && !pipe_sent)
		fds[(*n_fds)++] = pipe_fd[0];
	pipe_sent |= q->acquire->no_wait;
	reply->body_case = KVGATE__V1__REPLY__BODY_ACQUIRE;
	reply->acquire = &m;
	return true;
}

static int setup(void **state)
{
	(void)state;
	fds_before = fake_count_fds();
	fake_init(&fake);
	fake.handler = answer;
	refuses = 0;
	readable = ALL;
	acquired = released = 0;
	pipe_sent = false;
	assert_int_equal(pipe2(pipe_fd, O_CLOEXEC | O_NONBLOCK), 0);
	fake_open(&fake, &client, &layout);
	for (unsigned i = 0; i <= BLOCKS; i++)
		fake_key(i, &key[i]);
	for (unsigned i = 0; i < BLOCKS; i++)
		slot[i] = fake_put(&fake, &key[i], i, ALL);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	kvg_close(client);
	fake_fini(&fake);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	assert_int_equal(fake_count_fds(), fds_before);
	return 0;
}

static unsigned requests(void)
{
	return fake.n_requests[KVGATE__V1__REQUEST__BODY_ACQUIRE];
}

static void expect_readable(const struct kvg_pin *pins, size_t n)
{
	struct kvg_plane plane[KVG_PLANES_MAX];

	for (size_t i = 0; i < n; i++) {
		assert_int_equal(pins[i].handle.slot, slot[i]);
		assert_true(kvg_planes(layout, &pins[i], plane) > 0);
		assert_int_equal(kvg_verify(layout, &pins[i]), 0);
	}
}

/* ---- prefixes ---- */

static void test_mapped_needs_no_call(void **state)
{
	struct kvg_pin pins[BLOCKS + 1];

	(void)state;
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS + 1, 1, 1, pins), BLOCKS);
	assert_int_equal(requests(), 0); /* nor does a miss */
	expect_readable(pins, BLOCKS);
	kvg_unpin(client, pins, BLOCKS);
	assert_int_equal(kvg_prefix_fetch(layout, key + BLOCKS, 1, 1, 1, pins), 0);
	assert_int_equal(kvg_prefix_fetch(layout, key, 0, 1, 1, pins), 0);
	assert_int_equal(requests(), 0);
}

static void test_fetches_the_rest(void **state)
{
	struct kvg_pin pins[BLOCKS + 1];

	(void)state;
	set_planes(2, ALL, 0);
	set_planes(4, ALL, 1);
	assert_int_equal(kvg_prefix_pin(layout, key, BLOCKS + 1, 1, pins), 2);
	kvg_unpin(client, pins, 2);
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS + 1, 1, 0, pins), BLOCKS);
	assert_int_equal(requests(), 1);
	assert_true(waited);
	assert_int_equal(acquired, BLOCKS - 2);
	assert_int_equal(released, acquired); /* the pins of the page are what is left */
	expect_readable(pins, BLOCKS);
	assert_int_equal(pins[2].mapped, ALL);
	kvg_unpin(client, pins, BLOCKS);
}

/* What is wanted is brought up, and is not demanded. */
static void test_want(void **state)
{
	const float best = share(0, 1);
	struct kvg_pin pins[BLOCKS];

	(void)state;
	set_planes(0, ALL, 1);
	assert_int_equal(kvg_prefix_fetch(layout, key, 1, 0, best, pins), 1);
	assert_int_equal(requests(), 0); /* as much as is wanted is there */
	assert_int_equal(pins[0].mapped, 1);
	kvg_unpin(client, pins, 1);
	assert_int_equal(kvg_prefix_fetch(layout, key, 1, 0, share(0, 3), pins), 1);
	assert_int_equal(requests(), 1);
	assert_true(wanted == share(0, 3));
	assert_int_equal(pins[0].mapped, 3);
	kvg_unpin(client, pins, 1);
	/* nobody has more of it: no reason to ask */
	set_planes(0, 1, 1);
	assert_int_equal(kvg_prefix_fetch(layout, key, 1, best, 1, pins), 1);
	assert_int_equal(requests(), 1);
	kvg_unpin(client, pins, 1);
	/* what does not come is done without */
	set_planes(0, ALL, 1);
	readable = 3;
	assert_int_equal(kvg_prefix_fetch(layout, key, 2, best, 1, pins), 2);
	assert_int_equal(pins[0].mapped, 3);
	kvg_unpin(client, pins, 2);
	refuses = KVG_CODE_BUSY;
	set_planes(1, ALL, 1);
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS, best, 1, pins), BLOCKS);
	assert_int_equal(pins[1].mapped, 1);
	kvg_unpin(client, pins, BLOCKS);
}

static void test_prefix_ends(void **state)
{
	struct kvg_pin pins[BLOCKS];

	(void)state;
	set_planes(2, ALL, 0);
	readable = 0;
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS, 0, 1, pins), 2);
	assert_int_equal(released, acquired);
	kvg_unpin(client, pins, 2);
	readable = ALL;
	set_planes(2, 1, 0); /* too little, wherever it is */
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS, 1, 1, pins), 2);
	kvg_unpin(client, pins, 2);
	refuses = KVG_CODE_BUSY;
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS, 1, 1, pins), 2);
	kvg_unpin(client, pins, 2);
	assert_int_equal(kvg_prefix_fetch(layout, key + 2, 1, 1, 1, pins), -EBUSY);
	assert_int_equal(kvg_last_code(client), KVG_CODE_BUSY);
	for (unsigned i = 0; i < FAKE_PINS; i++) /* nothing is left behind */
		assert_int_equal(client->pins.pin[i], 0);
}

/* No more is brought up than can be pinned. */
static void test_pins_run_out(void **state)
{
	struct kvg_pin some[FAKE_PINS - 3], pins[BLOCKS];

	(void)state;
	for (unsigned i = 0; i < FAKE_PINS - 3; i++)
		assert_int_equal(kvg_lookup_pin(layout, &key[0], 0, &some[i]), 0);
	for (unsigned i = 0; i < BLOCKS; i++)
		set_planes(i, ALL, 0);
	assert_int_equal(kvg_prefix_fetch(layout, key, BLOCKS, 0, 1, pins), 3);
	assert_int_equal(acquired, 3);
	kvg_unpin(client, pins, 3);
	kvg_unpin(client, some, FAKE_PINS - 3);
}

static void test_from_tokens(void **state)
{
	uint32_t tokens[2 * FAKE_TOKENS];
	struct kvg_key chain[2];
	struct kvg_pin pins[2];

	(void)state;
	for (uint32_t i = 0; i < 2 * FAKE_TOKENS; i++)
		tokens[i] = fake_token(i / FAKE_TOKENS, i % FAKE_TOKENS);
	kvg_key_chain(layout, NULL, tokens, 2 * FAKE_TOKENS, chain);
	for (unsigned i = 0; i < 2; i++) {
		key[i] = chain[i];
		slot[i] = fake_put(&fake, &chain[i], i, ALL);
		set_planes(i, ALL, 0);
	}
	assert_int_equal(kvg_prefix_pin_tokens(layout, tokens, 2 * FAKE_TOKENS, 1, pins, NULL), 0);
	assert_int_equal(
		kvg_prefix_fetch_tokens(layout, tokens, 2 * FAKE_TOKENS, 1, 0, pins, NULL), 2);
	expect_readable(pins, 2);
	kvg_unpin(client, pins, 2);
}

/* ---- without waiting ---- */

static void test_acquire_start(void **state)
{
	struct kvg_acquired got[2], look;
	struct kvg_pin pin;
	uint8_t coming[2];
	int fd;

	(void)state;
	set_planes(0, ALL, 0);
	assert_int_equal(kvg_arrival_fd(client), -ENOENT);
	assert_int_equal(kvg_arrival_wait(client, 0), -ENOENT);
	assert_int_equal(kvg_acquire_start(layout, key, 2, 0, 1, 1, got, coming), 2);
	assert_false(waited);
	assert_int_equal(coming[0], ALL);
	assert_int_equal(coming[1], 0);
	fd = kvg_arrival_fd(client);
	assert_true(fd >= 0);
	assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
	assert_int_equal(kvg_arrival_wait(client, 0), 0);
	assert_int_equal(kvg_acquired_look(client, got[0].handle, &look), 0);
	assert_int_equal(look.mapped, 0);
	assert_int_equal(look.held, ALL);
	assert_true(look.retention == 1);
	assert_int_equal(kvg_lookup_pin(layout, &key[0], 0, &pin), -ENODATA);
	/* the best plane comes */
	set_planes(0, ALL, 1);
	assert_int_equal(write(pipe_fd[1], "...", 3), 3);
	assert_int_equal(kvg_arrival_wait(client, -1), 1);
	assert_int_equal(kvg_arrival_wait(client, 0), 0); /* all of it was taken */
	assert_int_equal(kvg_acquired_look(client, got[0].handle, &look), 0);
	assert_int_equal(look.mapped, 1);
	assert_int_equal(kvg_lookup_pin(layout, &key[0], 0, &pin), 0);
	expect_readable(&pin, 1);
	kvg_unpin(client, &pin, 1);
	/* one is lost, and no new pipe comes with further replies */
	set_planes(0, 5, 5);
	assert_int_equal(kvg_acquired_look(client, got[0].handle, &look), 0);
	assert_int_equal(look.held, 5);
	assert_true(look.retention < 1);
	assert_int_equal(kvg_acquire_start(layout, key, 2, 0, 1, 1, got, NULL), 2);
	assert_int_equal(kvg_arrival_fd(client), fd);
}

static void test_look_at_what_is_gone(void **state)
{
	struct kvg_acquired look;
	struct kvg_handle h = {slot[0], kvg_word_gen(word_of(0))};

	(void)state;
	assert_int_equal(kvg_acquired_look(client, h, &look), 0);
	h.gen++;
	assert_int_equal(kvg_acquired_look(client, h, &look), -ESTALE);
	h.gen--;
	atomic_store(&fake.entries[slot[0]].word, kvg_word(h.gen, 0, ALL, ALL));
	assert_int_equal(kvg_acquired_look(client, h, &look), -ESTALE);
	h.slot = UINT32_MAX;
	assert_int_equal(kvg_acquired_look(client, h, &look), -ESTALE);
	h.slot = slot[1];
	fake.index->epoch++;
	assert_int_equal(kvg_acquired_look(client, h, &look), -ENOTCONN);
}

/* A daemon that sends one pipe after the other does not belong to this protocol. */
static void test_two_pipes(void **state)
{
	struct kvg_acquired got[1];

	(void)state;
	assert_int_equal(kvg_acquire_start(layout, key, 1, 0, 1, 1, got, NULL), 1);
	pipe_sent = false;
	assert_int_equal(kvg_acquire_start(layout, key, 1, 0, 1, 1, got, NULL), -EPROTO);
}

/* The pipe of a daemon that went says so, and its number is the next one's. */
static void test_pipe_over_a_restart(void **state)
{
	struct kvg_acquired got[1];
	int fd;

	(void)state;
	assert_int_equal(kvg_acquire_start(layout, key, 1, 0, 1, 1, got, NULL), 1);
	fd = kvg_arrival_fd(client);
	close(pipe_fd[0]);
	close(pipe_fd[1]);
	assert_int_equal(kvg_arrival_wait(client, -1), -ENOTCONN);
	assert_int_equal(pipe2(pipe_fd, O_CLOEXEC | O_NONBLOCK), 0);
	client->arrival_old = true;
	pipe_sent = false;
	assert_int_equal(kvg_acquire_start(layout, key, 1, 0, 1, 1, got, NULL), 1);
	assert_int_equal(kvg_arrival_fd(client), fd);
	assert_int_equal(kvg_arrival_wait(client, 0), 0);
	assert_int_equal(write(pipe_fd[1], "", 1), 1);
	assert_int_equal(kvg_arrival_wait(client, 0), 1);
}

int main(void)
{
#define TEST(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	const struct CMUnitTest tests[] = {
		TEST(test_mapped_needs_no_call),
		TEST(test_fetches_the_rest),
		TEST(test_want),
		TEST(test_prefix_ends),
		TEST(test_pins_run_out),
		TEST(test_from_tokens),
		TEST(test_acquire_start),
		TEST(test_look_at_what_is_gone),
		TEST(test_two_pipes),
		TEST(test_pipe_over_a_restart),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
