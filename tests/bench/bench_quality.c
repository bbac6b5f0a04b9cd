/* SPDX-License-Identifier: Apache-2.0 */
/*
 * quality_rNN: answers through the daemon's planes in % of the full cache, mean over the tasks, question unseen when pairs
 * are chosen. The protected prefix and the last 2 % of the context are kept; the gate is the better of the lab
 * model's two. Beside it, on the same planes and by the same rule, what a cache could do without a gate.
 *
 * bench_quality [--samples FILE] [--contexts N] [--model DIR] [--jobs N]
 */
#include "tests/bench/bench_quality.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cblas.h>

#include "gates/gate.h"
#include "tests/bench/figure.h"
#include "tests/lib/harness.h"

#define CHUNK_ROWS 1024
#define GATES      2 /* methods that see every context; the others, hopeless and slow, every BESIDE-th */
#define BESIDE     5
#define VIEWS      (1 + QUALITY_METHODS * QUALITY_RATIOS) /* the full cache, then method by method */

struct tasks {
	uint32_t n;
	const char *name[QUALITY_TASKS_MAX];
};

struct counts {
	uint32_t asked[QUALITY_TASKS_MAX];
	uint32_t right[QUALITY_TASKS_MAX][VIEWS];
	uint32_t full_beside
		[QUALITY_TASKS_MAX]; /* right with the full cache, of the contexts that all methods saw */
};

static uint32_t task_of(struct tasks *t, const char *name)
{
	for (uint32_t i = 0; i < t->n; i++)
		if (!strcmp(t->name[i], name))
			return i;
	if (t->n == QUALITY_TASKS_MAX) {
		fprintf(stderr, "bench_quality: more than %d tasks\n", QUALITY_TASKS_MAX);
		exit(2);
	}
	t->name[t->n] = name;
	return t->n++;
}

/* Rows of one call: a question and its answer have to fit. */
static uint32_t rows_of(const struct quality_sample *s, uint32_t n)
{
	uint32_t rows = CHUNK_ROWS;

	for (uint32_t i = 0; i < n; i++)
		for (uint32_t j = 0; j < s[i].n_questions; j++)
			if (s[i].question[j].n_tokens > rows)
				rows = s[i].question[j].n_tokens;
	return rows;
}

static struct kvg_gate *open_gate(const char *folder, const char *name)
{
	char path[4096];
	struct kvg_gate *g = NULL;

	snprintf(path, sizeof(path), "%s/%s", folder, name);
	if (kvg_gate_open(path, &g)) {
		fprintf(stderr, "bench_quality: %s\n", kvg_last_error(NULL));
		exit(1);
	}
	return g;
}

/* Head means and band edges from one context of every task. */
static void calibrate(
	struct quality *q, const struct quality_sample *s, uint32_t n, struct tasks *tasks)
{
	const uint32_t runs = model_runs(&q->model->config);
	float *mean = calloc(runs, sizeof(*mean));
	struct quality_context first;
	uint32_t seen = 0;

	assert(mean);
	q->n_edges = 6;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t before = tasks->n;
		struct quality_context c;

		task_of(tasks, s[i].task);
		if (tasks->n == before)
			continue;
		quality_context_init(&c, q, &s[i], GATES);
		for (uint32_t run = 0; run < runs; run++) {
			double sum = 0;

			for (uint32_t t = 0; t < s[i].n_tokens; t++)
				sum += c.score[QUALITY_GATE][(size_t)run * s[i].n_tokens + t];
			mean[run] += (float)(sum / s[i].n_tokens);
		}
		seen++;
		quality_context_fini(&c);
	}
	for (uint32_t run = 0; run < runs; run++)
		mean[run] /= (float)seen;
	q->head_mean = mean;
	quality_context_init(&first, q, &s[0], QUALITY_METHODS);
	for (int m = 0; m < QUALITY_METHODS; m++) {
		int r = gate_quantiles(first.score[m], (uint64_t)runs * s[0].n_tokens,
			gate_default_retained, 6, q->edges[m]);

		assert(r == 0);
	}
	quality_context_fini(&first);
}

static void one_context(struct quality *q, struct kvg_client *client, struct kvg_layout **layout,
	const struct quality_sample *s, uint32_t task, int methods, struct counts *ret)
{
	const uint32_t runs = model_runs(&q->model->config),
		       n_views = 1 + (uint32_t)methods * QUALITY_RATIOS;
	struct quality_context c;
	struct quality_planes planes[QUALITY_METHODS];
	struct context seen[VIEWS];
	struct quality_view views[VIEWS];
	uint32_t v = 1;

	quality_context_init(&c, q, s, methods);
	for (int m = 0; m < methods; m++) {
		double rest[QUALITY_RATIOS];

		for (int i = 0; i < QUALITY_RATIOS;
			i++) /* the window is the same for all of them: 2 % */
			rest[i] = quality_protect(c.score[m], runs, s->n_tokens, quality_ratio[i]);
		quality_put(&planes[m], client, layout[m], &c, c.score[m]);
		if (m == 0)
			quality_select(&planes[0], QUALITY_GATE, 1, 1, &seen[0]);
		for (int i = 0; i < QUALITY_RATIOS; i++)
			quality_select(&planes[m], (enum quality_method)m, rest[i], 0, &seen[v++]);
	}
	for (v = 0; v < n_views; v++)
		views[v] = (struct quality_view){.context = &seen[v]};
	quality_answer(q, s, views, n_views);
	ret->asked[task] += s->n_questions;
	if (methods == QUALITY_METHODS)
		ret->full_beside[task] += views[0].right;
	for (v = 0; v < n_views; v++) {
		ret->right[task][v] += views[v].right;
		context_fini(&seen[v]);
	}
	for (int m = 0; m < methods; m++)
		quality_drop(&planes[m], client);
	quality_context_fini(&c);
}

/* Contexts of the same task before this one. */
static uint32_t seen_before(const struct quality_sample *s, uint32_t i)
{
	uint32_t seen = 0;

	for (uint32_t j = 0; j < i; j++)
		seen += !strcmp(s[j].task, s[i].task);
	return seen;
}

static void worker(struct quality *q, const struct daemon_process *d,
	const struct quality_sample *s, uint32_t n, struct tasks *tasks, unsigned job,
	unsigned jobs, int out)
{
	struct kvg_client *client = client_open(d);
	struct kvg_layout *layout[QUALITY_METHODS];
	struct counts *counts = calloc(1, sizeof(*counts));

	assert(counts);
	for (int m = 0; m < QUALITY_METHODS; m++)
		layout[m] = quality_layout(client, q, (enum quality_method)m, job);
	for (uint32_t i = job; i < n; i += jobs) {
		one_context(q, client, layout, &s[i], task_of(tasks, s[i].task),
			seen_before(s, i) % BESIDE ? GATES : QUALITY_METHODS, counts);
		if (job == 0 && i / jobs % 10 == 0)
			fprintf(stderr, "bench_quality: context %u of %u\n", i + 1, n);
	}
	for (size_t at = 0; at < sizeof(*counts);) {
		ssize_t w = write(out, (const char *)counts + at, sizeof(*counts) - at);

		assert(w > 0);
		at += (size_t)w;
	}
	free(counts);
	kvg_close(client);
}

static void add(struct counts *sum, const struct counts *c)
{
	for (uint32_t t = 0; t < QUALITY_TASKS_MAX; t++) {
		sum->asked[t] += c->asked[t];
		sum->full_beside[t] += c->full_beside[t];
		for (uint32_t v = 0; v < VIEWS; v++)
			sum->right[t][v] += c->right[t][v];
	}
}

/* Every job holds one context under every method; planes and pages round up by less than a half. */
static uint64_t memory_mib(
	const struct quality *q, const struct quality_sample *s, uint32_t n, unsigned jobs)
{
	const uint64_t row = 2ull * model_runs(&q->model->config) * q->model->config.head_dim * 2;
	uint64_t longest = 0;

	for (uint32_t i = 0; i < n; i++)
		longest = s[i].n_tokens > longest ? s[i].n_tokens : longest;
	return 512 + (longest * row * QUALITY_METHODS * jobs * 3 / 2 >> 20);
}

static void run_jobs(struct quality *q, const struct quality_sample *s, uint32_t n,
	struct tasks *tasks, unsigned jobs, struct counts *ret)
{
	struct daemon_process d;
	char config[128];
	int out[64];
	pid_t pid[64];

	snprintf(config, sizeof(config),
		"[memory]\nhost_bytes = %" PRIu64 "MiB\nsegment_bytes = 64MiB\n"
		"index_slots = 65536\n",
		memory_mib(q, s, n, jobs));
	daemon_start(&d, config);
	for (unsigned j = 0; j < jobs; j++) {
		int p[2];

		if (pipe(p) || (pid[j] = fork()) < 0) {
			perror("bench_quality");
			exit(1);
		}
		if (pid[j] == 0) {
			close(p[0]);
			worker(q, &d, s, n, tasks, j, jobs, p[1]);
			_exit(0);
		}
		close(p[1]);
		out[j] = p[0];
	}
	for (unsigned j = 0; j < jobs; j++) {
		struct counts c;
		size_t at = 0;
		ssize_t got;

		while (at < sizeof(c) && (got = read(out[j], (char *)&c + at, sizeof(c) - at)) > 0)
			at += (size_t)got;
		close(out[j]);
		if (child_wait(pid[j]) || at != sizeof(c)) {
			fprintf(stderr, "bench_quality: a process failed\n");
			exit(1);
		}
		add(ret, &c);
	}
	if (daemon_stop(&d))
		exit(1);
	daemon_cleanup(&d);
}

/* In % of the full cache, mean over the tasks; a task that the full cache fails says nothing. NAN: it fails all. */
static double percent(const struct counts *c, const struct tasks *tasks, int method, uint32_t view)
{
	double sum = 0;
	uint32_t n = 0;

	for (uint32_t t = 0; t < tasks->n; t++) {
		uint32_t full = method < GATES ? c->right[t][0] : c->full_beside[t];

		if (!full)
			continue;
		sum += 100. * c->right[t][view] / full;
		n++;
	}
	return n ? sum / n : NAN;
}

static uint32_t view_of(int method, int ratio)
{
	return 1 + (uint32_t)(method * QUALITY_RATIOS + ratio);
}

/* For who wants to see more than means. */
static void print_tasks(const struct counts *c, const struct tasks *tasks)
{
	for (uint32_t t = 0; t < tasks->n; t++) {
		fprintf(stderr, "%-16s %4u asked, %4u right with the full cache (%u beside)",
			tasks->name[t], c->asked[t], c->right[t][0], c->full_beside[t]);
		for (int m = 0; m < QUALITY_METHODS; m++) {
			fprintf(stderr, "  %s", quality_name[m]);
			for (int i = 0; i < QUALITY_RATIOS; i++)
				fprintf(stderr, " %u", c->right[t][view_of(m, i)]);
		}
		fprintf(stderr, "\n");
	}
}

static void print_beside(const char *name, int method, double percent)
{
	char beside[64];

	snprintf(beside, sizeof(beside), "%s_%s", name, quality_name[method]);
	if (isnan(percent)) {
		fprintf(stderr, "%s: nothing was right with the full cache there\n", beside);
		return;
	}
	figure_print(
		&(struct figure_line){"quality", beside, "%", percent, FIGURE_NONE, percent / 100},
		"beside %s%s", name, method < GATES ? "" : ", on every fifth context");
}

/* 0, or 1 when there is nothing to compare with. */
static int report(const struct counts *c, const struct tasks *tasks)
{
	print_tasks(c, tasks);
	for (int i = 0; i < QUALITY_RATIOS; i++) {
		const double gate = percent(c, tasks, QUALITY_GATE, view_of(QUALITY_GATE, i)),
			     text = percent(c, tasks, QUALITY_TEXT, view_of(QUALITY_TEXT, i)),
			     best = gate > text ? gate : text;
		char name[32];

		if (isnan(best)) {
			fprintf(stderr,
				"bench_quality: the full cache answers no question right: "
				"there is nothing to compare with\n");
			return 1;
		}
		snprintf(name, sizeof(name), "quality_r%.0f", 100 * quality_ratio[i]);
		figure_print(
			&(struct figure_line){"quality", name, "%", best, FIGURE_NONE, best / 100},
			"the full cache is 100, the %s gate", gate >= text ? "task" : "text");
		for (int m = 0; m < QUALITY_METHODS; m++)
			print_beside(name, m, percent(c, tasks, m, view_of(m, i)));
	}
	return 0;
}

int main(int argc, char **argv)
{
	const char *samples = KVG_SOURCE_DIR "/client/demo/lab/samples.jsonl",
		   *folder = KVG_SOURCE_DIR "/client/demo/lab";
	struct quality q = {0};
	struct tasks tasks = {0};
	struct counts *sum = calloc(1, sizeof(*sum));
	struct quality_sample *s;
	uint32_t n, contexts = 0;
	unsigned jobs = (unsigned)sysconf(_SC_NPROCESSORS_ONLN);
	char why[256];
	int failed;

	assert(sum);
	for (int i = 1; i < argc; i += 2) {
		if (i + 1 < argc && !strcmp(argv[i], "--samples"))
			samples = argv[i + 1];
		else if (i + 1 < argc && !strcmp(argv[i], "--model"))
			folder = argv[i + 1];
		else if (i + 1 < argc && !strcmp(argv[i], "--contexts"))
			contexts = (uint32_t)atoi(argv[i + 1]);
		else if (i + 1 < argc && !strcmp(argv[i], "--jobs"))
			jobs = (unsigned)atoi(argv[i + 1]);
		else {
			fprintf(stderr,
				"usage: bench_quality [--samples FILE] [--contexts N] [--model "
				"DIR] [--jobs N]\n");
			return 2;
		}
	}
	if (jobs < 1 || jobs > 64)
		jobs = jobs < 1 ? 1 : 64;
	openblas_set_num_threads(1);
	s = quality_samples_load(samples, contexts, &n);
	if (model_load(folder, &q.model, why, sizeof(why))) {
		fprintf(stderr, "bench_quality: %s\n", why);
		return 1;
	}
	if (forward_new(q.model, rows_of(s, n), attention_isa_best(), &q.forward))
		return 1;
	q.gate[0] = open_gate(folder, "gate.safetensors");
	q.gate[1] = open_gate(folder, "gate_text.pt");
	calibrate(&q, s, n, &tasks);
	run_jobs(&q, s, n, &tasks, jobs, sum);
	failed = report(sum, &tasks);
	quality_samples_free(s, n);
	kvg_gate_close(q.gate[0]);
	kvg_gate_close(q.gate[1]);
	forward_free(q.forward);
	model_free(q.model);
	free(q.head_mean);
	free(sum);
	return failed || figure_status();
}
