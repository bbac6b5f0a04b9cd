/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Caches that end as if they were killed, with replicas on a device that is not real, and the next ones: what is shown of the
 * device is byte by byte what was committed, whatever was done to the table and the segments in between.
 */
#include <assert.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/cache/tenant.h"
#include "proto/plane.h"
#include "tests/lib/fake_cuda.h"
#include "tests/unit/lives.h"

#define MIB 1048576ull
enum {
	BLOCKS = 24
};

static void with_gpu(struct fixture *x)
{
	x->o.host_bytes = 32 * MIB;
	x->o.segment_bytes = 2 * MIB;
	x->o.gpu.devices = "0";
	x->o.gpu.library = FAKE_CUDA;
	x->o.gpu.mover = KVG_BINARY_DIR "/gpu/kvgate-mover";
	x->o.gpu.bytes = 8 * MIB;
	x->o.gpu.mover_pause_ns = 5000000;
}

static struct kvg_handle handle_of(unsigned i)
{
	struct kvg_key key;
	struct block *b;

	content_key(&f, f.layout, i, NULL, &key);
	b = block_find(f.tenant, f.layout->id, &key);
	assert(b);
	return b->handle;
}

static void put_and_copy(void *unused)
{
	int fd;

	(void)unused;
	assert(cache_device_open(f.tenant, 0, &fd) == 0);
	for (unsigned i = 0; i < BLOCKS; i++) {
		assert(put_block(&f, f.layout, i, NULL, NULL) == KVG_CODE_OK);
		assert(cache_replicate(f.tenant, handle_of(i), 0, 1, NULL));
	}
	for (unsigned i = 0; i < BLOCKS; i++)
		while (!cache_replicas(f.tenant, handle_of(i), 0))
			loop_run_once(f.loop, 10);
}

/* Blocks of which the device has planes, all of them looked at. */
static unsigned look(void)
{
	struct kvg_shm_replica *table;
	unsigned n = 0;
	struct stat st;
	uint8_t *map;
	int fd;

	assert(cache_check(f.cache) == 0);
	assert(cache_device_open(f.tenant, 0, &fd) == 0 && fstat(fd, &st) == 0);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
	assert(map != MAP_FAILED);
	table = (void *)(map + 4096);
	for (unsigned i = 0; i < BLOCKS; i++) {
		const struct kvg_handle h = handle_of(i);
		const uint64_t word = atomic_load(&table[h.slot].word);

		assert(!(word & KVG_ENTRY_LIVE) || kvg_word_gen(word) == h.gen);
		assert(kvg_word_mapped(word) == cache_replicas(f.tenant, h, 0));
		n += word != 0;
		for (uint32_t p = 0; p < KVG_PLANES_MAX; p++) {
			const struct kvg_shm_plane_ref *r = &table[h.slot].plane[p];
			struct cache_segment_info s;
			uint8_t *at;

			if (!(kvg_word_mapped(word) >> p & 1))
				continue;
			assert(cache_device_segment(f.tenant, 0, r->segment, &s) == 0);
			at = fake_cuda_look(s.fd, s.bytes);
			content_check(i, at + ((uint64_t)r->page << r->page_shift), r->bytes, p);
			munmap(at, s.bytes);
		}
	}
	munmap(map, (size_t)st.st_size);
	return n;
}

static void has(void *n)
{
	assert(look() == *(unsigned *)n);
	for (unsigned i = 0; i < BLOCKS; i++) /* and it goes on: nothing is given to two */
		cache_replicate(f.tenant, handle_of(i), 0, 1, NULL);
	for (unsigned i = 0; i < BLOCKS; i++)
		while (cache_replicas(f.tenant, handle_of(i), 0) != 0xf)
			loop_run_once(f.loop, 10);
	assert(look() == BLOCKS);
}

static int start_over(void **state)
{
	drop_all();
	begin_with = with_gpu;
	pinned_slot = KVG_SLOT_NONE;
	(void)state;
	live(put_and_copy, NULL);
	return 0;
}

static int kept_fd(const char *prefix)
{
	for (unsigned i = 0; i < n_kept; i++)
		if (!strncmp(kept[i].name, prefix, strlen(prefix)))
			return kept[i].fd;
	return -1;
}

static struct kvg_shm_replica *table(void)
{
	struct stat st;
	uint8_t *map;
	const int fd = kept_fd("kvg-t-");

	assert(fd >= 0 && fstat(fd, &st) == 0);
	map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert(map != MAP_FAILED);
	return (void *)(map + 4096);
}

static void test_whole(void **state)
{
	unsigned all = BLOCKS;

	(void)state;
	assert_true(kept_fd("kvg-g-") >= 0 && kept_fd("kvg-m-0-") >= 0);
	live(has, &all);
	live(has, &all);
}

/* Each defect costs the planes that have it, and no others. */
static void test_damaged(void **state)
{
	struct kvg_shm_replica *t = table();
	unsigned whole = 0, slot[BLOCKS], n = 0;

	(void)state;
	for (unsigned i = 0; i < 1024 && n < BLOCKS; i++)
		if (t[i].word)
			slot[n++] = i;
	assert_int_equal(n, BLOCKS);
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) {
		t[slot[0]].plane[p].check ^= 1;   /* a check */
		t[slot[1]].plane[p].segment = 77; /* with a right check, but nowhere */
		t[slot[1]].plane[p].check =
			plane_ref_check(&t[slot[1]].plane[p], p, kvg_word_gen(t[slot[1]].word));
	}
	t[slot[2]].word += 1ull << 32;                  /* another generation */
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) { /* two on one place: neither */
		struct kvg_shm_plane_ref *r = &t[slot[3]].plane[p];

		r->segment = t[slot[4]].plane[p].segment;
		r->page = t[slot[4]].plane[p].page;
		r->check = plane_ref_check(r, p, kvg_word_gen(t[slot[3]].word));
	}
	t[1000].word = kvg_word(5, 1, 0, 0xf); /* of no block */
	whole = BLOCKS - 5;
	live(has, &whole);
}

static void test_missing(void **state)
{
	unsigned none = 0, all = BLOCKS;

	(void)state;
	for (unsigned i = n_kept; i-- > 0;)
		if (!strncmp(kept[i].name, "kvg-g-", 6)) {
			close(kept[i].fd);
			kept[i] = kept[--n_kept];
		}
	live(has, &none); /* segments are gone */
	live(has, &all);
	close(kept_fd("kvg-t-"));
	for (unsigned i = 0; i < n_kept; i++)
		if (!strncmp(kept[i].name, "kvg-t-", 6))
			kept[i].fd = open("/dev/null", O_RDWR);
	live(has, &none); /* the table is something else */
}

/* Hidden, and its reader may be at it still: not shown, and not given to anybody. */
static void hidden_and_pinned(void *unused)
{
	const uint32_t slot = pinned_slot;
	struct block *b = f.tenant->by_slot[slot];
	struct cache_purge_result r;
	uint64_t used;

	(void)unused;
	assert(b && cache_replicas(f.tenant, b->handle, 0) == 1);
	used = counter_get(b->layout->counters, COUNTER_BYTES, KVG_TIER_GPU);
	assert(used);
	cache_purge(f.tenant, f.layout->id, &b->key, 1,
		&r); /* the page is not attached here: it goes */
	assert((uint64_t)counter_get(f.layout->counters, COUNTER_BYTES, KVG_TIER_GPU) < used);
	assert(cache_check(f.cache) == 0);
}

static void test_hidden(void **state)
{
	struct kvg_shm_replica *t = table();

	(void)state;
	for (pinned_slot = 0; !t[pinned_slot].word;)
		pinned_slot++;
	t[pinned_slot].word &= ~0xeull;
	live(hidden_and_pinned, NULL);
	pinned_slot = KVG_SLOT_NONE;
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_whole, start_over),
		cmocka_unit_test_setup(test_damaged, start_over),
		cmocka_unit_test_setup(test_missing, start_over),
		cmocka_unit_test_setup(test_hidden, start_over),
	};

	return cmocka_run_group_tests(tests, lives_setup, NULL);
}
