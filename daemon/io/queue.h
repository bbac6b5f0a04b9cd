/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue: which request of a device is started next, and as how many parts; the same for every engine.
 * Thread: any, one at a time. Locks: the caller's, except for parts: who took one has it for himself. Blocks: never.
 * Errors: none of its own.
 */
#ifndef KVGATE_DAEMON_IO_QUEUE_H
#define KVGATE_DAEMON_IO_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/io/io.h"

#define IO_OPS     4u
#define IO_OPS_ALL ((1u << IO_OPS) - 1)

struct io_list {
	struct io_request *first, **end;
};
void io_list_init(struct io_list *l);
void io_list_push(struct io_list *l, struct io_request *r);
struct io_request *io_list_pop(struct io_list *l); /* NULL: empty */

struct io_queue {
	struct io_list waiting[IO_OPS];
	uint64_t limit, part_bytes; /* in flight, and of one part */
	unsigned slots;             /* parts in flight */
	uint64_t in_flight, writing;
	unsigned running, running_reads, discarding;
	uint64_t last_read_ns;
	uint64_t passed; /* bytes of reads that were started while something else waited */
	uint64_t n_waiting;
};

/* What an engine does at once. */
struct io_part {
	struct io_request *request;
	uint64_t at, bytes; /* where in the request, and how much of it */
	uint64_t done;      /* bytes of these */
	unsigned tries;     /* that got nowhere */
	struct iovec *iov;  /* [IO_VECTORS_MAX], the engine's */
	unsigned n_iov;
};

void io_queue_init(struct io_queue *q, uint64_t limit, uint64_t part_bytes, unsigned slots);
void io_queue_push(struct io_queue *q, struct io_request *r);
/* Takes a part of one of these ops (bits); false: none may be started now. ret->iov stays as it is. */
bool io_queue_next(struct io_queue *q, unsigned ops, uint64_t now_ns, struct io_part *ret);
/* Would it take one? */
bool io_queue_ready(const struct io_queue *q, unsigned ops, uint64_t now_ns);
/* True: the request has ended as a whole, with the first error of its parts. */
bool io_queue_ended(struct io_queue *q, struct io_part *p, int result, uint64_t now_ns);

/* Fills p->iov with what is left of the part; its first byte is at io_part_offset() of the device. */
void io_part_vectors(struct io_part *p);
uint64_t io_part_offset(const struct io_part *p);
/* n: what readv(2) or its like returned, or negative errno. 1: go on with what is left. 0: whole. Else the error. */
int io_part_advance(struct io_part *p, int64_t n);

#endif
