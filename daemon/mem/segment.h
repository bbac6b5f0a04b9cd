/* SPDX-License-Identifier: Apache-2.0 */
/*
 * segment: a tier's memory divided into pages - which are used, and which hold memory (are backed).
 * Thread: the pool's lock guards all of it, but for segment_back() and _punch(). Locks: none of its own.
 * Blocks: for the tier's work. Errors: negative errno, nothing changed.
 */
#ifndef KVGATE_DAEMON_MEM_SEGMENT_H
#define KVGATE_DAEMON_MEM_SEGMENT_H

#include <stdbool.h>

#include "daemon/mem/arena.h"
#include "daemon/mem/tier.h"

struct pool_tenant;

/* A used page is backed from the moment it is taken. Free pages may be either. */
struct segment {
	const struct tier_ops *tier;
	struct tier_memory memory;
	struct arena arena;
	uint64_t *backed; /* bit per page */
	uint32_t n_backed;
	uint32_t id;
	uint32_t swept; /* segment_sweep() goes on here */
	uint8_t page_shift;

	/* the pool's own */
	struct pool_tenant *owner;
	bool punching;                          /* without the lock, right now */
	struct segment *next;                   /* in the list of those given back */
	struct segment *idle_next, **idle_link; /* in the list of its rank; link NULL: in none */
	uint8_t rank;
};

int segment_new(const struct tier_ops *tier, const struct tier_request *q, unsigned page_shift,
	uint32_t id, struct segment **ret);
/* The same over memory that an earlier process made; fd is taken on success. Every page is free and cold. */
int segment_adopt(const struct tier_ops *tier, const struct tier_request *q, unsigned page_shift,
	uint32_t id, int fd, struct segment **ret);
/* What clients have mapped stays theirs. */
struct segment *segment_free(struct segment *s);
/* Gives all memory back, mapped by clients or not; the fds stay open until segment_free(). */
void segment_retire(struct segment *s);

/* A run of pages. */
struct segment_part {
	uint32_t page, pages;
};
static inline struct segment_part segment_all(const struct segment *s)
{
	return (struct segment_part){.pages = s->arena.pages};
}
static inline uint32_t segment_used(const struct segment *s)
{
	return s->arena.pages - s->arena.free;
}
/* Free pages that hold memory. */
static inline uint32_t segment_idle(const struct segment *s)
{
	return s->n_backed - segment_used(s);
}

/* The least part of the run that covers its pages that are not backed; pages 0 when there are none. */
void segment_cold(
	const struct segment *s, uint32_t page, uint32_t pages, struct segment_part *ret_part);
/*
 * For the one that backs ahead of need: the next free pages that are not backed, at most `limit`, or where the memory is
 * best backed by huge pages, all pages of one in which no more than that are missing.
 */
void segment_next_cold(const struct segment *s, uint32_t limit, struct segment_part *ret_part);
void segment_mark_backed(struct segment *s, const struct segment_part *part);
/* The system call for it. Without the pool's lock: the caller sees to it that nobody punches there meanwhile. */
int segment_back(struct segment *s, const struct segment_part *part);

/* A few runs, to be punched together. */
#define SEGMENT_PARTS 32
struct segment_parts {
	uint32_t n, pages;
	struct segment_part part[SEGMENT_PARTS];
};
/* Idle pages in this part, at most `limit`. */
void segment_find_idle(const struct segment *s, const struct segment_part *within, uint32_t limit,
	struct segment_parts *ret);
/* What is cold, and yet may hold memory, in the next `limit` pages at most. Returns the pages looked at. */
uint32_t segment_find_cold(struct segment *s, uint32_t limit, struct segment_parts *ret);
/*
 * The system calls that give their memory back; *parts is what went, also on failure. Without the pool's lock, as
 * segment_back(): nobody takes or backs these pages meanwhile.
 */
int segment_punch(const struct segment *s, struct segment_parts *parts);
void segment_mark_cold(struct segment *s, const struct segment_parts *parts);
/* All three for idle pages, at once. */
int segment_punch_idle(struct segment *s, const struct segment_part *within, uint32_t limit);
/* Memory behind the segment that nobody here asked for; 0 when that is not known. */
uint64_t segment_excess(const struct segment *s);
/* Gives back the memory of this part, used or not; what the tier does not take still counts as backed. */
void segment_unback(struct segment *s, const struct segment_part *part);

#endif
