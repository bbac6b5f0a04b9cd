/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A prompt is computed in chunks. After each chunk the blocks that are complete are handed to the
 * daemon, or, when the worker evicts from a cache of its own, that is done. Only KV that was
 * computed over a whole context is shared: what attended to a pruned one is not what its key
 * promises.
 */
#include "client/worker/generate.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "gates/why.h"

#define WINDOW_SHARE 0.02 /* of the context, the paper's recent window */

static double now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

static int out_of_memory(struct engine *e)
{
	return why(e->why, sizeof(e->why), -ENOMEM, "out of memory");
}

/* Fatal only where the cache is required: everything can be computed here. */
static int cache_failed(struct engine *e, int error, const char *what, const char *text)
{
	if (e->options->cache_mode == CACHE_REQUIRED)
		return why(e->why, sizeof(e->why), error, "%s: %s", what, text);
	fprintf(stderr, "kvgate-worker: %s: %s\n", what, text);
	return 0;
}

static uint32_t window_min(const struct engine *e)
{
	return e->scoring && e->scoring->log_scores ? SCORING_KVZAP_WINDOW : 0;
}

int engine_check(struct engine *e)
{
	const struct options *o = e->options;
	const uint32_t least = window_min(e);

	if (o->window < least)
		return why(e->why, sizeof(e->why), -EINVAL,
			"--window %u: the gate is KVzap's, which needs %u at least", o->window,
			least);
	if (o->evict_window < least)
		return why(e->why, sizeof(e->why), -EINVAL,
			"--evict-window %u: the gate is KVzap's, which needs %u at least",
			o->evict_window, least);
	return 0;
}

/* ---- what is there already ---- */

/*
 * The tokens that are shared: all up to the context's end, since questions are another each time.
 * A prompt that is context to its end is shared up to its last token, which whoever asks again has
 * to compute, unless whole blocks end there: what goes on from it can have them all. Where the
 * context's end is not known, whole blocks are shared: what comes behind them may be the question,
 * of which nothing can be spared.
 */
static uint32_t shared_tokens(const struct engine *e, const struct prompt *p)
{
	const uint32_t over = p->n % e->store->block_tokens;

	if (!p->marked)
		return p->n - over;
	return p->context_end < p->n || over == 0 ? p->context_end : p->n - 1;
}

static int look_up(struct engine *e, struct answer *a)
{
	const struct options *o = e->options;
	struct store_wish wish = {.tokens = a->prompt->tokens,
		.n = a->prompt->n,
		.min_retention = o->min_retention,
		.retained = o->retention};
	int r;

	a->reuse.retention = 1.0;
	if (!e->store)
		return 0;
	wish.shared = shared_tokens(e, a->prompt);
	r = store_get(e->store, &wish, &a->reuse);
	if (r == 0)
		return 0;
	if (r == -ENOMEM)
		return out_of_memory(e);
	return cache_failed(e, r, "reading the cache",
		r == -EBADMSG ? "a damaged block" : kvg_last_error(e->store->client));
}

/* ---- what is computed ---- */

/* The window ends where what is shared ends: what follows is computed over it and nothing else. */
static uint32_t window_begin(const struct engine *e, const struct prompt *p, uint32_t end)
{
	const uint32_t context = end > p->protect ? end - p->protect : 0;
	uint32_t window = e->options->window;

	if (window == UINT32_MAX)
		window = (uint32_t)(WINDOW_SHARE * context);
	if (window < window_min(e))
		window = window_min(e);
	return end - (window < context ? window : context);
}

static void put_begin(const struct engine *e, struct answer *a, struct put *p)
{
	const struct prompt *prompt = a->prompt;
	const uint32_t shared = e->store ? shared_tokens(e, prompt) : 0;

	*p = (struct put){.store = e->store, .sequence = a->sequence, .tokens = prompt->tokens};
	/* Behind a short block no whole one begins, and behind a pruned one nothing is shared. */
	if (!a->reuse.keys || a->reuse.context.tokens >= shared || a->reuse.retention < 1.0 ||
		a->reuse.n_pins > a->reuse.n_blocks)
		return;
	p->keys = a->reuse.keys;
	p->first = a->reuse.context.tokens;
	p->next = (uint32_t)a->reuse.n_blocks;
	p->end = shared / e->store->block_tokens;
	p->tail = shared % e->store->block_tokens;
	p->protect = prompt->protect;
	p->window = window_begin(e, prompt, shared);
	p->block_window = e->options->block_window;
}

/* Where the next chunk ends: no further than the forward pass takes, nor past an eviction. */
static uint32_t chunk_end(const struct engine *e, const struct prompt *p, uint32_t at, bool evicts)
{
	uint32_t end = at + forward_rows(e->forward);

	if (evicts && at < p->context_end) {
		const uint32_t chunk = e->options->evict_chunk;
		const uint32_t stop = (at / chunk + 1) * chunk;

		if (end > stop)
			end = stop;
		if (end > p->context_end)
			end = p->context_end;
	}
	return end < p->n ? end : p->n;
}

static int keep_logits(struct engine *e, struct answer *a, const float *logits, uint32_t n)
{
	const size_t vocab = e->model->config.vocab;
	float *more = realloc(a->logits, (a->n_logits + n) * vocab * sizeof(*more));

	if (!more)
		return out_of_memory(e);
	a->logits = more;
	memcpy(more + a->n_logits * vocab, logits, n * vocab * sizeof(*more));
	a->n_logits += n;
	return 0;
}

static int evict_after(const struct engine *e, struct prefill_eviction *evict, uint32_t context_end)
{
	const uint32_t at = evict->sequence->position;

	if (at <= context_end && (at == context_end || at % e->options->evict_chunk == 0))
		return prefill_evict(evict);
	return 0;
}

/* The rest of the prompt; ret_logits: of its last token. */
static int compute(struct engine *e, struct answer *a, struct put *put,
	struct prefill_eviction *evict, const float **ret_logits)
{
	const struct prompt *p = a->prompt;
	int r = 0;

	while (r == 0 && a->sequence->position < p->n) {
		const uint32_t at = a->sequence->position;
		const uint32_t end = chunk_end(e, p, at, evict != NULL);
		const bool all = e->options->dump_logits != NULL;
		const struct span span = {.sequence = a->sequence,
			.tokens = p->tokens + at,
			.n = end - at,
			.n_logits = all ? end - at : end == p->n};

		r = forward_run(e->forward, &span, 1, ret_logits);
		if (r == 0 && all)
			r = keep_logits(e, a, *ret_logits, span.n_logits);
		if (r == 0 && evict)
			r = evict_after(e, evict, p->context_end);
		if (r == 0 && put->keys)
			put_advance(put);
	}
	return r;
}

static int prefill(struct engine *e, struct answer *a, const float **ret_logits, struct put *put)
{
	const struct options *o = e->options;
	const struct prompt *p = a->prompt;
	const bool evicts = o->evict_retained < 1.0;
	struct prefill_eviction evict = {0};
	int r;

	put_begin(e, a, put);
	if (e->scoring && (put->keys || evicts || o->decode_budget) &&
		scoring_attach(e->scoring, a->sequence) < 0)
		return out_of_memory(e);
	if (evicts &&
		prefill_eviction_init(&evict, a->sequence,
			&(struct prefill_rule){.protect = p->protect,
				.context = p->context_end - p->protect,
				.chunk = o->evict_chunk,
				.window = o->evict_window,
				.window_min = window_min(e),
				.floor = o->evict_floor,
				.retained = o->evict_retained}) < 0)
		return out_of_memory(e);
	r = compute(e, a, put, evicts ? &evict : NULL, ret_logits);
	prefill_eviction_fini(&evict);
	if (r < 0)
		return why(e->why, sizeof(e->why), r, "computing the prompt: %s", strerror(-r));
	return 0;
}

static void take_token(struct engine *e, struct answer *a, const float *logits)
{
	const uint32_t token = sample(&a->sampler, logits);

	if (model_is_eos(e->model, token))
		a->done = true;
	else
		a->tokens[a->n_tokens++] = token;
	if (a->n_tokens == e->options->max_tokens)
		a->done = true;
}

static int finish_put(struct engine *e, struct answer *a, struct put *put)
{
	const double start = now_ms();
	int r = put->keys ? put_finish(put) : 0;

	a->put_ms = now_ms() - start;
	a->blocks_put = put->blocks;
	a->bytes_put = put->bytes;
	return r < 0 ? cache_failed(e, r, "sharing the prompt's KV", put->why) : 0;
}

static int start(struct engine *e, uint64_t seed, struct answer *a)
{
	const struct options *o = e->options;
	const struct model_config *c = &e->model->config;
	const double begun = now_ms();
	const float *logits;
	struct put put;
	int r = look_up(e, a);

	if (r < 0)
		return r;
	a->tokens = malloc(((size_t)o->max_tokens + 1) * sizeof(*a->tokens));
	if (!a->tokens ||
		sampler_init(&a->sampler, c->vocab, (float)o->temperature, o->top_k,
			(float)o->top_p, seed) < 0 ||
		sequence_new(c, &a->reuse.context,
			a->prompt->n - a->reuse.context.tokens + o->max_tokens, &a->sequence) < 0)
		return out_of_memory(e);
	r = prefill(e, a, &logits, &put);
	if (r < 0)
		return r;
	a->done = o->put_only || o->dump_logits || o->max_tokens == 0;
	if (!a->done)
		take_token(e, a, logits);
	a->ttft_ms = now_ms() - begun;
	return finish_put(e, a, &put);
}

int answer_start(struct engine *e, const struct prompt *p, uint64_t seed, struct answer *ret)
{
	struct answer a = {.prompt = p};
	int r;

	*ret = a;
	ret->prompt = p;
	r = start(e, seed, ret);
	if (r < 0)
		answer_fini(e, ret);
	else if (!e->options->decode_budget)
		ret->sequence->observe = NULL;
	return r;
}

void answer_fini(struct engine *e, struct answer *a)
{
	sequence_free(a->sequence);
	sampler_fini(&a->sampler);
	if (e->store)
		reuse_fini(e->store, &a->reuse);
	free(a->tokens);
	free(a->logits);
	*a = (struct answer){0};
}

/* ---- decoding ---- */

static int hold_budget(const struct engine *e, struct answer *a)
{
	const uint32_t budget = e->options->decode_budget;
	const uint32_t decoded = a->n_tokens - 1; /* rows: the last token is not computed yet */
	int r;

	if (!budget || a->done || !decode_evict_due(decoded))
		return 0;
	r = decode_evict(
		a->sequence, budget, !a->evicted, e->scoring->log_scores ? INFINITY : 1.0f);
	a->evicted = true;
	return r;
}

/* One token of each answer that goes on. Returns how many did, or a negative errno. */
static int step(
	struct engine *e, struct answer *a, uint32_t n, struct span *spans, struct answer **going)
{
	uint32_t n_going = 0;
	const float *logits;
	int r;

	for (uint32_t i = 0; i < n && n_going < forward_rows(e->forward); i++)
		if (!a[i].done) {
			going[n_going] = &a[i];
			spans[n_going++] = (struct span){.sequence = a[i].sequence,
				.tokens = &a[i].tokens[a[i].n_tokens - 1],
				.n = 1,
				.n_logits = 1};
		}
	r = n_going ? forward_run(e->forward, spans, n_going, &logits) : 0;
	for (uint32_t i = 0; r == 0 && i < n_going; i++) {
		take_token(e, going[i], logits + (size_t)i * e->model->config.vocab);
		r = hold_budget(e, going[i]);
	}
	return r < 0 ? r : (int)n_going;
}

int answers_finish(struct engine *e, struct answer *a, uint32_t n)
{
	struct span *spans = calloc(n, sizeof(*spans));
	struct answer **going = calloc(n, sizeof(*going));
	const double begun = now_ms();
	int r = spans && going ? 1 : out_of_memory(e);

	while (r > 0) {
		r = step(e, a, n, spans, going);
		for (int i = 0; i < r; i++)
			going[i]->decode_ms = now_ms() - begun;
	}
	free(spans);
	free(going);
	if (r < 0 && r != -ENOMEM)
		return why(e->why, sizeof(e->why), r, "decoding: %s", strerror(-r));
	return r;
}
