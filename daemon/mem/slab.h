/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slab: many things of one size that live long and go one by one, in huge pages where the kernel has them.
 * Thread: one owner. Locks: none. Blocks: never. Errors: NULL, no memory.
 */
#ifndef KVGATE_DAEMON_MEM_SLAB_H
#define KVGATE_DAEMON_MEM_SLAB_H

#include <stddef.h>

struct slab_part;

struct slab {
	size_t size;            /* of each: the caller's to set, 16 bytes to 64 KiB */
	struct slab_part *room; /* parts where one more fits */
	size_t parts;
};

void *slab_alloc(struct slab *s);        /* zeros */
void slab_free(struct slab *s, void *p); /* or NULL */
void slab_fini(struct slab *s);          /* everything was freed */

#endif
