/* SPDX-License-Identifier: Apache-2.0 */
/* A kvgated with a disk, driven through libkvgate. Opaque blocks carry their number at some places. */
#include <assert.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/bench_disk.h"

#define BATCH      16u     /* blocks of one commit */
#define COMMITS    3u      /* of them under way */
#define STAMP_EACH 262144u /* bytes; small blocks have one stamp */
#define HEADER     4096u   /* more than a plane's header and the arrays of an opaque block need */

void rig_fail(struct kvg_client *c, const char *what)
{
	fprintf(stderr, "bench_disk: %s: %s\n", what, c ? kvg_last_error(c) : "");
	exit(1);
}

static void start(struct rig *r)
{
	daemon_spawn(&r->d, r->config, NULL);
	if (!daemon_wait_ready(&r->d))
		rig_fail(NULL, "kvgated does not serve");
	r->c = client_open(&r->d);
	r->l = NULL;
}

void rig_start(struct rig *r, const struct place *p, const struct rig_options *o)
{
	*r = (struct rig){.l = NULL};
	snprintf(r->config, sizeof(r->config),
		"[memory]\nhost_bytes = %llu\nsegment_bytes = %llu\nindex_slots = 262144\n"
		"[disk]\npaths = %s/planes\nsize = %llu\ndrain_seconds = %u\nadmit = %s\n",
		(unsigned long long)o->host_bytes, (unsigned long long)o->segment_bytes, p->dir,
		(unsigned long long)o->disk_bytes, o->drain_seconds,
		o->admit_all ? "all" : "worth");
	start(r);
}

void rig_restart(struct rig *r)
{
	kvg_close(r->c);
	if (daemon_stop(&r->d) != 0)
		rig_fail(NULL, "kvgated did not end well");
	start(r);
}

void rig_stop(struct rig *r, const struct place *p)
{
	kvg_close(r->c);
	if (daemon_stop(&r->d) != 0)
		rig_fail(NULL, "kvgated did not end well");
	daemon_cleanup(&r->d);
	place_unlink(p, "planes");
}

struct sum {
	const char *name;
	double value;
};

static void add(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	struct sum *s = userdata;

	(void)tenant, (void)model, (void)tier, (void)plane;
	if (!strcmp(name, s->name))
		s->value += value;
}

double rig_counter(struct kvg_client *c, const char *name)
{
	struct sum s = {.name = name};

	if (kvg_stat(c, 1, add, &s) < 0)
		rig_fail(c, name);
	return s.value;
}

double rig_cpu_s(const struct rig *r)
{
	struct timespec t;
	clockid_t clock;

	if (clock_getcpuclockid(r->d.pid, &clock) || clock_gettime(clock, &t) < 0)
		rig_fail(NULL, "the daemon's processor time cannot be read");
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void rig_settle(const struct rig *r)
{
	double was = -1, is = 0;

	for (unsigned i = 0; i < 100 && is - was > .002; i++) {
		was = rig_cpu_s(r);
		usleep(100000);
		is = rig_cpu_s(r);
	}
}

struct kvg_layout *rig_layout(struct kvg_client *c, uint64_t bytes)
{
	struct kvg_layout_options o = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_layout *l;

	o.model = "bench_disk";
	o.opaque_bytes = bytes - HEADER;
	o.key_namespace = "bench";
	if (kvg_layout(c, &o, &l) < 0)
		rig_fail(c, "layout");
	return l;
}

struct kvg_key rig_key(uint64_t number)
{
	struct kvg_key k = {{0}};
	uint64_t mixed = (number + 1) * 0x9e3779b97f4a7c15ull;

	memcpy(k.b, &mixed, sizeof(mixed));
	memcpy(k.b + 8, &number, sizeof(number));
	return k;
}

/* ---- writing ---- */

struct commits {
	struct kvg_client *c;
	unsigned under_way;
};

static void on_committed(void *userdata, int64_t ticket, int error,
	const struct kvg_commit_result *results, size_t n)
{
	struct commits *w = userdata;

	(void)ticket;
	w->under_way--;
	if (error)
		rig_fail(w->c, "commit");
	for (size_t i = 0; i < n; i++)
		if (results[i].code != KVG_CODE_OK && results[i].code != KVG_CODE_EXISTS) {
			fprintf(stderr, "bench_disk: commit: %s\n", results[i].error);
			exit(1);
		}
}

static void wait_commits(struct commits *w, unsigned left)
{
	struct pollfd p = {.fd = kvg_fd(w->c), .events = POLLIN};

	while (w->under_way > left) {
		if (poll(&p, 1, 20000) != 1 || kvg_dispatch(w->c) < 0)
			rig_fail(w->c, "commits do not end");
	}
}

/* A page fault for each page would cost the client more than all the rest. */
static void back(const struct kvg_stage *s)
{
	const uintptr_t page = 4096, from = (uintptr_t)s->kv & ~(page - 1);

	madvise((void *)from, (uintptr_t)s->kv + s->kv_bytes - from, MADV_POPULATE_WRITE);
}

static void fill(struct kvg_stage *s, uint64_t number)
{
	back(s);
	memset(s->kv, (int)(number & 0xff), s->kv_bytes);
	for (size_t at = 0; at + sizeof(number) <= s->kv_bytes; at += STAMP_EACH)
		memcpy((uint8_t *)s->kv + at, &number, sizeof(number));
	s->tokens = NULL;
}

void rig_put(struct kvg_client *c, struct kvg_layout *l, uint64_t first, unsigned n)
{
	struct commits w = {.c = c};

	for (unsigned done = 0; done < n;) {
		const unsigned want = n - done < BATCH ? n - done : BATCH;
		struct kvg_commit item[BATCH] = {0};
		struct kvg_stage s[BATCH];
		ssize_t got = kvg_stage(l, KVG_INPUT_NONE, want, s);

		if (got <= 0)
			rig_fail(c, "stage");
		for (ssize_t i = 0; i < got; i++) {
			fill(&s[i], first + done + (unsigned)i);
			item[i].stage = &s[i];
			item[i].key = rig_key(first + done + (unsigned)i);
		}
		wait_commits(&w, COMMITS - 1);
		w.under_way++;
		if (kvg_commit_start(c, item, (size_t)got, on_committed, &w) < 0)
			rig_fail(c, "commit");
		done += (unsigned)got;
	}
	wait_commits(&w, 0);
}

bool rig_compare(struct kvg_client *c, struct kvg_layout *l, uint64_t number)
{
	const struct kvg_key key = rig_key(number);
	struct kvg_plane plane[KVG_PLANES_MAX];
	struct kvg_pin pin;

	if (kvg_lookup_pin(l, &key, 1.f, &pin) < 0)
		return false;
	if (kvg_planes(l, &pin, plane) != 1)
		rig_fail(c, "planes");
	for (uint64_t at = 0; at + sizeof(number) <= plane[0].opaque_bytes; at += STAMP_EACH)
		if (memcmp((const uint8_t *)plane[0].k + at, &number, sizeof(number))) {
			fprintf(stderr, "bench_disk: wrong bytes\n");
			exit(1);
		}
	kvg_unpin(c, &pin, 1);
	return true;
}
