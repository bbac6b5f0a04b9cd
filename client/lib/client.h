/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client: what one connection consists of, and the calls its parts make of each other.
 * Thread: everything of one client belongs to one thread at a time. Locks: none. Blocks: what says so, until the
 * client's timeout. Errors: negative errno, with the text set by client_fail().
 */
#ifndef KVGATE_CLIENT_LIB_CLIENT_H
#define KVGATE_CLIENT_LIB_CLIENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/include/kvgate.h"
#include "client/lib/attach.h"
#include "client/lib/reply.h"
#include "proto/key.h"
#include "proto/kvgate.pb-c.h"
#include "proto/plane.h"
#include "proto/shape.h"
#include "proto/wire.h"

struct segment_map;

/* One request in flight: waited for by a blocking call, or given to kvg_commit_start()'s function. */
enum call_kind {
	CALL_BLOCKING,
	CALL_COMMIT,
	CALL_ABANDONED
};
struct call {
	struct call *next;
	uint64_t id;
	enum call_kind kind;
	Kvgate__V1__Reply__BodyCase body; /* what a good reply holds */
	size_t n_items;                   /* CALL_COMMIT: results that must come */
	kvg_commit_fn fn;
	void *userdata;
	bool done;
	struct reply reply; /* when done */
};

/* What kvg_dispatch() has to hand out: an event, or the end of a commit. */
struct delivery {
	struct delivery *next;
	struct call *call; /* NULL: an event */
	int error;         /* of the connection, with `call` */
	struct reply reply;
};

struct kvg_client {
	int sock;
	int dead;         /* errno (negative) that ended the connection; 0 while it lives */
	int lookup_error; /* why lookups are refused: dead, or a control session */
	int timeout_ms, resume_ms;
	bool resuming;     /* calls made meanwhile do not begin it again */
	char *path, *name; /* of the socket, of this client: for the next connection */
	uint64_t next_id;
	struct call *calls;
	struct delivery *queue, **queue_end;
	unsigned n_events; /* in the queue */
	uint64_t lost_events;
	int poll_fd, wake_fd; /* kvg_fd(): made when first asked for */
	uint32_t events;      /* subscribed to */
	kvg_event_fn event_fn;
	void *event_userdata;

	struct index_map index;
	struct pin_map pins;
	uint32_t epoch; /* of the index, when this session began */
	struct segment_map *segments;
	size_t n_segments, segments_size; /* open addressing, a power of two */
	uint8_t *staging;                 /* NULL until the first stage reply */
	uint64_t staging_bytes;
	int arrival_fd;   /* kvg_arrival_fd(): of the first reply that did not wait; -1 */
	bool arrival_old; /* it is of a connection that ended */
	struct old_staging *old_staging; /* of connections that ended: mapped still, and empty */

	struct key_hasher *hasher;
	struct kvg_layout *layouts;
	struct kvg_device *devices;
	struct session_info {
		uint32_t version, pins;
		uint64_t features, session, staging_bytes;
		bool admin;
		char *tenant, *daemon;
	} info;

	int code; /* of the last failure */
	char error[512];
	uint8_t in[KVG_MESSAGE_MAX];
};

struct kvg_layout {
	struct kvg_client *client;
	struct kvg_layout *next;
	uint32_t id, runs, k_row, v_row;
	struct kv_shape shape;
	uint32_t page_bytes, gated_layers, hidden, hidden_dtype, n_edges;
	uint8_t fingerprint[32], gate_digest[32];
	float edges[KVG_PLANES_MAX - 1];
	float floor;
	bool foreign_keys;
	uint8_t *registration; /* RegisterLayout as it was sent */
	size_t registration_bytes;
};

/* Sets the client's error text and code; returns r. c NULL: the thread's text, for what has no client yet. */
int client_fail(struct kvg_client *c, int r, int code, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
/* Copies a sized option struct: shorter ones from older callers are zero-filled, longer ones must end in zeros. */
int options_copy(struct kvg_client *c, void *dst, size_t size, const void *src);
/* The reverse, for sized structs that are filled in: never writes more than dst's own size. */
void options_fill(void *dst, const void *src, size_t size);

/* Connects c->sock to c->path. Blocks while the daemon's backlog is full. */
int client_connect(struct kvg_client *c);
/* The first exchange over c->sock; h needs what is special in it. 0: *ret holds a checked reply, reply_fini() it. Blocks. */
int client_hello(struct kvg_client *c, Kvgate__V1__Hello *h, struct reply *ret);
/* All of a first hello: fills in c->info, and index and pins unless o->control. Blocks. */
int client_open_session(struct kvg_client *c, const struct kvg_options *o);
/*
 * resume.c: before a request, and where a lookup finds another epoch: connects anew when that is wanted and the connection
 * has ended. 0, or why there is none.
 */
int client_revive(struct kvg_client *c);

/* ---- conn.c: requests and replies ---- */

/*
 * Sends q (id and fds are set here) and waits for its reply. 0: *ret holds a reply with code OK and the body of
 * the same kind, reply_fini() it. Else a negative errno with the text set. Blocks.
 */
int client_call(struct kvg_client *c, Kvgate__V1__Request *q, struct reply *ret);
/* Sends q; the reply goes to a CALL_COMMIT's function, or is only cleaned up (CALL_ABANDONED). Blocks on a full socket. */
int client_send(
	struct kvg_client *c, Kvgate__V1__Request *q, enum call_kind kind, struct call **ret);
/* 0 for a reply with code OK, else its errno, with its text set. */
int reply_refused(struct kvg_client *c, const struct reply *r);
/* The connection is over: refuses everything from here on. Returns r. */
int client_end(struct kvg_client *c, int r, const char *what);
/* Frees calls and queue without running anything. */
void client_drop_calls(struct kvg_client *c);
/* The connection has ended: commits are to be told so by kvg_dispatch(), other calls are forgotten, the socket is closed. */
void client_hang_up(struct kvg_client *c);
/* c->sock is another one. */
int client_watch_again(struct kvg_client *c);

/* ---- the parts that kvg_close() ends ---- */

void layouts_fini(struct kvg_client *c);
void segments_fini(struct kvg_client *c);
void stage_fini(struct kvg_client *c);
/* Its memory goes; what the caller still has of it stays readable and writable, for nobody. */
void stage_retire(struct kvg_client *c);
int layout_register_again(struct kvg_layout *l);
/* What devices have, and whether they are there, may have changed with the daemon. */
int devices_open_again(struct kvg_client *c);
void devices_fini(struct kvg_client *c);
int subscribe_again(struct kvg_client *c);

/* ---- parts that a late reply or an event ends up in ---- */

int stage_adopt(
	struct kvg_client *c, struct reply *r); /* takes the staging memfd of a first stage reply */
void commit_deliver(struct kvg_client *c, struct call *call, int error, const struct reply *r);
void event_deliver(struct kvg_client *c, const Kvgate__V1__Event *e);

/* The same for the pipe of a first acquire reply that did not wait. */
int arrival_adopt(struct kvg_client *c, struct reply *r);
void arrival_fini(struct kvg_client *c);
void keys_to_bytes(const struct kvg_key *keys, size_t n, ProtobufCBinaryData *ret);

/* ---- lookup.c ---- */

/*
 * kvg_prefix_pin() that also ends where less than `want` is mapped and a lower tier has more. *ret_why: 0, or why it ended, as
 * kvg_lookup_pin() says it.
 */
size_t prefix_pin(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float min_retention,
	float want, struct kvg_pin *ret_pins, int *ret_why);
size_t pins_left(const struct kvg_client *c);

/* ---- acquire.c ---- */

struct wish {
	float min_retention, want;
	int prefix;
	bool no_wait;
	uint32_t device; /* 0: none */
};
ssize_t acquire_all(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	const struct wish *w, struct kvg_acquired *ret, uint8_t *ret_coming);

/* remote.c */
ssize_t prefetch_all(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float retention,
	uint32_t device);

/* ---- segments.c ---- */

struct segment_map {
	uint32_t id; /* 0: free */
	uint32_t page_shift;
	uint64_t bytes;
	const uint8_t *base;
};
/* Mapped already, or NULL. No system call. */
const struct segment_map *segment_find(const struct kvg_client *c, uint32_t id);
/* Maps those of ids[n] that are not mapped yet. Blocks for one round trip when there are any. */
int segments_map(struct kvg_client *c, const uint32_t *ids, size_t n);

/* ---- planes.c ---- */

bool pin_is_held(const struct kvg_client *c, const struct kvg_pin *pin);
struct kvg_shm_plane_ref plane_ref_read(const struct kvg_shm_plane_ref *from);
/* Views of pin->mapped by plane number, *ret_bits says which. -EBADMSG, -EINVAL; maps segments (blocks). */
int pin_views(struct kvg_layout *l, const struct kvg_pin *pin,
	struct plane_view ret[KVG_PLANES_MAX], unsigned *ret_bits);

#endif
