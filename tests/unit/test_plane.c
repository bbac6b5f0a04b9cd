/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plane to the byte, every bit of it under a checksum, and headers that somebody wrote who can compute
 * checksums too.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdbool.h>
#include <cmocka.h>
#include <errno.h>

#include "proto/plane.h"
#include "tests/unit/test_proto_golden.h"

static void test_crc32c(void **state)
{
	const uint8_t zeros[32] = {0}; /* vectors of RFC 3720, B.4 */
	const char *digits = "123456789";
	uint8_t ones[32], ascending[32], descending[32];

	(void)state;
	for (int i = 0; i < 32; i++) {
		ones[i] = 0xff;
		ascending[i] = (uint8_t)i;
		descending[i] = (uint8_t)(31 - i);
	}
	assert_int_equal(crc32c(0, digits, 9), 0xe3069283);
	assert_int_equal(crc32c(0, zeros, 32), 0x8a9136aa);
	assert_int_equal(crc32c(0, ones, 32), 0x62a8ab43);
	assert_int_equal(crc32c(0, ascending, 32), 0x46dd794e);
	assert_int_equal(crc32c(0, descending, 32), 0x113fdb5c);
	assert_int_equal(crc32c(0, NULL, 0), 0);
	for (size_t cut = 0; cut <= 9; cut++)
		assert_int_equal(crc32c(crc32c(0, digits, cut), digits + cut, 9 - cut), 0xe3069283);
}

/* ---- an example: 2 runs, 3 pairs, 5 tokens, rows of 4 and 2 bytes ---- */

struct example {
	_Alignas(64) uint8_t bytes[4096];
	size_t n;
};

static struct example load(const char *name)
{
	const struct golden *g = golden(name);
	struct example e = {.n = g->n};

	assert_true(g->n <= sizeof(e.bytes));
	memcpy(e.bytes, g->bytes, g->n);
	return e;
}

static struct kvg_plane_header *header(struct example *e)
{
	return (struct kvg_plane_header *)e->bytes;
}

static void seal(struct example *e)
{
	header(e)->body_crc =
		crc32c(0, e->bytes + KVG_PLANE_HEADER_BYTES, e->n - KVG_PLANE_HEADER_BYTES);
	plane_header_seal(header(e));
}

static void test_example_is_read(void **state)
{
	struct example e = load("shm.plane");
	struct plane_view v;

	(void)state;
	assert_int_equal(plane_open(e.bytes, e.n, &v), 0);
	assert_int_equal(plane_verify(e.bytes, e.n), 0);
	assert_int_equal(plane_check_runs(&v), 0);
	assert_true(
		v.plane == 0 && v.runs == 2 && v.tokens == 5 && v.pairs == 3 && v.n_token_ids == 5);
	assert_true(
		v.k_row == 4 && v.v_row == 2 && !v.opaque && v.opaque_bytes == 0 && v.bytes == e.n);
	assert_true(v.mass == .5f && v.cu[0] == 0 && v.cu[1] == 2 && v.cu[2] == 3);
	assert_true(v.ids[0] == 10 && v.ids[4] == 14);
	assert_true(v.index[0] == 4 && v.index[1] == 0 && v.index[2] == 2);
	assert_true(v.score[0] == KVG_SCORE_PROTECTED && v.score[2] == 0x3400);
	assert_true(v.k[0] == 0 && v.k[11] == 11 && v.v[0] == 50 && v.v[5] == 55);
}

static void test_example_is_written(void **state)
{
	struct plane_geometry g;
	struct example e = {0};
	struct kvg_plane_header *h = header(&e);
	const uint32_t cu[3] = {0, 2, 3}, ids[5] = {10, 11, 12, 13, 14};
	const uint16_t index[3] = {4, 0, 2}, score[3] = {KVG_SCORE_PROTECTED, 0x3800, 0x3400};

	(void)state;
	plane_geometry(2, 3, 5, 4, 2, 0, &g);
	memcpy(h->magic, KVG_PLANE_MAGIC, sizeof(h->magic));
	h->version = KVG_SHM_VERSION;
	h->n_planes = 7;
	for (int i = 0; i < 32; i++) {
		h->fingerprint[i] = (uint8_t)(100 + i);
		h->key.b[i] = (uint8_t)i;
	}
	h->runs = 2;
	h->tokens = h->n_token_ids = 5;
	h->pairs = 3;
	h->k_row = 4;
	h->v_row = 2;
	h->bytes = e.n = g.bytes;
	h->mass = .5f;
	memcpy(e.bytes + g.cu_off, cu, sizeof(cu));
	memcpy(e.bytes + g.ids_off, ids, sizeof(ids));
	memcpy(e.bytes + g.index_off, index, sizeof(index));
	memcpy(e.bytes + g.score_off, score, sizeof(score));
	for (int i = 0; i < 12; i++)
		e.bytes[g.k_off + i] = (uint8_t)i;
	for (int i = 0; i < 6; i++)
		e.bytes[g.v_off + i] = (uint8_t)(50 + i);
	seal(&e);
	expect_golden("shm.plane", e.bytes, e.n);
}

static void test_opaque_example(void **state)
{
	struct example e = load("shm.plane_opaque");
	struct plane_geometry g;
	struct plane_view v;

	(void)state;
	plane_geometry(0, 0, 5, 0, 0, 100, &g);
	assert_int_equal(g.bytes, e.n);
	assert_int_equal(plane_verify(e.bytes, e.n), 0);
	assert_int_equal(plane_open(e.bytes, e.n, &v), 0);
	assert_int_equal(plane_check_runs(&v), 0);
	assert_true(v.opaque && v.opaque_bytes == 100 && v.runs == 0 && v.pairs == 0);
	assert_true(v.k_row == 0 && v.v_row == 0 && v.k == e.bytes + g.k_off);
	assert_true(v.k[0] == 0 && v.k[99] == 99 && v.ids[4] == 4);
}

static void test_sections_are_aligned(void **state)
{
	(void)state;
	for (uint32_t pairs = 0; pairs < 200; pairs += 7) {
		struct plane_geometry g;

		plane_geometry(3, pairs, pairs % 2 ? 100 : 0, 10, 6, 0, &g);
		assert_int_equal(g.cu_off, KVG_PLANE_HEADER_BYTES);
		assert_int_equal(
			(g.ids_off | g.index_off | g.score_off | g.k_off | g.v_off | g.bytes) % 64,
			0);
		assert_true(g.ids_off >= g.cu_off + 4 * 4 && g.index_off >= g.ids_off);
		assert_true(g.score_off >= g.index_off + pairs * 2 &&
			g.k_off >= g.score_off + pairs * 2);
		assert_true(g.v_off >= g.k_off + pairs * 10 && g.bytes >= g.v_off + pairs * 6);
	}
}

/* ---- damage ---- */

static void expect_every_bit(const char *name)
{
	struct example e = load(name);

	for (size_t bit = 0; bit < 8 * e.n; bit++) {
		e.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
		if (plane_verify(e.bytes, e.n) != -EBADMSG)
			fail_msg(
				"%s: bit %zu of byte %zu is not protected", name, bit % 8, bit / 8);
		e.bytes[bit / 8] ^= (uint8_t)(1 << bit % 8);
	}
	assert_int_equal(plane_verify(e.bytes, e.n), 0);
}

static void test_every_bit_is_protected(void **state)
{
	(void)state;
	expect_every_bit("shm.plane");
	expect_every_bit("shm.plane_opaque");
}

static void test_cut_short(void **state)
{
	struct example e = load("shm.plane");
	struct plane_view v = {.runs = 99};

	(void)state;
	for (size_t n = 0; n < e.n; n++) {
		uint8_t *exact = malloc(n + 1);

		memcpy(exact, e.bytes, n);
		assert_int_equal(plane_open(exact, n, &v), -EBADMSG);
		assert_int_equal(plane_verify(exact, n), -EBADMSG);
		free(exact);
	}
	assert_int_equal(v.runs, 99);
	assert_int_equal(
		plane_open(e.bytes, sizeof(e.bytes), &v), 0); /* pages are larger than payloads */
}

/* A header with right checksums and a value that cannot be. */
#define REFUSED(name, field, value)                                                                \
	do {                                                                                       \
		struct example e_ = load(name);                                                    \
		struct plane_view v_;                                                              \
		header(&e_)->field = value;                                                        \
		seal(&e_);                                                                         \
		assert_int_equal(plane_open(e_.bytes, e_.n, &v_), -EBADMSG);                       \
	} while (0)

static void test_hostile_headers(void **state)
{
	(void)state;
	REFUSED("shm.plane", magic[0], 'k');
	REFUSED("shm.plane", version, 0);
	REFUSED("shm.plane", version, 1);
	REFUSED("shm.plane", version, 3);
	REFUSED("shm.plane", reserved, 1);
	REFUSED("shm.plane", plane, 7);
	REFUSED("shm.plane", n_planes, 0);
	REFUSED("shm.plane", n_planes, KVG_PLANES_MAX + 1);
	REFUSED("shm.plane", flags, 2);
	REFUSED("shm.plane", flags, KVG_PLANE_OPAQUE);
	REFUSED("shm.plane", runs, 0);
	REFUSED("shm.plane", runs, UINT32_MAX);
	REFUSED("shm.plane", tokens, 0);
	REFUSED("shm.plane", tokens, KVG_TOKENS_MAX + 1);
	REFUSED("shm.plane", pairs, 11);
	REFUSED("shm.plane", pairs, UINT32_MAX);
	REFUSED("shm.plane", n_token_ids, 4);
	REFUSED("shm.plane", k_row, 0);
	REFUSED("shm.plane", k_row, UINT32_MAX);
	REFUSED("shm.plane", v_row, 0);
	REFUSED("shm.plane", v_row, KVG_ROW_BYTES_MAX + 1);
	REFUSED("shm.plane", bytes, 0);
	REFUSED("shm.plane", bytes, UINT64_MAX);
	REFUSED("shm.plane", bytes, 4096);
	REFUSED("shm.plane_opaque", flags, 0);
	REFUSED("shm.plane_opaque", runs, 1);
	REFUSED("shm.plane_opaque", pairs, 1);
	REFUSED("shm.plane_opaque", n_planes, 2);
	REFUSED("shm.plane_opaque", k_row, 0);
	REFUSED("shm.plane_opaque", v_row, 1);
	REFUSED("shm.plane_opaque", v_row, UINT32_MAX);
}

static struct kvg_plane_header example_header(void)
{
	struct example e = load("shm.plane");

	return *header(&e);
}

/* The same with a size that agrees: only the limit itself can refuse it. */
static int open_consistent(struct kvg_plane_header *h)
{
	uint64_t opaque = h->flags & KVG_PLANE_OPAQUE ? (uint64_t)h->v_row << 32 | h->k_row : 0;
	_Alignas(64) uint8_t bytes[KVG_PLANE_HEADER_BYTES] = {0};
	struct plane_geometry g;
	struct plane_view v;

	plane_geometry(h->runs, h->pairs, h->n_token_ids, h->flags ? 0 : h->k_row,
		h->flags ? 0 : h->v_row, opaque, &g);
	h->bytes = g.bytes;
	plane_header_seal(h);
	memcpy(bytes, h, sizeof(*h));
	return plane_open(bytes, UINT64_MAX, &v);
}

#define CONSISTENT(name, field, value)                                                             \
	({                                                                                         \
		struct example e_ = load(name);                                                    \
		header(&e_)->field = value;                                                        \
		open_consistent(header(&e_));                                                      \
	})

static void test_limits(void **state)
{
	struct kvg_plane_header h;

	(void)state;
	assert_int_equal(CONSISTENT("shm.plane", runs, 1u << 20), 0);
	assert_int_equal(CONSISTENT("shm.plane", runs, (1u << 20) + 1), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane", pairs, 10), 0);
	assert_int_equal(CONSISTENT("shm.plane", pairs, 11), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane", k_row, KVG_ROW_BYTES_MAX), 0);
	assert_int_equal(CONSISTENT("shm.plane", k_row, KVG_ROW_BYTES_MAX + 1), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane", k_row, 0), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane", v_row, KVG_ROW_BYTES_MAX), 0);
	assert_int_equal(CONSISTENT("shm.plane", v_row, KVG_ROW_BYTES_MAX + 1), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane", v_row, 0), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane_opaque", k_row, (uint32_t)KVG_BLOCK_BYTES_MAX), 0);
	assert_int_equal(
		CONSISTENT("shm.plane_opaque", k_row, (uint32_t)KVG_BLOCK_BYTES_MAX + 1), -EBADMSG);
	assert_int_equal(CONSISTENT("shm.plane_opaque", v_row, 1), -EBADMSG);
	h = example_header();
	h.tokens = h.n_token_ids = h.pairs = 0;
	assert_int_equal(open_consistent(&h), -EBADMSG);
	h = example_header();
	h.runs = h.pairs = 0;
	assert_int_equal(open_consistent(&h), -EBADMSG);
}

/* Row sizes that bring the end of the payload round to where it is: 2^64 bytes further. */
static void test_rows_that_wrap(void **state)
{
	struct kvg_plane_header h = example_header();

	(void)state;
	h.runs = 1u << 20;
	h.tokens = KVG_TOKENS_MAX;
	h.n_token_ids = 0;
	h.pairs = h.k_row = 0xffffffffu;
	for (h.v_row = 0; h.v_row < 8; h.v_row++)
		assert_int_equal(open_consistent(&h), -EBADMSG);
}

static int check_runs(const uint32_t cu[3], const uint16_t index[3])
{
	const struct plane_view v = {.runs = 2, .tokens = 5, .pairs = 3, .cu = cu, .index = index};

	return plane_check_runs(&v);
}

static void test_runs(void **state)
{
	const uint16_t good[3] = {4, 0, 2}, far[3] = {4, 5, 2}, last[3] = {0, 0, 65535};

	(void)state;
	assert_int_equal(check_runs((uint32_t[]){0, 2, 3}, good), 0);
	assert_int_equal(check_runs((uint32_t[]){0, 0, 3}, good), 0);
	assert_int_equal(check_runs((uint32_t[]){0, 3, 3}, good), 0);
	assert_int_equal(check_runs((uint32_t[]){1, 2, 3}, good), -EBADMSG);
	assert_int_equal(check_runs((uint32_t[]){0, 2, 2}, good), -EBADMSG);
	assert_int_equal(check_runs((uint32_t[]){0, 3, 2}, good), -EBADMSG);
	assert_int_equal(check_runs((uint32_t[]){0, 4, 3}, good), -EBADMSG);
	assert_int_equal(check_runs((uint32_t[]){0, UINT32_MAX, 3}, good), -EBADMSG);
	assert_int_equal(check_runs((uint32_t[]){0, 2, 3}, far), -EBADMSG);
	assert_int_equal(check_runs((uint32_t[]){0, 2, 3}, last), -EBADMSG);
	{
		/* a run longer than the block */
		const uint16_t zeros[12] = {0};
		const struct plane_view v = {.runs = 2,
			.tokens = 5,
			.pairs = 6,
			.cu = (uint32_t[]){0, 6, 6},
			.index = zeros};

		assert_int_equal(plane_check_runs(&v), -EBADMSG);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_crc32c),
		cmocka_unit_test(test_example_is_read),
		cmocka_unit_test(test_example_is_written),
		cmocka_unit_test(test_opaque_example),
		cmocka_unit_test(test_sections_are_aligned),
		cmocka_unit_test(test_every_bit_is_protected),
		cmocka_unit_test(test_cut_short),
		cmocka_unit_test(test_hostile_headers),
		cmocka_unit_test(test_limits),
		cmocka_unit_test(test_rows_that_wrap),
		cmocka_unit_test(test_runs),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
