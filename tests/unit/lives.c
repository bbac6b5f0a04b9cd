/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/lives.h"

#include <assert.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- who keeps the fds ---- */

struct kept kept[KEPT_MAX];
unsigned n_kept;
static int keeper;

static void keeper_open(void)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	char name[64];
	int n = snprintf(name, sizeof(name), "@kvgate-test-adopt-%d", (int)getpid());

	memcpy(a.sun_path, name, (size_t)n);
	a.sun_path[0] = '\0';
	keeper = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	assert(keeper >= 0 &&
		bind(keeper, (struct sockaddr *)&a,
			(socklen_t)(offsetof(struct sockaddr_un, sun_path) + (size_t)n)) == 0);
	setenv("NOTIFY_SOCKET", name, 1);
}

void forget(const char *name)
{
	for (unsigned i = n_kept; i-- > 0;)
		if (!strcmp(kept[i].name, name)) {
			close(kept[i].fd);
			kept[i] = kept[--n_kept];
		}
}

void keep(const char *name, int fd)
{
	assert(n_kept < KEPT_MAX);
	strcpy(kept[n_kept].name, name);
	kept[n_kept++].fd = fd;
}

static void pump(void)
{
	for (;;) {
		char text[400], control[CMSG_SPACE(sizeof(int))];
		struct iovec iov = {.iov_base = text, .iov_len = sizeof(text) - 1};
		struct msghdr m = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control,
			.msg_controllen = sizeof(control),
		};
		ssize_t n = recvmsg(keeper, &m, MSG_CMSG_CLOEXEC);
		int fd = -1;
		char *name;

		if (n < 0)
			return;
		text[n] = '\0';
		if (CMSG_FIRSTHDR(&m))
			memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&m)), sizeof(int));
		name = strstr(text, "FDNAME=");
		if (name && !strncmp(text, "FDSTORE=1", 9))
			keep(name + 7, fd);
		else if (name && !strncmp(text, "FDSTOREREMOVE=1", 15))
			forget(name + 7);
		else if (fd >= 0)
			close(fd);
	}
}

void drop_all(void)
{
	while (n_kept)
		close(kept[--n_kept].fd);
}

int find(const char *name)
{
	for (unsigned i = 0; i < n_kept; i++)
		if (!strcmp(kept[i].name, name))
			return kept[i].fd;
	return -1;
}

/* ---- a daemon's life ---- */

struct fixture f;
void (*begin_with)(struct fixture *f);

static void pass(void)
{
	char names[KEPT_MAX * 40] = "", number[16];
	int at[KEPT_MAX];

	for (unsigned i = 0; i < n_kept; i++) {
		at[i] = fcntl(kept[i].fd, F_DUPFD_CLOEXEC, 400);
		strcat(names, i ? ":" : "");
		strcat(names, kept[i].name);
	}
	for (unsigned i = 0; i < n_kept; i++) {
		assert(dup2(at[i], 3 + (int)i) >= 0);
		close(at[i]);
	}
	snprintf(number, sizeof(number), "%u", n_kept);
	setenv("LISTEN_FDS", number, 1);
	snprintf(number, sizeof(number), "%d", (int)getpid());
	setenv("LISTEN_PID", number, 1);
	setenv("LISTEN_FDNAMES", names, 1);
}

static bool pin_one(void *userdata, uint32_t number, struct kvg_handle h)
{
	(void)number;
	return h.slot == *(uint32_t *)userdata;
}

uint32_t pinned_slot = KVG_SLOT_NONE;

static void begin(void)
{
	if (n_kept)
		pass();
	fixture_options(&f);
	f.o.segment_bytes = 256 << 10; /* so that there are a few */
	if (begin_with)
		begin_with(&f);
	assert(loop_new(&f.loop) == 0);
	assert(park_new(f.loop, &f.o.park) == 0);
	f.pinned = (struct cache_pinned){pin_one, &pinned_slot};
	fixture_start(&f);
	park_drop_rest(f.o.park);
}

static const int deadly[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS};

pid_t start(void (*life)(void *), void *arg)
{
	pid_t pid = fork();

	assert(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (unsigned i = 0; i < sizeof(deadly) / sizeof(*deadly); i++)
		signal(deadly[i],
			SIG_DFL); /* the test's own handlers would go on with its next case */
	begin();
	life(arg);
	_exit(0); /* as if it were killed: nothing is put away */
}

void wait_for(pid_t pid, int expected)
{
	int status;

	while (waitpid(pid, &status, WNOHANG) == 0) {
		pump(); /* its worker waits for that */
		usleep(200);
	}
	pump();
	assert_int_equal(status, expected);
}

volatile unsigned *progress;

void kill_at(pid_t pid, unsigned target, unsigned us)
{
	int status;

	while (*progress < target) {
		if (waitpid(pid, &status, WNOHANG))
			fail_msg("a life ended by itself, after %u of %u steps: status %#x",
				*progress, target, status);
		pump();
		usleep(100);
	}
	usleep(us);
	kill(pid, SIGKILL);
	wait_for(pid, SIGKILL);
}

void live(void (*life)(void *), void *arg)
{
	wait_for(start(life, arg), 0);
}

int lives_setup(void **state)
{
	void *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	(void)state;
	assert(shared != MAP_FAILED);
	progress = shared;
	keeper_open();
	return 0;
}
