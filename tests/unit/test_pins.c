/* SPDX-License-Identifier: Apache-2.0 */
/* Pin pages, honest and otherwise. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/pins.h"

enum {
	PINS = 100,
	TOUCHES = 8
};

struct client_page {
	struct kvg_shm_pins *head;
	_Atomic uint64_t *pin, *touch;
	struct pin_page page;
};

static void page_new(struct client_page *p)
{
	uint8_t *map = aligned_alloc(64, (pin_page_bytes(PINS, TOUCHES) + 63) / 64 * 64);

	memset(map, 0, pin_page_bytes(PINS, TOUCHES));
	p->head = (struct kvg_shm_pins *)map;
	p->pin = (_Atomic uint64_t *)(map + pin_page_pins_off());
	p->touch = (_Atomic uint64_t *)(map + pin_page_touch_off(PINS));
	p->page = (struct pin_page){.map = p->head, .n_pins = PINS, .n_touch = TOUCHES};
}

static void pin(struct client_page *p, uint32_t at, uint32_t slot, uint32_t gen)
{
	p->pin[at] = kvg_handle_pack((struct kvg_handle){slot, gen});
	if (p->head->pins_high <= at)
		p->head->pins_high = at + 1;
}

static void test_geometry(void **state)
{
	(void)state;
	assert_int_equal(pin_page_pins_off(), 128);
	assert_int_equal(pin_page_touch_off(1), 192);
	assert_int_equal(pin_page_touch_off(8), 192);
	assert_int_equal(pin_page_touch_off(9), 256);
	assert_int_equal(pin_page_bytes(9, 4), 256 + 32);
}

static void test_scan(void **state)
{
	struct client_page a, b;
	struct pins pins = {0};
	struct pin_set set;

	(void)state;
	page_new(&a);
	page_new(&b);
	pins_attach(&pins, &a.page);
	pins_attach(&pins, &b.page);
	pin(&a, 3, 17, 2);
	pin(&b, 99, 18, 1);
	pin(&b, 0, 19, 5);
	pin_set_init(&set);
	for (uint32_t slot = 0; slot < PIN_SET_MAX; slot++)
		pin_set_add(&set, (struct kvg_handle){slot, slot == 19 ? 6 : slot == 17 ? 2 : 1});
	pins_scan(&pins, &set);
	for (uint32_t slot = 0; slot < PIN_SET_MAX;
		slot++) /* 19 is pinned in an older generation: that is another block */
		assert_int_equal(pin_set_pinned(&set,
					 (struct kvg_handle){slot,
						 slot == 19           ? 6
							 : slot == 17 ? 2
								      : 1}),
			slot == 17 || slot == 18);
	pins_detach(&pins, &b.page);
	pin_set_init(&set);
	pin_set_add(&set, (struct kvg_handle){17, 2});
	pin_set_add(&set, (struct kvg_handle){18, 1});
	pins_scan(&pins, &set);
	assert_true(pin_set_pinned(&set, (struct kvg_handle){17, 2}));
	assert_false(pin_set_pinned(&set, (struct kvg_handle){18, 1}));
	pins_detach(&pins, &a.page);
	assert_null(pins.pages);
	free(a.head);
	free(b.head);
}

static void test_pins_high_is_clamped(void **state)
{
	struct client_page a;
	struct pins pins = {0};
	struct pin_set set;

	(void)state;
	page_new(&a);
	pins_attach(&pins, &a.page);
	a.head->n_pins = a.head->n_touch = 0xffffffff; /* nobody asks the page */
	a.head->pins_off = a.head->touch_off = 0xfffffff0;
	a.head->pins_high = 0xffffffff;
	a.pin[PINS - 1] = kvg_handle_pack((struct kvg_handle){5, 1});
	pin_set_init(&set);
	pin_set_add(&set, (struct kvg_handle){5, 1});
	pins_scan(&pins, &set);
	assert_true(pin_set_pinned(&set, (struct kvg_handle){5, 1}));
	free(a.head);
}

struct heard {
	unsigned n;
	uint32_t slot[64];
};

static void hear(void *userdata, struct kvg_handle h)
{
	struct heard *d = userdata;

	d->slot[d->n++ % 64] = h.slot;
}

static void touch(struct client_page *p, uint32_t slot)
{
	p->touch[p->head->touch_head % TOUCHES] = kvg_handle_pack((struct kvg_handle){slot, 1});
	p->head->touch_head++;
}

static void test_touches(void **state)
{
	struct client_page a;
	struct pins pins = {0};
	struct pins_drained d = {0};
	struct heard heard = {0};

	(void)state;
	page_new(&a);
	pins_attach(&pins, &a.page);
	for (uint32_t i = 0; i < 5; i++)
		touch(&a, i);
	pins_drain(&pins, UINT64_MAX, hear, &heard, &d);
	assert_true(d.touches == 5 && d.lost == 0 && heard.n == 5);
	for (uint32_t i = 0; i < 5; i++)
		assert_int_equal(heard.slot[i], i); /* in the order of reading */
	pins_drain(&pins, UINT64_MAX, hear, &heard, &d);
	assert_int_equal(heard.n, 5);
	for (uint32_t i = 0; i < TOUCHES + 3; i++)
		touch(&a, 100 + i);
	heard.n = 0;
	pins_drain(&pins, UINT64_MAX, hear, &heard, &d);
	assert_true(d.lost == 3 && heard.n == TOUCHES && heard.slot[0] == 103);
	a.head->touch_head = 1; /* backwards, and far ahead: bounded work, bounded belief */
	heard.n = 0;
	pins_drain(&pins, UINT64_MAX, hear, &heard, &d);
	assert_int_equal(heard.n, TOUCHES);
	a.head->touch_head = 1ull << 63;
	heard.n = 0;
	pins_drain(&pins, UINT64_MAX, hear, &heard, &d);
	assert_int_equal(heard.n, TOUCHES);
	assert_true(d.lost < 1ull << 32);
	free(a.head);
}

/* Some pages in one go, the others the next time; a page that goes loses nobody his turn. */
static void test_touches_by_turns(void **state)
{
	struct client_page page[4];
	struct pins pins = {0};

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		page_new(&page[i]);
		pins_attach(&pins, &page[i].page);
	}
	for (unsigned round = 0; round < 3; round++) {
		struct pins_drained d = {0};
		struct heard heard = {0};

		for (unsigned i = 0; i < 4; i++)
			for (unsigned n = 0; n < 4; n++)
				touch(&page[i], i);
		for (unsigned i = 0; i < 4; i += 2) {
			pins_drain(&pins, 5, hear, &heard, &d);
			assert_int_equal(heard.n, 4 * (i + 2));
			assert_true(heard.slot[4 * i] == i && heard.slot[4 * i + 4] == i + 1);
			if (i == 0) /* he who reads most does not keep the others waiting */
				for (unsigned n = 0; n < 8; n++)
					touch(&page[0], 0);
		}
		pins_drain(&pins, 5, hear, &heard, &d);
		assert_int_equal(heard.n, 24);
		pins.next = NULL;
	}
	pins.next = &page[1].page;
	pins_detach(&pins, &page[1].page);
	assert_ptr_equal(pins.next, &page[2].page);
	pins.next = &page[3].page;
	pins_detach(&pins, &page[3].page);
	assert_null(pins.next);
	for (unsigned i = 0; i < 4; i++)
		free(page[i].head);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_geometry),
		cmocka_unit_test(test_scan),
		cmocka_unit_test(test_pins_high_is_clamped),
		cmocka_unit_test(test_touches),
		cmocka_unit_test(test_touches_by_turns),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
