/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A part is a huge page: a header, and pieces of one size. Where a piece's part begins is seen from its address.
 *
 *	part	| header | piece | piece | free -> | piece | free -> | never used ...
 *
 * Parts where one more fits are in a list, the one that was freed into last at its front. A part in which nothing is left goes back to the
 * kernel, unless no other one has room: then it would be asked for again at once.
 *
 * What it is for: blocks by the ten thousand, which are found by hash. In small pages each is a fault when a start makes it, and a miss of
 * the TLB when it is looked at.
 */
#include "daemon/mem/slab.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/mem/pieces.h"
#include "proto/map.h"

#define LINE      64u /* a piece begins where one does */
#define SIZE_MIN  16u
#define SIZE_MAX_ (64u << 10)

struct piece {
	struct piece *next;
};

struct slab_part {
	struct slab *slab;
	struct slab_part *next, **link; /* among those with room; link NULL: it is full */
	struct piece *free;
	uint32_t used, fresh; /* pieces; the first that was never used */
};

static size_t step_of(const struct slab *s)
{
	return (s->size + LINE - 1) & ~(size_t)(LINE - 1);
}

static size_t first_at(void)
{
	return (sizeof(struct slab_part) + LINE - 1) & ~(size_t)(LINE - 1);
}

static uint32_t pieces_of(const struct slab *s)
{
	return (uint32_t)((MAP_HUGE_BYTES - first_at()) / step_of(s));
}

static void list(struct slab *s, struct slab_part *part)
{
	part->next = s->room;
	part->link = &s->room;
	if (part->next)
		part->next->link = &part->next;
	s->room = part;
}

static void unlist(struct slab_part *part)
{
	*part->link = part->next;
	if (part->next)
		part->next->link = part->link;
	part->link = NULL;
}

static struct slab_part *part_add(struct slab *s)
{
	struct slab_part *part;
	void *map;

	if (map_private(MAP_HUGE_BYTES, &map) < 0)
		return NULL;
	part = map;
	part->slab = s;
	list(s, part);
	s->parts++;
	return part;
}

static void part_drop(struct slab *s, struct slab_part *part)
{
	unlist(part);
	s->parts--;
	munmap(part, MAP_HUGE_BYTES);
}

void *slab_alloc(struct slab *s)
{
	struct slab_part *part;
	void *p;

	assert(s->size >= SIZE_MIN && s->size <= SIZE_MAX_);
	if (!PIECES_CUT)
		return calloc(1, s->size);
	part = s->room ? s->room : part_add(s);
	if (!part)
		return NULL;
	if (part->free) {
		p = part->free;
		part->free = part->free->next;
		memset(p, 0, s->size);
	} else {
		p = (uint8_t *)part + first_at() + part->fresh++ * step_of(s);
	}
	if (++part->used == pieces_of(s))
		unlist(part);
	return p;
}

void slab_free(struct slab *s, void *p)
{
	struct slab_part *part =
		(struct slab_part *)((uintptr_t)p & ~(uintptr_t)(MAP_HUGE_BYTES - 1));
	struct piece *piece = p;

	if (!PIECES_CUT || !p) {
		free(p);
		return;
	}
	assert(part->slab == s && part->used);
	piece->next = part->free;
	part->free = piece;
	if (!part->link)
		list(s, part);
	if (!--part->used && (s->room != part || part->next))
		part_drop(s, part);
}

void slab_fini(struct slab *s)
{
	while (s->room) {
		assert(!s->room->used);
		part_drop(s, s->room);
	}
	assert(!s->parts);
}
