/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tenant: whose sessions these are - the account and the cache's part of one owner, found by credentials.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno with a text.
 */
#ifndef KVGATE_DAEMON_SERVE_TENANT_H
#define KVGATE_DAEMON_SERVE_TENANT_H

#include "daemon/base/account.h"
#include "daemon/base/options.h"
#include "daemon/cache/cache.h"
#include "daemon/serve/peer.h"

struct tenant {
	struct tenant *next;
	char name[OPTIONS_NAME_MAX];
	struct account account;
	struct counter_scope *scope;
	struct cache_tenant *cache;
	unsigned users;         /* sessions that are of it, or subscribed to its events */
	uint32_t session_pins;  /* of one that asks for no number */
	uint32_t share_of_pins; /* that each session gets, however many the others have */
};

struct tenants {
	struct tenant *first;
	int64_t n;
};

/*
 * Found, or made when it is the first session of this user or section. At max_tenants one without users and blocks makes
 * room; -EDQUOT: there is none. `always`: an administrator, who may be needed to make room.
 */
int tenants_get(struct tenants *ts, struct cache *c, struct counters *counters,
	const struct options *o, const struct peer *p, bool always, struct tenant **ret,
	char *ret_why, size_t why_size);
/* Of every tenant that the cache has already. */
int tenants_adopt(
	struct tenants *ts, struct cache *c, struct counters *counters, const struct options *o);
struct tenant *tenants_find(const struct tenants *ts, const char *name);
/* Other limits from now on. What is used above them stays, and so does what was set at run time and is the same in both. */
void tenants_reload(
	struct tenants *ts, struct cache *c, const struct options *o, const struct options *was);
void tenants_fini(struct tenants *ts);

#endif
