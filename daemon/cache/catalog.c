/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A memfd that no client ever sees: a header page and two halves. One half is in force; records are added behind its last
 * one. When it is full, what still counts is written into the other half, and one store makes that the one in force.
 *
 *	0        4096              4096 + half         4096 + 2 half
 *	| header | record record   |                   |
 *	           state = sequence << 32 | half << 31 | bytes used
 *
 * A record is there when `state` covers it, and that is stored last: a daemon that is killed while it writes one leaves
 * the catalog as it was. Each has a checksum, since nothing is believed after a restart.
 */
#include "daemon/cache/catalog.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/mem/memfd.h"
#include "proto/plane.h"

#define MAGIC   "KVGCATLG"
#define VERSION 1u
#define HEADER  4096u
/* Twice as much as all layouts and floors that a tenant may have, as long as they may be; used as it is filled. */
#define HALF    (8u << 20)
#define USED    0x7fffffffu

struct head {
	char magic[8];
	uint32_t version;
	uint32_t half_bytes;
	uint8_t instance[16];
	uint32_t crc; /* of what is before */
	_Atomic uint32_t last_given;
	_Atomic uint64_t state;
};

struct record {
	uint32_t crc; /* of what follows, and of the payload */
	uint16_t type, zero;
	uint32_t bytes; /* of the payload; the next record starts at a multiple of 8 */
};

struct catalog {
	int fd;
	uint8_t *map;
	struct head *head;
	bool rewriting;
	uint64_t next; /* the state that is being written */
};

#define BYTES (HEADER + 2ull * HALF)

static uint32_t head_crc(const struct head *h)
{
	return crc32c(0, h, offsetof(struct head, crc));
}

static uint8_t *half_of(const struct catalog *c, uint64_t state)
{
	return c->map + HEADER + (state >> 31 & 1) * HALF;
}

static uint64_t state_of(const struct catalog *c)
{
	return atomic_load_explicit(&c->head->state, memory_order_acquire);
}

static int map(struct catalog *c)
{
	void *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, c->fd, 0);

	if (p == MAP_FAILED)
		return -errno;
	c->map = p;
	c->head = p;
	return 0;
}

int catalog_new(const uint8_t index_instance[16], struct catalog **ret)
{
	struct catalog *c = calloc(1, sizeof(*c));
	struct head h = {.magic = MAGIC, .version = VERSION, .half_bytes = HALF};
	int r;

	if (!c)
		return -ENOMEM;
	c->fd = -1;
	r = memfd_new("kvgate-catalog", BYTES, 0400, 0, &c->fd);
	if (r == 0)
		r = map(c);
	if (r < 0) {
		catalog_free(c);
		return r;
	}
	memcpy(h.instance, index_instance, sizeof(h.instance));
	h.crc = head_crc(&h);
	memcpy((void *)c->head, (void *)&h, sizeof(h));
	*ret = c;
	return 0;
}

static int check(int fd)
{
	const int seals = F_SEAL_SHRINK | F_SEAL_GROW;
	int flags = fcntl(fd, F_GETFL), has = fcntl(fd, F_GET_SEALS);
	struct head h;
	struct stat st;

	if (flags < 0 || (flags & O_ACCMODE) != O_RDWR || has < 0 || (has & seals) != seals ||
		fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
		pread(fd, (void *)&h, sizeof(h), 0) != sizeof(h) ||
		memcmp(h.magic, MAGIC, sizeof(h.magic)))
		return -EBADMSG;
	if (h.version != VERSION)
		return -EPROTONOSUPPORT;
	return h.crc == head_crc(&h) && h.half_bytes == HALF && st.st_size == (off_t)BYTES
		? 0
		: -EBADMSG;
}

int catalog_adopt(int fd, struct catalog **ret)
{
	struct catalog *c;
	int r = check(fd);

	if (r < 0)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return -ENOMEM;
	c->fd = fd;
	r = map(c);
	if (r < 0) {
		free(c);
		return r;
	}
	*ret = c;
	return 0;
}

struct catalog *catalog_free(struct catalog *c)
{
	if (!c)
		return NULL;
	if (c->map)
		munmap(c->map, BYTES);
	if (c->fd >= 0)
		close(c->fd);
	free(c);
	return NULL;
}

int catalog_fd(const struct catalog *c)
{
	return c->fd;
}

const uint8_t *catalog_instance(const struct catalog *c)
{
	return c->head->instance;
}

static size_t room(size_t n)
{
	return (sizeof(struct record) + n + 7) & ~(size_t)7;
}

static uint32_t record_crc(const struct record *r, const void *payload)
{
	const size_t from = offsetof(struct record, type);

	return crc32c(crc32c(0, (const uint8_t *)r + from, sizeof(*r) - from), payload, r->bytes);
}

int catalog_append(struct catalog *c, uint16_t type, const void *payload, size_t n)
{
	const uint64_t state = c->rewriting ? c->next : state_of(c);
	const uint32_t used = state & USED;
	struct record r = {.type = type, .bytes = (uint32_t)n};
	uint8_t *to = half_of(c, state) + used;

	assert(n <= CATALOG_RECORD_MAX);
	if (used > HALF || room(n) > HALF - used)
		return -ENOSPC;
	r.crc = record_crc(&r, payload);
	memcpy(to, &r, sizeof(r));
	memcpy(to + sizeof(r), payload, n);
	if (c->rewriting)
		c->next = state + room(n);
	else
		atomic_store_explicit(&c->head->state, state + room(n), memory_order_release);
	return 0;
}

void catalog_rewrite(struct catalog *c)
{
	const uint64_t state = state_of(c);

	c->rewriting = true;
	c->next = ((state >> 32) + 1) << 32 | (~state & (1ull << 31));
}

void catalog_rewritten(struct catalog *c)
{
	assert(c->rewriting);
	atomic_store_explicit(&c->head->state, c->next, memory_order_release);
	c->rewriting = false;
}

int catalog_read(const struct catalog *c, catalog_fn fn, void *userdata)
{
	const uint64_t state = state_of(c);
	const uint8_t *half = half_of(c, state);
	const uint32_t used = state & USED;
	uint8_t *copy;
	int r = 0;

	if (used > HALF)
		return -EBADMSG;
	copy = malloc(CATALOG_RECORD_MAX);
	if (!copy)
		return -ENOMEM;
	for (uint32_t at = 0; at < used && r == 0;) {
		struct record h;

		r = -EBADMSG;
		if (used - at < sizeof(h))
			break;
		memcpy(&h, half + at, sizeof(h));
		if (h.bytes > CATALOG_RECORD_MAX || room(h.bytes) > used - at)
			break;
		memcpy(copy, half + at + sizeof(h), h.bytes);
		if (h.crc != record_crc(&h, copy))
			break;
		at += (uint32_t)room(h.bytes);
		r = fn(userdata, h.type, copy, h.bytes);
	}
	free(copy);
	return r;
}

void catalog_given(struct catalog *c, uint32_t segment)
{
	/* the pool gives ids in order, under its lock */
	atomic_store_explicit(&c->head->last_given, segment, memory_order_relaxed);
}

uint32_t catalog_last_given(const struct catalog *c)
{
	return atomic_load_explicit(&c->head->last_given, memory_order_relaxed);
}
