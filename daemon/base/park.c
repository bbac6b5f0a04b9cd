/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The keeper is a Unix datagram socket that somebody reads. Once sendmsg() has returned, the fd is in his queue, and there it
 * outlives this process: that is the moment from which it is safe. So what is put is sent at once, from whatever thread. When
 * his queue is full the message waits here, with a copy of the fd, and all later ones behind it; the loop sends them.
 *
 *	put, drop ----> sendmsg()                       nothing waits
 *	      \-------> queue ----> loop, 20 ms -----> sendmmsg()
 *
 * systemd takes messages of a process that is dead already, as long as it has not reaped it, which it does last. It does not
 * say that its store is full. Where it says how large it is ($FDSTORE), what goes beyond is counted here.
 *
 * FDPOLL=0: it would drop an fd that reports a hang-up otherwise, and the pidfd of a process that ended does.
 */
#include "daemon/base/park.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/loop.h"

#define RETRY_NS  20000000u
#define RETRY_MS  10
#define SEND_MAX  16 /* messages in one system call */
#define TEXT_SIZE (PARK_NAME_MAX + 64)
/* All names come in one environment variable, and the kernel takes none that is longer than 128 KiB (MAX_ARG_STRLEN). */
#define NAMES_MAX 120000u

struct message {
	struct message *next;
	int fd; /* a copy; -1: none */
	char text[TEXT_SIZE];
};

struct passed {
	int fd; /* -1: taken */
	bool foreign;
	char *name;
};

struct park {
	struct loop *loop;
	int sock; /* -1: nobody keeps fds */
	struct passed *passed;
	unsigned n_passed;

	pthread_mutex_t lock;
	struct message *first, **end;
	struct park_stat stat;
	size_t name_bytes; /* of those kept, with their colons */
	bool frozen;
	bool posted, full_said, refused_said;
	struct loop_work work;
	struct loop_timer *retry;
};

/* ---- the socket ---- */

static int connect_to(const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const size_t n = strlen(path);
	int sock;

	if ((path[0] != '/' && path[0] != '@') || n < 2 || n >= sizeof(a.sun_path))
		return -EPROTOTYPE;
	memcpy(a.sun_path, path, n);
	if (path[0] == '@')
		a.sun_path[0] = '\0';
	sock = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sock < 0)
		return -errno;
	/* a path ends with a zero, an abstract name with its last letter */
	if (connect(sock, (struct sockaddr *)&a,
		    (socklen_t)(offsetof(struct sockaddr_un, sun_path) + n + (path[0] == '/'))) <
		0) {
		int r = -errno;

		close(sock);
		return r;
	}
	return sock;
}

static void find_keeper(struct park *p)
{
	const char *path = getenv("NOTIFY_SOCKET"), *size = getenv("FDSTORE");
	int r;

	if (!path) {
		log_info("a restart will lose what the cache holds",
			"why=\"nobody keeps file descriptors: run kvgated as a unit of systemd, or "
			"with --keeper\"");
		return;
	}
	if (size) {
		char *end;

		p->stat.capacity = strtoull(size, &end, 10);
		if (!p->stat.capacity) {
			log_warning("a restart will lose what the cache holds",
				"why=\"the unit keeps no file descriptors: set "
				"FileDescriptorStoreMax=\"");
			return;
		}
	}
	r = connect_to(path);
	if (r < 0)
		log_warning("a restart will lose what the cache holds",
			"why=\"NOTIFY_SOCKET cannot be used\" socket=\"%s\" error=\"%s\"", path,
			strerror(-r));
	else
		p->sock = r;
}

/* ---- what was passed ---- */

static int take_passed(struct park *p)
{
	char **names = NULL;
	int n = sd_listen_fds_with_names(1, &names);

	if (n < 0) {
		log_error("file descriptors were passed that cannot be told apart",
			"why=\"LISTEN_FDNAMES does not fit LISTEN_FDS\" error=\"%s\"",
			strerror(-n));
		return n;
	}
	p->passed = calloc((size_t)n + 1, sizeof(*p->passed));
	if (!p->passed)
		return -ENOMEM;
	for (int i = 0; i < n; i++) {
		struct passed *at = &p->passed[p->n_passed++];

		*at = (struct passed){.fd = SD_LISTEN_FDS_START + i, .name = names[i]};
		at->foreign = strncmp(at->name, PARK_PREFIX, strlen(PARK_PREFIX)) != 0;
		p->stat.kept += !at->foreign;
		p->name_bytes += strlen(at->name) + 1;
	}
	free(names);
	return 0;
}

const char *park_name(const struct park *p, unsigned i)
{
	for (unsigned at = 0; at < p->n_passed; at++)
		if (!p->passed[at].foreign && i-- == 0)
			return p->passed[at].name;
	return NULL;
}

int park_take(struct park *p, unsigned i)
{
	for (unsigned at = 0; at < p->n_passed; at++)
		if (!p->passed[at].foreign && i-- == 0) {
			int fd = p->passed[at].fd;

			p->passed[at].fd = -1;
			return fd;
		}
	return -1;
}

unsigned park_drop_rest(struct park *p)
{
	unsigned n = 0;

	for (unsigned at = 0; at < p->n_passed; at++) {
		struct passed *rest = &p->passed[at];

		if (rest->foreign || rest->fd < 0)
			continue;
		log_warning(
			"a file descriptor of the last daemon is of no use", "name=%s", rest->name);
		park_drop(p, rest->name);
		close(rest->fd);
		rest->fd = -1;
		n++;
	}
	return n;
}

int park_next_foreign(struct park *p, const char **ret_name)
{
	for (unsigned at = 0; at < p->n_passed; at++) {
		struct passed *one = &p->passed[at];
		int fd = one->fd;

		if (!one->foreign || fd < 0)
			continue;
		one->fd = -1;
		*ret_name = one->name;
		return fd;
	}
	return -1;
}

/* ---- sending ---- */

union control {
	char bytes[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

static void address(struct msghdr *m, struct iovec *iov, union control *control, char *text, int fd)
{
	*iov = (struct iovec){.iov_base = text, .iov_len = strlen(text)};
	*m = (struct msghdr){.msg_iov = iov, .msg_iovlen = 1};
	if (fd < 0)
		return;
	memset(control, 0, sizeof(*control));
	control->align = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
		.cmsg_type = SCM_RIGHTS,
		.cmsg_len = CMSG_LEN(sizeof(int))};
	memcpy(CMSG_DATA(&control->align), &fd, sizeof(fd));
	m->msg_control = control->bytes;
	m->msg_controllen = sizeof(control->bytes);
}

/* He has no room at the moment, or too much of ours is under way to him. */
static bool is_busy(int error)
{
	return error == EAGAIN || error == ENOBUFS || error == ETOOMANYREFS || error == EINTR;
}

static void refused(struct park *p, const char *text, int error)
{
	p->stat.refused++;
	if (!p->refused_said)
		log_warning("a restart will lose a part of what the cache holds",
			"why=\"a message to the keeper of file descriptors failed\" "
			"message=\"%.60s\" "
			"error=\"%s\"",
			text, strerror(error));
	p->refused_said = true;
}

/* As many as go; the lock is held. */
static void flush(struct park *p)
{
	while (p->first) {
		struct mmsghdr m[SEND_MAX];
		struct iovec iov[SEND_MAX];
		union control control[SEND_MAX];
		struct message *at = p->first;
		unsigned n = 0;
		int sent;

		for (; at && n < SEND_MAX; at = at->next, n++)
			address(&m[n].msg_hdr, &iov[n], &control[n], at->text, at->fd);
		sent = sendmmsg(p->sock, m, n, MSG_NOSIGNAL | MSG_DONTWAIT);
		if (sent < 0 && is_busy(errno))
			return;
		if (sent <= 0) {
			refused(p, p->first->text, errno);
			sent = 1;
		}
		for (; sent > 0; sent--) {
			at = p->first;
			p->first = at->next;
			if (!p->first)
				p->end = &p->first;
			if (at->fd >= 0)
				close(at->fd);
			free(at);
			p->stat.waiting--;
		}
	}
}

static void on_retry(void *userdata)
{
	struct park *p = userdata;

	pthread_mutex_lock(&p->lock);
	flush(p);
	p->posted = p->first != NULL;
	if (p->posted)
		loop_arm(p->retry, RETRY_NS, 0);
	pthread_mutex_unlock(&p->lock);
}

static void on_posted(struct loop_work *w)
{
	on_retry((struct park *)((char *)w - offsetof(struct park, work)));
}

static void enqueue(struct park *p, const char *text, int fd)
{
	struct message *m = calloc(1, sizeof(*m));
	int copy = fd >= 0 ? fcntl(fd, F_DUPFD_CLOEXEC, 0) : -1;

	if (!m || (fd >= 0 && copy < 0)) {
		refused(p, text, m ? errno : ENOMEM);
		if (copy >= 0)
			close(copy);
		free(m);
		return;
	}
	strcpy(m->text, text);
	m->fd = copy;
	*p->end = m;
	p->end = &m->next;
	p->stat.waiting++;
	if (!p->posted) {
		p->posted = true;
		loop_post(p->loop, &p->work);
	}
}

/* At once if nothing stands before it; the lock is held. */
static void send_text(struct park *p, char *text, int fd)
{
	union control control;
	struct iovec iov;
	struct msghdr m;

	flush(p);
	if (!p->first) {
		address(&m, &iov, &control, text, fd);
		if (sendmsg(p->sock, &m, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
			return;
		if (!is_busy(errno)) {
			refused(p, text, errno);
			return;
		}
	}
	enqueue(p, text, fd);
}

/* As far as it is known; the lock is held. */
static bool has_room(const struct park *p, size_t bytes, bool all)
{
	const uint64_t capacity = all ? p->stat.capacity : p->stat.capacity / 4 * 3;

	return p->name_bytes + bytes <= (all ? NAMES_MAX : NAMES_MAX / 4 * 3) &&
		(!p->stat.capacity || p->stat.kept < capacity);
}

static void say_full(struct park *p)
{
	p->stat.refused++;
	if (!p->full_said)
		log_warning("a restart will lose a part of what the cache holds",
			"why=\"the store of file descriptors is full: raise "
			"FileDescriptorStoreMax=, or lower max_sessions\" kept=%llu room=%llu",
			(unsigned long long)p->stat.kept, (unsigned long long)p->stat.capacity);
	p->full_said = true;
}

static bool put(struct park *p, const char *name, int fd, bool must)
{
	const size_t bytes = strlen(name) + 1;
	char text[TEXT_SIZE];
	bool room;

	assert(!strncmp(name, PARK_PREFIX, strlen(PARK_PREFIX)) && bytes <= PARK_NAME_MAX + 1 &&
		!strpbrk(name, ":\n"));
	if (p->sock < 0)
		return false;
	snprintf(text, sizeof(text), "FDSTORE=1\nFDPOLL=0\nFDNAME=%s", name);
	pthread_mutex_lock(&p->lock);
	room = has_room(p, bytes, must);
	if (!room)
		say_full(p);
	/* a store that seems full may have lost something by itself; too many names would keep the next daemon from starting */
	room = room || (must && p->name_bytes + bytes <= NAMES_MAX);
	if (room) {
		p->stat.kept++;
		p->name_bytes += bytes;
		send_text(p, text, fd);
	}
	pthread_mutex_unlock(&p->lock);
	return room;
}

void park_put(struct park *p, const char *name, int fd)
{
	put(p, name, fd, true);
}

bool park_offer(struct park *p, const char *name, int fd)
{
	return put(p, name, fd, false);
}

void park_drop(struct park *p, const char *name)
{
	char text[TEXT_SIZE];

	if (p->sock < 0)
		return;
	snprintf(text, sizeof(text), "FDSTOREREMOVE=1\nFDNAME=%s", name);
	pthread_mutex_lock(&p->lock);
	if (!p->frozen) {
		const size_t bytes = strlen(name) + 1;

		p->stat.kept -= p->stat.kept > 0;
		p->name_bytes -= bytes < p->name_bytes ? bytes : p->name_bytes;
		send_text(p, text, -1);
	}
	pthread_mutex_unlock(&p->lock);
}

void park_freeze(struct park *p)
{
	pthread_mutex_lock(&p->lock);
	p->frozen = true;
	pthread_mutex_unlock(&p->lock);
}

/* ---- waiting ---- */

static int left_ms(uint64_t until_ns)
{
	uint64_t now = loop_now_ns();

	return now < until_ns ? (int)((until_ns - now + 999999) / 1000000) : 0;
}

int park_settle(struct park *p, int timeout_ms)
{
	const uint64_t until = loop_now_ns() + (uint64_t)timeout_ms * 1000000;

	for (;;) {
		struct pollfd poll_fd = {.fd = p->sock, .events = POLLOUT};
		bool done;
		int ms;

		pthread_mutex_lock(&p->lock);
		flush(p);
		done = !p->first;
		pthread_mutex_unlock(&p->lock);
		ms = left_ms(until);
		if (done || !ms)
			return done ? 0 : -ETIMEDOUT;
		poll(&poll_fd, 1, ms < RETRY_MS ? ms : RETRY_MS);
	}
}

/* Its other end is closed when the message is read that carries it. */
static int barrier(struct park *p, int timeout_ms)
{
	struct pollfd end;
	char text[] = "BARRIER=1";
	int fds[2], r;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	pthread_mutex_lock(&p->lock);
	send_text(p, text, fds[1]);
	pthread_mutex_unlock(&p->lock);
	close(fds[1]);
	r = park_settle(p, timeout_ms);
	end = (struct pollfd){.fd = fds[0]};
	if (r == 0 && poll(&end, 1, timeout_ms) == 0)
		r = -ETIMEDOUT;
	close(fds[0]);
	return r;
}

int park_sync(struct park *p, int timeout_ms)
{
	int r;

	if (p->sock < 0)
		return -ENOTCONN;
	r = park_settle(p, timeout_ms);
	return r < 0 ? r : barrier(p, timeout_ms);
}

/* ---- life ---- */

bool park_active(const struct park *p)
{
	return p->sock >= 0;
}

void park_stat(struct park *p, struct park_stat *ret)
{
	pthread_mutex_lock(&p->lock);
	*ret = p->stat;
	pthread_mutex_unlock(&p->lock);
}

int park_new(struct loop *loop, struct park **ret)
{
	struct park *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	p->loop = loop;
	p->sock = -1;
	p->end = &p->first;
	p->work.fn = on_posted;
	pthread_mutex_init(&p->lock, NULL);
	r = take_passed(p);
	if (r == 0)
		r = loop_add_timer(loop, on_retry, p, &p->retry);
	if (r < 0) {
		park_free(p);
		return r;
	}
	find_keeper(p);
	*ret = p;
	return 0;
}

struct park *park_free(struct park *p)
{
	if (!p)
		return NULL;
	loop_run_posted(p->loop);
	loop_del_timer(p->retry);
	while (p->first) {
		struct message *m = p->first;

		p->first = m->next;
		if (m->fd >= 0)
			close(m->fd);
		free(m);
	}
	for (unsigned i = 0; i < p->n_passed; i++) {
		if (p->passed[i].fd >= 0)
			close(p->passed[i].fd);
		free(p->passed[i].name);
	}
	free(p->passed);
	if (p->sock >= 0)
		close(p->sock);
	pthread_mutex_destroy(&p->lock);
	free(p);
	return NULL;
}
