/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What owns what, lowest first; built in this order and torn down in the opposite one:
 *
 *   options   what a person decided                      (daemon/base)
 *   loop      the control thread: epoll, timers, signals (daemon/base)
 *   counters  what happened                              (daemon/base)
 *   park      fds of the last daemon, and for the next   (daemon/base)
 *   disks     what the tier below memory is on           (files are made here)
 *   cache     tenants, index, blocks, memory, gates      (daemon/cache over daemon/mem and gates)
 *   server    socket, sessions, requests                 (daemon/serve)
 *
 * Signals are blocked before anything starts a thread, so that they come to the loop and nowhere else. The watchdog
 * is fed from the loop: if the control thread is stuck, systemd learns of it.
 *
 * SIGTERM, SIGINT: no newcomers, commits in flight finish and their answers are taken, drain_seconds at most. Then the best of what
 * only memory has goes down to disk, disk_drain_seconds at most: whether this is a restart, over which memory is kept,
 * or the end of it, is not said to a service. Then the end. A second one: at once.
 * SIGHUP: options and gates are read again; if anything is wrong with them, all stays as it is.
 */
#include "daemon/daemon.h"

#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/base/counters.h"
#include "daemon/base/log.h"
#include "daemon/base/loop.h"
#include "daemon/base/machine.h"
#include "daemon/base/options.h"
#include "daemon/base/park.h"
#include "daemon/cache/cache.h"
#include "daemon/disks.h"
#include "daemon/serve/server.h"

#define STATUS_PERIOD_NS 10000000000ull
#define FDS_PER_SESSION  6 /* socket, process, pin page, staging, both ends of the arrival pipe */
#define FDS_OTHER        256
#define LEAVE_MS         2000 /* for systemd to read what it was sent */
#define SYNC_SECONDS     10   /* for a disk to make durable what was written in time */
#define SPARE_SECONDS                                                                              \
	10 /* beyond all that, before systemd loses patience: memory is unmapped, devices are closed */
#define PACK_WORKERS_AUTO 8 /* more of them starve the workers whose blocks they pack */

enum phase {
	SERVING,
	FINISHING, /* what is under way */
	WRITING,   /* to disk, and then the end */
};

struct daemon {
	int argc;
	char *const *argv, *const *envp;
	struct options *options;
	struct loop *loop;
	struct counters *counters;
	struct park *park;
	struct disks disks;
	struct cache *cache;
	struct server *server;
	struct loop_timer *beat, *drain;
	bool watchdog;
	enum phase phase;
};

/* ---- gates ---- */

struct gates {
	struct gate *gate[OPTIONS_SECTIONS_MAX];
	size_t n;
};

static void gates_fini(struct gates *g)
{
	while (g->n)
		gate_free(g->gate[--g->n]);
}

/* All of them or none. */
static int gates_load(struct gates *ret, const struct options *o)
{
	char why[400];

	for (size_t i = 0; i < o->n_gates; i++) {
		int r = gate_load(o->gates[i].file, &ret->gate[i], why, sizeof(why));

		if (r < 0) {
			log_error("gate cannot be loaded", "gate=%s file=\"%s\" why=\"%s\"",
				o->gates[i].name, o->gates[i].file, why);
			gates_fini(ret);
			return r;
		}
		ret->n++;
	}
	return 0;
}

static int gates_install(struct gates *g, struct cache *c, const struct options *o)
{
	int r = 0;

	for (size_t i = 0; i < g->n && r == 0; i++) {
		r = cache_add_gate(c, o->gates[i].name, g->gate[i]);
		if (r == 0)
			g->gate[i] = NULL; /* the cache's */
		else
			log_error("gate cannot be added", "gate=%s error=\"%s\"", o->gates[i].name,
				strerror(-r));
	}
	gates_fini(g);
	return r;
}

/* ---- reload ---- */

/* Said when all of it is taken over, and not before: a file with a defect further down changes nothing. */
struct differences {
	struct {
		const char *name; /* of the table of parameters */
		bool reload;
	} of[OPTION_N];
	size_t n;
};

static void note_difference(void *userdata, const char *name, bool reload)
{
	struct differences *d = userdata;

	d->of[d->n].name = name;
	d->of[d->n++].reload = reload;
}

static void say_differences(const struct differences *d)
{
	for (size_t i = 0; i < d->n; i++)
		if (d->of[i].reload)
			log_info("parameter changed", "name=%s", d->of[i].name);
		else
			log_warning("parameter not changed: it needs a restart", "name=%s",
				d->of[i].name);
}

static int reload(struct daemon *d)
{
	struct options *o = NULL;
	struct gates gates = {.n = 0};
	struct differences differences = {.n = 0};
	char why[600];
	int r = options_load(d->argc, d->argv, d->envp, &o, why, sizeof(why));

	if (r == 0)
		r = options_follow(o, d->options, note_difference, &differences, why, sizeof(why));
	if (r < 0)
		log_error("configuration not taken over", "why=\"%s\"", why);
	if (r == 0)
		r = gates_load(&gates, o);
	if (r < 0) {
		options_free(o);
		return r;
	}
	cache_retire_gates(d->cache);
	gates_install(&gates, d->cache, o);
	log_set_level((enum log_level)o->log_level);
	server_reload(d->server, o);
	options_free(d->options);
	d->options = o;
	say_differences(&differences);
	return 0;
}

static void on_hup(void *userdata, int signo)
{
	struct daemon *d = userdata;

	(void)signo;
	if (d->phase != SERVING)
		return;
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu", (unsigned long long)loop_now_ns() / 1000);
	if (reload(d) == 0)
		log_info("configuration taken over", "file=\"%s\"", d->options->config);
	sd_notify(0, "READY=1");
}

/* ---- the end ---- */

static void quit(void *userdata)
{
	struct daemon *d = userdata;

	loop_quit(d->loop);
}

/* A phase that may take so long begins; TimeoutStopSec= does not have to know. */
static void enter(struct daemon *d, enum phase phase, uint64_t seconds, const char *status)
{
	d->phase = phase;
	loop_arm(d->drain, seconds * 1000000000u, 0);
	sd_notifyf(0, "STATUS=%s\nEXTEND_TIMEOUT_USEC=%llu", status,
		(unsigned long long)(seconds + SPARE_SECONDS) * 1000000u);
}

/* Clients are served, or were waited for long enough. */
static void write_down(void *userdata)
{
	struct daemon *d = userdata;
	const uint64_t seconds = (uint64_t)d->options->disk_drain_seconds;

	if (d->phase == WRITING)
		return;
	if (!d->disks.n || !seconds) {
		quit(d);
		return;
	}
	log_info("writing to disk what only memory has", "disk_drain_seconds=%llu",
		(unsigned long long)seconds);
	enter(d, WRITING, seconds + SYNC_SECONDS, "writing to disk what only memory has");
	cache_drain(d->cache, loop_now_ns() + seconds * 1000000000u, quit, d);
}

static void on_drain_timeout(void *userdata)
{
	struct daemon *d = userdata;

	if (d->phase == WRITING) {
		log_warning("the disk does not come to an end: not waiting for it");
		quit(d);
		return;
	}
	log_warning("commits in flight, or clients that do not read their answers, took too long: "
		    "not waiting for them");
	write_down(d);
}

static void on_term(void *userdata, int signo)
{
	struct daemon *d = userdata;

	if (d->phase != SERVING) {
		quit(d);
		return;
	}
	log_info("going down", "signal=%d", signo);
	sd_notify(0, "STOPPING=1");
	enter(d, FINISHING, (uint64_t)d->options->drain_seconds, "finishing commits in flight");
	server_drain(d->server, write_down, d);
}

/* ---- systemd ---- */

static void on_beat(void *userdata)
{
	struct daemon *d = userdata;
	char status[200];

	if (d->phase == WRITING)
		snprintf(status, sizeof(status), "writing to disk what only memory has");
	else
		server_status(d->server, status, sizeof(status));
	sd_notifyf(0, "STATUS=%s%s", status, d->watchdog ? "\nWATCHDOG=1" : "");
}

/* Twice within what systemd allows; without a watchdog only to say how things are. */
static void start_beat(struct daemon *d)
{
	uint64_t period = STATUS_PERIOD_NS, watchdog_us;

	if (!getenv("NOTIFY_SOCKET"))
		return;
	d->watchdog = sd_watchdog_enabled(0, &watchdog_us) > 0;
	if (d->watchdog && watchdog_us * 1000 / 2 < period)
		period = watchdog_us * 1000 / 2;
	loop_arm(d->beat, 0, period);
}

/* ---- building ---- */

static unsigned pack_workers(const struct options *o)
{
	long half = sysconf(_SC_NPROCESSORS_ONLN) / 2;

	if (o->pack_workers)
		return (unsigned)o->pack_workers;
	return half < 1 ? 1 : half > PACK_WORKERS_AUTO ? PACK_WORKERS_AUTO : (unsigned)half;
}

static int build_disks(struct daemon *d)
{
	char why[700];
	int r = disks_init(&d->disks, d->options, getenv("STATE_DIRECTORY"), why, sizeof(why));

	if (r < 0)
		log_error("cannot start", "part=disks why=\"%s\"", why);
	return r;
}

static int build_cache(struct daemon *d)
{
	const struct options *o = d->options;
	const struct cache_options co = {
		.loop = d->loop,
		.counters = d->counters,
		.park = d->park,
		.host_bytes = o->host_bytes,
		.segment_bytes = o->segment_bytes,
		.index_slots = (uint64_t)o->index_slots,
		.high_watermark = (float)o->high_watermark,
		.low_watermark = (float)o->low_watermark,
		.pack_workers = pack_workers(o),
		.numa_node = (int)o->numa_node,
		.huge_pages = o->huge_pages,
		.prefault = o->prefault,
		.arithmetic = o->gate_arithmetic ? GATE_FAST : GATE_EXACT,
		.disk = {.paths = (const char *const *)d->disks.path,
			.n_paths = d->disks.n,
			.in_flight_bytes = o->disk_in_flight_bytes,
			.write_bytes_per_day = o->disk_write_bytes_per_day,
			.uring = !o->disk_engine,
			.sqpoll = o->disk_sqpoll,
			.iopoll = o->disk_iopoll,
			.discard = o->disk_discard,
			.admit_all = o->disk_admit},
		.gpu = {.devices = o->gpu_devices,
			.library = o->gpu_library,
			.mover = o->gpu_mover[0] ? o->gpu_mover : KVG_MOVER,
			.bytes = o->gpu_bytes,
			.tenant_bytes = o->tenant_gpu_bytes},
	};

	if (o->numa_node >= 0 && !machine_has_node((int)o->numa_node)) {
		log_error("numa_node has no memory here: see numactl --hardware, or use -1",
			"numa_node=%lld", (long long)o->numa_node);
		return -EINVAL;
	}
	return cache_new(&co, &d->cache);
}

static int build_loop(struct daemon *d)
{
	int r = loop_new(&d->loop);

	if (r == 0)
		r = loop_add_timer(d->loop, on_beat, d, &d->beat);
	if (r == 0)
		r = loop_add_timer(d->loop, on_drain_timeout, d, &d->drain);
	if (r == 0)
		r = loop_add_signal(d->loop, SIGTERM, on_term, d);
	if (r == 0)
		r = loop_add_signal(d->loop, SIGINT, on_term, d);
	if (r == 0)
		r = loop_add_signal(d->loop, SIGHUP, on_hup, d);
	return r;
}

static int failed(const char *what, int r)
{
	if (r < 0)
		log_error("cannot start", "part=%s error=\"%s\"", what, strerror(-r));
	return r;
}

static int build_server(struct daemon *d)
{
	const struct server_parts parts = {
		.loop = d->loop,
		.cache = d->cache,
		.counters = d->counters,
		.options = d->options,
		.park = d->park,
	};
	char why[400];
	int r = failed("server", server_new(&parts, &d->server));

	if (r == 0)
		r = failed("what the last daemon left", server_adopt(d->server));
	if (r < 0)
		return r;
	r = server_listen(d->server, why, sizeof(why));
	if (r < 0)
		log_error("cannot listen", "why=\"%s\"", why);
	return r;
}

static int build(struct daemon *d)
{
	struct gates gates = {.n = 0};
	int r = failed("loop", build_loop(d));

	if (r == 0)
		r = failed("counters", counters_new(&d->counters));
	if (r == 0)
		r = failed("park", park_new(d->loop, &d->park));
	if (r == 0)
		r = build_disks(d);
	if (r == 0)
		r = failed("cache", build_cache(d));
	if (r == 0)
		r = gates_load(&gates, d->options);
	if (r == 0)
		r = gates_install(&gates, d->cache, d->options);
	if (r == 0)
		r = build_server(d);
	return r;
}

/* What is parked stays, whatever ends here; the keeper is to have read it before he hears that this process is gone. */
static void leave(struct daemon *d)
{
	int r;

	if (!d->park)
		return;
	r = park_sync(d->park, LEAVE_MS);
	park_freeze(d->park);
	if (r < 0 && r != -ENOTCONN)
		log_warning("the keeper of file descriptors does not answer: a restart may lose a "
			    "part of what the cache holds",
			"error=\"%s\"", strerror(-r));
}

static void tear_down(struct daemon *d)
{
	leave(d);
	server_free(d->server);
	cache_free(d->cache);
	disks_fini(&d->disks);
	park_free(d->park);
	counters_free(d->counters);
	if (d->loop) {
		loop_del_timer(d->beat);
		loop_del_timer(d->drain);
	}
	loop_free(d->loop);
	options_free(d->options);
}

/* As many as the kernel lets us have; sessions need them. */
static void raise_fd_limit(const struct options *o)
{
	const rlim_t want = (rlim_t)o->max_sessions * FDS_PER_SESSION + FDS_OTHER;
	struct rlimit l;

	if (getrlimit(RLIMIT_NOFILE, &l) < 0)
		return;
	if (l.rlim_max < want)
		log_warning("too few file descriptors for max_sessions: raise the hard limit "
			    "(LimitNOFILE=)",
			"limit=%llu wanted=%llu", (unsigned long long)l.rlim_max,
			(unsigned long long)want);
	l.rlim_cur = l.rlim_max;
	setrlimit(RLIMIT_NOFILE, &l);
}

int daemon_run(struct options *o, int argc, char *const *argv, char *const *envp)
{
	struct daemon d = {.argc = argc, .argv = argv, .envp = envp, .options = o};
	char bytes[32];
	int r;

	log_set_level((enum log_level)o->log_level);
	signal(SIGPIPE, SIG_IGN);
	raise_fd_limit(o);
	r = build(&d);
	if (r == 0) {
		option_format_bytes((double)o->host_bytes, bytes, sizeof(bytes));
		log_info("serving", "socket=\"%s\" host_bytes=%s config=\"%s\"", o->socket, bytes,
			o->config);
		sd_notify(0, "READY=1");
		start_beat(&d);
		r = failed("loop", loop_run(d.loop));
	}
	tear_down(&d);
	return r < 0 ? EXIT_FAILURE : EXIT_SUCCESS;
}
