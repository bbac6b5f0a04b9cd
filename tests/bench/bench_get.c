/* SPDX-License-Identifier: Apache-2.0 */
/*
 * get_32MiB_ratio: the same 32 MiB, once as an opaque block in a real kvgated, once as a value in a real redis-server,
 * both reached over Unix sockets by this process. Ours: kvg_lookup_pin + kvg_planes until a pointer can be read
 * from, the segment mapped before as in any process that has read once. Redis: GET until the reply is in memory.
 * To show that the pointer is good, the bytes behind it are compared after every round, outside the timing.
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
#include <time.h>
#include <unistd.h>

#include "tests/lib/harness.h"

#define BYTES   (32u << 20)
#define GETS    15u
#define LOOKUPS 2001u
#define SKIPPED 77

static const char config[] =
	"[memory]\nhost_bytes = 256MiB\nsegment_bytes = 64MiB\nindex_slots = 65536\n";

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static int by_value(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *v, size_t n)
{
	qsort(v, n, sizeof(*v), by_value);
	return v[n / 2];
}

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

static double measure_redis(struct redis *r, const uint8_t *bytes)
{
	double us[GETS];
	redisReply *reply = redisCommand(r->c, "SET block %b", bytes, (size_t)BYTES);

	assert(reply && reply->type == REDIS_REPLY_STATUS);
	freeReplyObject(reply);
	for (unsigned i = 0; i < GETS; i++) {
		double t0 = now_us();

		reply = redisCommand(r->c, "GET block");
		us[i] = now_us() - t0;
		assert(reply && reply->type == REDIS_REPLY_STRING && reply->len == BYTES);
		assert(!memcmp(reply->str, bytes, BYTES));
		freeReplyObject(reply);
	}
	return median(us, GETS);
}

/* ---- ours ---- */

static struct kvg_layout *put_block(
	struct kvg_client *c, const uint8_t *bytes, struct kvg_key *ret_key)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_commit item = {0};
	struct kvg_commit_result result;
	struct kvg_layout *l;
	struct kvg_stage s;

	o.model = "bench_get";
	o.opaque_bytes = BYTES;
	o.key_namespace = "bench";
	if (kvg_layout(c, &o, &l) < 0 || kvg_stage(l, KVG_INPUT_NONE, 1, &s) != 1) {
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
		double t0 = now_us();
		int r = kvg_lookup_pin(l, key, 1.0f, &pin);
		int n = r < 0 ? r : kvg_planes(l, &pin, plane);

		us[i] = now_us() - t0;
		assert(n == 1 && plane[0].opaque_bytes == BYTES);
		if (i % 200 == 0)
			assert(!memcmp(plane[0].k, bytes, BYTES));
		kvg_unpin(c, &pin, 1);
	}
	return median(us, LOOKUPS);
}

int main(void)
{
	struct daemon_process d;
	struct redis redis = {0};
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key;
	uint8_t *bytes = malloc(BYTES);
	double ours, theirs;

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
	ours = measure_kvgate(c, l, &key, bytes);
	printf("{\"suite\":\"core\",\"name\":\"get_32MiB_ratio\",\"value\":%.3g,\"unit\":\"ratio\","
	       "\"limit\":0.001,"
	       "\"limit_what\":\"must be at most; ours %.2f us, redis-server GET %.0f "
	       "us\",\"ratio\":%.3g}\n",
		ours / theirs, ours, theirs, ours / theirs);
	kvg_close(c);
	redis_stop(&redis);
	daemon_stop(&d);
	daemon_cleanup(&d);
	free(bytes);
	return 0;
}
