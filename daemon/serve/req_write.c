/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stage, commit, abort: the way of a block from a client's memory into the cache.
 *
 *   stage --> in the session's table --commit--> in a batch --job done--> given back, result noted
 *                                  \--abort---> given back                        |
 *                                                              the last of its batch: the reply
 *
 * A batch outlives its session: when the client goes, the jobs run to their end and then give back what they hold,
 * so that nobody gets more in flight than the quota by hanging up. It only loses the one who would be answered.
 */
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/serve/request.h"
#include "daemon/serve/sweeper.h"

struct commit_item {
	struct commit_batch *batch;
	struct stage stage;
	struct charge staged, in_flight;
	struct cache_job *job; /* NULL: not begun, or done */
	struct cache_commit_result result;
};

struct commit_batch {
	struct commit_batch *next, **link; /* of the session's, or of the orphans' */
	struct server *server;
	struct session *session; /* NULL: it is gone */
	uint64_t id;             /* of the request */
	struct staging *staging;
	size_t n, pending;
	struct commit_item item[];
};

/* ---- stage ---- */

struct stage_args {
	uint32_t layout, count;
	enum stage_input input;
};

int prep_stage(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Stage *m = q->stage;
	struct stage_args *a = r->args = request_new(r, 1, struct stage_args);

	if (m->input > STAGE_INPUT_HIDDEN)
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"input %u: use 0 none, 1 scores, 2 hidden states", m->input);
	if (m->count == 0)
		return request_refuse(
			r, KVG_CODE_BAD_ARGUMENT, "count is 0: use 1 to %u", KVG_BATCH_MAX);
	if (m->count > KVG_BATCH_MAX)
		return request_refuse(r, KVG_CODE_TOO_LARGE, "%u stages: use at most %u a request",
			m->count, KVG_BATCH_MAX);
	*a = (struct stage_args){
		.layout = m->layout, .count = m->count, .input = (enum stage_input)m->input};
	return KVG_CODE_OK;
}

/* Bytes of one stage, of a full block. */
static int stage_size(
	struct request *r, const struct cache_layout *l, enum stage_input input, uint64_t *ret)
{
	struct cache_layout_info i;
	struct stage_geometry g;

	cache_layout_describe(l, &i);
	if (i.identity.shape.opaque_bytes && input != STAGE_INPUT_NONE)
		return request_refuse(
			r, KVG_CODE_BAD_ARGUMENT, "opaque blocks have no scores: use input 0");
	if (input == STAGE_INPUT_HIDDEN && (!i.gate_info || !i.hidden_dtype))
		return request_refuse(r, KVG_CODE_BAD_ARGUMENT,
			"layout %u cannot take hidden states: register it with a gate of the "
			"daemon and a hidden_dtype",
			i.id);
	cache_layout_stage(l, input, i.identity.shape.tokens, &g);
	*ret = g.total;
	return KVG_CODE_OK;
}

/*
 * Twice the quota as it is now, for the session's whole life: a run that was given back is not free before it was swept,
 * though it is not charged any more. Only address space is spent on that.
 */
static uint64_t staging_size(const struct tenant *t)
{
	return t->account.limit[ACCOUNT_STAGING] / 4096 * 8192;
}

int run_stage(struct request *r)
{
	const struct stage_args *a = r->args;
	struct stages *stages = &r->session->stages;
	Kvgate__V1__StageReply *m = request_new(r, 1, Kvgate__V1__StageReply);
	struct cache_layout *l;
	uint64_t bytes;
	int error, code = request_layout(r, r->tenant, a->layout, &l);

	if (!code)
		code = stage_size(r, l, a->input, &bytes);
	if (code)
		return code;
	error = session_hold_layout(r->session, l);
	if (error == 0)
		error = stages_open(stages, staging_size(r->tenant));
	if (error < 0)
		return request_errno(r, error);
	kvgate__v1__stage_reply__init(m);
	m->slots = request_new(r, a->count, Kvgate__V1__StageSlot *);
	for (; m->n_slots < a->count; m->n_slots++) {
		Kvgate__V1__StageSlot *slot = request_new(r, 1, Kvgate__V1__StageSlot);

		kvgate__v1__stage_slot__init(slot);
		slot->bytes = bytes;
		error = stages_reserve(stages, &r->tenant->account, l, a->input, bytes,
			&slot->stage, &slot->offset);
		if (error < 0)
			break;
		m->slots[m->n_slots] = slot;
	}
	if (m->n_slots == 0)
		return error == -EDQUOT || error == -ENOSPC ? request_over_quota(r, ACCOUNT_STAGING)
							    : request_errno(r, error);
	m->memfd_bytes = staging_bytes(stages->staging);
	if (!stages->sent)
		r->fds[r->n_fds++] = staging_fd(stages->staging);
	stages->sent = true;
	r->reply->body_case = KVGATE__V1__REPLY__BODY_STAGE;
	r->reply->stage = m;
	return KVG_CODE_OK;
}

/* ---- commit ---- */

struct commit_args {
	size_t n;
	struct {
		uint64_t stage;
		struct kvg_key key, parent;
		bool has_parent, token_ids;
		uint32_t tokens, protect_first, protect_last;
	} item[];
};

int prep_commit(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Commit *m = q->commit;
	struct commit_args *a;
	int code = KVG_CODE_OK;

	if (m->n_items > KVG_BATCH_MAX)
		return request_refuse(r, KVG_CODE_TOO_LARGE,
			"%zu commits: use at most %u a request", m->n_items, KVG_BATCH_MAX);
	a = r->args = request_zalloc(r, 1, sizeof(*a) + m->n_items * sizeof(a->item[0]));
	a->n = m->n_items;
	for (size_t i = 0; i < a->n && !code; i++) {
		const Kvgate__V1__CommitItem *item = m->items[i];

		a->item[i].stage = item->stage;
		a->item[i].tokens = item->tokens;
		a->item[i].protect_first = item->protect_first;
		a->item[i].protect_last = item->protect_last;
		a->item[i].token_ids = item->token_ids;
		a->item[i].has_parent = item->parent.len != 0;
		code = request_key(r, "key", &item->key, &a->item[i].key);
		if (!code && item->parent.len)
			code = request_key(r, "parent", &item->parent, &a->item[i].parent);
	}
	return code;
}

static void batch_link(struct commit_batch *b, struct commit_batch **list)
{
	b->next = *list;
	b->link = list;
	if (b->next)
		b->next->link = &b->next;
	*list = b;
}

static void batch_unlink(struct commit_batch *b)
{
	*b->link = b->next;
	if (b->next)
		b->next->link = b->link;
}

static void batch_free(struct commit_batch *b)
{
	struct server *server = b->server;

	batch_unlink(b);
	if (b->staging && b->session)
		staging_unref(b->staging);
	else if (b->staging) /* perhaps the last one */
		sweeper_unref(server->sweeper, b->staging, 0, &(struct charge){0});
	free(b);
	server_batch_done(server);
}

static void batch_reply(struct commit_batch *b)
{
	Kvgate__V1__Reply reply = KVGATE__V1__REPLY__INIT;
	Kvgate__V1__CommitReply m = KVGATE__V1__COMMIT_REPLY__INIT;
	Kvgate__V1__CommitResult results[KVG_BATCH_MAX], *pointers[KVG_BATCH_MAX];

	for (size_t i = 0; i < b->n; i++) {
		const struct cache_commit_result *from = &b->item[i].result;

		kvgate__v1__commit_result__init(&results[i]);
		results[i].code = (uint32_t)from->code;
		if (from->code == KVG_CODE_OK || from->code == KVG_CODE_EXISTS)
			results[i].handle = kvg_handle_pack(from->handle);
		else
			results[i].error = from->error[0]
				? (char *)(uintptr_t)from->error
				: (char *)(uintptr_t)kvg_code_prose(from->code);
		pointers[i] = &results[i];
	}
	m.results = pointers;
	m.n_results = b->n;
	reply.id = b->id;
	reply.body_case = KVGATE__V1__REPLY__BODY_COMMIT;
	reply.commit = &m;
	request_send(b->session, &reply, NULL, 0);
}

/* One that kept it open is done: the last one's is the answer. */
static void batch_answer(struct commit_batch *b)
{
	if (--b->pending == 0 && b->session)
		batch_reply(b);
}

static void batch_settle(struct commit_batch *b)
{
	if (b->pending == 0)
		batch_free(b);
}

/* The answer goes first: giving a large stage back takes as long as packing it, and a processor. */
static void item_settle(struct commit_item *item)
{
	struct commit_batch *b = item->batch;

	item->job = NULL;
	batch_answer(b);
	stage_fini(&item->stage, &item->staged, b->staging, b->server->sweeper);
	charge_fini(&item->in_flight);
	batch_settle(b);
}

static void on_job_done(void *userdata, const struct cache_commit_result *result)
{
	struct commit_item *item = userdata;

	item->result = *result;
	item_settle(item);
}

static void item_refuse(struct commit_item *item, int code, const char *why)
{
	item->result.code = code;
	snprintf(item->result.error, sizeof(item->result.error), "%.*s",
		(int)sizeof(item->result.error) - 1, why);
	item_settle(item);
}

static void item_start(
	struct request *r, struct commit_item *item, const struct commit_args *a, size_t i)
{
	struct cache_commit c = {
		.staging = item->batch->staging,
		.tokens = a->item[i].tokens,
		.protect_first = a->item[i].protect_first,
		.protect_last = a->item[i].protect_last,
		.token_ids = a->item[i].token_ids,
		.has_parent = a->item[i].has_parent,
		.key = a->item[i].key,
		.parent = a->item[i].parent,
	};
	struct cache_layout_info info;
	int code;

	if (!stages_take(&r->session->stages, a->item[i].stage, &item->stage, &item->staged)) {
		item_refuse(item, KVG_CODE_NO_STAGE, kvg_code_prose(KVG_CODE_NO_STAGE));
		return;
	}
	if (charge_add(&item->in_flight, &r->tenant->account, ACCOUNT_IN_FLIGHT, 1) < 0) {
		request_over_quota(r, ACCOUNT_IN_FLIGHT);
		item_refuse(item, KVG_CODE_QUOTA, r->why);
		return;
	}
	cache_layout_describe(item->stage.layout, &info);
	if (c.tokens > info.identity.shape.tokens) {
		item_refuse(
			item, KVG_CODE_BAD_ARGUMENT, "more tokens than a block of this layout has");
		return;
	}
	c.layout = item->stage.layout;
	c.offset = item->stage.offset;
	c.input = item->stage.input;
	if (!c.tokens)
		c.tokens = info.identity.shape.tokens;
	code = cache_commit(r->tenant->cache, &c, on_job_done, item, &item->job);
	if (code)
		item_refuse(item,
			code == -ENOMEM    ? KVG_CODE_NO_MEMORY
				: code < 0 ? KVG_CODE_INTERNAL
					   : code,
			"");
}

int run_commit(struct request *r)
{
	const struct commit_args *a = r->args;
	struct commit_batch *b = calloc(1, sizeof(*b) + a->n * sizeof(b->item[0]));

	if (!b)
		return request_errno(r, -ENOMEM);
	b->server = r->session->server;
	b->session = r->session;
	b->id = r->id;
	b->n = a->n;
	b->pending =
		a->n + 1; /* one for this function: the reply comes after all of them have begun */
	if (r->session->stages.staging)
		b->staging = staging_ref(r->session->stages.staging);
	batch_link(b, &r->session->batches);
	b->server->n_batches++;
	r->later = true;
	for (size_t i = 0; i < a->n; i++) {
		b->item[i].batch = b;
		item_start(r, &b->item[i], a, i);
	}
	batch_answer(b);
	batch_settle(b);
	return KVG_CODE_OK;
}

void commits_orphan(struct session *s)
{
	while (s->batches) {
		struct commit_batch *b = s->batches;

		b->session = NULL;
		batch_unlink(b);
		batch_link(b, &s->server->orphans);
	}
}

static void batch_cancel(struct commit_batch *b)
{
	b->session = NULL;
	b->pending++; /* the batch is in use here */
	for (size_t i = 0; i < b->n; i++) {
		if (!b->item[i].job)
			continue;
		cache_commit_cancel(b->item[i].job);
		item_settle(&b->item[i]);
	}
	batch_answer(b);
	batch_settle(b);
}

void commits_cancel(struct server *s)
{
	for (struct session *session = s->sessions; session; session = session->next)
		commits_orphan(session);
	while (s->orphans)
		batch_cancel(s->orphans);
}

/* ---- abort ---- */

struct abort_args {
	size_t n;
	uint64_t *stages;
};

int prep_abort(struct request *r, const Kvgate__V1__Request *q)
{
	const Kvgate__V1__Abort *m = q->abort;
	struct abort_args *a = r->args = request_new(r, 1, struct abort_args);

	if (m->n_stages > KVG_BATCH_MAX)
		return request_refuse(r, KVG_CODE_TOO_LARGE, "%zu stages: use at most %u a request",
			m->n_stages, KVG_BATCH_MAX);
	a->n = m->n_stages;
	a->stages = request_new(r, a->n, uint64_t);
	if (a->n)
		memcpy(a->stages, m->stages, a->n * sizeof(*a->stages));
	return KVG_CODE_OK;
}

int run_abort(struct request *r)
{
	const struct abort_args *a = r->args;
	Kvgate__V1__AbortReply *m = request_new(r, 1, Kvgate__V1__AbortReply);
	struct stages *stages = &r->session->stages;

	kvgate__v1__abort_reply__init(m);
	for (size_t i = 0; i < a->n; i++) {
		struct charge c = {0};
		struct stage st;

		if (!stages_take(stages, a->stages[i], &st, &c))
			continue;
		stage_fini(&st, &c, stages->staging, stages->sweeper);
		m->aborted++;
	}
	r->reply->body_case = KVGATE__V1__REPLY__BODY_ABORT;
	r->reply->abort = m;
	return KVG_CODE_OK;
}
