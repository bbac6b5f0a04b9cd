/* SPDX-License-Identifier: Apache-2.0 */
/*
 * reply: bytes from the daemon become a checked message.
 * Thread: any, no state. Locks: none. Blocks: never. Errors: -EBADMSG for what no daemon of this protocol sends, -ENOMEM.
 */
#ifndef KVGATE_CLIENT_LIB_REPLY_H
#define KVGATE_CLIENT_LIB_REPLY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/kvgate.pb-c.h"
#include "proto/wire.h"

struct reply {
	Kvgate__V1__Reply *msg;
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds;
};

/*
 * Parses and checks: lengths of keys and digests, counts against fds, numbers that must be finite. Takes the fds in
 * every case: on failure they are closed.
 */
int reply_parse(const uint8_t *data, size_t n, const int *fds, unsigned n_fds, struct reply *ret);
void reply_fini(struct reply *r);
/* The daemon's last message: it answers no request, and its code and text say why the session is over. */
bool reply_is_end(const Kvgate__V1__Reply *m);

/* errno (negative) of a code in a reply; 0 for OK and EXISTS. */
int code_errno(uint32_t code);

#endif
