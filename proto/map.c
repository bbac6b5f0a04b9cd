/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Shared memory in pages of 4 KiB costs a fault for each when it is first written, and an entry to be taken away for each
 * when a process that mapped it ends: about 40 ms a GiB during which a dead client's socket still looks alive. The
 * kernel's setting for huge pages in shared memory (shmem_enabled) is "never" nearly everywhere, but a range whose owner
 * asks for it in so many words (MADV_COLLAPSE, Linux 6.1) gets them all the same, of memory that is there or not yet.
 * It takes a mapping aligned as the file's offsets are, and one page of each to begin with.
 */
#include "proto/map.h"

#include <errno.h>
#include <stddef.h>
#include <sys/mman.h>
#include <time.h>

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define PAGE_BYTES 4096u
#define TRIES      5 /* somebody who just touches a page there is in the way for a moment */
#define PAUSE_NS   200000

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) & ~(to - 1);
}

/* Address space with an aligned part of `bytes` in it, of which the rest is given back. */
static void *reserve_aligned(uint64_t bytes)
{
	const uint64_t room = round_up(bytes, PAGE_BYTES) + MAP_HUGE_BYTES;
	uint8_t *p =
		mmap(NULL, room, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	uint64_t before;

	if (p == MAP_FAILED)
		return NULL;
	before = round_up((uintptr_t)p, MAP_HUGE_BYTES) - (uintptr_t)p;
	if (before)
		munmap(p, before);
	munmap(p + room - (MAP_HUGE_BYTES - before), MAP_HUGE_BYTES - before);
	return p + before;
}

int map_shared(int fd, uint64_t bytes, int prot, void **ret)
{
	void *at = bytes >= MAP_HUGE_BYTES ? reserve_aligned(bytes) : NULL;
	void *map = mmap(at, bytes, prot, MAP_SHARED | (at ? MAP_FIXED : 0), fd, 0);

	if (map == MAP_FAILED) {
		const int r = -errno;

		if (at)
			munmap(at, bytes);
		return r;
	}
	*ret = map;
	return 0;
}

int map_private(uint64_t bytes, void **ret)
{
	void *at = reserve_aligned(bytes);

	if (!at)
		return -ENOMEM;
	if (mprotect(at, bytes, PROT_READ | PROT_WRITE) < 0) {
		munmap(at, bytes);
		return -ENOMEM;
	}
	madvise(at, bytes, MADV_HUGEPAGE); /* a kernel without them says no */
	*ret = at;
	return 0;
}

void map_huge(void *addr, uint64_t bytes)
{
	const uint64_t skip = round_up((uintptr_t)addr, MAP_HUGE_BYTES) - (uintptr_t)addr;
	uint8_t *from = (uint8_t *)addr + skip;
	const struct timespec pause = {.tv_nsec = PAUSE_NS};
	uint64_t n = bytes > skip ? (bytes - skip) & ~(MAP_HUGE_BYTES - 1) : 0;

	for (uint64_t at = 0; at < n; at += MAP_HUGE_BYTES)
		if (madvise(from + at, PAGE_BYTES, MADV_POPULATE_WRITE) < 0)
			n = at;
	for (unsigned i = 1; n && madvise(from, n, MADV_COLLAPSE) < 0; i++) {
		if (errno != EAGAIN || i == TRIES)
			break;
		nanosleep(&pause, NULL);
	}
}
