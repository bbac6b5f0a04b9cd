/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kill -9 of the daemon and of its clients, at any moment, with a disk below: nothing that is served is wrong, nothing that was
 * acknowledged is lost, nothing is left behind. $KVGATE_CHAOS_ROUNDS and $KVGATE_CHAOS_SEED for more of it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "tests/lib/chaos.h"

static unsigned number(const char *name, unsigned otherwise)
{
	const char *text = getenv(name);

	return text ? (unsigned)strtoul(text, NULL, 0) : otherwise;
}

static void test_chaos(void **state)
{
	const unsigned rounds = number("KVGATE_CHAOS_ROUNDS", 20);
	const struct chaos_options o = {
		.rounds = rounds,
		.seed = number("KVGATE_CHAOS_SEED", 1),
		.disk_mib = 512 + 4 * rounds,
	};
	struct chaos_result r;

	(void)state;
	chaos_run(&o, &r);
	print_message("%u kills of daemons, %u of them early; %u of clients; %llu blocks compared, "
		      "%llu refusals\n",
		r.daemon_kills, r.early_kills, r.client_kills, (unsigned long long)r.blocks,
		(unsigned long long)r.refused);
	for (unsigned i = 0; i < CHAOS_DEEDS; i++)
		print_message("deed %u: %llu\n", i, (unsigned long long)r.deeds[i]);
	print_message(
		"left: %g bytes of pages, %g blocks, %g sessions, %g bytes staged, %d fds of the "
		"daemon, %d of its keeper\n",
		r.pages, r.pins, r.sessions, r.staging, r.fds, r.keeper_fds);
	assert_int_equal(r.wrong, 0);
	assert_int_equal(r.lost, 0);
	assert_true(r.blocks > 0 && r.deeds[CHAOS_PUT] > 0 && r.deeds[CHAOS_FETCH] > 0);
	assert_true(r.pages == 0 && r.pins == 0 && r.sessions == 0 && r.staging == 0);
	assert_int_equal(r.fds, 0);
	assert_int_equal(r.keeper_fds, 0);
	assert_false(r.useless);
}

int main(void)
{
	const struct CMUnitTest tests[] = {cmocka_unit_test(test_chaos)};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
