/* SPDX-License-Identifier: Apache-2.0 */
/*
 * serve_fixture: a server over a real cache, and clients that speak to it, all in one process and one thread.
 * Thread: the test's. Locks: none. Blocks: until an answer is there, some seconds at most. Errors: asserts.
 */
#ifndef KVGATE_TESTS_SERVE_FIXTURE_H
#define KVGATE_TESTS_SERVE_FIXTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/counters.h"
#include "daemon/base/loop.h"
#include "daemon/base/options.h"
#include "daemon/cache/cache.h"
#include "daemon/serve/server.h"
#include "proto/kvgate.pb-c.h"
#include "proto/wire.h"

struct serving {
	struct options *options;
	struct loop *loop;
	struct counters *counters;
	struct counter_scope *scope; /* of the tenant that this process belongs to */
	struct cache *cache;
	struct server *server;
	char dir[64], socket[80];
};

/* config: the options as in a file, on top of a small cache. */
void serving_start(struct serving *s, const char *config);
void serving_stop(struct serving *s);
/* Rounds of the loop until nothing happens any more. */
void serving_settle(struct serving *s);

struct client {
	struct serving *s;
	int sock;
	uint64_t id; /* of the last request */
};
void client_connect(struct client *c, struct serving *s);
void client_hangup(struct client *c);
void client_hello(struct client *c, bool control);

struct answer {
	Kvgate__V1__Reply *m; /* NULL: the session ended */
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds;
};
void answer_free(struct answer *a);

/* Sends as it is but for the id, which is the next one. */
void client_send(struct client *c, Kvgate__V1__Request *q);
void client_send_fds(struct client *c, Kvgate__V1__Request *q, const int *fds, unsigned n_fds);
/* Runs the loop until an answer is here. */
void client_receive(struct client *c, struct answer *ret);
void client_ask(struct client *c, Kvgate__V1__Request *q, struct answer *ret);
/* The code of the answer; -1 when the session ended. */
int client_code(struct client *c, Kvgate__V1__Request *q);

/* A small layout without gate: 1 layer, 1 head, 4 tokens, foreign keys. Returns its id. */
uint32_t client_layout(struct client *c, const char *model);
/* n stages of it; ret_ids. Returns the number granted, or the negative code. */
int client_stage(struct client *c, uint32_t layout, uint32_t n, uint64_t *ret_ids);
/* Sends a commit of one stage under key {k, k, ...}. */
void client_send_commit(struct client *c, uint64_t stage, uint8_t k);
/* Stages and commits block k, waits, and asserts that it is there. */
void client_put(struct client *c, uint32_t layout, uint8_t k);

#define REQUEST(name, kind, type, CASE, TYPE)                                                      \
	Kvgate__V1__Request name = KVGATE__V1__REQUEST__INIT;                                      \
	Kvgate__V1__##type name##_body = KVGATE__V1__##TYPE##__INIT;                               \
	name.body_case = KVGATE__V1__REQUEST__BODY_##CASE;                                         \
	name.kind = &name##_body

#endif
