/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon's half of the hazard pointers (proto/shm.h says both halves). A page is written by a client that may be
 * mad: its geometry is taken from the daemon's own counts, pins_high is clamped, a handle is a number until it was compared
 * with a block's own. A client that lies about its pins takes its own safety away and nobody else's: its
 * pages are then given to a block of the same tenant, or zeroed before they go to another.
 *
 * A scan costs a load per pin in use and a probe of a small table, so victims are asked about by the hundred.
 */
#include "daemon/cache/pins.h"

#include <assert.h>
#include <string.h>

#define SET_SIZE (4 * PIN_SET_MAX)
#define LOST_MAX (1u << 30) /* one drain's loss as far as it is believed */

void pins_attach(struct pins *p, struct pin_page *page)
{
	struct pin_page **at = &p->pages;

	page->next = page->prev = NULL;
	for (; *at; at = &(*at)->next)
		page->prev = *at;
	*at = page;
}

void pins_detach(struct pins *p, struct pin_page *page)
{
	if (p->next == page)
		p->next = page->next;
	if (page->prev)
		page->prev->next = page->next;
	else
		p->pages = page->next;
	if (page->next)
		page->next->prev = page->prev;
	page->next = page->prev = NULL;
}

static const _Atomic uint64_t *pin_array(const struct pin_page *page)
{
	return (const _Atomic uint64_t *)((const uint8_t *)page->map + pin_page_pins_off());
}

static const _Atomic uint64_t *touch_array(const struct pin_page *page)
{
	return (const _Atomic uint64_t *)((const uint8_t *)page->map +
		pin_page_touch_off(page->n_pins));
}

static uint32_t pins_in_use(const struct pin_page *page)
{
	uint32_t high = atomic_load_explicit(&page->map->pins_high, memory_order_relaxed);

	return high < page->n_pins ? high : page->n_pins;
}

/* ---- sets ---- */

static unsigned set_at(const struct pin_set *s, uint64_t handle)
{
	unsigned i = (unsigned)(handle * 0x9e3779b97f4a7c15ull >> 32) % SET_SIZE;

	while (s->handle[i] && s->handle[i] != handle)
		i = (i + 1) % SET_SIZE;
	return i;
}

void pin_set_init(struct pin_set *s)
{
	memset(s, 0, sizeof(*s));
}

void pin_set_add(struct pin_set *s, struct kvg_handle h)
{
	uint64_t v = kvg_handle_pack(h);
	unsigned i = set_at(s, v);

	assert(h.gen && s->n < PIN_SET_MAX);
	s->n += !s->handle[i];
	s->handle[i] = v;
}

bool pin_set_pinned(const struct pin_set *s, struct kvg_handle h)
{
	return s->pinned[set_at(s, kvg_handle_pack(h))];
}

/* ---- scans ---- */

void pins_scan(const struct pins *p, struct pin_set *s)
{
	atomic_thread_fence(memory_order_seq_cst);
	for (const struct pin_page *page = p->pages; page; page = page->next) {
		const _Atomic uint64_t *pin = pin_array(page);
		const uint32_t n = pins_in_use(page);

		for (uint32_t i = 0; i < n; i++) {
			uint64_t v = atomic_load_explicit(&pin[i], memory_order_relaxed);
			unsigned at;

			if (!v)
				continue;
			at = set_at(s, v);
			if (s->handle[at])
				s->pinned[at] = true;
		}
	}
	atomic_thread_fence(
		memory_order_acquire); /* what an unpinned reader read was read before */
}

void pins_each(const struct pins *p, pins_fn fn, void *userdata)
{
	for (const struct pin_page *page = p->pages; page; page = page->next) {
		const uint32_t n = pins_in_use(page);

		for (uint32_t i = 0; i < n; i++) {
			uint64_t v =
				atomic_load_explicit(&pin_array(page)[i], memory_order_relaxed);

			if (v)
				fn(userdata, kvg_handle_unpack(v));
		}
	}
}

/* ---- touches ---- */

void pins_drain_page(struct pin_page *page, pins_fn fn, void *userdata, struct pins_drained *ret)
{
	const _Atomic uint64_t *ring = touch_array(page);
	uint64_t head = atomic_load_explicit(&page->map->touch_head, memory_order_acquire);
	uint64_t behind = head - page->touch_tail;

	if (behind > page->n_touch) {
		uint64_t lost = behind - page->n_touch;

		ret->lost += lost < LOST_MAX ? lost : LOST_MAX;
		page->touch_tail = head - page->n_touch;
	}
	for (; page->touch_tail != head; page->touch_tail++) {
		uint64_t v = atomic_load_explicit(
			&ring[page->touch_tail & (page->n_touch - 1)], memory_order_relaxed);

		ret->touches++;
		fn(userdata, kvg_handle_unpack(v));
	}
}

void pins_drain(
	struct pins *p, uint64_t limit, pins_fn fn, void *userdata, struct pins_drained *ret)
{
	const uint64_t before = ret->touches;
	struct pin_page *first = p->next ? p->next : p->pages, *page = first;

	if (!page)
		return;
	do {
		pins_drain_page(page, fn, userdata, ret);
		page = page->next ? page->next : p->pages;
	} while (page != first && ret->touches - before < limit);
	p->next = page;
}
