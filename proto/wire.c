/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A message and its fds arrive together or not at all (SOCK_SEQPACKET). What arrives cut is closed
 * here, so that no caller can leak an fd it was never told of.
 */
#include "proto/wire.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

union control {
	char bytes[CMSG_SPACE(sizeof(int) * KVG_MESSAGE_FDS_MAX)];
	struct cmsghdr align;
};

int wire_send(int sock, const void *data, size_t n, const int *fds, unsigned n_fds)
{
	struct iovec iov = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control;
	ssize_t sent;

	assert(n_fds <= KVG_MESSAGE_FDS_MAX);
	if (n == 0 || n > KVG_MESSAGE_MAX) /* an empty message would read as the end */
		return -EMSGSIZE;
	if (n_fds) {
		struct cmsghdr *c;

		memset(&control, 0, sizeof(control));
		msg.msg_control = control.bytes;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * n_fds);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * n_fds);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * n_fds);
	}
	do
		sent = n_fds ? sendmsg(sock, &msg, MSG_NOSIGNAL)
			     : send(sock, data, n, MSG_NOSIGNAL);
	while (sent < 0 && errno == EINTR);
	if (sent < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	return 0;
}

static void close_all(const int *fds, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		close(fds[i]);
}

ssize_t wire_recv(
	int sock, void *buf, size_t size, int *ret_fds, unsigned fds_size, unsigned *ret_n_fds)
{
	struct iovec iov = {.iov_base = buf, .iov_len = size};
	union control control;
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.bytes,
		.msg_controllen = sizeof(control.bytes),
	};
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds = 0;
	ssize_t got;

	do
		got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got < 0)
		return errno == EWOULDBLOCK ? -EAGAIN : -errno;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t bytes;

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		bytes = c->cmsg_len - CMSG_LEN(0);
		assert(n_fds + bytes / sizeof(int) <= KVG_MESSAGE_FDS_MAX);
		memcpy(&fds[n_fds], CMSG_DATA(c), bytes);
		n_fds += (unsigned)(bytes / sizeof(int));
	}
	if (got == 0) { /* the end, or an empty message: nobody who keeps the protocol sends one */
		close_all(fds, n_fds);
		n_fds = 0;
	}
	if ((msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || n_fds > fds_size) {
		close_all(fds, n_fds);
		return msg.msg_flags & MSG_TRUNC ? -EMSGSIZE : -ETOOMANYREFS;
	}
	if (n_fds)
		memcpy(ret_fds, fds, n_fds * sizeof(int));
	*ret_n_fds = n_fds;
	return got;
}
