/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staging is a sparse memfd that one session's client writes and the daemon reads. It is sealed against
 * resizing, so that a client cannot make the daemon fault by cutting it short; a hole the client punches reads as
 * zeros. The session and every commit in flight hold a reference: when a client dies, what a worker is just reading
 * stays mapped until it is done.
 *
 * What is released is punched at once: staging counts against a quota of memory, not of address space. So there is twice
 * as much of that as the quota: stages of some size begin at huge pages (proto/map.h), and what is behind their end is left.
 *
 * A client can write all of the memfd, and so have memory that nobody paid for. It shows, as with the holes of segments: the
 * kernel counts the memory behind the file, and there should be no more of it than is reserved. (Less is common, so
 * it may stand anywhere.) What is not reserved is then punched. Where the kernel backs shared memory by huge pages unasked,
 * it gives more than was written: what is reserved then counts in such pages.
 */
#include "daemon/cache/staging.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/cache/cache.h"
#include "daemon/mem/arena.h"
#include "daemon/mem/bitmap.h"
#include "daemon/mem/memfd.h"
#include "proto/map.h"

#define UNIT       4096u
#define PUNCH_RUNS 256 /* a system call each */

struct staging {
	atomic_uint refs;
	int fd;
	uint64_t bytes;
	void *map;
	bool huge; /* the kernel may round up what is written */
	/* the control thread's */
	struct arena arena;
	uint64_t reserved; /* bytes, without what is left behind the ends */
	uint32_t swept;    /* staging_sweep() goes on here */
};

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* What a stage takes of the arena. */
static uint64_t stage_units(uint64_t bytes)
{
	return round_up(bytes, bytes < MAP_HUGE_BYTES ? UNIT : MAP_HUGE_BYTES) / UNIT;
}

int staging_new(uint64_t bytes, struct staging **ret)
{
	struct staging *s;
	void *map;
	int r;

	if (bytes == 0 || bytes > UINT64_MAX / 2 - UNIT || stage_units(2 * bytes) >= ARENA_NONE)
		return -EINVAL;
	bytes = round_up(bytes < MAP_HUGE_BYTES ? bytes : 2 * bytes, UNIT);
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	atomic_init(&s->refs, 1);
	s->fd = -1;
	s->bytes = bytes;
	s->huge = memfd_backed_huge(false);
	r = arena_init(&s->arena, (uint32_t)(bytes / UNIT));
	if (r == 0)
		r = memfd_new("kvgate-staging", bytes, 0600, 0, &s->fd);
	if (r < 0)
		goto fail;
	r = map_shared(s->fd, bytes, PROT_READ, &map);
	if (r < 0)
		goto fail;
	s->map = map;
	*ret = s;
	return 0;
fail:
	staging_unref(s);
	return r;
}

struct staging *staging_ref(struct staging *s)
{
	atomic_fetch_add_explicit(&s->refs, 1, memory_order_relaxed);
	return s;
}

struct staging *staging_unref(struct staging *s)
{
	if (!s || atomic_fetch_sub_explicit(&s->refs, 1, memory_order_acq_rel) > 1)
		return NULL;
	if (s->map)
		munmap(s->map, s->bytes);
	if (s->fd >= 0)
		close(s->fd);
	arena_fini(&s->arena);
	free(s);
	return NULL;
}

int staging_fd(const struct staging *s)
{
	return s->fd;
}

uint64_t staging_bytes(const struct staging *s)
{
	return s->bytes;
}

const uint8_t *staging_map(const struct staging *s)
{
	return s->map;
}

int staging_alloc(struct staging *s, uint64_t bytes, uint64_t *ret_offset)
{
	uint32_t at;
	int r;

	if (bytes == 0 || bytes > s->bytes || stage_units(bytes) > s->arena.pages)
		return -ENOSPC;
	r = arena_alloc(&s->arena, (uint32_t)stage_units(bytes), &at);
	if (r < 0)
		return r;
	s->reserved += round_up(bytes, UNIT);
	*ret_offset = (uint64_t)at * UNIT;
	return 0;
}

void staging_punch(struct staging *s, uint64_t offset, uint64_t bytes)
{
	assert(offset % UNIT == 0);
	/* A page that cannot be punched is only not given back yet: the next release of its run tries again. */
	fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		(off_t)round_up(bytes, UNIT));
}

void staging_free_run(struct staging *s, uint64_t offset, uint64_t bytes)
{
	arena_free(&s->arena, (uint32_t)(offset / UNIT), (uint32_t)stage_units(bytes));
	s->reserved -= round_up(bytes, UNIT);
}

void staging_release(struct staging *s, uint64_t offset, uint64_t bytes)
{
	staging_punch(s, offset, bytes);
	staging_free_run(s, offset, bytes);
}

/* Bytes that may be there. */
static uint64_t expected(const struct staging *s)
{
	const uint32_t all = s->arena.pages, step = MAP_HUGE_BYTES / UNIT;
	uint64_t bytes = 0;

	if (!s->huge)
		return s->reserved;
	for (uint32_t at = 0; at < all; at += step) {
		const uint32_t end = all - at > step ? at + step : all;

		bytes += bitmap_next_set(s->arena.used, at, end) < end ? MAP_HUGE_BYTES : 0;
	}
	return bytes;
}

uint64_t staging_excess(const struct staging *s)
{
	const uint64_t may = expected(s);
	struct stat st;

	if (fstat(s->fd, &st) < 0 || (uint64_t)st.st_blocks * 512 <= may)
		return 0;
	return (uint64_t)st.st_blocks * 512 - may;
}

void staging_sweep(struct staging *s)
{
	const uint32_t units = s->arena.pages;
	uint32_t page = s->swept;

	for (unsigned n = 0; n < PUNCH_RUNS && page < units; n++) {
		uint32_t free = bitmap_next_clear(s->arena.used, page, units);

		page = bitmap_next_set(s->arena.used, free, units);
		if (page > free)
			staging_punch(s, (uint64_t)free * UNIT, (uint64_t)(page - free) * UNIT);
	}
	s->swept = page == units ? 0 : page;
}
