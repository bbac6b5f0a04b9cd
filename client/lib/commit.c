/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One Commit message per batch; its reply comes when every item was published or refused, which the daemon does in
 * order. Waiting and not waiting differ only in who takes the reply: client_call(), or kvg_dispatch().
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const Kvgate__V1__CommitItem item_init = KVGATE__V1__COMMIT_ITEM__INIT;

/* The message of one batch, with what it points to. */
struct commit_message {
	Kvgate__V1__Commit body;
	Kvgate__V1__CommitItem *item[KVG_BATCH_MAX], items[KVG_BATCH_MAX];
};

static ProtobufCBinaryData key_bytes(const struct kvg_key *k)
{
	return (ProtobufCBinaryData){.len = sizeof(k->b), .data = (uint8_t *)(uintptr_t)k->b};
}

static void fill(
	struct commit_message *m, const struct kvg_commit *items, size_t n, Kvgate__V1__Request *q)
{
	static const Kvgate__V1__Commit init = KVGATE__V1__COMMIT__INIT;

	m->body = init;
	for (size_t i = 0; i < n; i++) {
		Kvgate__V1__CommitItem *to = &m->items[i];

		*to = item_init;
		to->stage = items[i].stage->id;
		to->key = key_bytes(&items[i].key);
		if (items[i].parent)
			to->parent = key_bytes(items[i].parent);
		to->tokens = items[i].stage->n_tokens;
		to->token_ids = items[i].stage->tokens != NULL;
		to->protect_first = items[i].protect_first;
		to->protect_last = items[i].protect_last;
		m->item[i] = to;
	}
	m->body.items = m->item;
	m->body.n_items = n;
	q->body_case = KVGATE__V1__REQUEST__BODY_COMMIT;
	q->commit = &m->body;
}

static int take_results(struct kvg_client *c, const Kvgate__V1__CommitReply *m, size_t n,
	struct kvg_commit_result *ret)
{
	if (m->n_results != n)
		return client_end(c, -EPROTO, "a commit reply of the wrong length");
	for (size_t i = 0; i < n; i++) {
		const Kvgate__V1__CommitResult *from = m->results[i];
		const char *error = from->error && from->error[0] ? from->error
								  : kvg_code_prose((int)from->code);

		ret[i].code = (int)from->code;
		ret[i].handle = kvg_handle_unpack(from->handle);
		ret[i].error[0] = '\0';
		if (code_errno(from->code))
			strncat(ret[i].error, error, sizeof(ret[i].error) - 1);
	}
	return 0;
}

int kvg_commit(struct kvg_client *c, const struct kvg_commit *items, size_t n,
	struct kvg_commit_result *ret)
{
	struct commit_message *m = malloc(sizeof(*m));
	int r = 0;

	if (!m)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	for (size_t done = 0; done < n && r == 0;) {
		const size_t batch = n - done < KVG_BATCH_MAX ? n - done : KVG_BATCH_MAX;
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		struct reply reply;

		fill(m, items + done, batch, &q);
		r = client_call(c, &q, &reply);
		if (r < 0)
			break;
		r = take_results(c, reply.msg->commit, batch, ret + done);
		reply_fini(&reply);
		done += batch;
	}
	free(m);
	return r;
}

int64_t kvg_commit_start(struct kvg_client *c, const struct kvg_commit *items, size_t n,
	kvg_commit_fn fn, void *userdata)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct commit_message *m;
	struct call *call;
	int r;

	if (n == 0 || n > KVG_BATCH_MAX)
		return client_fail(c, -E2BIG, KVG_CODE_TOO_LARGE,
			"%zu items: one commit takes 1 to %u", n, KVG_BATCH_MAX);
	m = malloc(sizeof(*m));
	if (!m)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	fill(m, items, n, &q);
	r = client_send(c, &q, CALL_COMMIT, &call);
	free(m);
	if (r < 0)
		return r;
	call->n_items = n;
	call->fn = fn;
	call->userdata = userdata;
	return (int64_t)call->id;
}

void commit_deliver(struct kvg_client *c, struct call *call, int error, const struct reply *r)
{
	struct kvg_commit_result *results = NULL;

	if (!call->fn)
		return;
	if (!error)
		error = reply_refused(c, r);
	if (!error) {
		results = calloc(call->n_items, sizeof(*results));
		error = results ? take_results(c, r->msg->commit, call->n_items, results) : -ENOMEM;
	}
	call->fn(call->userdata, (int64_t)call->id, error, error ? NULL : results,
		error ? 0 : call->n_items);
	free(results);
}
