/* SPDX-License-Identifier: Apache-2.0 */
/*
 * keep: sees to it that the next daemon gets what this one has of a tenant; private to daemon/cache.
 * Thread: the control thread; the pool's watch any. Locks: none. Blocks: never.
 * Errors: negative errno. Where nobody keeps fds nothing happens.
 */
#ifndef KVGATE_DAEMON_CACHE_KEEP_H
#define KVGATE_DAEMON_CACHE_KEEP_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cache_layout;
struct cache_tenant;
struct pool_watch;

extern const struct pool_watch keep_watch; /* of segments; their owner is the tenant */

/* Index and catalog; before the tenant has anything else. */
int keep_tenant(struct cache_tenant *t);
/* It is no more. While the daemon goes down (park_freeze()) everything stays. */
void keep_forget(struct cache_tenant *t);
/* Before a block refers to it; again when it has learned something. */
int keep_layout(const struct cache_layout *l);
/* Limits, watermarks or the tenant's floor may have changed. */
void keep_policy(struct cache_tenant *t);
/* model NULL: all models that have a floor of their own. */
void keep_model(struct cache_tenant *t, const char *model, float floor, float configured);
/* All of it anew: the catalog was full, or damaged. */
int keep_rewrite(struct cache_tenant *t);

/* The record of a layout, as in the catalog: for the tier below, which outlives catalogs. At most CATALOG_RECORD_MAX bytes. */
size_t keep_encode_layout(const struct cache_layout *l, uint8_t *ret);
/* The layout of such a record, which comes to be if the tenant has none of its fingerprint. -EBADMSG, -ENOSPC, -ENOMEM. */
int keep_take_layout(
	struct cache_tenant *t, const uint8_t *payload, size_t n, struct cache_layout **ret);

/* The other way: a record of the catalog takes effect. -EBADMSG: it cannot be. */
int keep_take(struct cache_tenant *t, uint16_t type, const uint8_t *payload, size_t n);
/* The name in a catalog's first record. False: it has none. */
bool keep_name(uint16_t type, const uint8_t *payload, size_t n, char *ret, size_t size);

#endif
