/* SPDX-License-Identifier: Apache-2.0 */
/* Segments of a device over a driver that is not real: made, limited, given out, adopted; and every reason for none. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/mem/pool_adopt.h"
#include "daemon/mem/tier_gpu.h"
#include "tests/lib/fake_cuda.h"

#define MIB   (1ull << 20)
#define SHIFT 16

static struct tier_gpu gpu;
static struct gpu_driver *driver;
static char why[TIER_GPU_TEXT];

static int setup(void **state)
{
	int devices = 0;

	(void)state;
	setenv("KVGATE_FAKE_CUDA_DEVICES", "2", 1);
	unsetenv("KVGATE_FAKE_CUDA_FAIL");
	assert_int_equal(tier_gpu_open_driver(FAKE_CUDA, &driver, &devices, why, sizeof(why)), 0);
	assert_int_equal(devices, 2);
	assert_int_equal(tier_gpu_init(&gpu, driver, 1, 8 * MIB, why, sizeof(why)), 0);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	driver = tier_gpu_close_driver(driver);
	return 0;
}

static struct pool *pool_of(struct tier_gpu *g, struct pool_tenant **ret)
{
	const struct pool_options o = {.tier = &g->ops,
		.budget = 64 * MIB,
		.segment_bytes = 4 * MIB,
		.numa_node = -1,
		.huge_pages = true};
	struct pool *p;

	assert_int_equal(pool_new(&o, &p), 0);
	assert_int_equal(pool_tenant_new(p, ret), 0);
	return p;
}

static void test_segment(void **state)
{
	const struct tier_request q = {.bytes = 4 * MIB, .numa_node = -1};
	struct tier_memory m, n, last;

	(void)state;
	assert_int_equal(gpu.ops.open(&gpu.ops, &q, &m), 0);
	assert_null(m.addr);
	assert_true(m.fd >= 0 && m.client_fd == m.fd && m.fresh && m.set_aside);
	assert_int_equal(fcntl(m.fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(gpu.ops.back(&gpu.ops, &m, 0, MIB), 0);
	assert_int_equal(gpu.ops.punch(&gpu.ops, &m, 0, MIB), 0);
	assert_int_equal(gpu.ops.open(&gpu.ops, &q, &n), 0);
	assert_int_equal(gpu.ops.open(&gpu.ops, &q, &last), -ENOSPC);
	gpu.ops.close(&gpu.ops, &m);
	assert_int_equal(gpu.ops.open(&gpu.ops, &q, &last), 0);
	gpu.ops.close(&gpu.ops, &n);
	gpu.ops.close(&gpu.ops, &last);
	assert_int_equal(gpu.open, 0);
	assert_int_equal(gpu.ops.open(&gpu.ops, &(struct tier_request){.bytes = MIB}, &m), -EINVAL);
	setenv("KVGATE_FAKE_CUDA_FAIL", "cuMemCreate", 1);
	assert_int_equal(gpu.ops.open(&gpu.ops, &q, &m), -ENOSPC);
	setenv("KVGATE_FAKE_CUDA_FAIL", "cuMemExportToShareableHandle", 1);
	assert_int_equal(gpu.ops.open(&gpu.ops, &q, &m), -EOPNOTSUPP);
	unsetenv("KVGATE_FAKE_CUDA_FAIL");
	assert_int_equal(gpu.open, 0);
}

/* The limit is of segments: what a tenant left empty makes room for another's, and what is in use does not. */
static void test_tenants(void **state)
{
	struct pool_tenant *a, *b;
	struct pool *p = pool_of(&gpu, &a);
	struct extent x, y, z;
	struct pool_segment s;

	(void)state;
	assert_int_equal(pool_tenant_new(p, &b), 0);
	assert_int_equal(pool_alloc(a, 4 * MIB, SHIFT, &x), 0);
	assert_int_equal(pool_alloc(a, 4 * MIB, SHIFT, &y), 0);
	assert_null(x.addr);
	assert_int_equal(x.tier, KVG_TIER_GPU);
	assert_int_equal(pool_segment_get(a, x.segment, &s), 0);
	assert_true(s.fresh && s.whole && s.bytes == 4 * MIB);
	pool_segment_filled(a, x.segment);
	assert_int_equal(pool_segment_get(a, x.segment, &s), 0);
	assert_false(s.fresh);
	assert_int_equal(pool_alloc(b, 4 * MIB, SHIFT, &z), -ENOSPC);
	pool_release(a, &x);
	pool_alloc(b, 4 * MIB, SHIFT, &z); /* gives the empty one back, */
	assert_int_equal(pool_reserve(p, 0), 0);
	assert_int_equal(pool_alloc(b, 4 * MIB, SHIFT, &z), 0); /* and it is closed by now */
	assert_int_equal(gpu.open, 8 * MIB);
	pool_release(a, &y);
	pool_release(b, &z);
	pool_tenant_free(a);
	pool_tenant_free(b);
	pool_free(p);
	assert_int_equal(gpu.open, 0);
}

/* The descriptor is all there is, and its size is what is said beside it. */
static void test_adopt(void **state)
{
	struct pool_tenant *t, *u;
	struct pool *p = pool_of(&gpu, &t), *next;
	struct pool_adoption *a;
	struct extent x;
	struct pool_segment s;
	uint8_t *at;
	int fd;

	(void)state;
	assert_int_equal(pool_alloc(t, MIB, SHIFT, &x), 0);
	assert_int_equal(pool_segment_get(t, x.segment, &s), 0);
	fd = dup(s.fd);
	at = fake_cuda_look(fd, s.bytes);
	assert_non_null(at);
	memset(at, 7, MIB);
	pool_release(t, &x);
	pool_tenant_free(t);
	pool_free(p);
	assert_int_equal(gpu.open, 0);

	next = pool_of(&gpu, &u);
	assert_int_equal(pool_adoption_new(u, &a), 0);
	assert_int_equal(pool_adoption_add(a, x.segment, SHIFT, 0, fd), -EBADMSG);
	assert_int_equal(pool_adoption_add(a, x.segment, SHIFT, 3 * MIB, fd), -EBADMSG);
	assert_int_equal(pool_adoption_add(a, x.segment, SHIFT, 4 * MIB, fd), 0);
	assert_int_equal(pool_adoption_add(a, x.segment, SHIFT, 4 * MIB, fd), -EEXIST);
	assert_int_equal(pool_adoption_mark(a, &x), 0);
	pool_adoption_take(a, &x);
	pool_adoption_finish(a, x.segment + 1);
	pool_adoption_free(a);
	assert_int_equal(pool_segment_get(u, x.segment, &s), 0);
	assert_true(s.bytes == 4 * MIB && s.fd == fd && !s.fresh);
	assert_int_equal(gpu.open, 4 * MIB);
	assert_int_equal(at[MIB - 1], 7);
	munmap(at, s.bytes);
	pool_release(u, &x);
	pool_tenant_free(u);
	pool_free(next);
}

static void test_none(void **state)
{
	struct gpu_driver *d = NULL;
	struct tier_gpu g;
	int n;

	(void)state;
	assert_int_equal(
		tier_gpu_open_driver("libcuda-is-not-here.so", &d, &n, why, sizeof(why)), -ENOENT);
	assert_non_null(strstr(why, "libcuda-is-not-here.so"));
	setenv("KVGATE_FAKE_CUDA_DEVICES", "0", 1);
	assert_int_equal(tier_gpu_open_driver(FAKE_CUDA, &d, &n, why, sizeof(why)), -ENODEV);
	setenv("KVGATE_FAKE_CUDA_DEVICES", "2", 1);
	setenv("KVGATE_FAKE_CUDA_FAIL", "cuInit", 1);
	assert_true(tier_gpu_open_driver(FAKE_CUDA, &d, &n, why, sizeof(why)) < 0);
	assert_non_null(strstr(why, "cuInit"));
	unsetenv("KVGATE_FAKE_CUDA_FAIL");
	assert_null(d);
	assert_int_equal(tier_gpu_init(&g, driver, 2, MIB, why, sizeof(why)), -ENODEV);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_segment),
		cmocka_unit_test(test_tenants),
		cmocka_unit_test(test_adopt),
		cmocka_unit_test(test_none),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
