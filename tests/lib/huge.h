/* SPDX-License-Identifier: Apache-2.0 */
/* huge: what the kernel says of huge pages behind shared memory. Of one test program: everything here is static. */
#ifndef KVGATE_TESTS_LIB_HUGE_H
#define KVGATE_TESTS_LIB_HUGE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#define HUGE_BYTES (2ull << 20)

/* Bytes that this process maps by huge pages in the mapping that begins at addr. */
static inline uint64_t huge_mapped(const void *addr)
{
	FILE *f = fopen("/proc/self/smaps", "re");
	uint64_t kib = 0, found = 0;
	uintptr_t from, to;
	bool here = false;
	char line[512];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "%lx-%lx ", &from, &to) == 2)
			here = from == (uintptr_t)addr;
		else if (here && sscanf(line, "ShmemPmdMapped: %lu kB", &kib) == 1)
			found = kib << 10;
	if (f)
		fclose(f);
	return found;
}

/* This kernel gives huge pages for shared memory to those who ask. */
static inline bool huge_possible(void)
{
	const int fd = memfd_create("probe", MFD_CLOEXEC);
	uint8_t *p = mmap(NULL, 2 * HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *at;
	bool yes;

	if (fd < 0 || p == MAP_FAILED || ftruncate(fd, HUGE_BYTES) < 0)
		return false;
	at = p + (HUGE_BYTES - (uintptr_t)p % HUGE_BYTES) % HUGE_BYTES;
	yes = mmap(at, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == at;
	if (yes) {
		*at = 1;
		yes = madvise(at, HUGE_BYTES, 25 /* MADV_COLLAPSE */) == 0;
	}
	munmap(p, 2 * HUGE_BYTES);
	close(fd);
	return yes;
}

#endif
