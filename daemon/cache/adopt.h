/* SPDX-License-Identifier: Apache-2.0 */
/*
 * adopt: what an earlier daemon left becomes this one's; private to daemon/cache.
 * Thread: the control thread, before anybody is served. Locks: none. Blocks: for the kernel's work.
 * Errors: negative errno of the daemon's own trouble; what does not fit is dropped, counted and logged.
 */
#ifndef KVGATE_DAEMON_CACHE_ADOPT_H
#define KVGATE_DAEMON_CACHE_ADOPT_H

#include "daemon/cache/tenant.h"
#include "daemon/mem/pool_adopt.h"

/* The blocks that t->index names in these segments; layouts are there. Afterwards the adoption is to be finished. */
int adopt_blocks(
	struct cache_tenant *t, struct pool_adoption *a, const struct cache_pinned *pinned);

#endif
