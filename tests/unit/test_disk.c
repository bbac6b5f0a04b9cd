/* SPDX-License-Identifier: Apache-2.0 */
/* The log store on real files: what goes in comes out, also after a restart, and nothing else does. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/mem/disk_private.h"
#include "tests/unit/disk_fixture.h"

static struct fixture f;

static void test_store_load(void **state)
{
	(void)state;
	fix_new(&f, 1, 16);
	fix_open(&f);
	for (uint32_t i = 0; i < 40; i++)
		assert_int_equal(plane_store(plane_of(&f, i, i % 3, 500 + i * 300)), 0);
	fix_wait(&f);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	fix_close(&f);
	fix_open(&f);
	for (uint32_t i = 0; i < 40; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	fix_free(&f);
}

static void expect_all(uint32_t from, uint32_t to)
{
	for (uint32_t i = from; i < to; i++) {
		assert_true(f.plane[i].there);
		assert_int_equal(plane_get(&f.plane[i]), 0);
	}
}

static void put_all(uint32_t from, uint32_t to, uint32_t tenants, uint32_t bytes)
{
	for (uint32_t i = from; i < to; i++)
		assert_int_equal(plane_put(plane_of(&f, i, i % tenants, bytes)), 0);
}

/* Erased in segments that are open, and that are closed; forgotten ones may come back. */
static void test_erase(void **state)
{
	(void)state;
	fix_new(&f, 1, 32);
	fix_open(&f);
	put_all(0, 60, 2, 5000);
	for (uint32_t i = 0; i < 60; i += 5)
		disk_erase(f.d, f.plane[i].at);
	disk_forget(f.d, f.plane[1].at);
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	for (uint32_t i = 2; i < 60; i++)
		assert_int_equal(f.plane[i].there, i % 5 != 0);
	fix_close(&f);
	fix_open(&f);
	for (uint32_t i = 2; i < 60; i++) {
		assert_int_equal(f.plane[i].there, i % 5 != 0);
		if (i % 5 == 1)
			disk_erase(f.d, f.plane[i].at);
	}
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	for (uint32_t i = 2; i < 60; i++) {
		assert_int_equal(f.plane[i].there, i % 5 > 1);
		if (f.plane[i].there)
			assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	fix_free(&f);
}

/* What is stored again after it was erased is there; of two copies one is found. */
static void test_again(void **state)
{
	(void)state;
	fix_new(&f, 1, 16);
	fix_open(&f);
	put_all(0, 4, 1, 5000);
	disk_erase(f.d, f.plane[0].at);
	disk_forget(f.d, f.plane[1].at);
	put_all(0, 2, 1, 5000);
	assert_int_equal(plane_put(&f.plane[2]), 0); /* and the first copy is still named */
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	expect_all(0, 4);
	disk_erase(f.d, f.plane[2].at); /* with it goes the older one */
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	assert_false(f.plane[2].there);
	fix_free(&f);
}

/* An older copy that was forgotten does not come back when the newer one, erased, has left the disk with all of its segment. */
static void test_forgotten(void **state)
{
	(void)state;
	for (unsigned erase = 0; erase < 2; erase++) {
		fix_new(&f, 1, 16);
		fix_open(&f);
		put_all(0, 4, 1, 5000);
		disk_forget(f.d, f.plane[0].at);
		disk_forget(f.d, f.plane[1].at);
		fix_close(&f); /* its segment is closed, and holds 2 and 3 */
		fix_open(&f);
		assert_true(f.plane[0].there && f.plane[1].there);
		disk_forget(f.d, f.plane[0].at);
		disk_forget(f.d, f.plane[1].at);
		put_all(0, 2, 1, 5000);
		disk_erase(f.d, f.plane[0].at);
		disk_erase(f.d, f.plane[1].at);
		if (erase) {
			assert_true(disk_erase_forgotten(f.tenant[0]));
			assert_false(disk_erase_forgotten(f.tenant[0]));
		}
		assert_int_equal(fix_sync(&f), 0);
		fix_close(&f); /* nothing is in the newer segment: it is freed */
		fix_open(&f);
		assert_int_equal(f.plane[0].there, !erase);
		assert_int_equal(f.plane[1].there, !erase);
		assert_true(f.plane[2].there && f.plane[3].there);
		fix_free(&f);
	}
}

static off_t where(struct disk_place at)
{
	const struct disk_segment *s = segment_at(f.d, at);

	assert_non_null(s);
	return (off_t)segment_offset(s, s->items[at.item].page);
}

static void write_at(off_t at, const void *bytes, size_t n)
{
	const int fd = open(f.path[0], O_WRONLY | O_CLOEXEC);

	assert_true(fd >= 0 && pwrite(fd, bytes, n, at) == (ssize_t)n);
	close(fd);
}

/* The later copy is half written: the earlier one holds, and the later one counts for nothing from then on, whole or not. */
static void test_half_written(void **state)
{
	static const uint8_t junk[64] = {1, 2, 3};
	struct plane *p;
	off_t later;

	(void)state;
	fix_new(&f, 1, 16);
	fix_open(&f);
	put_all(0, 4, 1, 500); /* in the segment of both copies, so that it stays */
	p = &f.plane[2];
	assert_int_equal(plane_put(p), 0);
	later = where(p->at);
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	write_at(later + p->bytes / 2, junk, sizeof(junk));
	for (unsigned i = 0; i < 2; i++) {
		fix_open(&f);
		expect_all(0, 4);
		assert_true(where(p->at) != later);
		assert_int_equal(fix_sync(&f), 0);
		fix_kill(&f, false);
	}
	write_at(later, p->payload, p->bytes);
	fix_open(&f);
	assert_true(where(p->at) != later);
	disk_erase(f.d, p->at);
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	assert_false(p->there);
	fix_free(&f);
}

/* Ten times what fits, of which a part is wanted: that part is there, and nothing else can be. */
static void test_clean(void **state)
{
	struct disk_stat st;

	(void)state;
	fix_new(&f, 1, 24);
	fix_open(&f);
	for (uint32_t i = 0; i < 1500; i++) {
		int r;

		plane_of(&f, i, i % 2, 3000 + i % 9 * 1200)->wanted = i % 50 == 0;
		while ((r = plane_put(&f.plane[i])) == -ENOSPC || r == -EAGAIN)
			loop_run_once(f.loop, 100);
		assert_int_equal(r, 0);
	}
	assert_true(f.moved > 0 && f.dropped > 500);
	st = fix_stat(&f);
	assert_true(st.moved_bytes > 0 && st.stored_bytes > 2 * st.capacity);
	for (uint32_t i = 0; i < 1500; i++) {
		if (i % 50 == 0)
			assert_true(f.plane[i].there);
		if (f.plane[i].there)
			assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	for (uint32_t i = 0; i < 1500; i++) {
		if (i % 50 == 0)
			assert_true(f.plane[i].there);
		if (f.plane[i].there)
			assert_int_equal(plane_get(&f.plane[i]), 0);
	}
	fix_free(&f);
}

/* Everything is wanted: the store says that it is full, and does not go on cleaning. */
static void test_full(void **state)
{
	struct disk_stat st;
	uint32_t n = 0;
	bool refused = false;
	int r;

	(void)state;
	fix_new(&f, 1, 12);
	fix_open(&f);
	/* 50 times in a row: cleaning packs planes closer first */
	for (unsigned times = 0; times < 50; times++) {
		while ((r = plane_put(plane_of(&f, n, 0, 6000))) == 0) {
			times = 0;
			n++;
		}
		assert_int_equal(r, -ENOSPC);
		loop_run_once(f.loop, 1);
	}
	st = fix_stat(&f);
	assert_true(st.moved_bytes < 2 * st.capacity);
	assert_true(st.stores_refused >= 50 && st.live > st.capacity / 4);
	expect_all(0, n);
	/* half of it goes, spread over all segments: there is room again */
	f.rooms = 0;
	for (uint32_t i = 0; i < n; i += 2) {
		disk_forget(f.d, f.plane[i].at);
		f.plane[i].there = false;
	}
	while ((r = plane_put(&f.plane[n])) == -ENOSPC) {
		refused = true;
		loop_run_once(f.loop, 1000);
	}
	assert_int_equal(r, 0);
	for (unsigned i = 0; i < 100 && refused && !f.rooms; i++)
		loop_run_once(f.loop, 100);
	assert_true(f.rooms > 0 || !refused);
	for (uint32_t i = 1; i < n; i += 2)
		assert_int_equal(plane_get(&f.plane[i]), 0);
	fix_free(&f);
}

/* A tenant at his limit makes room among his own; others are not touched. */
static void test_limit(void **state)
{
	(void)state;
	fix_new(&f, 1, 32);
	fix_open(&f);
	put_all(0, 20, 1, 6000);
	for (uint32_t i = 0; i < 20; i++)
		f.plane[i].wanted = false;
	disk_tenant_limit(f.tenant[1], 4 * SEGMENT);
	for (uint32_t i = 100; i < 300; i++) {
		int r;

		plane_of(&f, i, 1, 6000)->wanted = i % 40 == 0;
		while ((r = plane_put(&f.plane[i])) == -ENOSPC)
			loop_run_once(f.loop, 1000);
		assert_int_equal(r, 0);
		assert_true(disk_tenant_used(f.tenant[1]) <= 6 * SEGMENT);
	}
	expect_all(0, 20);
	assert_true(f.dropped > 100);
	assert_true(fix_stat(&f).free_segments >= 32 - 4 - 6);
	fix_free(&f);
}

static void test_wear(void **state)
{
	uint64_t bytes = 0;
	uint32_t n = 0;
	int r;

	(void)state;
	fix_new(&f, 1, 32);
	f.o.write_bytes_per_day = 24 * 200000ull;
	fix_open(&f);
	while ((r = plane_put(plane_of(&f, n, 0, 8000))) == 0)
		bytes += f.plane[n++].bytes;
	assert_int_equal(r, -EDQUOT);
	assert_true(bytes > 50000 && bytes <= 200000);
	assert_true(fix_stat(&f).stored_bytes <= 220000);
	expect_all(0, n);
	fix_free(&f);
}

static void test_bounds(void **state)
{
	struct plane *p;
	unsigned n = 0;
	int r;

	(void)state;
	fix_new(&f, 1, 16);
	f.o.in_flight_bytes = 64 << 10;
	fix_open(&f);
	assert_int_equal(plane_put(plane_of(&f, 0, 0, SEGMENT)), -EFBIG);
	assert_int_equal(plane_put(plane_of(&f, 1, 0, SEGMENT - 6 * 4096)), 0);
	p = plane_of(&f, 2, 0, 5000);
	p->store.record.plane = 2; /* of two */
	assert_int_equal(plane_put(p), -EINVAL);
	for (uint32_t i = 10; (r = plane_store(plane_of(&f, i, 0, 8000))) == 0; i++)
		n++;
	assert_int_equal(r, -EAGAIN);
	assert_true(n >= 4 && n <= 8);
	assert_int_equal(f.rooms, 0);
	fix_wait(&f);
	while (!f.rooms)
		loop_run_once(f.loop, -1);
	assert_int_equal(plane_put(plane_of(&f, 50, 0, 8000)), 0);
	f.plane[50].at.item += 1000; /* nothing is there */
	assert_int_equal(plane_get(&f.plane[50]), -ENOENT);
	disk_forget(f.d, f.plane[50].at);
	f.plane[50].at = f.plane[10].at; /* another plane */
	assert_int_equal(plane_get(&f.plane[50]), -EBADMSG);
	assert_int_equal(fix_stat(&f).bad_planes, 1);
	fix_free(&f);
}

static void test_tenants(void **state)
{
	uint8_t owner[32] = {0};

	(void)state;
	fix_new(&f, 1, 32);
	fix_open(&f);
	put_all(0, 90, 3, 4000);
	for (uint32_t i = 0; i < 90; i++) {
		uint8_t *o = &owner[f.plane[i].at.segment];

		assert_true(!*o || *o == 1 + f.plane[i].tenant);
		*o = (uint8_t)(1 + f.plane[i].tenant);
	}
	assert_int_equal(plane_store(plane_of(&f, 100, 1, 4000)), 0);
	f.tenant[1] = disk_tenant_free(f.tenant[1]);
	fix_wait(&f);
	assert_int_equal(f.plane[100].error, -ECANCELED);
	assert_int_equal(fix_sync(&f), 0);
	assert_int_equal(disk_tenant_new(f.d, "t1", (void *)2, &f.tenant[1]), 0);
	assert_int_equal(disk_tenant_new(f.d, "t1", (void *)2, &f.tenant[1]), -EEXIST);
	fix_kill(&f, false);
	fix_open(&f);
	for (uint32_t i = 0; i < 90; i++)
		assert_int_equal(f.plane[i].there, i % 3 != 1);
	assert_false(f.plane[100].there);
	fix_free(&f);
}

static void test_devices(void **state)
{
	unsigned on[FIX_DEVICES] = {0};

	(void)state;
	fix_new(&f, 3, 16);
	f.o.discard = true;
	fix_open(&f);
	for (uint32_t k = 0; k < 200; k += 20) {
		for (uint32_t i = k; i < k + 20; i++)
			assert_int_equal(plane_store(plane_of(&f, i, 0, 6000)), 0);
		fix_wait(&f);
	}
	for (uint32_t i = 0; i < 200; i++)
		on[f.plane[i].at.device - 1]++;
	assert_true(on[0] > 20 && on[1] > 20 && on[2] > 20);
	expect_all(0, 200);
	assert_int_equal(fix_sync(&f), 0);
	fix_kill(&f, false);
	fix_open(&f);
	expect_all(0, 200);
	for (uint32_t i = 0; i < 200; i++)
		disk_forget(f.d, f.plane[i].at);
	assert_int_equal(fix_sync(&f), 0);
	assert_true(fix_stat(&f).free_segments >= 3 * 16 - 3);
	assert_true(fix_stat(&f).discarded_bytes > 0);
	assert_int_equal(fix_stat(&f).live, 0);
	fix_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_store_load),
		cmocka_unit_test(test_erase),
		cmocka_unit_test(test_again),
		cmocka_unit_test(test_forgotten),
		cmocka_unit_test(test_half_written),
		cmocka_unit_test(test_clean),
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_limit),
		cmocka_unit_test(test_wear),
		cmocka_unit_test(test_bounds),
		cmocka_unit_test(test_tenants),
		cmocka_unit_test(test_devices),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
