/* SPDX-License-Identifier: Apache-2.0 */
/* Starts, watches and ends real processes by their pid; nothing here knows how the daemon works inside. */
#include "tests/lib/harness.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void sleep_ms(long ms)
{
	struct timespec t = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};

	nanosleep(&t, NULL);
}

static void write_file(const char *path, const char *text)
{
	FILE *f = fopen(path, "w");

	assert(f);
	fputs(text, f);
	assert(fclose(f) == 0);
}

static const char test_config[] = "[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\n"
				  "index_slots = 65536\n";

void daemon_spawn(struct daemon_process *d, const char *config, const char *const *flags)
{
	const char *binary = getenv("KVGATED") ? getenv("KVGATED")
					       : KVG_BINARY_DIR "/daemon/kvgated";
	const char *argv[32] = {binary};
	int n = 1, log;

	if (!d->dir[0]) {
		strcpy(d->dir, "/tmp/kvgate-test-XXXXXX");
		assert(mkdtemp(d->dir));
		assert(chmod(d->dir, 0755) == 0);
		snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
		snprintf(d->config, sizeof(d->config), "%s/conf", d->dir);
		snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	}
	write_file(d->config, config[0] ? config : test_config);
	argv[n++] = "--config";
	argv[n++] = d->config;
	argv[n++] = "--socket";
	argv[n++] = d->socket;
	argv[n++] = "--socket-mode";
	argv[n++] = "0666";
	for (int i = 0; flags && flags[i]; i++)
		argv[n++] = flags[i];
	d->pid = fork();
	assert(d->pid >= 0);
	if (d->pid)
		return;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	log = open(d->log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
	if (log < 0 || dup2(log, 2) < 0 || dup2(log, 1) < 0)
		_exit(127);
	execv(binary, (char *const *)(uintptr_t)argv);
	_exit(127);
}

bool daemon_wait_ready(struct daemon_process *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", d->socket);
	for (int i = 0; i < 4000; i++) {
		int status, s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		bool up;

		assert(s >= 0);
		up = connect(s, (struct sockaddr *)&a, sizeof(a)) == 0;
		close(s);
		if (up)
			return true;
		if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
			d->pid = 0;
			return false;
		}
		sleep_ms(5);
	}
	return false;
}

static void print_log(const struct daemon_process *d)
{
	char line[512];
	FILE *f = fopen(d->log, "r");

	while (f && fgets(line, sizeof(line), f))
		fprintf(stderr, "kvgated: %s", line);
	if (f)
		fclose(f);
}

void daemon_start(struct daemon_process *d, const char *config)
{
	memset(d, 0, sizeof(*d));
	daemon_spawn(d, config, NULL);
	if (!daemon_wait_ready(d)) {
		print_log(d);
		assert(!"kvgated does not serve");
	}
}

int daemon_wait(struct daemon_process *d)
{
	int status;

	for (int i = 0; i < 4000; i++) {
		pid_t r = waitpid(d->pid, &status, WNOHANG);

		assert(r >= 0);
		if (r == d->pid) {
			d->pid = 0;
			return status;
		}
		sleep_ms(5);
	}
	kill(d->pid, SIGABRT);
	print_log(d);
	assert(!"kvgated does not end");
	return -1;
}

int daemon_stop(struct daemon_process *d)
{
	int status;

	daemon_check_alive(d);
	assert(kill(d->pid, SIGTERM) == 0);
	status = daemon_wait(d);
	if (status)
		print_log(d);
	return status;
}

void daemon_check_alive(const struct daemon_process *d)
{
	int status;

	if (d->pid <= 0 || waitpid(d->pid, &status, WNOHANG) != 0) {
		print_log(d);
		assert(!"kvgated is gone");
	}
}

void daemon_cleanup(struct daemon_process *d)
{
	DIR *dir = opendir(d->dir);
	struct dirent *e;

	assert(d->pid == 0);
	while (dir && (e = readdir(dir)))
		if (e->d_name[0] != '.')
			unlinkat(dirfd(dir), e->d_name, 0);
	if (dir)
		closedir(dir);
	rmdir(d->dir);
	memset(d, 0, sizeof(*d));
}

bool daemon_logged(const struct daemon_process *d, const char *text)
{
	char line[1024];
	bool found = false;
	FILE *f = fopen(d->log, "r");

	while (f && !found && fgets(line, sizeof(line), f))
		found = strstr(line, text) != NULL;
	if (f)
		fclose(f);
	return found;
}

unsigned daemon_count_fds(const struct daemon_process *d)
{
	return count_fds(d->pid);
}

pid_t daemon_serving(const struct daemon_process *d)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	struct ucred peer = {0};
	socklen_t n = sizeof(peer);

	snprintf(a.sun_path, sizeof(a.sun_path), "%s", d->socket);
	for (int i = 0; i < 4000; i++) {
		int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
		bool up = connect(s, (struct sockaddr *)&a, sizeof(a)) == 0 &&
			getsockopt(s, SOL_SOCKET, SO_PEERCRED, &peer, &n) == 0;

		close(s);
		if (up)
			return peer.pid;
		sleep_ms(5);
	}
	print_log(d);
	assert(!"nobody serves");
	return 0;
}

unsigned count_fds(pid_t pid)
{
	char path[64];
	unsigned n = 0;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	dir = opendir(path);
	assert(dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n - 2; /* . and .. */
}

pid_t child_start(uid_t uid, child_fn fn, void *arg)
{
	pid_t pid = fork();

	assert(pid >= 0);
	if (pid)
		return pid;
	signal(SIGSEGV, SIG_DFL); /* the test runner's handlers are not the child's */
	signal(SIGBUS, SIG_DFL);
	if (uid && (setgid(uid) || setuid(uid)))
		_exit(126);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* another user's process has none */
	_exit(fn(arg));
}

int child_wait(pid_t pid)
{
	int status;

	while (waitpid(pid, &status, 0) < 0)
		assert(errno == EINTR);
	return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

int child_run(uid_t uid, child_fn fn, void *arg)
{
	return child_wait(child_start(uid, fn, arg));
}

bool can_change_user(void)
{
	return geteuid() == 0;
}

struct kvg_client *client_open(const struct daemon_process *d)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_client *c = NULL;
	int r;

	o.socket = d->socket;
	r = kvg_open(&o, &c);
	if (r) {
		fprintf(stderr, "kvg_open: %s: %s\n", strerror(-r), kvg_last_error(NULL));
		assert(!"kvg_open failed");
	}
	return c;
}

struct sum {
	const char *name;
	double value;
};

static void add_counter(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	struct sum *s = userdata;

	(void)tenant, (void)model, (void)tier, (void)plane;
	if (!strcmp(name, s->name))
		s->value += value;
}

double client_counter(struct kvg_client *c, const char *name)
{
	struct sum s = {.name = name};

	assert(kvg_stat(c, 0, add_counter, &s) == 0);
	return s.value;
}

void client_wait_counter(struct kvg_client *c, const char *name, double value)
{
	double seen = 0;

	for (int i = 0; i < 2000; i++) {
		seen = client_counter(c, name);
		if (seen == value)
			return;
		sleep_ms(5);
	}
	fprintf(stderr, "%s is %g, not %g\n", name, seen, value);
	assert(!"counter");
}
