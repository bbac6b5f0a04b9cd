/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replicas on a device that is not real: what readers are told lies there is there, byte for byte, whatever happens to the
 * device, to the host and to the movers meanwhile.
 */
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"
#include "tests/lib/fake_cuda.h"
#include "tests/unit/cache_fixture.h"

#define MIB   (1ull << 20)
#define KILLS 200
#define MANY  256

static struct fixture f;
static struct kvg_shm_replica *table; /* as a client has it */
static int table_fd;

static void configure(const char *devices, uint64_t bytes)
{
	fixture_options(&f);
	f.o.host_bytes = 256 * MIB;
	f.o.segment_bytes = 2 * MIB;
	f.o.gpu.devices = devices;
	f.o.gpu.library = FAKE_CUDA;
	f.o.gpu.mover = KVG_BINARY_DIR "/gpu/kvgate-mover";
	f.o.gpu.bytes = bytes;
	f.o.gpu.mover_pause_ns = 5000000;
}

static void open_device(struct cache_tenant *t)
{
	struct stat st;
	uint8_t *map;

	assert_int_equal(cache_device_open(t, 0, &table_fd), 0);
	assert_int_equal(fstat(table_fd, &st), 0);
	assert_true(mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, table_fd,
			    0) == MAP_FAILED);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, table_fd, 0);
	assert_true(map != MAP_FAILED);
	table = (void *)(map + ((struct kvg_shm_replicas *)(void *)map)->entries_off);
}

static int setup(void **state)
{
	(void)state;
	configure("0", 4 * MIB);
	fixture_start(&f);
	open_device(f.tenant);
	return 0;
}

static struct kvg_handle handle_of(const struct kvg_key *key)
{
	struct block *b = block_find(f.tenant, f.layout->id, key);

	assert_non_null(b);
	return b->handle;
}

/* Planes that a reader who has pinned it finds on the device; every pair of them is looked at. */
static uint8_t read_device(struct cache_tenant *t, uint64_t seed, struct kvg_handle h)
{
	const struct kvg_shm_replica *e = &table[h.slot];
	const uint64_t word = atomic_load(&e->word);
	const uint8_t planes = kvg_word_mapped(word);

	if (!(word & KVG_ENTRY_LIVE) || kvg_word_gen(word) != h.gen)
		return 0;
	for (uint32_t p = 0; p < KVG_PLANES_MAX; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];
		struct cache_segment_info s;
		uint8_t *at;

		if (!(planes >> p & 1))
			continue;
		assert_int_equal(r->check, plane_ref_check(r, p, h.gen));
		assert_int_equal(r->tier, KVG_TIER_GPU);
		assert_int_equal(cache_device_segment(t, 0, r->segment, &s), 0);
		at = fake_cuda_look(s.fd, s.bytes);
		content_check(seed, at + ((uint64_t)r->page << r->page_shift), r->bytes, p);
		munmap(at, s.bytes);
	}
	return planes;
}

struct waiter {
	struct cache_fetch fetch;
	uint8_t came;
};

static void arrived(struct cache_fetch *fetch, uint8_t planes)
{
	((struct waiter *)fetch)->came |= planes;
}

/* Asks, and waits. What is said to have come. */
static uint8_t replicate(struct cache_tenant *t, struct kvg_handle h, float share, int *ret_error)
{
	const uint64_t end = loop_now_ns() + 20000000000ull;
	struct waiter w = {.fetch.arrived = arrived};
	uint8_t coming = cache_replicate(t, h, 0, share, &w.fetch);

	while (w.fetch.waiting) {
		assert_true(loop_now_ns() < end);
		loop_run_once(f.loop, 100);
	}
	assert_int_equal(w.came, coming);
	*ret_error = w.fetch.error;
	return coming;
}

static void test_copy(void **state)
{
	struct cache_device_info info;
	struct kvg_key key;
	struct kvg_handle h;
	uint8_t some;
	int error;

	(void)state;
	assert_true(cache_device_get(f.cache, 0, &info) && !cache_device_get(f.cache, 1, &info));
	assert_string_equal(cache_devices_why(f.cache), "");
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	h = handle_of(&key);
	assert_int_equal(read_device(f.tenant, 1, h), 0);
	some = replicate(f.tenant, h, 0.01f, &error);
	assert_int_equal(error, 0);
	assert_int_equal(some, 1);
	assert_int_equal(read_device(f.tenant, 1, h), 1);
	assert_int_equal(replicate(f.tenant, h, 0.01f, &error), 0); /* it is there */
	assert_int_equal(replicate(f.tenant, h, 1, &error), 0xe);
	assert_int_equal(read_device(f.tenant, 1, h), 0xf);
	assert_int_equal(cache_replicas(f.tenant, h, 0), 0xf);
	assert_int_equal(cache_check(f.cache), 0);
	assert_true(cache_device_get(f.cache, 0, &info));
	assert_true(info.ready && info.used && !info.copying && info.segments == 2 * MIB);
}

static void put_many(struct kvg_key *key, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(put_block(&f, f.layout, i, NULL, &key[i]), KVG_CODE_OK);
}

/* What goes on the host goes on the device in the same step; a new block in the slot has nothing there. */
static void test_host_goes(void **state)
{
	struct cache_purge_result r;
	struct cache_device_info info;
	struct kvg_key key;
	struct kvg_handle h;
	int error;

	(void)state;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	h = handle_of(&key);
	replicate(f.tenant, h, 1, &error);
	assert_int_equal(read_device(f.tenant, 1, h), 0xf);
	cache_purge(f.tenant, f.layout->id, &key, 2, &r);
	assert_int_equal(read_device(f.tenant, 1, h), 3);
	assert_int_equal(cache_check(f.cache), 0);
	cache_purge(f.tenant, f.layout->id, &key, 0, &r);
	assert_int_equal(r.blocks, 1);
	assert_int_equal(read_device(f.tenant, 1, h), 0);
	assert_true(cache_device_get(f.cache, 0, &info) && info.used == 0);
	assert_int_equal(put_block(&f, f.layout, 2, NULL, &key), KVG_CODE_OK);
	assert_int_equal(handle_of(&key).slot, h.slot);
	assert_int_equal(read_device(f.tenant, 2, handle_of(&key)), 0);
}

/* While planes are on their way nothing of the block goes. */
static void test_busy(void **state)
{
	struct waiter w = {.fetch.arrived = arrived};
	struct cache_purge_result r;
	struct kvg_key key;
	struct kvg_handle h;

	(void)state;
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	h = handle_of(&key);
	assert_int_equal(cache_replicate(f.tenant, h, 0, 1, &w.fetch), 0xf);
	cache_purge(f.tenant, f.layout->id, &key, 0, &r);
	assert_int_equal(r.pinned, 1);
	assert_int_equal(read_device(f.tenant, 1, h), 0); /* and nothing is said to be there yet */
	while (w.fetch.waiting)
		loop_run_once(f.loop, 100);
	assert_int_equal(read_device(f.tenant, 1, h), 0xf);
	cache_purge(f.tenant, f.layout->id, &key, 0, &r);
	assert_int_equal(r.blocks, 1);
}

/* More than the device has room for: the least valuable goes, worst planes first, and nothing that is pinned. */
static void test_pressure(void **state)
{
	static struct kvg_key key[MANY];
	struct pin_page *page = pin_page_new();
	struct cache_device_info info;
	unsigned whole = 0, part = 0, none = 0;
	int error;

	(void)state;
	put_many(key, MANY);
	cache_pins_attach(f.tenant, page);
	page_pin(page, 0, handle_of(&key[0]));
	for (unsigned i = 0; i < MANY; i++) {
		block_touch(block_find(f.tenant, f.layout->id, &key[i]));
		replicate(f.tenant, handle_of(&key[i]), 1, &error);
		assert_true(error == 0 || error == -ENOSPC);
		assert_int_equal(cache_check(f.cache), 0);
	}
	assert_true(cache_device_get(f.cache, 0, &info));
	assert_true(info.used <= 4 * MIB && info.segments <= 4 * MIB);
	assert_true(info.used > 3 * MIB); /* it is used */
	for (unsigned i = 0; i < MANY; i++) {
		const uint8_t planes = read_device(f.tenant, i, handle_of(&key[i]));

		assert_int_equal(planes & (planes + 1), 0); /* the best ones */
		whole += planes == 0xf;
		none += planes == 0;
		part += planes && planes != 0xf;
	}
	assert_int_equal(read_device(f.tenant, 0, handle_of(&key[0])), 0xf);
	assert_true(whole > 1 && (none || part));
	assert_true(part > 0);
	/* of who was read last there is something: its best is worth more than the worst of others */
	assert_true(read_device(f.tenant, MANY - 1, handle_of(&key[MANY - 1])) & 1);
	/* without the pin it may go as well */
	cache_pins_detach(f.tenant, page);
	pin_page_free(page);
}

/* All of it pinned: there is no room, and that is no error of anybody. */
static void test_all_pinned(void **state)
{
	static struct kvg_key key[MANY];
	struct pin_page *page = pin_page_new();
	unsigned refused = 0;
	int error;

	(void)state;
	put_many(key, MANY);
	cache_pins_attach(f.tenant, page);
	for (unsigned i = 0; i < MANY; i++) {
		replicate(f.tenant, handle_of(&key[i]), 1, &error);
		page_pin(page, i, handle_of(&key[i]));
		refused += error == -ENOSPC;
	}
	assert_true(refused > 0);
	cache_pins_detach(f.tenant, page);
	pin_page_free(page);
}

/* Another tenant gets in when one has all of the device. */
static void test_tenants(void **state)
{
	static struct kvg_key key[MANY];
	struct cache_tenant *two = fixture_tenant(&f, "two", 64 * MIB, 1.0f);
	struct cache_layout *l = fixture_layout(&f, two, "model", "");
	struct cache_tenant *one = f.tenant;
	struct kvg_key other;
	struct block *b;
	uint8_t came = 0;
	int error;

	(void)state;
	put_many(key, MANY);
	for (unsigned i = 0; i < MANY; i++)
		replicate(f.tenant, handle_of(&key[i]), 1, &error);
	f.tenant = two;
	open_device(two);
	assert_int_equal(put_block(&f, l, 7, NULL, &other), KVG_CODE_OK);
	b = block_find(two, l->id, &other);
	for (unsigned n = 0; n < 40 && came != 0xf; n++) {
		came |= replicate(two, b->handle, 1, &error);
		loop_run_once(f.loop, 10);
	}
	assert_int_equal(read_device(two, 7, b->handle), 0xf);
	f.tenant = one;
	assert_int_equal(cache_check(f.cache), 0);
}

/* Each device has its own: what goes from one stays on the other, and what goes on the host goes from both. */
static void test_two(void **state)
{
	struct cache_device_info info[2];
	struct cache_purge_result r;
	struct kvg_handle h;
	struct kvg_key key;
	int fd;

	(void)state;
	setenv("KVGATE_FAKE_CUDA_DEVICES", "2", 1);
	configure("all", 4 * MIB);
	fixture_start(&f);
	open_device(f.tenant);
	assert_int_equal(cache_device_open(f.tenant, 1, &fd), 0);
	assert_int_not_equal(fd, table_fd);
	assert_true(
		cache_device_get(f.cache, 0, &info[0]) && cache_device_get(f.cache, 1, &info[1]));
	assert_memory_not_equal(info[0].uuid, info[1].uuid, 16);
	assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
	h = handle_of(&key);
	for (unsigned i = 0; i < 2; i++)
		assert_int_equal(cache_replicate(f.tenant, h, i, 1, NULL), 0xf);
	for (unsigned i = 0; i < 2; i++)
		while (cache_replicas(f.tenant, h, i) != 0xf)
			loop_run_once(f.loop, 100);
	assert_int_equal(read_device(f.tenant, 1, h), 0xf);
	assert_int_equal(cache_check(f.cache), 0);
	cache_purge(f.tenant, f.layout->id, &key, 1, &r);
	assert_true(cache_replicas(f.tenant, h, 0) == 1 && cache_replicas(f.tenant, h, 1) == 1);
	cache_purge(f.tenant, f.layout->id, &key, 0, &r);
	assert_int_equal(r.blocks, 1);
	assert_int_equal(cache_check(f.cache), 0);
	fixture_stop(&f);
	unsetenv("KVGATE_FAKE_CUDA_DEVICES");
}

/* Movers are killed at any moment: no block is lost, no byte is wrong, and what is said to be there is there. */
static void test_kills(void **state)
{
	static struct kvg_key key[64];
	struct cache_purge_result r;
	struct cache_device_info info;
	unsigned seed = 3, kills = 0, looks = 0, there = 0;

	(void)state;
	put_many(key, 64);
	while (kills < KILLS) {
		const unsigned i = rand_r(&seed) % 64;

		cache_replicate(
			f.tenant, handle_of(&key[i]), 0, (float)(rand_r(&seed) % 4) / 3, NULL);
		if (rand_r(&seed) % 8 == 0) {
			cache_purge(f.tenant, f.layout->id, &key[i], 0, &r);
			if (r.blocks)
				assert_int_equal(
					put_block(&f, f.layout, i, NULL, &key[i]), KVG_CODE_OK);
		}
		loop_run_once(f.loop, (int)(rand_r(&seed) % 2));
		assert_true(cache_device_get(f.cache, 0, &info));
		if (info.mover && rand_r(&seed) % 8 == 0) {
			usleep((useconds_t)(rand_r(&seed) % 1000));
			kills += kill(info.mover, SIGKILL) == 0;
			while (cache_device_get(f.cache, 0, &info), info.mover)
				loop_run_once(f.loop, 10);
		}
		for (unsigned j = 0; j < 64; j += 7) {
			there += read_device(f.tenant, j, handle_of(&key[j])) != 0;
			looks++;
		}
	}
	print_message("%u kills, %u of %u looks found a replica\n", kills, there, looks);
	for (unsigned i = 0; i < 64; i++) {
		struct cache_block_info b;

		read_device(f.tenant, i, handle_of(&key[i]));
		assert_int_equal(inspect_block(&f, f.tenant, &key[i], true, &b), KVG_CODE_OK);
		for (unsigned p = 0; p < FIXTURE_PLANES; p++)
			assert_true(b.plane[p].verified);
	}
	assert_int_equal(cache_check(f.cache), 0);
}

/* Devices that are not there, or cannot be used: the cache starts, says why, and serves. */
static void test_none(void **state)
{
	static const struct {
		const char *devices, *fail, *says;
	} cases[] = {
		{"all", "cuInit", "cuInit"},
		{"3", "", "device 3"},
		{"x", "", "gpu_devices"},
		{"", "", ""},
	};
	struct kvg_key key;
	int fd;

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		setenv("KVGATE_FAKE_CUDA_FAIL", cases[i].fail, 1);
		configure(cases[i].devices, 8 * MIB);
		fixture_start(&f);
		assert_non_null(strstr(cache_devices_why(f.cache), cases[i].says));
		assert_int_equal(cache_device_open(f.tenant, 0, &fd), -ENOENT);
		assert_int_equal(put_block(&f, f.layout, 1, NULL, &key), KVG_CODE_OK);
		assert_int_equal(cache_replicate(f.tenant, handle_of(&key), 0, 1, NULL), 0);
		fixture_stop(&f);
	}
	unsetenv("KVGATE_FAKE_CUDA_FAIL");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FIXTURE_TEST_WITH(test_copy, setup),
		FIXTURE_TEST_WITH(test_host_goes, setup),
		FIXTURE_TEST_WITH(test_busy, setup),
		FIXTURE_TEST_WITH(test_pressure, setup),
		FIXTURE_TEST_WITH(test_all_pinned, setup),
		FIXTURE_TEST_WITH(test_tenants, setup),
		FIXTURE_TEST_WITH(test_kills, setup),
		cmocka_unit_test(test_two),
		cmocka_unit_test(test_none),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
