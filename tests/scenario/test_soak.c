/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Three tenants with several models each, in far less memory and index than they ask for, while sessions are killed, floors
 * and quotas change, blocks are purged, pins are held for long, subscribers do not read and scores are rewritten
 * under the eyes of the pack workers. Every byte that is served is compared. At the end, what was taken is back: counters,
 * memory, file descriptors. KVGATE_SOAK_SECONDS makes it longer.
 */
#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/lib/harness.h"

#define SECONDS_DEFAULT 5
#define WORKERS         9
#define CHAINS          12
#define BLOCKS          6
#define HELD            12 /* pins a worker keeps over rounds */
#define UID_FIRST       62001
#define TENANTS         3
#define HOST_BYTES      (9u << 20)

static const char config[] =
	"[memory]\nhost_bytes = 9MiB\nsegment_bytes = 4MiB\nindex_slots = 64\nfloor = 0.3\n"
	"prefault = no\nhuge_pages = no\n[limits]\ntenant_host_bytes = 3MiB\nstaging_bytes = "
	"8MiB\npins = 512\nsession_pins = 64\n"
	"in_flight = 12\nsubscriptions = 2\n"
	"[tenant lossless]\nuids = 62001\nfloor = 1\n[tenant tight]\nuids = 62002\nhost_bytes = "
	"1MiB\n";

static const struct test_model models[] = {
	{"narrow", 4, 2, 16, 16, KVG_DTYPE_BF16, 32, 4},
	{"seven", 2, 3, 64, 32, KVG_DTYPE_F32, 64, 7},
	{"plain", 3, 1, 128, 128, KVG_DTYPE_F16, 48, 1},
	{"eighth", 5, 1, 8, 24, KVG_DTYPE_FP8_E4M3, 100, 2},
	{"too-big", 8, 4, 128, 128, KVG_DTYPE_BF16, 200, 3}, /* 3.1 MiB: more than any tenant has */
};
#define MODELS  (sizeof(models) / sizeof(models[0]))
#define TOO_BIG (MODELS - 1)

struct worker {
	const struct daemon_process *d;
	pid_t pid;
	unsigned seed;
	time_t until;
};

struct held {
	struct kvg_pin pin;
	struct kvg_layout *layout;
	const struct test_model *model;
	uint64_t seed;
};

struct session {
	struct kvg_client *c;
	struct kvg_layout *layout[MODELS];
	struct held held[HELD];
	size_t n_held;
	unsigned seed;
};

static unsigned random_below(struct session *s, unsigned n)
{
	return (unsigned)rand_r(&s->seed) % n;
}

static void compare(const struct held *h)
{
	uint64_t pairs = content_compare(h->model, h->seed, h->layout, &h->pin);
	double all = h->model->layers * h->model->heads * h->model->tokens;

	assert((double)pairs >= h->pin.retention * all - .5);
}

static void let_go(struct session *s, size_t i)
{
	compare(&s->held[i]); /* as it was when it was pinned */
	kvg_unpin(s->c, &s->held[i].pin, 1);
	s->held[i] = s->held[--s->n_held];
}

static void read_chain(struct session *s, unsigned m, uint64_t chain)
{
	struct kvg_key keys[BLOCKS];
	struct kvg_pin pins[BLOCKS];
	size_t n;

	chain_keys(s->layout[m], &models[m], chain, BLOCKS, keys);
	n = kvg_prefix_pin(s->layout[m], keys, BLOCKS, random_below(s, 2) ? 0.f : .9f, pins);
	for (size_t i = 0; i < n; i++) {
		struct held h = {pins[i], s->layout[m], &models[m], chain + i};

		compare(&h);
		if (s->n_held == HELD)
			let_go(s, random_below(s, HELD));
		s->held[s->n_held++] = h;
		if (random_below(s, 4))
			let_go(s, s->n_held - 1);
	}
}

/* Rewrites the scores of a stage as long as it may: any sum of the old and the new may be taken, nothing else. */
struct rewriter {
	float *score;
	size_t n;
	atomic_bool stop;
};

static void *rewrite(void *arg)
{
	static const float odd[] = {NAN, INFINITY, -1.f, -0.f, 0.f, 2.f, 1e-30f, .5f};
	struct rewriter *r = arg;
	unsigned seed = 1;

	while (!atomic_load_explicit(&r->stop, memory_order_relaxed)) {
		size_t i = (size_t)rand_r(&seed) % r->n;

		*(volatile float *)&r->score[i] = odd[(unsigned)rand_r(&seed) % 8];
	}
	return NULL;
}

static bool expected(int code)
{
	return code == KVG_CODE_OK || code == KVG_CODE_EXISTS || code == KVG_CODE_NO_PARENT ||
		code == KVG_CODE_NO_SPACE || code == KVG_CODE_QUOTA || code == KVG_CODE_TOO_LARGE;
}

/* A chain as one batch, children beside their parents; sometimes with scores that change meanwhile. */
static void write_chain(struct session *s, unsigned m, uint64_t chain, bool hostile)
{
	const struct test_model *model = &models[m];
	struct kvg_commit_result result[BLOCKS];
	struct kvg_commit item[BLOCKS];
	struct kvg_stage stage[BLOCKS];
	struct kvg_key keys[BLOCKS];
	struct rewriter r = {.stop = false};
	pthread_t thread;
	ssize_t n = kvg_stage(s->layout[m], model->n_planes > 1 ? KVG_INPUT_SCORES : KVG_INPUT_NONE,
		BLOCKS, stage);

	assert(n > 0 || n == -EDQUOT);
	if (n <= 0)
		return;
	hostile = hostile && stage[0].aux_bytes;
	chain_keys(s->layout[m], model, chain, (uint32_t)n, keys);
	for (ssize_t i = 0; i < n; i++) {
		content_fill(model, chain + (uint64_t)i, &stage[i]);
		item[i] = (struct kvg_commit){&stage[i], keys[i], i ? &keys[i - 1] : NULL};
	}
	if (hostile) {
		r.score = stage[0].aux;
		r.n = stage[0].aux_bytes / sizeof(float);
		assert(pthread_create(&thread, NULL, rewrite, &r) == 0);
	}
	assert(kvg_commit(s->c, item, (size_t)n, result) == 0);
	if (hostile) {
		atomic_store(&r.stop, true);
		pthread_join(thread, NULL);
	}
	for (ssize_t i = 0; i < n; i++)
		if (!expected(result[i].code) &&
			!(hostile && result[i].code == KVG_CODE_BAD_SCORES)) {
			fprintf(stderr, "model %s: %d %s\n", model->name, result[i].code,
				result[i].error);
			abort();
		} else {
			assert(m != TOO_BIG || result[i].code != KVG_CODE_OK);
		}
}

static void purge_something(struct session *s, unsigned m, uint64_t chain)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;
	struct kvg_layout_info info = KVG_OPTIONS_INIT(kvg_layout_info);
	struct kvg_key keys[BLOCKS];

	kvg_layout_describe(s->layout[m], &info);
	chain_keys(s->layout[m], &models[m], chain, BLOCKS, keys);
	o.layout = info.id;
	o.keys = random_below(s, 4) ? keys : NULL;
	o.n_keys = o.keys ? BLOCKS : 0;
	o.keep_planes = random_below(s, 3);
	assert(kvg_purge(s->c, &o, &r) == 0);
}

static void change_policy(struct session *s, unsigned m)
{
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);
	int r;

	p.floor = (float)(1 + random_below(s, 10)) / 10.f;
	p.model = random_below(s, 2) ? models[m].name : NULL;
	r = kvg_policy(s->c, &p);
	assert(r == 0);
}

static void on_event(void *userdata, const struct kvg_event *e)
{
	(void)userdata, (void)e;
}

static void through_the_socket(struct session *s, unsigned m, uint64_t chain)
{
	struct kvg_acquired got[BLOCKS];
	struct kvg_handle handles[BLOCKS];
	struct kvg_key keys[BLOCKS];
	ssize_t n;
	size_t n_ok = 0;

	chain_keys(s->layout[m], &models[m], chain, BLOCKS, keys);
	n = kvg_acquire(s->layout[m], keys, BLOCKS, 0.f, 0, got);
	assert(n >= 0 || kvg_last_code(s->c) == KVG_CODE_QUOTA);
	for (size_t i = 0; n >= 0 && i < BLOCKS; i++)
		if (got[i].code == KVG_CODE_OK)
			handles[n_ok++] = got[i].handle;
	read_chain(s, m, chain);
	if (n_ok && random_below(s, 3)) /* else the end of the session gives them back */
		assert(kvg_release(s->c, handles, n_ok) == 0);
	assert(kvg_prefetch(s->layout[m], keys, BLOCKS, 1.f) >= 0);
}

static void session_open(struct session *s, const struct worker *w)
{
	s->c = client_open(w->d);
	for (size_t m = 0; m < MODELS; m++)
		s->layout[m] = model_register(s->c, &models[m]);
}

static int work(void *arg)
{
	const struct worker *w = arg;
	struct session s = {.seed = w->seed};

	session_open(&s, w);
	while (time(NULL) < w->until) {
		unsigned m = random_below(&s, MODELS - 1), what = random_below(&s, 100);
		uint64_t chain = 1000 * (1 + random_below(&s, CHAINS)) + 100000 * m;

		if (what < 30)
			write_chain(&s, m, chain, false);
		else if (what < 40)
			write_chain(&s, m, chain, true);
		else if (what < 42)
			write_chain(&s, TOO_BIG, chain, false);
		else if (what < 75)
			read_chain(&s, m, chain);
		else if (what < 85)
			through_the_socket(&s, m, chain);
		else if (what < 90)
			purge_something(&s, m, chain);
		else if (what < 93)
			change_policy(&s, m);
		else if (what < 95)
			kvg_subscribe(
				s.c, what == 93 ? 0xe : 0, on_event, NULL); /* and does not read */
		else if (what < 98 && s.n_held)
			let_go(&s, random_below(&s, (unsigned)s.n_held));
		else if (what == 99) {
			s.n_held = 0;
			kvg_close(s.c); /* with all that it holds */
			session_open(&s, w);
		}
	}
	while (s.n_held)
		let_go(&s, 0);
	kvg_close(s.c);
	return 0;
}

/* Every memfd that the daemon has open, by what it is for. */
struct memfds {
	uint64_t segment_bytes; /* of memory; a segment is open twice */
	unsigned segments, staging, pins;
};

static struct memfds count_memfds(const struct daemon_process *d)
{
	struct memfds n = {0};
	char path[64], name[128];
	struct dirent *e;
	struct stat st;
	DIR *dir;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)d->pid);
	dir = opendir(path);
	assert(dir);
	while ((e = readdir(dir))) {
		ssize_t bytes = readlinkat(dirfd(dir), e->d_name, name, sizeof(name) - 1);

		name[bytes < 0 ? 0 : bytes] = '\0';
		n.staging += strstr(name, "memfd:kvgate-staging") != NULL;
		n.pins += strstr(name, "memfd:kvgate-pins") != NULL;
		if (!strstr(name, "memfd:kvgate-segment") || fstatat(dirfd(dir), e->d_name, &st, 0))
			continue;
		n.segments++;
		n.segment_bytes += (uint64_t)st.st_blocks * 512 / 2;
	}
	closedir(dir);
	return n;
}

struct totals {
	const char *name;
	double sum;
};

static void add(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	struct totals *t = userdata;

	(void)tenant, (void)model, (void)tier, (void)plane;
	if (!strcmp(name, t->name))
		t->sum += value;
}

static double total(struct kvg_client *c, const char *name)
{
	struct totals t = {.name = name};

	assert_int_equal(kvg_stat(c, 1, add, &t), 0);
	return t.sum;
}

static void wait_total(struct kvg_client *c, const char *name, double value)
{
	for (int i = 0; i < 2000 && total(c, name) != value; i++)
		usleep(5000);
	if (total(c, name) != value)
		fail_msg("%s is %g, not %g", name, total(c, name), value);
}

/* As a tenant: nothing of it is pinned any more, so all of it can go. */
static int purge_all(void *arg)
{
	struct kvg_client *c = client_open(arg);
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result r;

	assert(kvg_purge(c, &o, &r) == 0);
	kvg_close(c);
	return r.pinned ? 1 : 0;
}

/* Purges everything. Returns the daemon's file descriptors without those of segments, with one session open. */
static unsigned settle(struct daemon_process *d)
{
	static const char *const zero[] = {"kvgate_blocks", "kvgate_bytes", "kvgate_plane_bytes",
		"kvgate_staging_bytes", "kvgate_in_flight_commits", "kvgate_corrupt_total"};
	struct kvg_client *c = client_open(d);
	struct memfds memfds;
	unsigned fds;

	wait_total(c, "kvgate_sessions", 1);
	for (uid_t uid = UID_FIRST; uid < UID_FIRST + TENANTS; uid++)
		assert_int_equal(child_run(uid, purge_all, d), 0);
	wait_total(c, "kvgate_sessions", 1);
	for (size_t i = 0; i < sizeof(zero) / sizeof(zero[0]); i++)
		wait_total(c, zero[i], 0);
	for (int i = 0; i < 2000 && count_memfds(d).staging; i++)
		usleep(5000); /* given back beside the control thread */
	memfds = count_memfds(d);
	fds = daemon_count_fds(d) - memfds.segments;
	assert_int_equal(memfds.staging, 0);
	assert_int_equal(memfds.pins, 1);
	assert_true((double)memfds.segment_bytes == total(c, "kvgate_resident_bytes"));
	assert_true(memfds.segment_bytes <= HOST_BYTES);
	kvg_close(c);
	return fds;
}

static void start_worker(struct worker *w, unsigned i, unsigned seed)
{
	w->seed = seed;
	w->pid = child_start(UID_FIRST + i % TENANTS, work, w);
}

static void test_soak(void **state)
{
	const char *longer = getenv("KVGATE_SOAK_SECONDS");
	const time_t until = time(NULL) + (longer ? atol(longer) : SECONDS_DEFAULT);
	struct daemon_process d;
	struct worker worker[WORKERS];
	struct kvg_client *c;
	unsigned seed = 7, fds;

	(void)state;
	if (!can_change_user())
		skip();
	daemon_start(&d, config);
	fds = settle(&d);
	for (unsigned i = 0; i < WORKERS; i++) {
		worker[i] = (struct worker){.d = &d, .until = until};
		start_worker(&worker[i], i, i);
	}
	for (unsigned n = WORKERS; time(NULL) + 1 < until; n++) { /* somebody dies, another comes */
		unsigned i = (unsigned)rand_r(&seed) % WORKERS;

		usleep(50000);
		kill(worker[i].pid, SIGKILL);
		assert_int_equal(child_wait(worker[i].pid), 128 + SIGKILL);
		start_worker(&worker[i], i, n);
	}
	for (unsigned i = 0; i < WORKERS; i++)
		assert_int_equal(child_wait(worker[i].pid), 0);
	assert_int_equal(settle(&d), fds);
	c = client_open(&d);
	assert_true(total(c, "kvgate_evicted_blocks_total") > 0);
	assert_true(
		total(c, "kvgate_evicted_planes_total") > total(c, "kvgate_evicted_blocks_total"));
	assert_true(total(c, "kvgate_touches_total") > 0);
	assert_true(total(c, "kvgate_sessions_reclaimed_total") > 0);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_soak),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
