/* SPDX-License-Identifier: Apache-2.0 */
/*
 * session: one connection and everything that it holds; private to daemon/serve.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_SERVE_SESSION_H
#define KVGATE_DAEMON_SERVE_SESSION_H

#include "daemon/base/loop.h"
#include "daemon/cache/parked.h"
#include "daemon/serve/held.h"
#include "daemon/serve/outbox.h"
#include "daemon/serve/peer.h"
#include "daemon/serve/pinpage.h"
#include "daemon/serve/server.h"
#include "daemon/serve/stages.h"
#include "daemon/serve/tenant.h"
#include "proto/wire.h"

struct acquire;
struct commit_batch;
struct later;
struct request_buffers;

/* Where a client that does not wait is told that planes came up. */
struct arrivals {
	int read_fd, write_fd; /* -1: no pipe yet */
	bool sent;             /* the first of them, to the client */
};

enum session_state {
	SESSION_GREETING, /* connected, hello to come */
	SESSION_OPEN,
	SESSION_AWAY,   /* of the last daemon: it has no socket, and its client may come back */
	SESSION_ENDING, /* the peer is gone or cut off; freed at the end of the round */
};

struct session {
	struct session *next, **link; /* of the server's sessions */
	struct server *server;
	struct tenant *tenant; /* NULL before hello */
	enum session_state state;
	uint64_t id;
	bool admin, control;
	char client[64]; /* what it calls itself; for the log */

	int sock; /* -1: away */
	struct peer peer;
	struct loop_source *on_sock, *on_death;
	bool waiting; /* for the socket to be writable */
	struct loop_work end;
	struct outbox outbox;

	struct session *next_greeting, **link_greeting; /* of those that have not said hello */
	struct charge presence;
	struct pinpage pinpage;
	struct charge page_pins; /* beyond its share */
	struct parked parked; /* the page's name in the keeper's hands; kind 0: it is not there */
	struct arrivals arrivals;
	struct acquire *acquires; /* whose planes are on their way */
	unsigned n_acquires;
	struct held held;
	struct charge held_charge;
	struct stages stages;
	struct cache_layout **layouts; /* that it registered or staged for: held */
	uint32_t n_layouts;
	struct commit_batch *batches; /* commits that are not answered yet */
	struct later *later;          /* purges and verifications that are not */
	unsigned n_later;

	uint32_t events; /* bits of 1 << Kvgate__V1__EventKind; 0: not subscribed */
	struct tenant *events_of;
	uint64_t events_lost;
	struct charge subscription;
	struct session *next_subscriber;
};

struct server {
	struct server_parts parts;
	struct listener *listener;
	struct sweeper *sweeper;
	struct tenants tenants;
	struct session *sessions, *greetings, *subscribers;
	struct counter_scope *scope; /* of no tenant: what happens before hello */
	struct loop_timer *watch;
	struct session *watched;      /* the next one to be looked at; NULL: the first */
	struct commit_batch *orphans; /* commits whose client is gone */
	int64_t n_sessions;
	uint64_t last_session;
	struct later *later; /* those of sessions that are gone */
	int64_t n_batches;   /* requests that are answered later */
	int64_t n_waiting;   /* sessions with something to say to a full socket */
	bool draining;
	bool refusing; /* connections, and that was logged */
	server_done_fn done;
	void *done_userdata;
	struct request_buffers *buffers; /* of the one request that is being served */
};

/* Connections of one user that have not said hello; a client says it at once. */
#define SESSION_GREETINGS_MAX 64

/* Takes sock; on failure it is closed. */
int session_new(struct server *s, int sock, struct session **ret);
/* One that an earlier daemon had under this number. Takes the peer's pidfd on success. */
int session_new_away(struct server *s, struct tenant *t, uint64_t id, const struct peer *peer,
	struct session **ret);
void session_free(struct session *s);
/* Now and then: does the client keep to its stages? */
void session_watch(struct session *s);
/* It said hello, and belongs to this tenant. */
void session_greeted(struct session *s, struct tenant *t);
/* What counts for it. */
struct counter_scope *session_scope(const struct session *s);
/* At the end of this round; nothing is received or sent any more. */
void session_end(struct session *s, const char *why);
/* The client knows this layout's id from now on. -ENOMEM. */
int session_hold_layout(struct session *s, struct cache_layout *l);
/* A whole message. A client that cannot be told, or does not read, is cut off. */
void session_send(struct session *s, const void *data, size_t n, const int *fds, unsigned n_fds);

/* The same for an event. False: there is no room for it beside replies; nothing happened. */
bool session_offer(struct session *s, const void *data, size_t n);
/* An event was lost: when everything is read, events_catch_up() runs. */
void session_lost_event(struct session *s);

/* The client broke the protocol: counted, and logged less and less often. */
void session_bad_message(struct session *s, const char *what, const char *why);

/* One of n_batches was answered, or nobody waits for it any more. */
void server_batch_done(struct server *s);
/* A session begins (1) or ceases (-1) to wait for its socket. */
void server_waiting(struct server *s, int change);

#endif
