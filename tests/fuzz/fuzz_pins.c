/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A pin page as a hostile client writes it, header and all, between and behind two honest ones. The daemon's work stays
 * bounded, nothing is read outside the page, and the honest pins are found whatever the mad page says.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/pins.h"

enum {
	PINS = 40,
	TOUCHES = 16
};

static void page_init(struct pin_page *page)
{
	void *map = aligned_alloc(64, (pin_page_bytes(PINS, TOUCHES) + 63) / 64 * 64);

	assert(map);
	memset(map, 0, pin_page_bytes(PINS, TOUCHES));
	*page = (struct pin_page){.map = map, .n_pins = PINS, .n_touch = TOUCHES};
}

static void pin(struct pin_page *page, struct kvg_handle h)
{
	uint8_t *map = (uint8_t *)(uintptr_t)page->map;
	uint64_t v = kvg_handle_pack(h);

	memcpy(map + pin_page_pins_off(), &v, sizeof(v));
	((struct kvg_shm_pins *)map)->pins_high = 1;
}

static unsigned seen;

static void see(void *userdata, struct kvg_handle h)
{
	(void)userdata;
	(void)h;
	seen++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	const struct kvg_handle first = {.slot = 7, .gen = 1}, last = {.slot = 9, .gen = 2};
	const struct kvg_handle free_one = {.slot = 0xabcdef, .gen = 0x12345678};
	const size_t bytes = pin_page_bytes(PINS, TOUCHES);
	struct pin_page page[3];
	struct pins pins = {0};

	for (int i = 0; i < 3; i++) {
		page_init(&page[i]);
		pins_attach(&pins, &page[i]);
	}
	pin(&page[0], first);
	pin(&page[2], last);
	do { /* each part of the input is what the page holds next */
		size_t step = n < bytes ? n : bytes;
		struct pins_drained drained = {0};
		struct pin_set set;

		memcpy((void *)(uintptr_t)page[1].map, data, step);
		data += step;
		n -= step;
		pin_set_init(&set);
		pin_set_add(&set, first);
		pin_set_add(&set, last);
		pin_set_add(&set, free_one);
		pins_scan(&pins, &set);
		assert(pin_set_pinned(&set, first) && pin_set_pinned(&set, last));
		seen = 0;
		pins_each(&pins, see, NULL);
		assert(seen >= 2 && seen <= 2 + PINS);
		seen = 0;
		pins_drain(&pins, UINT64_MAX, see, NULL, &drained);
		assert(seen == drained.touches && seen <= TOUCHES);
	} while (n);
	for (int i = 0; i < 3; i++) {
		pins_detach(&pins, &page[i]);
		free((void *)(uintptr_t)page[i].map);
	}
	assert(!pins.pages);
	return 0;
}
