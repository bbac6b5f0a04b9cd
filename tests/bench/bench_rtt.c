/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rpc_rtt_ratio: one stat request to a real daemon, against a process that does nothing but receive as many bytes and send
 * as many back over the same kind of socket. Both are asked in turn, in short stretches of one run, so that whatever
 * else the machine does hits both; the figure is the ratio of the medians.
 *
 * A daemon serves processes on other processors: who asks is on one, who answers on another, and waking the other one is
 * most of the time. With both on the same processor nobody is woken up, and what is left are the system calls and
 * what the daemon does itself: rpc_rtt_same_core_ratio, where epoll and protobuf show.
 *
 * bench_rtt [--daemon PATH] [--rounds N]
 */
#include <assert.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "proto/kvgate.pb-c.h"
#include "proto/wire.h"
#include "tests/bench/figure.h"

#define STRETCH 500 /* round trips to one before the other has its turn */

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

static double percentile_us(uint32_t *ns, size_t n, double p)
{
	qsort(ns, n, sizeof(*ns), by_value);
	return ns[(size_t)((double)(n - 1) * p)] / 1e3;
}

/* ---- the two who answer ---- */

static pid_t start_daemon(const char *path, const char *socket_path)
{
	pid_t pid = fork();

	assert(pid >= 0);
	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	execl(path, path, "--config", "/dev/null", "--socket", socket_path, "--host-bytes", "64MiB",
		"--log-level", "warning", (char *)NULL);
	perror(path);
	_exit(127);
}

static int connect_daemon(const char *socket_path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};
	const struct timespec moment = {.tv_nsec = 5000000};
	int s = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	assert(s >= 0);
	snprintf(a.sun_path, sizeof(a.sun_path), "%s", socket_path);
	for (int i = 0; i < 2000; i++) {
		if (connect(s, (struct sockaddr *)&a, sizeof(a)) == 0)
			return s;
		nanosleep(&moment, NULL);
	}
	fprintf(stderr, "bench_rtt: kvgated does not serve\n");
	exit(1);
}

static int start_echo(size_t reply_bytes, pid_t *ret_pid)
{
	char buf[KVG_MESSAGE_MAX] = {0};
	int sv[2];

	assert(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sv) == 0);
	*ret_pid = fork();
	assert(*ret_pid >= 0);
	if (*ret_pid) {
		close(sv[1]);
		return sv[0];
	}
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close(sv[0]);
	while (recv(sv[1], buf, sizeof(buf), 0) > 0)
		if (send(sv[1], buf, reply_bytes, MSG_NOSIGNAL) < 0)
			break;
	_exit(0);
}

/* ---- asking ---- */

static size_t ask(int sock, const void *request, size_t n)
{
	static char reply[KVG_MESSAGE_MAX];
	ssize_t got;

	assert(send(sock, request, n, MSG_NOSIGNAL) == (ssize_t)n);
	got = recv(sock, reply, sizeof(reply), 0);
	assert(got > 0);
	return (size_t)got;
}

static void hello(int sock)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;
	uint8_t buf[256];

	h.version_min = h.version_max = KVG_PROTOCOL_VERSION;
	h.client = (char *)(uintptr_t) "bench_rtt";
	h.control = 1;
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &h;
	ask(sock, buf, kvgate__v1__request__pack(&q, buf));
}

static size_t pack_stat(uint8_t *buf)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Stat stat = KVGATE__V1__STAT__INIT;

	q.id = 2;
	q.body_case = KVGATE__V1__REQUEST__BODY_STAT;
	q.stat = &stat;
	return kvgate__v1__request__pack(&q, buf);
}

static void stretch(int sock, const void *request, size_t n, uint32_t *ret_ns)
{
	for (int i = 0; i < STRETCH; i++) {
		uint64_t start = now_ns();

		ask(sock, request, n);
		ret_ns[i] = (uint32_t)(now_ns() - start);
	}
}

static const char *argument(int argc, char **argv, const char *name, const char *otherwise)
{
	for (int i = 1; i + 1 < argc; i++)
		if (!strcmp(argv[i], name))
			return argv[i + 1];
	return otherwise;
}

struct sides {
	int daemon, echo; /* sockets */
	pid_t daemon_pid, echo_pid;
	const uint8_t *request;
	size_t request_bytes, reply_bytes, rounds;
};

static void run_on(pid_t pid, int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	assert(sched_setaffinity(pid, sizeof(set), &set) == 0);
}

/* The first two processors that this process may use; the second is the first where there is but one. */
static void processors(int ret[2])
{
	cpu_set_t set;
	int n = 0;

	assert(sched_getaffinity(0, sizeof(set), &set) == 0);
	for (int cpu = 0; cpu < CPU_SETSIZE && n < 2; cpu++)
		if (CPU_ISSET(cpu, &set))
			ret[n++] = cpu;
	assert(n > 0);
	if (n == 1)
		ret[1] = ret[0];
}

static void compare(const struct sides *s, const char *name, const char *where)
{
	const size_t n = s->rounds * STRETCH;
	uint32_t *rpc = calloc(n, sizeof(*rpc)), *raw = calloc(n, sizeof(*raw)), warm[STRETCH];
	double m, r;

	assert(rpc && raw);
	stretch(s->daemon, s->request, s->request_bytes, warm);
	stretch(s->echo, s->request, s->request_bytes, warm);
	for (size_t i = 0; i < s->rounds; i++) {
		stretch(s->daemon, s->request, s->request_bytes, rpc + i * STRETCH);
		stretch(s->echo, s->request, s->request_bytes, raw + i * STRETCH);
	}
	m = percentile_us(rpc, n, .5);
	r = percentile_us(raw, n, .5);
	figure_print(&(struct figure_line){"core", name, "ratio", m / r, FIGURE_NONE, m / r},
		"%s; stat p50 %.1f us p99 %.1f us, ping-pong of %zu and %zu bytes p50 %.1f us p99 "
		"%.1f us",
		where, m, percentile_us(rpc, n, .99), s->request_bytes, s->reply_bytes, r,
		percentile_us(raw, n, .99));
	free(rpc);
	free(raw);
}

int main(int argc, char **argv)
{
	const char *path = argument(argc, argv, "--daemon",
		getenv("KVGATED") ? getenv("KVGATED") : KVG_BINARY_DIR "/daemon/kvgated");
	struct sides s = {.rounds = (size_t)atoi(argument(argc, argv, "--rounds", "40"))};
	char dir[] = "/tmp/kvgate-bench-XXXXXX", socket_path[64], lock_path[80];
	uint8_t request[64];
	int status, cpu[2];

	assert(s.rounds && mkdtemp(dir));
	snprintf(socket_path, sizeof(socket_path), "%s/sock", dir);
	snprintf(lock_path, sizeof(lock_path), "%s.lock", socket_path);
	s.request = request;
	s.request_bytes = pack_stat(request);
	s.daemon_pid = start_daemon(path, socket_path);
	s.daemon = connect_daemon(socket_path);
	hello(s.daemon);
	s.reply_bytes = ask(s.daemon, request, s.request_bytes);
	s.echo = start_echo(s.reply_bytes, &s.echo_pid);
	processors(cpu);
	run_on(0, cpu[0]);
	run_on(s.daemon_pid, cpu[1]);
	run_on(s.echo_pid, cpu[1]);
	compare(&s, "rpc_rtt_ratio",
		cpu[0] == cpu[1] ? "on the only processor there is" : "between two processors");
	run_on(s.daemon_pid, cpu[0]);
	run_on(s.echo_pid, cpu[0]);
	compare(&s, "rpc_rtt_same_core_ratio", "on one processor");
	kill(s.daemon_pid, SIGTERM);
	kill(s.echo_pid, SIGKILL);
	assert(waitpid(s.daemon_pid, &status, 0) == s.daemon_pid &&
		waitpid(s.echo_pid, NULL, 0) == s.echo_pid);
	unlink(lock_path);
	rmdir(dir);
	return status != 0 || figure_status();
}
