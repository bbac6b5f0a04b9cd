/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire: one SOCK_SEQPACKET message with its file descriptors.
 * Thread: any, no state. Locks: none. Blocks: as the socket does. Errors: negative errno as below.
 */
#ifndef KVGATE_PROTO_WIRE_H
#define KVGATE_PROTO_WIRE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define KVG_PROTOCOL_VERSION 1u
#define KVG_MESSAGE_MAX                                                                            \
	(128u << 10) /* below the kernel's default SO_SNDBUF, so one message always fits */
#define KVG_MESSAGE_FDS_MAX 64u  /* fds in one message; SCM_MAX_FD is 253 */
#define KVG_BATCH_MAX       256u /* items in one batch request */

/*
 * Sends all or nothing: 1 to KVG_MESSAGE_MAX bytes, up to KVG_MESSAGE_FDS_MAX fds, which stay the caller's.
 * 0, -EAGAIN (non-blocking and full), -EPIPE, -EMSGSIZE, ... Never raises SIGPIPE.
 */
int wire_send(int sock, const void *data, size_t n, const int *fds, unsigned n_fds);

/*
 * Receives one message into buf. Returns its length; 0 at the end of file (an empty message counts as
 * that); -EAGAIN; -EMSGSIZE when the message was cut, -ETOOMANYREFS when only its fds were (there were more than
 * fds_size, or than this process may open); -ECONNRESET, ... Only with a length > 0 are there fds, close-on-exec and the caller's: ret_fds[0..*ret_n_fds). All others are closed here.
 */
ssize_t wire_recv(
	int sock, void *buf, size_t size, int *ret_fds, unsigned fds_size, unsigned *ret_n_fds);

#endif
