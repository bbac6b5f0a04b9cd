/* SPDX-License-Identifier: Apache-2.0 */
/*
 * outbox: messages to one client, sent at once when its socket takes them, else kept in order.
 * Thread: the control thread. Locks: none. Blocks: never.
 * Account: that of the tenant; NULL: nothing may wait.
 * Errors: -ENOBUFS, -EDQUOT the client reads too slowly, -ENOMEM, those of sendmsg(); the session cannot go on.
 */
#ifndef KVGATE_DAEMON_SERVE_OUTBOX_H
#define KVGATE_DAEMON_SERVE_OUTBOX_H

#include <stdbool.h>
#include <stddef.h>

#include "daemon/base/account.h"

/* Some thousand ordinary replies. A client that has this many waiting is stuck or hostile. */
#define OUTBOX_BYTES_MAX (1u << 20)

struct outbox_message;
struct outbox {
	int sock; /* borrowed */
	struct outbox_message *first, **end;
	struct charge charge;
};

void outbox_init(struct outbox *o, int sock);
void outbox_fini(struct outbox *o);
/* The fds stay the caller's. *ret_waiting: there is something to flush when the socket is writable. */
int outbox_send(struct outbox *o, struct account *a, const void *data, size_t n, const int *fds,
	unsigned n_fds, bool *ret_waiting);
/*
 * For what may be lost. It takes at most half of what the client and of what its tenant may have waiting, so that replies,
 * which must arrive, find room beside it. -ENOBUFS: it was lost, and the session goes on.
 */
int outbox_offer(
	struct outbox *o, struct account *a, const void *data, size_t n, bool *ret_waiting);
int outbox_flush(struct outbox *o, bool *ret_waiting);

#endif
