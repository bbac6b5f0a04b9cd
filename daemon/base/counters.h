/* SPDX-License-Identifier: Apache-2.0 */
/*
 * counters: what the daemon counts, by tenant, model, tier and plane; names and prose in counters.def.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: -ENOMEM.
 */
#ifndef KVGATE_DAEMON_BASE_COUNTERS_H
#define KVGATE_DAEMON_BASE_COUNTERS_H

#include <stdint.h>

enum counter_id {
#define COUNTER(id, name, kind, split, prose) COUNTER_##id,
#include "daemon/base/counters.def"
#undef COUNTER
	COUNTER_N
};

#define COUNTER_SUBS 8 /* planes, or tiers */

struct counters;
struct counter_scope; /* one (tenant, model); model "" = not of a model. Lives until it is forgotten */

int counters_new(struct counters **ret);
struct counters *counters_free(struct counters *c);
int counters_scope(struct counters *c, const char *tenant, const char *model,
	struct counter_scope **ret); /* found or made; tenant "" = the daemon itself */

/* Every scope of a tenant that is no more; who kept a pointer to one may not use it any longer. */
void counters_forget(struct counters *c, const char *tenant);

/* sub: tier or plane, 0 when not split. */
void counter_add(struct counter_scope *s, enum counter_id id, unsigned sub, int64_t n);
void counter_set(struct counter_scope *s, enum counter_id id, unsigned sub, int64_t value);
int64_t counter_get(const struct counter_scope *s, enum counter_id id, unsigned sub);

/* Every value that is not 0. tenant NULL = all. sub -1 = not split. */
typedef void (*counter_fn)(void *userdata, enum counter_id id, const char *tenant,
	const char *model, int sub, int64_t value);
void counters_each(const struct counters *c, const char *tenant, counter_fn fn, void *userdata);

const char *counter_name(enum counter_id id);
const char *counter_prose(enum counter_id id);
int counter_is_gauge(enum counter_id id);
enum counter_split {
	COUNTER_SPLIT_NONE,
	COUNTER_SPLIT_TIER,
	COUNTER_SPLIT_PLANE
};
enum counter_split counter_split(enum counter_id id);

#endif
