/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a daemon reads that takes over from another one, by the first byte of the input: names of fds, records of a catalog, a
 * whole catalog with bits flipped, an index in a memfd with bits flipped. Whatever it is, it may be refused; what is left
 * must hold together.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/cache/catalog.h"
#include "daemon/cache/index.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/parked.h"
#include "daemon/cache/tenant.h"

enum {
	SLOTS = 40,
	BLOCKS = 30
};

static struct cache_tenant *tenant;

static void make_tenant(void)
{
	struct cache_options o = {
		.host_bytes = 1 << 20,
		.segment_bytes = 1 << 20,
		.index_slots = 16,
		.high_watermark = 1,
		.low_watermark = 1,
		.pack_workers = 1,
		.numa_node = -1,
	};
	const struct cache_limits l = {.host_bytes = 1 << 20, .floor = 1};
	struct cache *c;

	log_set_level(LOG_LEVEL_ERROR);
	assert(loop_new(&o.loop) == 0 && counters_new(&o.counters) == 0);
	assert(cache_new(&o, &c) == 0 && cache_tenant_open(c, "one", &l, &tenant) == 0);
}

static void name(const uint8_t *data, size_t n)
{
	char text[PARK_NAME_MAX + 1] = "", again[PARK_NAME_MAX + 1];
	struct parked p;

	memcpy(text, data, n < PARK_NAME_MAX ? n : PARK_NAME_MAX);
	if (!parked_parse(text, &p))
		return;
	parked_name(&p, again);
	assert(!strcmp(text, again));
}

static void check_tenant(void)
{
	struct cache_layout_info info;
	struct cache_policy p;

	for (unsigned i = 0; cache_layout_at(tenant, i); i++) {
		cache_layout_describe(cache_layout_at(tenant, i), &info);
		assert((info.id - 1) % LAYOUTS_MAX == i && strlen(info.identity.model) < 2000);
	}
	cache_policy_get(tenant, "", &p);
	assert(p.floor > 0 && p.floor <= 1 && p.low_watermark <= p.high_watermark && p.host_bytes);
}

static void record(const uint8_t *data, size_t n)
{
	char text[64];

	if (n < 1)
		return;
	keep_name(data[0] % 6, data + 1, n - 1, text, sizeof(text));
	keep_take(tenant, data[0] % 6, data + 1, n - 1);
	check_tenant();
}

static int take(void *userdata, uint16_t type, const uint8_t *payload, size_t n)
{
	(void)userdata;
	keep_take(tenant, type, payload, n);
	return 0;
}

static void flip(uint8_t *map, size_t bytes, const uint8_t *data, size_t n)
{
	for (size_t i = 0; i + 3 <= n; i += 3)
		map[((size_t)data[i] << 8 | data[i + 1]) % bytes] ^= data[i + 2];
}

static void catalog(const uint8_t *data, size_t n)
{
	const uint8_t instance[16] = {1};
	struct catalog *c, *again;
	uint8_t *map;
	int fd;

	assert(catalog_new(instance, &c) == 0);
	assert(catalog_append(c, 1, "one", 3) == 0 && catalog_append(c, 4, "12345678m", 9) == 0);
	map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, catalog_fd(c), 0);
	assert(map != MAP_FAILED);
	memcpy(map + 4096 + 80, data, n < 1000 ? n : 1000);
	flip(map, 4096 + 200, data, n);
	munmap(map, 8192);
	fd = dup(catalog_fd(c));
	if (catalog_adopt(fd, &again) < 0) {
		close(fd);
	} else {
		catalog_read(again, take, NULL);
		catalog_append(again, 1, "two", 3);
		catalog_free(again);
	}
	catalog_free(c);
	check_tenant();
}

static void claim(void *userdata, const struct index_claim *c)
{
	uint64_t *keep = userdata;

	assert(c->slot < SLOTS && c->gen && !(c->shown & ~c->there));
	*keep |= 1ull << c->slot;
}

static void index_(const uint8_t *data, size_t n)
{
	struct index *x, *again;
	struct index_adoption report;
	uint64_t keep[2] = {0};
	uint8_t *map;
	int fd;

	assert(index_new(SLOTS, &x) == 0);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		struct index_block b = {
			.key.b = {[0] = (uint8_t)(i / 9), [8] = (uint8_t)i},
			.layout = 1,
			.parent = i ? i - 1 : KVG_SLOT_NONE,
			.tokens = 16,
			.depth = i,
			.n_planes = 1,
			.held = 1,
			.mapped = 1,
			.plane = {{.bytes = 4096,
				.segment = 1,
				.page = i,
				.pairs = 1,
				.tier = 1,
				.page_shift = 12}},
		};
		struct kvg_handle h;

		assert(index_insert(x, &b, &h) == 0);
	}
	map = mmap(
		NULL, 8192 + SLOTS * 256, PROT_READ | PROT_WRITE, MAP_SHARED, index_kept_fd(x), 0);
	assert(map != MAP_FAILED);
	flip(map, 8192 + SLOTS * 256, data, n);
	munmap(map, 8192 + SLOTS * 256);
	fd = dup(index_kept_fd(x));
	if (index_adopt(fd, &again) < 0) {
		close(fd);
	} else {
		index_adopt_scan(again, claim, keep, &report);
		assert(report.claims <= SLOTS && index_slots_used_end(again) <= SLOTS);
		assert(index_adopt_finish(again, keep) == 0 && index_check(again) == 0);
		index_free(again);
	}
	index_free(x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static void (*const what[])(const uint8_t *data, size_t n) = {
		name, record, catalog, index_};

	if (!tenant)
		make_tenant();
	if (n > 1)
		what[data[0] % 4](data + 1, n - 1);
	return 0;
}
