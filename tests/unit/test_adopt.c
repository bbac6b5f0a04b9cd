/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A cache that ends as if it were killed, and the next one that finds what it parked. The test keeps the fds, and may do to
 * them whatever memory, time and other programs do. Whatever a cache shows after that must be byte by byte what was committed, and every fact that is kept
 * twice must agree.
 */
#include <assert.h>
#include <errno.h>
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

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "daemon/mem/memfd.h"
#include "proto/plane.h"
#include "tests/unit/lives.h"

enum {
	CHAIN = 8,
	BLOCKS = 40,
	SEEDS = 64
};

/* ---- what is in it ---- */

static void keys_of(struct kvg_key key[SEEDS])
{
	for (unsigned i = 0; i < SEEDS; i++)
		content_key(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, &key[i]);
}

static void put(void *n)
{
	struct kvg_key key[SEEDS];

	keys_of(key);
	for (unsigned i = 0; i < *(unsigned *)n; i++) {
		int code = put_block(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, NULL);

		assert(code == KVG_CODE_OK || code == KVG_CODE_EXISTS);
	}
}

/* Every byte of what is there; the number of blocks. */
static unsigned look(void)
{
	struct kvg_key key[SEEDS];
	unsigned n = 0;

	assert(cache_check(f.cache) == 0);
	keys_of(key);
	for (unsigned i = 0; i < SEEDS; i++) {
		struct block *b = block_find(f.tenant, f.layout->id, &key[i]);

		if (!b)
			continue;
		n++;
		for (uint32_t p = 0; p < b->n_planes; p++)
			if (block_shown(b) >> p & 1) {
				const struct extent *e = &b->plane[p].extent;

				assert(plane_verify(e->addr, extent_bytes(e)) == 0);
				content_check(i, e->addr, extent_bytes(e), p);
			}
	}
	return n;
}

static void all_is_there(void *n)
{
	assert(look() == *(unsigned *)n);
}

static void what_is_there_is_whole(void *unused)
{
	struct pool_stat st;
	unsigned n = look(), all = BLOCKS;

	(void)unused;
	put(&all); /* and it goes on */
	assert(look() >= n);
	pool_stat(f.cache->pool, &st);
	cache_purge(f.tenant, 0, NULL, 0, &(struct cache_purge_result){0});
	assert(f.tenant->n_blocks == 0 && cache_check(f.cache) == 0);
}

/* ---- nothing happened but the end ---- */

static void shrink_and_set(void *unused)
{
	struct cache_purge_result purged;
	struct cache_policy p = {.floor = .25f, .low_watermark = .5f};
	struct kvg_key key[SEEDS];
	char why[200];

	(void)unused;
	keys_of(key);
	for (unsigned i = 0; i < 3; i++)
		cache_purge(f.tenant, 0, &key[i], 1 + i, &purged);
	assert(cache_policy_set(f.tenant, "", &p, why, sizeof(why)) == KVG_CODE_OK);
	p = (struct cache_policy){.floor = .5f};
	assert(cache_policy_set(f.tenant, "model", &p, why, sizeof(why)) == KVG_CODE_OK);
	assert(cache_policy_set(f.tenant, "other", &p, why, sizeof(why)) == KVG_CODE_OK);
	cache_policy_forget(f.tenant, "other");
	fixture_layout(&f, f.tenant, "second", "");
	assert(look() == BLOCKS);
}

static void is_as_it_was(void *unused)
{
	struct kvg_key key[SEEDS];
	struct cache_policy p;
	float floor;

	(void)unused;
	assert(look() == BLOCKS);
	keys_of(key);
	for (unsigned i = 0; i < 5; i++) {
		struct block *b = block_find(f.tenant, f.layout->id, &key[i]);
		float sum = 0;

		assert(plane_count(b->held) == (i < 3 ? 1 + i : plane_count(b->planes)));
		for (uint32_t p_ = 0; p_ < b->node.n_planes; p_++)
			sum += b->node.mass[p_];
		assert(i < 3 ? sum < .99f : sum > .999f && sum < 1.001f);
		assert(b->depth == i % CHAIN && !b->parent == !(i % CHAIN));
	}
	cache_policy_get(f.tenant, "", &p);
	assert(p.floor == .25f && p.low_watermark == .5f);
	cache_policy_get(f.tenant, "model", &p);
	assert(p.floor == .5f && f.layout->floor == .5f);
	assert(!strcmp(cache_policy_model(f.tenant, 0, &floor), "model"));
	assert(!cache_policy_model(f.tenant, 1, &floor));
	assert(f.layout->id == 1 && f.tenant->n_layouts == 2);
	assert(f.tenant->index && *(uint32_t *)((char *)index_instance(f.tenant->index) + 20) > 0);
}

static void test_nothing_is_lost(void **state)
{
	unsigned n = BLOCKS, few = 10;

	(void)state;
	live(put, &few);
	live(all_is_there, &few);
	live(put, &n);
	live(shrink_and_set, NULL);
	live(is_as_it_was, NULL);
	live(what_is_there_is_whole, NULL);
	live(all_is_there, &(unsigned){0});
	drop_all();
}

/* ---- killed in the middle of something ---- */

static void kill_half_way(void *unused)
{
	struct kvg_key key[SEEDS];
	struct block *b;

	(void)unused;
	keys_of(key);
	for (unsigned i = CHAIN - 1; i < 4 * CHAIN; i += CHAIN) {
		b = block_find(f.tenant, f.layout->id, &key[i]); /* a leaf */
		if (i == 2 * CHAIN - 1)                          /* planes are about to go */
			index_set_planes(f.tenant->index, b->handle.slot, 1, 1);
		else
			index_set_planes(f.tenant->index, b->handle.slot, 0, 0);
		if (i == 3 * CHAIN - 1) /* its body is damaged */
			((uint8_t *)b->plane[0].extent.addr)[200] ^= 1;
	}
}

static uint32_t slot_of(unsigned seed)
{
	return seed; /* the first blocks of a new index */
}

static void leaf_is(unsigned seed, bool there, uint8_t hidden)
{
	const struct block *b = f.tenant->by_slot[slot_of(seed)];

	assert(!b == !there);
	assert(!b || b->hidden == hidden);
}

static void pinned_leaf_is_back(void *unused)
{
	(void)unused;
	leaf_is(CHAIN - 1, pinned_slot == slot_of(CHAIN - 1), 0);
	leaf_is(2 * CHAIN - 1, true, 0);
	assert((f.tenant->by_slot[2 * CHAIN - 1]->held == 1) ==
		(pinned_slot != slot_of(2 * CHAIN - 1)));
	if (pinned_slot == slot_of(3 * CHAIN - 1))
		leaf_is(3 * CHAIN - 1, true, f.tenant->by_slot[3 * CHAIN - 1]->held);
	else
		leaf_is(3 * CHAIN - 1, false, 0);
	assert(cache_check(f.cache) == 0);
}

static void test_pinned_and_hidden(void **state)
{
	static const unsigned seeds[] = {CHAIN - 1, 2 * CHAIN - 1, 3 * CHAIN - 1, 4 * CHAIN};
	unsigned n = BLOCKS;

	(void)state;
	for (unsigned i = 0; i < sizeof(seeds) / sizeof(seeds[0]); i++) {
		live(put, &n);
		live(kill_half_way, NULL);
		pinned_slot = slot_of(seeds[i]);
		live(pinned_leaf_is_back, NULL);
		pinned_slot = KVG_SLOT_NONE;
		drop_all();
	}
}

/* Commits, shrinks, evicts and purges until it is killed. */
static void work_for_ever(void *seed)
{
	struct kvg_key key[SEEDS];
	unsigned random = *(unsigned *)seed;

	assert(look() <= SEEDS);
	keys_of(key);
	f.tenant->floor = .3f;
	tenant_floors_changed(f.tenant);
	for (;; ++*progress) {
		unsigned i = rand_r(&random) % SEEDS;

		for (unsigned at = i - i % CHAIN; at <= i; at++)
			put_block(&f, f.layout, at, at % CHAIN ? &key[at - 1] : NULL, NULL);
		if (rand_r(&random) % 4 == 0)
			cache_purge(f.tenant, 0, &key[rand_r(&random) % SEEDS], rand_r(&random) % 3,
				&(struct cache_purge_result){0});
		if (rand_r(&random) % 4 == 0)
			evict_round(f.tenant, 200000, 0);
		run_loop(&f, 1);
	}
}

static void test_killed_at_any_moment(void **state)
{
	const char *rounds = getenv("KVGATE_CHAOS_ROUNDS");
	unsigned n = rounds ? (unsigned)atoi(rounds) : 150, random = 7;

	(void)state;
	for (unsigned i = 0; i < n; i++) {
		unsigned seed = (unsigned)rand_r(&random);

		*progress = 0;
		kill_at(start(work_for_ever, &seed), (unsigned)rand_r(&random) % 8,
			(unsigned)rand_r(&random) % 3000);
		assert_true(n_kept <= 2 + 24); /* an index, a catalog, and no segment for ever */
	}
	live(what_is_there_is_whole, NULL);
	drop_all();
}

/* A commit is answered, and then it may come. */
static void put_and_count(void *unused)
{
	struct kvg_key key[SEEDS];

	(void)unused;
	assert(look() >= *progress);
	keys_of(key);
	for (unsigned i = 0; i < SEEDS; i++) {
		int code = put_block(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, NULL);

		assert(code == (i < *progress ? KVG_CODE_EXISTS : KVG_CODE_OK) ||
			(i == *progress && code == KVG_CODE_EXISTS)); /* killed before the answer */
		if (i >= *progress)
			*progress = i + 1;
	}
	for (;;)
		run_loop(&f, 1);
}

static void test_what_was_answered_is_there(void **state)
{
	unsigned random = 11, target;

	(void)state;
	*progress = 0;
	for (unsigned i = 0; i < 60; i++) {
		target = *progress + (unsigned)rand_r(&random) % 12;
		kill_at(start(put_and_count, NULL), target < SEEDS ? target : SEEDS,
			(unsigned)rand_r(&random) % 400);
		if (*progress == SEEDS) {
			live(all_is_there, &(unsigned){SEEDS});
			drop_all();
			*progress = 0;
		}
	}
	drop_all();
}

/* ---- what others do to it ---- */

static void *map_kept(const char *name, size_t *ret_bytes)
{
	struct stat st;
	void *p;

	assert(fstat(find(name), &st) == 0);
	*ret_bytes = (size_t)st.st_size;
	p = mmap(NULL, *ret_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, find(name), 0);
	assert(p != MAP_FAILED);
	return p;
}

static struct kvg_shm_entry *entries(uint8_t *index)
{
	return (struct kvg_shm_entry *)(index + ((struct kvg_shm_index *)index)->entries_off);
}

static void seal_entry(struct kvg_shm_entry *e)
{
	uint32_t gen = kvg_word_gen(atomic_load(&e->word));

	e->crc = entry_crc(e, gen);
	for (uint32_t p = 0; p < e->n_planes; p++)
		e->plane[p].check = plane_ref_check(&e->plane[p], p, gen);
}

enum harm {
	MISSING_SEGMENT,
	MISSING_INDEX,
	MISSING_CATALOG,
	TWO_INDEXES,
	TWO_SEGMENTS,
	TWO_CATALOGS,
	UNSEALED_SEGMENT,
	PIPE_AS_INDEX,
	NEWER_INDEX,
	NEWER_CATALOG,
	OTHER_INDEX,
	CUT_CATALOG,
	NO_TENANT_NAME,
	STRANGE_NAMES,
	OVERLAP,
	OUTSIDE,
	OTHER_SHIFT,
	UNKNOWN_LAYOUT,
	ORPHAN,
	CIRCLE,
	FORGED_HEADER,
	N_HARMS
};

static void harm_index(enum harm harm)
{
	size_t bytes;
	uint8_t *index = map_kept("kvg-i-1", &bytes);
	struct kvg_shm_index *h = (void *)index;
	struct kvg_shm_entry *e = &entries(index)[2];

	if (harm == NEWER_INDEX) {
		h->version++;
		h->crc = index_crc(h);
	} else if (harm == OTHER_INDEX) {
		h->instance[0]++;
		h->crc = index_crc(h);
	} else if (harm == OVERLAP) {
		e->plane[0] = entries(index)[CHAIN + 1].plane[0];
	} else if (harm == OUTSIDE) {
		e->plane[0].page = 1u << 20;
	} else if (harm == OTHER_SHIFT) {
		e->plane[0].page_shift++;
	} else if (harm == UNKNOWN_LAYOUT) {
		e->layout = 77;
	} else if (harm == ORPHAN) {
		e->depth++;
	} else if (harm == CIRCLE) {
		entries(index)[0].parent = 2;
		seal_entry(&entries(index)[0]);
	} else if (harm == FORGED_HEADER) {
		struct kvg_shm_plane_ref r = e->plane[0]; /* two blocks, exchanged */

		e->plane[0] = entries(index)[3].plane[0];
		entries(index)[3].plane[0] = r;
		seal_entry(&entries(index)[3]);
	}
	seal_entry(e);
	munmap(index, bytes);
}

static void harm_catalog(enum harm harm)
{
	size_t bytes;
	uint8_t *map = map_kept("kvg-c-1", &bytes);

	if (harm == NEWER_CATALOG)
		map[8]++;
	else if (harm == CUT_CATALOG)
		map[4096 + 40] ^= 1; /* behind the name */
	else
		map[4096] ^= 1;
	munmap(map, bytes);
}

static const char *a_segment(void)
{
	for (unsigned i = 0; i < n_kept; i++)
		if (!strncmp(kept[i].name, "kvg-s-1-", 8))
			return kept[i].name;
	return NULL;
}

static void do_harm(enum harm harm)
{
	char segment[64];
	int fds[2];

	strcpy(segment, a_segment());
	switch (harm) {
	case MISSING_SEGMENT:
		forget(segment);
		break;
	case MISSING_INDEX:
		forget("kvg-i-1");
		break;
	case MISSING_CATALOG:
		forget("kvg-c-1");
		break;
	case TWO_INDEXES:
		keep("kvg-i-1", dup(find("kvg-i-1")));
		break;
	case TWO_SEGMENTS:
		keep(segment, dup(find(segment)));
		break;
	case TWO_CATALOGS:
		keep("kvg-c-1", dup(find("kvg-c-1")));
		break;
	case UNSEALED_SEGMENT:
		forget(segment);
		keep(segment, memfd_create("x", MFD_CLOEXEC));
		assert(ftruncate(find(segment), 1 << 20) == 0);
		break;
	case PIPE_AS_INDEX:
		assert(pipe2(fds, O_CLOEXEC) == 0);
		close(fds[1]);
		forget("kvg-i-1");
		keep("kvg-i-1", fds[0]);
		break;
	case NEWER_CATALOG:
	case CUT_CATALOG:
	case NO_TENANT_NAME:
		harm_catalog(harm);
		break;
	case STRANGE_NAMES:
		keep("kvg-", dup(0));
		keep("kvg-i-01", dup(find("kvg-i-1")));
		keep("kvg-s-1--1-16", dup(find(segment)));
		keep("kvg-s-1-0-16", dup(find(segment)));
		keep("kvg-s-1-99-63", dup(find(segment)));
		keep("kvg-s-9-1-16", dup(find(segment)));
		keep("kvg-x-1", dup(find(segment)));
		keep("kvg-c-99999999999999999999", dup(find("kvg-c-1")));
		break;
	default:
		harm_index(harm);
	}
}

/* How many of BLOCKS are still there, at least and at most. */
static const struct {
	unsigned least, most;
} after[N_HARMS] = {
	[MISSING_SEGMENT] = {1, BLOCKS - 1},
	[MISSING_INDEX] = {0, 0},
	[MISSING_CATALOG] = {0, 0},
	[TWO_INDEXES] = {0, 0},
	[TWO_SEGMENTS] = {BLOCKS, BLOCKS},
	[TWO_CATALOGS] = {BLOCKS, BLOCKS},
	[UNSEALED_SEGMENT] = {1, BLOCKS - 1},
	[PIPE_AS_INDEX] = {0, 0},
	[NEWER_INDEX] = {0, 0},
	[NEWER_CATALOG] = {0, 0},
	[OTHER_INDEX] = {0, 0},
	[CUT_CATALOG] = {0, 0},
	[NO_TENANT_NAME] = {0, 0},
	[STRANGE_NAMES] = {BLOCKS, BLOCKS},
	[OVERLAP] = {BLOCKS - (CHAIN - 2) - (CHAIN - 1), BLOCKS - (CHAIN - 2) - (CHAIN - 1)},
	[OUTSIDE] = {BLOCKS - (CHAIN - 2), BLOCKS - (CHAIN - 2)},
	[OTHER_SHIFT] = {BLOCKS - (CHAIN - 2), BLOCKS - (CHAIN - 2)},
	[UNKNOWN_LAYOUT] = {BLOCKS - (CHAIN - 2), BLOCKS - (CHAIN - 2)},
	[ORPHAN] = {BLOCKS - (CHAIN - 2), BLOCKS - (CHAIN - 2)},
	[CIRCLE] = {BLOCKS - CHAIN, BLOCKS - CHAIN},
	[FORGED_HEADER] = {BLOCKS - (CHAIN - 2), BLOCKS - (CHAIN - 2)},
};

static void some_are_there(void *harm)
{
	const unsigned n = look(), which = *(enum harm *)harm;

	if (n < after[which].least || n > after[which].most) {
		fprintf(stderr, "harm %u: %u blocks\n", which, n);
		abort();
	}
}

static void test_harm(void **state)
{
	unsigned n = BLOCKS;

	(void)state;
	for (enum harm harm = 0; harm < N_HARMS; harm++) {
		live(put, &n);
		do_harm(harm);
		live(some_are_there, &harm);
		live(some_are_there, &harm); /* what was refused is not met again */
		live(what_is_there_is_whole, NULL);
		live(all_is_there, &(unsigned){0});
		drop_all();
	}
}

/* Any bit of what is kept beside the planes; what is left may be little, but nothing of it is wrong. */
static void test_flipped_bits(void **state)
{
	unsigned random = 3, n = BLOCKS;

	(void)state;
	for (unsigned round = 0; round < 60; round++) {
		size_t index_bytes, catalog_bytes;
		uint8_t *index, *catalog, *entry;

		live(put, &n);
		index = map_kept("kvg-i-1", &index_bytes);
		catalog = map_kept("kvg-c-1", &catalog_bytes);
		entry = (uint8_t *)entries(index);
		for (unsigned i = 0; i < 1 + round % 12; i++) {
			const unsigned r = (unsigned)rand_r(&random);
			uint8_t *at = entry + r % (BLOCKS * sizeof(struct kvg_shm_entry));

			if (i % 4 == 1)
				at = index + 4096 + r % (size_t)(entry - index - 4096);
			else if (i % 8 == 7)
				at = (round & 1 ? index : catalog) + r % 96;
			else if (i % 8 == 5)
				at = catalog + 4096 + r % 600;
			*at ^= (uint8_t)(1u << rand_r(&random) % 8);
		}
		munmap(index, index_bytes);
		munmap(catalog, catalog_bytes);
		live(what_is_there_is_whole, NULL);
		drop_all();
	}
}

static uint32_t greatest_segment(void)
{
	uint32_t most = 0;
	unsigned id;

	for (unsigned i = 0; i < n_kept; i++)
		if (sscanf(kept[i].name, "kvg-s-1-%u-", &id) == 1 && id > most)
			most = id;
	return most;
}

/* A client may have a segment mapped that is no more: its id never names another one. */
static void test_segment_ids_go_on(void **state)
{
	unsigned n = BLOCKS;
	uint32_t last;

	(void)state;
	live(put, &n);
	last = greatest_segment();
	assert_true(last > 1);
	while (a_segment())
		forget(a_segment());
	live(put, &n);
	for (unsigned i = 0, id; i < n_kept; i++)
		if (sscanf(kept[i].name, "kvg-s-1-%u-", &id) == 1)
			assert_true(id > last);
	drop_all();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_nothing_is_lost),
		cmocka_unit_test(test_pinned_and_hidden),
		cmocka_unit_test(test_killed_at_any_moment),
		cmocka_unit_test(test_what_was_answered_is_there),
		cmocka_unit_test(test_harm),
		cmocka_unit_test(test_flipped_bits),
		cmocka_unit_test(test_segment_ids_go_on),
	};
	return cmocka_run_group_tests(tests, lives_setup, NULL);
}
