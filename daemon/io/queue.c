/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A list for each kind of request, and one rule for what comes next:
 *
 *	syncs	at once: they carry no bytes, and somebody waits for all that was written
 *	reads	before everything else, while they fit into the bytes in flight
 *	discards	one at a time, and while nobody reads: a file system may stop all else meanwhile
 *	writes	what is left. While reads are in flight, or were a moment ago, a quarter of the bytes in flight at most,
 *		so that a read does not find the device busy for long
 *
 * Who has waited while many times his own bytes were read goes before the reads, once: nobody starves. One slot is left to
 * reads, whatever else there is.
 *
 * A request is started in parts. A large one would otherwise stand in the device's own queue as a whole, and everything
 * that comes later behind it. Parts are started in order, so only the first of a list can have been started in part.
 */
#include "daemon/io/queue.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>

#define ALIGNED         4096u
#define TRIES_MAX       16u       /* of a part that gets nowhere with EAGAIN or EINTR */
#define READS_RECENT_NS 20000000u /* some times longer than a read takes behind others */
#define WRITING_SHARE   4u /* of the bytes in flight: so many times less, while there are reads */
#define PASSED_MAX      8u /* bytes of reads that go before each byte of a write */
#define NONE            IO_OPS

void io_list_init(struct io_list *l)
{
	l->first = NULL;
	l->end = &l->first;
}

void io_list_push(struct io_list *l, struct io_request *r)
{
	r->next = NULL;
	*l->end = r;
	l->end = &r->next;
}

struct io_request *io_list_pop(struct io_list *l)
{
	struct io_request *r = l->first;

	if (r) {
		l->first = r->next;
		if (!l->first)
			l->end = &l->first;
	}
	return r;
}

void io_queue_init(struct io_queue *q, uint64_t limit, uint64_t part_bytes, unsigned slots)
{
	assert(slots && part_bytes && part_bytes % ALIGNED == 0);
	*q = (struct io_queue){.limit = limit, .part_bytes = part_bytes, .slots = slots};
	for (unsigned i = 0; i < IO_OPS; i++)
		io_list_init(&q->waiting[i]);
}

void io_queue_push(struct io_queue *q, struct io_request *r)
{
	assert(r->op < IO_OPS);
	r->result = 0;
	r->progress = 0;
	r->parts = 0;
	q->n_waiting++;
	io_list_push(&q->waiting[r->op], r);
}

static bool moves_bytes(const struct io_request *r)
{
	return r->op == IO_READ || r->op == IO_WRITE;
}

/* Of the part that would be next; bytes in flight, which those of a discard are not. */
static uint64_t next_bytes(const struct io_queue *q, const struct io_request *r)
{
	uint64_t left = r->bytes - r->progress;

	if (!moves_bytes(r))
		return 0;
	return left < q->part_bytes ? left : q->part_bytes;
}

static bool fits(const struct io_queue *q, uint64_t bytes)
{
	return !q->in_flight || (q->in_flight <= q->limit && bytes <= q->limit - q->in_flight);
}

static bool has_slot(const struct io_queue *q, bool read)
{
	unsigned others = q->running - q->running_reads;

	return q->running < q->slots && (read || q->slots == 1 || others + 1 < q->slots);
}

static bool write_fits(const struct io_queue *q, uint64_t bytes, uint64_t now)
{
	bool reads = q->running_reads || now - q->last_read_ns < READS_RECENT_NS;
	uint64_t share = reads ? q->limit / WRITING_SHARE : q->limit;

	return fits(q, bytes) &&
		(!q->writing || (q->writing <= share && bytes <= share - q->writing));
}

static unsigned choose(const struct io_queue *q, unsigned ops, uint64_t now)
{
	const struct io_request *first[IO_OPS], *r;

	for (unsigned i = 0; i < IO_OPS; i++)
		first[i] = ops & 1u << i ? q->waiting[i].first : NULL;
	if (first[IO_SYNC] && has_slot(q, false))
		return IO_SYNC;
	r = first[IO_DISCARD] && !q->discarding ? first[IO_DISCARD] : first[IO_WRITE];
	if (first[IO_READ] &&
		!(r && has_slot(q, false) &&
			q->passed / PASSED_MAX >= (moves_bytes(r) ? next_bytes(q, r) : q->limit)))
		return has_slot(q, true) && fits(q, next_bytes(q, first[IO_READ])) ? IO_READ : NONE;
	if (!r || !has_slot(q, false))
		return NONE;
	if (r->op == IO_DISCARD && (!q->running_reads || q->passed / PASSED_MAX >= q->limit))
		return IO_DISCARD;
	r = first[IO_WRITE];
	return r && write_fits(q, next_bytes(q, r), now) ? IO_WRITE : NONE;
}

bool io_queue_ready(const struct io_queue *q, unsigned ops, uint64_t now_ns)
{
	return choose(q, ops, now_ns) != NONE;
}

static void count_start(struct io_queue *q, const struct io_part *p, uint64_t now)
{
	enum io_op op = p->request->op;

	q->running++;
	q->discarding += op == IO_DISCARD;
	if (!moves_bytes(p->request))
		return;
	q->in_flight += p->bytes;
	if (op == IO_WRITE) {
		q->writing += p->bytes;
		q->passed = 0;
		return;
	}
	q->running_reads++;
	q->last_read_ns = now;
	if (q->waiting[IO_WRITE].first || q->waiting[IO_DISCARD].first)
		q->passed += p->bytes;
}

bool io_queue_next(struct io_queue *q, unsigned ops, uint64_t now_ns, struct io_part *ret)
{
	unsigned op = choose(q, ops, now_ns);
	struct io_request *r;

	if (op == NONE)
		return false;
	r = q->waiting[op].first;
	ret->request = r;
	ret->at = r->progress;
	ret->bytes = moves_bytes(r) ? next_bytes(q, r) : r->bytes;
	ret->done = 0;
	ret->tries = 0;
	r->parts++;
	r->progress += ret->bytes;
	if (r->progress == r->bytes || !moves_bytes(r)) {
		io_list_pop(&q->waiting[op]);
		q->n_waiting--;
	}
	count_start(q, ret, now_ns);
	return true;
}

bool io_queue_ended(struct io_queue *q, struct io_part *p, int result, uint64_t now_ns)
{
	struct io_request *r = p->request;

	q->running--;
	q->discarding -= r->op == IO_DISCARD;
	if (moves_bytes(r))
		q->in_flight -= p->bytes;
	if (r->op == IO_WRITE)
		q->writing -= p->bytes;
	if (r->op == IO_READ) {
		q->running_reads--;
		q->last_read_ns = now_ns;
	}
	p->request = NULL;
	r->parts--;
	if (result < 0 && r->result == 0) {
		r->result = result;
		if (q->waiting[r->op].first == r) { /* the rest of it need not be tried */
			io_list_pop(&q->waiting[r->op]);
			q->n_waiting--;
		}
	}
	return !r->parts && (r->result < 0 || !moves_bytes(r) || r->progress == r->bytes);
}

void io_part_vectors(struct io_part *p)
{
	const struct io_request *r = p->request;
	uint64_t skip = p->at + p->done, left = p->bytes - p->done;

	p->n_iov = 0;
	for (unsigned i = 0; i < r->n_iov && left; i++) {
		uint64_t n = r->iov[i].iov_len;

		if (n <= skip) {
			skip -= n;
			continue;
		}
		n = n - skip < left ? n - skip : left;
		p->iov[p->n_iov++] = (struct iovec){(char *)r->iov[i].iov_base + skip, n};
		skip = 0;
		left -= n;
	}
	assert(!left);
}

uint64_t io_part_offset(const struct io_part *p)
{
	return p->request->offset + p->at + p->done;
}

/* What does not end at a page's end is done again from its beginning: O_DIRECT cannot go on anywhere else. */
int io_part_advance(struct io_part *p, int64_t n)
{
	uint64_t done;

	if (n == -EINTR || n == -EAGAIN)
		return p->tries++ < TRIES_MAX ? 1 : (int)n;
	if (n < 0)
		return (int)n;
	if (!moves_bytes(p->request))
		return 0;
	if ((uint64_t)n > p->bytes - p->done)
		return -EIO;
	done = p->done + (uint64_t)n;
	if (done == p->bytes)
		return 0;
	done -= done % ALIGNED;
	if (done == p->done)
		return -EIO; /* the end of the file, or a device that does not do pages */
	p->done = done;
	p->tries = 0;
	return 1;
}
