/* SPDX-License-Identifier: Apache-2.0 */
/*
 * write_amplification: bytes written for planes that went down and bytes written again to make room, over the former alone, by
 * the daemon's own counters. A trace goes through a real daemon, request by request: the prefix that is there is fetched, from
 * disk too, what is missing is committed below it. Blocks are scaled down to 64 KiB, 1,000 of them in memory and DISK_BLOCKS on disk, so that
 * the log has to make room most of the time. What counts begins when the disk is 80 % full for the first time.
 */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/replay.h"
#include "tests/bench/bench_disk.h"

#define BLOCK       65536u
#define HOST_BLOCKS 1000u
#define DISK_BLOCKS 10000u
#define FULL        .8
#define LOOK_EACH   50u /* requests: a look at the counters */
#define CHAIN_MAX   1024u
#define BATCH       64u
#define SECONDS_MAX 40.

struct state {
	double stored, moved, live, capacity;
};

static struct state look(struct kvg_client *c)
{
	return (struct state){
		.stored = rig_counter(c, "kvgate_disk_stored_bytes_total"),
		.moved = rig_counter(c, "kvgate_disk_moved_bytes_total"),
		.live = rig_counter(c, "kvgate_disk_live_bytes"),
		.capacity = rig_counter(c, "kvgate_disk_capacity_bytes"),
	};
}

/* Blocks from `from` on below the one before. What memory has no room for ends the request. */
static void commit(struct rig *r, const struct kvg_key *keys, size_t from, size_t n)
{
	while (from < n) {
		const size_t want = n - from < BATCH ? n - from : BATCH;
		struct kvg_commit item[BATCH] = {0};
		struct kvg_commit_result result[BATCH];
		struct kvg_stage s[BATCH];
		ssize_t got = kvg_stage(r->l, KVG_INPUT_NONE, want, s);

		if (got <= 0)
			rig_fail(r->c, "stage");
		for (ssize_t i = 0; i < got; i++) {
			memcpy(s[i].kv, &keys[from + (size_t)i], sizeof(*keys));
			s[i].tokens = NULL;
			item[i].stage = &s[i];
			item[i].key = keys[from + (size_t)i];
			item[i].parent = from + (size_t)i ? &keys[from + (size_t)i - 1] : NULL;
		}
		if (kvg_commit(r->c, item, (size_t)got, result) < 0)
			rig_fail(r->c, "commit");
		from += (size_t)got;
		if (result[got - 1].code != KVG_CODE_OK && result[got - 1].code != KVG_CODE_EXISTS)
			return;
	}
}

/* Blocks of it that were there. */
static size_t request(struct rig *r, const uint32_t *blocks, size_t n)
{
	static struct kvg_key keys[CHAIN_MAX];
	static struct kvg_pin pins[CHAIN_MAX];
	ssize_t hits;

	n = n < CHAIN_MAX ? n : CHAIN_MAX;
	for (size_t i = 0; i < n; i++)
		keys[i] = rig_key(blocks[i]);
	hits = kvg_prefix_fetch(r->l, keys, n, 1.f, 1.f, pins);
	hits = hits < 0 ? 0 : hits;
	commit(r, keys, (size_t)hits, n);
	kvg_unpin(r->c, pins, (size_t)hits);
	return (size_t)hits;
}

struct outcome {
	double amplification, stored, moved, full, hit_rate;
	size_t requests;
};

static struct outcome replay(struct rig *r, const struct trace *t)
{
	const double begin = figure_now_us();
	struct state first = {0}, now = {0};
	double live = 0, hits = 0, references = 0;
	unsigned looks = 0;
	size_t i = 0;

	while (i < t->n_requests && figure_now_us() - begin < SECONDS_MAX * 1e6) {
		const size_t n = t->start[i + 1] - t->start[i];

		hits += (double)request(r, t->block + t->start[i], n);
		references += (double)n;
		if (++i % LOOK_EACH)
			continue;
		now = look(r->c);
		if (!first.stored && now.live >= FULL * now.capacity)
			first = now;
		if (first.stored) {
			live += now.live / now.capacity;
			looks++;
		}
	}
	if (!looks || now.stored <= first.stored) {
		fprintf(stderr,
			"bench_disk: the trace does not fill %.0f %% of the disk: %.0f of %.0f\n",
			100 * FULL, now.live, now.capacity);
		exit(1);
	}
	return (struct outcome){
		.stored = now.stored - first.stored,
		.moved = now.moved - first.moved,
		.amplification = (now.stored - first.stored + now.moved - first.moved) /
			(now.stored - first.stored),
		.full = live / looks,
		.hit_rate = hits / references,
		.requests = i,
	};
}

static struct outcome measure(const struct place *p, const struct trace *t, bool admit_all)
{
	const struct rig_options o = {
		.host_bytes = (uint64_t)HOST_BLOCKS * BLOCK,
		.segment_bytes = 4 * MIB,
		.disk_bytes = (uint64_t)DISK_BLOCKS * BLOCK,
		.admit_all = admit_all,
	};
	struct outcome a;
	struct rig r;

	rig_start(&r, p, &o);
	r.l = rig_layout(r.c, BLOCK);
	a = replay(&r, t);
	rig_stop(&r, p);
	return a;
}

int measure_trace(const struct place *p, const char *path)
{
	struct outcome a, all;
	struct trace t;
	char why[512];

	if (trace_read(path, &t, why, sizeof(why)) < 0) {
		fprintf(stderr, "bench_disk: %s\n", why);
		return 1;
	}
	a = measure(p, &t, false);
	all = measure(p, &t, true);
	figure_print(&(struct figure_line){"disk", "write_amplification", "ratio", a.amplification,
			     FIGURE_NONE, FIGURE_NONE},
		"%zu of %zu requests, %u blocks of 64 KiB in memory and %u on disk, which was %.0f "
		"%% full: %.2f GB went down, %.3f GB were moved; hit rate %.1f %%",
		a.requests, t.n_requests, HOST_BLOCKS, DISK_BLOCKS, 100 * a.full, a.stored / 1e9,
		a.moved / 1e9, 100 * a.hit_rate);
	figure_print(&(struct figure_line){"disk", "admitted_bytes_ratio", "ratio",
			     (a.stored + a.moved) / (double)a.requests /
				     ((all.stored + all.moved) / (double)all.requests),
			     FIGURE_NONE, FIGURE_NONE},
		"bytes written a request with admit = worth over those with admit = all, which has "
		"a hit rate "
		"of %.1f %% and an amplification of %.3f in %zu requests",
		100 * all.hit_rate, all.amplification, all.requests);
	trace_fini(&t);
	return 0;
}
