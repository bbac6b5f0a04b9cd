/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chaos: kill -9 of the daemon and of its clients at random moments of a mixed load, with three times as much as the memory
 * holds and a disk below; what was served wrong, and what was acknowledged and is lost. chaos_leaked: pages, pins, sessions
 * and descriptors that are left when all clients have gone and everything is purged. See tests/lib/chaos.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/bench/figure.h"
#include "tests/lib/chaos.h"

static double above(int n)
{
	return n > 0 ? n : 0;
}

int main(int argc, char **argv)
{
	struct chaos_options o = {.rounds = 1000, .seed = 1};
	struct chaos_result r;

	for (int i = 1; i + 1 < argc; i++) {
		if (!strcmp(argv[i], "--rounds"))
			o.rounds = (unsigned)strtoul(argv[i + 1], NULL, 10);
		if (!strcmp(argv[i], "--seed"))
			o.seed = (unsigned)strtoul(argv[i + 1], NULL, 0);
	}
	o.disk_mib = 512 + 4 * o.rounds;
	chaos_run(&o, &r);
	figure_print(&(struct figure_line){"restart", "chaos", "blocks", (double)(r.wrong + r.lost),
			     FIGURE_NONE, FIGURE_NONE},
		"%llu wrong, %llu lost after acknowledgement, in %u rounds of seed %u: %u kills of "
		"daemons, %u of "
		"clients; %llu blocks (%.1f GB) compared, %llu puts, %llu purges",
		(unsigned long long)r.wrong, (unsigned long long)r.lost, o.rounds, o.seed,
		r.daemon_kills, r.client_kills, (unsigned long long)r.blocks, (double)r.bytes / 1e9,
		(unsigned long long)r.deeds[CHAOS_PUT], (unsigned long long)r.deeds[CHAOS_PURGE]);
	figure_print(&(struct figure_line){"restart", "chaos_leaked", "things",
			     r.pages / 4096 + r.pins + r.sessions + r.staging / 4096 +
				     above(r.fds) + above(r.keeper_fds),
			     FIGURE_NONE, FIGURE_NONE},
		"%g bytes of pages, %g pinned blocks, %g sessions, %g bytes staged, %d fds of the "
		"daemon, %d of its "
		"keeper more than before",
		r.pages, r.pins, r.sessions, r.staging, r.fds, r.keeper_fds);
	return figure_status();
}
