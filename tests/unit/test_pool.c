/* SPDX-License-Identifier: Apache-2.0 */
/* The pool's promises: the budget holds, tenants never share, what is counted is what the kernel gave. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/huge.h"
#include "tests/unit/pool_fixture.h"

static struct pool *make(
	const struct tier_ops *tier, uint64_t budget, uint64_t segment, bool prefault)
{
	struct pool_options o = {.tier = tier,
		.budget = budget,
		.segment_bytes = segment,
		.numa_node = -1,
		.prefault = prefault};
	struct pool *p;

	assert_int_equal(pool_new(&o, &p), 0);
	return p;
}

static void test_extents(void **state)
{
	struct pool *p = make(&tier_host, 8 * MIB, 4 * MIB, false);
	struct pool_tenant *t = tenant(p);
	struct pool_segment s;
	struct extent a, b, c = {.segment = 99};

	(void)state;
	assert_int_equal(stat_of(p).segments, 0);
	assert_int_equal(pool_alloc(t, 1, SHIFT, &a), 0);
	assert_int_equal(extent_bytes(&a), PAGE);
	assert_int_equal(a.tier, KVG_TIER_HOST);
	assert_int_equal(pool_alloc(t, PAGE + 1, SHIFT, &b), 0);
	assert_int_equal(b.pages, 2);
	assert_int_equal(a.segment, b.segment);
	assert_int_equal(pool_segment_get(t, a.segment, &s), 0);
	assert_int_equal(s.bytes, 4 * MIB);
	assert_int_equal(s.page_shift, SHIFT);
	assert_ptr_equal(b.addr, (uint8_t *)s.addr + (size_t)b.page * PAGE);
	assert_int_equal(fcntl(s.fd, F_GETFL) & O_ACCMODE, O_RDONLY);
	/* another page size: another segment */
	assert_int_equal(pool_alloc(t, 4096, 12, &c), 0);
	assert_int_not_equal(c.segment, a.segment);
	assert_int_equal(pool_segment_get(t, c.segment, &s), 0);
	assert_int_equal(s.page_shift, 12);
	assert_int_equal(stat_of(p).used, 3 * PAGE + 4096);
	assert_int_equal(stat_of(p).resident, 3 * PAGE + 4096);
	assert_int_equal(kernel_bytes(t), 3 * PAGE + 4096);
	assert_int_equal(pool_alloc(t, 4 * MIB + 1, SHIFT, &c), -EFBIG);
	assert_int_equal(pool_segment_get(t, 1000, &s), -ENOENT);
	pool_release(t, &a);
	assert_int_equal(stat_of(p).used, 2 * PAGE + 4096);
	assert_int_equal(stat_of(p).resident, 3 * PAGE + 4096); /* idle: kept for the next one */
	pool_tenant_free(t);
	assert_int_equal(stat_of(p).used, 0);
	assert_int_equal(stat_of(p).resident, 0);
	assert_int_equal(stat_of(p).segments, 0);
	pool_free(p);
}

static void test_budget(void **state)
{
	struct pool *p = make(&tier_host, 4 * MIB, 8 * MIB, false);
	struct pool_tenant *t = tenant(p);
	struct extent a, b;

	(void)state;
	assert_int_equal(pool_alloc(t, 3 * MIB, SHIFT, &a), 0);
	assert_int_equal(pool_alloc(t, MIB + 1, SHIFT, &b), -ENOSPC);
	assert_int_equal(pool_reserve(p, MIB + 1), -ENOSPC);
	assert_int_equal(pool_reserve(p, UINT64_MAX), -ENOSPC);
	assert_int_equal(pool_reserve(p, MIB), 0);
	assert_int_equal(pool_alloc(t, 1, SHIFT, &b), -ENOSPC); /* the reserve is not his */
	assert_int_equal(pool_alloc_reserved(t, MIB / 2, SHIFT, &b), 0);
	assert_int_equal(stat_of(p).reserved, MIB / 2);
	assert_int_equal(stat_of(p).used, 3 * MIB + MIB / 2);
	pool_release_reserved(t, &b);
	assert_int_equal(stat_of(p).reserved, MIB);
	assert_int_equal(stat_of(p).used, 3 * MIB);
	pool_set_budget(p, MIB); /* less than is used: nothing is taken */
	assert_int_equal(stat_of(p).used, 3 * MIB);
	assert_int_equal(stat_of(p).resident, 3 * MIB); /* but what was idle is given back */
	assert_int_equal(kernel_bytes(t), 3 * MIB);
	assert_int_equal(pool_alloc_reserved(t, MIB, SHIFT, &b), 0); /* what was promised is kept */
	assert_int_equal(pool_alloc(t, 1, SHIFT, &b), -ENOSPC);
	pool_unreserve(p, stat_of(p).reserved);
	pool_set_budget(p, 16 * MIB);
	assert_int_equal(pool_alloc(t, 8 * MIB, SHIFT, &b), 0);
	pool_tenant_free(t);
	pool_free(p);
}

/* Free pages in no run long enough: address space grows, memory does not. */
static void test_fragmentation(void **state)
{
	struct pool *p = make(&tier_host, 4 * MIB, 4 * MIB, false);
	struct pool_tenant *t = tenant(p);
	struct extent e[64], big;

	(void)state;
	for (int i = 0; i < 64; i++)
		assert_int_equal(pool_alloc(t, PAGE, SHIFT, &e[i]), 0);
	for (int i = 0; i < 64; i++)
		memset(e[i].addr, i, PAGE);
	for (int i = 0; i < 64; i += 2)
		pool_release(t, &e[i]);
	assert_int_equal(stat_of(p).used, 2 * MIB);
	assert_int_equal(pool_alloc(t, 2 * MIB, SHIFT, &big), 0);
	assert_int_not_equal(big.segment, e[0].segment);
	memset(big.addr, 99, 2 * MIB);
	assert_int_equal(stat_of(p).segments, 2);
	assert_int_equal(stat_of(p).resident, 4 * MIB);
	assert_int_equal(kernel_bytes(t), 4 * MIB);
	for (int i = 1; i < 64; i += 2)
		for (uint32_t b = 0; b < PAGE; b += 4096)
			assert_int_equal(((uint8_t *)e[i].addr)[b], i);
	pool_release(t, &big);
	for (int i = 1; i < 64; i += 2)
		pool_release(t, &e[i]);
	pool_tenant_free(t);
	pool_free(p);
}

static void test_tenants(void **state)
{
	struct pool *p = make(&tier_host, 4 * MIB, 2 * MIB, false);
	struct pool_tenant *a = tenant(p), *b = tenant(p);
	struct extent ea[2], eb, ec;
	struct pool_segment s;
	struct pool_stat st;

	(void)state;
	assert_int_equal(pool_alloc(a, 2 * MIB, SHIFT, &ea[0]), 0);
	assert_int_equal(pool_alloc(a, MIB, SHIFT, &ea[1]), 0);
	memset(ea[0].addr, 0x55, 2 * MIB);
	assert_int_equal(pool_alloc(b, MIB, SHIFT, &eb), 0);
	assert_int_not_equal(eb.segment, ea[0].segment);
	assert_int_not_equal(eb.segment, ea[1].segment);
	assert_int_equal(pool_segment_get(b, ea[0].segment, &s), -ENOENT); /* not his to see */
	pool_release(a, &ea[0]);
	assert_int_equal(stat_of(p).segments, 3);                /* kept while nobody needs it */
	assert_int_equal(pool_alloc(b, 2 * MIB, SHIFT, &ec), 0); /* now somebody does */
	assert_int_equal(pool_segment_get(a, ea[0].segment, &s), -ENOENT);
	assert_true(ec.segment > eb.segment); /* ids are never used again */
	for (uint64_t i = 0; i < 2 * MIB; i += 512)
		assert_int_equal(((uint8_t *)ec.addr)[i], 0); /* none of a's bytes */
	assert_int_equal(stat_of(p).resident, 4 * MIB);
	pool_tenant_stat(a, &st);
	assert_int_equal(st.used, MIB);
	assert_int_equal(st.resident, MIB);
	assert_int_equal(st.segments, 1);
	assert_int_equal(kernel_bytes(a) + kernel_bytes(b), 4 * MIB);
	pool_tenant_free(a); /* with an extent in it */
	assert_int_equal(stat_of(p).used, 3 * MIB);
	pool_tenant_free(b);
	pool_free(p);
}

/* Whose idle memory goes first: what is in nobody's way, then what is in the shortest runs. */
static void test_who_gives(void **state)
{
	struct pool *p = make(&tier_host, 6 * MIB, 2 * MIB, false);
	struct pool_tenant *a = tenant(p), *b = tenant(p);
	struct extent long_run, kept, e[32], empty, x;
	struct pool_segment s;

	(void)state;
	assert_int_equal(pool_alloc(a, 30 * PAGE, SHIFT, &long_run), 0);
	assert_int_equal(pool_alloc(a, 2 * PAGE, SHIFT, &kept), 0);
	for (int i = 0; i < 32; i++)
		assert_int_equal(pool_alloc(a, PAGE, SHIFT, &e[i]), 0);
	assert_int_equal(pool_alloc(a, 31 * PAGE, SHIFT, &empty), 0);
	assert_int_equal(pool_alloc(a, PAGE, 12, &x), 0);
	pool_release(a, &long_run);
	for (int i = 0; i < 32; i += 2)
		pool_release(a, &e[i]); /* sixteen runs of one page */
	pool_release(a, &empty);
	assert_int_equal(stat_of(p).resident, 6 * MIB);

	assert_int_equal(pool_alloc(b, PAGE, SHIFT, &x), 0);
	assert_int_equal(pool_segment_get(a, empty.segment, &s), 0);
	assert_int_equal(kernel_of(s.fd), 30 * PAGE);
	assert_int_equal(pool_alloc(b, 30 * PAGE, SHIFT, &x), 0);
	assert_int_equal(pool_segment_get(a, empty.segment, &s), -ENOENT); /* nothing left */
	assert_int_equal(pool_alloc(b, 9 * PAGE, SHIFT, &x), 0);
	assert_int_equal(pool_segment_get(a, e[1].segment, &s), 0);
	assert_int_equal(kernel_of(s.fd), (32 - 9) * PAGE);
	assert_int_equal(pool_segment_get(a, kept.segment, &s), 0);
	assert_int_equal(kernel_of(s.fd), 32 * PAGE);
	pool_tenant_free(a);
	pool_tenant_free(b);
	pool_free(p);
}

/* A machine with two huge-page segments reserved, played by ordinary memory. */
static int set_aside_left;

static int open_set_aside(
	const struct tier_ops *t, const struct tier_request *q, struct tier_memory *ret)
{
	int r = tier_host.open(t, q, ret);

	if (r == 0 && q->huge_pages && set_aside_left > 0) {
		set_aside_left--;
		ret->set_aside = true;
	}
	return r;
}

static void close_set_aside(const struct tier_ops *t, struct tier_memory *m)
{
	set_aside_left += m->set_aside;
	tier_host.close(t, m);
}

/* Memory set aside counts while it is used, is never punched, and goes round between tenants in whole segments. */
static void test_set_aside(void **state)
{
	struct tier_ops tier = tier_host;
	struct pool_options o = {.tier = &tier,
		.budget = 4 * MIB,
		.segment_bytes = 2 * MIB,
		.numa_node = -1,
		.huge_pages = true};
	struct pool *p;
	struct pool_tenant *a, *b;
	struct extent e[4], f;
	struct pool_segment s;

	(void)state;
	tier.open = open_set_aside;
	tier.close = close_set_aside;
	set_aside_left = 2;
	assert_int_equal(pool_new(&o, &p), 0);
	a = tenant(p);
	b = tenant(p);
	for (int i = 0; i < 4; i++)
		assert_int_equal(pool_alloc(a, MIB, SHIFT, &e[i]), 0);
	assert_int_equal(set_aside_left, 0);
	assert_int_equal(stat_of(p).resident, 4 * MIB);
	pool_release(a, &e[0]);
	assert_int_equal(stat_of(p).resident, 3 * MIB);
	assert_int_equal(pool_alloc(b, MIB, SHIFT, &f), 0); /* none left: an ordinary segment */
	assert_int_equal(stat_of(p).resident, 4 * MIB);
	assert_int_equal(kernel_bytes(a), 4 * MIB); /* a's idle pages are of no use to b */
	pool_release(b, &f);
	assert_int_equal(stat_of(p).resident, 4 * MIB);
	pool_release(a, &e[1]); /* a segment of a's is empty now */
	assert_int_equal(pool_alloc(b, 2 * MIB, SHIFT, &f), 0);
	assert_int_equal(f.segment != 0 && stat_of(p).used == 4 * MIB, 1);
	assert_int_equal(stat_of(p).resident, 4 * MIB);
	pool_release(b, &f);
	assert_int_equal(pool_alloc(b, MIB, 12, &f),
		0); /* needs a new segment: what a left empty is let go */
	assert_int_equal(pool_segment_get(a, e[0].segment, &s), -ENOENT);
	assert_int_equal(pool_reserve(p, 1), 0); /* closes it */
	pool_unreserve(p, 1);
	assert_int_equal(set_aside_left, 1);
	pool_tenant_free(a);
	pool_tenant_free(b);
	assert_int_equal(stat_of(p).resident, 0);
	pool_free(p);
	assert_int_equal(set_aside_left, 2);
}

/* The fd that was borrowed outlives a worker's giving back, up to the next reservation. */
static void test_borrowed_fd(void **state)
{
	struct pool *p = make(&tier_host, 2 * MIB, 2 * MIB, false);
	struct pool_tenant *a = tenant(p), *b = tenant(p);
	struct pool_segment s;
	struct extent e;

	(void)state;
	assert_int_equal(pool_alloc(a, 2 * MIB, SHIFT, &e), 0);
	assert_int_equal(pool_segment_get(a, e.segment, &s), 0);
	pool_release(a, &e);
	assert_int_equal(pool_alloc(b, 2 * MIB, SHIFT, &e), 0);
	assert_int_equal(fcntl(s.fd, F_GETFD), FD_CLOEXEC);
	assert_int_equal(pool_reserve(p, 1), -ENOSPC);
	assert_int_equal(fcntl(s.fd, F_GETFD), -1);
	pool_tenant_free(a);
	pool_tenant_free(b);
	pool_free(p);
}

/* Whichever operation fails: an error, nothing allocated, and it works the next time. */
static void test_faults(void **state)
{
	(void)state;
	for (long n = 1; n < 40; n++) {
		struct tier_fault f;
		struct pool *p;
		struct pool_tenant *a, *b;
		struct extent e[4], big, x;
		int r, failed = 0;

		tier_fault_init(&f, &tier_host, -ENOMEM);
		p = make(&f.ops, 4 * MIB, 4 * MIB, false);
		a = tenant(p);
		b = tenant(p);
		atomic_store(&f.countdown, n);
		for (int i = 0; i < 4; i++) {
			r = pool_alloc(a, MIB, SHIFT, &e[i]);
			if (r < 0) {
				failed++;
				r = pool_alloc(a, MIB, SHIFT, &e[i]);
			}
			assert_int_equal(r, 0);
		}
		pool_release(a, &e[0]);
		pool_release(a, &e[2]);
		assert_int_equal(pool_reserve(p, 2 * MIB), 0);
		r = pool_alloc_reserved(b, 2 * MIB, SHIFT, &big);
		if (r < 0) {
			failed++;
			assert_int_equal(r, -ENOMEM);
			assert_int_equal(stat_of(p).used, 2 * MIB);
			assert_int_equal(stat_of(p).reserved, 2 * MIB);
			r = pool_alloc_reserved(b, 2 * MIB, SHIFT, &big);
		}
		assert_int_equal(r, 0);
		assert_int_equal(stat_of(p).used, 4 * MIB);
		assert_int_equal(stat_of(p).resident, 4 * MIB);
		assert_int_equal(kernel_bytes(a) + kernel_bytes(b), 4 * MIB);
		assert_int_equal(pool_alloc(a, 1, SHIFT, &x), -ENOSPC);
		assert_int_equal(failed, atomic_load(&f.countdown) == 0);
		if (n == 1)
			assert_int_equal(failed, 1);
		pool_tenant_free(a);
		pool_tenant_free(b);
		pool_free(p);
	}
}

static void wait_resident(struct pool *p, uint64_t bytes)
{
	for (int i = 0; i < 5000 && stat_of(p).resident != bytes; i++)
		usleep(1000);
	assert_int_equal(stat_of(p).resident, bytes);
}

static void test_prefault(void **state)
{
	const uint64_t budget = 12 * MIB - 3 * PAGE;
	struct pool *p = make(&tier_host, budget, 4 * MIB, true);
	struct pool_tenant *a = tenant(p), *b = tenant(p);
	struct extent e, f, g;

	(void)state;
	assert_int_equal(stat_of(p).resident, 0);
	assert_int_equal(pool_alloc(a, MIB, SHIFT, &e), 0);
	memset(e.addr, 7, MIB);
	wait_resident(p, 4 * MIB); /* the rest of the segment */
	assert_int_equal(pool_alloc(a, 2 * MIB, SHIFT, &f), 0);
	wait_resident(p, 8 * MIB); /* it is mostly used: one more, ahead of need */
	assert_int_equal(stat_of(p).segments, 2);
	assert_int_equal(pool_alloc(b, PAGE, SHIFT, &g), 0);
	wait_resident(p, budget); /* never more than the budget */
	usleep(20000);
	assert_int_equal(stat_of(p).resident, budget);
	for (int i = 0; i < 5000 && kernel_bytes(a) + kernel_bytes(b) < budget; i++)
		usleep(1000); /* pages count before they are there */
	assert_int_equal(kernel_bytes(a) + kernel_bytes(b), budget);
	for (uint32_t i = 0; i < MIB; i += 4096)
		assert_int_equal(((uint8_t *)e.addr)[i], 7);
	pool_tenant_free(a);
	pool_tenant_free(b);
	pool_free(p);
}

/* It backs by huge pages, also around what is used already; what the budget has no room for stays small. */
static void test_prefault_huge(void **state)
{
	struct pool_options o = {.tier = &tier_host,
		.budget = 7 * MIB,
		.segment_bytes = 8 * MIB,
		.numa_node = -1,
		.huge_pages = true,
		.prefault = true};
	struct pool_segment s;
	struct pool_tenant *t;
	struct extent e;
	struct pool *p;

	(void)state;
	assert_int_equal(pool_new(&o, &p), 0);
	t = tenant(p);
	assert_int_equal(pool_alloc(t, 3 * PAGE, SHIFT, &e), 0);
	assert_int_equal(pool_segment_get(t, e.segment, &s), 0);
	if (huge_possible()) { /* nobody touches the pages meanwhile: the kernel would leave them as they are */
		wait_resident(p, 7 * MIB);
		for (int i = 0; i < 5000 && kernel_bytes(t) < 7 * MIB; i++)
			usleep(1000);
		assert_int_equal(kernel_bytes(t), 7 * MIB);
		assert_int_equal(huge_mapped(s.addr), 6 * MIB);
	}
	pool_tenant_free(t);
	pool_free(p);
}

/* The thread that backs pages meets errors: it goes on, and no count drifts. */
static void test_prefault_fails(void **state)
{
	(void)state;
	for (long n = 1; n < 10; n++) {
		struct tier_fault f;
		struct pool *p;
		struct pool_tenant *t;
		struct extent e;

		tier_fault_init(&f, &tier_host, -ENOMEM);
		p = make(&f.ops, 8 * MIB, 8 * MIB, true);
		t = tenant(p);
		atomic_store(&f.countdown, n);
		while (pool_alloc(t, PAGE, SHIFT, &e) < 0)
			;
		for (int i = 0; i < 2000 && atomic_load(&f.countdown) > 0; i++)
			usleep(100);
		for (int i = 0; i < 5000 && stat_of(p).resident < 8 * MIB; i++) {
			assert_int_equal(pool_alloc(t, PAGE, SHIFT, &e), 0); /* wakes it */
			pool_release(t, &e);
			usleep(1000);
		}
		assert_int_equal(stat_of(p).resident, 8 * MIB);
		for (int i = 0; i < 5000 && kernel_bytes(t) < 8 * MIB; i++) /* the step in hand */
			usleep(1000);
		assert_int_equal(kernel_bytes(t), 8 * MIB);
		pool_tenant_free(t);
		pool_free(p);
	}
}

/* Stops at once, wherever it stands. */
static void test_prefault_stops(void **state)
{
	(void)state;
	for (int i = 0; i < 30; i++) {
		struct pool *p = make(&tier_host, 512 * MIB, 256 * MIB, true);
		struct pool_tenant *t = tenant(p);
		struct extent e;

		assert_int_equal(pool_alloc(t, PAGE, SHIFT, &e), 0);
		usleep((unsigned)i * 100);
		pool_tenant_free(t);
		assert_int_equal(stat_of(p).resident, 0);
		pool_free(p);
	}
}

/* ---- many threads ---- */

/* What appears where a client reads a hole goes again; what is used, or idle, stays. */
static void test_holes(void **state)
{
	struct pool *p = make(&tier_host, 8 * MIB, 4 * MIB, false);
	struct pool_tenant *t = tenant(p);
	struct pool_segment s;
	struct extent a, b, c;

	(void)state;
	assert_int_equal(pool_alloc(t, PAGE, SHIFT, &a), 0);
	assert_int_equal(pool_alloc(t, PAGE, SHIFT, &b), 0);
	assert_int_equal(pool_alloc(t, PAGE, SHIFT, &c), 0);
	memset(a.addr, 1, PAGE);
	memset(b.addr, 2, PAGE);
	memset(c.addr, 3, PAGE);
	pool_release(t, &b);
	assert_int_equal(pool_segment_get(t, a.segment, &s), 0);
	read_everywhere(&s);
	assert_int_equal(kernel_of(s.fd), 4 * MIB);
	pool_sweep(p);
	assert_int_equal(kernel_of(s.fd), 3 * PAGE);
	assert_int_equal(stat_of(p).resident, 3 * PAGE);
	assert_int_equal(((uint8_t *)a.addr)[PAGE - 1], 1);
	assert_int_equal(((uint8_t *)b.addr)[0], 2);
	assert_int_equal(((uint8_t *)c.addr)[0], 3);
	pool_sweep(p);
	assert_int_equal(kernel_of(s.fd), 3 * PAGE);
	pool_tenant_free(t);
	pool_free(p);
}

struct hammer {
	struct pool *pool;
	struct pool_tenant *tenant;
	pthread_t thread;
	uint8_t mark;
	unsigned shift;
};

static void *hammer(void *arg)
{
	struct hammer *h = arg;
	struct extent live[24];
	uint64_t seed = h->mark;
	int n = 0;

	for (int i = 0; i < 400; i++) {
		uint64_t bytes;

		seed = seed * 6364136223846793005ull + 1442695040888963407ull;
		bytes = 1 + (seed >> 33) % (MIB / 2);
		if ((seed >> 20) % 3 && n < 24) {
			int r;

			if (i & 1) {
				uint64_t room = bytes + (1u << h->shift);

				r = pool_reserve(h->pool, room);
				if (r == 0) {
					assert_int_equal(pool_alloc_reserved(h->tenant, bytes,
								 h->shift, &live[n]),
						0);
					pool_unreserve(h->pool, room - extent_bytes(&live[n]));
				}
			} else {
				r = pool_alloc(h->tenant, bytes, h->shift, &live[n]);
			}
			if (r == 0) {
				memset(live[n].addr, h->mark, extent_bytes(&live[n]));
				n++;
			} else {
				assert_int_equal(r, -ENOSPC);
			}
		} else if (n) {
			struct extent *e = &live[--n];

			for (uint64_t b = 0; b < extent_bytes(e); b += 1024)
				assert_int_equal(((uint8_t *)e->addr)[b], h->mark);
			pool_release(h->tenant, e);
		}
	}
	while (n)
		pool_release(h->tenant, &live[--n]);
	return NULL;
}

static void test_threads(void **state)
{
	struct pool *p = make(&tier_host, 12 * MIB, 2 * MIB, true);
	struct pool_tenant *t[3] = {tenant(p), tenant(p), tenant(p)};
	struct hammer h[4];
	struct pool_stat st;

	(void)state;
	for (int i = 0; i < 4; i++) {
		h[i] = (struct hammer){p, t[i % 3], 0, (uint8_t)(i + 1), i == 2 ? 12 : SHIFT};
		assert_int_equal(pthread_create(&h[i].thread, NULL, hammer, &h[i]), 0);
	}
	for (int i = 0; i < 200; i++) {
		struct pool_segment s;

		pool_stat(p, &st);
		assert_true(st.resident <= 12 * MIB +
				4 * MIB /
					2); /* up to an extent of each thread while it waits for room */
		assert_true(st.used + st.reserved <= 12 * MIB);
		if (pool_segment_get(t[i % 3], (uint32_t)i, &s) == 0)
			read_everywhere(&s);
		pool_sweep(p);
		usleep(500);
	}
	for (int i = 0; i < 4; i++)
		pthread_join(h[i].thread, NULL);
	pool_stat(p, &st);
	assert_int_equal(st.used, 0);
	assert_int_equal(st.reserved, 0);
	for (int i = 0; i < 3; i++)
		pool_tenant_free(t[i]);
	assert_int_equal(stat_of(p).resident, 0);
	pool_free(p);
}

static int open_fds(void)
{
	int n = 0;

	for (int fd = 0; fd < 1024; fd++)
		n += fcntl(fd, F_GETFD) >= 0;
	return n;
}

static int fds_before;

static int count_fds(void **state)
{
	(void)state;
	fds_before = open_fds();
	return 0;
}

static int no_fd_left(void **state)
{
	(void)state;
	return open_fds() == fds_before ? 0 : -1;
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, count_fds, no_fd_left)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_extents),
		TEST(test_budget),
		TEST(test_fragmentation),
		TEST(test_tenants),
		TEST(test_who_gives),
		TEST(test_set_aside),
		TEST(test_borrowed_fd),
		TEST(test_faults),
		TEST(test_prefault),
		TEST(test_prefault_huge),
		TEST(test_prefault_fails),
		TEST(test_prefault_stops),
		TEST(test_holes),
		TEST(test_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
