/* SPDX-License-Identifier: Apache-2.0 */
/* fio as a rival: one run, its report as JSON. Requests of 1 MiB, O_DIRECT, io_uring. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include <json-c/json.h>

#include "tests/bench/bench_disk.h"

#define COMMON "fio --output-format=json --ioengine=io_uring --direct=1 --bs=1M --fallocate=native"

static const struct fs_name {
	unsigned long magic;
	const char *name;
} names[] = {
	{0xef53, "ext4"},
	{0x58465342, "xfs"},
	{0x9123683e, "btrfs"},
	{0x01021994, "tmpfs"},
	{0x794c7630, "overlayfs"},
	{0x2fc12fc1, "zfs"},
	{0xf2f52010, "f2fs"},
};

void place_init(struct place *p, const char *parent)
{
	struct statfs st;

	if (snprintf(p->dir, sizeof(p->dir), "%s/kvgate-bench-XXXXXX", parent) >=
			(int)sizeof(p->dir) ||
		!mkdtemp(p->dir) || statfs(p->dir, &st) < 0) {
		perror(parent);
		exit(1);
	}
	p->fs = "a file system without a name here";
	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		if (names[i].magic == (unsigned long)st.f_type)
			p->fs = names[i].name;
}

void place_unlink(const struct place *p, const char *file)
{
	char path[300];

	snprintf(path, sizeof(path), "%s/%s", p->dir, file);
	unlink(path);
}

void place_fini(struct place *p)
{
	rmdir(p->dir);
}

/* What it says on stdout; notes may stand before the report. */
static struct json_object *run(const char *command)
{
	size_t room = 1 << 20, n = 0, got;
	char *text = malloc(room);
	FILE *f = popen(command, "re");
	const char *begin;
	struct json_object *o = NULL;

	while (text && f && n + 1 < room && (got = fread(text + n, 1, room - 1 - n, f)) > 0)
		n += got;
	if (text && f) {
		text[n] = '\0';
		begin = strstr(text, "{\n");
		o = begin ? json_tokener_parse(begin) : NULL;
	}
	if (!f || pclose(f) != 0 || !o) {
		fprintf(stderr, "bench_disk: this does not work: %s\n%s", command, text);
		exit(1);
	}
	free(text);
	return o;
}

static struct json_object *at(struct json_object *o, const char *key)
{
	struct json_object *v = NULL;

	if (!json_object_object_get_ex(o, key, &v)) {
		fprintf(stderr, "bench_disk: fio reports no `%s`\n", key);
		exit(1);
	}
	return v;
}

static double number(struct json_object *o, const char *key)
{
	return json_object_get_double(at(o, key));
}

static struct fio_result result(struct json_object *report, unsigned job, const char *direction)
{
	struct json_object *j = json_object_array_get_idx(at(report, "jobs"), job);
	struct json_object *d = at(j, direction), *p = NULL;
	const double cpu = (number(j, "usr_cpu") + number(j, "sys_cpu")) / 100;
	struct fio_result r = {.bytes_per_s = number(d, "bw_bytes")};

	r.cpu_s_per_GB = cpu * number(j, "job_runtime") / 1e3 / (number(d, "io_bytes") / 1e9);
	if (json_object_object_get_ex(at(d, "clat_ns"), "percentile", &p))
		r.p99_us = number(p, "99.000000") / 1e3;
	return r;
}

static struct fio_result one(const struct place *p, const char *file, uint64_t bytes,
	const char *direction, const char *more)
{
	struct json_object *report;
	struct fio_result r;
	char command[900];

	snprintf(command, sizeof(command),
		COMMON " --iodepth=%u --name=%s --filename=%s/%s --size=%llu --rw=%s%s", DEPTH,
		direction, p->dir, file, (unsigned long long)bytes, direction, more);
	report = run(command);
	r = result(report, 0, direction);
	json_object_put(report);
	return r;
}

struct fio_result fio_write(const struct place *p, const char *file, uint64_t bytes)
{
	place_unlink(p, file);
	return one(p, file, bytes, "write", "");
}

void fio_prepare(const struct place *p, const char *file, uint64_t bytes)
{
	place_unlink(p, file);
	one(p, file, bytes, "write", " --verify=crc32c --do_verify=0 --verify_state_save=0");
}

struct fio_result fio_read(
	const struct place *p, const char *file, uint64_t bytes, enum fio_check check)
{
	return one(p, file, bytes, "read", check == FIO_VERIFY ? " --verify=crc32c" : "");
}

void fio_mixed(const struct place *p, const char *file, uint64_t bytes, unsigned seconds,
	struct fio_result *ret_reader, struct fio_result *ret_writer)
{
	struct json_object *report;
	char command[900];

	place_unlink(p, "fio-writes");
	snprintf(command, sizeof(command),
		COMMON " --size=%llu --time_based --runtime=%u --name=reader --filename=%s/%s"
		       " --rw=randread --iodepth=1 --name=writer --filename=%s/fio-writes"
		       " --rw=write --iodepth=%u",
		(unsigned long long)bytes, seconds, p->dir, file, p->dir, DEPTH);
	report = run(command);
	*ret_reader = result(report, 0, "read");
	*ret_writer = result(report, 1, "write");
	json_object_put(report);
	place_unlink(p, "fio-writes");
}
