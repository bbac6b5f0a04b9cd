/* SPDX-License-Identifier: Apache-2.0 */
/*
 * request: from a message to its answer; private to daemon/serve.
 * Thread: the control thread, one request at a time. Locks: none. Blocks: never.
 * Errors: enum kvg_code, which is what the client is told.
 *
 * `prep` looks at the message, checks everything that can be checked without the cache, and copies what it needs;
 * the message is gone when `run` starts, which sees only the copy. Copy and reply live in the request's arena.
 */
#ifndef KVGATE_DAEMON_SERVE_REQUEST_H
#define KVGATE_DAEMON_SERVE_REQUEST_H

#include "daemon/serve/session.h"
#include "proto/kvgate.pb-c.h"
#include "proto/kvgate-types.h"

#define REQUEST_NAME_MAX 256  /* model, gate, tenant, revision ... with its end */
#define REQUEST_TEXT_MAX 1024 /* rope and eviction settings, which engines write out */
/* Above what any request can need: the largest are replies, bounded by the message they must fit. */
#define REQUEST_ARENA    (2u << 20)

struct request {
	struct server *server;
	struct session
		*session; /* NULL: the answer to one that began earlier, see request_resume() */
	struct tenant *tenant;
	uint64_t id;
	void *args;                   /* what prep left for run */
	Kvgate__V1__Reply *reply;     /* run sets the body */
	int fds[KVG_MESSAGE_FDS_MAX]; /* to send along; borrowed */
	unsigned n_fds;
	bool later; /* run keeps the id and answers when it is done */
	char why[256];
};

/* From the arena; cannot fail, since every count that leads here has a limit. */
void *request_alloc(struct request *r, size_t n, size_t size);
void *request_zalloc(struct request *r, size_t n, size_t size); /* zeroed */
#define request_new(r, n, type) ((type *)request_zalloc(r, n, sizeof(type)))

/* Sets the text that goes with the code. */
int request_refuse(struct request *r, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The text of a quota that is used up. KVG_CODE_QUOTA. */
int request_over_quota(struct request *r, enum account_resource what);
/* The code for a negative errno of the daemon's own trouble; the log has it too when it is a defect. */
int request_errno(struct request *r, int error);

/* A copy in the arena: at most `max` - 1 printable bytes (UTF-8 allowed). NULL: refused with BAD_ARGUMENT. */
char *request_text(struct request *r, const char *what, const char *text, size_t max);
/* Keys of 32 bytes, at most KVG_BATCH_MAX. OK, TOO_LARGE, BAD_ARGUMENT. */
int request_keys(
	struct request *r, size_t n, const ProtobufCBinaryData *keys, struct kvg_key **ret);
int request_key(
	struct request *r, const char *what, const ProtobufCBinaryData *key, struct kvg_key *ret);
/* The tenant that is meant: "" or one's own, or another's if the client is an admin. OK, DENIED, NOT_FOUND. */
int request_tenant(struct request *r, const char *name, struct tenant **ret);
/* A number that a Device reply gave, 0: none; *ret counts from 0. OK, NOT_FOUND. */
int request_device(struct request *r, uint32_t device, unsigned *ret);
/* OK, NOT_FOUND. */
int request_layout(struct request *r, struct tenant *t, uint32_t id, struct cache_layout **ret);

/* One message from this client. */
void request_serve(struct session *s, const void *data, size_t n, unsigned n_fds);
/* The arena is at hand again, to make the reply to a request that began earlier. Not while one is served. */
void request_resume(struct request *r, struct server *s, struct tenant *t, uint64_t id,
	Kvgate__V1__Reply *reply);
/* A reply, also outside of a request: of a commit that is done. */
void request_send(struct session *s, Kvgate__V1__Reply *reply, const int *fds, unsigned n_fds);
/* A last message that answers no request: why there is or will be no session. */
void request_farewell(struct session *s, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* The session is over because of a message that cannot be, and the client is told why in a reply to no request. */
void request_end(struct session *s, int code, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
/* An event. False: it is lost, there is no room beside replies. */
bool request_offer(struct session *s, Kvgate__V1__Reply *reply);

struct request_buffers *request_buffers_new(void);
struct request_buffers *request_buffers_free(struct request_buffers *b);
/* KVG_MESSAGE_MAX bytes, for what is received. */
void *request_buffers_in(struct request_buffers *b);

/* ---- operations, a file for each family ---- */

struct request_op {
	const char *name;
	int (*prep)(struct request *r, const Kvgate__V1__Request *q);
	int (*run)(struct request *r);
	bool greeting; /* the one that opens a session */
	bool writes;   /* refused while the daemon drains */
	bool maps;     /* gives descriptors out: not to a control session */
};

#define REQUEST_OP(name)                                                                           \
	int prep_##name(struct request *r, const Kvgate__V1__Request *q);                          \
	int run_##name(struct request *r)
REQUEST_OP(hello);
REQUEST_OP(register_layout);
REQUEST_OP(stage);
REQUEST_OP(commit);
REQUEST_OP(abort);
REQUEST_OP(acquire);
REQUEST_OP(release);
REQUEST_OP(prefetch);
REQUEST_OP(map_segments);
REQUEST_OP(device);
REQUEST_OP(list);
REQUEST_OP(inspect);
REQUEST_OP(stat);
REQUEST_OP(purge);
REQUEST_OP(policy);
REQUEST_OP(subscribe);

/* Ends of sessions, for what only the families know. */
void commits_orphan(struct session *s); /* commits in flight lose their client and go on */
void commits_cancel(struct server *s);  /* the daemon goes down: nobody waits for any of them */
void later_orphan(struct session *s);   /* the same for purges and verifications */
void later_cancel(struct server *s);
void acquires_cancel(struct session
		*s); /* nobody waits any more, and pins that were not answered for are gone */
void acquires_shut_down(struct server *s); /* those who wait are told so */
/* The session's last pin of this block is about to go. */
void acquires_released(struct session *s, struct kvg_handle h);
void arrivals_init(struct arrivals *a);
void arrivals_fini(struct arrivals *a);
void events_unsubscribe(struct session *s);
void events_catch_up(struct session *s); /* it has read everything: tells it what it lost */
struct cache_event;
void events_deliver(void *server, const struct cache_event *e);

/* As they appear in replies. */
Kvgate__V1__BlockInfo *block_info_new(struct request *r, const struct cache_block_info *from);
void device_infos_fill(struct request *r, Kvgate__V1__StatReply *ret);
void layout_info_fill(struct request *r, const struct cache_layout *l, Kvgate__V1__LayoutInfo *ret);

#endif
