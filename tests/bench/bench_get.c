/* SPDX-License-Identifier: Apache-2.0 */
/*
 * get_32MiB_ratio: the same 32 MiB, once as an opaque block in a real kvgated, once as a value in a real redis-server,
 * both reached over Unix sockets by this process. Ours: kvg_lookup_pin + kvg_planes until a pointer can be read
 * from, the segment mapped before as in any process that has read once. Redis: GET until the reply is in memory.
 * To show that the pointer is good, the bytes behind it are compared after every round, outside the timing.
 * get_32MiB_first_ratio is the same for a process that has read nothing yet: connect, hello, layout, map, look up.
 */
#include <assert.h>
#include <errno.h>
#include <hiredis/hiredis.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/figure.h"
#include "tests/lib/harness.h"

#define BYTES      (32u << 20)
#define REDIS_HEAD "$33554432\r\n" /* of a reply with so many bytes */
#define GETS       15u
#define LOOKUPS    2001u
#define SKIPPED    77

static const char config[] =
	"[memory]\nhost_bytes = 256MiB\nsegment_bytes = 64MiB\nindex_slots = 65536\n";

/* ---- Redis ---- */

struct redis {
	pid_t pid;
	char dir[64], socket[96];
	redisContext *c;
};

static bool redis_start(struct redis *r)
{
	strcpy(r->dir, "/tmp/kvgate-redis-XXXXXX");
	assert(mkdtemp(r->dir));
	snprintf(r->socket, sizeof(r->socket), "%s/sock", r->dir);
	r->pid = fork();
	assert(r->pid >= 0);
	if (r->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		if (!freopen("/dev/null", "w", stdout))
			_exit(127);
		execlp("redis-server", "redis-server", "--port", "0", "--unixsocket", r->socket,
			"--dir", r->dir, "--save", "", "--appendonly", "no", (char *)NULL);
		_exit(127);
	}
	for (int i = 0; i < 1000; i++) {
		int status;

		if (waitpid(r->pid, &status, WNOHANG) == r->pid) {
			r->pid = 0;
			return false;
		}
		r->c = redisConnectUnix(r->socket);
		if (r->c && !r->c->err)
			return true;
		redisFree(r->c);
		r->c = NULL;
		usleep(10000);
	}
	return false;
}

static void redis_stop(struct redis *r)
{
	int status;

	if (r->c)
		redisFree(r->c);
	if (r->pid > 0) {
		kill(r->pid, SIGTERM);
		waitpid(r->pid, &status, 0);
	}
	unlink(r->socket);
	rmdir(r->dir);
}

/*
 * One GET, read into memory that is there and of the right size, past the client library: its growing buffers would
 * cost several times what Redis and the kernel do. Returns where the value begins.
 */
static const uint8_t *redis_get(int fd, uint8_t *buffer)
{
	static const char request[] = "*2\r\n$3\r\nGET\r\n$5\r\nblock\r\n";
	const size_t head = strlen(REDIS_HEAD), all = head + BYTES + 2;
	size_t got = 0;

	assert(write(fd, request, sizeof(request) - 1) == sizeof(request) - 1);
	while (got < all) {
		ssize_t n = read(fd, buffer + got, all - got);

		assert(n > 0);
		got += (size_t)n;
	}
	assert(!memcmp(buffer, REDIS_HEAD, head));
	return buffer + head;
}

static double measure_redis(struct redis *r, const uint8_t *bytes)
{
	double us[GETS];
	uint8_t *buffer = malloc(BYTES + 64);
	redisReply *reply = redisCommand(r->c, "SET block %b", bytes, (size_t)BYTES);

	assert(buffer && reply && reply->type == REDIS_REPLY_STATUS);
	freeReplyObject(reply);
	memset(buffer, 1, BYTES + 64);
	for (unsigned i = 0; i < GETS; i++) {
		double t0 = figure_now_us();
		const uint8_t *value = redis_get(r->c->fd, buffer);

		us[i] = figure_now_us() - t0;
		assert(!memcmp(value, bytes, BYTES));
	}
	free(buffer);
	return figure_median(us, GETS);
}

/* ---- ours ---- */

static struct kvg_layout *layout(struct kvg_client *c)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l;

	o.model = "bench_get";
	o.opaque_bytes = BYTES;
	o.key_namespace = "bench";
	if (kvg_layout(c, &o, &l) < 0) {
		fprintf(stderr, "bench_get: %s\n", kvg_last_error(c));
		exit(1);
	}
	return l;
}

static struct kvg_layout *put_block(
	struct kvg_client *c, const uint8_t *bytes, struct kvg_key *ret_key)
{
	struct kvg_commit item = {0};
	struct kvg_commit_result result;
	struct kvg_layout *l = layout(c);
	struct kvg_stage s;

	if (kvg_stage(l, KVG_INPUT_NONE, 1, &s) != 1) {
		fprintf(stderr, "bench_get: %s\n", kvg_last_error(c));
		exit(1);
	}
	memcpy(s.kv, bytes, BYTES);
	s.tokens = NULL;
	memset(ret_key, 0x5a, sizeof(*ret_key));
	item.stage = &s;
	item.key = *ret_key;
	if (kvg_commit(c, &item, 1, &result) < 0 || result.code != KVG_CODE_OK) {
		fprintf(stderr, "bench_get: %s%s\n", kvg_last_error(c), result.error);
		exit(1);
	}
	return l;
}

static double measure_kvgate(
	struct kvg_client *c, struct kvg_layout *l, const struct kvg_key *key, const uint8_t *bytes)
{
	static double us[LOOKUPS];

	for (unsigned i = 0; i < LOOKUPS; i++) {
		struct kvg_plane plane[KVG_PLANES_MAX];
		struct kvg_pin pin;
		double t0 = figure_now_us();
		int r = kvg_lookup_pin(l, key, 1.0f, &pin);
		int n = r < 0 ? r : kvg_planes(l, &pin, plane);

		us[i] = figure_now_us() - t0;
		assert(n == 1 && plane[0].opaque_bytes == BYTES);
		if (i % 200 == 0)
			assert(!memcmp(plane[0].k, bytes, BYTES));
		kvg_unpin(c, &pin, 1);
	}
	return figure_median(us, LOOKUPS);
}

/* From nothing to the pointer, the byte behind it included. */
static double measure_first(
	const struct daemon_process *d, const struct kvg_key *key, const uint8_t *bytes)
{
	double us[GETS];

	for (unsigned i = 0; i < GETS; i++) {
		struct kvg_plane plane[KVG_PLANES_MAX];
		struct kvg_pin pin;
		double t0 = figure_now_us();
		struct kvg_client *c = client_open(d);
		struct kvg_layout *l = layout(c);

		assert(kvg_lookup_pin(l, key, 1.0f, &pin) == 0 && kvg_planes(l, &pin, plane) == 1);
		assert(*(const volatile uint8_t *)plane[0].k == bytes[0]);
		us[i] = figure_now_us() - t0;
		kvg_close(c);
	}
	return figure_median(us, GETS);
}

static void report(const char *name, double ours, double theirs)
{
	const double ratio = ours / theirs;

	figure_print(&(struct figure_line){"core", name, "ratio", ratio, FIGURE_NONE, ratio},
		"ours %.2f us, redis-server GET %.0f us", ours, theirs);
}

int main(void)
{
	struct daemon_process d;
	struct redis redis = {0};
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key;
	uint8_t *bytes = malloc(BYTES);
	double theirs;

	assert(bytes);
	for (uint32_t i = 0; i < BYTES; i++)
		bytes[i] = (uint8_t)(i * 2654435761u >> 24);
	if (!redis_start(&redis)) {
		fprintf(stderr,
			"bench_get: redis-server does not run here; install the package "
			"redis-server\n");
		redis_stop(&redis);
		return SKIPPED;
	}
	daemon_start(&d, config);
	c = client_open(&d);
	l = put_block(c, bytes, &key);
	theirs = measure_redis(&redis, bytes);
	report("get_32MiB_ratio", measure_kvgate(c, l, &key, bytes), theirs);
	report("get_32MiB_first_ratio", measure_first(&d, &key, bytes), theirs);
	kvg_close(c);
	redis_stop(&redis);
	daemon_stop(&d);
	daemon_cleanup(&d);
	free(bytes);
	return figure_status();
}
