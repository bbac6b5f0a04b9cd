/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A whole server, and a client that says hello, registers a layout, and then sends whatever comes: the input is a row of
 * messages, each behind its length in two bytes. The server may refuse or hang up; when the client is gone, nothing may
 * be left of it, whatever it said.
 */
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/base/counters.h"
#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/base/options.h"
#include "daemon/cache/cache.h"
#include "daemon/serve/server.h"
#include "proto/kvgate.pb-c.h"
#include "proto/wire.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct options *options;
static struct loop *loop;
static struct counters *counters;
static struct counter_scope *scope;
static struct cache *cache;
static struct server *server;
static char dir[] = "/tmp/kvgate-fuzz-XXXXXX";

static void clean_up(void)
{
	char lock[OPTIONS_TEXT_MAX + 8];

	server_free(server);
	cache_free(cache);
	snprintf(lock, sizeof(lock), "%s.lock", options->socket);
	unlink(lock);
	rmdir(dir);
}

static void set_up(void)
{
	static const char *const argv[] = {"fuzz", "--config=/dev/null", "--prefault=no",
		"--host-bytes=8MiB", "--segment-bytes=1MiB", "--index-slots=256",
		"--staging-bytes=1MiB", "--pins=64", "--in-flight=8"};
	char *const none[] = {NULL};
	char why[300], tenant[32];
	struct cache_options co = {.host_bytes = 8 << 20,
		.segment_bytes = 1 << 20,
		.index_slots = 256,
		.high_watermark = .95f,
		.low_watermark = .9f,
		.pack_workers = 1,
		.numa_node = -1};
	struct server_parts parts;

	assert(mkdtemp(dir));
	log_set_level(LOG_LEVEL_ERROR);
	assert(options_load(sizeof(argv) / sizeof(argv[0]), (char *const *)(uintptr_t)argv, none,
		       &options, why, sizeof(why)) == 0);
	snprintf(options->socket, sizeof(options->socket), "%s/sock", dir);
	assert(loop_new(&loop) == 0 && counters_new(&counters) == 0);
	snprintf(tenant, sizeof(tenant), "uid-%u", (unsigned)geteuid());
	assert(counters_scope(counters, tenant, "", &scope) == 0);
	co.loop = loop;
	co.counters = counters;
	assert(cache_new(&co, &cache) == 0);
	parts = (struct server_parts){loop, cache, counters, options};
	assert(server_new(&parts, &server) == 0);
	assert(server_listen(server, why, sizeof(why)) == 0);
	atexit(clean_up);
}

static void turn(int rounds)
{
	for (int i = 0; i < rounds; i++)
		assert(loop_run_once(loop, 0) == 0);
}

static void drop_replies(int sock)
{
	static uint8_t buf[KVG_MESSAGE_MAX];
	int fds[KVG_MESSAGE_FDS_MAX];
	unsigned n_fds;
	ssize_t n;

	while ((n = wire_recv(sock, buf, sizeof(buf), fds, KVG_MESSAGE_FDS_MAX, &n_fds)) > 0) {
		Kvgate__V1__Reply *r = kvgate__v1__reply__unpack(NULL, (size_t)n, buf);

		assert(r && r->fds == n_fds && (!r->code || r->error[0]));
		kvgate__v1__reply__free_unpacked(r, NULL);
		for (unsigned i = 0; i < n_fds; i++)
			close(fds[i]);
	}
}

static int start_client(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello hello = KVGATE__V1__HELLO__INIT;
	Kvgate__V1__RegisterLayout layout = KVGATE__V1__REGISTER_LAYOUT__INIT;
	uint8_t buf[500];
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	memcpy(a.sun_path, options->socket, strlen(options->socket) + 1);
	assert(s >= 0 && connect(s, (struct sockaddr *)&a, sizeof(a)) == 0);
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &hello;
	hello.version_min = hello.version_max = 1;
	assert(wire_send(s, buf, kvgate__v1__request__pack(&q, buf), NULL, 0) == 0);
	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_REGISTER_LAYOUT;
	q.register_layout = &layout;
	layout.model = (char *)(uintptr_t) "m";
	layout.layers = layout.heads = 1;
	layout.k_dim = layout.v_dim = 8;
	layout.dtype = KVG_DTYPE_BF16;
	layout.block_tokens = 4;
	layout.key_namespace = (char *)(uintptr_t) "fuzz";
	assert(wire_send(s, buf, kvgate__v1__request__pack(&q, buf), NULL, 0) == 0);
	turn(4);
	drop_replies(s);
	return s;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	int sock;

	if (!server)
		set_up();
	sock = start_client();
	while (size > 2) {
		size_t n = (size_t)(data[0] | data[1] << 8);

		data += 2;
		size -= 2;
		n = n < size ? n : size;
		if (n && wire_send(sock, data, n, NULL, 0) < 0)
			break;
		data += n;
		size -= n;
		turn(2);
		drop_replies(sock);
	}
	close(sock);
	for (int i = 0; i < 5000 &&
		(counter_get(scope, COUNTER_SESSIONS, 0) || counter_get(scope, COUNTER_STAGING, 0));
		i++)
		assert(loop_run_once(loop, 1) == 0);
	assert(counter_get(scope, COUNTER_SESSIONS, 0) == 0);
	assert(counter_get(scope, COUNTER_STAGING, 0) == 0);
	return 0;
}
