/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pins: what the sessions of one tenant have pinned and read, as their pin pages say.
 * Thread: the control thread; clients write the pages at any time. Locks: none, one fence a scan.
 * Blocks: never. Errors: none - whatever a page holds is clamped or ignored.
 */
#ifndef KVGATE_DAEMON_CACHE_PINS_H
#define KVGATE_DAEMON_CACHE_PINS_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/cache/cache.h"

struct pins {
	struct pin_page *pages; /* oldest session first */
	struct pin_page
		*next; /* whose touches are taken first the next time; NULL: the oldest session's */
};

void pins_attach(struct pins *p, struct pin_page *page);
void pins_detach(struct pins *p, struct pin_page *page);

/* A few handles that are asked about together. */
#define PIN_SET_MAX 128 /* a scan of all pages is worth its price, the table fits L1 */
struct pin_set {
	unsigned n;
	uint64_t handle[4 * PIN_SET_MAX]; /* open addressing, 0 = empty */
	bool pinned[4 * PIN_SET_MAX];
};
void pin_set_init(struct pin_set *s);
void pin_set_add(struct pin_set *s, struct kvg_handle h);
bool pin_set_pinned(const struct pin_set *s, struct kvg_handle h);

/*
 * Full fence, then every pin of every page against the set. The smaller words were stored before: what is
 * not found pinned now can be pinned only by readers who saw the smaller word.
 */
void pins_scan(const struct pins *p, struct pin_set *s);

typedef void (*pins_fn)(void *userdata, struct kvg_handle h);
/* Every pin there is, for people to look at. Handles may be anything. */
void pins_each(const struct pins *p, pins_fn fn, void *userdata);

/*
 * Takes what the touch rings hold, in the order of reading, about `limit` of them at most: the rest waits for the next
 * time, when another page has its turn. Handles may be anything.
 */
struct pins_drained {
	uint64_t touches, lost;
};
void pins_drain(
	struct pins *p, uint64_t limit, pins_fn fn, void *userdata, struct pins_drained *ret);
/* All that one page has. */
void pins_drain_page(struct pin_page *page, pins_fn fn, void *userdata, struct pins_drained *ret);

#endif
