/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvgate-worker: reads a model and prompts, takes from kvgated what it has of them, computes the
 * rest, shares it, and answers. The parts, lowest first:
 *
 *	model     weights and config		  attention  softmax over runs that lie anywhere
 *	sequence  rows of one prompt		  forward    the decoder
 *	scoring   a gate beside the forward pass  store      get and put of blocks
 *	evict     the paper's own-cache eviction  generate   prompts to answers
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cblas.h>

#include "client/worker/generate.h"
#include "client/worker/report.h"

struct worker {
	struct options options;
	struct model *model;
	struct forward *forward;
	struct scoring scoring;
	struct store store;
	struct engine engine;
	struct prompt *prompts;
	struct answer *answers;
	uint32_t n_prompts, n_answers;
	char why[512];
};

static int fail(int error, const char *what)
{
	fprintf(stderr, "kvgate-worker: %s\n", what);
	return error;
}

static int open_model(struct worker *w)
{
	const struct options *o = &w->options;
	int r = model_load(o->model, &w->model, w->why, sizeof(w->why));

	if (r < 0)
		return fail(r, w->why);
	if (forward_new(w->model, o->chunk, attention_isa_best(), &w->forward) < 0)
		return fail(-ENOMEM, "out of memory");
	openblas_set_num_threads((int)o->threads);
	r = prompts_read(
		o, w->model->config.vocab, &w->prompts, &w->n_prompts, w->why, sizeof(w->why));
	return r < 0 ? fail(r, w->why) : 0;
}

static int open_gate(struct worker *w)
{
	const struct options *o = &w->options;
	int r;

	if (!o->gate && (!o->gate_name || o->cache_mode == CACHE_OFF))
		return 0;
	r = scoring_init(
		&w->scoring, &w->model->config, o->gate, !o->fast_gate, w->why, sizeof(w->why));
	if (r < 0)
		return fail(r, w->why);
	w->engine.scoring = &w->scoring;
	if (o->gate && w->scoring.n_edges == 0 && o->cache_mode != CACHE_OFF)
		return fail(-EINVAL,
			"the gate has no band edges: `kvgatectl gate calibrate` gives it some");
	return 0;
}

/* The folder's name, when no other was given. */
static const char *model_id(const struct options *o)
{
	static char path[4096];
	char *slash;

	if (o->model_id)
		return o->model_id;
	if (!realpath(o->model, path))
		return o->model;
	slash = strrchr(path, '/');
	return slash && slash[1] ? slash + 1 : path;
}

static int open_store(struct worker *w)
{
	const struct options *o = &w->options;
	struct store_options s = {.socket = o->socket,
		.model = model_id(o),
		.revision = o->revision,
		.rope = w->model->rope,
		.gate_name = o->gate_name,
		.block_tokens = o->block_tokens,
		.dtype = o->kv_dtype};
	char digest[65];
	int r = 0;

	if (o->cache_mode == CACHE_OFF)
		return 0;
	if (!s.revision) {
		r = model_digest(o->model, digest, w->why, sizeof(w->why));
		s.revision = digest;
	}
	if (r < 0)
		return fail(r, w->why);
	r = store_open(&w->store, &s, &w->model->config, w->engine.scoring);
	if (r == 0) {
		w->engine.store = &w->store;
		return 0;
	}
	fprintf(stderr, "kvgate-worker: no cache: %s%s\n", kvg_last_error(w->store.client),
		o->cache_mode == CACHE_OPTIONAL ? "; everything is computed here" : "");
	store_close(&w->store);
	return o->cache_mode == CACHE_OPTIONAL ? 0 : r;
}

static int answer_all(struct worker *w)
{
	const struct options *o = &w->options;
	int r = 0;

	w->answers = calloc(w->n_prompts ? w->n_prompts : 1, sizeof(*w->answers));
	if (!w->answers)
		return fail(-ENOMEM, "out of memory");
	for (uint32_t i = 0; r == 0 && i < w->n_prompts; i++) {
		r = answer_start(&w->engine, &w->prompts[i], o->seed + i, &w->answers[i]);
		w->n_answers += r == 0;
	}
	if (r == 0)
		r = answers_finish(&w->engine, w->answers, w->n_answers);
	if (r < 0)
		return fail(r, w->engine.why);
	for (uint32_t i = 0; r == 0 && i < w->n_answers; i++)
		r = report(&w->engine, &w->answers[i]);
	if (r == 0 && o->dump_logits)
		r = report_logits(&w->engine, w->answers, w->n_answers, w->why, sizeof(w->why));
	return r < 0 ? fail(r, w->why) : 0;
}

/* For those who want to see what a process that dies leaves behind: pins are held, and a stage. */
static void hold(const struct worker *w)
{
	struct kvg_stage stage;

	if (w->engine.store && kvg_stage(w->store.layout, w->store.input, 1, &stage) < 0)
		fail(0, kvg_last_error(w->store.client));
	sleep(w->options.hold);
}

static void close_all(struct worker *w)
{
	for (uint32_t i = 0; i < w->n_answers; i++)
		answer_fini(&w->engine, &w->answers[i]);
	free(w->answers);
	if (w->engine.store)
		store_close(&w->store);
	scoring_fini(&w->scoring);
	forward_free(w->forward);
	prompts_free(w->prompts, w->n_prompts);
	model_free(w->model);
}

int main(int argc, char **argv)
{
	static struct worker w;
	int r = options_parse(argc, argv, &w.options);

	if (r)
		return r < 0 ? 2 : 0;
	r = open_model(&w);
	w.engine.options = &w.options;
	w.engine.model = w.model;
	w.engine.forward = w.forward;
	if (r == 0)
		r = open_gate(&w);
	if (r == 0)
		r = open_store(&w);
	if (r == 0 && engine_check(&w.engine) < 0)
		r = fail(-EINVAL, w.engine.why);
	if (r == 0)
		r = answer_all(&w);
	if (r == 0 && w.options.hold)
		hold(&w);
	close_all(&w);
	return r < 0 ? 1 : 0;
}
