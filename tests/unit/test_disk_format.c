/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of a disk, as they are for good; and what is said of a file that is no disk, or not this one. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/mem/disk_device.h"
#include "proto/plane.h"
#include "tests/unit/disk_fixture.h"

#define GOLDEN_SUPER   0xfe5deefbu
#define GOLDEN_HEADER  0xa714db0au
#define GOLDEN_RECORDS 0x43e9208u

static struct fixture f;
static char why[512];
static _Alignas(8) uint8_t page[DISK_PAGE];
static const uint8_t id[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};

/* Golden: the checksum of a page says that every byte of it is where it was. */
static uint32_t crc_of(const void *p)
{
	uint32_t crc;

	memcpy(&crc, (const uint8_t *)p + FMT_CRC_AT, sizeof(crc));
	assert_int_equal(crc, crc32c(0, p, FMT_CRC_AT));
	return crc;
}

static void test_super(void **state)
{
	struct fmt_super s = {.version = 1, .bytes = 1 << 30, .segment_bytes = 64 << 20}, t;

	(void)state;
	memcpy(s.id, id, sizeof(id));
	s.n_segments = fmt_segments(s.bytes, s.segment_bytes);
	assert_int_equal(s.n_segments, 15);
	fmt_super_make(&s, page);
	assert_int_equal(crc_of(page), GOLDEN_SUPER);
	assert_int_equal(fmt_super_check(page, &t), 0);
	for (unsigned i = 0; i < sizeof(s); i++) {
		page[i] ^= 1;
		assert_true(fmt_super_check(page, &t) < 0);
		page[i] ^= 1;
	}
	s.version = 2;
	fmt_super_make(&s, page);
	assert_int_equal(fmt_super_check(page, &t), -EPROTONOSUPPORT);
	s.version = 1;
	s.n_segments++;
	fmt_super_make(&s, page);
	assert_int_equal(fmt_super_check(page, &t), -EBADMSG);
}

static void test_segment(void **state)
{
	const struct fmt_where w = {
		.id = id, .segment = 3, .segment_pages = 16, .generation = 5, .salt = 7};
	struct fmt_segment s = {.version = 1,
				   .segment = 3,
				   .generation = 5,
				   .salt = 7,
				   .tenant_bytes = 3,
				   .tenant = "one"},
			   t;
	struct fmt_page *p = (struct fmt_page *)page;
	struct disk_record r = {.bytes = 5000,
		.plane = 1,
		.n_planes = 2,
		.page_shift = 16,
		.tokens = 256,
		.pairs = 77,
		.mass = .5f,
		.note = 9,
		.depth = 4,
		.has_parent = true,
		.plane_bytes = {100, 5000},
		.plane_pairs = {1, 77}};

	(void)state;
	memcpy(s.id, id, sizeof(id));
	fmt_segment_make(&s, FMT_HEADER, page);
	assert_int_equal(crc_of(page), GOLDEN_HEADER);
	assert_int_equal(fmt_segment_check(page, FMT_HEADER, &w, &t), 0);
	assert_int_equal(fmt_segment_check(page, FMT_TRAILER, &w, &t), -EBADMSG);

	memset(page, 0, sizeof(page));
	memset(&r.key, 0xaa, sizeof(r.key));
	memset(&r.parent, 0xbb, sizeof(r.parent));
	assert_int_equal(fmt_record_make(&r, &p->record[0]), 0);
	p->record[0].page = 2;
	p->record[0].head = p->page = 1;
	p->record[0].order_low = 11;
	p->chunk_pages = 3;
	p->parts = p->n_records = 1;
	fmt_page_make(p, &w);
	assert_int_equal(crc_of(page), GOLDEN_RECORDS);
	assert_int_equal(fmt_page_check(p, &w, 1, 0, false), 0);
	assert_int_equal(fmt_page_check(p, &w, 2, 0, false), -EBADMSG);
	assert_int_equal(fmt_page_check(p, &w, 1, 1, false), -EBADMSG);
	assert_int_equal(fmt_page_check(p, &w, 1, 0, true), -EBADMSG);
	p->record[0].page = 14; /* two pages, of which one is the trailer */
	fmt_seal(p);
	assert_int_equal(fmt_page_check(p, &w, 1, 0, false), -EBADMSG);
}

static void overwrite(uint64_t at, const void *bytes, size_t n)
{
	FILE *file = fopen(f.path[0], "r+");

	assert_non_null(file);
	assert_int_equal(fseek(file, (long)at, SEEK_SET), 0);
	assert_int_equal(fwrite(bytes, 1, n, file), n);
	fclose(file);
}

static int check(void)
{
	struct disk_info info;

	return disk_check(f.path[0], true, &info, why, sizeof(why));
}

static void test_messages(void **state)
{
	struct fmt_super s = {.version = 2};
	struct disk_info info;
	uint64_t bytes;

	(void)state;
	fix_new(&f, 1, 16);
	bytes = FMT_FIRST + 16 * SEGMENT + DISK_PAGE;
	assert_int_equal(disk_format(f.path[0], 0, SEGMENT, false, why, sizeof(why)), -EEXIST);
	assert_non_null(strstr(why, "--force"));
	fix_open(&f);
	assert_int_equal(plane_put(plane_of(&f, 0, 0, 6000)), 0);
	assert_int_equal(check(), -EBUSY);
	assert_non_null(strstr(why, "process"));
	fix_close(&f);
	assert_int_equal(disk_check(f.path[0], true, &info, why, sizeof(why)), 0);
	assert_true(info.planes == 1 && info.closed == 1 && info.free == 15 && !info.bad_planes &&
		info.tenants == 1);
	overwrite(FMT_FIRST + f.plane[0].at.segment * (uint64_t)SEGMENT + 4 * 4096 + 1000, "X",
		1); /* in the plane */
	assert_int_equal(disk_check(f.path[0], true, &info, why, sizeof(why)), 0);
	assert_int_equal(info.bad_planes, 1);
	assert_int_equal(truncate(f.path[0], (off_t)bytes + 4096), 0);
	assert_int_equal(check(), -EFBIG);
	assert_non_null(strstr(why, "truncate"));
	assert_int_equal(truncate(f.path[0], (off_t)bytes), 0);
	overwrite(0, "garbage", 7); /* the copy is good */
	assert_int_equal(check(), 0);
	overwrite(bytes - 4096, "garbage", 7);
	assert_int_equal(check(), -EBADMSG);
	assert_non_null(strstr(why, "kvgatectl disk format"));
	fmt_super_make(&s, page);
	overwrite(0, page, sizeof(page));
	assert_int_equal(check(), -EPROTONOSUPPORT);
	assert_non_null(strstr(why, "newer"));
	f.o.paths = (const char *[]){f.path[0]};
	assert_int_equal(disk_open(&f.o, &f.d, &f.bad), -ENODEV);
	assert_int_equal(f.bad, 1);
	f.d = NULL;
	assert_int_equal(disk_format(f.path[0], 1 << 20, SEGMENT, true, why, sizeof(why)), -EINVAL);
	assert_int_equal(
		disk_format("/nowhere/at/all", 1 << 30, 0, false, why, sizeof(why)), -ENOENT);
	assert_int_equal(disk_check("/nowhere", false, &info, why, sizeof(why)), -ENOENT);
	fix_free(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_super),
		cmocka_unit_test(test_segment),
		cmocka_unit_test(test_messages),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
