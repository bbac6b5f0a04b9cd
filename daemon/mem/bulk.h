/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bulk: memory for many things that go together, in huge pages where the kernel has them.
 * Thread: one owner at a time. Locks: none. Blocks: never. Errors: NULL, no memory.
 */
#ifndef KVGATE_DAEMON_MEM_BULK_H
#define KVGATE_DAEMON_MEM_BULK_H

#include <stddef.h>
#include <stdint.h>

struct bulk_part;

struct bulk { /* zeros: empty */
	struct bulk_part *parts;
	uint8_t *at;
	size_t left;
};

/* Not zeroed. align: a power of two, at most a page. */
void *bulk_alloc(struct bulk *b, size_t align, size_t bytes);
void bulk_free(struct bulk *b); /* all of it; it is empty then */

#endif
