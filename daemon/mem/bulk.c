/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a start reads is tens of MiB that are gone a moment later. In small pages the kernel's work of handing them out would be a third of
 * the start. So parts are whole huge pages, and pieces are cut off the latest one, one after the other; what is left of it is
 * lost when a piece does not fit.
 *
 * Under a sanitizer each piece is a part of its own, which sees whoever writes behind its end.
 */
#include "daemon/mem/bulk.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/mem/pieces.h"
#include "proto/map.h"

#define PAGE ((size_t)4096)

struct bulk_part {
	struct bulk_part *next;
	void *memory;
	size_t mapped; /* bytes; 0: from the heap */
};

static void give_back(void *memory, size_t mapped)
{
	if (memory && mapped)
		munmap(memory, mapped);
	else
		free(memory);
}

static void *from_heap(size_t align, size_t bytes)
{
	void *p;

	return posix_memalign(&p, align < sizeof(void *) ? sizeof(void *) : align, bytes) ? NULL
											  : p;
}

/* memory: taken over, unmapped if it has `mapped` bytes. NULL: no memory. */
static uint8_t *part_add(struct bulk *b, void *memory, size_t mapped)
{
	struct bulk_part *part = memory ? malloc(sizeof(*part)) : NULL;

	if (part) {
		*part = (struct bulk_part){.next = b->parts, .memory = memory, .mapped = mapped};
		b->parts = part;
		return memory;
	}
	give_back(memory, mapped);
	return NULL;
}

void *bulk_alloc(struct bulk *b, size_t align, size_t bytes)
{
	size_t skip;
	uint8_t *p;

	assert(align && align <= PAGE && !(align & (align - 1)));
	if (bytes > SIZE_MAX / 2)
		return NULL;
	if (!PIECES_CUT)
		return part_add(b, from_heap(align, bytes), 0);
	skip = -(uintptr_t)b->at & (align - 1);
	if (!b->parts || skip + bytes > b->left) {
		const size_t size = ((bytes ? bytes : 1) + MAP_HUGE_BYTES - 1) &
			~(MAP_HUGE_BYTES - 1);
		void *map;

		p = map_private(size, &map) == 0 ? part_add(b, map, size) : NULL;
		if (!p)
			return NULL;
		b->at = p;
		b->left = size;
		skip = 0;
	}
	p = b->at + skip;
	b->at = p + bytes;
	b->left -= skip + bytes;
	return p;
}

void bulk_free(struct bulk *b)
{
	while (b->parts) {
		struct bulk_part *part = b->parts;

		b->parts = part->next;
		give_back(part->memory, part->mapped);
		free(part);
	}
	*b = (struct bulk){0};
}
