/* SPDX-License-Identifier: Apache-2.0 */
/*
 * top: one screen, redrawn every interval from two snapshots of the counters: levels from the newer, rates from the
 * difference. Plain ANSI on the alternate screen; the terminal is put back on every way out, since signals only
 * set a flag that the loop sees.
 */
#include "client/ctl/ctl.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t stop; /* set by a signal */

static void on_signal(int signo)
{
	(void)signo;
	stop = 1;
}

struct snapshot {
	struct ctl_counters counters;
	struct kvg_policy policy;
	double time;
};

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int snapshot_take(struct kvg_client *c, bool all, struct snapshot *ret)
{
	int r = ctl_counters_read(c, all, &ret->counters);

	ret->policy = (struct kvg_policy)KVG_OPTIONS_INIT(kvg_policy);
	if (r == 0)
		r = kvg_policy(c, &ret->policy);
	ret->time = now();
	return r;
}

static double level(const struct snapshot *s, const char *name, int plane)
{
	return ctl_counters_sum(&s->counters, name, plane);
}

static double rate(const struct snapshot *a, const struct snapshot *b, const char *name, int plane)
{
	double dt = b->time - a->time;

	return dt > 0 ? (level(b, name, plane) - level(a, name, plane)) / dt : 0;
}

static void draw_rates(const struct snapshot *a, const struct snapshot *b, const char *eol)
{
	static const struct {
		const char *label, *name;
		bool bytes;
	} row[] = {
		{"commits", "kvgate_commits_total", false},
		{"committed", "kvgate_commit_bytes_total", true},
		{"block reads", "kvgate_touches_total", false},
		{"requests", "kvgate_requests_total", false},
		{"evicted blocks", "kvgate_evicted_blocks_total", false},
		{"evicted planes", "kvgate_evicted_planes_total", false},
		{"planes to disk", "kvgate_demoted_planes_total", false},
		{"planes from disk", "kvgate_promoted_planes_total", false},
		{"pinned victims", "kvgate_evict_pinned_total", false},
		{"refused", "kvgate_commit_refused_total", false},
	};

	printf("%-16s %12s %12s%s", "", "per second", "in all", eol);
	for (size_t i = 0; i < sizeof(row) / sizeof(row[0]); i++) {
		double r = rate(a, b, row[i].name, -1), n = level(b, row[i].name, -1);

		printf("%-16s %12s %12s%s", row[i].label,
			row[i].bytes ? ctl_bytes(r).s : ctl_count(r).s,
			row[i].bytes ? ctl_bytes(n).s : ctl_count(n).s, eol);
	}
}

static void draw_planes(const struct snapshot *a, const struct snapshot *b, const char *eol)
{
	double all = level(b, "kvgate_plane_bytes", -1);

	printf("%-8s %-32s %10s %12s%s", "plane", "", "held", "evicted/s", eol);
	for (int p = 0; p < KVG_PLANES_MAX; p++) {
		double n = level(b, "kvgate_plane_bytes", p),
		       evicted = rate(a, b, "kvgate_evicted_bytes_total", p);
		char bar[40];

		if (n == 0 && level(b, "kvgate_evicted_bytes_total", p) == 0)
			continue;
		ctl_bar(bar, sizeof(bar), 32, all > 0 ? n / all : 0);
		printf("%-8d %s %10s %12s%s", p, bar, ctl_bytes(n).s, ctl_bytes(evicted).s, eol);
	}
}

static void draw(const struct kvg_session_info *who, const struct snapshot *a,
	const struct snapshot *b, bool live)
{
	const char *eol = live ? "\033[K\n" : "\n";
	double used = (double)b->policy.host_used, quota = (double)b->policy.host_bytes;
	char bar[48];

	if (live)
		printf("\033[H");
	printf("%s   tenant %s   sessions %s   floor %.2f%s%s", who->daemon, who->tenant,
		ctl_count(level(b, "kvgate_sessions", -1)).s, b->policy.floor, eol, eol);
	ctl_bar(bar, sizeof(bar), 40, quota > 0 ? used / quota : 0);
	printf("memory   %s %s of %s, %s resident%s", bar, ctl_bytes(used).s, ctl_bytes(quota).s,
		ctl_bytes(level(b, "kvgate_resident_bytes", -1)).s, eol);
	printf("disk     %s%s",
		ctl_bytes(ctl_counters_tier(&b->counters, "kvgate_bytes", "disk")).s, eol);
	printf("blocks   %s   staged %s   packing %s%s%s",
		ctl_count(level(b, "kvgate_blocks", -1)).s,
		ctl_bytes(level(b, "kvgate_staging_bytes", -1)).s,
		ctl_count(level(b, "kvgate_in_flight_commits", -1)).s, eol, eol);
	draw_planes(a, b, eol);
	printf("%s", eol);
	draw_rates(a, b, eol);
	if (live)
		printf("\033[Jq quits");
	fflush(stdout);
}

static struct json_object *to_json(const struct snapshot *a, const struct snapshot *b)
{
	struct json_object *o = json_object_new_object(), *planes = json_object_new_array();
	static const char *const rates[] = {"kvgate_commits_total", "kvgate_commit_bytes_total",
		"kvgate_touches_total", "kvgate_requests_total", "kvgate_evicted_blocks_total",
		"kvgate_evicted_planes_total", "kvgate_demoted_planes_total",
		"kvgate_promoted_planes_total"};

	json_object_object_add(o, "host_used", json_object_new_int64((int64_t)b->policy.host_used));
	json_object_object_add(
		o, "host_bytes", json_object_new_int64((int64_t)b->policy.host_bytes));
	json_object_object_add(o, "blocks", ctl_json_real(level(b, "kvgate_blocks", -1)));
	json_object_object_add(o, "sessions", ctl_json_real(level(b, "kvgate_sessions", -1)));
	for (int p = 0; p < KVG_PLANES_MAX; p++)
		json_object_array_add(planes, ctl_json_real(level(b, "kvgate_plane_bytes", p)));
	json_object_object_add(o, "plane_bytes", planes);
	for (size_t i = 0; i < sizeof(rates) / sizeof(rates[0]); i++) {
		char name[80];

		snprintf(name, sizeof(name), "%s_per_second", rates[i]);
		json_object_object_add(o, name, ctl_json_real(rate(a, b, rates[i], -1)));
	}
	return o;
}

/* Waits; true when it is time to leave. */
static bool pause_or_quit(double seconds, bool keys)
{
	struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
	char key;

	if (poll(&p, keys ? 1 : 0, (int)(seconds * 1000)) > 0 && read(STDIN_FILENO, &key, 1) == 1)
		return key == 'q' || key == 'Q';
	return stop;
}

static void terminal_enter(struct termios *saved)
{
	struct sigaction act = {.sa_handler = on_signal};
	struct termios raw;

	sigaction(SIGINT, &act, NULL);
	sigaction(SIGTERM, &act, NULL);
	sigaction(SIGHUP, &act, NULL);
	tcgetattr(STDIN_FILENO, saved);
	raw = *saved;
	raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
	tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	printf("\033[?1049h\033[?25l\033[2J");
}

static void terminal_leave(const struct termios *saved)
{
	printf("\033[?25h\033[?1049l");
	fflush(stdout);
	tcsetattr(STDIN_FILENO, TCSANOW, saved);
}

static int run(struct kvg_client *c, bool all, bool once, double interval)
{
	struct kvg_session_info who = KVG_OPTIONS_INIT(kvg_session_info);
	bool live = !once && !ctl_options.json && isatty(STDOUT_FILENO) && isatty(STDIN_FILENO);
	struct snapshot s[2] = {0};
	struct termios saved;
	unsigned i = 0;
	int r;

	kvg_session(c, &who);
	r = snapshot_take(c, all, &s[0]);
	live = live && r == 0;
	if (live)
		terminal_enter(&saved);
	while (r == 0 && !pause_or_quit(interval, live)) {
		r = snapshot_take(c, all, &s[++i & 1]);
		if (r < 0)
			break;
		if (ctl_options.json)
			ctl_json_line(to_json(&s[~i & 1], &s[i & 1]));
		else
			draw(&who, &s[~i & 1], &s[i & 1], live);
		if (once)
			break;
	}
	if (live)
		terminal_leave(&saved);
	ctl_counters_fini(&s[0].counters);
	ctl_counters_fini(&s[1].counters);
	return r < 0 ? ctl_failed(c, r, "counters") : CTL_OK;
}

int ctl_top(int argc, char **argv)
{
	bool all = false, once = false;
	double interval = 1;
	const struct ctl_flag flags[] = {
		{"once", NULL, "one screen, as plain text", CTL_SWITCH, &once},
		{"interval", "SECONDS", "between two screens (1)", CTL_REAL, &interval},
		{"all", NULL, "every tenant together (admins)", CTL_SWITCH, &all},
		{0},
	};
	struct kvg_client *c;
	int n, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n)
		return ctl_usage(argv[0], "takes no '%s'", argv[1]);
	if (!(interval >= 0.05 && interval <= 3600))
		return ctl_usage(argv[0], "--interval is 0.05 to 3600 seconds");
	c = ctl_open();
	if (!c)
		return CTL_FAILED;
	status = run(c, all, once, interval);
	kvg_close(c);
	return status;
}
