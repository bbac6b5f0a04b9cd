/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stages: one session's staging memory and the stages reserved in it, by id.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: -EDQUOT, -ENOSPC, -ENOMEM, others from the kernel.
 */
#ifndef KVGATE_DAEMON_SERVE_STAGES_H
#define KVGATE_DAEMON_SERVE_STAGES_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/account.h"
#include "daemon/cache/cache.h"

struct stage {
	struct cache_layout *layout; /* NULL: a free slot of the table */
	enum stage_input input;
	uint64_t offset, bytes; /* the bytes are charged */
};

struct sweeper;

struct stages {
	struct sweeper *sweeper;
	struct staging *staging; /* made by the first reservation */
	bool sent;               /* its fd went to the client */
	struct stages_slot *slots;
	uint32_t size, used, first_free;
	struct charge charge; /* of all of them */
	unsigned strikes;     /* times that its client was found outside, not long ago */
	uint64_t struck_ns;   /* the first of them */
};

void stages_init(struct stages *s, struct sweeper *sweeper);
void stages_fini(struct stages *s); /* all of it, with its charges */

/* Makes the staging memory if there is none yet. */
int stages_open(struct stages *s, uint64_t bytes);
int stages_reserve(struct stages *s, struct account *a, struct cache_layout *l,
	enum stage_input input, uint64_t bytes, uint64_t *ret_id, uint64_t *ret_offset);
/*
 * Has the client written outside its stages? What it wrote there goes. How much it was, 0: nothing. *ret_enough: it does
 * so again and again, or on a large scale, and should be gone.
 */
uint64_t stages_watch(struct stages *s, uint64_t now_ns, bool *ret_enough);
/*
 * Out of the table: from here on the caller has the stage and its part of the charge, and owes both to stage_fini(). False:
 * no such stage.
 */
bool stages_take(struct stages *s, uint64_t id, struct stage *ret, struct charge *ret_charge);
/* Gives memory and charge back. `from` as it was when the stage was reserved. */
void stage_fini(struct stage *st, struct charge *c, struct staging *from, struct sweeper *sweeper);

#endif
