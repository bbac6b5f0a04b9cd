/* SPDX-License-Identifier: Apache-2.0 */
/*
 * account: what one tenant may have, and what it has. A charge is embedded in what it pays for.
 * Thread: the control thread. Locks: none. Blocks: never.
 * Errors: -EDQUOT, an ordinary answer: counted always, logged less and less often.
 */
#ifndef KVGATE_DAEMON_BASE_ACCOUNT_H
#define KVGATE_DAEMON_BASE_ACCOUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/base/counters.h"

enum account_resource {
	ACCOUNT_SESSIONS,
	ACCOUNT_STAGING,   /* bytes */
	ACCOUNT_PINS,      /* through the socket */
	ACCOUNT_PAGE_PINS, /* in pin pages, used or not, beyond each session's share */
	ACCOUNT_IN_FLIGHT,
	ACCOUNT_SUBSCRIPTIONS,
	ACCOUNT_REPLIES, /* bytes that wait to be read */
	ACCOUNT_N
};

struct account {
	const char *name; /* the tenant's, borrowed */
	struct counter_scope *scope;
	uint64_t limit[ACCOUNT_N], used[ACCOUNT_N];
	uint64_t refused[ACCOUNT_N]; /* so often */
};

void account_init(struct account *a, const char *name, struct counter_scope *scope);
void account_fini(struct account *a); /* nothing is charged any more (asserted) */
bool account_idle(const struct account *a);
/* May be less than is used: then nothing more is granted. */
void account_set_limit(struct account *a, enum account_resource r, uint64_t limit);
uint64_t account_left(const struct account *a, enum account_resource r);
/* Why a charge was refused, and what raises the limit. */
void account_refusal(
	const struct account *a, enum account_resource r, char *ret_why, size_t why_size);

/* All zeros: pays for nothing. */
struct charge {
	struct account *account;
	enum account_resource resource;
	uint64_t amount;
};

/* Adds to what the charge pays for already, if anything. -EDQUOT: it stays as it was. */
int charge_add(struct charge *c, struct account *a, enum account_resource r, uint64_t amount);
void charge_sub(struct charge *c, uint64_t amount);
/* Moves a part to another charge, which pays for nothing or for the same thing. */
void charge_take(struct charge *from, uint64_t amount, struct charge *to);
void charge_fini(struct charge *c); /* gives everything back; idempotent */

#endif
