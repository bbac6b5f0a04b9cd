/* SPDX-License-Identifier: Apache-2.0 */
/*
 * workers: a few threads behind one bounded queue; results come back to the loop's thread in batches.
 * Thread: one owner (the loop's) submits and gets results; work runs on the workers. Locks: one, around the
 * two queues. Blocks: workers_free() waits for what is running. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_CACHE_WORKERS_H
#define KVGATE_DAEMON_CACHE_WORKERS_H

#include <stdbool.h>

struct loop;
struct workers;

/* Embedded in what is to be done. */
struct work {
	struct work *next;
	void (*run)(struct work *w, void *context); /* on a worker, with that thread's context */
	void (*done)(struct work *w); /* on the loop's thread, in the order of finishing */
};

struct workers_ops {
	int (*context_new)(void **ret); /* one per thread */
	void (*context_free)(void *context);
	void (*idle)(void *userdata); /* on the loop's thread, after every batch of done() */
	void *userdata;
};

int workers_new(struct loop *loop, unsigned n, const struct workers_ops *ops, struct workers **ret);
/* Runs what was submitted to its end and reports it; ops->idle is not called any more. */
struct workers *workers_free(struct workers *w);
/* Submit again after the next done(). */
bool workers_full(struct workers *w);
void workers_submit(struct workers *w, struct work *item); /* not full */

#endif
