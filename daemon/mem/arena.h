/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arena: which pages of a row of pages are free - best fit, free neighbours merge, O(log runs).
 * Thread: one owner at a time. Locks: none. Blocks: never. Errors: -ENOMEM from arena_init() alone,
 * -ENOSPC no free run is that long. Knows numbers of pages and no memory.
 */
#ifndef KVGATE_DAEMON_MEM_ARENA_H
#define KVGATE_DAEMON_MEM_ARENA_H

#include <stdint.h>

#define ARENA_NONE UINT32_MAX

/* Of every page. Only those of a free run's first page (all) and last page (`run`) mean something. */
struct arena_node {
	uint32_t left, right; /* in the tree of free runs */
	uint32_t run;         /* pages in this free run; 0 inside one and where pages are used */
};

struct arena {
	struct arena_node *node;
	uint64_t *used; /* bit per page; others may read it (bitmap.h) */
	uint32_t pages, free;
	uint32_t root;
};

int arena_init(struct arena *a, uint32_t pages);
void arena_fini(struct arena *a);

/* The lowest of the shortest free runs that are long enough; its front is taken. */
int arena_alloc(struct arena *a, uint32_t pages, uint32_t *ret_page);
/* Any part of what was allocated; every page must be used (asserted). */
void arena_free(struct arena *a, uint32_t page, uint32_t pages);
uint32_t arena_largest(const struct arena *a);
/* Nothing was allocated yet, and bits of `used` were set by hand: these pages are allocated from here on. */
void arena_adopt(struct arena *a);

#endif
