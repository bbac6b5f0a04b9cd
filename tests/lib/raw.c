/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/lib/raw.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/wire.h"

int raw_connect(const struct daemon_process *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert(s >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", d->socket);
	assert(connect(s, (struct sockaddr *)&a, sizeof(a)) == 0);
	return s;
}

/* The daemon may have ended the session in the meantime: then there is nothing to send to. */
void raw_send_bytes(int sock, const void *data, size_t n, const int *fds, unsigned n_fds)
{
	int r = wire_send(sock, data, n, fds, n_fds);

	assert(r == 0 || r == -EPIPE || r == -ECONNRESET);
}

void raw_send_fds(int sock, const Kvgate__V1__Request *q, const int *fds, unsigned n_fds)
{
	size_t n = kvgate__v1__request__get_packed_size(q);
	uint8_t *buf = malloc(n + 1);

	assert(buf);
	kvgate__v1__request__pack(q, buf);
	raw_send_bytes(sock, buf, n, fds, n_fds);
	free(buf);
}

void raw_send(int sock, const Kvgate__V1__Request *q)
{
	raw_send_fds(sock, q, NULL, 0);
}

bool raw_recv(int sock, struct raw_reply *ret)
{
	static uint8_t buf[KVG_MESSAGE_MAX];
	struct pollfd p = {.fd = sock, .events = POLLIN};
	ssize_t n;

	if (poll(&p, 1, 10000) != 1) {
		fprintf(stderr, "no answer within 10 s\n");
		assert(!"no answer");
	}
	n = wire_recv(sock, buf, sizeof(buf), ret->fds, 64, &ret->n_fds);
	if (n <= 0)
		return false;
	ret->reply = kvgate__v1__reply__unpack(NULL, (size_t)n, buf);
	assert(ret->reply);
	assert(ret->reply->fds == ret->n_fds);
	return true;
}

void raw_reply_free(struct raw_reply *r)
{
	for (unsigned i = 0; i < r->n_fds; i++)
		close(r->fds[i]);
	kvgate__v1__reply__free_unpacked(r->reply, NULL);
}

int raw_ask(int sock, const Kvgate__V1__Request *q)
{
	struct raw_reply r;
	int code;

	raw_send(sock, q);
	if (!raw_recv(sock, &r))
		return -1;
	assert(r.reply->id == q->id);
	code = (int)r.reply->code;
	raw_reply_free(&r);
	return code;
}

void raw_hello(int sock)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;

	h.version_min = 1;
	h.version_max = KVG_PROTOCOL_VERSION;
	h.client = (char *)(uintptr_t) "raw";
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &h;
	assert(raw_ask(sock, &q) == KVG_CODE_OK);
}
