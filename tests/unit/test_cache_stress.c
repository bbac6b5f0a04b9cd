/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Readers as clients are - an index mapped read-only, a pin page of their own, no call into the cache - verify every byte
 * they pinned, while the control thread commits, shrinks, evicts and purges under pressure, and mad pages say nonsense.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"
#include "tests/unit/cache_fixture.h"

enum {
	BLOCKS = 240,
	CHAIN = 8,
	PINS = 64,
	TOUCHES = 32,
	READERS = 2,
	STEPS = 4000
};

static struct fixture f;
static struct kvg_key key[BLOCKS];
static atomic_bool stop;
static atomic_uint verified, partial;

struct client {
	pthread_t thread;
	unsigned number;
	const struct kvg_shm_index *head;
	struct kvg_shm_pins *pins;
	struct pin_page page;
	struct {
		uint32_t id;
		const uint8_t *map;
		uint64_t bytes;
	} segment[4096];
};

static void client_init(struct client *c, unsigned number)
{
	struct stat st;
	void *map = aligned_alloc(64, (pin_page_bytes(PINS, TOUCHES) + 63) / 64 * 64);

	memset(map, 0, pin_page_bytes(PINS, TOUCHES));
	c->number = number;
	c->pins = map;
	c->page = (struct pin_page){.map = map, .n_pins = PINS, .n_touch = TOUCHES};
	cache_pins_attach(f.tenant, &c->page);
	fstat(cache_tenant_index_fd(f.tenant), &st);
	c->head = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED,
		cache_tenant_index_fd(f.tenant), 0);
	assert_ptr_not_equal(c->head, MAP_FAILED);
}

static void client_fini(struct client *c)
{
	cache_pins_detach(f.tenant, &c->page);
	munmap((void *)(uintptr_t)c->head, c->head->total_bytes);
	for (unsigned i = 0; i < 4096; i++)
		if (c->segment[i].map)
			munmap((void *)(uintptr_t)c->segment[i].map, c->segment[i].bytes);
	free(c->pins);
}

/* What a client asks for over the socket. The plane is pinned, so the segment is there. */
static const uint8_t *segment(struct client *c, uint32_t id)
{
	unsigned i = id % 4096;
	struct pool_segment s;

	if (c->segment[i].map && c->segment[i].id != id) {
		munmap((void *)(uintptr_t)c->segment[i].map, c->segment[i].bytes);
		c->segment[i].map = NULL;
	}
	if (!c->segment[i].map) {
		if (pool_segment_get(f.tenant->pool, id, &s) < 0)
			abort();
		c->segment[i].map = mmap(NULL, s.bytes, PROT_READ, MAP_SHARED, s.fd, 0);
		c->segment[i].bytes = s.bytes;
		c->segment[i].id = id;
		if (c->segment[i].map == MAP_FAILED)
			abort();
	}
	return c->segment[i].map;
}

static uint64_t word_at(const struct kvg_shm_entry *e)
{
	return atomic_load_explicit(&e->word, memory_order_acquire);
}

/* Slot of a live entry with this key, and its word. */
static const struct kvg_shm_entry *find(
	const struct client *c, const struct kvg_key *k, uint32_t *ret_slot, uint64_t *ret_word)
{
	const struct kvg_shm_bucket *buckets =
		(const void *)((const uint8_t *)c->head + c->head->buckets_off);
	const struct kvg_shm_entry *entries =
		(const void *)((const uint8_t *)c->head + c->head->entries_off);
	uint64_t at = kvg_key_bucket(k, c->head->n_buckets);

	for (;;) {
		for (int w = 0; w < KVG_BUCKET_WAYS; w++) {
			uint64_t way =
				atomic_load_explicit(&buckets[at].way[w], memory_order_acquire);
			uint32_t slot = (uint32_t)way - 1;

			if (!way || way >> 32 != kvg_key_tag(k))
				continue;
			*ret_word = word_at(&entries[slot]);
			*ret_slot = slot;
			if ((*ret_word & KVG_ENTRY_LIVE) &&
				!memcmp(&entries[slot].key, k, sizeof(*k)))
				return &entries[slot];
		}
		if (!atomic_load_explicit(&buckets[at].overflow, memory_order_acquire))
			return NULL;
		at = (at + 1) & (c->head->n_buckets - 1);
	}
}

static void read_block(struct client *c, unsigned i, unsigned at)
{
	_Atomic uint64_t *pin = (_Atomic uint64_t *)((uint8_t *)c->pins + pin_page_pins_off()) + at;
	_Atomic uint64_t *ring =
		(_Atomic uint64_t *)((uint8_t *)c->pins + pin_page_touch_off(PINS));
	uint32_t slot, gen, pairs = 0;
	uint64_t word, head;
	const struct kvg_shm_entry *e = find(c, &key[i], &slot, &word);

	if (!e)
		return;
	gen = kvg_word_gen(word);
	atomic_store_explicit(&c->pins->pins_high, PINS, memory_order_relaxed);
	atomic_store_explicit(
		pin, kvg_handle_pack((struct kvg_handle){slot, gen}), memory_order_relaxed);
	atomic_thread_fence(memory_order_seq_cst);
	word = word_at(e);
	if (kvg_word_gen(word) == gen && (word & KVG_ENTRY_LIVE)) {
		if (memcmp(&e->key, &key[i], sizeof(key[i])) || e->crc != entry_crc(e, gen))
			abort(); /* pinned, and not what was asked for */
		for (uint32_t p = 0; p < e->n_planes; p++) {
			const struct kvg_shm_plane_ref *r = &e->plane[p];

			if (!(kvg_word_mapped(word) >> p & 1))
				continue;
			if (r->check != plane_ref_check(r, p, gen))
				abort();
			pairs += content_check(i,
				segment(c, r->segment) + ((size_t)r->page << r->page_shift),
				r->bytes, p);
		}
		atomic_fetch_add(&verified, 1);
		if (pairs < FIXTURE_PAIRS)
			atomic_fetch_add(&partial, 1);
		head = c->pins->touch_head;
		atomic_store_explicit(&ring[head % TOUCHES],
			kvg_handle_pack((struct kvg_handle){slot, gen}), memory_order_relaxed);
		atomic_store_explicit(&c->pins->touch_head, head + 1, memory_order_release);
	}
	atomic_store_explicit(pin, 0, memory_order_release);
}

static void *honest(void *arg)
{
	struct client *c = arg;
	unsigned seed = c->number;

	for (unsigned n = 0; !atomic_load(&stop); n++)
		read_block(c, (unsigned)rand_r(&seed) % BLOCKS, n % PINS);
	return NULL;
}

static void *hostile(void *arg)
{
	struct client *c = arg;
	_Atomic uint64_t *words = (_Atomic uint64_t *)c->pins;
	unsigned seed = 99;

	while (!atomic_load(&stop)) {
		uint32_t slot = (uint32_t)rand_r(&seed) % BLOCKS,
			 gen = (uint32_t)rand_r(&seed) % 50;
		size_t at = (size_t)rand_r(&seed) % (pin_page_bytes(PINS, TOUCHES) / 8);

		atomic_store(&words[at], rand_r(&seed) % 8 ? (uint64_t)gen << 32 | slot : ~0ull);
	}
	return NULL;
}

static void step(unsigned *seed)
{
	unsigned i = (unsigned)rand_r(seed) % BLOCKS;
	struct cache_purge_result r;

	switch ((unsigned)rand_r(seed) % 8) {
	case 0:
		cache_purge(f.tenant, 0, &key[i], (uint32_t)rand_r(seed) % 4, &r);
		break;
	case 1:
		evict_round(f.tenant, (uint64_t)rand_r(seed) % 200000, (unsigned)rand_r(seed) % 2);
		break;
	default:
		if (i % CHAIN == 0 || cache_present(f.tenant, &key[i - 1]))
			put_block(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, NULL);
		else
			put_block(&f, f.layout, i - i % CHAIN, NULL, NULL);
	}
}

static void test_readers_and_pressure(void **state)
{
	static struct client clients[READERS + 1];
	struct cache_purge_result r;
	unsigned seed = 1;

	(void)state;
	fixture_options(&f);
	f.o.host_bytes = 3 << 20;
	fixture_start(&f);
	f.tenant->floor = f.layout->floor = .3f;
	for (unsigned i = 0; i < BLOCKS; i++)
		content_key(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, &key[i]);
	for (unsigned i = 0; i <= READERS; i++) {
		client_init(&clients[i], i);
		assert_int_equal(pthread_create(&clients[i].thread, NULL,
					 i < READERS ? honest : hostile, &clients[i]),
			0);
	}
	for (unsigned n = 0; n < STEPS || (atomic_load(&verified) < 1000 && n < 100 * STEPS); n++) {
		step(&seed);
		if (n % 500 == 0)
			assert_int_equal(cache_check(f.cache), 0);
	}
	atomic_store(&stop, true);
	for (unsigned i = 0; i <= READERS; i++)
		pthread_join(clients[i].thread, NULL);
	assert_int_equal(cache_check(f.cache), 0);
	assert_true(atomic_load(&verified) >= 1000 && atomic_load(&partial) > 0);
	for (unsigned i = 0; i <= READERS; i++)
		client_fini(&clients[i]);
	cache_purge(f.tenant, 0, NULL, 0, &r);
	assert_true(r.pinned == 0 && f.tenant->used == 0);
	print_message(
		"%u reads verified, %u of a part\n", atomic_load(&verified), atomic_load(&partial));
	fixture_stop(&f);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_readers_and_pressure),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
