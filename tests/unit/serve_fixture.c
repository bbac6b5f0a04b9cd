/* SPDX-License-Identifier: Apache-2.0 */
/* The client's socket is non-blocking and the server's loop turns while it waits: so both sides share one thread. */
#include "tests/unit/serve_fixture.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ROUNDS 2000

static const char small[] =
	"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n"
	"prefault = no\npack_workers = 1\n";

static void load_options(struct serving *s, const char *config)
{
	char text[2000], why[600];
	FILE *f;
	int n = snprintf(
		text, sizeof(text), "%s[daemon]\nsocket = %s\n%s", small, s->socket, config);

	assert(n > 0 && (size_t)n < sizeof(text));
	f = fmemopen(text, (size_t)n, "r");
	assert(f && options_new(&s->options) == 0);
	if (options_read(s->options, f, "fixture", why, sizeof(why)) < 0 ||
		options_check(s->options, why, sizeof(why)) < 0) {
		fprintf(stderr, "%s\n", why);
		abort();
	}
	fclose(f);
}

void serving_start(struct serving *s, const char *config)
{
	char why[300], tenant[32];
	struct cache_options co = {
		.arithmetic = GATE_EXACT,
	};
	struct server_parts parts;

	*s = (struct serving){.dir = "/tmp/kvgate-serve-XXXXXX"};
	assert(mkdtemp(s->dir));
	snprintf(s->socket, sizeof(s->socket), "%s/sock", s->dir);
	load_options(s, config);
	assert(loop_new(&s->loop) == 0);
	assert(counters_new(&s->counters) == 0);
	snprintf(tenant, sizeof(tenant), "uid-%u", (unsigned)geteuid());
	assert(counters_scope(s->counters, tenant, "", &s->scope) == 0);
	co.loop = s->loop;
	co.counters = s->counters;
	co.host_bytes = s->options->host_bytes;
	co.segment_bytes = s->options->segment_bytes;
	co.index_slots = (uint64_t)s->options->index_slots;
	co.high_watermark = (float)s->options->high_watermark;
	co.low_watermark = (float)s->options->low_watermark;
	co.pack_workers = (unsigned)s->options->pack_workers;
	co.numa_node = -1;
	assert(cache_new(&co, &s->cache) == 0);
	parts = (struct server_parts){s->loop, s->cache, s->counters, s->options};
	assert(server_new(&parts, &s->server) == 0);
	if (server_listen(s->server, why, sizeof(why)) < 0) {
		fprintf(stderr, "%s\n", why);
		abort();
	}
}

void serving_stop(struct serving *s)
{
	char lock[100];

	server_free(s->server);
	cache_free(s->cache);
	counters_free(s->counters);
	loop_free(s->loop);
	options_free(s->options);
	snprintf(lock, sizeof(lock), "%s.lock", s->socket);
	unlink(lock);
	assert(rmdir(s->dir) == 0); /* the socket is gone, too */
}

void serving_settle(struct serving *s)
{
	for (int i = 0; i < 50; i++)
		assert(loop_run_once(s->loop, 1) == 0);
}

void client_connect(struct client *c, struct serving *s)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	*c = (struct client){.s = s};
	strcpy(a.sun_path, s->socket);
	c->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert(c->sock >= 0);
	assert(connect(c->sock, (struct sockaddr *)&a, sizeof(a)) == 0);
}

void client_hangup(struct client *c)
{
	close(c->sock);
	c->sock = -1;
	serving_settle(c->s);
}

void answer_free(struct answer *a)
{
	for (unsigned i = 0; i < a->n_fds; i++)
		close(a->fds[i]);
	if (a->m)
		kvgate__v1__reply__free_unpacked(a->m, NULL);
	*a = (struct answer){0};
}

void client_send_fds(struct client *c, Kvgate__V1__Request *q, const int *fds, unsigned n_fds)
{
	static uint8_t buf[KVG_MESSAGE_MAX];
	size_t n;

	q->id = ++c->id;
	n = kvgate__v1__request__get_packed_size(q);
	assert(n <= sizeof(buf));
	kvgate__v1__request__pack(q, buf);
	assert(wire_send(c->sock, buf, n, fds, n_fds) == 0);
}

void client_send(struct client *c, Kvgate__V1__Request *q)
{
	client_send_fds(c, q, NULL, 0);
}

void client_receive(struct client *c, struct answer *ret)
{
	static uint8_t buf[KVG_MESSAGE_MAX];
	ssize_t n = -EAGAIN;

	*ret = (struct answer){0};
	for (int i = 0; i < ROUNDS && n == -EAGAIN; i++) {
		assert(loop_run_once(c->s->loop, 1) == 0);
		n = wire_recv(
			c->sock, buf, sizeof(buf), ret->fds, KVG_MESSAGE_FDS_MAX, &ret->n_fds);
	}
	assert(n != -EAGAIN);
	if (n <= 0)
		return;
	ret->m = kvgate__v1__reply__unpack(NULL, (size_t)n, buf);
	assert(ret->m && ret->m->fds == ret->n_fds);
}

void client_ask(struct client *c, Kvgate__V1__Request *q, struct answer *ret)
{
	client_send(c, q);
	client_receive(c, ret);
	if (ret->m)
		assert(ret->m->id == c->id);
}

int client_code(struct client *c, Kvgate__V1__Request *q)
{
	struct answer a;
	int code;

	client_ask(c, q, &a);
	code = a.m ? (int)a.m->code : -1;
	if (code > 0)
		assert(strlen(a.m->error) > 5); /* a person is told why */
	answer_free(&a);
	return code;
}

void client_hello(struct client *c, bool control)
{
	REQUEST(q, hello, Hello, HELLO, HELLO);

	q_body.version_min = 1;
	q_body.version_max = 9;
	q_body.client = (char *)(uintptr_t) "fixture";
	q_body.control = control;
	assert(client_code(c, &q) == KVG_CODE_OK);
}

uint32_t client_layout(struct client *c, const char *model)
{
	REQUEST(q, register_layout, RegisterLayout, REGISTER_LAYOUT, REGISTER_LAYOUT);
	struct answer a;
	uint32_t id;

	q_body.model = (char *)(uintptr_t)model;
	q_body.layers = q_body.heads = 1;
	q_body.k_dim = q_body.v_dim = 8;
	q_body.dtype = KVG_DTYPE_BF16;
	q_body.block_tokens = 4;
	q_body.key_namespace = (char *)(uintptr_t) "fixture";
	client_ask(c, &q, &a);
	assert(a.m && a.m->code == KVG_CODE_OK);
	id = a.m->register_layout->layout;
	answer_free(&a);
	return id;
}

int client_stage(struct client *c, uint32_t layout, uint32_t n, uint64_t *ret_ids)
{
	REQUEST(q, stage, Stage, STAGE, STAGE);
	struct answer a;
	int got;

	q_body.layout = layout;
	q_body.count = n;
	client_ask(c, &q, &a);
	assert(a.m);
	got = a.m->code ? -(int)a.m->code : (int)a.m->stage->n_slots;
	for (int i = 0; i < got; i++)
		ret_ids[i] = a.m->stage->slots[i]->stage;
	answer_free(&a);
	return got;
}

void client_send_commit(struct client *c, uint64_t stage, uint8_t k)
{
	REQUEST(q, commit, Commit, COMMIT, COMMIT);
	Kvgate__V1__CommitItem item = KVGATE__V1__COMMIT_ITEM__INIT, *items[] = {&item};
	uint8_t key[KVG_KEY_BYTES];

	memset(key, k, sizeof(key));
	item.stage = stage;
	item.key = (ProtobufCBinaryData){.len = sizeof(key), .data = key};
	q_body.items = items;
	q_body.n_items = 1;
	client_send(c, &q);
}

void client_put(struct client *c, uint32_t layout, uint8_t k)
{
	struct answer a;
	uint64_t stage;

	assert(client_stage(c, layout, 1, &stage) == 1);
	client_send_commit(c, stage, k);
	client_receive(c, &a);
	assert(a.m && a.m->id == c->id && a.m->code == KVG_CODE_OK);
	assert(a.m->commit->n_results == 1 && a.m->commit->results[0]->code == KVG_CODE_OK);
	answer_free(&a);
}
