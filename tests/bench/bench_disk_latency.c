/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether reads are starved by writes: one client acquires one cold block of 1 MiB after the other, each by itself, while another
 * commits as fast as it can and so keeps demotion going. fio does the same without a cache: one random read at a time beside a writer
 * with as many bytes in flight as our disk has. A time is from the call to the pointer, the byte behind it included.
 */
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench_disk.h"

#define ROUNDS  3u
#define SECONDS 4u
#define BLOCKS  1024u   /* that are read */
#define MAX     20000u  /* reads of one round */
#define OTHERS  1000000 /* numbers of blocks that the writer makes, and each round so many further */

struct writer {
	const struct daemon_process *d;
	uint64_t first;
};

static int write_on(void *arg)
{
	const struct writer *w = arg;
	struct kvg_client *c = client_open(w->d);
	struct kvg_layout *l = rig_layout(c, MIB);

	for (uint64_t next = w->first; w->d; next += 64) /* until it is killed */
		rig_put(c, l, next, 64);
	return 0;
}

/* False: it was in memory, or is gone. */
static bool read_one(struct rig *r, uint64_t number, double *ret_us)
{
	const struct kvg_key key = rig_key(number);
	struct kvg_acquired got;
	struct kvg_pin pin;
	double start;

	if (kvg_lookup_pin(r->l, &key, 1.f, &pin) == 0) {
		kvg_unpin(r->c, &pin, 1);
		return false;
	}
	start = figure_now_us();
	if (kvg_acquire(r->l, &key, 1, 1.f, 0, &got) != 1)
		return false;
	if (!rig_compare(r->c, r->l, number))
		rig_fail(r->c, "a block is not there");
	*ret_us = figure_now_us() - start;
	kvg_release(r->c, &got.handle, 1);
	return true;
}

struct ours {
	double p99_us, reads_per_s, stored_per_s;
};

static struct ours read_under_writes(struct rig *r, unsigned round, uint64_t *next)
{
	static double us[MAX];
	struct writer w = {.d = &r->d, .first = (uint64_t)OTHERS * (1 + round)};
	pid_t pid = child_start(0, write_on, &w);
	double begin = figure_now_us(), stored, seconds;
	struct ours o;
	size_t n = 0;

	while (figure_now_us() - begin < 300e3) /* until it does press */
		read_one(r, (*next)++ % BLOCKS, &us[0]);
	stored = rig_counter(r->c, "kvgate_disk_stored_bytes_total");
	begin = figure_now_us();
	while (n < MAX && figure_now_us() - begin < SECONDS * 1e6)
		n += read_one(r, (*next)++ % BLOCKS, &us[n]);
	seconds = (figure_now_us() - begin) * 1e-6;
	stored = rig_counter(r->c, "kvgate_disk_stored_bytes_total") - stored;
	kill(pid, SIGKILL);
	assert(child_wait(pid) == 128 + SIGKILL);
	if (n < 20) {
		fprintf(stderr, "bench_disk: %zu cold blocks in %u s are too few\n", n, SECONDS);
		exit(1);
	}
	o.reads_per_s = (double)n / seconds;
	o.stored_per_s = stored / seconds;
	o.p99_us = figure_quantile(us, n, .99);
	return o;
}

void measure_latency(const struct place *p)
{
	const struct rig_options o = {
		.host_bytes = 256 * MIB,
		.segment_bytes = 64 * MIB,
		.disk_bytes = 12288 * MIB,
	};
	double ours[ROUNDS], theirs[ROUNDS], ratio[ROUNDS];
	double stored[ROUNDS], written[ROUNDS], reads[ROUNDS], fio_reads[ROUNDS];
	uint64_t next = 0;
	struct rig r;

	rig_start(&r, p, &o);
	r.l = rig_layout(r.c, MIB);
	rig_put(r.c, r.l, 0, BLOCKS);
	rig_put(r.c, r.l, BLOCKS, 512); /* so that those are cold */
	fio_prepare(p, "fio", BLOCKS * MIB);
	for (unsigned i = 0; i < ROUNDS; i++) {
		struct ours mine = read_under_writes(&r, i, &next);
		struct fio_result reader, writer;

		fio_mixed(p, "fio", BLOCKS * MIB, SECONDS, &reader, &writer);
		ours[i] = mine.p99_us;
		theirs[i] = reader.p99_us;
		ratio[i] = ours[i] / theirs[i];
		stored[i] = mine.stored_per_s;
		reads[i] = mine.reads_per_s;
		written[i] = writer.bytes_per_s;
		fio_reads[i] = reader.bytes_per_s / (double)MIB;
	}
	rig_stop(&r, p);
	place_unlink(p, "fio");
	figure_print(&(struct figure_line){"disk", "disk_read_p99_under_writes", "us",
			     figure_median(ours, ROUNDS), figure_median(theirs, ROUNDS),
			     figure_median(ratio, ROUNDS)},
		"fio on %s, 1 MiB, random reads one at a time beside writes %u deep: it made %.0f "
		"reads/s and wrote %.2f GB/s, we %.0f reads/s and %.2f GB/s; median of %u by turns",
		p->fs, DEPTH, figure_median(fio_reads, ROUNDS),
		figure_median(written, ROUNDS) / 1e9, figure_median(reads, ROUNDS),
		figure_median(stored, ROUNDS) / 1e9, ROUNDS);
}
