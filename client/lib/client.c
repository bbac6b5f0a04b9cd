/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A connection is opened by one exchange: HELLO out, and back come the tenant's index (read-only) and a pin page of this
 * session's own (read-write). From then on reading needs the socket no more, except to map segments.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef KVG_VERSION
#define KVG_VERSION "0"
#endif
#define DEFAULT_SOCKET     "/run/kvgated/kvgated.sock"
#define DEFAULT_TIMEOUT_MS 10000

static _Thread_local char thread_error[512]; /* of calls that have no client to keep it in */

int client_fail(struct kvg_client *c, int r, int code, const char *fmt, ...)
{
	char *to = c ? c->error : thread_error;
	size_t size = c ? sizeof(c->error) : sizeof(thread_error);
	va_list args;

	va_start(args, fmt);
	vsnprintf(to, size, fmt, args);
	va_end(args);
	if (c)
		c->code = code;
	return r;
}

int options_copy(struct kvg_client *c, void *dst, size_t size, const void *src)
{
	size_t theirs;

	memset(dst, 0, size);
	if (!src)
		return 0;
	memcpy(&theirs, src, sizeof(theirs));
	if (theirs < sizeof(theirs))
		return client_fail(
			c, -EINVAL, 0, "option struct without its size: use KVG_OPTIONS_INIT");
	for (size_t i = size; i < theirs; i++)
		if (((const uint8_t *)src)[i])
			return client_fail(c, -E2BIG, 0,
				"an option is set that this libkvgate (%s) does not know",
				KVG_VERSION);
	memcpy(dst, src, theirs < size ? theirs : size);
	return 0;
}

void options_fill(void *dst, const void *src, size_t size)
{
	size_t theirs;

	memcpy(&theirs, dst, sizeof(theirs));
	if (theirs > size)
		theirs = size;
	if (theirs > sizeof(theirs)) /* their size stays what it is */
		memcpy((uint8_t *)dst + sizeof(theirs), (const uint8_t *)src + sizeof(theirs),
			theirs - sizeof(theirs));
}

int client_connect(struct kvg_client *c)
{
	const char *path = c->path;
	struct sockaddr_un to = {.sun_family = AF_UNIX};
	struct timeval limit = {
		.tv_sec = c->timeout_ms / 1000, .tv_usec = c->timeout_ms % 1000 * 1000};
	size_t n = strlen(path);

	if (n >= sizeof(to.sun_path))
		return client_fail(c, -ENAMETOOLONG, 0, "%s: a socket's path has at most %zu bytes",
			path, sizeof(to.sun_path) - 1);
	memcpy(to.sun_path, path, n + 1);
	c->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (c->sock < 0)
		return client_fail(c, -errno, 0, "no socket: %s", strerror(errno));
	if (c->timeout_ms >= 0) /* connect() waits while the daemon's backlog is full */
		setsockopt(c->sock, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(c->sock, (struct sockaddr *)&to, sizeof(to)) < 0) {
		int r = errno == EAGAIN ? -ETIMEDOUT : -errno;

		return client_fail(c, r, 0,
			"%s: %s; is kvgated running? (systemctl status kvgated)", path,
			strerror(-r));
	}
	if (fcntl(c->sock, F_SETFL, O_NONBLOCK) < 0)
		return client_fail(c, -errno, 0, "%s: %s", path, strerror(errno));
	return 0;
}

static int attach(struct kvg_client *c, const struct reply *r)
{
	const char *why = "";
	int e;

	e = index_map_init(&c->index, r->fds[0], &why);
	if (e == 0)
		e = pin_map_init(&c->pins, r->fds[1], &why);
	if (e < 0)
		return client_fail(c, e, 0, "hello: %s", why);
	c->epoch = atomic_load_explicit(&c->index.head->epoch, memory_order_relaxed);
	c->lookup_error = 0;
	return 0;
}

int client_hello(struct kvg_client *c, Kvgate__V1__Hello *h, struct reply *ret)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	int r;

	h->version_min = h->version_max = KVG_PROTOCOL_VERSION;
	h->client = c->name;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = h;
	r = client_call(c, &q, ret);
	if (r < 0)
		return r;
	if (ret->msg->hello->version != KVG_PROTOCOL_VERSION)
		r = client_fail(c, -EPROTO, KVG_CODE_BAD_VERSION,
			"the daemon chose protocol version %u of %u", ret->msg->hello->version,
			KVG_PROTOCOL_VERSION);
	else if (ret->n_fds != (h->control ? 0u : 2u))
		r = client_fail(c, -EPROTO, 0, "hello came with %u file descriptors", ret->n_fds);
	if (r < 0)
		reply_fini(ret);
	return r;
}

int client_open_session(struct kvg_client *c, const struct kvg_options *o)
{
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;
	const Kvgate__V1__HelloReply *m;
	struct reply reply;
	int r;

	h.control = o->control;
	h.pins = o->pins;
	r = client_hello(c, &h, &reply);
	if (r < 0)
		return r;
	m = reply.msg->hello;
	c->info = (struct session_info){
		.version = m->version,
		.pins = m->pins,
		.features = m->features,
		.session = m->session,
		.staging_bytes = m->staging_bytes,
		.admin = m->admin,
		.tenant = strdup(m->tenant),
		.daemon = strdup(m->daemon),
	};
	c->lookup_error = -EOPNOTSUPP;
	if (!c->info.tenant || !c->info.daemon)
		r = client_fail(c, -ENOMEM, 0, "out of memory");
	else if (!o->control)
		r = attach(c, &reply);
	reply_fini(&reply);
	return r;
}

int kvg_open(const struct kvg_options *options, struct kvg_client **ret)
{
	struct kvg_options o;
	struct kvg_client *c;
	const char *path;
	int r;

	r = options_copy(NULL, &o, sizeof(o), options);
	if (r < 0)
		return r;
	c = calloc(1, sizeof(*c));
	if (!c)
		return client_fail(NULL, -ENOMEM, 0, "out of memory");
	c->sock = c->poll_fd = c->wake_fd = c->arrival_fd = -1;
	c->queue_end = &c->queue;
	c->timeout_ms = o.timeout_ms ? o.timeout_ms : DEFAULT_TIMEOUT_MS;
	c->resume_ms = o.resume_ms;
	c->lookup_error = -ENOTCONN;
	path = o.socket ? o.socket : getenv("KVGATE_SOCKET");
	c->path = strdup(path && path[0] ? path : DEFAULT_SOCKET);
	c->name = strdup(o.name ? o.name : program_invocation_short_name);
	r = c->path && c->name ? key_hasher_new(&c->hasher) : -ENOMEM;
	if (r < 0)
		client_fail(c, r, 0, "out of memory");
	else
		r = client_connect(c);
	if (r == 0)
		r = client_open_session(c, &o);
	if (r < 0) {
		client_fail(NULL, r, 0, "%s", c->error);
		kvg_close(c);
		return r;
	}
	*ret = c;
	return 0;
}

void kvg_close(struct kvg_client *c)
{
	if (!c)
		return;
	client_drop_calls(c);
	if (c->poll_fd >= 0)
		close(c->poll_fd);
	if (c->wake_fd >= 0)
		close(c->wake_fd);
	if (c->sock >= 0)
		close(c->sock);
	devices_fini(c);
	layouts_fini(c);
	segments_fini(c);
	stage_fini(c);
	arrival_fini(c);
	pin_map_fini(&c->pins);
	index_map_fini(&c->index);
	key_hasher_free(c->hasher);
	free(c->info.tenant);
	free(c->info.daemon);
	free(c->path);
	free(c->name);
	free(c);
}

const char *kvg_last_error(const struct kvg_client *c)
{
	return c ? c->error : thread_error;
}

int kvg_last_code(const struct kvg_client *c)
{
	return c->code;
}

const char *kvg_tenant(const struct kvg_client *c)
{
	return c->info.tenant;
}

const char *kvg_version(void)
{
	return KVG_VERSION;
}

void kvg_session(const struct kvg_client *c, struct kvg_session_info *ret)
{
	const struct kvg_session_info i = {
		.id = c->info.session,
		.tenant = c->info.tenant,
		.daemon = c->info.daemon,
		.staging_bytes = c->info.staging_bytes,
		.pins = c->info.pins,
		.protocol = c->info.version,
		.admin = c->info.admin,
	};

	options_fill(ret, &i, sizeof(i));
}
