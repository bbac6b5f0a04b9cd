/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A device that misbehaves, behind one thread. What happens to a request is drawn when it is submitted, from the seed.
 *
 * With hold_writes, `held` has what was written and is not on the file yet, oldest first; a read lays it over what the file
 * has. A sync writes what had ended when it was submitted; when too much is held, the oldest goes to the file as a kernel
 * would do it. The power cut goes through the list and lets each write through, whole, not at all, or some of its pages.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/io/engine.h"

#define PAGE     4096u
#define HELD_MAX (64u << 20)
#define MILLION  1000000u

enum fate {
	FATE_GOOD,
	FATE_ERROR, /* nothing was done */
	FATE_SHORT, /* a part of it was done, and then: an error */
	FATE_FLIP,
	FATE_NO_SPACE,
};
#define FATE_BITS                                                                                  \
	8u /* the rest of request.fate is random, or for a sync the last write that it is for */

struct held {
	struct held *next;
	uint64_t number, offset, bytes;
	bool discard; /* no data */
	unsigned char data[];
};

struct io_faulty {
	struct io_fault f;
	uint64_t random;      /* the loop's thread */
	pthread_mutex_t lock; /* protects what follows, and is held while a request is done */
	struct held *first, **end;
	uint64_t held_bytes, n_writes;
	bool cut;
};

/* splitmix64 */
static uint64_t draw(uint64_t *state)
{
	uint64_t z = *state += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

int io_faulty_new(const struct io_fault *f, struct io_faulty **ret)
{
	struct io_faulty *y = calloc(1, sizeof(*y));

	if (!y)
		return -ENOMEM;
	y->f = *f;
	y->random = f->seed;
	y->end = &y->first;
	pthread_mutex_init(&y->lock, NULL);
	*ret = y;
	return 0;
}

static struct held *held_pop(struct io_faulty *y)
{
	struct held *h = y->first;

	y->first = h->next;
	if (!y->first)
		y->end = &y->first;
	y->held_bytes -= h->discard ? 0 : h->bytes;
	return h;
}

struct io_faulty *io_faulty_free(struct io_faulty *y)
{
	if (!y)
		return NULL;
	while (y->first)
		free(held_pop(y));
	pthread_mutex_destroy(&y->lock);
	free(y);
	return NULL;
}

static enum fate draw_fate(const struct io_fault *f, enum io_op op, uint64_t *random)
{
	bool read = op == IO_READ;
	uint32_t error = read ? f->read_error : f->write_error;
	uint32_t flip = read ? f->read_flip : f->write_flip;
	uint64_t n = draw(random) % MILLION;

	if (op != IO_READ && op != IO_WRITE)
		return FATE_GOOD;
	if (n < error)
		return draw(random) % 2 ? FATE_ERROR : FATE_SHORT;
	if (draw(random) % MILLION < flip)
		return FATE_FLIP;
	return !read && draw(random) % MILLION < f->no_space ? FATE_NO_SPACE : FATE_GOOD;
}

void io_faulty_submit(struct io *io, struct io_request *r)
{
	struct io_faulty *y = io->faulty;
	enum fate fate = draw_fate(&y->f, r->op, &y->random);
	uint64_t with = draw(&y->random);

	if (r->op == IO_SYNC) {
		pthread_mutex_lock(&y->lock);
		with = y->n_writes;
		pthread_mutex_unlock(&y->lock);
	}
	r->fate = with << FATE_BITS | fate;
}

/* ---- the file ------------------------------------------------------------------------------------- */

/* All of it; the file's data goes through an aligned copy, since the file may be O_DIRECT. */
static int write_all(int fd, const void *data, uint64_t bytes, uint64_t offset)
{
	void *copy;
	ssize_t n = 0;
	int r = 0;

	if (posix_memalign(&copy, PAGE, bytes))
		return -ENOMEM;
	memcpy(copy, data, bytes);
	for (uint64_t done = 0; r == 0 && done < bytes; done += (uint64_t)n) {
		n = pwrite(fd, (char *)copy + done, bytes - done, (off_t)(offset + done));
		if (n <= 0)
			r = n < 0 ? -errno : -EIO;
	}
	free(copy);
	return r;
}

static int release_one(const struct held *h, int fd)
{
	if (h->discard)
		return (int)io_discard(fd, h->offset, h->bytes);
	return write_all(fd, h->data, h->bytes, h->offset);
}

/* Up to this one, and while more than that is held. */
static int release(struct io_faulty *y, int fd, uint64_t upto, uint64_t keep)
{
	int r = 0;

	while (r == 0 && y->first && y->first->number <= upto && (!keep || y->held_bytes > keep)) {
		r = release_one(y->first, fd);
		if (r == 0)
			free(held_pop(y));
	}
	return r;
}

/* ---- requests ------------------------------------------------------------------------------------- */

static void flip(struct io_part *p, uint64_t with)
{
	uint64_t at = with % p->bytes;

	for (unsigned i = 0; i < p->n_iov; i++) {
		if (at < p->iov[i].iov_len) {
			((unsigned char *)p->iov[i].iov_base)[at] ^=
				(unsigned char)(1u << (with >> 32) % 8);
			return;
		}
		at -= p->iov[i].iov_len;
	}
}

/* Copies between the vectors and a buffer for the part. */
static void gather(const struct io_part *p, void *buffer, uint64_t bytes, bool to_vectors)
{
	char *b = buffer;

	for (unsigned i = 0; i < p->n_iov && bytes; i++) {
		uint64_t n = p->iov[i].iov_len < bytes ? p->iov[i].iov_len : bytes;

		if (to_vectors)
			memcpy(p->iov[i].iov_base, b, n);
		else
			memcpy(b, p->iov[i].iov_base, n);
		b += n;
		bytes -= n;
	}
}

static void lay_over(const struct io_faulty *y, void *buffer, uint64_t bytes, uint64_t offset)
{
	for (const struct held *h = y->first; h; h = h->next) {
		uint64_t from = h->offset > offset ? h->offset : offset;
		uint64_t to = h->offset + h->bytes < offset + bytes ? h->offset + h->bytes
								    : offset + bytes;

		if (from >= to)
			continue;
		if (h->discard)
			memset((char *)buffer + (from - offset), 0, to - from);
		else
			memcpy((char *)buffer + (from - offset), h->data + (from - h->offset),
				to - from);
	}
}

static int read_all(struct io_faulty *y, int fd, void *buffer, uint64_t bytes, uint64_t offset)
{
	ssize_t n = 0;

	for (uint64_t done = 0; done < bytes; done += (uint64_t)n) {
		n = pread(fd, (char *)buffer + done, bytes - done, (off_t)(offset + done));
		if (n < 0)
			return -errno;
		if (n == 0) { /* what is held may lie beyond the end of the file */
			memset((char *)buffer + done, 0, bytes - done);
			break;
		}
	}
	lay_over(y, buffer, bytes, offset);
	return 0;
}

static int64_t read_part(struct io_faulty *y, int fd, struct io_part *p)
{
	uint64_t fate = p->request->fate, n = p->bytes;
	void *buffer;
	int r;

	if ((fate & 255) == FATE_SHORT)
		n = (fate >> FATE_BITS) % (n / PAGE) * PAGE;
	if (posix_memalign(&buffer, PAGE, p->bytes))
		return -ENOMEM;
	io_part_vectors(p);
	r = read_all(y, fd, buffer, p->bytes, io_part_offset(p));
	if (r == 0) {
		gather(p, buffer, n, true);
		if ((fate & 255) == FATE_FLIP)
			flip(p, fate >> FATE_BITS);
	}
	free(buffer);
	if (r < 0)
		return r;
	return n < p->bytes ? -EIO : (int64_t)n;
}

static int hold(struct io_faulty *y, int fd, struct held *h)
{
	h->number = ++y->n_writes;
	*y->end = h;
	y->end = &h->next;
	y->held_bytes += h->discard ? 0 : h->bytes;
	return release(y, fd, UINT64_MAX, y->f.hold_writes ? HELD_MAX : 0);
}

static int64_t write_part(struct io_faulty *y, int fd, struct io_part *p)
{
	uint64_t fate = p->request->fate, n = p->bytes;
	struct held *h;
	int r = 0;

	if ((fate & 255) == FATE_NO_SPACE)
		return -ENOSPC;
	if ((fate & 255) == FATE_SHORT)
		n = (fate >> FATE_BITS) % (n / PAGE) * PAGE;
	h = malloc(sizeof(*h) + p->bytes);
	if (!h)
		return -ENOMEM;
	*h = (struct held){.offset = io_part_offset(p), .bytes = n};
	io_part_vectors(p);
	gather(p, h->data, n, false);
	if ((fate & 255) == FATE_FLIP) {
		uint64_t at = (fate >> FATE_BITS) % n;

		h->data[at] ^= (unsigned char)(1u << (fate >> 40) % 8);
	}
	r = hold(y, fd, h);
	if (r < 0)
		return r;
	return n < p->bytes ? -EIO : (int64_t)n;
}

static int64_t discard_part(struct io_faulty *y, int fd, struct io_part *p)
{
	struct held *h = malloc(sizeof(*h));

	if (!h)
		return -ENOMEM;
	*h = (struct held){.offset = p->request->offset, .bytes = p->bytes, .discard = true};
	return hold(y, fd, h);
}

int64_t io_faulty_run(struct io *io, struct io_part *p)
{
	struct io_faulty *y = io->faulty;
	struct io_request *r = p->request;
	int64_t n;

	pthread_mutex_lock(&y->lock);
	if (y->cut || (r->fate & 255) == FATE_ERROR) {
		n = -EIO;
	} else if (r->op == IO_READ) {
		n = read_part(y, io->fd, p);
	} else if (r->op == IO_WRITE) {
		n = write_part(y, io->fd, p);
	} else if (r->op == IO_DISCARD) {
		n = discard_part(y, io->fd, p);
	} else {
		n = release(y, io->fd, r->fate >> FATE_BITS, 0);
		if (n == 0)
			n = io_run(io, p);
	}
	pthread_mutex_unlock(&y->lock);
	return n;
}

/* ---- the power cut -------------------------------------------------------------------------------- */

static void survive(struct held *h, int fd, uint64_t *random)
{
	uint64_t luck = draw(random) % 3;

	if (h->discard) {
		if (luck)
			release_one(h, fd);
		return;
	}
	for (uint64_t at = 0; luck && at < h->bytes; at += PAGE)
		if (luck == 1 || draw(random) % 2)
			write_all(fd, h->data + at, PAGE, h->offset + at);
}

void io_fault_cut(struct io *io)
{
	struct io_faulty *y = io->faulty;
	uint64_t random = y->f.seed ^ 0x637574;

	pthread_mutex_lock(&y->lock);
	while (y->first) {
		struct held *h = held_pop(y);

		survive(h, io->fd, &random);
		free(h);
	}
	y->cut = true;
	pthread_mutex_unlock(&y->lock);
}
