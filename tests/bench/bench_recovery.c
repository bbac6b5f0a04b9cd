/* SPDX-License-Identifier: Apache-2.0 */
/*
 * recovery_s_per_TB: a cold start with a full disk and nothing in memory, from opening the disk until every block of it is in the
 * index. The log is written by the daemon's own code, for blocks of 8 planes of 1 MiB in chains of 16: summaries, records and
 * headers of segments as they are; only the planes' own pages are left out of what reaches the file (which is sparse),
 * and recovery does not look at them. Summaries are read with O_DIRECT, so nothing of them is in the page cache.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "daemon/base/counters.h"
#include "daemon/base/loop.h"
#include "daemon/cache/cache.h"
#include "daemon/cache/catalog.h"
#include "daemon/cache/keep.h"
#include "daemon/cache/tenant.h"
#include "daemon/mem/disk.h"
#include "tests/bench/figure.h"

#define TB          1e12
#define PLANES      8
#define CHAIN       16
#define PLANE_BYTES (1u << 20)
#define PLANE_PAIRS 2304           /* of 36 layers, 8 heads, 64 tokens: an eighth */
#define SEGMENT     (256ull << 20) /* the default */
#define SPARE       4              /* segments that stay free */
#define AT_ONCE     64
#define TURNS       5

static char dir[] = "/var/tmp/kvgate-bench-XXXXXX", path[64];
static const char *const paths[] = {path};
static uint8_t *payload; /* of every plane */
static uint64_t bytes, n_blocks;

/* ---- a file with holes ---- */

int __wrap_fallocate(int fd, int mode, off_t offset, off_t n);
int __wrap_fallocate(int fd, int mode, off_t offset, off_t n)
{
	(void)fd, (void)mode, (void)offset, (void)n;
	errno = EOPNOTSUPP; /* as of a file system that cannot: the file is used with holes */
	return -1;
}

ssize_t __real_pwritev2(int fd, const struct iovec *v, int n, off_t offset, int flags);
ssize_t __wrap_pwritev2(int fd, const struct iovec *v, int n, off_t offset, int flags);
ssize_t __wrap_pwritev2(int fd, const struct iovec *v, int n, off_t offset, int flags)
{
	ssize_t sum = 0;

	for (int i = 0; i < n; i++) {
		const uint8_t *at = v[i].iov_base;

		if (!(at >= payload && at < payload + PLANE_BYTES) &&
			__real_pwritev2(fd, &v[i], 1, offset + sum, flags) != (ssize_t)v[i].iov_len)
			return -1;
		sum += (ssize_t)v[i].iov_len;
	}
	return sum;
}

/* ---- a cache, for its layout and then for its start ---- */

static void options(struct cache_options *o, bool disk)
{
	*o = (struct cache_options){
		.host_bytes = 256 << 20,
		.segment_bytes = 64 << 20,
		.index_slots = 1 << 18,
		.high_watermark = .95f,
		.low_watermark = .9f,
		.pack_workers = 1,
		.numa_node = -1,
	};
	assert(loop_new(&o->loop) == 0 && counters_new(&o->counters) == 0);
	if (disk)
		o->disk = (struct cache_disk_options){
			.paths = paths,
			.n_paths = 1,
			.in_flight_bytes = 32 << 20,
			.uring = true,
		};
}

static struct cache_layout *make_layout(struct cache_tenant *t)
{
	struct cache_layout_spec s = {
		.id =
			{
				.model = "recovery",
				.revision = "",
				.rope = "",
				.eviction = "",
				.key_namespace = "",
				.tp_size = 1,
				.shape = {.layers = 36,
					.heads = 8,
					.tokens = 64,
					.k_dim = 128,
					.v_dim = 128,
					.dtype = KVG_DTYPE_BF16},
				.gate_digest = {1},
				.n_edges = PLANES - 1,
			},
		.gate = "",
	};
	struct cache_layout *l;
	char why[160];

	for (int i = 0; i < PLANES - 1; i++)
		s.id.edges[i] = 1.f - (float)(i + 1) / PLANES;
	if (cache_layout_register(t, &s, &l, why, sizeof(why)) != KVG_CODE_OK) {
		fprintf(stderr, "bench_recovery: %s\n", why);
		exit(1);
	}
	return l;
}

/* ---- the log ---- */

static struct log {
	struct loop *loop;
	struct disk *disk;
	struct disk_tenant *tenant;
	uint8_t note[CATALOG_RECORD_MAX];
	size_t note_bytes;
	uint32_t note_number, page_shift;
	struct disk_store store[AT_ONCE];
	bool busy[AT_ONCE];
	unsigned in_flight;
} log_;

static bool keep(void *item, unsigned plane)
{
	(void)item, (void)plane;
	return true;
}

static void moved(void *item, unsigned plane, struct disk_place to)
{
	(void)item, (void)plane, (void)to;
	assert(!"nothing has to make room");
}

static size_t note(void *owner, uint32_t number, const void **ret)
{
	(void)owner;
	assert(number == log_.note_number);
	*ret = log_.note;
	return log_.note_bytes;
}

static void room(void *unused)
{
	(void)unused;
}

static void stored(struct disk_store *s)
{
	assert(s->error == 0);
	log_.busy[s - log_.store] = false;
	log_.in_flight--;
}

static void turn(void)
{
	assert(loop_run_once(log_.loop, 100) == 0);
}

static void key_of(uint64_t block, struct kvg_key *ret)
{
	uint64_t x = block;

	for (size_t i = 0; i < sizeof(ret->b); i += 8) {
		x += 0x9e3779b97f4a7c15ull;
		x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
		x = (x ^ x >> 27) * 0x94d049bb133111ebull;
		x ^= x >> 31;
		memcpy(ret->b + i, &x, 8);
	}
}

static void store(uint64_t block, unsigned plane)
{
	struct disk_store *s;
	unsigned i = 0;
	int r;

	while (log_.in_flight == AT_ONCE)
		turn();
	while (log_.busy[i])
		i++;
	s = &log_.store[i];
	*s = (struct disk_store){
		.tenant = log_.tenant,
		.addr = payload,
		.item = log_.store,
		.done = stored,
		.record =
			{
				.note = log_.note_number,
				.tokens = 64,
				.depth = (uint32_t)(block % CHAIN),
				.pairs = PLANE_PAIRS,
				.bytes = PLANE_BYTES,
				.mass = 1.f / PLANES,
				.plane = (uint8_t)plane,
				.n_planes = PLANES,
				.page_shift = (uint8_t)log_.page_shift,
				.has_parent = block % CHAIN != 0,
			},
	};
	key_of(block, &s->record.key);
	if (s->record.has_parent)
		key_of(block - 1, &s->record.parent);
	for (unsigned p = 0; p < PLANES; p++) {
		s->record.plane_bytes[p] = PLANE_BYTES;
		s->record.plane_pairs[p] = PLANE_PAIRS;
	}
	while ((r = disk_store(log_.disk, s)) == -EAGAIN)
		turn();
	assert(r == 0);
	log_.busy[i] = true;
	log_.in_flight++;
}

static void take_note(void)
{
	const struct cache_limits limits = {.host_bytes = 64 << 20, .floor = 1};
	struct cache_options o;
	struct cache_layout *l;
	struct cache_tenant *t;
	struct cache *c;

	options(&o, false);
	assert(cache_new(&o, &c) == 0 && cache_adopt(c, &(struct cache_pinned){0}) == 0);
	assert(cache_tenant_open(c, "one", &limits, &t) == 0);
	l = make_layout(t);
	log_.note_bytes = keep_encode_layout(l, log_.note);
	log_.note_number = layout_note(l);
	log_.page_shift = l->page_shift;
	cache_free(c);
}

static void write_log(void)
{
	const struct disk_found nothing = {0};
	struct disk_options o = {
		.paths = paths,
		.n_paths = 1,
		.in_flight_bytes = 64 << 20,
		.owner = {.keep = keep, .moved = moved, .note = note, .room = room},
	};
	char why[200];
	unsigned bad;

	if (disk_format(path, bytes, SEGMENT, false, why, sizeof(why)) < 0) {
		fprintf(stderr, "bench_recovery: %s: %s\n", path, why);
		exit(1);
	}
	assert(loop_new(&log_.loop) == 0);
	o.loop = log_.loop;
	assert(disk_open(&o, &log_.disk, &bad) == 0 && !bad);
	assert(disk_recover(log_.disk, &nothing) == 0);
	assert(disk_tenant_new(log_.disk, "one", &log_, &log_.tenant) == 0);
	for (uint64_t b = 0; b < n_blocks; b++)
		for (unsigned p = 0; p < PLANES; p++)
			store(b, p);
	while (log_.in_flight)
		turn();
	log_.disk = disk_close(log_.disk);
}

/* ---- the start ---- */

/* What the program does when it is its own child. */
static int start_here(const char *at, const char *n)
{
	struct cache_options o;
	struct cache_tenant *t;
	struct cache *c;
	double began, cpu;

	snprintf(path, sizeof(path), "%s", at);
	n_blocks = strtoull(n, NULL, 10);
	options(&o, true);
	cpu = (double)clock() / CLOCKS_PER_SEC;
	began = figure_now_us();
	assert(cache_new(&o, &c) == 0 && cache_adopt(c, &(struct cache_pinned){0}) == 0);
	printf("%.6f %.6f\n", (figure_now_us() - began) * 1e-6,
		(double)clock() / CLOCKS_PER_SEC - cpu);
	fflush(stdout);
	t = cache_tenant_find(c, "one");
	if (!t || t->n_blocks != n_blocks) {
		fprintf(stderr, "bench_recovery: %llu blocks of %llu are there\n",
			t ? (unsigned long long)t->n_blocks : 0, (unsigned long long)n_blocks);
		_exit(1);
	}
	_exit(0); /* as killed: the log stays as it is */
}

/* The kernel takes a while to close what the last start has left open, as it does for every process that is killed. */
static void wait_for_lock(void)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);

	assert(fd >= 0 && flock(fd, LOCK_EX) == 0);
	close(fd);
}

/* By exec, as a daemon starts: with memory that nobody has had before. */
static double start(double *ret_cpu)
{
	char self[PATH_MAX], command[PATH_MAX + 200];
	double took = 0;
	ssize_t n = readlink("/proc/self/exe", self, sizeof(self) - 1);
	FILE *child;

	assert(n > 0);
	self[n] = 0;
	wait_for_lock();
	snprintf(command, sizeof(command), "exec '%s' --start %s %llu", self, path,
		(unsigned long long)n_blocks);
	child = popen(command, "r");
	assert(child);
	if (fscanf(child, "%lf %lf", &took, ret_cpu) != 2 || pclose(child))
		exit(1);
	return took;
}

int main(int argc, char **argv)
{
	double took[TURNS], cpu[TURNS], seconds, slowest;
	uint64_t gib = 64;
	struct stat st;

	if (argc == 4 && !strcmp(argv[1], "--start"))
		return start_here(argv[2], argv[3]);
	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], "--gib"))
			gib = strtoull(argv[i + 1], NULL, 10);
	if (gib < 4) {
		fprintf(stderr, "bench_recovery: --gib must be at least 4\n");
		return 2;
	}
	bytes = gib << 30;
	/* records and summaries take a little of each segment */
	n_blocks = (bytes / SEGMENT - SPARE) * (SEGMENT / PLANE_BYTES - 2) / PLANES;
	payload = aligned_alloc(DISK_PAGE, PLANE_BYTES);
	assert(payload && mkdtemp(dir));
	memset(payload, 0, PLANE_BYTES);
	snprintf(path, sizeof(path), "%s/planes", dir);
	take_note();
	write_log();
	assert(stat(path, &st) == 0);
	for (int i = 0; i < TURNS; i++)
		took[i] = start(&cpu[i]);
	unlink(path);
	rmdir(dir);
	seconds = figure_median(took, TURNS);
	slowest = took[TURNS - 1];
	figure_print(&(struct figure_line){"restart", "recovery_s_per_TB", "s/TB",
			     seconds * TB / (double)bytes, FIGURE_NONE, FIGURE_NONE},
		"scaled from %.3f s (of the processor: %.3f s) for %.3g TB, %llu blocks of %d "
		"planes of 1 MiB in segments of 256 MiB, "
		"median of %d "
		"cold starts, slowest %.3f s; the planes' own pages are holes in the file (%.1f GB "
		"on the "
		"disk), all else is as the daemon wrote it",
		seconds, figure_median(cpu, TURNS), (double)bytes / TB,
		(unsigned long long)n_blocks, PLANES, TURNS, slowest,
		(double)st.st_blocks * 512 / 1e9);
	free(payload);
	return figure_status();
}
