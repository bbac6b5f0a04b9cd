/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Blocks are staged as soon as their last token is computed, so that the daemon sorts and
 * publishes the first ones while the worker computes the next. Parents are committed before
 * children, in one order on one connection. A put that fails leaves what was published: the next
 * process computes the rest. Putting is never a reason not to answer.
 */
#include "client/worker/store.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>

#include "proto/shape.h"

#define BATCH 16 /* stages of one request */

static void fail(struct put *p, int error, const char *text)
{
	if (p->error == 0) {
		p->error = error;
		snprintf(p->why, sizeof(p->why), "%s", text);
	}
}

static void fail_client(struct put *p, int error)
{
	fail(p, error, kvg_last_error(p->store->client));
}

static void committed(void *userdata, int64_t ticket, int error,
	const struct kvg_commit_result *results, size_t n)
{
	struct put *p = userdata;

	(void)ticket;
	p->outstanding--;
	if (error)
		fail_client(p, error);
	for (size_t i = 0; i < n; i++) {
		if (results[i].code == KVG_CODE_OK || results[i].code == KVG_CODE_EXISTS)
			p->blocks++;
		else
			fail(p, -EREMOTEIO, results[i].error);
	}
}

/* Waits until at most `left` commits are without an answer. */
static void wait_answers(struct put *p, uint32_t left)
{
	while (p->outstanding > left) {
		struct pollfd fd = {.fd = kvg_fd(p->store->client), .events = POLLIN};
		int r = poll(&fd, 1, -1) < 0 && errno != EINTR ? -errno : 0;

		if (r == 0)
			r = kvg_dispatch(p->store->client);
		if (r < 0) {
			fail_client(p, r);
			return;
		}
	}
}

static void narrow(void *dst, const float *src, size_t n, uint32_t dtype)
{
	uint16_t *half = dst;

	if (dtype == KVG_DTYPE_F32)
		memcpy(dst, src, n * sizeof(*src));
	else if (dtype == KVG_DTYPE_BF16)
		for (size_t i = 0; i < n; i++)
			half[i] = bf16_from_f32(src[i]);
	else
		for (size_t i = 0; i < n; i++)
			half[i] = f16_from_f32(src[i]);
}

void store_fill_kv(const struct store *s, const struct sequence *q, uint32_t row,
	const struct kvg_stage *stage)
{
	const struct model_config *c = s->config;
	const size_t n = (size_t)stage->n_tokens * c->head_dim;
	const size_t bytes = n * dtype_bytes(s->dtype);
	char *to = stage->kv;

	for (uint32_t layer = 0; layer < c->layers; layer++) {
		const uint32_t run = layer * c->kv_heads;

		for (uint32_t h = 0; h < c->kv_heads; h++, to += bytes)
			narrow(to, sequence_k(q, run + h, row), n, s->dtype);
		for (uint32_t h = 0; h < c->kv_heads; h++, to += bytes)
			narrow(to, sequence_v(q, run + h, row), n, s->dtype);
	}
}

/* [layers][heads][tokens]. */
static void fill_scores(const struct put *p, const struct kvg_stage *s, uint32_t row)
{
	float *to = s->aux;

	for (uint32_t run = 0; run < model_runs(p->store->config); run++, to += s->n_tokens)
		memcpy(to, sequence_score(p->sequence, run) + row, s->n_tokens * sizeof(*to));
}

/* [layers][tokens][hidden]. */
static void fill_hidden(const struct put *p, const struct kvg_stage *s, uint32_t row)
{
	const struct scoring *scoring = p->store->scoring;
	const struct model_config *c = p->store->config;
	const size_t n = (size_t)s->n_tokens * c->hidden;

	for (uint32_t layer = 0; layer < c->layers; layer++)
		memcpy((float *)s->aux + layer * n,
			scoring->hidden +
				((size_t)layer * scoring->hidden_tokens + row) * c->hidden,
			n * sizeof(float));
}

/* The block from token `first` on. */
static void fill(const struct put *p, const struct kvg_stage *s, uint32_t first)
{
	const uint32_t row = first - p->first;

	store_fill_kv(p->store, p->sequence, row, s);
	if (p->store->input == KVG_INPUT_SCORES)
		fill_scores(p, s, row);
	else if (p->store->input == KVG_INPUT_HIDDEN)
		fill_hidden(p, s, row);
	memcpy(s->tokens, p->tokens + first, s->n_tokens * sizeof(*p->tokens));
}

/* System prompt, the context's window, the block's own: none of it is ranked. */
static void protect(const struct put *p, uint32_t first, uint32_t n, struct kvg_commit *c)
{
	const uint32_t end = first + n;
	uint32_t last = p->block_window;

	if (p->window < end && end - p->window > last)
		last = end - p->window;
	c->protect_first = p->protect <= first ? 0 : p->protect < end ? p->protect - first : n;
	c->protect_last = last < n - c->protect_first ? last : n - c->protect_first;
}

/* Block number `block`, the short one is number p->end. 0 or a negative errno. */
static int put_one(struct put *p, struct kvg_stage *s, uint32_t block, struct kvg_commit *ret)
{
	const uint32_t first = block * p->store->block_tokens;
	const bool tail = block == p->end;
	int r = 0;

	*ret = (struct kvg_commit){.stage = s, .parent = block ? &p->keys[block - 1] : NULL};
	if (tail)
		r = kvg_stage_tokens(p->store->layout, p->store->input, s, p->tail);
	if (r < 0)
		return r;
	fill(p, s, first);
	protect(p, first, s->n_tokens, ret);
	if (tail)
		kvg_key_block(p->store->layout, ret->parent, p->tokens + first, p->tail, &ret->key);
	else
		ret->key = p->keys[block];
	p->bytes += s->kv_bytes;
	return 0;
}

/* Stages up to n blocks and starts their commit. Returns how many, or a negative errno. */
static ssize_t put_some(struct put *p, uint32_t n)
{
	struct kvg_stage stage[BATCH];
	struct kvg_commit item[BATCH];
	ssize_t got = kvg_stage(p->store->layout, p->store->input, n < BATCH ? n : BATCH, stage);
	int64_t ticket;

	if (got < 0)
		return got;
	for (ssize_t i = 0; i < got; i++) {
		int r = put_one(p, &stage[i], p->next + (uint32_t)i, &item[i]);

		if (r < 0)
			return r;
	}
	p->outstanding++;
	ticket = kvg_commit_start(p->store->client, item, (size_t)got, committed, p);
	if (ticket < 0)
		p->outstanding--;
	return ticket < 0 ? (ssize_t)ticket : got;
}

/* Blocks whose last token is computed, the short one among them. */
static uint32_t computed(const struct put *p)
{
	const uint32_t at = p->sequence->position, tokens = p->store->block_tokens;

	if (at / tokens < p->end)
		return at / tokens;
	return p->end + (p->tail && at >= p->end * tokens + p->tail);
}

void put_advance(struct put *p)
{
	const uint32_t end = computed(p);

	while (p->error == 0 && p->next < end) {
		ssize_t n = put_some(p, end - p->next);

		if (n == -EDQUOT && p->outstanding > 0)
			wait_answers(p, p->outstanding - 1); /* their stages come free */
		else if (n < 0)
			fail_client(p, (int)n);
		else
			p->next += (uint32_t)n;
	}
}

int put_finish(struct put *p)
{
	put_advance(p);
	wait_answers(p, 0);
	return p->error;
}
