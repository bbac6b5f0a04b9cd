/* SPDX-License-Identifier: Apache-2.0 */
/*
 * catalog: what the next daemon has to know of a tenant beside its index - records in a memfd, the later ones count.
 * Thread: the control thread; catalog_given() any. Locks: none. Blocks: never.
 * Errors: negative errno; -ENOSPC: full, to be written anew.
 */
#ifndef KVGATE_DAEMON_CACHE_CATALOG_H
#define KVGATE_DAEMON_CACHE_CATALOG_H

#include <stddef.h>
#include <stdint.h>

#define CATALOG_RECORD_MAX                                                                         \
	(64u << 10) /* the largest is a layout with its texts and a thousand ungated layers */

struct catalog;

int catalog_new(const uint8_t index_instance[16], struct catalog **ret);
/* fd is taken on success. -EPROTONOSUPPORT: of another version; -EBADMSG: no catalog. */
int catalog_adopt(int fd, struct catalog **ret);
struct catalog *catalog_free(struct catalog *c);
int catalog_fd(const struct catalog *c);                  /* borrowed */
const uint8_t *catalog_instance(const struct catalog *c); /* of the index that it belongs to */

/* There for the next daemon when this returns. */
int catalog_append(struct catalog *c, uint16_t type, const void *payload, size_t n);
/* What is appended after the first counts from the second on, and all that was before no longer does. */
void catalog_rewrite(struct catalog *c);
void catalog_rewritten(struct catalog *c);

/* A checked copy of each record; what fn returns, unless 0, ends it. -EBADMSG: what follows the last one fn saw is damaged. */
typedef int (*catalog_fn)(void *userdata, uint16_t type, const uint8_t *payload, size_t n);
int catalog_read(const struct catalog *c, catalog_fn fn, void *userdata);

/* The greatest segment id that was ever given to this tenant. */
void catalog_given(struct catalog *c, uint32_t segment);
uint32_t catalog_last_given(const struct catalog *c);

#endif
