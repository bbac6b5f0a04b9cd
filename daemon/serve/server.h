/* SPDX-License-Identifier: Apache-2.0 */
/*
 * server: all sessions, their tenants, and the socket they come from.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno with a text.
 */
#ifndef KVGATE_DAEMON_SERVE_SERVER_H
#define KVGATE_DAEMON_SERVE_SERVER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct cache;
struct counters;
struct loop;
struct options;
struct park;
struct server;

struct server_parts { /* all borrowed; they outlive the server */
	struct loop *loop;
	struct cache *cache;
	struct counters *counters;
	const struct options *options;
	struct park *park; /* NULL: nobody passed anything, nobody keeps anything */
};

int server_new(const struct server_parts *p, struct server **ret);
struct server *server_free(struct server *s); /* ends every session */
/*
 * Takes over what the last daemon parked: the cache's tenants, and pins of clients who may come back. Once, before
 * server_listen(). What nobody takes is dropped.
 */
int server_adopt(struct server *s);
int server_listen(struct server *s, char *ret_why, size_t why_size);

/* Takes over what can change at run time; `o` replaces the options given before. */
void server_reload(struct server *s, const struct options *o);

/*
 * No new sessions, stages or commits; done runs when what is under way is finished and nothing that was said to a client
 * waits in here any more, perhaps at once. A client that does not read is for the caller to lose patience with.
 */
typedef void (*server_done_fn)(void *userdata);
void server_drain(struct server *s, server_done_fn done, void *userdata);

/* "3 sessions of 2 tenants, 2 requests under way" */
void server_status(const struct server *s, char *ret, size_t size);

#endif
