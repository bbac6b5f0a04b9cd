/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A hostile daemon: the input is a call of the library and the messages that answer it.
 *
 *	byte 0		which call
 *	then, each:	flags, length (u16), bytes
 *
 * Flags: 1 - the id of the request is appended, so that the message counts as its answer; 2, 4 - so many sealed memfds
 * travel along and are declared; 8 - they are read-only. After the last message comes the end of the file, so
 * no call waits.
 */
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "client/lib/client.h"

#define MESSAGES_MAX 8
#define MESSAGE_MAX  4096

static int memfd = -1, read_only = -1;

static void send_message(int sock, uint8_t flags, const uint8_t *data, size_t n, uint64_t id)
{
	uint8_t buf[MESSAGE_MAX + 8];
	unsigned n_fds = flags >> 1 & 3;
	int fd = flags & 8 ? read_only : memfd, fds[3] = {fd, fd, fd};

	memcpy(buf, data, n);
	if (flags & 1) { /* field 1, a varint below 128: the last one counts */
		buf[n++] = 1 << 3;
		buf[n++] = (uint8_t)id;
	}
	if (n_fds) {
		buf[n++] = 2 << 3;
		buf[n++] = (uint8_t)n_fds;
	}
	wire_send(sock, buf, n, fds, n_fds);
}

static void send_all(int sock, const uint8_t *data, size_t n)
{
	uint64_t id = 1;

	for (int i = 0; i < MESSAGES_MAX && n >= 3; i++) {
		uint8_t flags = data[0];
		size_t bytes = (size_t)data[1] | (size_t)data[2] << 8;

		data += 3;
		n -= 3;
		bytes %= MESSAGE_MAX;
		if (bytes > n)
			bytes = n;
		send_message(sock, flags, data, bytes, id);
		id += flags & 1;
		data += bytes;
		n -= bytes;
	}
	shutdown(sock, SHUT_WR);
}

static void on_counter(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	(void)plane, (void)value;
	*(size_t *)userdata += strlen(name) + strlen(tenant) + strlen(model) + strlen(tier);
}

static void on_layout(void *userdata, const struct kvg_layout_entry *l)
{
	*(size_t *)userdata += strlen(l->model) + strlen(l->gate);
}

static int on_block(void *userdata, const struct kvg_block_entry *b)
{
	*(size_t *)userdata += b->planes[KVG_PLANES_MAX - 1].pairs;
	return 0;
}

static void on_event(void *userdata, const struct kvg_event *e)
{
	*(size_t *)userdata += strlen(e->tenant) + e->key.b[31];
}

static void on_commit(void *userdata, int64_t ticket, int error,
	const struct kvg_commit_result *results, size_t n)
{
	(void)ticket;
	for (size_t i = 0; i < n && !error; i++)
		*(size_t *)userdata += strlen(results[i].error);
}

/* As after a timeout: nobody waits, and what the reply brings has to be given back. */
static void abandon(struct kvg_client *c, bool stage)
{
	Kvgate__V1__Stage s = KVGATE__V1__STAGE__INIT;
	Kvgate__V1__Acquire a = KVGATE__V1__ACQUIRE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;

	q.body_case = stage ? KVGATE__V1__REQUEST__BODY_STAGE : KVGATE__V1__REQUEST__BODY_ACQUIRE;
	if (stage)
		q.stage = &s;
	else
		q.acquire = &a;
	client_send(c, &q, CALL_ABANDONED, NULL);
}

static void make_call(struct kvg_client *c, struct kvg_layout *l, unsigned which)
{
	static struct kvg_key keys[3];
	static const uint32_t segments[] = {1, 2, 3};
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_inspect_options io = KVG_OPTIONS_INIT(kvg_inspect_options);
	struct kvg_list_options list = KVG_OPTIONS_INIT(kvg_list_options);
	struct kvg_purge_options purge = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_block_entry block = KVG_OPTIONS_INIT(kvg_block_entry);
	struct kvg_layout_entry entry = KVG_OPTIONS_INIT(kvg_layout_entry);
	struct kvg_policy policy = KVG_OPTIONS_INIT(kvg_policy);
	struct kvg_purge_result purged;
	struct kvg_acquired acquired[3];
	uint8_t coming[3];
	struct kvg_stage s[3] = {{.id = 1}, {.id = 2}, {.id = 3}};
	struct kvg_commit items[2] = {{.stage = &s[0]}, {.stage = &s[1]}};
	struct kvg_commit_result results[2];
	struct kvg_layout *made;
	size_t sum = 0;
	ssize_t n;

	lo.model = "m";
	lo.opaque_bytes = 4096;
	switch (which % 16) {
	case 0:
		kvg_layout(c, &lo, &made);
		break;
	case 1:
		n = kvg_stage(l, KVG_INPUT_NONE, 3, s);
		for (ssize_t i = 0; i < n; i++)
			memset(s[i].kv, 1, s[i].kv_bytes);
		break;
	case 2:
		kvg_commit(c, items, 2, results);
		break;
	case 3:
		kvg_commit_start(c, items, 2, on_commit, &sum);
		break;
	case 4:
		if (which & 16)
			kvg_acquire_start(l, keys, 3, 0.5f, 1, 0, acquired, coming);
		else
			kvg_acquire(l, keys, 3, 0.5f, 0, acquired);
		kvg_arrival_wait(c, 0);
		break;
	case 5:
		kvg_prefetch(l, keys, 3, 1);
		break;
	case 6:
		kvg_list(c, &list, on_block, &sum);
		break;
	case 7:
		kvg_inspect(c, &io, &block, &entry);
		break;
	case 8:
		kvg_stat(c, 1, on_counter, &sum);
		break;
	case 9:
		kvg_layouts(c, "t", on_layout, &sum);
		break;
	case 10:
		kvg_policy(c, &policy);
		kvg_purge(c, &purge, &purged);
		break;
	case 11:
		kvg_subscribe(c, 14, on_event, &sum);
		break;
	case 12:
		segments_map(c, segments, 3);
		break;
	case 13:
		client_open_session(c, &o);
		break;
	case 14:
	case 15:
		abandon(c, which & 1);
		break;
	}
	while (kvg_dispatch(c) == 0)
		;
}

static void make_memfds(void)
{
	struct kvg_shm_pins pins = {
		.magic = KVG_PIN_MAGIC,
		.version = KVG_SHM_VERSION,
		.n_pins = 8,
		.n_touch = 8,
		.pins_off = 128,
		.touch_off = 256,
		.total_bytes = 4096,
	};
	char path[64];

	memfd = memfd_create("fuzz", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	assert(memfd >= 0 && ftruncate(memfd, 1 << 20) == 0);
	assert(pwrite(memfd, &pins, sizeof(pins), 0) == sizeof(pins));
	assert(fcntl(memfd, F_ADD_SEALS, F_SEAL_SHRINK) == 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memfd);
	read_only = open(path, O_RDONLY | O_CLOEXEC);
	assert(read_only >= 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct kvg_layout l = {.id = 1, .shape = {.tokens = 16, .opaque_bytes = 4096}};
	struct kvg_client *c;
	int s[2];

	if (memfd < 0)
		make_memfds();
	if (n == 0)
		return 0;
	c = calloc(1, sizeof(*c));
	assert(c && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, s) == 0);
	assert(key_hasher_new(&c->hasher) == 0);
	c->sock = s[0];
	c->poll_fd = c->wake_fd = c->arrival_fd = -1;
	c->queue_end = &c->queue;
	c->timeout_ms = 1000;
	l.client = c;
	send_all(s[1], data + 1, n - 1);
	make_call(c, &l, data[0]);
	kvg_close(c);
	close(s[1]);
	return 0;
}
