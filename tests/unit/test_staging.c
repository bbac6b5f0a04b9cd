/* SPDX-License-Identifier: Apache-2.0 */
/* Staging memory: the client writes, the daemon reads, nobody resizes, what is released is given back. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/cache/cache.h"
#include "daemon/cache/staging.h"

#define MIB   (1ull << 20)
#define BYTES MIB

static uint64_t kernel_bytes(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void test_client_writes_daemon_reads(void **state)
{
	struct staging *s;
	uint8_t *map;
	uint64_t a, b, c;
	int seals;

	(void)state;
	assert_int_equal(staging_new(BYTES, &s), 0);
	assert_int_equal(staging_bytes(s), BYTES);
	seals = fcntl(staging_fd(s), F_GET_SEALS);
	assert_int_equal(seals & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL),
		F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
	assert_int_equal(ftruncate(staging_fd(s), 4096), -1); /* so that the daemon never faults */
	assert_int_equal(fcntl(staging_fd(s), F_GETFD), FD_CLOEXEC);
	assert_int_equal(kernel_bytes(staging_fd(s)), 0);
	map = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, staging_fd(s), 0);
	assert_ptr_not_equal(map, MAP_FAILED);

	assert_int_equal(staging_alloc(s, 5000, &a), 0);
	assert_int_equal(staging_alloc(s, 100, &b), 0);
	assert_int_equal(a % 4096, 0);
	assert_int_equal(b % 4096, 0);
	assert_true(b >= a + 8192 || b + 4096 <= a);
	memset(map + a, 1, 5000);
	memset(map + b, 2, 100);
	assert_int_equal(staging_map(s)[a + 4999], 1);
	assert_int_equal(staging_map(s)[b + 99], 2);
	assert_int_equal(kernel_bytes(staging_fd(s)), 3 * 4096);

	staging_release(s, a, 5000);
	assert_int_equal(kernel_bytes(staging_fd(s)), 4096);
	assert_int_equal(map[a], 0);
	assert_int_equal(staging_map(s)[b], 2);

	assert_int_equal(staging_alloc(s, BYTES, &c), -ENOSPC);
	assert_int_equal(staging_alloc(s, UINT64_MAX - 5000, &c), -ENOSPC);
	assert_int_equal(staging_alloc(s, 0, &c), -ENOSPC);
	staging_release(s, b, 100);
	assert_int_equal(staging_alloc(s, BYTES, &c), 0);
	assert_int_equal(c, 0);
	staging_release(s, c, BYTES);
	munmap(map, BYTES);
	assert_null(staging_unref(s));
}

/* The last reference unmaps, from whichever thread. */
static void *unref(void *s)
{
	usleep(1000);
	assert_int_equal(staging_map(s)[0], 3);
	staging_unref(s);
	return NULL;
}

static void test_references(void **state)
{
	struct staging *s;
	pthread_t t[4];
	uint64_t at;
	int fd;

	(void)state;
	assert_int_equal(staging_new(BYTES, &s), 0);
	fd = staging_fd(s);
	assert_int_equal(staging_alloc(s, 4096, &at), 0);
	assert_int_equal(pwrite(fd, "\3", 1, 0), 1);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pthread_create(&t[i], NULL, unref, staging_ref(s)), 0);
	staging_unref(s);
	for (int i = 0; i < 4; i++)
		pthread_join(t[i], NULL);
	assert_int_equal(fcntl(fd, F_GETFD), -1);
	assert_null(staging_unref(NULL));
}

static void test_sizes(void **state)
{
	struct staging *s = NULL;

	(void)state;
	assert_int_equal(staging_new(0, &s), -EINVAL);
	assert_int_equal(staging_new(UINT64_MAX, &s), -EINVAL);
	assert_null(s);
	assert_int_equal(staging_new(1, &s), 0);
	assert_int_equal(staging_bytes(s), 4096);
	staging_unref(s);
}

/* Stages of some size begin at huge pages, and as many fit as the quota has bytes for; no byte of padding is for use. */
static void test_large(void **state)
{
	const uint64_t quota = 16 * MIB, bytes = 2 * MIB + 5000;
	uint64_t at[8], n = 0;
	struct staging *s;
	uint8_t *map;

	(void)state;
	assert_int_equal(staging_new(quota, &s), 0);
	map = mmap(NULL, staging_bytes(s), PROT_READ | PROT_WRITE, MAP_SHARED, staging_fd(s), 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	for (; (n + 1) * bytes <= quota; n++) {
		assert_int_equal(staging_alloc(s, bytes, &at[n]), 0);
		assert_int_equal(at[n] % (2 * MIB), 0);
		memset(map + at[n], 7, bytes);
	}
	assert_int_equal(n, 7);
	assert_int_equal(staging_excess(s), 0);
	memset(map + at[0] + bytes, 7, 2 * 4096); /* the page that it ends in is its own */
	assert_int_equal(staging_excess(s), 2 * 4096);
	for (uint64_t i = 0; i < n; i++)
		staging_release(s, at[i], bytes);
	assert_int_equal(staging_excess(s), 2 * 4096);
	staging_sweep(s);
	assert_int_equal(kernel_bytes(staging_fd(s)), 0);
	munmap(map, staging_bytes(s));
	staging_unref(s);
}

/* Memory where nothing is reserved: seen, and taken away in pieces; what is reserved stays as it is. */
static void test_outside(void **state)
{
	enum {
		RUNS = 600
	};
	const uint64_t bytes = 2 * RUNS * 4096;
	uint64_t at[2 * RUNS];
	struct staging *s;
	uint8_t *map;

	(void)state;
	assert_int_equal(staging_new(bytes, &s), 0);
	map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, staging_fd(s), 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	for (int i = 0; i < 2 * RUNS; i++)
		assert_int_equal(staging_alloc(s, 4096, &at[i]), 0);
	for (int i = 0; i < 2 * RUNS; i += 2)
		staging_release(s, at[i], 4096);
	assert_int_equal(staging_excess(s), 0);
	memset(map, 7, bytes / 2); /* half of what may be there, wherever it is */
	assert_int_equal(staging_excess(s), 0);
	memset(map, 7, bytes);
	assert_int_equal(staging_excess(s), bytes / 2);
	staging_sweep(s); /* some of them */
	assert_in_range(staging_excess(s), 1, bytes / 2 - 1);
	for (int i = 0; i < 5 && staging_excess(s); i++)
		staging_sweep(s);
	assert_int_equal(staging_excess(s), 0);
	assert_int_equal(kernel_bytes(staging_fd(s)), bytes / 2);
	for (int i = 1; i < 2 * RUNS; i += 2)
		for (int b = 0; b < 4096; b++)
			assert_int_equal(map[at[i] + (uint64_t)b], 7);
	munmap(map, bytes);
	staging_unref(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_client_writes_daemon_reads),
		cmocka_unit_test(test_large),
		cmocka_unit_test(test_outside),
		cmocka_unit_test(test_references),
		cmocka_unit_test(test_sizes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
