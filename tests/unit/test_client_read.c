/* SPDX-License-Identifier: Apache-2.0 */
/* Lookup, pins, planes, gather and select of libkvgate over shared memory that the test wrote. */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "client/lib/client.h"
#include "client_fake.h"

static struct fake fake;
static struct kvg_client *client;
static struct kvg_layout *layout;
static unsigned fds_before;

static int setup(void **state)
{
	(void)state;
	fds_before = fake_count_fds();
	fake_init(&fake);
	fake_open(&fake, &client, &layout);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	kvg_close(client);
	fake_fini(&fake);
	assert_int_equal(fake_count_fds(), fds_before);
	return 0;
}

static uint32_t put(uint64_t seed, unsigned mapped, struct kvg_key *ret_key)
{
	fake_key(seed, ret_key);
	return fake_put(&fake, ret_key, seed, mapped);
}

static uint64_t pin_word(uint32_t i)
{
	return ((_Atomic uint64_t *)((uint8_t *)fake.pins + 128))[i];
}

static uint64_t touch_word(uint32_t i)
{
	return ((_Atomic uint64_t *)((uint8_t *)fake.pins + 1024))[i];
}

static void test_pin_is_published(void **state)
{
	struct kvg_key key, other;
	uint32_t slot = put(1, 7, &key);
	struct kvg_pin pin;

	(void)state;
	fake_key(2, &other);
	assert_int_equal(kvg_lookup_pin(layout, &other, 0, &pin), -ENOENT);
	assert_int_equal(kvg_lookup_pin(layout, &key, 1, &pin), 0);
	assert_int_equal(pin.handle.slot, slot);
	assert_int_equal(pin.mapped, 7);
	assert_int_equal(pin.tokens, FAKE_TOKENS);
	assert_int_equal(pin.n_planes, FAKE_PLANES);
	assert_true(pin.retention == 1.0f);
	assert_int_equal(pin_word(pin.index), kvg_handle_pack(pin.handle));
	assert_int_equal(fake.pins->pins_high, 1);
	assert_int_equal(fake.pins->touch_head, 1);
	assert_int_equal(touch_word(0), kvg_handle_pack(pin.handle));
	kvg_unpin(client, &pin, 1);
	assert_int_equal(pin_word(pin.index), 0);
	kvg_unpin(client, &pin, 1); /* twice does no harm */
	assert_int_equal(client->pins.n_free, 1);
}

static void test_pins_run_out_and_come_back(void **state)
{
	struct kvg_pin pin[FAKE_PINS], more;
	struct kvg_key key;

	(void)state;
	put(1, 7, &key);
	for (int round = 0; round < 3; round++) {
		for (unsigned i = 0; i < FAKE_PINS; i++)
			assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin[i]), 0);
		assert_int_equal(kvg_lookup_pin(layout, &key, 0, &more), -EAGAIN);
		kvg_unpin(client, pin, FAKE_PINS);
		for (unsigned i = 0; i < FAKE_PINS; i++)
			assert_int_equal(pin_word(i), 0);
	}
	assert_int_equal(fake.pins->touch_head, 3 * FAKE_PINS);
}

/* Same tag, or same bucket, or same key in another layout: only the whole identity is a hit. */
static void test_only_the_whole_key_hits(void **state)
{
	struct kvg_key key, twin;
	struct kvg_pin pin;
	uint32_t slot;

	(void)state;
	fake_key(1, &key);
	twin = key;
	twin.b[31] ^= 1;
	fake_put_entry(&fake, &twin, FAKE_LAYOUT, 1, 1);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), -ENOENT);
	fake_put_entry(&fake, &key, FAKE_LAYOUT + 1, 1, 1);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), -ENOENT);
	slot = fake_put(&fake, &key, 1, 7);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), 0);
	assert_int_equal(pin.handle.slot, slot);
	assert_int_equal(client->pins.n_free + 1, client->pins.high);
	kvg_unpin(client, &pin, 1);
}

static void test_probing_past_full_buckets(void **state)
{
	struct kvg_key key[40];

	(void)state;
	for (unsigned i = 0; i < 40; i++) { /* all in bucket 3: the probe wraps around the end */
		fake_key(i, &key[i]);
		key[i].b[0] = 3;
		fake_put_entry(&fake, &key[i], FAKE_LAYOUT, 1, 1);
		if (i == 27)
			break; /* four buckets of seven are full */
	}
	assert_int_equal(kvg_prefix_lookup(layout, key, 28), 28);
	fake_key(99, &key[28]);
	key[28].b[0] = 3;
	assert_int_equal(
		kvg_prefix_lookup(layout, &key[28], 1), 0); /* all full, and it still ends */
}

static void test_dead_and_shrunk_blocks(void **state)
{
	struct kvg_key key;
	uint32_t slot = put(1, 7, &key);
	struct kvg_shm_entry *e = &fake.entries[slot];
	uint32_t gen = kvg_word_gen(e->word);
	struct kvg_pin pin;

	(void)state;
	atomic_store(&e->word, kvg_word(gen, 1, 7, 3));
	assert_int_equal(kvg_lookup_pin(layout, &key, 0.99f, &pin), -ENODATA);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0.6f, &pin), 0);
	assert_true(pin.retention > 0.6f && pin.retention < 0.7f);
	assert_int_equal(pin.held, 7);
	assert_int_equal(pin.mapped, 3);
	kvg_unpin(client, &pin, 1);
	atomic_store(&e->word, kvg_word(gen, 1, 7, 0));
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), -ENODATA);
	atomic_store(&e->word, kvg_word(gen, 0, 0, 0));
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), -ENOENT);
	assert_int_equal(kvg_prefix_lookup(layout, &key, 1), 0);
	for (unsigned i = 0; i < FAKE_PINS; i++) /* nothing stayed pinned on the way */
		assert_int_equal(pin_word(i), 0);
}

static void test_prefix_stops_at_the_first_miss(void **state)
{
	struct kvg_key key[6];
	struct kvg_pin pin[6];

	(void)state;
	for (unsigned i = 0; i < 6; i++)
		if (i != 4)
			put(i, i == 2 ? 1 : 7, &key[i]);
		else
			fake_key(i, &key[i]);
	assert_int_equal(kvg_prefix_lookup(layout, key, 6), 4);
	assert_int_equal(kvg_prefix_pin(layout, key, 6, 0, pin), 4);
	for (unsigned i = 0; i < 4; i++)
		assert_int_equal(pin_word(pin[i].index), kvg_handle_pack(pin[i].handle));
	kvg_unpin(client, pin, 4);
	assert_int_equal(kvg_prefix_pin(layout, key, 6, 1, pin), 2); /* block 2 holds a third */
	kvg_unpin(client, pin, 2);
	for (unsigned i = 0; i < FAKE_PINS; i++)
		assert_int_equal(pin_word(i), 0);
}

static void test_prefix_longer_than_the_pins(void **state)
{
	struct kvg_key key[12];
	struct kvg_pin pin[12];

	(void)state;
	for (unsigned i = 0; i < 12; i++)
		put(i, 7, &key[i]);
	assert_int_equal(kvg_prefix_pin(layout, key, 12, 0, pin), FAKE_PINS);
	kvg_unpin(client, pin, FAKE_PINS);
}

static void test_epoch_ends_lookups(void **state)
{
	struct kvg_key key;
	struct kvg_pin pin;

	(void)state;
	put(1, 7, &key);
	atomic_store(&fake.index->epoch, 5);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), -ENOTCONN);
	assert_int_equal(kvg_prefix_pin(layout, &key, 1, 0, &pin), 0);
	assert_int_equal(kvg_prefix_lookup(layout, &key, 1), 0);
}

/* ---- planes ---- */

static void test_planes(void **state)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_key key;
	struct kvg_pin pin;
	unsigned pairs = 0;

	(void)state;
	put(5, 7, &key);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), 0);
	assert_int_equal(kvg_planes(layout, &pin, plane), FAKE_PLANES);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS], 1);
	for (uint32_t p = 0; p < FAKE_PLANES; p++) {
		assert_int_equal(plane[p].plane, p);
		assert_true((plane[p].tokens != NULL) == (p == 0));
		for (uint32_t r = 0; r < FAKE_LAYERS * FAKE_HEADS; r++)
			for (uint32_t i = plane[p].cu[r]; i < plane[p].cu[r + 1]; i++) {
				uint32_t t = plane[p].index[i];

				assert_int_equal(fake_plane_of(r, t), p);
				assert_int_equal(((const uint8_t *)plane[p].k)[i * FAKE_K_DIM * 2],
					fake_byte(5, r, t, false));
				assert_int_equal(
					((const uint8_t *)plane[p].v)[i * FAKE_V_DIM * 2 + 7],
					fake_byte(5, r, t, true));
				pairs++;
			}
	}
	assert_int_equal(pairs, FAKE_LAYERS * FAKE_HEADS * FAKE_TOKENS);
	assert_int_equal(plane[0].tokens[3], fake_token(5, 3));
	assert_int_equal(kvg_verify(layout, &pin), 0);
	assert_int_equal(kvg_planes(layout, &pin, plane), FAKE_PLANES);
	assert_int_equal(fake.n_requests[KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS], 1);
	kvg_unpin(client, &pin, 1);
	assert_int_equal(kvg_planes(layout, &pin, plane), -EINVAL); /* not pinned any more */
}

static void test_damaged_planes(void **state)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_key key;
	struct kvg_pin pin;
	uint32_t slot = put(5, 7, &key), gen;
	struct kvg_shm_plane_ref *ref = &fake.entries[slot].plane[1], saved = *ref;
	struct kvg_plane_header *h = (void *)fake_plane(&fake, slot, 1), header = *h;

	(void)state;
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), 0);
	gen = pin.handle.gen;
#define REFUSED(change)                                                                            \
	do {                                                                                       \
		change;                                                                            \
		assert_int_equal(kvg_planes(layout, &pin, plane), -EBADMSG);                       \
		assert_int_equal(kvg_last_code(client), KVG_CODE_CORRUPT);                         \
		*ref = saved;                                                                      \
		*h = header;                                                                       \
	} while (0)
#define SEALED(field, value)   (ref->field = (value), ref->check = plane_ref_check(ref, 1, gen))
#define RESEALED(field, value) (h->field = (value), plane_header_seal(h))
	REFUSED(ref->page++);
	REFUSED(SEALED(page, UINT32_MAX));
	REFUSED(SEALED(page, 255)); /* the last page, and the payload is longer */
	REFUSED(SEALED(segment, 99));
	REFUSED(SEALED(page_shift, 13));
	REFUSED(SEALED(bytes, 100));
	REFUSED(SEALED(page, saved.page + 1)); /* another plane, or none */
	REFUSED(h->pairs++);
	REFUSED(RESEALED(pairs, h->pairs + 1));
	REFUSED(RESEALED(plane, 2));
	REFUSED(RESEALED(tokens, 15));
	REFUSED(RESEALED(runs, 2));
	REFUSED(RESEALED(key.b[0], 0xee));
	REFUSED(RESEALED(fingerprint[0], (uint8_t)~header.fingerprint[0]));
	assert_int_equal(kvg_planes(layout, &pin, plane), FAKE_PLANES);
	((uint8_t *)(uintptr_t)fake_plane(&fake, slot, 2))[300] ^=
		1; /* only reading it all shows that */
	assert_int_equal(kvg_planes(layout, &pin, plane), FAKE_PLANES);
	assert_int_equal(kvg_verify(layout, &pin), -EBADMSG);
	kvg_unpin(client, &pin, 1);
}

static void test_prefix_from_tokens(void **state)
{
	uint32_t tokens[4 * FAKE_TOKENS + 3];
	struct kvg_key key[4], got[4];
	struct kvg_pin pin[4];

	(void)state;
	for (uint32_t i = 0; i < 4 * FAKE_TOKENS + 3; i++)
		tokens[i] = fake_token(i / FAKE_TOKENS, i % FAKE_TOKENS);
	assert_int_equal(kvg_key_chain(layout, NULL, tokens, 4 * FAKE_TOKENS + 3, key), 4);
	fake_put(&fake, &key[0], 0, 7);
	fake_put(&fake, &key[1], 1, 7);
	fake_put(&fake, &key[2], 8, 7); /* the key says block 2, the contents are others */
	fake_put(&fake, &key[3], 3, 7);
	assert_int_equal(kvg_prefix_pin(layout, key, 4, 0, pin), 4);
	kvg_unpin(client, pin, 4);
	assert_int_equal(
		kvg_prefix_pin_tokens(layout, tokens, 4 * FAKE_TOKENS + 3, 0, pin, got), 2);
	assert_memory_equal(got, key, sizeof(key));
	assert_int_equal(client->pins.n_free + 2, client->pins.high);
	kvg_unpin(client, pin, 2);
	assert_int_equal(
		kvg_prefix_pin_tokens(layout, tokens, 4 * FAKE_TOKENS + 3, 0, pin, NULL), 2);
	kvg_unpin(client, pin, 2);
}

/* ---- gather, select ---- */

#define RUNS  (FAKE_LAYERS * FAKE_HEADS)
#define K_ROW (FAKE_K_DIM * 2u)
#define V_ROW (FAKE_V_DIM * 2u)
#define DENSE (RUNS * FAKE_TOKENS * (K_ROW + V_ROW))

static void test_gather_dense(void **state)
{
	uint8_t dense[DENSE + 1], present[RUNS * FAKE_TOKENS];
	struct kvg_key key;
	struct kvg_pin pin;

	(void)state;
	put(5, 5, &key); /* planes 0 and 2 */
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), 0);
	assert_int_equal(kvg_gather_dense(layout, &pin, dense, DENSE - 1, NULL), -ENOSPC);
	memset(dense, 0xee, sizeof(dense));
	assert_int_equal(kvg_gather_dense(layout, &pin, dense, DENSE, present), 0);
	for (uint32_t r = 0; r < RUNS; r++)
		for (uint32_t t = 0; t < FAKE_TOKENS; t++) {
			uint32_t l = r / FAKE_HEADS, h = r % FAKE_HEADS;
			const uint8_t *layer =
				dense + l * FAKE_HEADS * FAKE_TOKENS * (K_ROW + V_ROW);
			const uint8_t *k = layer + (h * FAKE_TOKENS + t) * K_ROW;
			const uint8_t *v = layer + FAKE_HEADS * FAKE_TOKENS * K_ROW +
				(h * FAKE_TOKENS + t) * V_ROW;
			bool there = fake_plane_of(r, t) != 1;

			assert_int_equal(present[r * FAKE_TOKENS + t], there);
			assert_int_equal(k[0], there ? fake_byte(5, r, t, false) : 0xee);
			assert_int_equal(k[K_ROW - 1], there ? fake_byte(5, r, t, false) : 0xee);
			assert_int_equal(v[0], there ? fake_byte(5, r, t, true) : 0xee);
			assert_int_equal(v[V_ROW - 1], there ? fake_byte(5, r, t, true) : 0xee);
		}
	assert_int_equal(dense[DENSE], 0xee);
	kvg_unpin(client, &pin, 1);
}

static void test_gather_flat(void **state)
{
	uint8_t k[2 * RUNS * FAKE_TOKENS * K_ROW], v[2 * RUNS * FAKE_TOKENS * V_ROW];
	uint32_t cu[RUNS + 1], positions[2 * RUNS * FAKE_TOKENS], sum;
	struct kvg_key key[2];
	struct kvg_pin pin[2];

	(void)state;
	put(5, 7, &key[0]);
	put(6, 3, &key[1]);
	assert_int_equal(kvg_prefix_pin(layout, key, 2, 0, pin), 2);
	assert_int_equal(kvg_gather_flat(layout, pin, 2, NULL, NULL, NULL, cu, 0), 0);
	sum = cu[RUNS];
	assert_in_range(sum, RUNS * FAKE_TOKENS + 1, 2 * RUNS * FAKE_TOKENS - 1);
	assert_int_equal(kvg_gather_flat(layout, pin, 2, k, v, positions, cu, sum - 1), -ENOSPC);
	assert_int_equal(kvg_gather_flat(layout, pin, 2, k, v, positions, cu, sum), 0);
	for (uint32_t r = 0; r < RUNS; r++) {
		uint32_t seen = 0;

		for (uint32_t i = cu[r]; i < cu[r + 1]; i++) {
			uint32_t block = positions[i] / FAKE_TOKENS, t = positions[i] % FAKE_TOKENS;

			assert_int_equal(seen >> positions[i] & 1, 0);
			seen |= 1u << positions[i];
			assert_in_range(block, 0, 1);
			assert_int_equal(k[i * K_ROW + 1], fake_byte(5 + block, r, t, false));
			assert_int_equal(v[i * V_ROW + 1], fake_byte(5 + block, r, t, true));
		}
		for (uint32_t t = 0; t < 2 * FAKE_TOKENS; t++)
			assert_int_equal(seen >> t & 1,
				t < FAKE_TOKENS || fake_plane_of(r, t % FAKE_TOKENS) != 2);
	}
	kvg_unpin(client, pin, 2);
}

/* A plane whose runs or indices are broken is refused, and nothing is written outside dst. */
static void test_gather_of_broken_runs(void **state)
{
	uint8_t *dense = malloc(DENSE); /* on the heap, where a sanitizer sees one byte too many */
	uint32_t cu[RUNS + 1];
	struct kvg_key key;
	struct kvg_pin pin;
	uint32_t slot = put(5, 7, &key), saved;
	struct plane_view view;

	(void)state;
	assert_non_null(dense);
	assert_int_equal(plane_open(fake_plane(&fake, slot, 0), 1u << 16, &view), 0);
	assert_int_equal(kvg_lookup_pin(layout, &key, 0, &pin), 0);
	saved = view.index[0];
	((uint16_t *)(uintptr_t)view.index)[0] = FAKE_TOKENS;
	assert_int_equal(kvg_gather_dense(layout, &pin, dense, DENSE, NULL), -EBADMSG);
	((uint16_t *)(uintptr_t)view.index)[0] = (uint16_t)saved;
	saved = view.cu[1];
	((uint32_t *)(uintptr_t)view.cu)[1] = 1u << 30;
	assert_int_equal(kvg_gather_dense(layout, &pin, dense, DENSE, NULL), -EBADMSG);
	assert_int_equal(kvg_gather_flat(layout, &pin, 1, NULL, NULL, NULL, cu, 0), -EBADMSG);
	((uint32_t *)(uintptr_t)view.cu)[1] = saved;
	assert_int_equal(kvg_gather_dense(layout, &pin, dense, DENSE, NULL), 0);
	kvg_unpin(client, &pin, 1);
	free(dense);
}

static void test_select_absolute(void **state)
{
	struct kvg_select_options o = KVG_OPTIONS_INIT(kvg_select_options);
	uint32_t *len = calloc(2 * KVG_PLANES_MAX * RUNS, sizeof(*len));
	struct kvg_key key[2];
	struct kvg_pin pin[2];

	(void)state;
	put(5, 7, &key[0]);
	put(6, 1, &key[1]);
	assert_int_equal(kvg_prefix_pin(layout, key, 2, 0, pin), 2);
	o.rule = "absolute";
	o.threshold = 0.5f; /* tokens 0 .. 8 of 16 */
	assert_int_equal(kvg_select(layout, pin, 2, &o, len), 0);
	for (uint32_t b = 0; b < 2; b++)
		for (uint32_t p = 0; p < KVG_PLANES_MAX; p++)
			for (uint32_t r = 0; r < RUNS; r++) {
				uint32_t want = 0;

				for (uint32_t t = 0; t <= 8 && (b == 0 || p == 0); t++)
					want += fake_plane_of(r, t) == p;
				assert_int_equal(len[(b * KVG_PLANES_MAX + p) * RUNS + r], want);
			}
	o.rule = "best";
	assert_int_equal(kvg_select(layout, pin, 2, &o, len), -EINVAL);
	o.rule = "pair";
	o.retained = 2;
	assert_int_equal(kvg_select(layout, pin, 2, &o, len), -EINVAL);
	kvg_unpin(client, pin, 2);
	free(len);
}

/* ---- the race that hazard pointers are for ---- */

/*
 * One thread evicts and reuses a slot as the daemon does - smaller word, fence, scan, then new contents under the next
 * generation - while this one pins and reads. What is pinned must not change under the reader.
 */
#define RACE_SECONDS 120 /* it takes well below one when both threads run */
static _Atomic bool race_over;
static _Atomic uint64_t race_contents[8]; /* stands for the block's pages: always the generation */
static _Atomic unsigned race_reused, race_backed_off;

static bool pinned_somewhere(uint32_t slot)
{
	for (uint32_t i = 0; i < FAKE_PINS; i++)
		if (pin_word(i) && kvg_handle_unpack(pin_word(i)).slot == slot)
			return true;
	return false;
}

static void *race_evictor(void *arg)
{
	uint32_t slot = *(uint32_t *)arg;
	struct kvg_shm_entry *e = &fake.entries[slot];

	while (!atomic_load(&race_over)) {
		uint64_t word = atomic_load(&e->word);
		uint32_t gen = kvg_word_gen(word);

		atomic_store_explicit(&e->word, kvg_word(gen, 0, 0, 0), memory_order_release);
		atomic_thread_fence(memory_order_seq_cst);
		if (pinned_somewhere(slot)) {
			atomic_store_explicit(&e->word, word, memory_order_release);
			race_backed_off++;
			continue;
		}
		gen++;
		for (unsigned i = 0; i < 8; i++)
			atomic_store_explicit(&race_contents[i], gen, memory_order_relaxed);
		atomic_store_explicit(&e->word, kvg_word(gen, 1, 1, 1), memory_order_release);
		race_reused++;
	}
	return NULL;
}

/*
 * Enough has been seen: the reader pinned, and the evictor met pins as well as slots that it could use again. When the two
 * share a processor that takes turns of the scheduler, and as long as they need.
 */
static bool race_seen(unsigned pinned, unsigned tries)
{
	return tries >= 200000 && pinned >= 20000 && atomic_load(&race_reused) >= 100 &&
		atomic_load(&race_backed_off) >= 1;
}

static time_t seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec;
}

static void test_pinned_contents_never_change(void **state)
{
	const time_t until = seconds() + RACE_SECONDS;
	uint32_t slot;
	struct kvg_key key;
	pthread_t evictor;
	unsigned pinned = 0, tries = 0;

	(void)state;
	fake_key(1, &key);
	slot = fake_put_entry(&fake, &key, FAKE_LAYOUT, 1, 1);
	for (unsigned i = 0; i < 8; i++)
		atomic_store(&race_contents[i], kvg_word_gen(fake.entries[slot].word));
	atomic_store(&race_over, false);
	assert_int_equal(pthread_create(&evictor, NULL, race_evictor, &slot), 0);
	while (!race_seen(pinned, tries)) {
		struct kvg_pin pin;

		if (++tries % 4096 == 0) {
			if (seconds() > until)
				break;
			sched_yield();
		}
		if (kvg_lookup_pin(layout, &key, 0, &pin) < 0)
			continue;
		pinned++;
		for (unsigned i = 0; i < 8; i++)
			if (atomic_load_explicit(&race_contents[i], memory_order_relaxed) !=
				pin.handle.gen)
				fail_msg("contents changed under a pin");
		kvg_unpin(client, &pin, 1);
	}
	atomic_store(&race_over, true);
	pthread_join(evictor, NULL);
	if (!race_seen(pinned, tries))
		fail_msg("%u pins in %u tries, %u slots used again, %u backed off", pinned, tries,
			race_reused, race_backed_off);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	static const struct CMUnitTest tests[] = {
		TEST(test_pin_is_published),
		TEST(test_pins_run_out_and_come_back),
		TEST(test_only_the_whole_key_hits),
		TEST(test_probing_past_full_buckets),
		TEST(test_dead_and_shrunk_blocks),
		TEST(test_prefix_stops_at_the_first_miss),
		TEST(test_prefix_longer_than_the_pins),
		TEST(test_epoch_ends_lookups),
		TEST(test_planes),
		TEST(test_damaged_planes),
		TEST(test_prefix_from_tokens),
		TEST(test_gather_dense),
		TEST(test_gather_flat),
		TEST(test_gather_of_broken_runs),
		TEST(test_select_absolute),
		TEST(test_pinned_contents_never_change),
	};

	return cmocka_run_group_tests_name("client_read", tests, NULL, NULL);
}
