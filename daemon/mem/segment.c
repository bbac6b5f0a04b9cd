/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two bits say what a page is:
 *
 *	used backed
 *	  1     1	holds an extent
 *	  0     1	idle: free, and its memory still there - quick to use again, or to give back
 *	  0     0	cold: free, and holds nothing
 *
 * The bit `backed` is set before the memory is touched and cleared after it was punched, so what is counted is
 * never less than what the kernel has given.
 */
#include "daemon/mem/segment.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/mem/bitmap.h"
#include "proto/map.h"

/* fd -1: of new memory. */
static int make(const struct tier_ops *tier, const struct tier_request *q, unsigned page_shift,
	uint32_t id, int fd, struct segment **ret)
{
	struct segment *s = calloc(1, sizeof(*s));
	uint64_t pages;
	int r;

	if (!s)
		return -ENOMEM;
	s->tier = tier;
	s->id = id;
	s->page_shift = (uint8_t)page_shift;
	s->memory.fd = s->memory.client_fd = -1;
	r = fd < 0 ? tier->open(tier, q, &s->memory) : tier->adopt(tier, q, fd, &s->memory);
	pages = s->memory.bytes >> page_shift;
	if (r == 0 && (pages == 0 || pages >= ARENA_NONE))
		r = -EBADMSG;
	if (r == 0)
		r = arena_init(&s->arena, (uint32_t)pages);
	if (r == 0) {
		s->backed = calloc(bitmap_words((uint32_t)pages), sizeof(*s->backed));
		r = s->backed ? 0 : -ENOMEM;
	}
	if (r < 0) {
		if (fd >= 0 && s->memory.fd == fd)
			s->memory.fd = -1; /* the caller's still */
		segment_free(s);
		return r;
	}
	*ret = s;
	return 0;
}

int segment_new(const struct tier_ops *tier, const struct tier_request *q, unsigned page_shift,
	uint32_t id, struct segment **ret)
{
	return make(tier, q, page_shift, id, -1, ret);
}

int segment_adopt(const struct tier_ops *tier, const struct tier_request *q, unsigned page_shift,
	uint32_t id, int fd, struct segment **ret)
{
	return make(tier, q, page_shift, id, fd, ret);
}

struct segment *segment_free(struct segment *s)
{
	if (!s)
		return NULL;
	s->tier->close(s->tier, &s->memory);
	arena_fini(&s->arena);
	free(s->backed);
	free(s);
	return NULL;
}

void segment_retire(struct segment *s)
{
	/* a client may have it mapped still; nothing more can be done if this fails */
	s->tier->punch(s->tier, &s->memory, 0, s->memory.bytes);
	s->tier->unmap(s->tier, &s->memory);
	s->n_backed = 0;
}

void segment_cold(
	const struct segment *s, uint32_t page, uint32_t pages, struct segment_part *ret_part)
{
	uint32_t end = page + pages, first = bitmap_next_clear(s->backed, page, end);

	while (end > first && bitmap_test(s->backed, end - 1))
		end--;
	*ret_part = (struct segment_part){.page = first, .pages = end - first};
}

/* All of the huge page around `page`; false when more than `limit` pages of it are cold. */
static bool huge_around(
	const struct segment *s, uint32_t page, uint32_t limit, struct segment_part *ret_part)
{
	const uint32_t pages = (uint32_t)(MAP_HUGE_BYTES >> s->page_shift);
	const uint32_t first = page - page % (pages ? pages : 1);

	if (!s->memory.huge || pages < 2 || s->memory.bytes % MAP_HUGE_BYTES ||
		pages - bitmap_count(s->backed, first, pages) > limit)
		return false;
	*ret_part = (struct segment_part){.page = first, .pages = pages};
	return true;
}

void segment_next_cold(const struct segment *s, uint32_t limit, struct segment_part *ret_part)
{
	uint32_t page = bitmap_next_clear(s->backed, 0, s->arena.pages), end;

	*ret_part = (struct segment_part){0};
	if (page == s->arena.pages || huge_around(s, page, limit, ret_part))
		return;
	end = s->arena.pages - page > limit ? page + limit : s->arena.pages;
	ret_part->page = page;
	ret_part->pages = bitmap_next_set(s->backed, page, end) - page;
}

void segment_mark_backed(struct segment *s, const struct segment_part *part)
{
	s->n_backed += part->pages - bitmap_count(s->backed, part->page, part->pages);
	bitmap_set(s->backed, part->page, part->pages);
}

int segment_back(struct segment *s, const struct segment_part *part)
{
	return s->tier->back(s->tier, &s->memory, (uint64_t)part->page << s->page_shift,
		(uint64_t)part->pages << s->page_shift);
}

static bool is_idle(const struct segment *s, uint32_t page)
{
	return bitmap_test(s->backed, page) && !bitmap_test(s->arena.used, page);
}

/* `page` is not idle; when nothing in its word up to there is, the word's first page. */
static uint32_t skip_busy(const struct segment *s, uint32_t page)
{
	size_t w = page / 64;

	return s->backed[w] & ~s->arena.used[w] ? page : (uint32_t)(w * 64);
}

/* Backwards, since extents are cut from the front of a run. */
void segment_find_idle(const struct segment *s, const struct segment_part *within, uint32_t limit,
	struct segment_parts *ret)
{
	uint32_t page = within->page + within->pages;

	ret->n = ret->pages = 0;
	while (page > within->page && ret->pages < limit && ret->n < SEGMENT_PARTS) {
		uint32_t end, n = 0;

		while (page > within->page && !is_idle(s, page - 1))
			page = skip_busy(s, page - 1);
		for (end = page;
			page > within->page && ret->pages + n < limit && is_idle(s, page - 1);
			page--)
			n++;
		if (n == 0)
			return;
		ret->part[ret->n++] = (struct segment_part){.page = end - n, .pages = n};
		ret->pages += n;
	}
}

uint32_t segment_find_cold(struct segment *s, uint32_t limit, struct segment_parts *ret)
{
	const uint32_t begin = s->swept, left = s->arena.pages - begin;
	const uint32_t end = left > limit ? begin + limit : s->arena.pages;
	uint32_t page = begin;

	ret->n = ret->pages = 0;
	while (ret->n < SEGMENT_PARTS && (page = bitmap_next_clear(s->backed, page, end)) < end) {
		uint32_t next = bitmap_next_set(s->backed, page, end);

		ret->part[ret->n++] = (struct segment_part){.page = page, .pages = next - page};
		ret->pages += next - page;
		page = next;
	}
	s->swept = page == s->arena.pages ? 0 : page;
	return page - begin;
}

int segment_punch(const struct segment *s, struct segment_parts *parts)
{
	for (uint32_t i = 0; i < parts->n; i++) {
		const struct segment_part *part = &parts->part[i];
		int r = s->tier->punch(s->tier, &s->memory, (uint64_t)part->page << s->page_shift,
			(uint64_t)part->pages << s->page_shift);

		if (r < 0) {
			parts->n = i;
			return r;
		}
	}
	return 0;
}

void segment_mark_cold(struct segment *s, const struct segment_parts *parts)
{
	for (uint32_t i = 0; i < parts->n; i++) {
		const struct segment_part *part = &parts->part[i];

		s->n_backed -= bitmap_count(s->backed, part->page, part->pages);
		bitmap_clear(s->backed, part->page, part->pages);
	}
}

int segment_punch_idle(struct segment *s, const struct segment_part *within, uint32_t limit)
{
	struct segment_parts parts;
	int r = 0;

	for (segment_find_idle(s, within, limit, &parts); parts.n && r == 0;
		segment_find_idle(s, within, limit, &parts)) {
		r = segment_punch(s, &parts);
		segment_mark_cold(s, &parts);
		limit -= parts.pages;
	}
	return r;
}

void segment_unback(struct segment *s, const struct segment_part *part)
{
	struct segment_parts parts = {.n = 1, .part = {*part}};

	segment_punch(s, &parts);
	segment_mark_cold(s, &parts);
}

uint64_t segment_excess(const struct segment *s)
{
	const uint64_t backed = (uint64_t)s->n_backed << s->page_shift;
	uint64_t bytes;

	if (!s->tier->count || s->tier->count(s->tier, &s->memory, &bytes) < 0)
		return 0;
	return bytes > backed ? bytes - backed : 0;
}
