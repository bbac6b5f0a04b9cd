/* SPDX-License-Identifier: Apache-2.0 */
/* A host segment as its client sees it - readable, never writable - and what the kernel has given for it. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/mem/bitmap.h"
#include "daemon/mem/memfd.h"
#include "daemon/mem/segment.h"
#include "tests/lib/huge.h"

#define BYTES  (8ull << 20)
#define PAGE   65536u
#define NOBODY 65534

static struct segment *make(const struct tier_ops *tier, bool huge)
{
	struct tier_request q = {.bytes = BYTES, .numa_node = -1, .huge_pages = huge};
	struct segment *s;

	assert_int_equal(segment_new(tier, &q, 16, 5, &s), 0);
	return s;
}

static uint64_t kernel_bytes(int fd)
{
	struct stat st;

	assert_int_equal(fstat(fd, &st), 0);
	return (uint64_t)st.st_blocks * 512;
}

static void test_seals_and_mode(void **state)
{
	struct segment *s = make(&tier_host, false);
	int want = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL;
	int fds[] = {s->memory.fd, s->memory.client_fd};
	struct stat st;

	(void)state;
	assert_int_equal(fcntl(fds[0], F_GET_SEALS) & want, want);
	assert_int_equal(fcntl(fds[0], F_GET_SEALS) & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), 0);
	assert_int_equal(ftruncate(fds[0], BYTES / 2), -1);
	assert_int_equal(ftruncate(fds[0], BYTES * 2), -1);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(fstat(fds[i], &st), 0);
		assert_int_equal(st.st_mode & 07777, 0400);
		assert_int_equal(st.st_uid, geteuid());
		assert_int_equal(st.st_size, BYTES);
		assert_int_equal(fcntl(fds[i], F_GETFD), FD_CLOEXEC);
	}
	assert_int_equal(fcntl(fds[0], F_GETFL) & O_ACCMODE, O_RDWR);
	assert_int_equal(fcntl(fds[1], F_GETFL) & O_ACCMODE, O_RDONLY);
	segment_free(s);
}

/* What a client may try with the fd it was given; run as another user where we can be one. */
static int attack(int fd)
{
	const bool other = geteuid() == 0;
	char path[64];
	uint8_t *map;

	if (other && (setgid(NOBODY) || setuid(NOBODY)))
		return 1;
	if (mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) != MAP_FAILED)
		return 2;
	map = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);
	if (map == MAP_FAILED || map[0] != 77)
		return 3;
	if (mprotect(map, BYTES, PROT_READ | PROT_WRITE) == 0)
		return 4;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	if (open(path, O_RDWR) >= 0 || open(path, O_WRONLY) >= 0)
		return 5;
	/* who owns the file may change its mode: only another user is refused */
	if ((other && fchmod(fd, 0666) == 0) || fchown(fd, NOBODY, NOBODY) == 0)
		return 6;
	if (write(fd, "x", 1) >= 0 || ftruncate(fd, 0) == 0)
		return 7;
	if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0)
		return 8;
	if (madvise(map, BYTES, MADV_REMOVE) == 0)
		return 9;
	return map[0] == 77 ? 0 : 10;
}

static void test_clients_cannot_write(void **state)
{
	struct segment *s = make(&tier_host, false);
	int status;
	pid_t pid;

	(void)state;
	((uint8_t *)s->memory.addr)[0] = 77;
	pid = fork();
	if (pid == 0)
		_exit(attack(s->memory.client_fd));
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
	pid = fork();
	if (pid == 0) { /* a plain store */
		volatile uint8_t *map =
			mmap(NULL, BYTES, PROT_READ, MAP_SHARED, s->memory.client_fd, 0);

		signal(SIGSEGV, SIG_DFL);
		map[0] = 1;
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status));
	assert_int_equal(((uint8_t *)s->memory.addr)[0], 77);
	segment_free(s);
}

static void test_unprotected_is_an_error(void **state)
{
	int fd = -7;

	(void)state;
	/* a mode that does not let the owner read: the second description must be refused, not faked */
	if (geteuid() != 0) {
		int rw;

		assert_int_equal(memfd_new("t", 4096, 0, 0, &rw), 0);
		assert_true(memfd_read_only(rw, &fd) < 0);
		close(rw);
	}
	assert_true(memfd_read_only(-1, &fd) < 0);
	assert_int_equal(fd, -7);
	assert_true(memfd_new("t", 4096, 0400, 0x40000000u, &fd) < 0);
	assert_int_equal(fd, -7);
}

/* Random use; after each step the kernel's count is ours. */
static void test_backed_is_what_the_kernel_gave(void **state)
{
	struct segment *s = make(&tier_host, false);
	struct {
		uint32_t page, pages;
	} live[128];
	uint32_t n = 0, seed = 5;

	(void)state;
	assert_int_equal(kernel_bytes(s->memory.fd), 0);
	for (int i = 0; i < 2000; i++) {
		struct segment_part part, all = segment_all(s);
		uint32_t want, page;

		seed = seed * 1103515245 + 12345;
		want = 1 + (seed >> 16) % 9;
		switch ((seed >> 8) % 4) {
		case 0:
		case 1:
			if (n < 128 && arena_alloc(&s->arena, want, &page) == 0) {
				segment_cold(s, page, want, &part);
				if (part.pages) {
					/* no more than has to be */
					assert_false(bitmap_test(s->backed, part.page));
					assert_false(
						bitmap_test(s->backed, part.page + part.pages - 1));
					segment_mark_backed(s, &part);
					assert_int_equal(segment_back(s, &part), 0);
				}
				memset((uint8_t *)s->memory.addr + (size_t)page * PAGE, 1,
					(size_t)want * PAGE);
				live[n].page = page;
				live[n++].pages = want;
			}
			break;
		case 2:
			if (n) {
				n--;
				arena_free(&s->arena, live[n].page, live[n].pages);
			}
			break;
		default: {
			uint32_t idle = segment_idle(s), expect = idle < want ? 0 : idle - want;

			if (seed >> 24 & 1) {
				segment_next_cold(s, want, &part);
				if (part.pages) {
					assert_true(part.pages <= want);
					segment_mark_backed(s, &part);
					assert_int_equal(segment_back(s, &part), 0);
				}
			} else {
				assert_int_equal(segment_punch_idle(s, &all, want), 0);
				assert_int_equal(segment_idle(s), expect);
			}
		}
		}
		assert_int_equal(kernel_bytes(s->memory.fd), (uint64_t)s->n_backed * PAGE);
		assert_int_equal(bitmap_count(s->backed, 0, s->arena.pages), s->n_backed);
	}
	for (uint32_t i = 0; i < n; i++) /* nobody's bytes were touched */
		for (size_t b = 0; b < (size_t)live[i].pages * PAGE; b += 4096)
			assert_int_equal(
				((uint8_t *)s->memory.addr)[(size_t)live[i].page * PAGE + b], 1);
	segment_free(s);
}

/* What has to be backed of a run: from its first cold page to its last. */
static void test_cold(void **state)
{
	struct segment *s = make(&tier_host, false);
	struct segment_part part = {.page = 70, .pages = 3};

	(void)state;
	segment_mark_backed(s, &part);
	segment_cold(s, 70, 3, &part);
	assert_int_equal(part.pages, 0);
	segment_cold(s, 60, 12, &part); /* backed at its end */
	assert_int_equal(part.page, 60);
	assert_int_equal(part.pages, 10);
	segment_cold(s, 72, 9, &part); /* at its front */
	assert_int_equal(part.page, 73);
	assert_int_equal(part.pages, 8);
	segment_cold(s, 60, 20, &part); /* in the middle */
	assert_int_equal(part.page, 60);
	assert_int_equal(part.pages, 20);
	segment_next_cold(s, 1000, &part); /* up to what is backed */
	assert_int_equal(part.page, 0);
	assert_int_equal(part.pages, 70);
	segment_free(s);
}

/* Memory given back is gone even where a client still has it mapped, and nobody sees the old bytes. */
static void test_retired(void **state)
{
	struct segment *s = make(&tier_host, false);
	int fd = dup(s->memory.client_fd);
	const uint8_t *map = mmap(NULL, BYTES, PROT_READ, MAP_SHARED, fd, 0);

	(void)state;
	memset(s->memory.addr, 9, BYTES);
	assert_int_equal(map[12345], 9);
	segment_retire(s);
	assert_null(s->memory.addr);
	assert_int_equal(kernel_bytes(fd), 0);
	assert_int_equal(fcntl(s->memory.client_fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(map[12345], 0);
	segment_free(s);
	munmap((void *)(uintptr_t)map, BYTES);
	close(fd);
}

/* None reserved or not allowed: ordinary pages serve. */
static void test_huge_pages_are_a_wish(void **state)
{
	struct segment *s = make(&tier_host, true);
	struct segment_part part = {.page = 1, .pages = 3};

	(void)state;
	segment_mark_backed(s, &part);
	assert_int_equal(segment_back(s, &part), 0);
	memset((uint8_t *)s->memory.addr + PAGE, 1, 3 * PAGE);
	segment_free(s);
}

/* Huge pages are asked for where a whole one is backed; a punch takes what it says, and only that. */
static void test_huge_pages(void **state)
{
	struct segment *s = make(&tier_host, true);
	struct segment_part part = {.page = 31, .pages = 66}, within = {.page = 40, .pages = 2};
	const uint8_t *p = s->memory.addr;

	(void)state;
	if (!huge_possible() || s->memory.set_aside) {
		segment_free(s);
		skip();
	}
	segment_mark_backed(s, &part);
	assert_int_equal(segment_back(s, &part), 0);
	assert_int_equal(huge_mapped(p), 2 * HUGE_BYTES);
	assert_int_equal(kernel_bytes(s->memory.fd), 66 * PAGE);
	memset((uint8_t *)s->memory.addr + 31 * PAGE, 1, 66 * PAGE);
	segment_unback(s, &within);
	assert_int_equal(kernel_bytes(s->memory.fd), 64 * PAGE);
	assert_int_equal(p[40 * PAGE - 1], 1);
	assert_int_equal(p[40 * PAGE], 0);
	assert_int_equal(p[42 * PAGE - 1], 0);
	assert_int_equal(p[42 * PAGE], 1);
	assert_int_equal(huge_mapped(p), HUGE_BYTES);
	/* what is used there keeps its contents when the huge page is made whole again */
	segment_next_cold(s, 1, &part);
	assert_int_equal(part.page, 0); /* thirty-one are missing there */
	assert_int_equal(part.pages, 1);
	segment_next_cold(s, 31, &part);
	assert_int_equal(part.pages, 32);
	segment_mark_backed(s, &part);
	assert_int_equal(segment_back(s, &part), 0);
	segment_next_cold(s, 2, &part);
	assert_int_equal(part.page, 32);
	assert_int_equal(part.pages, 32);
	segment_mark_backed(s, &part);
	assert_int_equal(segment_back(s, &part), 0);
	assert_int_equal(huge_mapped(p), 3 * HUGE_BYTES);
	assert_int_equal(p[40 * PAGE - 1], 1);
	assert_int_equal(p[40 * PAGE], 0);
	assert_int_equal(p[42 * PAGE], 1);
	segment_free(s);
}

static void test_numa_node(void **state)
{
	struct tier_request q = {.bytes = BYTES, .numa_node = 0};
	struct tier_memory m;
	int r = tier_host.open(&tier_host, &q, &m);

	(void)state;
	assert_true(r == 0 || r == -ENOSYS ||
		r == -EPERM); /* containers may forbid it: then it is an error */
	if (r == 0)
		tier_host.close(&tier_host, &m);
	q.numa_node = 1000; /* no such node */
	assert_true(tier_host.open(&tier_host, &q, &m) < 0);
}

static int open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static void test_no_fd_leaks(void **state)
{
	struct tier_fault f;
	struct tier_request q = {.bytes = BYTES, .numa_node = 1000};
	int before = open_fds();
	struct segment *s;

	(void)state;
	tier_fault_init(&f, &tier_host, -EIO);
	for (int i = 0; i < 20; i++) {
		segment_free(make(&tier_host, i & 1));
		atomic_store(&f.countdown, 1);
		assert_int_equal(segment_new(&f.ops, &q, 16, 1, &s), -EIO);
		assert_true(segment_new(&tier_host, &q, 16, 1, &s) <
			0); /* fails after the fds were made */
	}
	assert_int_equal(open_fds(), before);
}

static void test_fault(void **state)
{
	struct segment_part part = {.page = 0, .pages = 4}, all;
	struct tier_fault f;
	struct segment *s;

	(void)state;
	tier_fault_init(&f, &tier_host, -ENOMEM);
	s = make(&f.ops, false);
	all = segment_all(s);
	atomic_store(&f.countdown, 2);
	segment_mark_backed(s, &part);
	assert_int_equal(segment_back(s, &part), 0);
	assert_int_equal(segment_punch_idle(s, &all, 4), -ENOMEM);
	assert_int_equal(s->n_backed, 4);
	assert_int_equal(segment_punch_idle(s, &all, 3), 0); /* once only */
	assert_int_equal(s->n_backed, 1);
	assert_true(bitmap_test(s->backed, 0)); /* from the end */
	segment_free(s);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_seals_and_mode),
		cmocka_unit_test(test_clients_cannot_write),
		cmocka_unit_test(test_unprotected_is_an_error),
		cmocka_unit_test(test_backed_is_what_the_kernel_gave),
		cmocka_unit_test(test_cold),
		cmocka_unit_test(test_retired),
		cmocka_unit_test(test_huge_pages_are_a_wish),
		cmocka_unit_test(test_huge_pages),
		cmocka_unit_test(test_numa_node),
		cmocka_unit_test(test_no_fd_leaks),
		cmocka_unit_test(test_fault),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
