/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener: the socket that clients connect to, and the lock that keeps a second daemon from its path.
 * Thread: the control thread. Locks: flock() on PATH.lock while it lives. Blocks: never.
 * Errors: negative errno with a text that says what to do.
 */
#ifndef KVGATE_DAEMON_SERVE_LISTENER_H
#define KVGATE_DAEMON_SERVE_LISTENER_H

#include <stddef.h>
#include <sys/types.h>

struct listener;
struct loop;
struct park;

/* sock: non-blocking, close-on-exec, the callee's from here on. */
typedef void (*listener_fn)(void *userdata, int sock);

/* Takes the socket that systemd passed, if it did (park NULL: it did not); else makes one at `path` with `mode`. */
int listener_new(struct loop *loop, struct park *park, const char *path, mode_t mode,
	listener_fn fn, void *userdata, struct listener **ret, char *ret_why, size_t why_size);
/* Nobody can connect any more, and the socket that it made is gone; the lock stays until it is freed. */
void listener_close(struct listener *l);
struct listener *listener_free(struct listener *l);

#endif
