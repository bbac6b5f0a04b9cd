/* SPDX-License-Identifier: Apache-2.0 */
/*
 * staging: the rest of what cache.h declares - where a session's staging memory is mapped here.
 * Thread: any that holds a reference. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_DAEMON_CACHE_STAGING_H
#define KVGATE_DAEMON_CACHE_STAGING_H

#include <stdint.h>

struct staging;

/* Read only, and the client may write to it at any time: copy, then check, then use. */
const uint8_t *staging_map(const struct staging *s);

#endif
