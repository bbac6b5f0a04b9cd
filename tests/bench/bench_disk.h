/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_disk: fio, and a real kvgated with a disk below it, on one file system.
 * Thread: one. Locks: none. Blocks: yes. Errors: prints what is wrong and exits with 1.
 */
#ifndef KVGATE_TESTS_BENCH_DISK_H
#define KVGATE_TESTS_BENCH_DISK_H

#include "tests/bench/figure.h"
#include "tests/lib/harness.h"

#define MIB   ((uint64_t)1 << 20)
#define DEPTH 32u /* requests of 1 MiB in flight: what disk_in_flight_bytes is by default */

/* A folder of its own on the file system in question, gone when the program is. */
struct place {
	char dir[200];
	const char *fs; /* its name */
};
void place_init(struct place *p, const char *parent);
void place_fini(struct place *p);
/* Removes what fio made there. */
void place_unlink(const struct place *p, const char *file);

/* ---- fio ---- */

struct fio_result {
	double bytes_per_s, p99_us;
	double cpu_s_per_GB; /* of its job, start and report left out */
};
enum fio_check {
	FIO_PLAIN,
	FIO_VERIFY /* what it reads has a CRC32C, which it compares */
};
/* Makes the file, with sums of every 1 MiB: preallocated, as the daemon's is. */
struct fio_result fio_write(const struct place *p, const char *file, uint64_t bytes);
/* Checksums for FIO_VERIFY come with FIO_VERIFY here. */
void fio_prepare(const struct place *p, const char *file, uint64_t bytes);
struct fio_result fio_read(
	const struct place *p, const char *file, uint64_t bytes, enum fio_check check);
/* One reader of random 1 MiB, one at a time, beside a writer with DEPTH of them in flight. */
void fio_mixed(const struct place *p, const char *file, uint64_t bytes, unsigned seconds,
	struct fio_result *ret_reader, struct fio_result *ret_writer);

/* ---- kvgated ---- */

struct rig_options {
	uint64_t host_bytes, disk_bytes, segment_bytes;
	unsigned drain_seconds;
	bool admit_all;
};
struct rig {
	struct daemon_process d;
	struct kvg_client *c;
	struct kvg_layout *l; /* opaque blocks; rig_layout() */
	char config[800];
};
void rig_start(struct rig *r, const struct place *p, const struct rig_options *o);
/* SIGTERM, and another one with the same disk: everything is cold. r->l is NULL. */
void rig_restart(struct rig *r);
/* Until it has nothing to do: after a start it backs memory ahead of its use. */
void rig_settle(const struct rig *r);
void rig_stop(struct rig *r, const struct place *p);

/* Summed over all tenants. */
double rig_counter(struct kvg_client *c, const char *name);
/* CPU seconds of the daemon, all its threads. */
double rig_cpu_s(const struct rig *r);

/* Opaque blocks whose plane has `bytes` with its header. */
struct kvg_layout *rig_layout(struct kvg_client *c, uint64_t bytes);
struct kvg_key rig_key(uint64_t number);
/* Commits blocks first .. first + n - 1 as fast as can be. */
void rig_put(struct kvg_client *c, struct kvg_layout *l, uint64_t first, unsigned n);
/* Compares a few bytes of a block that is mapped. False: it is not. */
bool rig_compare(struct kvg_client *c, struct kvg_layout *l, uint64_t number);
void rig_fail(struct kvg_client *c, const char *what) __attribute__((noreturn));

/* ---- the figures; each prints its lines ---- */

void measure_transfer(
	const struct place *p);              /* disk_read_ratio, disk_write_ratio, disk_cpu_ratio */
void measure_latency(const struct place *p); /* disk_read_p99_under_writes */
void measure_partial(const struct place *p); /* partial_read */
int measure_trace(const struct place *p, const char *path); /* write_amplification */

#endif
