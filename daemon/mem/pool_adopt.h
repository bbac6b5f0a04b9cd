/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_adopt: segments of an earlier process become a tenant's, with what still lies in them.
 * Thread: the control thread, before the tenant allocates. Locks: the pool's, at the end. Blocks: for the kernel's work.
 * Errors: negative errno; -EBADMSG what cannot be.
 *
 *	add every segment -> mark every extent that is claimed -> take those that nobody else claims -> finish
 */
#ifndef KVGATE_DAEMON_MEM_POOL_ADOPT_H
#define KVGATE_DAEMON_MEM_POOL_ADOPT_H

#include <stddef.h>

#include "daemon/mem/pool.h"

struct pool_adoption;

int pool_adoption_new(struct pool_tenant *t, struct pool_adoption **ret);
/* Whatever was not finished is let go; the fds of such segments are closed. */
struct pool_adoption *pool_adoption_free(struct pool_adoption *a);

/* fd is taken on success; bytes 0: the tier can tell. -EEXIST: the id is there. -EBADMSG: no segment of this tier. */
int pool_adoption_add(
	struct pool_adoption *a, uint32_t id, unsigned page_shift, uint64_t bytes, int fd);
/* Of a segment that was added; borrowed. -1: it was not. */
int pool_adoption_fd(const struct pool_adoption *a, uint32_t id);
/* Somebody claims it: segment, page and pages are given, the rest is filled in. -EBADMSG: it lies nowhere. */
int pool_adoption_mark(struct pool_adoption *a, struct extent *e);
/* Of an extent that was marked: where it is. */
void pool_adoption_find(const struct pool_adoption *a, struct extent *e);
/* Its first n bytes, through the fd: a page that is only looked at need not be mapped. */
int pool_adoption_peek(const struct pool_adoption *a, const struct extent *e, void *ret, size_t n);
/* Somebody else claims some of it, too. */
bool pool_adoption_clashes(const struct pool_adoption *a, const struct extent *e);
void pool_adoption_take(struct pool_adoption *a, const struct extent *e);
/*
 * The segments are the pool's; what was not taken is free. It may hold memory still: pool_sweep() gives that back by and
 * by. Ids below `next_id` are not given out again.
 */
void pool_adoption_finish(struct pool_adoption *a, uint32_t next_id);

#endif
