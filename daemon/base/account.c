/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Invariant: used[r] is the sum of the amounts of all charges for r. It holds because only the three charge functions
 * change it, and because a charge lives and dies with what it pays for: there is no list of who owes what.
 */
#include "daemon/base/account.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>

#include "daemon/base/log.h"

static const struct {
	const char *what, *option;
	int gauge; /* counter that shows what is used, COUNTER_N: none */
} table[ACCOUNT_N] = {
	[ACCOUNT_SESSIONS] = {"sessions", "sessions", COUNTER_SESSIONS},
	[ACCOUNT_STAGING] = {"staging bytes", "staging_bytes", COUNTER_STAGING},
	[ACCOUNT_PINS] = {"pins through the socket", "pins", COUNTER_N},
	[ACCOUNT_PAGE_PINS] = {"pins in the pages of its sessions", "pins", COUNTER_N},
	[ACCOUNT_IN_FLIGHT] = {"commits in flight", "in_flight", COUNTER_N},
	[ACCOUNT_SUBSCRIPTIONS] = {"subscriptions", "subscriptions", COUNTER_N},
	[ACCOUNT_REPLIES] = {"bytes of replies not read", "reply_bytes", COUNTER_N},
};

void account_init(struct account *a, const char *name, struct counter_scope *scope)
{
	*a = (struct account){.name = name, .scope = scope};
}

bool account_idle(const struct account *a)
{
	for (unsigned r = 0; r < ACCOUNT_N; r++)
		if (a->used[r])
			return false;
	return true;
}

void account_fini(struct account *a)
{
	assert(account_idle(a));
}

void account_set_limit(struct account *a, enum account_resource r, uint64_t limit)
{
	a->limit[r] = limit;
}

uint64_t account_left(const struct account *a, enum account_resource r)
{
	return a->limit[r] > a->used[r] ? a->limit[r] - a->used[r] : 0;
}

void account_refusal(
	const struct account *a, enum account_resource r, char *ret_why, size_t why_size)
{
	snprintf(ret_why, why_size, "tenant %s has %llu of %llu %s; raise %s in kvgated.conf",
		a->name, (unsigned long long)a->used[r], (unsigned long long)a->limit[r],
		table[r].what, table[r].option);
}

static void show(const struct account *a, enum account_resource r)
{
	if (table[r].gauge != COUNTER_N)
		counter_set(a->scope, (enum counter_id)table[r].gauge, 0, (int64_t)a->used[r]);
}

static int refuse(struct account *a, enum account_resource r)
{
	const uint64_t n = ++a->refused[r];

	counter_add(a->scope, COUNTER_QUOTA_REFUSALS, 0, 1);
	if (!(n & (n - 1))) /* the 1st, 2nd, 4th, 8th ...: nobody fills the log by it */
		log_warning("quota used up", "tenant=%s what=\"%s\" limit=%llu so_far=%llu",
			a->name, table[r].what, (unsigned long long)a->limit[r],
			(unsigned long long)n);
	return -EDQUOT;
}

int charge_add(struct charge *c, struct account *a, enum account_resource r, uint64_t amount)
{
	assert(!c->account || (c->account == a && c->resource == r));
	if (amount > account_left(a, r))
		return refuse(a, r);
	*c = (struct charge){.account = a, .resource = r, .amount = c->amount + amount};
	a->used[r] += amount;
	show(a, r);
	return 0;
}

void charge_sub(struct charge *c, uint64_t amount)
{
	struct account *a = c->account;

	if (!amount)
		return;
	assert(a && amount <= c->amount && c->amount <= a->used[c->resource]);
	c->amount -= amount;
	a->used[c->resource] -= amount;
	show(a, c->resource);
}

void charge_take(struct charge *from, uint64_t amount, struct charge *to)
{
	assert(amount <= from->amount);
	assert(!to->account || (to->account == from->account && to->resource == from->resource));
	from->amount -= amount;
	*to = (struct charge){.account = from->account,
		.resource = from->resource,
		.amount = to->amount + amount};
}

void charge_fini(struct charge *c)
{
	charge_sub(c, c->amount);
	*c = (struct charge){0};
}
