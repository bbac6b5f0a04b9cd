/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool: pages of one tier, given out as extents of segments that belong to one tenant for life.
 * Thread: any; the pack workers allocate, the control thread releases. Locks: one, held for a few microseconds (a new
 * segment: for its system calls). Blocks: on that lock; allocation also for the kernel's work on pages.
 * Errors: -ENOSPC the budget is used up, -ENOMEM, -EFBIG larger than a segment, others from the kernel.
 *
 * The budget counts pages that hold something. Address space is not scarce and memory is: when free
 * extents are too scattered for a request, a new sparse segment is added and as many free but still
 * backed pages are punched out elsewhere, so that resident bytes never exceed the budget. A page that is
 * punched is zeroed by the kernel before anybody sees it again, so nothing passes from tenant to tenant.
 */
#ifndef KVGATE_DAEMON_MEM_POOL_H
#define KVGATE_DAEMON_MEM_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/shm.h"

struct tier_ops; /* daemon/mem/tier.h: how a tier makes, maps, punches and closes a segment */
struct pool;
struct pool_tenant;

/*
 * Who wants to know of segments, from before anything is put into one to after nothing is in it any more. Called with the
 * pool's lock held, on any thread: may not call back, may not block.
 */
struct pool_watch {
	void (*added)(void *owner, uint32_t id, unsigned page_shift,
		int fd); /* fd borrowed, read-write */
	void (*removed)(void *owner, uint32_t id, unsigned page_shift);
};

struct pool_options {
	const struct tier_ops *tier; /* tier_host, or tier_fault in tests */
	uint64_t budget;             /* bytes in use, all tenants */
	uint64_t segment_bytes;      /* power of two */
	int numa_node;               /* -1 */
	bool huge_pages;
	bool prefault;           /* a background thread backs free pages, up to the budget */
	struct pool_watch watch; /* zeros: nobody; tenants without an owner are not watched */
};
int pool_new(const struct pool_options *o, struct pool **ret);
struct pool *pool_free(struct pool *p);
void pool_set_budget(struct pool *p,
	uint64_t bytes); /* may be less than is in use: nothing is taken, allocation fails */

int pool_tenant_new(struct pool *p, struct pool_tenant **ret);
/* Before it has segments: what the watch is told. */
void pool_tenant_own(struct pool_tenant *t, void *owner);
struct pool_tenant *pool_tenant_free(struct pool_tenant *t); /* all its segments are given back */

/* A run of pages in one segment. */
struct extent {
	uint32_t segment; /* id, unique in the pool for ever */
	uint32_t page;
	uint32_t pages;
	uint8_t page_shift;
	uint8_t tier; /* enum kvg_tier */
	void *addr;   /* where the daemon has it mapped, read-write */
};
/* Room for `bytes` in pages of 1 << page_shift. */
int pool_alloc(struct pool_tenant *t, uint64_t bytes, unsigned page_shift, struct extent *ret);
void pool_release(struct pool_tenant *t, const struct extent *e);
static inline uint64_t extent_bytes(const struct extent *e)
{
	return (uint64_t)e->pages << e->page_shift;
}

/*
 * The budget is charged before the worker that packs allocates, so that allocation cannot fail for lack of
 * budget half-way: reserve worst-case bytes, allocate from the reservation, give the rest back.
 */
int pool_reserve(struct pool *p, uint64_t bytes); /* -ENOSPC */
void pool_unreserve(struct pool *p, uint64_t bytes);
/* As pool_alloc, charged to bytes reserved before. */
int pool_alloc_reserved(
	struct pool_tenant *t, uint64_t bytes, unsigned page_shift, struct extent *ret);
/* Undoes that: the bytes are reserved again. */
void pool_release_reserved(struct pool_tenant *t, const struct extent *e);

/*
 * A client that reads where nothing is makes the kernel put a page there, which no budget knows and which outlives the
 * client. This gives such pages back, some of them each time; call it now and then. True: it found as many as it may
 * take at once, and there may be more.
 */
bool pool_sweep(struct pool *p);

struct pool_segment {
	uint32_t id;
	uint64_t bytes;
	uint8_t page_shift, tier;
	bool whole; /* its memory is set aside: no page of it ever goes as long as it is there */
	bool fresh; /* nobody has written to it since the tier made it */
	int fd;     /* borrowed; read-only description, where the tier has such */
	void *addr;
};
/* Of the thread that calls pool_reserve(): the fd stays open until its next reservation, whatever workers do meanwhile. */
int pool_segment_get(struct pool_tenant *t, uint32_t id, struct pool_segment *ret); /* -ENOENT */

/* All of it was written to: it is fresh no longer. */
void pool_segment_filled(struct pool_tenant *t, uint32_t id);

struct pool_stat {
	uint64_t budget, used, reserved, resident, segments;
};
void pool_stat(struct pool *p, struct pool_stat *ret);
void pool_tenant_stat(
	struct pool_tenant *t, struct pool_stat *ret); /* used, resident, segments of the tenant */

#endif
