/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speaks the part of systemd's protocol that a service sees, so the daemon knows one protocol only:
 *
 *	daemon -> keeper	datagrams to NOTIFY_SOCKET: FDSTORE=1 with FDNAME= and descriptors, FDSTOREREMOVE=1 with
 *				FDNAME=, READY=1, BARRIER=1
 *	keeper -> daemon	LISTEN_FDS, LISTEN_FDNAMES, LISTEN_PID: everything that is stored, at each start
 *
 * A datagram counts only when the kernel says that it comes from the daemon. Descriptors are held, never mapped or
 * read: whatever the daemon did to die, the keeper has no part in it.
 *
 *	SIGTERM, SIGINT		to the daemon; when it has ended, so does the keeper, and what was stored is gone
 *	SIGHUP			to the daemon
 *	SIGUSR2			the daemon ends and starts again, perhaps another version; what is stored stays
 *	the daemon dies		it starts again, after a pause that doubles up to PAUSE_MAX_MS and is forgotten at READY=1
 *	the daemon ends by itself with status 0, or before it was ever ready: so does the keeper
 */
#include "daemon/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/base/log.h"

#define STORED_MAX   65536 /* more is a daemon that forgets to remove */
#define NAME_MAX_    256
#define MESSAGE_MAX  4096
#define MESSAGE_FDS  253 /* the kernel's SCM_MAX_FD */
#define FIRST_FD     3   /* SD_LISTEN_FDS_START */
#define PAUSE_MIN_MS 100
#define PAUSE_MAX_MS 5000

struct stored {
	char *name;
	int fd;
};

struct keeper {
	const char *program;
	char *const *argv;
	struct sockaddr_un address;
	socklen_t address_length;
	int notify, signals;
	pid_t child;
	bool ready, ending, again;
	unsigned pause_ms;
	struct stored *stored;
	size_t n, capacity;
};

/* ---- the store ---- */

static void store(struct keeper *k, const char *name, int fd)
{
	if (k->n == k->capacity) {
		size_t capacity = k->capacity ? 2 * k->capacity : 64;
		struct stored *more = reallocarray(k->stored, capacity, sizeof(*more));

		if (more) {
			k->stored = more;
			k->capacity = capacity;
		}
	}
	if (k->n < k->capacity && k->n < STORED_MAX) {
		k->stored[k->n].name = strdup(name);
		k->stored[k->n].fd = fd;
		if (k->stored[k->n].name) {
			k->n++;
			return;
		}
	}
	log_warning("a descriptor cannot be kept", "name=%s kept=%zu", name, k->n);
	close(fd);
}

static void forget(struct keeper *k, const char *name)
{
	size_t left = 0;

	for (size_t i = 0; i < k->n; i++) {
		if (name && strcmp(k->stored[i].name, name)) {
			k->stored[left++] = k->stored[i];
			continue;
		}
		close(k->stored[i].fd);
		free(k->stored[i].name);
	}
	k->n = left;
}

/* ---- what the daemon says ---- */

struct message {
	char text[MESSAGE_MAX + 1];
	int fds[MESSAGE_FDS];
	size_t n_fds;
};

static const char *value_of(char *text, const char *key, char ret[NAME_MAX_])
{
	const size_t n = strlen(key);

	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, key, n) || line[n] != '=')
			continue;
		snprintf(ret, NAME_MAX_, "%.*s", (int)strcspn(line + n + 1, "\n"), line + n + 1);
		return ret;
	}
	return NULL;
}

static bool says(char *text, const char *key)
{
	char value[NAME_MAX_];

	return value_of(text, key, value) && !strcmp(value, "1");
}

/* False: nothing more to read. Messages of others than the daemon come back without text and fds. */
static bool receive(struct keeper *k, struct message *ret)
{
	union {
		char bytes[CMSG_SPACE(sizeof(int) * MESSAGE_FDS) +
			CMSG_SPACE(sizeof(struct ucred))];
		struct cmsghdr align;
	} control;
	struct iovec iov = {ret->text, MESSAGE_MAX};
	struct msghdr m = {.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(k->notify, &m, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	pid_t from = 0;

	if (n < 0)
		return false;
	ret->text[n] = '\0';
	ret->n_fds = 0;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&m); c; c = CMSG_NXTHDR(&m, c)) {
		if (c->cmsg_level != SOL_SOCKET)
			continue;
		if (c->cmsg_type == SCM_CREDENTIALS)
			from = ((const struct ucred *)(const void *)CMSG_DATA(c))->pid;
		if (c->cmsg_type == SCM_RIGHTS) {
			ret->n_fds = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(ret->fds, CMSG_DATA(c), ret->n_fds * sizeof(int));
		}
	}
	if (from != k->child || (m.msg_flags & (MSG_TRUNC | MSG_CTRUNC))) {
		log_warning("notification ignored", "from=%d daemon=%d", (int)from, (int)k->child);
		ret->text[0] = '\0';
	}
	return true;
}

static void listen_to(struct keeper *k)
{
	static struct message m;
	char name[NAME_MAX_];

	while (receive(k, &m)) {
		if (!value_of(m.text, "FDNAME", name))
			snprintf(name, sizeof(name), "stored");
		if (says(m.text, "FDSTOREREMOVE"))
			forget(k, name);
		if (says(m.text, "FDSTORE"))
			while (m.n_fds)
				store(k, name, m.fds[--m.n_fds]);
		while (m.n_fds) /* of a barrier, or of somebody else */
			close(m.fds[--m.n_fds]);
		if (says(m.text, "READY")) {
			k->ready = true;
			k->pause_ms = PAUSE_MIN_MS;
		}
	}
}

/* ---- the daemon's life ---- */

/* Puts what is stored at FIRST_FD and up, in its order, and says so. In the child; a failure ends it. */
static int hand_over(const struct keeper *k)
{
	const int above = FIRST_FD + (int)k->n;
	char *names = calloc(k->n + 1, NAME_MAX_), *at = names, number[24];
	int *moved = calloc(k->n + 1, sizeof(*moved));

	if (!names || !moved)
		return -ENOMEM;
	for (size_t i = 0; i < k->n; i++) { /* out of the way of each other */
		moved[i] = fcntl(k->stored[i].fd, F_DUPFD_CLOEXEC, above);
		if (moved[i] < 0)
			return -errno;
		at += sprintf(at, "%s%s", i ? ":" : "", k->stored[i].name);
	}
	for (size_t i = 0; i < k->n; i++)
		if (dup2(moved[i], FIRST_FD + (int)i) < 0) /* not close-on-exec */
			return -errno;
	snprintf(number, sizeof(number), "%zu", k->n);
	setenv("LISTEN_FDS", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	return 0;
}

static void become_daemon(const struct keeper *k)
{
	char notify[sizeof(k->address.sun_path) + 1];
	sigset_t none;
	int r = 0;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	/* an abstract address is written with @ for its first byte */
	snprintf(notify, sizeof(notify), "@%s", k->address.sun_path + 1);
	setenv("NOTIFY_SOCKET", notify, 1);
	if (k->n)
		r = hand_over(k);
	if (r == 0) {
		execv(k->program, k->argv);
		r = -errno;
	}
	log_error("the daemon cannot be started", "program=%s error=\"%s\"", k->program,
		strerror(-r));
	_exit(127);
}

static int start(struct keeper *k)
{
	pid_t child = fork();

	if (child < 0)
		return -errno;
	if (child == 0)
		become_daemon(k);
	k->child = child;
	return 0;
}

static void pass_on(const struct keeper *k, int signo)
{
	if (k->child > 0)
		kill(k->child, signo);
}

/* The daemon is no more. True: it is to be started again. */
static bool start_again(struct keeper *k, int status)
{
	const bool failed = !WIFEXITED(status) || WEXITSTATUS(status) != 0;

	k->child = 0;
	if (k->ending || (!k->again && (!failed || !k->ready)))
		return false;
	log_warning("the daemon ended: it is started again", "%s=%d kept=%zu pause_ms=%u",
		WIFSIGNALED(status) ? "signal" : "status",
		WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status), k->n,
		k->again ? 0 : k->pause_ms);
	if (!k->again) {
		poll(NULL, 0, (int)k->pause_ms);
		k->pause_ms = k->pause_ms < PAUSE_MAX_MS / 2 ? 2 * k->pause_ms : PAUSE_MAX_MS;
	}
	k->again = false;
	return true;
}

static void on_signal(struct keeper *k)
{
	struct signalfd_siginfo i;

	while (read(k->signals, &i, sizeof(i)) == sizeof(i))
		switch (i.ssi_signo) {
		case SIGUSR2:
			k->again = true;
			pass_on(k, SIGTERM);
			break;
		case SIGTERM:
		case SIGINT:
			k->ending = true;
			pass_on(k, SIGTERM);
			break;
		case SIGHUP:
			pass_on(k, SIGHUP);
			break;
		default: /* SIGCHLD: the caller waits */
			break;
		}
}

static int look_after(struct keeper *k)
{
	int status = 0;

	for (;;) {
		struct pollfd fds[] = {
			{.fd = k->notify, .events = POLLIN}, {.fd = k->signals, .events = POLLIN}};

		if (poll(fds, 2, -1) < 0 && errno != EINTR)
			return -errno;
		listen_to(k);
		on_signal(k);
		if (waitpid(k->child, &status, WNOHANG) != k->child)
			continue;
		listen_to(k); /* its last words */
		if (!start_again(k, status))
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		if (start(k) < 0)
			return EXIT_FAILURE;
	}
}

/* ---- the whole ---- */

static int open_notify(struct keeper *k)
{
	const int on = 1;

	k->notify = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (k->notify < 0)
		return -errno;
	k->address.sun_family = AF_UNIX;
	snprintf(k->address.sun_path + 1, sizeof(k->address.sun_path) - 1, "kvgated-keeper-%d",
		(int)getpid());
	k->address_length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 +
		strlen(k->address.sun_path + 1));
	if (setsockopt(k->notify, SOL_SOCKET, SO_PASSCRED, &on, sizeof(on)) < 0 ||
		bind(k->notify, (struct sockaddr *)&k->address, k->address_length) < 0)
		return -errno;
	return 0;
}

static int open_signals(struct keeper *k)
{
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	sigaddset(&set, SIGUSR2);
	sigprocmask(SIG_BLOCK, &set, NULL);
	k->signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return k->signals < 0 ? -errno : 0;
}

static void raise_fd_limit(void)
{
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) == 0) {
		l.rlim_cur = l.rlim_max;
		setrlimit(RLIMIT_NOFILE, &l);
	}
}

int keeper_run(const char *program, char *const *argv)
{
	struct keeper k = {.program = program,
		.argv = argv,
		.notify = -1,
		.signals = -1,
		.pause_ms = PAUSE_MIN_MS};
	int r;

	raise_fd_limit();
	unsetenv("WATCHDOG_USEC"); /* somebody else's, and nobody here would look */
	r = open_notify(&k);
	if (r == 0)
		r = open_signals(&k);
	if (r == 0)
		r = start(&k);
	if (r < 0)
		log_error("the keeper cannot start", "error=\"%s\"", strerror(-r));
	r = r < 0 ? EXIT_FAILURE : look_after(&k);
	forget(&k, NULL);
	free(k.stored);
	if (k.signals >= 0)
		close(k.signals);
	if (k.notify >= 0)
		close(k.notify);
	return r < 0 ? EXIT_FAILURE : r;
}
