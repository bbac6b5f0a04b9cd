/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whether a path is free cannot be seen from the socket alone: after a crash it lies there and nobody listens. So
 * the lock decides. It is held on a file beside the socket that is never removed, because a lock on a removed file
 * keeps nobody away. Who holds it may replace a socket on which nobody answers, and nothing else.
 *
 * When the process is out of file descriptors or memory, a connection stays in the queue and would wake the loop for
 * ever: then the listener rests for a moment.
 */
#include "daemon/serve/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/base/park.h"

#define BACKLOG          128
#define ACCEPT_PER_ROUND 16 /* sessions that are open get their turn in between */
#define REST_NS          100000000u

struct listener {
	struct loop *loop;
	int sock, lock;
	struct loop_source *source;
	struct loop_timer *rest;
	listener_fn fn;
	void *userdata;
	bool logged;
	bool bound; /* the socket file is ours */
	struct sockaddr_un address;
};

static int fail(int r, char *ret_why, size_t why_size, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));
static int fail(int r, char *ret_why, size_t why_size, const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	vsnprintf(ret_why, why_size, fmt, args);
	va_end(args);
	return r;
}

static void on_rested(void *userdata)
{
	struct listener *l = userdata;

	loop_set_events(l->source, EPOLLIN);
}

static void on_connection(void *userdata, uint32_t events)
{
	struct listener *l = userdata;

	(void)events;
	for (int i = 0; i < ACCEPT_PER_ROUND; i++) {
		int sock = accept4(l->sock, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (sock >= 0) {
			l->logged = false;
			l->fn(l->userdata, sock);
			continue;
		}
		if (errno == EAGAIN || errno == EWOULDBLOCK)
			return;
		if (errno == EINTR || errno == ECONNABORTED)
			continue;
		if (!l->logged)
			log_warning("cannot accept", "error=\"%s\"", strerror(errno));
		l->logged = true;
		if (loop_set_events(l->source, 0) == 0)
			loop_arm(l->rest, REST_NS, 0);
		return;
	}
}

/* From systemd: 1 when there is one, 0 when there is none. */
static int take_passed(struct listener *l, struct park *park, char *ret_why, size_t why_size)
{
	const char *name;
	int n = 0, flags, fd;

	while (park && (fd = park_next_foreign(park, &name)) >= 0)
		if (n++)
			close(fd);
		else
			l->sock = fd;
	if (!n)
		return 0;
	if (n > 1 || sd_is_socket_unix(l->sock, SOCK_SEQPACKET, 1, NULL, 0) <= 0)
		return fail(-EINVAL, ret_why, why_size,
			"systemd passed %d sockets: kvgated.socket needs one "
			"ListenSequentialPacket=",
			n);
	flags = fcntl(l->sock, F_GETFL);
	if (flags < 0 || fcntl(l->sock, F_SETFL, flags | O_NONBLOCK) < 0)
		return fail(-errno, ret_why, why_size, "socket of systemd: %s", strerror(errno));
	return 1;
}

static int take_lock(struct listener *l, const char *path, char *ret_why, size_t why_size)
{
	char lock[sizeof(l->address.sun_path) + 8];

	snprintf(lock, sizeof(lock), "%s.lock", path);
	l->lock = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (l->lock < 0)
		return fail(-errno, ret_why, why_size,
			"%s: %s; make the folder, or choose another --socket", lock,
			strerror(errno));
	if (flock(l->lock, LOCK_EX | LOCK_NB) == 0)
		return 0;
	if (errno == EWOULDBLOCK)
		return fail(-EADDRINUSE, ret_why, why_size,
			"%s: another kvgated serves there; stop it, or choose another --socket",
			path);
	return fail(-errno, ret_why, why_size, "%s: %s", lock, strerror(errno));
}

/* With the lock held: removes what an earlier daemon left, and nothing else. */
static int clear_path(struct listener *l, char *ret_why, size_t why_size)
{
	const char *path = l->address.sun_path;
	struct stat st;
	int s, r;

	if (lstat(path, &st) < 0)
		return errno == ENOENT
			? 0
			: fail(-errno, ret_why, why_size, "%s: %s", path, strerror(errno));
	if (!S_ISSOCK(st.st_mode))
		return fail(-EEXIST, ret_why, why_size,
			"%s is not a socket: move it away, or choose another --socket", path);
	s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (s < 0)
		return fail(-errno, ret_why, why_size, "socket: %s", strerror(errno));
	r = connect(s, (struct sockaddr *)&l->address, sizeof(l->address)) < 0 ? errno : 0;
	close(s);
	if (r != ECONNREFUSED)
		return fail(-EADDRINUSE, ret_why, why_size,
			"%s: the socket of another program; choose another --socket", path);
	if (unlink(path) < 0 && errno != ENOENT)
		return fail(-errno, ret_why, why_size, "%s: %s", path, strerror(errno));
	return 0;
}

static int make_socket(
	struct listener *l, const char *path, mode_t mode, char *ret_why, size_t why_size)
{
	int r;

	if (strlen(path) >= sizeof(l->address.sun_path))
		return fail(-ENAMETOOLONG, ret_why, why_size,
			"%s: a socket's path has at most %zu characters", path,
			sizeof(l->address.sun_path) - 1);
	l->address.sun_family = AF_UNIX;
	strcpy(l->address.sun_path, path);
	r = take_lock(l, path, ret_why, why_size);
	if (r == 0)
		r = clear_path(l, ret_why, why_size);
	if (r < 0)
		return r;
	l->sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (l->sock < 0 || fchmod(l->sock, 0600) < 0) /* nobody gets in before the mode is right */
		return fail(-errno, ret_why, why_size, "socket: %s", strerror(errno));
	if (bind(l->sock, (struct sockaddr *)&l->address, sizeof(l->address)) < 0)
		return fail(-errno, ret_why, why_size, "%s: %s", path, strerror(errno));
	l->bound = true;
	if (listen(l->sock, BACKLOG) < 0 || chmod(path, mode) < 0)
		return fail(-errno, ret_why, why_size, "%s: %s", path, strerror(errno));
	return 0;
}

int listener_new(struct loop *loop, struct park *park, const char *path, mode_t mode,
	listener_fn fn, void *userdata, struct listener **ret, char *ret_why, size_t why_size)
{
	struct listener *l = calloc(1, sizeof(*l));
	int r;

	if (!l)
		return fail(-ENOMEM, ret_why, why_size, "out of memory");
	*l = (struct listener){
		.loop = loop, .sock = -1, .lock = -1, .fn = fn, .userdata = userdata};
	r = take_passed(l, park, ret_why, why_size);
	if (r == 0)
		r = make_socket(l, path, mode, ret_why, why_size);
	if (r >= 0) {
		r = loop_add_timer(loop, on_rested, l, &l->rest);
		if (r == 0)
			r = loop_add_fd(loop, l->sock, EPOLLIN, on_connection, l, &l->source);
		if (r < 0)
			fail(r, ret_why, why_size, "%s: %s", path, strerror(-r));
	}
	if (r < 0) {
		listener_free(l);
		return r;
	}
	*ret = l;
	return 0;
}

void listener_close(struct listener *l)
{
	l->source = loop_del_fd(l->source);
	l->rest = loop_del_timer(l->rest);
	if (l->bound)
		unlink(l->address.sun_path);
	l->bound = false;
	if (l->sock >= 0)
		close(l->sock);
	l->sock = -1;
}

struct listener *listener_free(struct listener *l)
{
	if (!l)
		return NULL;
	listener_close(l);
	if (l->lock >= 0)
		close(l->lock);
	free(l);
	return NULL;
}
