/* SPDX-License-Identifier: Apache-2.0 */
/*
 * away: sessions of the last daemon whose clients have not come back yet; private to daemon/serve.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno; enum kvg_code for clients.
 *
 * What they pinned stays pinned until the process is gone or resumes. Nothing else is left of them: stages, commits and pins
 * through the socket went with the connection.
 */
#ifndef KVGATE_DAEMON_SERVE_AWAY_H
#define KVGATE_DAEMON_SERVE_AWAY_H

#include "daemon/serve/request.h"

/* A session that just said hello: its pin page and its process are there for the next daemon. */
void away_keep(struct session *s);
/* It is over. */
void away_forget(struct session *s);
/* s, which says hello, takes the place of the session of this number. OK; NO_SESSION with text. */
int away_resume(struct request *r, uint64_t id);

#endif
