/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Staging is a sparse memfd that one session's client writes and the daemon reads. It is sealed against
 * resizing, so that a client cannot make the daemon fault by cutting it short; a hole the client punches reads as
 * zeros. The session and every commit in flight hold a reference: when a client dies, what a worker is just reading
 * stays mapped until it is done.
 *
 * What is released is punched at once: staging counts against a quota of memory, not of address space.
 */
#include "daemon/cache/staging.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/cache/cache.h"
#include "daemon/mem/arena.h"
#include "daemon/mem/memfd.h"

#define UNIT 4096u

struct staging {
	atomic_uint refs;
	int fd;
	uint64_t bytes;
	void *map;
	struct arena arena; /* the control thread's */
};

int staging_new(uint64_t bytes, struct staging **ret)
{
	struct staging *s;
	void *map;
	int r;

	bytes = (bytes + UNIT - 1) / UNIT * UNIT;
	if (bytes == 0 || bytes / UNIT >= ARENA_NONE)
		return -EINVAL;
	s = calloc(1, sizeof(*s));
	if (!s)
		return -ENOMEM;
	atomic_init(&s->refs, 1);
	s->fd = -1;
	s->bytes = bytes;
	r = arena_init(&s->arena, (uint32_t)(bytes / UNIT));
	if (r == 0)
		r = memfd_new("kvgate-staging", bytes, 0600, 0, &s->fd);
	if (r < 0)
		goto fail;
	map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, s->fd, 0);
	if (map == MAP_FAILED) {
		r = -errno;
		goto fail;
	}
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
	uint64_t units = (bytes + UNIT - 1) / UNIT;
	uint32_t at;
	int r;

	if (units == 0 || units > s->arena.pages)
		return -ENOSPC;
	r = arena_alloc(&s->arena, (uint32_t)units, &at);
	if (r == 0)
		*ret_offset = (uint64_t)at * UNIT;
	return r;
}

void staging_punch(struct staging *s, uint64_t offset, uint64_t bytes)
{
	uint64_t units = (bytes + UNIT - 1) / UNIT;

	assert(offset % UNIT == 0);
	/* A page that cannot be punched is only not given back yet: the next release of its run tries again. */
	fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		(off_t)(units * UNIT));
}

void staging_free_run(struct staging *s, uint64_t offset, uint64_t bytes)
{
	arena_free(&s->arena, (uint32_t)(offset / UNIT), (uint32_t)((bytes + UNIT - 1) / UNIT));
}

void staging_release(struct staging *s, uint64_t offset, uint64_t bytes)
{
	staging_punch(s, offset, bytes);
	staging_free_run(s, offset, bytes);
}
