/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message -> unpack -> operation from the table -> prep -> run -> reply, all in one call from the loop.
 *
 * Two classes of errors. A value that cannot be, a quota, a miss: an ordinary answer, and the session goes on. A
 * message that cannot be (it does not parse, names no operation, comes before hello, declares file descriptors that
 * are not there): the answer says so and the session ends, because the two sides no longer agree on what was said. Where
 * it is not even known which request that was, the answer has id 0.
 */
#include "daemon/serve/request.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"

#define OP(body, fn, ...)                                                                          \
	[KVGATE__V1__REQUEST__BODY_##body] = {                                                     \
		.name = #fn, .prep = prep_##fn, .run = run_##fn, ##__VA_ARGS__}
static const struct request_op ops[] = {
	OP(HELLO, hello, .greeting = true),
	OP(REGISTER_LAYOUT, register_layout),
	OP(STAGE, stage, .writes = true, .maps = true),
	OP(COMMIT, commit, .writes = true),
	OP(ABORT, abort),
	OP(ACQUIRE, acquire),
	OP(RELEASE, release),
	OP(PREFETCH, prefetch),
	OP(MAP_SEGMENTS, map_segments, .maps = true),
	OP(DEVICE, device, .maps = true),
	OP(LIST, list),
	OP(INSPECT, inspect),
	OP(STAT, stat),
	OP(PURGE, purge),
	OP(POLICY, policy),
	OP(SUBSCRIBE, subscribe),
};

/*
 * The unpacked message has an arena of its own, which any request that a client sends in earnest fits; what does not
 * goes to the heap, and only then is there anything to free.
 */
#define UNPACK_ARENA (256u << 10)
/* Every reply is bounded so that it fits a message; a defect in that is to hit the assert and not the memory behind. */
#define OUT_SLACK    (256u << 10)

struct request_buffers {
	uint8_t in[KVG_MESSAGE_MAX], out[KVG_MESSAGE_MAX + OUT_SLACK];
	_Alignas(64) uint8_t arena[REQUEST_ARENA], unpacked[UNPACK_ARENA];
	size_t used, unpacked_used;
	bool spilled;
};

struct request_buffers *request_buffers_new(void)
{
	return malloc(sizeof(struct request_buffers));
}

struct request_buffers *request_buffers_free(struct request_buffers *b)
{
	free(b);
	return NULL;
}

void *request_buffers_in(struct request_buffers *b)
{
	return b->in;
}

void *request_alloc(struct request *r, size_t n, size_t size)
{
	struct request_buffers *b = r->server->buffers;
	void *p = b->arena + b->used;

	assert(size && n <= REQUEST_ARENA / size);
	b->used += (n * size + 15) & ~(size_t)15;
	assert(b->used <= REQUEST_ARENA);
	return p;
}

void *request_zalloc(struct request *r, size_t n, size_t size)
{
	return memset(request_alloc(r, n, size), 0, n * size);
}

/* ---- refusing ---- */

int request_refuse(struct request *r, int code, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(r->why, sizeof(r->why), fmt, args);
	va_end(args);
	return code;
}

int request_over_quota(struct request *r, enum account_resource what)
{
	account_refusal(&r->tenant->account, what, r->why, sizeof(r->why));
	return KVG_CODE_QUOTA;
}

int request_errno(struct request *r, int error)
{
	if (error == -ENOMEM || error == -ENOSPC || error == -EMFILE || error == -ENFILE)
		return request_refuse(r, KVG_CODE_NO_MEMORY, "%s: %s",
			kvg_code_prose(KVG_CODE_NO_MEMORY), strerror(-error));
	log_error("request failed", "session=%llu error=\"%s\"", (unsigned long long)r->session->id,
		strerror(-error));
	return request_refuse(r, KVG_CODE_INTERNAL, "%s; see the daemon's log", strerror(-error));
}

/* ---- checking and copying ---- */

/* Length of the UTF-8 sequence at p, 0 for a byte that none begins with. */
static unsigned sequence(const unsigned char *p)
{
	unsigned n = p[0] < 0x80  ? 1
		: p[0] >> 5 == 6  ? 2
		: p[0] >> 4 == 14 ? 3
		: p[0] >> 3 == 30 ? 4
				  : 0;

	for (unsigned i = 1; i < n; i++)
		if (p[i] >> 6 != 2) /* the end, too */
			return 0;
	return n;
}

static bool printable(const char *text)
{
	for (const unsigned char *p = (const unsigned char *)text; *p;) {
		unsigned n = sequence(p);

		if (!n || *p < ' ' || *p == 0x7f)
			return false;
		p += n;
	}
	return true;
}

char *request_text(struct request *r, const char *what, const char *text, size_t max)
{
	size_t n = strlen(text);
	char *copy;

	if (n >= max) {
		request_refuse(r, KVG_CODE_BAD_ARGUMENT, "%s has %zu bytes: use at most %zu", what,
			n, max - 1);
		return NULL;
	}
	if (!printable(text)) {
		request_refuse(r, KVG_CODE_BAD_ARGUMENT, "%s is not printable UTF-8", what);
		return NULL;
	}
	copy = request_alloc(r, n + 1, 1);
	return memcpy(copy, text, n + 1);
}

int request_key(
	struct request *r, const char *what, const ProtobufCBinaryData *key, struct kvg_key *ret)
{
	if (key->len != KVG_KEY_BYTES)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT, "%s has %zu bytes: a key has %d",
			what, key->len, KVG_KEY_BYTES);
	memcpy(ret->b, key->data, KVG_KEY_BYTES);
	return KVG_CODE_OK;
}

int request_keys(struct request *r, size_t n, const ProtobufCBinaryData *keys, struct kvg_key **ret)
{
	int code = KVG_CODE_OK;

	if (n > KVG_BATCH_MAX)
		return request_refuse(r, KVG_CODE_TOO_LARGE, "%zu keys: use at most %u a request",
			n, KVG_BATCH_MAX);
	*ret = request_alloc(r, n, sizeof(**ret));
	for (size_t i = 0; i < n && !code; i++)
		code = request_key(r, "a key", &keys[i], &(*ret)[i]);
	return code;
}

int request_tenant(struct request *r, const char *name, struct tenant **ret)
{
	struct tenant *t = r->tenant;

	if (name[0] && strcmp(name, t->name)) {
		if (!r->session->admin)
			return request_refuse(r, KVG_CODE_DENIED, "tenant %s: %s", name,
				kvg_code_prose(KVG_CODE_DENIED));
		t = tenants_find(&r->session->server->tenants, name);
		if (!t)
			return request_refuse(r, KVG_CODE_NOT_FOUND, "no tenant %s", name);
	}
	*ret = t;
	return KVG_CODE_OK;
}

int request_layout(struct request *r, struct tenant *t, uint32_t id, struct cache_layout **ret)
{
	*ret = cache_layout_get(t->cache, id);
	if (!*ret)
		return request_refuse(r, KVG_CODE_NOT_FOUND,
			"no layout %u of tenant %s: register it first", id, t->name);
	return KVG_CODE_OK;
}

/* ---- answering ---- */

void request_send(struct session *s, Kvgate__V1__Reply *reply, const int *fds, unsigned n_fds)
{
	uint8_t *out = s->server->buffers->out;
	size_t n;

	reply->fds = n_fds;
	n = kvgate__v1__reply__pack(reply, out);
	assert(n <= KVG_MESSAGE_MAX);
	session_send(s, out, n, fds, n_fds);
}

void request_resume(struct request *r, struct server *s, struct tenant *t, uint64_t id,
	Kvgate__V1__Reply *reply)
{
	s->buffers->used = 0;
	*r = (struct request){.server = s, .tenant = t, .id = id, .reply = reply};
	reply->id = id;
}

bool request_offer(struct session *s, Kvgate__V1__Reply *reply)
{
	uint8_t *out = s->server->buffers->out;

	return session_offer(s, out, kvgate__v1__reply__pack(reply, out));
}

static void farewell(struct session *s, int code, char *why)
{
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;

	reply.code = (uint32_t)code;
	reply.error = why;
	request_send(s, &reply, NULL, 0);
}

void request_farewell(struct session *s, int code, const char *fmt, ...)
{
	char why[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	farewell(s, code, why);
}

void request_end(struct session *s, int code, const char *fmt, ...)
{
	char why[256];
	va_list args;

	va_start(args, fmt);
	vsnprintf(why, sizeof(why), fmt, args);
	va_end(args);
	farewell(s, code, why);
	session_bad_message(s, kvg_code_name(code), why);
	session_end(s, "refused");
}

static bool code_ends(int code)
{
	return code == KVG_CODE_BAD_MESSAGE || code == KVG_CODE_BAD_FDS ||
		code == KVG_CODE_NOT_HELLO || code == KVG_CODE_BAD_VERSION;
}

static void answer(struct request *r, int code)
{
	Kvgate__V1__Reply bare = KVGATE__V1__REPLY__INIT;

	if (code == KVG_CODE_OK) {
		r->reply->id = r->id;
		request_send(r->session, r->reply, r->fds, r->n_fds);
		return;
	}
	bare.id = r->id;
	bare.code = (uint32_t)code;
	bare.error = r->why[0] ? r->why : (char *)(uintptr_t)kvg_code_prose(code);
	request_send(r->session, &bare, NULL, 0);
	if (code_ends(code))
		session_bad_message(r->session, kvg_code_name(code), bare.error);
	if (code_ends(code) || r->session->state == SESSION_GREETING)
		session_end(r->session, "refused");
}

/* ---- unpacking ---- */

static void *unpack_alloc(void *buffers, size_t n)
{
	struct request_buffers *b = buffers;
	void *p = b->unpacked + b->unpacked_used;

	if (n > UNPACK_ARENA - b->unpacked_used) {
		b->spilled = true;
		return malloc(n);
	}
	b->unpacked_used += (n + 15) & ~(size_t)15;
	return p;
}

static void unpack_free(void *buffers, void *p)
{
	struct request_buffers *b = buffers;

	if ((uint8_t *)p < b->unpacked || (uint8_t *)p >= b->unpacked + UNPACK_ARENA)
		free(p);
}

/* ---- serving ---- */

static int check_envelope(struct request *r, const Kvgate__V1__Request *q, unsigned n_fds,
	const struct request_op **ret)
{
	const struct session *s = r->session;
	const struct request_op *op;

	if (q->fds != n_fds)
		return request_refuse(r, KVG_CODE_BAD_FDS, "%u file descriptors declared, %u came",
			q->fds, n_fds);
	if (n_fds)
		return request_refuse(r, KVG_CODE_BAD_FDS, "no request takes file descriptors");
	if (!q->id)
		return request_refuse(r, KVG_CODE_BAD_MESSAGE, "request ids begin at 1");
	if ((size_t)q->body_case >= sizeof(ops) / sizeof(ops[0]) || !ops[q->body_case].prep)
		return request_refuse(r, KVG_CODE_BAD_MESSAGE, "no request that this daemon knows");
	op = &ops[q->body_case];
	if (s->state == SESSION_GREETING && !op->greeting)
		return request_refuse(r, KVG_CODE_NOT_HELLO, "%s before hello", op->name);
	if (s->state != SESSION_GREETING && op->greeting)
		return request_refuse(r, KVG_CODE_BAD_MESSAGE, "hello twice");
	if (s->control && op->maps)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"a control session gets no descriptors, so it has no %s; open a session "
			"without `control`",
			op->name);
	*ret = op;
	if (s->server->draining && (op->writes || op->greeting))
		return KVG_CODE_SHUTTING_DOWN;
	return KVG_CODE_OK;
}

void request_serve(struct session *s, const void *data, size_t n, unsigned n_fds)
{
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;
	struct request_buffers *b = s->server->buffers;
	ProtobufCAllocator allocator = {unpack_alloc, unpack_free, b};
	const struct request_op *op = NULL;
	Kvgate__V1__Request *q;
	struct request r;
	int code;

	b->used = b->unpacked_used = 0;
	b->spilled = false;
	q = kvgate__v1__request__unpack(&allocator, n, data);
	r.server = s->server;
	r.session = s;
	r.tenant = s->tenant;
	r.id = q ? q->id : 0;
	r.reply = &reply;
	r.n_fds = 0;
	r.later = false;
	r.why[0] = '\0';
	counter_add(session_scope(s), COUNTER_REQUESTS, 0, 1);
	code = q ? check_envelope(&r, q, n_fds, &op) : KVG_CODE_BAD_MESSAGE;
	if (!code)
		code = op->prep(&r, q);
	if (q && b->spilled)
		kvgate__v1__request__free_unpacked(q, &allocator);
	if (!code)
		code = op->run(&r);
	if (!r.later)
		answer(&r, code);
}
