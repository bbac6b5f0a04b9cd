/* SPDX-License-Identifier: Apache-2.0 */
/* The index: what is in it is found, what left is not, and nobody but the daemon can write it. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/cache/index.h"
#include "proto/plane.h"
#include "tests/lib/huge.h"

#define MIB (1ull << 20)

static struct index_block block_of_key(const struct kvg_key *key)
{
	return (struct index_block){
		.key = *key,
		.layout = 1,
		.parent = KVG_SLOT_NONE,
		.tokens = 256,
		.n_planes = 3,
		.held = 7,
		.mapped = 7,
		.plane =
			{
				{.bytes = 4096,
					.segment = 1,
					.page = 1,
					.pairs = 10,
					.tier = KVG_TIER_HOST,
					.page_shift = 16},
				{.bytes = 8192,
					.segment = 1,
					.page = 2,
					.pairs = 20,
					.tier = KVG_TIER_HOST,
					.page_shift = 16},
				{.bytes = 9000,
					.segment = 2,
					.page = 3,
					.pairs = 30,
					.tier = KVG_TIER_HOST,
					.page_shift = 16},
			},
	};
}

static struct kvg_key key_of(uint64_t i)
{
	struct kvg_key k = {{0}};
	uint64_t h = i * 0x9e3779b97f4a7c15ull;

	memcpy(k.b, &h, 8);
	h = (h ^ i) * 0xbf58476d1ce4e5b9ull;
	memcpy(k.b + 8, &h, 8);
	memcpy(k.b + 16, &i, 8);
	return k;
}

static struct kvg_handle insert(struct index *x, const struct kvg_key *k)
{
	struct index_block b = block_of_key(k);
	struct kvg_handle h;

	assert_int_equal(index_insert(x, &b, &h), 0);
	return h;
}

static void take(struct index *x, uint32_t slot)
{
	index_set_planes(x, slot, 0, 0);
	index_remove(x, slot);
}

static void test_find(void **state)
{
	enum {
		N = 5000
	};
	struct index *x;
	struct kvg_handle h[N];

	(void)state;
	assert_int_equal(index_new(N, &x), 0);
	for (uint64_t i = 0; i < N; i++) {
		struct kvg_key k = key_of(i);

		h[i] = insert(x, &k);
		assert_int_equal(h[i].gen, 1);
	}
	assert_int_equal(index_slots_free(x), 0);
	assert_int_equal(index_check(x), 0);
	for (uint64_t i = 0; i < N; i += 2)
		take(x, h[i].slot);
	assert_int_equal(index_check(x), 0);
	for (uint64_t i = 0; i < N; i++) {
		struct kvg_key k = key_of(i);

		assert_int_equal(index_find(x, 1, &k), i % 2 ? h[i].slot : KVG_SLOT_NONE);
		assert_int_equal(index_find(x, 0, &k), i % 2 ? h[i].slot : KVG_SLOT_NONE);
		assert_int_equal(index_find(x, 2, &k), KVG_SLOT_NONE);
	}
	for (uint64_t i = 0; i < N; i += 2) {
		struct kvg_key k = key_of(i + N);
		struct kvg_handle again = insert(x, &k);

		assert_int_equal(again.gen, 2); /* a slot used again is another handle */
	}
	assert_int_equal(index_check(x), 0);
	index_free(x);
}

static void test_no_slot(void **state)
{
	struct index *x;
	struct kvg_handle h;
	struct kvg_key k;
	struct index_block b;

	(void)state;
	assert_int_equal(index_new(0, &x), -EINVAL);
	assert_int_equal(index_new((1ull << 26) + 1, &x), -EINVAL);
	assert_int_equal(index_new(3, &x), 0);
	for (uint64_t i = 0; i < 3; i++) {
		k = key_of(i);
		insert(x, &k);
	}
	k = key_of(3);
	b = block_of_key(&k);
	assert_int_equal(index_insert(x, &b, &h), -ENOSPC);
	take(x, 1);
	assert_int_equal(index_insert(x, &b, &h), 0);
	assert_int_equal(h.slot, 1);
	index_free(x);
}

/* Many keys of one bucket: they probe on, and a miss stops where nobody ever went on. */
static void test_overflow(void **state)
{
	enum {
		N = 60
	};
	struct index *x;
	struct kvg_handle h[N];
	struct kvg_key k = key_of(5);
	uint64_t head;

	(void)state;
	assert_int_equal(index_new(256, &x), 0);
	memcpy(&head, k.b, 8);
	for (uint64_t i = 0; i < N; i++) {
		k.b[20] = (uint8_t)i;
		h[i] = insert(x, &k);
	}
	assert_int_equal(index_check(x), 0);
	for (uint64_t i = 0; i < N; i++) {
		k.b[20] = (uint8_t)i;
		assert_int_equal(index_find(x, 1, &k), h[i].slot);
	}
	k.b[20] = N;
	assert_int_equal(index_find(x, 1, &k), KVG_SLOT_NONE);
	for (uint64_t i = 0; i < N; i += 3)
		take(x, h[i].slot);
	for (uint64_t i = 0; i < N; i++) {
		k.b[20] = (uint8_t)i;
		assert_int_equal(index_find(x, 1, &k), i % 3 ? h[i].slot : KVG_SLOT_NONE);
	}
	assert_int_equal(index_check(x), 0);
	for (uint64_t i = 0; i < N; i++)
		if (i % 3)
			take(x, h[i].slot);
	assert_int_equal(index_check(x), 0); /* every overflow count is back at zero */
	index_free(x);
}

/* Keys made to begin alike are refused before anybody walks for long; others are not touched by it. */
static void test_flood(void **state)
{
	struct index *x;
	struct kvg_key k = key_of(5), other = key_of(6);
	struct index_block b = block_of_key(&k);
	struct kvg_handle h;
	uint32_t n = 0;

	(void)state;
	assert_int_equal(index_new(1 << 16, &x), 0);
	do {
		memcpy(b.key.b + 20, &n, 4);
		n++;
	} while (index_insert(x, &b, &h) == 0);
	assert_int_equal(n - 1, INDEX_PROBES_MAX * KVG_BUCKET_WAYS);
	insert(x, &other);
	assert_int_not_equal(index_find(x, 1, &other), KVG_SLOT_NONE);
	assert_int_equal(index_find(x, 1, &b.key), KVG_SLOT_NONE);
	assert_int_equal(index_check(x), 0);
	assert_int_equal(index_slots_free(x), (1 << 16) - n);
	index_free(x);
}

static void test_same_key_in_two_layouts(void **state)
{
	struct index *x;
	struct kvg_key k = key_of(1);
	struct index_block b = block_of_key(&k);
	struct kvg_handle one, two;

	(void)state;
	assert_int_equal(index_new(16, &x), 0);
	assert_int_equal(index_insert(x, &b, &one), 0);
	b.layout = 2;
	assert_int_equal(index_insert(x, &b, &two), 0);
	assert_int_equal(index_find(x, 1, &k), one.slot);
	assert_int_equal(index_find(x, 2, &k), two.slot);
	take(x, one.slot);
	assert_int_equal(index_find(x, 1, &k), KVG_SLOT_NONE);
	assert_int_equal(index_find(x, 2, &k), two.slot);
	index_free(x);
}

static void test_planes(void **state)
{
	struct index *x;
	struct kvg_key k = key_of(1);
	struct kvg_handle h;
	const struct kvg_shm_entry *e;

	(void)state;
	assert_int_equal(index_new(16, &x), 0);
	h = insert(x, &k);
	e = index_entry(x, h.slot);
	index_set_planes(x, h.slot, 0, 0);
	assert_int_equal(index_find(x, 1, &k), KVG_SLOT_NONE);
	index_set_planes(x, h.slot, 7, 7); /* put back: the same block under the same generation */
	assert_int_equal(index_find(x, 1, &k), h.slot);
	assert_int_equal(atomic_load(&e->word), kvg_word(h.gen, 1, 7, 7));
	index_set_planes(x, h.slot, 1, 1);
	index_drop_planes(x, h.slot, 6);
	for (uint32_t p = 0; p < 3; p++) {
		assert_int_equal(e->plane[p].tier, p ? KVG_TIER_NONE : KVG_TIER_HOST);
		assert_int_equal(e->plane[p].pairs, 10 * (p + 1));
		assert_int_equal(e->plane[p].check, plane_ref_check(&e->plane[p], p, h.gen));
	}
	index_free(x);
}

/* Run as an unprivileged owner of the index: root may write anything. */
static int owner_tries(void)
{
	struct index *x;
	struct stat st;
	char path[32];
	int fd;

	if (geteuid() == 0 && setresuid(65534, 65534, 65534) < 0)
		return 1;
	if (index_new(1000, &x) < 0)
		return 2;
	fd = index_fd(x);
	if (fstat(fd, &st) < 0 || (st.st_mode & 07777) != 0400)
		return 3;
	if ((fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
		return 4;
	if (mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
		return 5;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (open(path, O_RDWR) >= 0)
		return 6;
	if (ftruncate(fd, 0) == 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_WRITE) == 0)
		return 7;
	if ((fcntl(fd, F_GET_SEALS) & (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) !=
		(F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL))
		return 8;
	index_free(x);
	return 0;
}

static void test_protected(void **state)
{
	pid_t pid = fork();
	int status;

	(void)state;
	if (pid == 0)
		_exit(owner_tries());
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void test_largest(void **state)
{
	struct index *x;
	struct kvg_key k = key_of(1);
	struct stat st;

	(void)state;
	assert_int_equal(index_new(INDEX_SLOTS_MAX, &x), 0);
	insert(x, &k);
	assert_int_equal(index_find(x, 1, &k), 0);
	assert_int_equal(fstat(index_fd(x), &st), 0);
	assert_true(st.st_size > 17ll << 30);
	assert_true(st.st_blocks * 512ll < 16 << 20); /* sparse */
	index_free(x);
}

/* ---- reading without trust ---- */

struct seen {
	unsigned n;
	uint64_t key_sum;
};

static void see(void *userdata, uint32_t slot, uint32_t gen, const struct kvg_shm_entry *e)
{
	struct seen *s = userdata;

	assert_true(gen > 0 && slot < 100 && e->n_planes == 3);
	s->n++;
	s->key_sum += e->key.b[16];
}

static uint64_t backed(const struct index *x)
{
	struct stat st;

	assert_int_equal(fstat(index_fd(x), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* A reader of entries that nobody wrote makes memory appear; it goes again, and what was written stays. */
static void test_sweep(void **state)
{
	enum {
		SLOTS = 1 << 18 /* 64 MiB of entries */
	};
	struct kvg_handle h[100];
	struct index *x;
	uint64_t bytes = 0;
	const volatile uint8_t *map;

	(void)state;
	assert_int_equal(index_new(SLOTS, &x), 0);
	for (uint64_t i = 0; i < 100; i++) {
		const struct kvg_key key = key_of(i);
		const struct index_block b = block_of_key(&key);

		assert_int_equal(index_insert(x, &b, &h[i]), 0);
	}
	bytes = (uint64_t)lseek(index_fd(x), 0, SEEK_END);
	map = mmap(NULL, bytes, PROT_READ, MAP_SHARED, index_fd(x), 0);
	assert_true(map != MAP_FAILED);
	for (uint64_t at = 0; at < bytes; at += 4096)
		(void)map[at];
	assert_true(backed(x) > 64 << 20);
	for (int i = 0; i < 10; i++)
		index_sweep(x);
	assert_true(backed(x) < 16 << 20);
	for (uint64_t i = 0; i < 100; i++) {
		const struct kvg_key key = key_of(i);

		assert_int_equal(index_find(x, 1, &key), h[i].slot);
	}
	assert_int_equal(index_check(x), 0);
	munmap((void *)(uintptr_t)map, bytes);
	index_free(x);
}

static uint64_t kernel_bytes(const struct index *x)
{
	struct stat st;

	assert_int_equal(fstat(index_fd(x), &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

/* Memory for many is had at once, for few it is not; and it is an index as any other. */
static void test_expect(void **state)
{
	enum {
		SLOTS = 1 << 18,
		MANY = 1 << 15
	};
	struct kvg_key k;
	struct index *x;

	(void)state;
	assert_int_equal(index_new(SLOTS, &x), 0);
	index_expect(x, 2);
	assert_true(kernel_bytes(x) <= 4096);
	index_expect(x, MANY);
	if (huge_possible()) /* of buckets and entries those in whole huge pages */
		assert_true(kernel_bytes(x) >= (2 + 6) * MIB);
	assert_true(kernel_bytes(x) <= 4 * MIB + MANY * sizeof(struct kvg_shm_entry) + 4096);
	for (uint64_t i = 0; i < MANY; i++) {
		k = key_of(i);
		assert_int_equal(insert(x, &k).slot, i);
	}
	assert_int_equal(index_check(x), 0);
	index_free(x);
}

static void test_scan(void **state)
{
	enum {
		N = 40
	};
	struct index *x;
	struct index_report report;
	struct kvg_shm_index *head;
	struct kvg_shm_entry *entries;
	struct seen s = {0};
	struct stat st;
	uint8_t *copy;
	size_t bytes;

	(void)state;
	assert_int_equal(index_new(100, &x), 0);
	for (uint64_t i = 0; i < N; i++) {
		struct kvg_key k = key_of(i);

		insert(x, &k);
	}
	take(x, 7);
	assert_int_equal(fstat(index_fd(x), &st), 0);
	bytes = (size_t)st.st_size;
	copy = malloc(bytes);
	assert_int_equal(pread(index_fd(x), copy, bytes, 0), st.st_size);
	head = (struct kvg_shm_index *)copy;
	entries = (struct kvg_shm_entry *)(copy + head->entries_off);

	assert_int_equal(index_scan(copy, bytes, see, &s, &report), 0);
	assert_true(report.live == N - 1 && report.damaged == 0 && s.n == N - 1);
	assert_int_equal(s.key_sum, N * (N - 1) / 2 - 7);
	entries[3].tokens++;            /* a field */
	entries[4].plane[1].page ^= 1;  /* a place */
	entries[5].word += 1ull << 32;  /* another generation */
	entries[6].word |= 1ull << 40;  /* a generation that never was */
	entries[8].word |= 0xff00;      /* planes it never had */
	memset(&entries[9].key, 0, 32); /* a key nobody finds */
	assert_int_equal(index_scan(copy, bytes, NULL, NULL, &report), 0);
	assert_true(report.live == N - 1 - 6 && report.damaged == 6);
	for (size_t i = 0; i < head->n_buckets; i++) /* no way leads anywhere */
		memset(copy + head->buckets_off + i * 64, 0xff, 64);
	assert_int_equal(index_scan(copy, bytes, NULL, NULL, &report), 0);
	assert_int_equal(report.live, 0);
	assert_int_equal(index_scan(copy, bytes - 1, NULL, NULL, &report), -EBADMSG);
	assert_int_equal(index_scan(copy, 10, NULL, NULL, &report), -EBADMSG);
	head->n_slots++;
	assert_int_equal(index_scan(copy, bytes, NULL, NULL, &report), -EBADMSG);
	head->n_slots = 1ull << 40; /* with a checksum that is right */
	head->crc = index_crc(head);
	assert_int_equal(index_scan(copy, bytes, NULL, NULL, &report), -EBADMSG);
	free(copy);
	index_free(x);
}

static void count_claim(void *userdata, const struct index_claim *claim)
{
	assert_true(claim->there == 7 && (claim->shown == 7 || claim->shown == 0));
	++*(unsigned *)userdata;
}

/* An index in which keys begin alike, left by somebody who was killed between two stores; half of it is kept. */
static void test_adopt(void **state)
{
	enum {
		ALIKE = 60
	};
	uint64_t keep[2] = {0};
	struct index *x, *y;
	struct index_adoption report;
	struct kvg_handle fresh;
	struct kvg_key key;
	unsigned n = 0;
	uint32_t epoch;

	(void)state;
	assert_int_equal(index_new(100, &x), 0);
	for (uint32_t i = 0; i < ALIKE; i++) {
		key = (struct kvg_key){.b = {[8] = (uint8_t)(i + 1)}};
		insert(x, &key);
		if (i % 2)
			keep[0] |= 1ull << i;
	}
	index_set_planes(x, 7, 0, 0); /* hidden, and no more */
	index_set_planes(x, 8, 0, 0);
	index_remove(x, 8);
	((struct kvg_shm_entry *)(uintptr_t)index_entry(x, 8))->word |= KVG_ENTRY_LIVE |
		0x0707; /* being inserted: no way leads to it */
	((struct kvg_shm_entry *)(uintptr_t)index_entry(x, 10))->tokens++;

	assert_int_equal(index_adopt(dup(index_kept_fd(x)), &y), 0);
	assert_int_equal(index_slots_used_end(y), ALIKE);
	epoch = *(const uint32_t *)(index_instance(y) + 20);
	index_adopt_scan(y, count_claim, &n, &report);
	assert_true(report.unfinished == 1 && report.damaged == 1);
	assert_true(report.claims == ALIKE - 2 && n == report.claims);
	assert_int_equal(index_adopt_finish(y, keep), 0);
	assert_int_equal(*(const uint32_t *)(index_instance(y) + 20), epoch + 1);
	assert_int_equal(index_check(y), 0);
	for (uint32_t i = 0; i < ALIKE; i++) {
		key = (struct kvg_key){.b = {[8] = (uint8_t)(i + 1)}};
		assert_int_equal(
			index_find(y, 1, &key), i % 2 && i != 7 ? i : (uint32_t)KVG_SLOT_NONE);
	}
	assert_int_equal(index_slots_free(y), 100 - ALIKE / 2 - 1); /* a damaged slot rests */
	key = (struct kvg_key){.b = {[8] = 200}};
	fresh = insert(y, &key);
	assert_true(fresh.slot == 0 && fresh.gen == 2); /* its generations go on */
	index_free(y);
	index_free(x);
}

static void test_adopt_what_is_none(void **state)
{
	struct index *x, *y;
	struct kvg_shm_index *head;
	int fd;

	(void)state;
	assert_int_equal(index_new(10, &x), 0);
	assert_int_equal(index_adopt(index_fd(x), &y), -EBADMSG); /* cannot be written */
	fd = memfd_create("x", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert_int_equal(ftruncate(fd, 1 << 20), 0);
	assert_int_equal(index_adopt(fd, &y), -EBADMSG); /* could shrink under us */
	assert_int_equal(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
	assert_int_equal(index_adopt(fd, &y), -EBADMSG); /* zeros */
	close(fd);
	head = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, index_kept_fd(x), 0);
	assert_ptr_not_equal(head, MAP_FAILED);
	head->version++;
	head->crc = index_crc(head);
	assert_int_equal(index_adopt(index_kept_fd(x), &y), -EPROTONOSUPPORT);
	munmap(head, 4096);
	index_free(x);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_find),
		cmocka_unit_test(test_no_slot),
		cmocka_unit_test(test_overflow),
		cmocka_unit_test(test_flood),
		cmocka_unit_test(test_same_key_in_two_layouts),
		cmocka_unit_test(test_planes),
		cmocka_unit_test(test_protected),
		cmocka_unit_test(test_largest),
		cmocka_unit_test(test_sweep),
		cmocka_unit_test(test_expect),
		cmocka_unit_test(test_scan),
		cmocka_unit_test(test_adopt),
		cmocka_unit_test(test_adopt_what_is_none),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
