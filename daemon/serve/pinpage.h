/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pinpage: the memfd in which one client writes its pins, and the daemon's read-only view of it.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_SERVE_PINPAGE_H
#define KVGATE_DAEMON_SERVE_PINPAGE_H

#include <stdbool.h>

#include "daemon/cache/cache.h"

#define PINPAGE_TOUCHES 4096u /* reads that a client may do between two looks of the daemon */

struct pinpage {
	int fd; /* -1: none; read-write, for the client */
	struct pin_page page;
	struct cache_tenant *tenant; /* attached to */
};

void pinpage_init(struct pinpage *p);
/* Makes it, with room for n_pins >= 1 pins, and shows it to the cache. */
int pinpage_attach(struct pinpage *p, struct cache_tenant *t, uint32_t n_pins);
/* One that an earlier daemon made; fd is taken on success. -EBADMSG: it is none. Nobody is shown it yet. */
int pinpage_adopt(struct pinpage *p, int fd, uint32_t n_pins, uint32_t n_touch);
void pinpage_show(struct pinpage *p, struct cache_tenant *t);
/* To an empty one; it is to be shown again. */
void pinpage_move(struct pinpage *to, struct pinpage *from);
bool pinpage_pins(const struct pinpage *p, struct kvg_handle h);
void pinpage_fini(struct pinpage *p);        /* every pin in it is gone */
bool pinpage_holds(const struct pinpage *p); /* any pin, as far as the client's word goes */

#endif
