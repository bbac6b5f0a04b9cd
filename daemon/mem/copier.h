/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copier: copies pages from segments of the host to those of one device, by a kvgate-mover that it starts, watches and replaces.
 * Thread: the control thread. Locks: none. Blocks: _free until the mover is gone; nothing else but for starting a process.
 * Errors: negative errno, to the job's done().
 */
#ifndef KVGATE_DAEMON_MEM_COPIER_H
#define KVGATE_DAEMON_MEM_COPIER_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "gpu/mover/message.h"

#define COPIER_TEXT MOVER_TEXT

struct copier;
struct loop;
struct pool_segment;

struct copier_options {
	struct loop *loop;
	const char *program, *library; /* borrowed */
	int ordinal;
	uint64_t pause_ns; /* the longest between two starts; 0: ten seconds */
	uint64_t
		silence_ns; /* a mover that owes something says nothing for so long: it is killed; 0: half a minute */
	/* What is behind an id, borrowed for the call. -ENOENT: nothing any more. `filled`: it was zeroed. */
	int (*segment)(void *userdata, uint8_t tier, uint32_t id, struct pool_segment *ret);
	void (*filled)(void *userdata, uint8_t tier, uint32_t id);
	/* A mover was started, and may write to the device as long as the process lives; -1: it is gone. May be NULL. */
	void (*process)(void *userdata, int pidfd);
	void *userdata;
};

/* The caller's memory, from copier_start() to done(). Pages stay where they are meanwhile. */
struct copier_job {
	struct copier_job *next; /* the copier's own */
	uint64_t id;
	unsigned tries;
	int error;
	uint64_t bytes;
	uint32_t page_shift, n;
	struct mover_range range[KVG_PLANES_MAX];
	/*
	 * 0: all of it is there. Else nothing is known of it: -ENODEV, no mover comes up; -EIO, several ended over it; what the
	 * mover says. On the control thread, with the loop's next turn or later. May start another.
	 */
	void (*done)(struct copier_job *j, int error);
};

int copier_new(const struct copier_options *o, struct copier **ret);
/* The mover is gone afterwards; no done() is called. */
struct copier *copier_free(struct copier *c);
void copier_start(struct copier *c, struct copier_job *j);
/*
 * Now and then: what the mover has of segments that are no more is taken from it, a bounded amount; and one that a driver does
 * not let go on makes way for another.
 */
void copier_sweep(struct copier *c);

struct copier_stat {
	pid_t pid;             /* 0: no mover is there */
	int pidfd;             /* borrowed; -1 */
	bool ready;            /* it has its device */
	uint64_t starts, jobs; /* movers so far; jobs that wait or are on their way */
	char why[COPIER_TEXT]; /* the last one ended, or did not come up; "" while one is ready */
};
void copier_stat(const struct copier *c, struct copier_stat *ret);

#endif
