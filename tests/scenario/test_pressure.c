/* SPDX-License-Identifier: Apache-2.0 */
/* Pressure takes the least important pairs first where it may, whole blocks leaf before root where it may not. */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define CHAINS 40 /* of 8 blocks of 128 KiB: 40 MiB and more, in 16 MiB */
#define BLOCKS 8

static void start(struct daemon_process *d, const char *floor)
{
	char config[512];

	snprintf(config, sizeof(config),
		"[memory]\nhost_bytes = 16MiB\nsegment_bytes = 4MiB\nindex_slots = 65536\nfloor = "
		"%s\n",
		floor);
	daemon_start(d, config);
}

struct seen {
	size_t blocks;    /* found, counted along each chain */
	size_t partial;   /* of them with less than all pairs */
	float least;      /* retention */
	unsigned missing; /* chains with a hole: a later block there, an earlier one not */
};

static void look(struct kvg_client *c, struct kvg_layout *l, struct seen *ret)
{
	struct seen s = {.least = 1.f};

	for (int i = 0; i < CHAINS; i++) {
		struct kvg_key keys[BLOCKS];
		struct kvg_pin pins[BLOCKS];
		size_t n;

		chain_keys(l, &model_deep, 1000u * (uint64_t)i, BLOCKS, keys);
		n = kvg_prefix_pin(l, keys, BLOCKS, 0.f, pins);
		for (size_t b = 0; b < n; b++) {
			uint64_t pairs =
				content_compare(&model_deep, 1000u * (uint64_t)i + b, l, &pins[b]);
			float share = (float)pairs /
				(float)(model_deep.layers * model_deep.heads * model_deep.tokens);

			assert_true(share > pins[b].retention - 1e-4f &&
				share < pins[b].retention + 1e-4f);
			s.partial += pins[b].retention < 1.f;
			if (pins[b].retention < s.least)
				s.least = pins[b].retention;
		}
		kvg_unpin(c, pins, n);
		s.blocks += n;
		for (size_t b = n; b < BLOCKS; b++)
			s.missing += kvg_prefix_lookup(l, &keys[b], 1) != 0;
	}
	*ret = s;
}

static void put_all(struct kvg_client *c, struct kvg_layout *l)
{
	struct kvg_key keys[BLOCKS];

	for (int i = 0; i < CHAINS; i++)
		assert_int_equal(chain_put(c, l, &model_deep, 1000u * (uint64_t)i, BLOCKS, keys),
			KVG_CODE_OK);
}

/* The same chains in the same memory; returns the blocks that are still found. */
static size_t press(const char *floor)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct seen s;
	bool lossless = !strcmp(floor, "1.0");

	start(&d, floor);
	c = client_open(&d);
	l = model_register(c, &model_deep);
	put_all(c, l);
	look(c, l, &s);
	assert_true(s.blocks > 0);
	assert_int_equal(s.missing, 0); /* a child never outlives its parent */
	assert_true(client_counter(c, "kvgate_bytes") <= 16 << 20);
	assert_true(client_counter(c, "kvgate_resident_bytes") <= 16 << 20);
	if (lossless) {
		assert_int_equal(s.partial, 0);
		assert_true(client_counter(c, "kvgate_evicted_blocks_total") > 0);
	} else {
		assert_true(s.partial > s.blocks / 2);
		assert_true(s.least >= strtof(floor, NULL) - 1e-4f);
		assert_true(client_counter(c, "kvgate_evicted_planes_total") > 0);
	}
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
	return s.blocks;
}

/*
 * Lossless takes whole blocks. With a floor the least important pairs of everything go before the whole of anything: at
 * their floor all blocks fit, so all of them are there.
 */
static void test_planes_before_blocks(void **state)
{
	(void)state;
	assert_true(press("1.0") < CHAINS * BLOCKS / 2);
	assert_int_equal(press("0.2"), CHAINS * BLOCKS);
}

static void test_pinned_stays(void **state)
{
	struct daemon_process d;
	struct kvg_client *c, *other;
	struct kvg_layout *l, *ol;
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];

	(void)state;
	start(&d, "0.2");
	c = client_open(&d);
	l = model_register(c, &model_deep);
	assert_int_equal(chain_put(c, l, &model_deep, 77777, BLOCKS, keys), KVG_CODE_OK);
	assert_int_equal(kvg_prefix_pin(l, keys, BLOCKS, 1.f, pins), BLOCKS);
	other = client_open(&d);
	ol = model_register(other, &model_deep);
	put_all(other, ol);
	for (size_t b = 0; b < BLOCKS; b++)
		assert_int_equal(content_compare(&model_deep, 77777 + b, l, &pins[b]),
			model_deep.layers * model_deep.heads * model_deep.tokens);
	kvg_unpin(c, pins, BLOCKS);
	kvg_close(other);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* A reader who demands more than there is gets a miss, not less. */
static void test_minimum_retention(void **state)
{
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key;
	struct kvg_pin pin;
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	(void)state;
	start(&d, "1.0");
	c = client_open(&d);
	l = model_register(c, &model_deep);
	assert_int_equal(chain_put(c, l, &model_deep, 1, 1, &key), KVG_CODE_OK);
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), 0);
	kvg_unpin(c, &pin, 1);
	o.keep_planes = 2;
	assert_int_equal(kvg_purge(c, &o, &r), 0);
	assert_int_equal(r.planes, model_deep.n_planes - 2);
	assert_int_equal(kvg_lookup_pin(l, &key, 1.f, &pin), -ENODATA);
	assert_int_equal(kvg_lookup_pin(l, &key, .1f, &pin), 0);
	assert_true(pin.retention > .2f && pin.retention < .6f);
	kvg_unpin(c, &pin, 1);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_planes_before_blocks),
		cmocka_unit_test(test_pinned_stays),
		cmocka_unit_test(test_minimum_retention),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
