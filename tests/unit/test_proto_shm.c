/* SPDX-License-Identifier: Apache-2.0 */
/* Every shared layout to the byte: filled through the C structs, it is what was committed; and offsets. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <cmocka.h>

#include "proto/plane.h"
#include "tests/unit/test_proto_golden.h"

#define AT(type, field, offset)                                                                    \
	static_assert(offsetof(struct type, field) == (offset), #type "." #field " is at " #offset)

AT(kvg_shm_index, magic, 0);
AT(kvg_shm_index, version, 8);
AT(kvg_shm_index, entry_bytes, 12);
AT(kvg_shm_index, n_buckets, 16);
AT(kvg_shm_index, n_slots, 24);
AT(kvg_shm_index, buckets_off, 32);
AT(kvg_shm_index, entries_off, 40);
AT(kvg_shm_index, total_bytes, 48);
AT(kvg_shm_index, instance, 56);
AT(kvg_shm_index, crc, 72);
AT(kvg_shm_index, epoch, 76);

AT(kvg_shm_bucket, way, 0);
AT(kvg_shm_bucket, overflow, 56);

AT(kvg_shm_plane_ref, bytes, 0);
AT(kvg_shm_plane_ref, segment, 8);
AT(kvg_shm_plane_ref, page, 12);
AT(kvg_shm_plane_ref, pairs, 16);
AT(kvg_shm_plane_ref, tier, 20);
AT(kvg_shm_plane_ref, page_shift, 21);
AT(kvg_shm_plane_ref, check, 22);

AT(kvg_shm_entry, word, 0);
AT(kvg_shm_entry, key, 8);
AT(kvg_shm_entry, layout, 40);
AT(kvg_shm_entry, parent, 44);
AT(kvg_shm_entry, tokens, 48);
AT(kvg_shm_entry, depth, 52);
AT(kvg_shm_entry, n_planes, 56);
AT(kvg_shm_entry, crc, 60);
AT(kvg_shm_entry, plane, 64);

AT(kvg_shm_pins, magic, 0);
AT(kvg_shm_pins, version, 8);
AT(kvg_shm_pins, n_pins, 12);
AT(kvg_shm_pins, n_touch, 16);
AT(kvg_shm_pins, pins_off, 20);
AT(kvg_shm_pins, touch_off, 24);
AT(kvg_shm_pins, total_bytes, 28);
AT(kvg_shm_pins, pins_high, 32);
AT(kvg_shm_pins, touch_head, 64);

AT(kvg_plane_header, magic, 0);
AT(kvg_plane_header, version, 8);
AT(kvg_plane_header, plane, 10);
AT(kvg_plane_header, n_planes, 12);
AT(kvg_plane_header, flags, 14);
AT(kvg_plane_header, fingerprint, 16);
AT(kvg_plane_header, key, 48);
AT(kvg_plane_header, runs, 80);
AT(kvg_plane_header, tokens, 84);
AT(kvg_plane_header, pairs, 88);
AT(kvg_plane_header, n_token_ids, 92);
AT(kvg_plane_header, k_row, 96);
AT(kvg_plane_header, v_row, 100);
AT(kvg_plane_header, bytes, 104);
AT(kvg_plane_header, body_crc, 112);
AT(kvg_plane_header, mass, 116);
AT(kvg_plane_header, reserved, 120);
AT(kvg_plane_header, header_crc, 124);

static_assert(sizeof(struct kvg_shm_index) == 80, "");
static_assert(sizeof(struct kvg_shm_bucket) == 64, "");
static_assert(sizeof(struct kvg_shm_plane_ref) == 24, "");
static_assert(sizeof(struct kvg_shm_entry) == 256, "");
static_assert(sizeof(struct kvg_shm_pins) == 128, "");
static_assert(sizeof(struct kvg_plane_header) == 128, "");
static_assert(sizeof(struct kvg_key) == 32 && sizeof(struct kvg_handle) == 8, "");
/* A client maps these and does not take locks. */
static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2, "");

enum {
	GENERATION = 7
};

static struct kvg_key example_key(void)
{
	struct kvg_key key;

	for (int i = 0; i < 32; i++)
		key.b[i] = (uint8_t)i;
	return key;
}

static struct kvg_shm_plane_ref example_ref(uint32_t plane)
{
	struct kvg_shm_plane_ref ref = {
		.bytes = 0x123456789aull + plane,
		.segment = 3,
		.page = 0x10 + plane,
		.pairs = 1000 + plane,
		.tier = KVG_TIER_HOST,
		.page_shift = 16,
	};

	ref.check = plane_ref_check(&ref, plane, GENERATION);
	return ref;
}

static void test_index_header(void **state)
{
	struct kvg_shm_index h = {
		.magic = "KVGINDE",
		.version = KVG_SHM_VERSION,
		.entry_bytes = sizeof(struct kvg_shm_entry),
		.n_buckets = 1024,
		.n_slots = 4096,
		.buckets_off = 4096,
		.entries_off = 4096 + 1024 * sizeof(struct kvg_shm_bucket),
		.total_bytes = 4096 + 1024 * sizeof(struct kvg_shm_bucket) +
			4096 * sizeof(struct kvg_shm_entry),
	};

	(void)state;
	memcpy(h.magic, KVG_INDEX_MAGIC, sizeof(h.magic));
	for (int i = 0; i < 16; i++)
		h.instance[i] = (uint8_t)i;
	h.crc = index_crc(&h);
	atomic_store(&h.epoch, 3);
	expect_golden("shm.index", &h, sizeof(h));
}

static void test_replicas(void **state)
{
	struct kvg_shm_replicas h = {
		.magic = KVG_REPLICAS_MAGIC,
		.version = KVG_SHM_VERSION,
		.entry_bytes = sizeof(struct kvg_shm_replica),
		.n_slots = 1024,
		.entries_off = 4096,
		.total_bytes = 4096 + 1024 * sizeof(struct kvg_shm_replica),
	};
	struct kvg_shm_replica r = {.word = kvg_word(7, 1, 0, 3)};

	(void)state;
	for (unsigned i = 0; i < 16; i++) {
		h.instance[i] = (uint8_t)i;
		h.device[i] = (uint8_t)(200 + i);
	}
	h.last_segment = 9;
	h.crc = replicas_crc(&h);
	expect_golden("shm.replicas", &h, sizeof(h));
	for (uint32_t p = 0; p < 2; p++) {
		r.plane[p] = (struct kvg_shm_plane_ref){.bytes = 0x123456789a + p,
			.segment = 3,
			.page = 0x10 + p,
			.pairs = 1000 + p,
			.tier = KVG_TIER_GPU,
			.page_shift = 16};
		r.plane[p].check = plane_ref_check(&r.plane[p], p, 7);
	}
	expect_golden("shm.replica", &r, sizeof(r));
}

static void test_bucket(void **state)
{
	const struct kvg_key key = example_key();
	struct kvg_shm_bucket b = {0};
	uint64_t tag = kvg_key_tag(&key);

	(void)state;
	assert_int_equal(tag, 0x0b0a0908);
	assert_int_equal(kvg_key_bucket(&key, 1ull << 63), 0x0706050403020100);
	assert_int_equal(kvg_key_bucket(&key, 1024), 0x100);
	assert_int_equal(kvg_key_bucket(&key, 1), 0);
	atomic_store(&b.way[1], tag << 32 | (41 + 1));
	atomic_store(&b.way[2], tag << 32 | (4095 + 1));
	atomic_store(&b.overflow, 5);
	expect_golden("shm.bucket", &b, sizeof(b));
}

static void test_entry(void **state)
{
	struct kvg_shm_entry e = {
		.key = example_key(),
		.layout = 2,
		.parent = KVG_SLOT_NONE,
		.tokens = 256,
		.depth = 0,
		.n_planes = 7,
	};
	struct kvg_shm_plane_ref ref = example_ref(3);

	(void)state;
	expect_golden("shm.plane_ref", &ref, sizeof(ref));
	atomic_store(&e.word, kvg_word(GENERATION, 1, 0x7f, 0x1f));
	for (uint32_t p = 0; p < 7; p++)
		e.plane[p] = example_ref(p);
	e.crc = entry_crc(&e, GENERATION);
	expect_golden("shm.entry", &e, sizeof(e));
}

static void test_pin_page(void **state)
{
	struct kvg_shm_pins p = {
		.version = KVG_SHM_VERSION,
		.n_pins = 1024,
		.n_touch = 256,
		.pins_off = sizeof(p),
		.touch_off = sizeof(p) + 1024 * 8,
		.total_bytes = sizeof(p) + 1024 * 8 + 256 * 8,
	};

	(void)state;
	memcpy(p.magic, KVG_PIN_MAGIC, sizeof(p.magic));
	atomic_store(&p.pins_high, 17);
	atomic_store(&p.touch_head, 99);
	expect_golden("shm.pins", &p, sizeof(p));
}

static void test_words_and_handles(void **state)
{
	uint64_t w = kvg_word(0xfedcba98, 1, 0x7f, 0x1f);
	struct kvg_handle h = {.slot = 0x01020304, .gen = 0xfffefdfc}, back;

	(void)state;
	assert_int_equal(w, 0xfedcba9800017f1f);
	assert_int_equal(kvg_word_gen(w), 0xfedcba98);
	assert_int_equal(kvg_word_held(w), 0x7f);
	assert_int_equal(kvg_word_mapped(w), 0x1f);
	assert_true(w & KVG_ENTRY_LIVE);
	assert_false(kvg_word(1, 0, 0xff, 0xff) & KVG_ENTRY_LIVE);
	assert_int_equal(kvg_handle_pack(h), 0xfffefdfc01020304);
	back = kvg_handle_unpack(kvg_handle_pack(h));
	assert_true(back.slot == h.slot && back.gen == h.gen);
	assert_int_equal(kvg_handle_pack((struct kvg_handle){0, 1}),
		1ull << 32); /* a pin of slot 0 is not 0 */
}

/* A check tells every field, the plane's place and the generation. */
static void test_ref_check(void **state)
{
	struct kvg_shm_plane_ref ref = example_ref(3);
	uint8_t *bytes = (uint8_t *)&ref;
	unsigned missed = 0;

	(void)state;
	assert_int_not_equal(plane_ref_check(&ref, 4, GENERATION), ref.check);
	assert_int_not_equal(plane_ref_check(&ref, 3, GENERATION + 1), ref.check);
	for (unsigned bit = 0; bit < 8 * offsetof(struct kvg_shm_plane_ref, check); bit++) {
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		missed += plane_ref_check(&ref, 3, GENERATION) == ref.check;
		bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(missed, 0);
}

static void test_entry_and_index_crc(void **state)
{
	static struct golden g;
	struct kvg_shm_entry e;
	struct kvg_shm_index h;

	(void)state;
	g = *golden("shm.entry");
	for (unsigned bit = 0; bit < 8 * offsetof(struct kvg_shm_entry, crc); bit++) {
		g.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		memcpy(&e, g.bytes, sizeof(e));
		if (bit / 8 <
			offsetof(struct kvg_shm_entry, key)) /* the word changes all the time */
			assert_int_equal(entry_crc(&e, GENERATION), e.crc);
		else
			assert_int_not_equal(entry_crc(&e, GENERATION), e.crc);
		g.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	memcpy(&e, g.bytes, sizeof(e));
	assert_int_equal(entry_crc(&e, GENERATION), e.crc);
	assert_int_not_equal(entry_crc(&e, GENERATION + 1), e.crc);

	g = *golden("shm.index");
	for (unsigned bit = 0; bit < 8 * offsetof(struct kvg_shm_index, crc); bit++) {
		g.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		memcpy(&h, g.bytes, sizeof(h));
		assert_int_not_equal(index_crc(&h), h.crc);
		g.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_index_header),
		cmocka_unit_test(test_bucket),
		cmocka_unit_test(test_replicas),
		cmocka_unit_test(test_entry),
		cmocka_unit_test(test_pin_page),
		cmocka_unit_test(test_words_and_handles),
		cmocka_unit_test(test_ref_check),
		cmocka_unit_test(test_entry_and_index_crc),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
