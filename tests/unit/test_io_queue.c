/* SPDX-License-Identifier: Apache-2.0 */
/* The rule for what is started next, without a device and without a clock. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <cmocka.h>

#include <errno.h>
#include <string.h>

#include "daemon/io/queue.h"

#define PAGE   4096u
#define MIB    ((uint64_t)1 << 20)
#define SECOND ((uint64_t)1000000000)
#define LIMIT  (16 * MIB)
#define SLOTS  64u
#define N      256u

struct fixture {
	struct io_queue q;
	struct io_request r[N];
	unsigned n;
	uint64_t now;
	struct io_part part[SLOTS + 1];
	unsigned running;
};

static void begin(struct fixture *f)
{
	memset(f, 0, sizeof(*f));
	io_queue_init(&f->q, LIMIT, MIB, SLOTS);
	f->now = SECOND; /* no reads for a long time */
}

static struct io_request *push(struct fixture *f, enum io_op op, uint64_t bytes)
{
	struct io_request *r = &f->r[f->n++];

	assert_true(f->n <= N);
	r->op = op;
	r->bytes = bytes;
	io_queue_push(&f->q, r);
	return r;
}

/* What is started next, NULL: nothing. It runs on. */
static struct io_request *next(struct fixture *f)
{
	const bool ready = io_queue_ready(&f->q, IO_OPS_ALL, f->now);
	struct io_part *p = &f->part[f->running];

	assert_true(f->running <= SLOTS);
	assert_int_equal(io_queue_next(&f->q, IO_OPS_ALL, f->now, p), ready);
	if (!p->request)
		return NULL;
	f->running++;
	return p->request;
}

/* Ends the part that has run longest; true: with its request. */
static bool end(struct fixture *f, int result)
{
	bool whole = io_queue_ended(&f->q, &f->part[0], result, f->now);

	assert_true(f->running > 0);
	f->running--;
	memmove(&f->part[0], &f->part[1], f->running * sizeof(f->part[0]));
	f->part[f->running].request = NULL;
	return whole;
}

static void end_all(struct fixture *f)
{
	while (f->running)
		end(f, 0);
}

static unsigned start_all(struct fixture *f)
{
	unsigned n = 0;

	while (next(f))
		n++;
	return n;
}

static void test_order(void **state)
{
	struct fixture f;
	struct io_request *w, *d, *r1, *r2, *s;

	(void)state;
	begin(&f);
	w = push(&f, IO_WRITE, PAGE);
	d = push(&f, IO_DISCARD, 64 * MIB);
	r1 = push(&f, IO_READ, PAGE);
	r2 = push(&f, IO_READ, PAGE);
	s = push(&f, IO_SYNC, 0);
	assert_ptr_equal(next(&f), s);
	assert_ptr_equal(next(&f), r1);
	assert_ptr_equal(next(&f), r2);
	assert_ptr_equal(next(&f), w); /* the discard waits until nobody reads */
	assert_null(next(&f));
	end_all(&f);
	assert_ptr_equal(next(&f), d);
	assert_int_equal(f.q.n_waiting, 0);
	push(&f, IO_DISCARD, PAGE);
	assert_null(next(&f)); /* one at a time */
	assert_true(end(&f, 0));
	assert_non_null(next(&f));
}

static void test_bytes_in_flight(void **state)
{
	struct fixture f;

	(void)state;
	begin(&f);
	for (unsigned i = 0; i < 40; i++)
		push(&f, IO_WRITE, MIB);
	assert_int_equal(start_all(&f), 16);
	assert_int_equal(f.q.in_flight, LIMIT);
	end(&f, 0);
	assert_int_equal(start_all(&f), 1);
	begin(&f);
	f.q.limit = PAGE; /* one goes, however large */
	push(&f, IO_READ, 3 * MIB);
	push(&f, IO_READ, PAGE);
	assert_int_equal(start_all(&f), 1);
	assert_int_equal(f.q.in_flight, MIB);
	assert_false(end(&f, 0));
}

/* Writes leave most of the room to reads while there are any, and for a moment after. */
static void test_share_of_writes(void **state)
{
	struct fixture f;

	(void)state;
	begin(&f);
	for (unsigned i = 0; i < 40; i++)
		push(&f, IO_WRITE, MIB);
	push(&f, IO_READ, PAGE);
	assert_int_equal(next(&f)->op, IO_READ);
	assert_int_equal(start_all(&f), 4);
	assert_int_equal(f.q.writing, LIMIT / 4);
	assert_true(end(&f, 0)); /* the read */
	assert_int_equal(start_all(&f), 0);
	f.now += SECOND;
	assert_int_equal(start_all(&f), 12);
}

/* Reads without end: a write goes once eight times its bytes were read, and no earlier. */
static void test_writes_do_not_starve(void **state)
{
	struct fixture f;
	unsigned reads = 0, writes = 0;

	(void)state;
	begin(&f);
	for (unsigned i = 0; i < 8; i++)
		push(&f, IO_WRITE, MIB);
	for (unsigned i = 0; i < 100; i++)
		push(&f, IO_READ, MIB);
	while (reads < 64) {
		struct io_request *r = next(&f);

		if (!r) {
			end(&f, 0);
			continue;
		}
		if (r->op == IO_WRITE)
			assert_int_equal(8 * ++writes, reads);
		else
			reads++;
	}
	assert_in_range(writes, 7, 8);
}

/* A discard is not a write's matter, but nor does it wait for ever. */
static void test_discards_do_not_starve(void **state)
{
	struct fixture f;
	unsigned n = 0;

	(void)state;
	begin(&f);
	push(&f, IO_DISCARD, MIB);
	for (unsigned i = 0; i < 200; i++)
		push(&f, IO_READ, MIB);
	for (;;) {
		struct io_request *r = next(&f);

		if (!r)
			end(&f, 0);
		else if (r->op == IO_DISCARD)
			break;
		else
			n++;
	}
	assert_int_equal(n, 8 * LIMIT / MIB);
}

/* One slot is the reads': with all threads in long syncs and writes they would have to wait. */
static void test_slot_for_reads(void **state)
{
	struct fixture f;

	(void)state;
	begin(&f);
	f.q.slots = 4;
	for (unsigned i = 0; i < 3; i++) {
		push(&f, IO_SYNC, 0);
		push(&f, IO_WRITE, PAGE);
	}
	assert_int_equal(start_all(&f), 3);
	push(&f, IO_READ, PAGE);
	push(&f, IO_READ, PAGE);
	assert_int_equal(start_all(&f), 1);
	begin(&f);
	f.q.slots = 1;
	push(&f, IO_SYNC, 0);
	assert_int_equal(start_all(&f), 1);
}

static void test_kinds(void **state)
{
	struct fixture f;
	struct io_part p = {0};

	(void)state;
	begin(&f);
	push(&f, IO_READ, PAGE);
	push(&f, IO_DISCARD, PAGE);
	assert_true(io_queue_next(&f.q, 1u << IO_DISCARD, f.now, &p));
	assert_int_equal(p.request->op, IO_DISCARD);
	assert_false(io_queue_next(&f.q, 1u << IO_DISCARD, f.now, &p));
	assert_true(io_queue_next(&f.q, 1u << IO_READ, f.now, &p));
}

static void test_parts(void **state)
{
	struct fixture f;
	struct io_request *r, *other;

	(void)state;
	begin(&f);
	r = push(&f, IO_READ, 2 * MIB + PAGE);
	other = push(&f, IO_READ, PAGE);
	for (unsigned i = 0; i < 3; i++) {
		assert_ptr_equal(next(&f), r);
		assert_int_equal(f.part[i].at, i * MIB);
		assert_int_equal(f.part[i].bytes, i == 2 ? PAGE : MIB);
	}
	assert_ptr_equal(next(&f), other);
	assert_false(end(&f, 0));
	assert_false(end(&f, -EBADMSG));
	assert_true(end(&f, -EIO));
	assert_int_equal(r->result, -EBADMSG); /* the first */
	assert_true(end(&f, 0));
	assert_int_equal(other->result, 0);
	assert_int_equal(f.q.in_flight + f.q.running + f.q.running_reads, 0);
}

/* After an error the parts that were not started never are, and what is behind them goes on. */
static void test_error_ends_parts(void **state)
{
	struct fixture f;
	struct io_request *r, *other;

	(void)state;
	begin(&f);
	r = push(&f, IO_WRITE, 64 * MIB);
	other = push(&f, IO_WRITE, PAGE);
	assert_int_equal(start_all(&f), 16);
	assert_false(end(&f, -ENOSPC));
	assert_ptr_equal(next(&f), other);
	for (unsigned i = 0; i < 14; i++)
		assert_false(end(&f, 0));
	assert_true(end(&f, 0));
	assert_int_equal(r->result, -ENOSPC);
	assert_true(end(&f, 0));
	assert_int_equal(f.q.in_flight + f.q.writing + f.q.n_waiting + f.q.running, 0);
}

static void test_vectors(void **state)
{
	static char memory[8 * PAGE]; /* addresses only */
	const struct iovec iov[] = {
		{memory, PAGE},
		{memory + 10, 3 * PAGE},
		{memory + 20, 2 * PAGE},
	};
	struct io_request r = {
		.op = IO_READ, .offset = 100 * PAGE, .bytes = 6 * PAGE, .iov = iov, .n_iov = 3};
	struct iovec own[IO_VECTORS_MAX];
	struct io_part p = {.request = &r, .at = 2 * PAGE, .bytes = 3 * PAGE, .iov = own};

	(void)state;
	io_part_vectors(&p);
	assert_int_equal(p.n_iov, 2);
	assert_ptr_equal(own[0].iov_base, memory + 10 + PAGE);
	assert_int_equal(own[0].iov_len, 2 * PAGE);
	assert_ptr_equal(own[1].iov_base, memory + 20);
	assert_int_equal(own[1].iov_len, PAGE);
	assert_int_equal(io_part_offset(&p), 102 * PAGE);
	/* A short one goes on where its last whole page ends. */
	assert_int_equal(io_part_advance(&p, PAGE + 512), 1);
	assert_int_equal(p.done, PAGE);
	assert_int_equal(io_part_offset(&p), 103 * PAGE);
	io_part_vectors(&p);
	assert_int_equal(p.n_iov, 2);
	assert_ptr_equal(own[0].iov_base, memory + 10 + 2 * PAGE);
	assert_int_equal(io_part_advance(&p, 512), -EIO); /* nowhere */
	assert_int_equal(io_part_advance(&p, 0), -EIO);
	assert_int_equal(io_part_advance(&p, -ENXIO), -ENXIO);
	assert_int_equal(io_part_advance(&p, 2 * PAGE), 0);
	assert_int_equal(io_part_advance(&p, 3 * PAGE), -EIO); /* more than there is */
	for (unsigned i = 0; i < 16; i++)
		assert_int_equal(io_part_advance(&p, -EAGAIN), 1);
	assert_int_equal(io_part_advance(&p, -EAGAIN), -EAGAIN);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_order),
		cmocka_unit_test(test_bytes_in_flight),
		cmocka_unit_test(test_share_of_writes),
		cmocka_unit_test(test_writes_do_not_starve),
		cmocka_unit_test(test_discards_do_not_starve),
		cmocka_unit_test(test_slot_for_reads),
		cmocka_unit_test(test_kinds),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_error_ends_parts),
		cmocka_unit_test(test_vectors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
