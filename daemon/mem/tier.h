/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tier: how one kind of memory makes, backs, punches and gives back a segment.
 * Thread: any; the pool sees to it that no two calls touch the same bytes. Locks: none.
 * Blocks: for the kernel's work. Errors: negative errno, nothing left behind.
 *
 * An operation may be the kernel's, a driver's or another tier's; every one is handed its own table, so that a wrapper
 * finds what it wraps. A tier whose memory is whole from the start lets back() and punch() succeed and do nothing.
 */
#ifndef KVGATE_DAEMON_MEM_TIER_H
#define KVGATE_DAEMON_MEM_TIER_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

struct tier_request {
	uint64_t
		bytes; /* power of two; of one that is adopted: what is kept beside it, 0 where it tells itself */
	int numa_node; /* -1: the kernel's default */
	bool huge_pages;
};

/* One segment's memory. */
struct tier_memory {
	uint64_t bytes;
	void *addr;     /* read-write; NULL where the daemon itself has no access */
	int fd;         /* the daemon's own */
	int client_fd;  /* for clients: a read-only description */
	bool set_aside; /* taken from memory reserved at boot (hugetlb): nobody gains by a punch */
	bool fresh;     /* nobody has written to it, and it may hold what another had there */
	bool huge;      /* best backed in whole pages of MAP_HUGE_BYTES */
};

struct tier_ops {
	const char *name;
	uint8_t tier; /* enum kvg_tier */
	/* Makes a segment, sparse where the tier can be, protected and mapped. */
	int (*open)(
		const struct tier_ops *t, const struct tier_request *q, struct tier_memory *ret);
	/*
	 * A segment that an earlier process made, of whatever size; fd is taken on success. -EBADMSG: it is none of this
	 * tier's. NULL: the tier keeps nothing over a restart.
	 */
	int (*adopt)(const struct tier_ops *t, const struct tier_request *q, int fd,
		struct tier_memory *ret);
	/* Makes sure that the bytes are there: writing to them cannot fail afterwards. Contents stay. */
	int (*back)(const struct tier_ops *t, const struct tier_memory *m, uint64_t offset,
		uint64_t bytes);
	/* Gives the bytes' memory back; they read as zeros afterwards, in every process. */
	int (*punch)(const struct tier_ops *t, const struct tier_memory *m, uint64_t offset,
		uint64_t bytes);
	/* The bytes of memory behind the segment now, whoever made the kernel give them. NULL: only back() does. */
	int (*count)(const struct tier_ops *t, const struct tier_memory *m, uint64_t *ret_bytes);
	/* The daemon's own mapping goes; the fds stay open. */
	void (*unmap)(const struct tier_ops *t, struct tier_memory *m);
	/* Everything of ours goes, a mapping too; what clients have mapped stays as it is, for them. */
	void (*close)(const struct tier_ops *t, struct tier_memory *m);
};

extern const struct tier_ops tier_host; /* memfds */

/* Lets everything through to `below`, but for the operation whose turn it is; for tests. */
struct tier_fault {
	struct tier_ops ops; /* give &f->ops to the pool */
	const struct tier_ops *below;
	int error;             /* negative errno */
	atomic_long countdown; /* 1: the next operation that can fail does, once */
};
void tier_fault_init(struct tier_fault *f, const struct tier_ops *below, int error);

#endif
