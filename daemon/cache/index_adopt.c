/* SPDX-License-Identifier: Apache-2.0 */
/*
 * An index outlives its daemon as it stood when that was killed, between any two of its stores. What may be found:
 *
 *	word LIVE, no way		it was being inserted: nobody has seen it, nobody was told -> free
 *	word LIVE, way			a block
 *	word LIVE, refs beyond `held`	planes were hidden; their pages are not given back yet
 *	no LIVE, way			the block was hidden; its pages are not given back yet
 *	no LIVE, no way			free, or its pages are about to be
 *
 * because index_insert() stores the way last, and whoever takes memory away first makes the word smaller, then the refs say
 * so (index_drop_planes()) or the way goes (index_remove()), and only then are pages released. So a claim names pages that
 * hold what it says. Hidden ones are told as well: the evictor may have been killed between hiding a block and finding
 * it pinned, and then its reader goes on to read.
 *
 * Holes are not read: that would make the kernel fill them. Counts of overflows, which may be off by what was under way,
 * are made anew. Readers may miss meanwhile, and find nothing wrong.
 */
#include "daemon/cache/index_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/mem/bitmap.h"
#include "daemon/mem/memfd.h"

const uint8_t *index_instance(const struct index *x)
{
	return x->head->instance;
}

/* One of ours: of a fixed size, and nobody who can write to it has it but those who were given this very description. */
static int check_file(int fd, uint64_t *ret_bytes)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
	int flags = fcntl(fd, F_GETFL), has = fcntl(fd, F_GET_SEALS);
	struct stat st;

	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || has < 0 || (has & seals) != seals ||
		fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size < 4096)
		return -EBADMSG;
	*ret_bytes = (uint64_t)st.st_size;
	return 0;
}

static int read_header(int fd, uint64_t bytes, struct kvg_shm_index *ret)
{
	struct index_view v;
	uint8_t page[4096];
	int r;

	if (pread(fd, page, sizeof(page), 0) != sizeof(page))
		return -EBADMSG;
	r = index_view_open(page, bytes, &v);
	if (r == 0)
		*ret = v.h;
	return r;
}

/* The next slots that lie in memory. False: there are none. */
static bool next_data(const struct index *x, uint64_t *slot, uint64_t *ret_end)
{
	const off_t base = (off_t)x->head->entries_off;
	const off_t size = sizeof(struct kvg_shm_entry);
	off_t from, to;

	if (*slot >= x->n_slots)
		return false;
	from = lseek(x->fd, base + (off_t)*slot * size, SEEK_DATA);
	if (from < 0)
		return false;
	to = lseek(x->fd, from, SEEK_HOLE);
	*slot = (uint64_t)((from - base) / size);
	*ret_end = to < 0 ? x->n_slots : (uint64_t)((to - base + size - 1) / size);
	if (*ret_end > x->n_slots)
		*ret_end = x->n_slots;
	return *slot < *ret_end;
}

static void find_end(struct index *x)
{
	uint64_t slot = 0, end;

	for (; next_data(x, &slot, &end); slot = end)
		for (uint64_t s = end; s > slot; s--)
			if (atomic_load_explicit(&x->entries[s - 1].word, memory_order_relaxed)) {
				x->end = s;
				break;
			}
}

int index_adopt(int fd, struct index **ret)
{
	struct kvg_shm_index head;
	struct index *x;
	uint64_t bytes;
	int r = check_file(fd, &bytes);

	if (r == 0)
		r = read_header(fd, bytes, &head);
	if (r < 0)
		return r;
	x = calloc(1, sizeof(*x));
	if (!x)
		return -ENOMEM;
	*x = (struct index){
		.fd = fd,
		.read_fd = -1,
		.n_buckets = head.n_buckets,
		.n_slots = head.n_slots,
		.bytes = head.total_bytes,
	};
	r = memfd_read_only(fd, &x->read_fd);
	if (r == 0)
		r = index_map(x);
	if (r < 0) {
		x->fd = -1; /* the caller's still */
		index_free(x);
		return r;
	}
	x->head = (struct kvg_shm_index *)x->map;
	x->buckets = (struct kvg_shm_bucket *)(x->map + head.buckets_off);
	x->entries = (struct kvg_shm_entry *)(x->map + head.entries_off);
	find_end(x);
	*ret = x;
	return 0;
}

static void claim(const struct kvg_shm_entry *e, uint32_t slot, struct index_claim *ret)
{
	const uint64_t word = atomic_load_explicit(&e->word, memory_order_relaxed);

	ret->slot = slot;
	ret->gen = kvg_word_gen(word);
	ret->shown = kvg_word_held(word);
	ret->there = 0;
	for (uint32_t p = 0; p < e->n_planes; p++)
		if (e->plane[p].tier != KVG_TIER_NONE)
			ret->there |= (uint8_t)(1u << p);
}

void index_adopt_scan(
	struct index *x, index_claim_fn fn, void *userdata, struct index_adoption *ret)
{
	struct index_view v = {.map = x->map};
	struct index_adoption report = {0};
	struct index_claim c;
	uint64_t slot = 0, end;

	memcpy((void *)&v.h, x->head, sizeof(v.h));
	for (; next_data(x, &slot, &end); slot = end)
		for (uint64_t s = slot; s < end; s++) {
			enum index_verdict verdict = index_judge(&v, (uint32_t)s, &c.entry);

			report.unfinished += verdict == INDEX_UNFINISHED;
			report.damaged += verdict == INDEX_DAMAGED;
			if (verdict != INDEX_WHOLE)
				continue;
			report.claims++;
			claim(&c.entry, (uint32_t)s, &c);
			fn(userdata, &c);
		}
	*ret = report;
}

/* Does `way` of this bucket lead to an entry that is kept, on the path of its key? *ret_passed: the buckets before. */
static bool way_stays(const struct index *x, const uint64_t *keep, uint64_t bucket, uint64_t way,
	uint64_t *ret_passed)
{
	const uint32_t slot = (uint32_t)way - 1;
	const struct kvg_key *key;

	if (slot >= x->end || !bitmap_test(keep, slot))
		return false;
	key = &x->entries[slot].key;
	*ret_passed = (bucket - kvg_key_bucket(key, x->n_buckets)) & (x->n_buckets - 1);
	return way == index_way(key, slot) && *ret_passed < INDEX_PROBES_MAX;
}

/* A second way to an entry would outlive it. */
static void rebuild_ways(struct index *x, const uint64_t *keep, uint64_t *seen, uint32_t *overflow)
{
	for (uint64_t b = 0; b < x->n_buckets; b++)
		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++) {
			_Atomic uint64_t *at = &x->buckets[b].way[w];
			uint64_t way = atomic_load_explicit(at, memory_order_relaxed), passed;
			bool stays = way && way_stays(x, keep, b, way, &passed) &&
				!bitmap_test(seen, (uint32_t)way - 1);

			if (way && !stays)
				atomic_store_explicit(at, 0, memory_order_release);
			if (!stays)
				continue;
			bitmap_set(seen, (uint32_t)way - 1, 1);
			for (uint64_t i = passed; i; i--)
				overflow[(b - i) & (x->n_buckets - 1)]++;
		}
}

/* What a daemon that starts anew would find, but for the generations, which go on. */
static void free_slots(struct index *x, const uint64_t *kept)
{
	struct index_view v = {.map = x->map};

	memcpy((void *)&v.h, x->head, sizeof(v.h));
	for (uint64_t slot = x->end; slot-- > 0;) {
		struct kvg_shm_entry *e = &x->entries[slot], copy;
		bool damaged = false;
		uint32_t gen;

		if (bitmap_test(kept, (uint32_t)slot))
			continue;
		damaged = index_judge(&v, (uint32_t)slot, &copy) == INDEX_DAMAGED;
		gen = kvg_word_gen(atomic_load_explicit(&e->word, memory_order_relaxed));
		atomic_store_explicit(&e->word, kvg_word(gen, 0, 0, 0), memory_order_release);
		if (damaged || gen == UINT32_MAX) /* its generation may be any */
			x->retired++;
		else
			x->free[x->n_free++] = (uint32_t)slot;
	}
}

int index_adopt_finish(struct index *x, const uint64_t *keep)
{
	uint32_t *overflow = calloc(x->n_buckets, sizeof(*overflow));
	uint64_t *seen = calloc(bitmap_words((uint32_t)x->end) + 1, sizeof(*seen));

	if (!overflow || !seen) {
		free(overflow);
		free(seen);
		return -ENOMEM;
	}
	rebuild_ways(x, keep, seen, overflow);
	for (uint64_t b = 0; b < x->n_buckets; b++)
		if (atomic_load_explicit(&x->buckets[b].overflow, memory_order_relaxed) !=
			overflow[b])
			atomic_store_explicit(
				&x->buckets[b].overflow, overflow[b], memory_order_release);
	free_slots(x, seen);
	atomic_fetch_add_explicit(&x->head->epoch, 1, memory_order_seq_cst);
	free(overflow);
	free(seen);
	return 0;
}
