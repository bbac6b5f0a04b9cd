/* SPDX-License-Identifier: Apache-2.0 */
/*
 * io: reads and writes of one file or block device, off the control thread.
 * Thread: the loop's thread submits and gets results; a device has a thread of its own, or a few. Locks: none to the
 * caller. Blocks: io_free() waits for what is in flight. Errors: negative errno in request.result.
 *
 * Reads go before writes: of what is queued, every read is started before the next write, except that each byte of a write
 * lets no more than eight bytes of reads go before it; and as long as there were reads lately no more than a quarter of
 * in_flight_bytes is writing. Requests of one kind are started in their order; they end in any. A large one is done in
 * parts of 1 MiB, several at once. A short read or write is continued until it is whole, or fails.
 */
#ifndef KVGATE_DAEMON_IO_IO_H
#define KVGATE_DAEMON_IO_IO_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

struct loop; /* daemon/base/loop.h */
struct io;

enum io_op {
	IO_READ,
	IO_WRITE,
	IO_SYNC, /* what was written and has ended before this was submitted is durable; no bytes, no buffers */
	IO_DISCARD, /* offset, bytes: they read as zeros, or as they were. -EOPNOTSUPP: the device does not forget */
};

/* Embedded in what is done. Offset, lengths and addresses are multiples of 4096. */
struct io_request {
	struct io_request *next; /* the device's own, from submission to done() */
	enum io_op op;
	uint64_t offset, bytes;
	const struct iovec *iov; /* the caller's until done(); sums to bytes */
	unsigned n_iov;          /* at most IO_VECTORS_MAX */
	int result;              /* 0, or negative errno; -EIO also for an end of file */
	/* On the device's thread, after a success, before done(): may set result. NULL: nothing. */
	void (*check)(struct io_request *r);
	void (*done)(struct io_request *r); /* on the loop's thread, exactly once */
	/* The device's own: bytes that were started, parts that have not ended, what a faulty one does to it. */
	uint64_t progress, fate;
	unsigned parts;
};

#define IO_VECTORS_MAX 1024u

struct io_options {
	struct loop *loop;
	int fd; /* borrowed; open for reading and writing, usually O_DIRECT */
	uint64_t in_flight_bytes;
	bool sqpoll, iopoll; /* of io_uring */
	bool uring;          /* false: threads with preadv and pwritev */
	unsigned threads;    /* of those; 0: 4 */
};
/*
 * io_uring where the kernel lets us have it. Where it does not - seccomp, kernel.io_uring_disabled, memory that may not be locked -
 * that is said in the log, with the way out, and threads do the work: slower, with the same results.
 */
int io_new(const struct io_options *o, struct io **ret);
/* Waits for what was submitted, and what its done() submits, and reports it. Not from within done(). NULL. */
struct io *io_free(struct io *io);
void io_submit(struct io *io, struct io_request *r);
const char *io_engine(
	const struct io *io); /* "io_uring", "io_uring, sqpoll", "threads", or a wrapper's */

struct io_stat {
	uint64_t reads, writes, syncs, read_bytes, written_bytes, errors;
	uint64_t in_flight_bytes, queued;
};
void io_stat(struct io *io, struct io_stat *ret);

/* ---- for tests and the chaos mode: a device that misbehaves ---------------------------------- */

/*
 * What is written is kept in memory until an IO_SYNC that succeeds, or until the kernel would have written it anyway; reads see it. A
 * power cut (io_fault_cut()) forgets a random part of it, some of it torn at 4096 bytes, and answers everything with -EIO from then on.
 */
struct io_fault {
	uint64_t seed;
	/* of 1,000,000 requests: so many fail, end short, or have one bit flipped (reads: in memory; writes: on the device) */
	uint32_t read_error, write_error, read_flip, write_flip, no_space;
	bool hold_writes; /* the power cut's memory */
};
/* As io_new(), through the fault. f is copied. */
int io_new_faulty(const struct io_options *o, const struct io_fault *f, struct io **ret);
void io_fault_cut(struct io *io);

#endif
