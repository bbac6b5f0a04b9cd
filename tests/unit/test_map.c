/* SPDX-License-Identifier: Apache-2.0 */
/* Shared memory at addresses for huge pages; asking for them changes no byte and takes nothing that was not asked for. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "proto/map.h"
#include "tests/lib/huge.h"

#define MIB    (1ull << 20)
#define ROUNDS 50

static int memory(uint64_t bytes)
{
	int fd = memfd_create("test", MFD_CLOEXEC);

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
	return fd;
}

static uint64_t kernel_bytes(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Of address space, in use. */
static uint64_t address_space(void)
{
	FILE *f = fopen("/proc/self/statm", "re");
	unsigned long pages = 0;

	assert_non_null(f);
	assert_int_equal(fscanf(f, "%lu", &pages), 1);
	fclose(f);
	return (uint64_t)pages * 4096;
}

static void test_address(void **state)
{
	static const uint64_t sizes[] = {
		1, 4096, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 7 * MIB + 12288};
	const uint64_t before = address_space();

	(void)state;
	for (size_t i = 0; i < ROUNDS * sizeof(sizes) / sizeof(sizes[0]); i++) {
		const uint64_t bytes = sizes[i / ROUNDS];
		int fd = memory(bytes);
		void *map;

		assert_int_equal(map_shared(fd, bytes, PROT_READ | PROT_WRITE, &map), 0);
		assert_true(bytes < MAP_HUGE_BYTES || (uintptr_t)map % MAP_HUGE_BYTES == 0);
		((char *)map)[bytes - 1] = 7;
		assert_int_equal(kernel_bytes(fd), 4096); /* it is the file's memory */
		munmap(map, bytes);
		close(fd);
	}
	assert_in_range(address_space(), 0, before + ROUNDS * MIB); /* none of it is kept */
}

static void test_refused(void **state)
{
	uint64_t before;
	void *map = &before;

	(void)state;
	before = address_space();
	for (int i = 0; i < ROUNDS; i++)
		assert_int_equal(map_shared(-1, 4 * MIB, PROT_READ, &map), -EBADF);
	assert_int_equal(map_shared(0, 1ull << 60, PROT_READ, &map), -ENOMEM);
	assert_ptr_equal(map, &before);
	assert_in_range(address_space(), 0, before + ROUNDS * MIB);
}

static void test_private(void **state)
{
	const uint64_t before = address_space();
	void *map = &map;

	(void)state;
	assert_int_equal(map_private(1ull << 60, &map), -ENOMEM);
	assert_ptr_equal(map, &map);
	for (unsigned i = 0; i < ROUNDS; i++) {
		assert_int_equal(map_private(4 * MIB, &map), 0);
		assert_int_equal((uintptr_t)map % MAP_HUGE_BYTES, 0);
		for (size_t k = 0; k < 4 * MIB; k += 64)
			assert_int_equal(((char *)map)[k], 0);
		memset(map, 1, 4 * MIB);
		munmap(map, 4 * MIB);
	}
	assert_in_range(address_space(), 0, before + ROUNDS * MIB); /* none of it is kept */
}

static void test_wish(void **state)
{
	int fd = memory(8 * MIB);
	void *map;
	char *p;

	(void)state;
	if (!huge_possible())
		skip();
	assert_int_equal(map_shared(fd, 8 * MIB, PROT_READ | PROT_WRITE, &map), 0);
	p = map;
	memset(p + 3 * MIB, 3, 4096);
	memset(p + 5 * MIB, 5, 4096);
	map_huge(p + MIB, 4 * MIB + 4096); /* of the four, the second is inside */
	assert_int_equal(huge_mapped(map), 2 * MIB);
	assert_int_equal(kernel_bytes(fd), 2 * MIB + 4096);
	assert_int_equal(p[3 * MIB - 1], 0);
	assert_int_equal(p[3 * MIB + 4095], 3);
	assert_int_equal(p[5 * MIB], 5);
	map_huge(p + 2 * MIB, 2 * MIB - 1); /* less than one */
	map_huge(p + 6 * MIB + 1, MIB);
	map_huge(p, 0);
	assert_int_equal(kernel_bytes(fd), 2 * MIB + 4096);
	munmap(map, 8 * MIB);
	close(fd);
}

/* Who may only read asks in vain and brings no memory about. */
static void test_read_only(void **state)
{
	int fd = memory(4 * MIB);
	void *map;

	(void)state;
	assert_int_equal(map_shared(fd, 4 * MIB, PROT_READ, &map), 0);
	map_huge(map, 4 * MIB);
	assert_int_equal(kernel_bytes(fd), 0);
	munmap(map, 4 * MIB);
	close(fd);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_address),
		cmocka_unit_test(test_refused),
		cmocka_unit_test(test_private),
		cmocka_unit_test(test_wish),
		cmocka_unit_test(test_read_only),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
