/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hit_rate_*: strict-prefix block hit rates of the eviction policy on the Mooncake conversation trace, or on
 * --trace FILE, beside LRU, S3-FIFO and the clairvoyant optimum in the same run. The policy runs as it does in the
 * daemon, inside a replay. hit_rate_floor30_10k has the bytes of 10,000 whole blocks and a floor of .3: planes go
 * as the policy says, a block with its best 30 % is a hit; its rivals there hold 10,000 whole blocks, but
 * for the optimum, which holds as many blocks as fit when each is at the floor.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/replay.h"
#include "tests/bench/figure.h"

#define CONVERSATION KVG_SOURCE_DIR "/tests/bench/traces/mooncake_conversation.jsonl"

static const struct figure {
	const char *name;
	uint64_t capacity;
	double floor;
} figures[] = {
	{"hit_rate_1k", 1000, 1},
	{"hit_rate_3k", 3000, 1},
	{"hit_rate_10k", 10000, 1},
	{"hit_rate_30k", 30000, 1},
	{"hit_rate_floor30_10k", 10000, .3},
};

static int measure(const struct trace *t, const struct figure *f, int own)
{
	double rate[N_REPLAY_POLICIES], retention = 1;
	char pairs[64] = "";

	for (int p = 0; p < N_REPLAY_POLICIES; p++) {
		struct replay_setup setup = {f->capacity, 1 << 20, f->floor};
		struct replay_result r;
		int error;

		if (p == REPLAY_OPTIMUM)
			setup.capacity = (uint64_t)((double)f->capacity / f->floor);
		error = replay_run(t, (enum replay_policy)p, &setup, &r);
		if (error < 0) {
			fprintf(stderr, "bench_policy: %s: %s\n", f->name, strerror(-error));
			return 1;
		}
		rate[p] = 100 * (double)r.hits / (double)r.references;
		if (p == REPLAY_KVGATE)
			retention = r.retention;
	}
	if (f->floor < 1)
		snprintf(pairs, sizeof(pairs),
			" with whole blocks; hits had %.0f %% of their pairs", 100 * retention);
	figure_print(&(struct figure_line){"policy", f->name, "%", rate[REPLAY_KVGATE],
			     rate[REPLAY_OPTIMUM], FIGURE_NONE, .unbound = !own},
		"clairvoyant optimum; LRU %.2f, S3-FIFO %.2f%s", rate[REPLAY_LRU],
		rate[REPLAY_S3FIFO], pairs);
	for (int p = REPLAY_LRU; p < N_REPLAY_POLICIES; p++) {
		char name[64];

		snprintf(name, sizeof(name), "%s_%s", f->name, replay_policy_name[p]);
		figure_print(&(struct figure_line){"policy", name, "%", rate[p],
				     rate[REPLAY_OPTIMUM], FIGURE_NONE},
			"clairvoyant optimum");
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *path = CONVERSATION;
	struct trace t;
	char why[512];
	int failed = 0;

	for (int i = 1; i < argc; i++) {
		if (!strncmp(argv[i], "--trace=", 8)) {
			path = argv[i] + 8;
		} else if (!strcmp(argv[i], "--trace") && i + 1 < argc) {
			path = argv[++i];
		} else {
			fprintf(stderr, "usage: bench_policy [--trace FILE]\n");
			return 2;
		}
	}
	if (trace_read(path, &t, why, sizeof(why)) < 0) {
		fprintf(stderr, "bench_policy: %s\n", why);
		return 1;
	}
	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
		failed |= measure(&t, &figures[i], !strcmp(path, CONVERSATION));
	trace_fini(&t);
	return failed || figure_status();
}
