/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/serve/stages.h"
#include "daemon/serve/sweeper.h"

#define MIB (1ull << 20)

/* The table keeps the pointer and never follows it. */
#define LAYOUT ((struct cache_layout *)(uintptr_t)0x1000)

static struct loop *loop;
static struct counters *counters;
static struct account account;
static struct sweeper *sweeper;

static int setup(void **state)
{
	struct counter_scope *scope;

	(void)state;
	if (loop_new(&loop) || counters_new(&counters) ||
		counters_scope(counters, "t", "", &scope) || sweeper_new(loop, &sweeper))
		return -1;
	account_init(&account, "t", scope);
	account_set_limit(&account, ACCOUNT_STAGING, 8 * MIB);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	sweeper_free(sweeper);
	account_fini(&account); /* nothing is charged, nothing waits to be swept */
	counters_free(counters);
	loop_free(loop);
	return 0;
}

static void test_ids(void **state)
{
	uint64_t id[100], off[100], again, off2;
	struct charge c = {0};
	struct stages s;
	struct stage st;

	(void)state;
	stages_init(&s, sweeper);
	assert_int_equal(stages_open(&s, 16 * MIB), 0);
	for (int i = 0; i < 100; i++)
		assert_int_equal(stages_reserve(&s, &account, LAYOUT, STAGE_INPUT_NONE, 4096,
					 &id[i], &off[i]),
			0);
	for (int i = 0; i < 100; i++)
		for (int k = 0; k < i; k++)
			assert_true(id[i] != id[k] && off[i] != off[k]);
	assert_int_equal(account.used[ACCOUNT_STAGING], 100 * 4096);
	assert_false(stages_take(&s, 0, &st, &c));
	assert_false(stages_take(&s, 1u << 20, &st, &c));
	assert_false(stages_take(&s, UINT64_MAX, &st, &c));
	assert_true(stages_take(&s, id[50], &st, &c));
	assert_int_equal(st.offset, off[50]);
	assert_false(stages_take(&s, id[50], &st, &(struct charge){0})); /* once */
	stage_fini(&st, &c, s.staging, sweeper);
	assert_int_equal(account.used[ACCOUNT_STAGING], 99 * 4096);
	/* the slot comes again, the id does not */
	assert_int_equal(
		stages_reserve(&s, &account, LAYOUT, STAGE_INPUT_NONE, 4096, &again, &off2), 0);
	assert_int_not_equal(again, id[50]);
	assert_false(stages_take(&s, id[50], &st, &c));
	stages_fini(&s);
	assert_int_equal(account.used[ACCOUNT_STAGING], 0);
	stages_fini(&s);
}

static void test_quota(void **state)
{
	uint64_t id, off;
	struct stages a, b;

	(void)state;
	stages_init(&a, sweeper);
	stages_init(&b, sweeper);
	assert_int_equal(stages_open(&a, 16 * MIB), 0);
	assert_int_equal(stages_open(&b, 16 * MIB), 0);
	assert_int_equal(
		stages_reserve(&a, &account, LAYOUT, STAGE_INPUT_NONE, 5 * MIB, &id, &off), 0);
	assert_int_equal(stages_reserve(&b, &account, LAYOUT, STAGE_INPUT_NONE, 4 * MIB, &id, &off),
		-EDQUOT);
	assert_int_equal(
		stages_reserve(&b, &account, LAYOUT, STAGE_INPUT_NONE, 3 * MIB, &id, &off), 0);
	stages_fini(&a);
	assert_int_equal(
		stages_reserve(&b, &account, LAYOUT, STAGE_INPUT_NONE, 4 * MIB, &id, &off), 0);
	stages_fini(&b);
}

static uint64_t blocks(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void settle(void)
{
	/* the sweeper's thread may have to wait for a processor */
	for (int i = 0; i < 100 || (i < 3000 && account.used[ACCOUNT_STAGING]); i++)
		assert_int_equal(loop_run_once(loop, 1), 0);
}

/* What is given back is memory, not only a number: large runs on the sweeper's thread, small ones at once. */
static void test_punched(void **state)
{
	static const uint64_t size[] = {4096, 4 * MIB};
	struct charge c = {0};
	struct stages s;
	struct stage st;
	uint64_t id, off;
	uint8_t *map;

	(void)state;
	stages_init(&s, sweeper);
	assert_int_equal(stages_open(&s, 16 * MIB), 0);
	map = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, staging_fd(s.staging), 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(
			stages_reserve(&s, &account, LAYOUT, STAGE_INPUT_NONE, size[i], &id, &off),
			0);
		memset(map + off, 1, size[i]);
		assert_true(blocks(staging_fd(s.staging)) >= size[i]);
		assert_true(stages_take(&s, id, &st, &c));
		stage_fini(&st, &c, s.staging, sweeper);
		assert_int_equal(account.used[ACCOUNT_STAGING], 0); /* at once */
		settle();
		assert_int_equal(blocks(staging_fd(s.staging)), 0);
	}
	/* and all of its address space can be used again */
	for (int i = 0; i < 20; i++) {
		assert_int_equal(
			stages_reserve(&s, &account, LAYOUT, STAGE_INPUT_NONE, 8 * MIB, &id, &off),
			0);
		assert_true(stages_take(&s, id, &st, &c));
		stage_fini(&st, &c, s.staging, sweeper);
		settle();
	}
	munmap(map, 16 * MIB);
	stages_fini(&s);
}

/* The memory is there as long as somebody reads it. */
static void test_referenced(void **state)
{
	struct staging *reader;
	struct stages s;
	uint64_t id, off;
	int fd;

	(void)state;
	stages_init(&s, sweeper);
	assert_int_equal(stages_open(&s, 16 * MIB), 0);
	assert_int_equal(stages_reserve(&s, &account, LAYOUT, STAGE_INPUT_NONE, MIB, &id, &off), 0);
	fd = dup(staging_fd(s.staging));
	assert_int_equal(pwrite(fd, "x", 1, (off_t)off), 1);
	reader = staging_ref(s.staging);
	stages_fini(&s);
	settle();
	assert_int_equal(account.used[ACCOUNT_STAGING], 0);
	assert_true(staging_bytes(reader) >= 16 * MIB);
	assert_true(blocks(fd) > 0);
	sweeper_unref(sweeper, reader, 0, &(struct charge){0});
	close(fd);
}

/* Quota is given back ahead of memory, but only once: who fills and dies in a loop is slowed down to the sweeping. */
static void test_backlog(void **state)
{
	struct charge c = {0};
	struct staging *st;

	(void)state;
	for (int i = 0; i < 2; i++) {
		assert_int_equal(staging_new(MIB, &st), 0);
		assert_int_equal(charge_add(&c, &account, ACCOUNT_STAGING, 6 * MIB), 0);
		sweeper_unref(sweeper, st, 6 * MIB, &c);
		assert_int_equal(c.amount, 0);
		assert_int_equal(account.used[ACCOUNT_STAGING], i == 0 ? 0 : 6 * MIB);
	}
	settle();
	assert_int_equal(account.used[ACCOUNT_STAGING], 0);
}

/* Once is a mistake, all the time is not, and a lot of it is not either. */
static void test_watch(void **state)
{
	const uint64_t second = 1000000000, start = 5 * second;
	struct stages s;
	uint64_t id, off;
	bool enough;
	uint8_t *map, byte;

	(void)state;
	stages_init(&s, sweeper);
	assert_int_equal(stages_watch(&s, start, &enough), 0); /* nothing staged */
	assert_int_equal(stages_open(&s, 64 * MIB), 0);
	map = mmap(NULL, 64 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED, staging_fd(s.staging), 0);
	assert_ptr_not_equal(map, MAP_FAILED);
	assert_int_equal(
		stages_reserve(&s, &account, LAYOUT, STAGE_INPUT_NONE, 8192, &id, &off), 0);
	memset(map + off, 1, 8192);
	assert_int_equal(stages_watch(&s, start, &enough), 0);
	assert_false(enough);
	for (unsigned i = 1; i < 30; i++) { /* now and then */
		map[MIB] = 9;
		assert_int_equal(stages_watch(&s, start + i * 10 * second, &enough), 4096);
		assert_false(enough);
		/* a read through the mapping would make the kernel put a page there again */
		assert_int_equal(pread(staging_fd(s.staging), &byte, 1, MIB), 1);
		assert_int_equal(byte, 0);
		assert_int_equal(stages_watch(&s, start + i * 10 * second, &enough), 0);
	}
	for (unsigned i = 0; i < 9; i++) { /* all the time */
		map[MIB] = 9;
		assert_int_equal(stages_watch(&s, start + (1000 + i) * second, &enough), 4096);
		assert_int_equal(enough, i == 8);
	}
	memset(map + MIB, 9, 17 * MIB); /* a lot */
	assert_int_equal(stages_watch(&s, start + 2000 * second, &enough), 17 * MIB);
	assert_true(enough);
	for (unsigned i = 0; i < 8192; i++)
		assert_int_equal(map[off + i], 1);
	munmap(map, 64 * MIB);
	stages_fini(&s);
	settle();
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_ids, setup, teardown),
		cmocka_unit_test_setup_teardown(test_quota, setup, teardown),
		cmocka_unit_test_setup_teardown(test_punched, setup, teardown),
		cmocka_unit_test_setup_teardown(test_referenced, setup, teardown),
		cmocka_unit_test_setup_teardown(test_backlog, setup, teardown),
		cmocka_unit_test_setup_teardown(test_watch, setup, teardown),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
