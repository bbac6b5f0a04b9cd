/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/pool_fixture.h"

#include <assert.h>
#include <sys/mman.h>
#include <sys/stat.h>

struct pool_tenant *tenant(struct pool *p)
{
	struct pool_tenant *t;

	assert(pool_tenant_new(p, &t) == 0);
	return t;
}

struct pool_stat stat_of(struct pool *p)
{
	struct pool_stat st;

	pool_stat(p, &st);
	return st;
}

uint64_t kernel_of(int fd)
{
	struct stat st;

	assert(fstat(fd, &st) == 0);
	return (uint64_t)st.st_blocks * 512;
}

uint64_t kernel_bytes(struct pool_tenant *t)
{
	uint64_t sum = 0;

	for (uint32_t id = 1; id < 200; id++) {
		struct pool_segment s;

		if (pool_segment_get(t, id, &s) < 0)
			continue;
		sum += kernel_of(s.fd);
	}
	return sum;
}

void read_everywhere(const struct pool_segment *s)
{
	const volatile uint8_t *p = mmap(NULL, s->bytes, PROT_READ, MAP_SHARED, s->fd, 0);

	for (uint64_t at = 0; p != MAP_FAILED && at < s->bytes; at += 4096)
		(void)p[at];
	if (p != MAP_FAILED)
		munmap((void *)(uintptr_t)p, s->bytes);
}
