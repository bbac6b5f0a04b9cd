/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A host segment is a sealed memfd, mapped here read-write and given to clients as a read-only description. Its
 * inode is of mode 0400 and belongs to the daemon's user, so a client of another user can neither re-open it for writing
 * nor change the mode; mmap, mprotect and madvise obey the description.
 *
 * Huge pages: hugetlb where the machine has as many reserved (the mapping takes its reservation at once, so that a
 * fault cannot fail), else transparent ones (proto/map.c), of which a part that is punched is split. If the kernel's shmem_enabled
 * allows it by itself, it may back up to 2 MiB around a page that was asked for; extents lie close together, so this is
 * one such piece a segment, and is not counted.
 */
#include "daemon/mem/tier.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <limits.h>
#include <linux/magic.h>
#include <numaif.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "daemon/mem/memfd.h"
#include "proto/map.h"
#include "proto/shm.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MFD_HUGE_2MB
#define MFD_HUGE_2MB (21u << 26)
#endif
#define NODES_MAX 1024 /* the kernel's own limit */

static void host_unmap(const struct tier_ops *t, struct tier_memory *m)
{
	(void)t;
	if (m->addr)
		munmap(m->addr, m->bytes);
	m->addr = NULL;
}

static void host_close(const struct tier_ops *t, struct tier_memory *m)
{
	host_unmap(t, m);
	if (m->client_fd >= 0)
		close(m->client_fd);
	if (m->fd >= 0)
		close(m->fd);
	m->client_fd = m->fd = -1;
}

static int bind_to(void *addr, uint64_t bytes, int node)
{
	unsigned long mask[NODES_MAX / (sizeof(unsigned long) * CHAR_BIT)] = {0};
	const unsigned bits = sizeof(unsigned long) * CHAR_BIT;

	if (node >= NODES_MAX)
		return -EINVAL;
	mask[(unsigned)node / bits] = 1ul << (unsigned)node % bits;
	return mbind(addr, bytes, MPOL_BIND, mask, NODES_MAX + 1, 0) < 0 ? -errno : 0;
}

static int map_segment(const struct tier_request *q, int fd, struct tier_memory *m)
{
	void *addr;
	int r = map_shared(fd, m->bytes, PROT_READ | PROT_WRITE, &addr);

	if (r < 0)
		return r;
	m->addr = addr;
	if (q->numa_node >= 0) {
		r = bind_to(addr, m->bytes, q->numa_node);
		if (r < 0)
			return r;
	}
	m->huge = q->huge_pages && !m->set_aside;
	if (m->huge)
		madvise(addr, m->bytes, MADV_HUGEPAGE); /* a wish: a kernel without them says no */
	return 0;
}

static int open_one(const struct tier_ops *t, const struct tier_request *q, bool hugetlb,
	struct tier_memory *ret)
{
	struct tier_memory m = {.bytes = q->bytes, .fd = -1, .client_fd = -1, .set_aside = hugetlb};
	int r;

	r = memfd_new(
		"kvgate-segment", q->bytes, 0400, hugetlb ? MFD_HUGETLB | MFD_HUGE_2MB : 0, &m.fd);
	if (r < 0)
		return r;
	r = memfd_read_only(m.fd, &m.client_fd);
	if (r == 0)
		r = map_segment(q, m.fd, &m);
	if (r < 0) {
		host_close(t, &m);
		return r;
	}
	*ret = m;
	return 0;
}

static int host_open(
	const struct tier_ops *t, const struct tier_request *q, struct tier_memory *ret)
{
	if (q->huge_pages && open_one(t, q, true, ret) == 0)
		return 0;
	return open_one(t, q, false, ret);
}

/* A memfd that cannot change its size, open for writing. */
static int check_adopted(int fd, const struct stat *st)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
	const uint64_t bytes = (uint64_t)st->st_size;
	int flags = fcntl(fd, F_GETFL), has = fcntl(fd, F_GET_SEALS);

	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || has < 0 || (has & seals) != seals ||
		!S_ISREG(st->st_mode) || bytes < KVG_PAGE_MIN || (bytes & (bytes - 1)))
		return -EBADMSG;
	return 0;
}

static int host_adopt(
	const struct tier_ops *t, const struct tier_request *q, int fd, struct tier_memory *ret)
{
	struct tier_memory m = {.fd = -1, .client_fd = -1};
	struct statfs fs;
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0 || fstatfs(fd, &fs) < 0)
		return -errno;
	r = check_adopted(fd, &st);
	if (r < 0)
		return r;
	m.bytes = (uint64_t)st.st_size;
	m.set_aside = fs.f_type == HUGETLBFS_MAGIC;
	r = memfd_read_only(fd, &m.client_fd);
	if (r == 0)
		r = map_segment(q, fd, &m);
	if (r < 0) {
		host_close(t, &m);
		return r;
	}
	m.fd = fd;
	*ret = m;
	return 0;
}

static int host_back(
	const struct tier_ops *t, const struct tier_memory *m, uint64_t offset, uint64_t bytes)
{
	int r;

	(void)t;
	if (m->huge)
		map_huge((uint8_t *)m->addr + offset, bytes);
	do
		r = madvise((uint8_t *)m->addr + offset, bytes, MADV_POPULATE_WRITE);
	while (r < 0 && errno == EINTR);
	return r < 0 ? -errno : 0;
}

static int host_punch(
	const struct tier_ops *t, const struct tier_memory *m, uint64_t offset, uint64_t bytes)
{
	(void)t;
	return fallocate(m->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
		       (off_t)bytes) < 0
		? -errno
		: 0;
}

static int host_count(const struct tier_ops *t, const struct tier_memory *m, uint64_t *ret_bytes)
{
	struct stat st;

	(void)t;
	if (fstat(m->fd, &st) < 0)
		return -errno;
	*ret_bytes = (uint64_t)st.st_blocks * 512;
	return 0;
}

const struct tier_ops tier_host = {
	.name = "host",
	.tier = KVG_TIER_HOST,
	.open = host_open,
	.adopt = host_adopt,
	.back = host_back,
	.punch = host_punch,
	.count = host_count,
	.unmap = host_unmap,
	.close = host_close,
};
