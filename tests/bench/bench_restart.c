/* SPDX-License-Identifier: Apache-2.0 */
/*
 * restart_first_hit_ms: 4 GiB in memory, and the daemon is restarted under a connected client: from the order to restart until
 * the next daemon has answered a call of the same session, and the block it named was looked up. Afterwards all 4 GiB are
 * compared. `systemctl restart` under a systemd of its own where one can be booted (tests/systemd/sandbox: this program is then
 * run again in there, with --inside), else `kvgated --keeper` and SIGUSR2.
 */
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/bench/figure.h"
#include "tests/lib/harness.h"

#define CHAINS    8
#define BLOCKS    128 /* of 4 MiB each: */
#define ROUNDS    7
#define LATEST_MS 60000

struct result {
	double median_ms, worst_ms;
	unsigned long long wrong; /* blocks that were not there; a wrong byte ends the program */
};

static struct kvg_client *c;
static struct kvg_layout *l;
static struct kvg_key key[CHAINS][BLOCKS];

static uint64_t seed_of(unsigned chain)
{
	return 1000u * (uint64_t)(chain + 1);
}

static void fill(const struct daemon_process *d)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);

	o.socket = d->socket;
	o.resume_ms = 60000;
	o.timeout_ms = 60000;
	if (kvg_open(&o, &c)) {
		fprintf(stderr, "bench_restart: %s\n", kvg_last_error(NULL));
		exit(1);
	}
	l = model_register(c, &model_wide);
	for (unsigned i = 0; i < CHAINS; i++)
		assert(chain_put(c, l, &model_wide, seed_of(i), BLOCKS, key[i]) == KVG_CODE_OK);
}

static unsigned long long compare_all(void)
{
	static struct kvg_pin pins[BLOCKS];
	unsigned long long missing = 0;

	for (unsigned i = 0; i < CHAINS; i++) {
		ssize_t n = kvg_prefix_pin(l, key[i], BLOCKS, 1.f, pins);

		assert(n >= 0);
		missing += BLOCKS - (unsigned long long)n;
		for (ssize_t b = 0; b < n; b++)
			content_compare(&model_wide, seed_of(i) + (uint64_t)b, l, &pins[b]);
		kvg_unpin(c, pins, (size_t)n);
	}
	return missing;
}

/* A socket that systemd made says that systemd is its peer. */
static pid_t who_serves(const struct daemon_process *d)
{
	int pid = 0;
	FILE *f;

	if (d->pid)
		return daemon_serving(d);
	/* so many starts in so short a time would be refused */
	assert(system("systemctl reset-failed kvgated.service") == 0);
	f = popen("systemctl show -P MainPID kvgated.service", "r");
	assert(f && fscanf(f, "%d", &pid) == 1 && pid > 1);
	pclose(f);
	return pid;
}

static void order(const struct daemon_process *d)
{
	pid_t pid;

	if (d->pid) {
		kill(d->pid, SIGUSR2);
		return;
	}
	pid = fork();
	assert(pid >= 0);
	if (!pid) {
		execlp("systemctl", "systemctl", "restart", "kvgated.service", (char *)NULL);
		_exit(127);
	}
}

/* A block that the next daemon says is there, and that is then read. */
static double first_hit(const struct daemon_process *d, unsigned round)
{
	const struct kvg_key *k = &key[round % CHAINS][round];
	const pid_t old = who_serves(d);
	struct kvg_acquired got;
	struct kvg_pin pin;
	double began, took;

	began = figure_now_us();
	order(d);
	for (;;) {
		const bool gone = kill(old, 0) < 0;

		got.code = KVG_CODE_NOT_FOUND;
		if (kvg_acquire(l, k, 1, 1.f, 0, &got) == 1 && gone)
			break;
		if ((figure_now_us() - began) * 1e-3 > LATEST_MS) {
			fprintf(stderr, "no daemon comes: %s\n", kvg_last_error(c));
			exit(1);
		}
		if (got.code == KVG_CODE_OK)
			kvg_release(c, &got.handle, 1); /* the old one still answers */
		usleep(200);
	}
	assert(kvg_lookup_pin(l, k, 1.f, &pin) == 0);
	took = (figure_now_us() - began) * 1e-3;
	content_compare(&model_wide, seed_of(round % CHAINS) + round, l, &pin);
	kvg_unpin(c, &pin, 1);
	kvg_release(c, &got.handle, 1);
	if (!d->pid)
		wait(NULL);
	return took;
}

static struct result measure(const struct daemon_process *d)
{
	struct result r;
	double ms[ROUNDS];

	fill(d);
	for (unsigned i = 0; i < ROUNDS; i++) {
		ms[i] = first_hit(d, i);
		usleep(300000);
	}
	r.median_ms = figure_median(ms, ROUNDS);
	r.worst_ms = ms[ROUNDS - 1];
	r.wrong = compare_all();
	kvg_close(c);
	return r;
}

/* ---- with a keeper ---- */

static struct result under_keeper(void)
{
	static const char *const keeper[] = {"--keeper", NULL};
	struct daemon_process d = {0};
	struct result r;

	daemon_spawn(&d, "[memory]\nhost_bytes = 5GiB\nindex_slots = 65536\n", keeper);
	assert(daemon_wait_ready(&d));
	r = measure(&d);
	assert(daemon_stop(&d) == 0);
	daemon_cleanup(&d);
	return r;
}

/* ---- with systemd ---- */

static int inside(void)
{
	struct daemon_process d = {.socket = "/run/kvgated/kvgated.sock"};
	struct result r = measure(&d);

	printf("%f %f %llu\n", r.median_ms, r.worst_ms, r.wrong);
	return 0;
}

/* False: it cannot be, and `why` says so. */
static bool under_systemd(struct result *ret, char *why, size_t size)
{
	const char *build = getenv("KVGATE_BUILD_DIR") ? getenv("KVGATE_BUILD_DIR")
						       : KVG_BINARY_DIR;
	char command[1024], line[300] = "no answer";
	bool done = false;
	FILE *f;

	if (geteuid() != 0) {
		snprintf(why, size, "not root");
		return false;
	}
	snprintf(command, sizeof(command), "sh %s/tests/bench/restart_systemd %s %s 2>&1",
		KVG_SOURCE_DIR, KVG_SOURCE_DIR, build);
	f = popen(command, "r");
	while (f && fgets(line, sizeof(line), f))
		done |= sscanf(line, "measured %lf %lf %llu", &ret->median_ms, &ret->worst_ms,
				&ret->wrong) == 3;
	if (f)
		pclose(f);
	line[strcspn(line, "\n\"\\")] = '\0';
	snprintf(why, size, "%s", line);
	return done;
}

int main(int argc, char **argv)
{
	struct result r;
	char why[300];
	bool systemd;

	if (argc > 1 && !strcmp(argv[1], "--inside"))
		return inside();
	systemd = !getenv("KVGATE_NO_SYSTEMD") && under_systemd(&r, why, sizeof(why));
	if (!systemd) {
		fprintf(stderr, "bench_restart: not under systemd: %s\n", why);
		r = under_keeper();
	}
	if (r.wrong)
		fprintf(stderr, "bench_restart: %llu blocks are not there\n", r.wrong);
	figure_print(&(struct figure_line){"restart", "restart_first_hit_ms", "ms", r.median_ms,
			     FIGURE_NONE, FIGURE_NONE},
		"%s, %d blocks of 4 MiB; median of %d, slowest %.1f ms; all bytes compared "
		"afterwards, %llu blocks "
		"missing",
		systemd ? "systemctl restart, under a real systemd"
			: "kvgated --keeper and SIGUSR2: no systemd could be booted",
		CHAINS * BLOCKS, ROUNDS, r.worst_ms, r.wrong);
	return figure_status() || r.wrong;
}
