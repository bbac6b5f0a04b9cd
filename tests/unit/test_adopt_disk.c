/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The same ends with a disk below: memory holds a fraction, the next cache takes over what is in memory and learns from the disk
 * what lies there. While both stay and nothing is purged, every block that was acknowledged is there with all its bytes, whatever was
 * on its way up or down, or being moved, when the last one ended.
 */
#include <assert.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "tests/unit/lives.h"

enum {
	CHAIN = 8,
	SEEDS = 256, /* some 8 MiB */
	MEMORY = 1 << 20,
	SAMPLE = 24
};
#define DISK_ROOMY (64ull << 20)
#define DISK_TIGHT (3ull << 20)
#define DISK_LOG   (256ull << 10) /* a segment */

/* What is known of a block, in progress[1 + seed], whoever lives. */
enum {
	UNKNOWN,
	WHOLE, /* it was acknowledged */
	PART,  /* it was, and then purged to a few planes */
};
static volatile unsigned *known;

static char dir[] = "/tmp/kvgate-test-XXXXXX", path[64];
static const char *const paths[] = {path};
static bool uring;
static bool tight; /* the log gives up what is worth least */

static void with_disk(struct fixture *fixture)
{
	fixture->o.host_bytes = MEMORY;
	fixture->o.disk = (struct cache_disk_options){
		.paths = paths,
		.n_paths = 1,
		.in_flight_bytes = 1 << 20,
		.uring = uring,
	};
}

static void format(void)
{
	char why[200];

	if (disk_format(path, tight ? DISK_TIGHT : DISK_ROOMY, DISK_LOG, true, why, sizeof(why)) <
		0) {
		fprintf(stderr, "%s\n", why);
		abort();
	}
	for (unsigned i = 0; i < SEEDS; i++)
		known[i] = UNKNOWN;
}

static struct kvg_key key[SEEDS];

static void keys(void)
{
	for (unsigned i = 0; i < SEEDS; i++)
		content_key(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, &key[i]);
}

#define MUST(seed, fact)                                                                           \
	do {                                                                                       \
		if (!(fact)) {                                                                     \
			fprintf(stderr, "block %u, known as %u: %s\n", seed, known[seed], #fact);  \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

/* ---- readers ---- */

static void on_arrived(struct cache_fetch *fetch, uint8_t planes)
{
	(void)fetch;
	(void)planes;
}

static void compare(unsigned seed, struct kvg_handle h)
{
	const struct block *b = block_get(f.tenant, h);

	for (uint32_t p = 0; p < b->n_planes; p++)
		if (b->mapped >> p & 1)
			content_check(seed, b->plane[p].extent.addr,
				extent_bytes(&b->plane[p].extent), p);
}

/* Brings all of it up and compares. Is it there? */
static bool fetch(unsigned seed)
{
	const float least = known[seed] == WHOLE ? 1.0f : 0.0f;
	struct cache_fetch fetch = {.arrived = on_arrived};
	struct cache_block_result at;
	int code = cache_acquire(f.tenant, f.layout, &key[seed], tight ? 0.0f : least, &at);

	MUST(seed, code == KVG_CODE_OK || code == KVG_CODE_NOT_FOUND);
	MUST(seed, code == KVG_CODE_OK || tight || known[seed] == UNKNOWN);
	if (code)
		return false;
	cache_fetch(f.tenant, at.handle, 1.0f, &fetch);
	for (unsigned i = 0; fetch.waiting; i++) {
		assert(i < 5000);
		assert(loop_run_once(f.loop, 20) == 0);
	}
	MUST(seed, fetch.error == 0);
	MUST(seed, cache_look(f.tenant, at.handle, &at) == KVG_CODE_OK && at.mapped == at.held);
	compare(seed, at.handle);
	cache_release(f.tenant, at.handle);
	return true;
}

/* What was acknowledged is there; of some of it, or of everything, every byte. */
static void look(bool everything, unsigned *random)
{
	assert(cache_check(f.cache) == 0);
	keys();
	for (unsigned i = 0; i < SEEDS; i++) {
		const struct block *b = block_find(f.tenant, f.layout->id, &key[i]);

		if (tight)
			continue;
		MUST(i, b || known[i] == UNKNOWN);
		MUST(i, known[i] != WHOLE || b->held == b->planes);
		MUST(i, !b || (b->held & (uint8_t) ~(b->mapped | block_below(b))) == 0);
	}
	for (unsigned i = 0; everything && i < SEEDS; i++)
		fetch(i);
	for (unsigned i = 0; !everything && i < SAMPLE; i++)
		fetch((unsigned)rand_r(random) % SEEDS);
	assert(cache_check(f.cache) == 0);
}

/* ---- work ---- */

static void put_chain(unsigned to)
{
	for (unsigned i = to - to % CHAIN; i <= to; i++) {
		int code = put_block(&f, f.layout, i, i % CHAIN ? &key[i - 1] : NULL, NULL);

		if (tight && code == KVG_CODE_NO_PARENT)
			return; /* given up meanwhile */
		MUST(i, code == KVG_CODE_OK || code == KVG_CODE_EXISTS);
		if (code == KVG_CODE_OK)
			known[i] = WHOLE;
		else if (known[i] == UNKNOWN)
			known[i] =
				PART; /* it came before its answer did, or its purge did not come to an end */
	}
}

static void purge(unsigned seed, uint32_t keep_planes)
{
	for (unsigned i = seed; i == seed || i % CHAIN; i++)
		if (!keep_planes)
			known[i] = UNKNOWN;
		else if (i == seed && known[i] == WHOLE)
			known[i] = PART;
	/* what is on its way down stays, and counts as pinned */
	cache_purge(f.tenant, 0, &key[seed], keep_planes, &(struct cache_purge_result){0});
}

static void work_for_ever(void *arg)
{
	unsigned random = *(unsigned *)arg;

	look(rand_r(&random) % 8 == 0, &random);
	for (;; ++*progress) {
		const unsigned i = (unsigned)rand_r(&random) % SEEDS;

		switch (rand_r(&random) % 8) {
		case 0:
			purge(i, 0);
			break;
		case 1:
			purge(i, 1 + (unsigned)rand_r(&random) % 2);
			break;
		case 2:
			evict_round(f.tenant, 200000, 0);
			break;
		case 3:
			fetch(i);
			break;
		default:
			put_chain(i);
		}
		if (rand_r(&random) % 2)
			run_loop(&f, 1);
	}
}

static void look_at_all(void *unused)
{
	(void)unused;
	look(true, NULL);
	put_chain(SEEDS - 1); /* and it goes on */
	for (unsigned i = 0; i < 2000 && f.tenant->n_blocks; i++) {
		cache_purge(f.tenant, 0, NULL, 0, &(struct cache_purge_result){0});
		run_loop(&f, 1); /* what was on its way down has arrived */
	}
	assert(f.tenant->n_blocks == 0 && cache_check(f.cache) == 0);
}

static unsigned rounds(unsigned n)
{
	const char *asked = getenv("KVGATE_CHAOS_ROUNDS");

	return asked ? (unsigned)atoi(asked) : n;
}

static void kill_many(unsigned n, unsigned random)
{
	format();
	for (unsigned i = 0; i < n; i++) {
		unsigned seed = (unsigned)rand_r(&random);

		uring = rand_r(&random) % 2;
		*progress = 0;
		kill_at(start(work_for_ever, &seed), (unsigned)rand_r(&random) % 40,
			(unsigned)rand_r(&random) % 5000);
	}
	live(look_at_all, NULL);
	drop_all();
}

static void test_killed_at_any_moment(void **state)
{
	(void)state;
	kill_many(rounds(100), 5);
}

/* What the log gives up may be missing; what is there has its own bytes. */
static void test_killed_while_the_log_makes_room(void **state)
{
	(void)state;
	tight = true;
	kill_many(rounds(60), 9);
}

/* ---- nobody keeps the memory ---- */

static void put_all(void *unused)
{
	(void)unused;
	look(false, &(unsigned){1});
	for (unsigned i = CHAIN - 1; i < SEEDS; i += CHAIN)
		put_chain(i);
}

static void drained(void *done)
{
	*(bool *)done = true;
}

static void put_and_drain(void *unused)
{
	bool done = false;

	put_all(unused);
	cache_drain(f.cache, loop_now_ns() + 20000000000ull, drained, &done);
	while (!done)
		assert(loop_run_once(f.loop, 20) == 0);
	assert(cache_check(f.cache) == 0);
}

static void test_drained_then_cold(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 2; i++) {
		uring = i;
		format();
		live(put_and_drain, NULL);
		drop_all();
		live(put_all, NULL); /* all of it is there */
		drop_all();
		live(look_at_all, NULL);
		drop_all();
	}
}

/* ---- a parent that is kept, and a child that the disk alone knows ---- */

/* As pressure does. */
static void forget_block(unsigned seed)
{
	struct block *b = block_find(f.tenant, f.layout->id, &key[seed]);

	assert(block_below(b) == b->planes);
	if (b->mapped)
		policy_remove(f.tenant->policy, &b->node, false);
	index_set_planes(f.tenant->index, b->handle.slot, 0, 0);
	if (b->parent)
		b->parent->n_children--;
	block_free(b, false);
}

static void put_and_forget_leaves(void *unused)
{
	put_and_drain(unused);
	for (unsigned i = CHAIN - 1; i < SEEDS; i += CHAIN)
		forget_block(i);
	assert(cache_check(f.cache) == 0);
}

static void test_leaves_on_disk_alone(void **state)
{
	(void)state;
	format();
	live(put_and_forget_leaves, NULL);
	live(look_at_all, NULL);
	drop_all();
}

/* ---- killed ---- */

/* Of what only memory had nothing is left; the rest is right. */
static void test_killed_then_cold(void **state)
{
	unsigned random = 13;

	(void)state;
	format();
	for (unsigned i = 0; i < 30; i++) {
		unsigned seed = (unsigned)rand_r(&random);

		for (unsigned s = 0; s < SEEDS; s++)
			known[s] = UNKNOWN;
		uring = rand_r(&random) % 2;
		*progress = 0;
		kill_at(start(work_for_ever, &seed), (unsigned)rand_r(&random) % 60,
			(unsigned)rand_r(&random) % 5000);
		drop_all();
	}
}

/* ---- purged for good ---- */

static void purged(void *done, const struct cache_purge_result *r)
{
	assert(!r->pinned);
	*(bool *)done = true;
}

/* Ends as soon as it was told that all of it is gone. */
static void put_and_purge(void *unused)
{
	bool done = false;

	put_all(unused);
	assert(cache_purge_start(f.tenant, &(struct cache_purge_request){0}, purged, &done) == 0);
	while (!done)
		assert(loop_run_once(f.loop, 20) == 0);
}

/* Of all that pressure took, a part is put again; then everything is purged. */
static void forget_and_purge(void *again)
{
	bool done = false;

	put_and_drain(NULL);
	for (unsigned i = SEEDS; i-- > 0;)
		forget_block(i);
	for (unsigned i = CHAIN - 1; *(bool *)again && i < SEEDS / 4; i += CHAIN)
		put_chain(i);
	assert(cache_purge_start(f.tenant, &(struct cache_purge_request){0}, purged, &done) == 0);
	while (!done)
		assert(loop_run_once(f.loop, 20) == 0);
}

static void nothing_is_there(void *unused)
{
	(void)unused;
	assert(!f.tenant || !f.tenant->n_blocks);
}

static void test_purged_then_killed(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		uring = i % 2;
		format();
		live(put_and_purge, NULL);
		if (i / 2)
			drop_all();
		live(nothing_is_there, NULL);
		drop_all();
		format();
		live(forget_and_purge, &(bool){i % 2});
		drop_all();
		live(nothing_is_there, NULL);
		drop_all();
	}
}

/* ---- memory that refers to a disk which is not there any more ---- */

/* Nothing is shown that is nowhere: the rest of those blocks can be read, or they are misses. */
static void only_memory_is_there(void *unused)
{
	(void)unused;
	keys();
	for (unsigned n = 0; n < 1000; n++)
		assert(loop_run_once(f.loop, 0) == 0);
	assert(cache_check(f.cache) == 0);
	for (unsigned i = 0; i < SEEDS; i++) {
		const struct block *b = block_find(f.tenant, f.layout->id, &key[i]);

		MUST(i, !b || b->held == b->mapped);
		if (b)
			compare(i, b->handle);
	}
	assert(f.tenant->n_blocks > 0);
}

static void test_another_disk(void **state)
{
	(void)state;
	format();
	live(put_all, NULL);
	format();
	live(only_memory_is_there, NULL);
	drop_all();
}

/* ---- a lock that outlives its holder ---- */

static void has_its_disk(void *wanted)
{
	assert((f.cache->disk != NULL) == *(bool *)wanted);
}

/* As the kernel does with the files of an io_uring, for as long as it likes. */
static void test_lock_of_the_dead(void **state)
{
	int fd, status;
	pid_t pid;

	(void)state;
	format();
	fd = open(path, O_RDWR | O_CLOEXEC);
	pid = fork();
	if (!pid)
		_exit(flock(fd, LOCK_EX | LOCK_NB) <
			0); /* the lock is the file's, which stays open */
	assert(waitpid(pid, &status, 0) == pid && !status);
	live(has_its_disk, &(bool){true});
	assert(flock(fd, LOCK_UN) == 0 && flock(fd, LOCK_EX | LOCK_NB) == 0);
	live(has_its_disk, &(bool){false}); /* this one lives */
	close(fd);
	drop_all();
}

static int roomy(void **state)
{
	(void)state;
	tight = false;
	return 0;
}

static int setup(void **state)
{
	lives_setup(state);
	known = progress + 1;
	begin_with = with_disk;
	assert(mkdtemp(dir));
	snprintf(path, sizeof(path), "%s/planes", dir);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	unlink(path);
	return rmdir(dir);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_killed_at_any_moment),
		cmocka_unit_test_teardown(test_killed_while_the_log_makes_room, roomy),
		cmocka_unit_test(test_drained_then_cold),
		cmocka_unit_test(test_leaves_on_disk_alone),
		cmocka_unit_test(test_killed_then_cold),
		cmocka_unit_test(test_purged_then_killed),
		cmocka_unit_test(test_another_disk),
		cmocka_unit_test(test_lock_of_the_dead),
	};
	return cmocka_run_group_tests(tests, setup, teardown);
}
