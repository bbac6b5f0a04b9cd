/* SPDX-License-Identifier: Apache-2.0 */
/* The cache as the sessions use it: put, find, list, look, shrink, purge, tenants apart. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "tests/unit/cache_fixture.h"

static struct fixture f;

static int setup(void **state)
{
	(void)state;
	fixture_options(&f);
	fixture_start(&f);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	assert_int_equal(cache_check(f.cache), 0);
	fixture_stop(&f);
	return 0;
}

static void test_put_and_find(void **state)
{
	struct cache_block_result r;
	struct cache_block_info info;
	struct kvg_key key, child;

	(void)state;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	assert_int_equal(put_block(&f, f.layout, 2, &key, &child), KVG_CODE_OK);
	assert_int_equal(put_block(&f, f.layout, 1, NULL, NULL), KVG_CODE_EXISTS);
	assert_int_equal(cache_acquire(f.tenant, f.layout, &child, 1.0f, &r), KVG_CODE_OK);
	assert_true(r.handle.gen > 0 && r.held == 15 && r.mapped == 15 && r.retention == 1.0f);
	assert_true(cache_present(f.tenant, &key));
	assert_int_equal(cache_inspect(f.tenant, &child, true, &info), KVG_CODE_OK);
	assert_memory_equal(&info.parent, &key, sizeof(key));
	assert_true(info.pins == 1 && info.depth == 1 && info.n_planes == FIXTURE_PLANES);
	for (int p = 0; p < FIXTURE_PLANES; p++) {
		struct cache_segment_info seg;
		const uint8_t *map;

		assert_true(info.plane[p].verified && info.plane[p].pairs);
		assert_int_equal(cache_segment_get(f.tenant, info.plane[p].segment, &seg), 0);
		map = mmap(NULL, seg.bytes, PROT_READ, MAP_SHARED, seg.fd, 0);
		assert_ptr_not_equal(map, MAP_FAILED);
		assert_int_equal(
			content_check(2, map + ((size_t)info.plane[p].page << seg.page_shift),
				info.plane[p].bytes, (uint32_t)p),
			info.plane[p].pairs);
		munmap((void *)map, seg.bytes);
	}
	assert_int_equal(cache_release(f.tenant, r.handle), KVG_CODE_OK);
	assert_int_equal(cache_release(f.tenant, r.handle), KVG_CODE_NOT_FOUND);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_put_and_find, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
