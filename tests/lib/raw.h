/* SPDX-License-Identifier: Apache-2.0 */
/*
 * raw: the protocol without the library, for messages the library would never send.
 * Thread: the test's. Locks: none. Blocks: for a reply, 10 s. Errors: asserts.
 */
#ifndef KVGATE_TESTS_RAW_H
#define KVGATE_TESTS_RAW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/kvgate.pb-c.h"
#include "tests/lib/harness.h"

int raw_connect(const struct daemon_process *d);
void raw_send_bytes(int sock, const void *data, size_t n, const int *fds, unsigned n_fds);
void raw_send(int sock, const Kvgate__V1__Request *q);
void raw_send_fds(int sock, const Kvgate__V1__Request *q, const int *fds, unsigned n_fds);

struct raw_reply {
	Kvgate__V1__Reply *reply;
	int fds[64];
	unsigned n_fds;
};
/* False when the daemon ended the session. */
bool raw_recv(int sock, struct raw_reply *ret);
void raw_reply_free(struct raw_reply *r);
/* Says hello and takes the answer; asserts that it is OK. */
void raw_hello(int sock);
/* Sends, receives, and returns the code; -1 when the session ended. */
int raw_ask(int sock, const Kvgate__V1__Request *q);

#endif
