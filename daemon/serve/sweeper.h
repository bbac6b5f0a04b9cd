/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sweeper: a thread that gives staging memory back to the kernel, which takes up to 100 ms for each GiB.
 * Thread: the control thread calls; the work is done on the sweeper's own. Locks: one, around the queue.
 * Blocks: sweeper_free() until the queue is empty. Errors: -ENOMEM, -EAGAIN from sweeper_new() only.
 */
#ifndef KVGATE_DAEMON_SERVE_SWEEPER_H
#define KVGATE_DAEMON_SERVE_SWEEPER_H

#include "daemon/base/account.h"
#include "daemon/base/loop.h"
#include "daemon/cache/cache.h"

struct sweeper;

int sweeper_new(struct loop *loop, struct sweeper **ret);
struct sweeper *sweeper_free(struct sweeper *s);

/* A run in staging memory that goes on to be used. */
void sweeper_release(struct sweeper *s, struct staging *from, uint64_t offset, uint64_t bytes);
/*
 * The caller's reference, with `bytes` in use. *charge, which pays for them, is given back at once, unless as much as
 * its limit is waiting to be swept already: then when this is done.
 */
void sweeper_unref(
	struct sweeper *s, struct staging *staging, uint64_t bytes, struct charge *charge);

#endif
