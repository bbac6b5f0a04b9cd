/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing: stages are slices of one memfd that only this session and the daemon share, mapped with the first stage
 * reply. What is written there is nobody's but ours until commit, and after commit the daemon's copy
 * no longer depends on it.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "proto/map.h"

int stage_adopt(struct kvg_client *c, struct reply *r)
{
	const char *why;
	void *map;
	int e;

	if (r->n_fds > 1 || (r->n_fds == 1 && c->staging))
		return client_end(c, -EPROTO, "a stage reply with file descriptors too many");
	if (r->n_fds == 0)
		return c->staging
			? 0
			: client_end(c, -EPROTO, "a first stage reply without its memory");
	e = shared_map(r->fds[0], r->msg->stage->memfd_bytes, true, &map, &why);
	if (e < 0)
		return client_end(c, e, why);
	c->staging = map;
	c->staging_bytes = r->msg->stage->memfd_bytes;
	return 0;
}

struct old_staging {
	struct old_staging *next;
	void *map;
	uint64_t bytes;
};

/*
 * The caller may be writing to a stage that was lost with its connection, so the mapping stays until kvg_close(); its
 * memory does not. When even the note of it finds no memory, neither does.
 */
void stage_retire(struct kvg_client *c)
{
	struct old_staging *old;

	if (!c->staging)
		return;
	madvise(c->staging, c->staging_bytes, MADV_REMOVE);
	old = malloc(sizeof(*old));
	if (old) {
		*old = (struct old_staging){c->old_staging, c->staging, c->staging_bytes};
		c->old_staging = old;
	}
	c->staging = NULL;
}

void stage_fini(struct kvg_client *c)
{
	if (c->staging)
		munmap(c->staging, c->staging_bytes);
	c->staging = NULL;
	while (c->old_staging) {
		struct old_staging *old = c->old_staging;

		c->old_staging = old->next;
		munmap(old->map, old->bytes);
		free(old);
	}
}

static int format(struct kvg_layout *l, enum kvg_input input, struct stage_format *ret)
{
	struct kvg_client *c = l->client;

	if ((int)input < KVG_INPUT_NONE || input > KVG_INPUT_HIDDEN)
		return client_fail(
			c, -EINVAL, 0, "input %d: use KVG_INPUT_NONE, _SCORES or _HIDDEN", input);
	if (l->shape.opaque_bytes && input != KVG_INPUT_NONE)
		return client_fail(c, -EINVAL, 0, "opaque blocks take KVG_INPUT_NONE");
	if (input == KVG_INPUT_HIDDEN && (!l->hidden || !l->hidden_dtype))
		return client_fail(c, -EINVAL, 0,
			"the daemon scores hidden states when the layout names its gate and a "
			"hidden_dtype");
	*ret = (struct stage_format){
		.input = (enum stage_input)input,
		.gated_layers = l->gated_layers,
		.hidden = l->hidden,
		.hidden_dtype = l->hidden_dtype,
	};
	return 0;
}

static void point(
	const struct stage_geometry *g, uint8_t *base, uint32_t n_tokens, struct kvg_stage *s)
{
	s->kv = base + g->kv_off;
	s->kv_bytes = g->kv_bytes;
	s->aux = g->aux_bytes ? base + g->aux_off : NULL;
	s->aux_bytes = g->aux_bytes;
	s->tokens = (uint32_t *)(void *)(base + g->tokens_off);
	s->n_tokens = n_tokens;
}

int kvg_stage_tokens(
	struct kvg_layout *l, enum kvg_input input, struct kvg_stage *s, uint32_t n_tokens)
{
	struct stage_geometry g;
	struct stage_format f;
	int r = format(l, input, &f);

	if (r < 0)
		return r;
	if (n_tokens == 0 || n_tokens > l->shape.tokens)
		return client_fail(l->client, -EINVAL, 0, "a block has 1 to %u tokens, not %u",
			l->shape.tokens, n_tokens);
	stage_geometry(&l->shape, &f, n_tokens, &g);
	point(&g, s->kv, n_tokens, s); /* kv is where the stage begins */
	return 0;
}

static int take_slots(struct kvg_layout *l, const struct stage_format *f,
	const Kvgate__V1__StageReply *m, struct kvg_stage *ret)
{
	struct kvg_client *c = l->client;
	struct stage_geometry g;

	stage_geometry(&l->shape, f, l->shape.tokens, &g);
	for (size_t i = 0; i < m->n_slots; i++) {
		const Kvgate__V1__StageSlot *s = m->slots[i];

		if (s->offset % 4096 || s->offset > c->staging_bytes ||
			g.total > c->staging_bytes - s->offset || s->bytes < g.total)
			return client_end(c, -EPROTO, "a stage that does not fit its memory");
		ret[i].id = s->stage;
		point(&g, c->staging + s->offset, l->shape.tokens, &ret[i]);
		/* all of it will be written; what two stages share stays small, for it is given back by pieces */
		map_huge(c->staging + s->offset, g.total);
	}
	return 0;
}

static ssize_t stage_batch(struct kvg_layout *l, enum kvg_input input, const struct stage_format *f,
	size_t n, struct kvg_stage *ret)
{
	Kvgate__V1__Stage m = KVGATE__V1__STAGE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	ssize_t r;

	m.layout = l->id;
	m.count = (uint32_t)n;
	m.input = (uint32_t)input;
	q.body_case = KVGATE__V1__REQUEST__BODY_STAGE;
	q.stage = &m;
	r = client_call(l->client, &q, &reply);
	if (r < 0)
		return r;
	r = stage_adopt(l->client, &reply);
	if (r == 0 && reply.msg->stage->n_slots > n)
		r = client_end(l->client, -EPROTO, "more stages than were asked for");
	if (r == 0)
		r = take_slots(l, f, reply.msg->stage, ret);
	if (r == 0)
		r = (ssize_t)reply.msg->stage->n_slots;
	reply_fini(&reply);
	return r;
}

ssize_t kvg_stage(struct kvg_layout *l, enum kvg_input input, size_t n, struct kvg_stage *ret)
{
	struct stage_format f;
	size_t done = 0;
	int r = format(l, input, &f);

	if (r < 0)
		return r;
	while (done < n) {
		const size_t batch = n - done < KVG_BATCH_MAX ? n - done : KVG_BATCH_MAX;
		ssize_t got = stage_batch(l, input, &f, batch, ret + done);

		if (got < 0)
			return done ? (ssize_t)done : got;
		done += (size_t)got;
		if ((size_t)got < batch)
			break;
	}
	if (n && !done)
		return client_fail(l->client, -EDQUOT, KVG_CODE_QUOTA,
			"no stage within the quota; commit or abort some, or raise staging_bytes");
	return (ssize_t)done;
}

int kvg_abort(struct kvg_client *c, const struct kvg_stage *stages, size_t n)
{
	uint64_t ids[KVG_BATCH_MAX];

	for (size_t done = 0; done < n;) {
		Kvgate__V1__Abort m = KVGATE__V1__ABORT__INIT;
		Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
		struct reply reply;
		int r;

		for (m.n_stages = 0; m.n_stages < KVG_BATCH_MAX && done < n; done++)
			ids[m.n_stages++] = stages[done].id;
		m.stages = ids;
		q.body_case = KVGATE__V1__REQUEST__BODY_ABORT;
		q.abort = &m;
		r = client_call(c, &q, &reply);
		if (r < 0)
			return r;
		reply_fini(&reply);
	}
	return 0;
}
