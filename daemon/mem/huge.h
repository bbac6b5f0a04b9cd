/* SPDX-License-Identifier: Apache-2.0 */
/*
 * huge: memory of the daemon's own in whole huge pages, for slab and bulk.
 * Thread: any. Locks: none. Blocks: never. Errors: NULL, no memory.
 */
#ifndef KVGATE_DAEMON_MEM_HUGE_H
#define KVGATE_DAEMON_MEM_HUGE_H

#include <stddef.h>
#include <sys/mman.h>

#define HUGE_BYTES ((size_t)2 << 20)

/* A sanitizer has to see each piece of such memory by itself: they come from the heap then. */
#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if defined(__SANITIZE_ADDRESS__) || __has_feature(address_sanitizer)
#define HUGE_NEVER 1
#else
#define HUGE_NEVER 0
#endif

/* Zeros, from where a huge page begins; a kernel without huge pages gives small ones. bytes: a multiple. munmap() it. */
static inline void *huge_map(size_t bytes)
{
	char *p = mmap(NULL, bytes + HUGE_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	const size_t skip = -(size_t)p & (HUGE_BYTES - 1);

	if (p == MAP_FAILED)
		return NULL;
	if (skip)
		munmap(p, skip);
	munmap(p + skip + bytes, HUGE_BYTES - skip);
	madvise(p + skip, bytes, MADV_HUGEPAGE);
	return p + skip;
}

#endif
