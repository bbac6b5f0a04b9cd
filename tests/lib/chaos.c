/* SPDX-License-Identifier: Apache-2.0 */
/* The one who kills, and who counts what is left. */
#include "tests/lib/chaos.h"

#include <assert.h>
#include <linux/close_range.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAUSE_MAX_US 200000 /* between two kills */

static unsigned pick(struct chaos *x, unsigned n)
{
	return (unsigned)rand_r(&x->random) % n;
}

/* ---- who lives ---- */

static void daemon_begin(struct chaos *x, const struct chaos_options *o)
{
	static const char *const keeper[] = {"--keeper", NULL};
	struct daemon_process *d = &x->daemon;
	char config[512];

	*d = (struct daemon_process){.dir = "/tmp/kvgate-test-XXXXXX"};
	assert(mkdtemp(d->dir) && chmod(d->dir, 0755) == 0);
	snprintf(d->socket, sizeof(d->socket), "%s/sock", d->dir);
	snprintf(d->config, sizeof(d->config), "%s/conf", d->dir);
	snprintf(d->log, sizeof(d->log), "%s/log", d->dir);
	snprintf(config, sizeof(config),
		"[memory]\nhost_bytes = 16MiB\nsegment_bytes = 4MiB\nindex_slots = 65536\n"
		"[disk]\npaths = %s/planes\nsize = %uMiB\n",
		d->dir, o->disk_mib);
	daemon_spawn(d, config, keeper);
	assert(daemon_wait_ready(d));
}

static void client_begin(struct chaos *x, unsigned number)
{
	struct chaos_role role = {
		.daemon = &x->daemon,
		.shared = x->shared,
		.number = number,
		.random = (unsigned)rand_r(&x->random),
	};

	x->client[number] = child_start(0, chaos_client, &role);
}

/* Whether anybody serves or not: the keeper's child. 0: it has none just now. */
static pid_t keepers_child(const struct chaos *x)
{
	char path[80];
	int pid = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/task/%d/children", (int)x->daemon.pid,
		(int)x->daemon.pid);
	f = fopen(path, "re");
	if (f && fscanf(f, "%d", &pid) != 1)
		pid = 0;
	if (f)
		fclose(f);
	return pid;
}

/* ---- kills ---- */

/* Whoever ended before he was killed has seen what must not be. */
static void client_end(struct chaos *x, unsigned number, struct chaos_result *r)
{
	int status;

	kill(x->client[number], SIGKILL);
	status = child_wait(x->client[number]);
	r->wrong += status != 128 + SIGKILL;
	if (status != 128 + SIGKILL)
		fprintf(stderr, "chaos: client %u ended with status %d\n", number, status);
}

static void kill_daemon(struct chaos *x, struct chaos_result *r)
{
	const bool early = pick(x, 4) == 0;
	const pid_t pid = early ? keepers_child(x) : daemon_serving(&x->daemon);

	if (pid <= 0)
		return;
	kill(pid, SIGKILL);
	r->daemon_kills++;
	r->early_kills += early;
}

static void one_round(struct chaos *x, struct chaos_result *r)
{
	const unsigned what = pick(x, 4);
	const unsigned number = pick(x, CHAOS_CLIENTS);

	usleep(pick(x, PAUSE_MAX_US));
	if (what != 0)
		kill_daemon(x, r);
	if (what < 2) {
		client_end(x, number, r);
		r->client_kills++;
		client_begin(x, number);
	}
	for (unsigned i = 0; i < CHAOS_CLIENTS; i++) {
		siginfo_t info = {0};

		/* seen early, so that its last words stand beside what led to them */
		if (waitid(P_PID, (id_t)x->client[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
			info.si_pid) {
			client_end(x, i, r);
			client_begin(x, i);
		}
	}
}

/* ---- what is left ---- */

struct state {
	double pages, sessions, staging, segments;
	int fds, keeper_fds;
};

static uint64_t purge_all(struct kvg_client *c)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	assert(kvg_purge(c, &o, &r) == 0);
	return r.pinned;
}

/* Everything purged, one session open; the number of blocks that did not go. */
static uint64_t come_to_rest(struct chaos *x, struct state *ret)
{
	struct kvg_client *c = client_open(&x->daemon);
	const pid_t daemon = daemon_serving(&x->daemon);
	uint64_t pinned = 0;

	for (unsigned i = 0; i < 1000; i++) {
		pinned = purge_all(c);
		*ret = (struct state){
			.pages = client_counter(c, "kvgate_bytes"),
			.sessions = client_counter(c, "kvgate_sessions") - 1,
			.staging = client_counter(c, "kvgate_staging_bytes"),
			.segments = client_counter(c, "kvgate_segments"),
		};
		if (!pinned && !ret->pages && !ret->sessions && !ret->staging)
			break;
		usleep(10000);
	}
	usleep(200000); /* what was parked for sessions that are no more */
	ret->segments = client_counter(c, "kvgate_segments");
	ret->fds = (int)count_fds(daemon) - 2 * (int)ret->segments;
	ret->keeper_fds = (int)count_fds(x->daemon.pid) - (int)ret->segments;
	kvg_close(c);
	return pinned;
}

static int put_something(void *arg)
{
	const struct chaos_role *role = arg;
	struct chain_task t = {.d = role->daemon, .seed = 1, .n = 8};

	return chain_put_child(&t);
}

void chaos_run(const struct chaos_options *o, struct chaos_result *ret)
{
	struct chaos x = {.random = o->seed};
	struct chaos_role role = {.daemon = &x.daemon};
	struct state before, after;
	pid_t first;

	*ret = (struct chaos_result){0};
	x.shared = mmap(
		NULL, sizeof(*x.shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert(x.shared != MAP_FAILED);
	/* what this process was started with is not the daemon's: it would be counted, or replaced by what it is handed */
	close_range(3, ~0u, CLOSE_RANGE_CLOEXEC);
	daemon_begin(&x, o);
	assert(child_run(0, put_something, &role) == 0);
	first = daemon_serving(&x.daemon);
	kill(first, SIGKILL); /* all that follow are handed something, and so is this one's next */
	while (daemon_serving(&x.daemon) == first)
		usleep(5000);
	assert(come_to_rest(&x, &before) == 0);
	for (unsigned i = 0; i < CHAOS_CLIENTS; i++)
		client_begin(&x, i);
	usleep(500000); /* so that there is something to lose */
	for (unsigned i = 0; i < o->rounds; i++)
		one_round(&x, ret);
	usleep(500000);
	for (unsigned i = 0; i < CHAOS_CLIENTS; i++)
		client_end(&x, i, ret);
	daemon_serving(&x.daemon);
	ret->pins = (double)come_to_rest(&x, &after);
	ret->pages = after.pages;
	ret->sessions = after.sessions;
	ret->staging = after.staging;
	ret->fds = after.fds - before.fds;
	ret->keeper_fds = after.keeper_fds - before.keeper_fds;
	memcpy(ret->deeds, (const void *)x.shared->deeds, sizeof(ret->deeds));
	ret->blocks = x.shared->blocks;
	ret->bytes = x.shared->bytes;
	ret->refused = x.shared->refused;
	ret->lost = x.shared->lost;
	ret->wrong += daemon_logged(&x.daemon, "defect");
	ret->useless = daemon_logged(&x.daemon, "is of no use");
	assert(daemon_stop(&x.daemon) == 0);
	if (getenv("KVGATE_CHAOS_LOG")) /* to be looked at */
		rename(x.daemon.log, getenv("KVGATE_CHAOS_LOG"));
	daemon_cleanup(&x.daemon);
	munmap(x.shared, sizeof(*x.shared));
}
