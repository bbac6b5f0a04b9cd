/* SPDX-License-Identifier: Apache-2.0 */
/* Subscribers hear of commits, shrinks and evictions of their own tenant. */
#include <assert.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

struct heard {
	unsigned count[4];
	uint32_t held;
	struct kvg_key last;
};

static void hear(void *userdata, const struct kvg_event *e)
{
	struct heard *h = userdata;

	assert(e->kind >= 0 && e->kind < 4);
	h->count[e->kind]++;
	h->held = e->held;
	h->last = e->key;
}

static void wait_for(struct kvg_client *c, struct heard *h, int kind, unsigned count)
{
	for (int i = 0; i < 100 && h->count[kind] < count; i++) {
		struct pollfd p = {.fd = kvg_fd(c), .events = POLLIN};

		poll(&p, 1, 100);
		assert_int_equal(kvg_dispatch(c), 0);
	}
	assert_int_equal(h->count[kind], count);
}

static void test_events(void **state)
{
	struct daemon_process d;
	struct kvg_client *c, *writer;
	struct kvg_layout *l;
	struct kvg_key keys[5];
	struct heard h = {0};
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	(void)state;
	daemon_start(&d, "");
	c = client_open(&d);
	assert_int_equal(kvg_subscribe(c, 1 << 1 | 1 << 2 | 1 << 3, hear, &h), 0);
	writer = client_open(&d);
	l = model_register(writer, &model_small);
	assert_int_equal(chain_put(writer, l, &model_small, 1, 5, keys), KVG_CODE_OK);
	wait_for(c, &h, 1, 5);
	assert_memory_equal(&h.last, &keys[4], sizeof(keys[4]));
	assert_int_equal(h.held, 15);
	o.keep_planes = 1;
	assert_int_equal(kvg_purge(writer, &o, &r), 0);
	wait_for(c, &h, 2, 5);
	assert_int_equal(h.held, 1);
	o.keep_planes = 0;
	assert_int_equal(kvg_purge(writer, &o, &r), 0);
	wait_for(c, &h, 3, 5);
	assert_int_equal(kvg_subscribe(c, 0, NULL, NULL), 0);
	assert_int_equal(chain_put(writer, l, &model_small, 50, 5, keys), KVG_CODE_OK);
	assert_int_equal(kvg_dispatch(c), 0);
	assert_int_equal(h.count[1], 5);
	kvg_close(writer);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_events),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
