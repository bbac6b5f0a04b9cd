/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job is in one list at a time, and goes one way:
 *
 *	 cache_commit
 *	     |
 *	   admit ----> waits for another job: its parent's, or one with the same key   (that one's end leads back to admit)
 *	     |
 *	  starved      waits for room and for the workers, in its tenant's order
 *	     |
 *	  running      a worker verifies the key and packs
 *	     |
 *	  finished     published or refused; the callback runs from the loop, in the order of finishing
 *
 * From admit on, a job stands in the table of keys in flight, one per (layout, key): children and duplicates find it
 * there. A parent is waited for only when it was submitted earlier, so waiting cannot go in circles. A duplicate is
 * not in the table, so nobody waits for it; when the job it waited for has ended it is looked at anew: the block is
 * there (EXISTS, or COLLISION), or it takes the other's place.
 *
 * Token ids are copied once, at submission. That copy is hashed, compared and stored; what the client does to its
 * staging memory meanwhile is without effect. A parent is held (block.uses) from when it is found until the child is
 * published, so a block is never shown without its ancestors.
 *
 * Room is reserved for the worst case before packing, in the pool, in the tenant's quota and in the index, so that a
 * worker never runs out half-way. A commit that finds no room evicts; while evicting helps, or reservations of others
 * will come back, it waits; when neither is so, it is refused with NO_SPACE. Those that wait stand in the order of
 * their submission, so that a chain that was begun is finished, and can be evicted, before the next one begins.
 */
#include "daemon/cache/commit.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/job.h"
#include "daemon/cache/staging.h"

static void exists(struct cache_job *j, const struct block *b)
{
	const uint32_t *ids = j->pack.ids;
	struct kvg_key key;

	j->result.handle = b->handle;
	if (!block_tokens_differ(b, ids, j->pack.tokens)) {
		j->result.code = KVG_CODE_EXISTS;
		return;
	}
	j->result.handle = (struct kvg_handle){0};
	if (j->check_key) {
		key_block(j->tenant->cache->hasher, j->has_parent ? &j->parent_key : NULL,
			j->layout->fingerprint, ids, j->pack.tokens, &key);
		if (memcmp(&key, &j->key, sizeof(key))) {
			job_refuse(j, KVG_CODE_BAD_KEY,
				"the key is not the hash of parent, layout and tokens");
			return;
		}
	}
	job_refuse(j, KVG_CODE_COLLISION, "the key is there with other tokens");
}

/* Decides what a new job waits for, or that it ends. */
static void admit(struct cache_job *j)
{
	struct cache *c = j->tenant->cache;
	struct cache_job *other;
	struct block *b;

	if (j->cancelled || c->commits.stopping) {
		job_give_up(j);
		return;
	}
	other = j->in_table ? NULL : job_in_flight(c, j->layout, &j->key);
	if (other) {
		job_push(&other->waiters, j);
		return;
	}
	b = block_find(j->tenant, j->layout->id, &j->key);
	if (b) {
		exists(j, b);
		block_touch(b);
		job_finish(j);
		return;
	}
	if (!j->in_table)
		job_table_add(c, j);
	if (j->has_parent) {
		j->parent = block_find(j->tenant, j->layout->id, &j->parent_key);
		other = j->parent ? NULL : job_in_flight(c, j->layout, &j->parent_key);
		if (other && other->seq < j->seq) {
			job_push(&other->waiters, j);
			return;
		}
		if (!j->parent) {
			job_refuse(j, KVG_CODE_NO_PARENT,
				"the parent block is not in the cache: put it first and keep it "
				"pinned");
			job_finish(j);
			return;
		}
		j->parent->uses++;
	}
	commit_hungry(j->tenant);
	job_push_ordered(&j->tenant->starved, j);
	evict_ask_again(c);
}

/* Everything that can move moves. */
static void proceed(struct cache *c)
{
	struct cache_job *j;

	do {
		while ((j = job_pop(&c->commits.admit)))
			admit(j);
		commit_feed(c);
	} while (c->commits.admit.first);
}

/* Callbacks run only from the loop, where the caller expects them. */
void commits_retry(struct cache *c)
{
	proceed(c);
	if (c->commits.finished.first)
		jobs_wake(c);
}

static void on_timer(void *cache)
{
	struct cache *c = cache;

	c->commits.awake = false;
	proceed(c);
	jobs_deliver(c);
}

static void on_results(void *cache)
{
	struct cache *c = cache;

	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		if (t->gauges_stale)
			tenant_gauges(t);
	proceed(c);
	jobs_deliver(c);
}

/* ---- the public side ---- */

static const char *bad_argument(
	const struct cache_commit *q, uint32_t tokens, const struct stage_geometry *g)
{
	const struct cache_layout *l = q->layout;
	bool opaque = l->identity.shape.opaque_bytes;

	if (q->tokens > l->identity.shape.tokens)
		return "tokens is more than block_tokens of the layout";
	if (q->protect_first > tokens || q->protect_last > tokens - q->protect_first)
		return "protect_first and protect_last are more tokens than the block has";
	if (q->input != STAGE_INPUT_NONE && q->input != STAGE_INPUT_SCORES &&
		q->input != STAGE_INPUT_HIDDEN)
		return "input is unknown";
	if (opaque && q->input != STAGE_INPUT_NONE)
		return "an opaque block has no pairs to score";
	if (q->input == STAGE_INPUT_HIDDEN && (!l->gate || !l->hidden_dtype))
		return "the layout has no gate to score hidden states: register it with gate and "
		       "hidden_dtype";
	if (!q->token_ids && !opaque && !layout_foreign(l))
		return "token ids must be staged, unless keys are foreign or the block is opaque";
	/* the layout may have learned of hidden states since the stage was reserved */
	if (q->offset > staging_bytes(q->staging) ||
		g->total > staging_bytes(q->staging) - q->offset)
		return "the stage is shorter than what is to be committed";
	return NULL;
}

static void fill(struct cache_job *j, const struct cache_commit *q, const struct stage_geometry *g)
{
	const struct cache_layout *l = q->layout;

	j->shape = l->identity.shape;
	j->shape.tokens = j->pack.tokens;
	j->worst = pack_worst_case(&j->shape, l->identity.n_edges, l->page_shift);
	j->pack = (struct pack_job){
		.shape = &j->shape,
		.fingerprint = l->fingerprint,
		.key = &j->key,
		.stage = staging_map(q->staging) + q->offset,
		.geometry = *g,
		.input = q->input,
		.tokens = j->pack.tokens,
		.protect_first = q->protect_first,
		.protect_last = q->protect_last,
		.token_ids = q->token_ids,
		.ids = q->token_ids ? j->ids : NULL,
		.edges = l->identity.edges,
		.n_edges = l->identity.n_edges,
		.floor_pairs = l->floor_pairs,
		.layer_gate = l->layer_gate,
		.gate = l->gate ? l->gate->gate : NULL,
		.hidden_dtype = l->hidden_dtype,
		.arithmetic = j->tenant->cache->o.arithmetic,
		.pool = j->tenant->pool,
		.page_shift = l->page_shift,
		.reserved = j->worst,
	};
	if (q->token_ids)
		memcpy(j->ids, j->pack.stage + g->tokens_off, g->tokens_bytes);
	j->check_key = q->token_ids && !layout_foreign(l);
}

int cache_commit(struct cache_tenant *t, const struct cache_commit *q, cache_commit_fn done,
	void *userdata, struct cache_job **ret_job)
{
	struct cache *c = t->cache;
	const uint32_t tokens = q->tokens ? q->tokens : q->layout->identity.shape.tokens;
	struct stage_geometry g;
	struct cache_job *j;
	const char *why;

	loop_assert_owner(c->loop);
	assert(q->layout->tenant == t);
	cache_layout_stage(q->layout, q->input, tokens, &g);
	why = bad_argument(q, tokens, &g);
	j = calloc(1, sizeof(*j) + (!why && q->token_ids ? tokens * sizeof(uint32_t) : 0));
	if (!j)
		return -ENOMEM;
	j->tenant = t;
	j->layout = q->layout;
	cache_layout_hold(j->layout);
	commit_prepare(j);
	j->seq = c->commits.next_seq++;
	j->key = q->key;
	j->parent_key = q->parent;
	j->has_parent = q->has_parent;
	j->done = done;
	j->userdata = userdata;
	j->pack.tokens = tokens;
	job_list_init(&j->waiters);
	c->commits.n++;
	counter_add(t->counters, COUNTER_IN_FLIGHT, 0, 1);
	*ret_job = j;
	if (why) {
		job_refuse(j, KVG_CODE_BAD_ARGUMENT, why);
		job_finish(j);
		jobs_wake(c);
		return 0;
	}
	j->staging = staging_ref(q->staging);
	fill(j, q, &g);
	job_push(&c->commits.admit, j);
	commits_retry(c);
	return 0;
}

void cache_commit_cancel(struct cache_job *j)
{
	loop_assert_owner(j->tenant->cache->loop);
	j->cancelled = true;
	if (!j->running && j->staging)
		j->staging = staging_unref(j->staging);
	jobs_wake(j->tenant->cache);
}

int commits_init(struct cache *c)
{
	int r;

	job_list_init(&c->commits.admit);
	job_list_init(&c->commits.finished);
	r = loop_add_timer(c->loop, on_timer, c, &c->commits.timer);
	if (r < 0)
		return r;
	return commit_workers_new(c, on_results);
}

void commits_fini(struct cache *c)
{
	struct cache_job *j;

	c->commits.stopping = true;
	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		while ((j = job_pop(&t->starved)))
			job_give_up(j);
	verifications_stop(c);
	if (c->commits.workers)
		c->commits.workers = workers_free(c->commits.workers);
	verifications_stop(c); /* those behind the one that a worker had */
	if (c->commits.timer) {
		proceed(c);
		jobs_deliver(c);
	}
	assert(!c->commits.n);
	c->commits.timer = loop_del_timer(c->commits.timer);
}
