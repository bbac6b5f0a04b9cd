/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Free runs stand in a treap ordered by (length, first page), so that best fit is one walk down. A run's
 * tree node lies in the array at the number of its first page, and its length also at its last page
 * (boundary tags), so that a page being freed finds its free neighbours without a search:
 *
 *      page   0   1   2   3   4   5   6   7   8
 *             used    [ free run ]    used    [ 1 ]
 *      run            3       3               1
 *
 * A treap wants random priorities: a mix of the page number serves, costs no memory and repeats exactly.
 * Neither allocating nor freeing needs memory, so neither can fail for lack of it.
 */
#include "daemon/mem/arena.h"

#include <assert.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#include "daemon/mem/bitmap.h"

/* One to one on 32 bits, so no two runs are equal in rank. */
static uint32_t rank(uint32_t page)
{
	page = (page ^ page >> 16) * 0x85ebca6bu;
	page = (page ^ page >> 13) * 0xc2b2ae35u;
	return page ^ page >> 16;
}

static bool before(const struct arena *a, uint32_t x, uint32_t y)
{
	uint32_t nx = a->node[x].run, ny = a->node[y].run;

	return nx < ny || (nx == ny && x < y);
}

static void tree_insert(struct arena *a, uint32_t n)
{
	uint32_t *at = &a->root, *low = &a->node[n].left, *high = &a->node[n].right, rest;

	while (*at != ARENA_NONE && rank(*at) > rank(n))
		at = before(a, n, *at) ? &a->node[*at].left : &a->node[*at].right;
	rest = *at;
	*at = n;
	while (rest != ARENA_NONE) {
		uint32_t **side = before(a, rest, n) ? &low : &high;

		**side = rest;
		*side = side == &low ? &a->node[rest].right : &a->node[rest].left;
		rest = **side;
	}
	*low = *high = ARENA_NONE;
}

static void tree_remove(struct arena *a, uint32_t n)
{
	uint32_t *at = &a->root, low = a->node[n].left, high = a->node[n].right;

	while (*at != n)
		at = before(a, n, *at) ? &a->node[*at].left : &a->node[*at].right;
	while (low != ARENA_NONE && high != ARENA_NONE) {
		if (rank(low) > rank(high)) {
			*at = low;
			at = &a->node[low].right;
			low = *at;
		} else {
			*at = high;
			at = &a->node[high].left;
			high = *at;
		}
	}
	*at = low != ARENA_NONE ? low : high;
}

static void run_add(struct arena *a, uint32_t page, uint32_t pages)
{
	a->node[page].run = a->node[page + pages - 1].run = pages;
	tree_insert(a, page);
}

static void run_del(struct arena *a, uint32_t page)
{
	uint32_t last = page + a->node[page].run - 1;

	tree_remove(a, page);
	a->node[page].run = a->node[last].run = 0;
}

int arena_init(struct arena *a, uint32_t pages)
{
	assert(pages > 0 && pages < ARENA_NONE);
	*a = (struct arena){
		.node = calloc(pages, sizeof(*a->node)),
		.used = calloc(bitmap_words(pages), sizeof(*a->used)),
		.pages = pages,
		.free = pages,
		.root = ARENA_NONE,
	};
	if (!a->node || !a->used) {
		arena_fini(a);
		return -ENOMEM;
	}
	run_add(a, 0, pages);
	return 0;
}

void arena_fini(struct arena *a)
{
	free(a->node);
	free(a->used);
	*a = (struct arena){.root = ARENA_NONE};
}

int arena_alloc(struct arena *a, uint32_t pages, uint32_t *ret_page)
{
	uint32_t best = ARENA_NONE, run;

	assert(pages > 0);
	for (uint32_t n = a->root; n != ARENA_NONE;) {
		if (a->node[n].run >= pages) {
			best = n;
			n = a->node[n].left;
		} else {
			n = a->node[n].right;
		}
	}
	if (best == ARENA_NONE)
		return -ENOSPC;
	run = a->node[best].run;
	run_del(a, best);
	if (run > pages)
		run_add(a, best + pages, run - pages);
	bitmap_set(a->used, best, pages);
	a->free -= pages;
	*ret_page = best;
	return 0;
}

void arena_free(struct arena *a, uint32_t page, uint32_t pages)
{
	uint32_t first = page, last;

	assert(pages > 0 && pages <= a->pages && page <= a->pages - pages);
	assert(bitmap_count(a->used, page, pages) == pages);
	bitmap_clear(a->used, page, pages);
	a->free += pages;
	last = page + pages - 1;
	if (last + 1 < a->pages && !bitmap_test(a->used, last + 1)) {
		uint32_t next = last + 1;

		last += a->node[next].run;
		run_del(a, next);
	}
	if (first > 0 && !bitmap_test(a->used, first - 1)) {
		first -= a->node[first - 1].run;
		run_del(a, first);
	}
	run_add(a, first, last - first + 1);
}

uint32_t arena_largest(const struct arena *a)
{
	uint32_t n = a->root;

	if (n == ARENA_NONE)
		return 0;
	while (a->node[n].right != ARENA_NONE)
		n = a->node[n].right;
	return a->node[n].run;
}

void arena_adopt(struct arena *a)
{
	assert(a->free == a->pages);
	run_del(a, 0);
	a->free = 0;
	for (uint32_t page = 0, end; page < a->pages; page = end) {
		page = bitmap_next_clear(a->used, page, a->pages);
		if (page == a->pages)
			break;
		end = bitmap_next_set(a->used, page, a->pages);
		run_add(a, page, end - page);
		a->free += end - page;
	}
}
