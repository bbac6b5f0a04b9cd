/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Bytes per second, and what they cost. Writing: a client commits as fast as it can while memory is full, so that every block that
 * comes in pushes one down; what counts is what reached the disk meanwhile. Reading: one client walks through much more than memory
 * holds, WINDOW blocks asked for at any time; what counts is what came up from the disk. fio moves as many bytes, by turns.
 */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/bench_disk.h"

#define ROUNDS     4u
#define BLOCKS     1024u /* of 1 MiB, in one round */
#define BATCH      16u   /* keys of one kvg_acquire_start() */
#define SINK_BYTES (1024 * MIB)
#define WINDOW     6u /* batches under way: three times what the disk takes at a time */

struct transfer {
	double bytes_per_s, cpu_s_per_GB;
};

static double own_cpu_s(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static double cpu_s(const struct rig *r)
{
	return rig_cpu_s(r) + own_cpu_s();
}

static struct transfer write_blocks(struct rig *r, uint64_t first)
{
	const double before = rig_counter(r->c, "kvgate_disk_stored_bytes_total");
	const double cpu = cpu_s(r), start = figure_now_us();
	double seconds, bytes;

	rig_put(r->c, r->l, first, BLOCKS);
	seconds = (figure_now_us() - start) * 1e-6;
	bytes = rig_counter(r->c, "kvgate_disk_stored_bytes_total") - before;
	return (struct transfer){bytes / seconds, (cpu_s(r) - cpu) / (bytes / 1e9)};
}

/* The same without anybody who commits: memory is full, and the watermarks sink. */
static double sink_blocks(struct rig *r)
{
	struct kvg_policy low = KVG_OPTIONS_INIT(kvg_policy), back = KVG_OPTIONS_INIT(kvg_policy);
	double before, start, seen, bytes = 0, us;

	back.high_watermark = .95f;
	back.low_watermark = .9f;
	low.high_watermark = .12f;
	low.low_watermark = .1f;
	before = rig_counter(r->c, "kvgate_disk_stored_bytes_total");
	start = figure_now_us();
	if (kvg_policy(r->c, &low) < 0)
		rig_fail(r->c, "policy");
	do {
		us = figure_now_us();
		seen = rig_counter(r->c, "kvgate_disk_stored_bytes_total") - before;
		bytes = seen > bytes ? seen : bytes;
		usleep(2000);
	} while (bytes < .8 * (double)SINK_BYTES && us < start + 20e6);
	if (kvg_policy(r->c, &back) < 0)
		rig_fail(r->c, "policy");
	return bytes / ((us - start) * 1e-6);
}

/* ---- reading ---- */

struct batch {
	struct kvg_acquired got[BATCH];
	uint64_t first;
};

static void ask(struct rig *r, uint64_t first, struct batch *b)
{
	struct kvg_key keys[BATCH];

	b->first = first;
	for (unsigned i = 0; i < BATCH; i++)
		keys[i] = rig_key(first + i);
	if (kvg_acquire_start(r->l, keys, BATCH, 1.f, 1.f, 0, b->got, NULL) != BATCH)
		rig_fail(r->c, "acquire");
}

static bool is_there(struct rig *r, const struct batch *b)
{
	for (unsigned i = 0; i < BATCH; i++) {
		struct kvg_acquired now;

		if (kvg_acquired_look(r->c, b->got[i].handle, &now) < 0 || !now.held)
			rig_fail(r->c, "a block was lost");
		if (now.mapped != now.held)
			return false;
	}
	return true;
}

static void take(struct rig *r, const struct batch *b)
{
	struct kvg_handle handles[BATCH];

	while (!is_there(r, b))
		if (kvg_arrival_wait(r->c, 10000) != 1)
			rig_fail(r->c, "planes do not come");
	for (unsigned i = 0; i < BATCH; i++) {
		if (!rig_compare(r->c, r->l, b->first + i))
			rig_fail(r->c, "a block is not there");
		handles[i] = b->got[i].handle;
	}
	kvg_release(r->c, handles, BATCH);
}

static struct transfer read_blocks(struct rig *r, uint64_t first)
{
	const double before = rig_counter(r->c, "kvgate_disk_loaded_bytes_total");
	const double cpu = cpu_s(r), start = figure_now_us();
	const unsigned n = BLOCKS / BATCH;
	struct batch b[WINDOW];
	double seconds, bytes;

	for (unsigned i = 0; i < n + WINDOW; i++) {
		if (i >= WINDOW)
			take(r, &b[i % WINDOW]);
		if (i < n)
			ask(r, first + i * BATCH, &b[i % WINDOW]);
	}
	seconds = (figure_now_us() - start) * 1e-6;
	bytes = rig_counter(r->c, "kvgate_disk_loaded_bytes_total") - before;
	return (struct transfer){bytes / seconds, (cpu_s(r) - cpu) / (bytes / 1e9)};
}

/* ---- reports ---- */

static double median_of(const double *values)
{
	double sorted[ROUNDS];

	for (unsigned i = 0; i < ROUNDS; i++)
		sorted[i] = values[i];
	return figure_median(sorted, ROUNDS);
}

/* Of each round, as the machine is not the same in two of them. */
static double median_ratio(const double *ours, const double *theirs)
{
	double ratio[ROUNDS];

	for (unsigned i = 0; i < ROUNDS; i++)
		ratio[i] = ours[i] / theirs[i];
	return figure_median(ratio, ROUNDS);
}

static void report(const struct place *p, const char *name, const double *ours,
	const double *theirs, double unit, const char *units, const char *rival)
{
	const double ratio = median_ratio(ours, theirs);

	figure_print(&(struct figure_line){"disk", name, "ratio", ratio, FIGURE_NONE, ratio},
		"%s on %s, 1 MiB, depth %u: %.3g %s, ours %.3g; median of %u by turns", rival,
		p->fs, DEPTH, median_of(theirs) / unit, units, median_of(ours) / unit, ROUNDS);
}

static void measure_writes(const struct place *p, struct rig *r)
{
	double ours[ROUNDS], theirs[ROUNDS], cpu[ROUNDS], fio_cpu[ROUNDS];
	uint64_t next = BLOCKS;

	for (unsigned i = 0; i < ROUNDS; i++, next += BLOCKS) {
		struct transfer t = write_blocks(r, next);
		struct fio_result f = fio_write(p, "fio", BLOCKS * MIB);

		ours[i] = t.bytes_per_s;
		cpu[i] = t.cpu_s_per_GB;
		theirs[i] = f.bytes_per_s;
		fio_cpu[i] = f.cpu_s_per_GB;
	}
	report(p, "disk_write_ratio", ours, theirs, 1e9, "GB/s", "fio write");
	report(p, "disk_write_cpu_ratio", cpu, fio_cpu, 1, "CPU s/GB",
		"fio write, which writes one buffer again and again; ours from the client's own "
		"pages on");
}

static void measure_sinking(const struct place *p)
{
	const struct rig_options o = {
		.host_bytes = SINK_BYTES + 128 * MIB,
		.segment_bytes = 64 * MIB,
		.disk_bytes = (ROUNDS + 2) * BLOCKS * MIB,
	};
	double ours[ROUNDS], theirs[ROUNDS];
	struct rig r;

	rig_start(&r, p, &o);
	r.l = rig_layout(r.c, MIB);
	for (unsigned i = 0; i < ROUNDS; i++) {
		rig_put(r.c, r.l, (uint64_t)i * BLOCKS, BLOCKS);
		ours[i] = sink_blocks(&r);
		theirs[i] = fio_write(p, "fio", BLOCKS * MIB).bytes_per_s;
	}
	rig_stop(&r, p);
	report(p, "disk_write_ratio_alone", ours, theirs, 1e9, "GB/s",
		"nobody commits, the watermarks sink; fio write");
}

static void measure_reads(const struct place *p, struct rig *r)
{
	double ours[ROUNDS], plain[ROUNDS], cpu[ROUNDS], cpu_plain[ROUNDS], cpu_verify[ROUNDS];

	fio_prepare(p, "fio", BLOCKS * MIB);
	read_blocks(r, BLOCKS); /* what was written last is only in memory, until others come */
	for (unsigned i = 0; i < ROUNDS; i++) {
		/* what was read in one round is out of memory before it is read again */
		struct transfer t = read_blocks(r, (1 + i % 2) * BLOCKS);
		struct fio_result f = fio_read(p, "fio", BLOCKS * MIB, FIO_PLAIN);

		ours[i] = t.bytes_per_s;
		cpu[i] = t.cpu_s_per_GB;
		plain[i] = f.bytes_per_s;
		cpu_plain[i] = f.cpu_s_per_GB;
		cpu_verify[i] = fio_read(p, "fio", BLOCKS * MIB, FIO_VERIFY).cpu_s_per_GB;
	}
	report(p, "disk_read_ratio", ours, plain, 1e9, "GB/s", "fio read");
	report(p, "disk_cpu_ratio", cpu, cpu_verify, 1, "CPU s/GB",
		"fio read with verify=crc32c, as we verify");
	report(p, "disk_cpu_ratio_plain", cpu, cpu_plain, 1, "CPU s/GB",
		"fio read without looking at the bytes");
}

void measure_transfer(const struct place *p)
{
	/* between its watermarks there is more than what may be in flight */
	const struct rig_options o = {
		.host_bytes = 768 * MIB,
		.segment_bytes = 64 * MIB,
		.disk_bytes = (ROUNDS + 3) * BLOCKS * MIB,
	};
	struct rig r;

	rig_start(&r, p, &o);
	r.l = rig_layout(r.c, MIB);
	rig_put(r.c, r.l, 0, BLOCKS); /* memory is full from here on */
	measure_writes(p, &r);
	measure_reads(p, &r);
	rig_stop(&r, p);
	measure_sinking(p);
	place_unlink(p, "fio");
}
