/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A memfd of three parts: header page | buckets | entries. A block is an entry (its slot never changes) and a way in one
 * bucket that points to it. The daemon's own memory holds only the stack of free slots.
 *
 *	insert		fields, checksums		-> word (release) -> overflow counts -> way (release)
 *	hide		word without LIVE		-> the caller's fence and scan
 *	remove		way = 0 -> overflow counts	-> the slot is free
 *
 * What a reader may meet on the way is at worst a miss: a way whose word is not live yet or no longer, a way it has
 * not seen. It never meets a wrong block, because the word carries the generation: the next insert into the slot writes
 * its fields behind a release fence that follows the dead word, so whoever read a new field and then looks at
 * the word again, after a fence of its own, sees that it changed. Fields are stored in relaxed 8-byte words for that
 * reason: readers look at them at any time.
 *
 * Probing goes to the next bucket only past buckets that count an overflow, so a miss costs one cache line. There
 * are 7/4 to 7/2 ways per slot, so that a key which is a hash always finds one nearby.
 *
 * A slot whose generation is used up (2^32 - 1 inserts) is never used again.
 */
#include "daemon/cache/index_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/mem/memfd.h"
#include "proto/map.h"
#include "proto/plane.h"

#define SWEEP_BYTES                                                                                \
	(16ull << 20) /* of one index_sweep(): a millisecond or two when all of it is there */
#define HUGE_SLACK (4ull << 20) /* the kernel may back huge pages around what is used */

static_assert(sizeof(struct kvg_shm_plane_ref) % 8 == 0, "a plane ref is stored in words");
static_assert(offsetof(struct kvg_shm_entry, key) % 8 == 0, "the fields are stored in words");

static uint64_t page_up(uint64_t n)
{
	return (n + 4095) & ~4095ull;
}

static void geometry(uint64_t n_slots, struct kvg_shm_index *ret)
{
	uint64_t n_buckets = 1;

	while (n_buckets * 4 < n_slots)
		n_buckets *= 2;
	*ret = (struct kvg_shm_index){
		.magic = KVG_INDEX_MAGIC,
		.version = KVG_SHM_VERSION,
		.entry_bytes = sizeof(struct kvg_shm_entry),
		.n_buckets = n_buckets,
		.n_slots = n_slots,
		.buckets_off = 4096,
		.entries_off = page_up(4096 + n_buckets * sizeof(struct kvg_shm_bucket)),
	};
	ret->total_bytes = ret->entries_off + page_up(n_slots * sizeof(struct kvg_shm_entry));
}

int index_map(struct index *x)
{
	void *p;
	const int r = map_shared(x->fd, x->bytes, PROT_READ | PROT_WRITE, &p);

	if (r < 0)
		return r;
	x->map = p;
	madvise(p, x->bytes, MADV_HUGEPAGE); /* a hint: lookups miss the TLB less */
	p = mmap(NULL, x->n_slots * sizeof(*x->free), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -errno;
	x->free = p;
	return 0;
}

int index_new(uint64_t n_slots, struct index **ret)
{
	struct kvg_shm_index head;
	struct index *x;
	int r;

	if (n_slots == 0 || n_slots > INDEX_SLOTS_MAX)
		return -EINVAL;
	geometry(n_slots, &head);
	if (getrandom(head.instance, sizeof(head.instance), 0) != sizeof(head.instance))
		return -EIO;
	head.crc = index_crc(&head);
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	*x = (struct index){
		.fd = -1,
		.read_fd = -1,
		.n_buckets = head.n_buckets,
		.n_slots = n_slots,
		.bytes = head.total_bytes,
	};
	r = memfd_new("kvgate-index", x->bytes, 0400, 0,
		&x->fd); /* even its owner cannot re-open it for writing */
	if (r == 0)
		r = memfd_read_only(x->fd, &x->read_fd);
	if (r == 0)
		r = index_map(x);
	if (r < 0) {
		index_free(x);
		return r;
	}
	x->head = (struct kvg_shm_index *)x->map;
	x->buckets = (struct kvg_shm_bucket *)(x->map + head.buckets_off);
	x->entries = (struct kvg_shm_entry *)(x->map + head.entries_off);
	memcpy(x->head, &head, sizeof(head));
	*ret = x;
	return 0;
}

struct index *index_free(struct index *x)
{
	if (!x)
		return NULL;
	if (x->map)
		munmap(x->map, x->bytes);
	if (x->free)
		munmap(x->free, x->n_slots * sizeof(*x->free));
	if (x->read_fd >= 0)
		close(x->read_fd);
	if (x->fd >= 0)
		close(x->fd);
	free(x);
	return NULL;
}

int index_fd(const struct index *x)
{
	return x->read_fd;
}

int index_kept_fd(const struct index *x)
{
	return x->fd;
}

uint64_t index_slots(const struct index *x)
{
	return x->n_slots;
}

uint64_t index_slots_free(const struct index *x)
{
	return x->n_free + (x->n_slots - x->end);
}

uint64_t index_slots_used_end(const struct index *x)
{
	return x->end;
}

const struct kvg_shm_entry *index_entry(const struct index *x, uint32_t slot)
{
	assert(slot < x->end);
	return &x->entries[slot];
}

void index_sweep(struct index *x)
{
	const uint64_t own = page_up(x->head->entries_off + x->end * sizeof(struct kvg_shm_entry));
	struct stat st;
	uint64_t n;

	if (fstat(x->fd, &st) < 0 || (uint64_t)st.st_blocks * 512 <= own + HUGE_SLACK)
		return;
	if (x->swept < own || x->swept >= x->bytes)
		x->swept = own;
	n = x->bytes - x->swept < SWEEP_BYTES ? x->bytes - x->swept : SWEEP_BYTES;
	if (n &&
		fallocate(x->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)x->swept,
			(off_t)n) == 0)
		x->swept += n;
}

static uint64_t word_of(const struct kvg_shm_entry *e)
{
	return atomic_load_explicit(&e->word, memory_order_relaxed);
}

uint32_t index_generation(const struct index *x, uint32_t slot)
{
	return kvg_word_gen(word_of(index_entry(x, slot)));
}

/* ---- buckets ---- */

uint64_t index_way(const struct kvg_key *key, uint32_t slot)
{
	return (uint64_t)kvg_key_tag(key) << 32 | (slot + 1);
}

static void count_overflow(struct kvg_shm_bucket *b, int by)
{
	uint64_t n = atomic_load_explicit(&b->overflow, memory_order_relaxed);

	assert(by > 0 || n > 0);
	atomic_store_explicit(&b->overflow, n + (uint64_t)(int64_t)by, memory_order_release);
}

static uint64_t probes_max(const struct index *x)
{
	return x->n_buckets < INDEX_PROBES_MAX ? x->n_buckets : INDEX_PROBES_MAX;
}

/* Where `way` stands on the path of key, and the number of buckets passed before. */
static _Atomic uint64_t *find_way(
	const struct index *x, const struct kvg_key *key, uint64_t way, uint64_t *ret_passed)
{
	uint64_t at = kvg_key_bucket(key, x->n_buckets);

	for (uint64_t passed = 0; passed < probes_max(x); passed++) {
		struct kvg_shm_bucket *b = &x->buckets[at];

		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++)
			if (atomic_load_explicit(&b->way[w], memory_order_relaxed) == way) {
				*ret_passed = passed;
				return &b->way[w];
			}
		at = (at + 1) & (x->n_buckets - 1);
	}
	return NULL;
}

static void count_path(struct index *x, const struct kvg_key *key, uint64_t passed, int by)
{
	uint64_t at = kvg_key_bucket(key, x->n_buckets);

	for (; passed; passed--, at = (at + 1) & (x->n_buckets - 1))
		count_overflow(&x->buckets[at], by);
}

void index_expect(struct index *x, uint64_t n)
{
	const uint64_t free = x->n_slots - x->end, entries = n < free ? n : free;

	/* keys are hashes, mostly: with two for each page of buckets hardly any page is left out */
	if (n / 2 >= x->n_buckets * sizeof(struct kvg_shm_bucket) / 4096)
		map_huge(x->map, x->head->entries_off);
	map_huge(x->entries + x->end, entries * sizeof(struct kvg_shm_entry));
}

uint32_t index_find(const struct index *x, uint32_t layout, const struct kvg_key *key)
{
	uint64_t at = kvg_key_bucket(key, x->n_buckets);

	if (!x->end)
		return KVG_SLOT_NONE; /* and no memory for buckets that nobody has written */
	for (uint64_t probes = 0; probes < probes_max(x); probes++) {
		const struct kvg_shm_bucket *b = &x->buckets[at];

		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++) {
			uint64_t way = atomic_load_explicit(&b->way[w], memory_order_relaxed);
			uint32_t slot = (uint32_t)way - 1;
			const struct kvg_shm_entry *e = &x->entries[slot];

			if (!way || way != index_way(key, slot))
				continue;
			assert(slot < x->end);
			if (!memcmp(&e->key, key, sizeof(*key)) &&
				(!layout || e->layout == layout) && (word_of(e) & KVG_ENTRY_LIVE))
				return slot;
		}
		if (!atomic_load_explicit(&b->overflow, memory_order_relaxed))
			break;
		at = (at + 1) & (x->n_buckets - 1);
	}
	return KVG_SLOT_NONE;
}

void index_prefetch(const struct index *x, const struct kvg_key *key)
{
	__builtin_prefetch(&x->buckets[kvg_key_bucket(key, x->n_buckets)], 1);
}

/* ---- entries ---- */

/* Readers look at these bytes at any time, in words. */
static void store_words(void *dst, const void *src, size_t n)
{
	for (size_t i = 0; i < n; i += 8) {
		uint64_t v;

		memcpy(&v, (const uint8_t *)src + i, 8);
		__atomic_store_n((uint64_t *)((uint8_t *)dst + i), v, __ATOMIC_RELAXED);
	}
}

static void entry_fill(const struct index_block *b, uint32_t gen, struct kvg_shm_entry *ret)
{
	*ret = (struct kvg_shm_entry){
		.key = b->key,
		.layout = b->layout,
		.parent = b->parent,
		.tokens = b->tokens,
		.depth = b->depth,
		.n_planes = b->n_planes,
	};
	ret->crc = entry_crc(ret, gen);
	for (uint32_t p = 0; p < b->n_planes; p++) {
		ret->plane[p] = b->plane[p];
		ret->plane[p].check = plane_ref_check(&b->plane[p], p, gen);
	}
}

int index_insert(struct index *x, const struct index_block *b, struct kvg_handle *ret)
{
	const size_t from = offsetof(struct kvg_shm_entry, key);
	struct kvg_shm_entry fresh, *e;
	_Atomic uint64_t *way;
	uint64_t passed;
	uint32_t slot, gen;

	assert(b->n_planes && b->n_planes <= KVG_PLANES_MAX && b->held && !(b->mapped & ~b->held) &&
		!(b->held >> b->n_planes));
	way = find_way(x, &b->key, 0, &passed);
	if (!way || !index_slots_free(x))
		return -ENOSPC;
	slot = x->n_free ? x->free[--x->n_free] : (uint32_t)x->end++;
	e = &x->entries[slot];
	gen = kvg_word_gen(word_of(e)) + 1;
	entry_fill(b, gen, &fresh);
	atomic_thread_fence(
		memory_order_release); /* behind the word that index_set_planes() killed */
	store_words((uint8_t *)e + from, (const uint8_t *)&fresh + from, sizeof(fresh) - from);
	atomic_store_explicit(&e->word, kvg_word(gen, 1, b->held, b->mapped), memory_order_release);

	count_path(x, &b->key, passed, 1);
	atomic_store_explicit(way, index_way(&b->key, slot), memory_order_release);
	*ret = (struct kvg_handle){.slot = slot, .gen = gen};
	return 0;
}

void index_set_planes(struct index *x, uint32_t slot, uint8_t held, uint8_t mapped)
{
	struct kvg_shm_entry *e = &x->entries[slot];

	assert(slot < x->end && !(mapped & ~held) && !(held >> e->n_planes));
	atomic_store_explicit(&e->word, kvg_word(kvg_word_gen(word_of(e)), held != 0, held, mapped),
		memory_order_release);
}

void index_drop_planes(struct index *x, uint32_t slot, uint8_t planes)
{
	struct kvg_shm_entry *e = &x->entries[slot];
	uint64_t word = word_of(e);

	assert(slot < x->end && !(kvg_word_held(word) & planes));
	for (uint32_t p = 0; p < e->n_planes; p++) {
		struct kvg_shm_plane_ref r = e->plane[p];

		if (!(planes >> p & 1))
			continue;
		r.segment = r.page = 0;
		r.tier = KVG_TIER_NONE;
		r.check = plane_ref_check(&r, p, kvg_word_gen(word));
		store_words(&e->plane[p], &r, sizeof(r));
	}
}

void index_place(struct index *x, uint32_t slot, uint32_t plane, const struct kvg_shm_plane_ref *r)
{
	struct kvg_shm_entry *e = &x->entries[slot];
	const uint64_t word = word_of(e);
	struct kvg_shm_plane_ref ref = *r;

	assert(slot < x->end && plane < e->n_planes && !(kvg_word_mapped(word) >> plane & 1));
	ref.check = plane_ref_check(&ref, plane, kvg_word_gen(word));
	store_words(&e->plane[plane], &ref, sizeof(ref));
}

void index_remove(struct index *x, uint32_t slot)
{
	struct kvg_shm_entry *e = &x->entries[slot];
	_Atomic uint64_t *way;
	uint64_t passed;

	assert(slot < x->end && !(word_of(e) & KVG_ENTRY_LIVE));
	way = find_way(x, &e->key, index_way(&e->key, slot), &passed);
	assert(way);
	atomic_store_explicit(way, 0, memory_order_release);
	count_path(x, &e->key, passed, -1);
	if (kvg_word_gen(word_of(e)) == UINT32_MAX)
		x->retired++;
	else
		x->free[x->n_free++] = slot;
}

int index_check(const struct index *x)
{
	uint64_t live = 0, dead = 0, ways = 0, passed_all = 0, overflow_all = 0;

	for (uint32_t slot = 0; slot < x->end; slot++) {
		const struct kvg_shm_entry *e = &x->entries[slot];
		uint64_t passed;

		const bool shown = word_of(e) & KVG_ENTRY_LIVE;

		if (!find_way(x, &e->key, index_way(&e->key, slot), &passed)) {
			if (shown)
				return -EBADMSG;
			dead++;
			continue;
		}
		if (e->crc != entry_crc(e, kvg_word_gen(word_of(e))))
			return -EBADMSG;
		live++;
		passed_all += passed;
	}
	for (uint64_t i = 0; i < x->n_buckets; i++) {
		overflow_all += atomic_load_explicit(&x->buckets[i].overflow, memory_order_relaxed);
		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++)
			ways += atomic_load_explicit(&x->buckets[i].way[w], memory_order_relaxed) !=
				0;
	}
	return ways == live && passed_all == overflow_all && dead == x->n_free + x->retired
		? 0
		: -EBADMSG;
}
