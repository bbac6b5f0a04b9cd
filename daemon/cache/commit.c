/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A job is in one list at a time, and goes one way:
 *
 *	 cache_commit
 *	     |
 *	   admit ----> waits for another job: its parent's, or one with the same key   (that one's end leads back to admit)
 *	     |
 *	  starved      waits for room, in its tenant's order
 *	     |
 *	   ready       room is reserved; waits for the workers' queue
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
 * will come back, it waits; when neither is so, it is refused with NO_SPACE.
 */
#include "daemon/cache/commit.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/pack.h"
#include "daemon/cache/staging.h"
#include "daemon/cache/tenant.h"
#include "daemon/cache/workers.h"

#define ROUNDS_AT_ONCE 4 /* of eviction for one commit before the loop has its turn */

struct cache_job {
	struct work work;
	struct cache_job *next;           /* in the list it is in */
	struct cache_job *next_in_flight; /* in the table */
	struct job_list waiters;
	struct cache_tenant *tenant;
	struct cache_layout *layout;
	struct staging *staging; /* NULL when no longer needed */
	uint64_t seq;
	bool in_table, running, cancelled, check_key, has_parent;
	struct kvg_key key, parent_key;
	struct block *parent; /* held */
	struct kv_shape shape;
	struct pack_job pack;
	uint64_t worst; /* page bytes to reserve */
	cache_commit_fn done;
	void *userdata;
	struct cache_commit_result result;
	uint32_t ids[]; /* [tokens], when they were staged */
};

struct worker_context {
	struct packer *packer;
	struct key_hasher *hasher;
};

/* ---- lists, the table ---- */

void job_list_init(struct job_list *l)
{
	l->first = NULL;
	l->end = &l->first;
}

static void push(struct job_list *l, struct cache_job *j)
{
	j->next = NULL;
	*l->end = j;
	l->end = &j->next;
}

static struct cache_job *pop(struct job_list *l)
{
	struct cache_job *j = l->first;

	if (j) {
		l->first = j->next;
		if (!l->first)
			l->end = &l->first;
	}
	return j;
}

static void append(struct job_list *l, struct job_list *from)
{
	if (from->first) {
		*l->end = from->first;
		l->end = from->end;
		job_list_init(from);
	}
}

static struct cache_job **bucket(struct cache *c, const struct kvg_key *key)
{
	return &c->commits.in_flight[kvg_key_bucket(key, COMMIT_BUCKETS)];
}

static struct cache_job *in_flight(
	struct cache *c, const struct cache_layout *l, const struct kvg_key *key)
{
	struct cache_job *j = *bucket(c, key);

	while (j && (j->layout != l || memcmp(&j->key, key, sizeof(*key))))
		j = j->next_in_flight;
	return j;
}

static void table_add(struct cache *c, struct cache_job *j)
{
	struct cache_job **at = bucket(c, &j->key);

	j->next_in_flight = *at;
	*at = j;
	j->in_table = true;
}

static void table_remove(struct cache *c, struct cache_job *j)
{
	struct cache_job **at = bucket(c, &j->key);

	while (*at != j)
		at = &(*at)->next_in_flight;
	*at = j->next_in_flight;
	j->in_table = false;
}

static void wake(struct cache *c)
{
	loop_arm(c->commits.timer, 0, 0);
}

/* ---- the end of a job ---- */

static void refuse(struct cache_job *j, int code, const char *why)
{
	j->result.code = code;
	snprintf(j->result.error, sizeof(j->result.error), "%s", why);
}

/* The result stands. Whoever waited is looked at again; the callback comes later. */
static void finish(struct cache_job *j)
{
	struct cache *c = j->tenant->cache;
	struct counter_scope *s = j->layout->counters;

	if (j->in_table)
		table_remove(c, j);
	if (j->parent)
		j->parent->uses--;
	j->parent = NULL;
	if (j->staging)
		j->staging = staging_unref(j->staging);
	if (j->result.code == KVG_CODE_EXISTS)
		counter_add(s, COUNTER_COMMIT_EXISTS, 0, 1);
	else if (j->result.code != KVG_CODE_OK && !j->cancelled)
		counter_add(s, COUNTER_COMMIT_REFUSED, 0, 1);
	if (j->result.code == KVG_CODE_COLLISION)
		counter_add(s, COUNTER_COLLISIONS, 0, 1);
	append(&c->commits.admit, &j->waiters);
	push(&c->commits.finished, j);
	wake(c);
}

static void give_up(struct cache_job *j)
{
	refuse(j, KVG_CODE_SHUTTING_DOWN, "cancelled");
	finish(j);
}

static void deliver(struct cache *c)
{
	struct cache_job *j;

	while ((j = pop(&c->commits.finished))) {
		counter_add(j->tenant->counters, COUNTER_IN_FLIGHT, 0, -1);
		c->commits.n--;
		if (!j->cancelled && !c->commits.stopping)
			j->done(j->userdata, &j->result);
		free(j);
	}
}

/* ---- room ---- */

enum room {
	ROOM,
	NO_ROOM_YET,
	NO_ROOM
};

static int reserve(struct cache_job *j)
{
	struct cache_tenant *t = j->tenant;

	if (index_slots_free(t->index) <= t->reserved_slots ||
		t->used + t->reserved + j->worst > t->quota ||
		pool_reserve(t->cache->pool, j->worst) < 0)
		return -ENOSPC;
	t->reserved += j->worst;
	t->reserved_slots++;
	t->cache->commits.reserved += j->worst;
	return 0;
}

static void unreserve(struct cache_job *j, uint64_t used)
{
	struct cache_tenant *t = j->tenant;

	pool_unreserve(t->cache->pool, j->worst - used);
	t->reserved -= j->worst;
	t->reserved_slots--;
	t->cache->commits.reserved -= j->worst;
}

/* One round of eviction for this job. False: nothing can go. */
static bool evict_for(struct cache_job *j, bool *ret_own)
{
	struct cache_tenant *t = j->tenant;
	struct pool_stat st;
	const uint64_t wanted = t->used + t->reserved + j->worst;
	const uint64_t slots = index_slots_free(t->index) <= t->reserved_slots;

	*ret_own = slots || wanted > t->quota;
	if (*ret_own)
		return evict_round(t, wanted > t->quota ? wanted - t->quota : 0, slots);
	pool_stat(t->cache->pool, &st);
	if (st.used + st.reserved + j->worst <= st.budget)
		return true;
	return evict_anyone(t->cache, st.used + st.reserved + j->worst - st.budget);
}

static enum room make_room(struct cache_job *j)
{
	const struct cache *c = j->tenant->cache;
	bool own;

	if (j->worst > j->tenant->quota || j->worst > c->o.host_bytes)
		return NO_ROOM; /* emptying the cache would not help */
	for (unsigned i = 0; i < ROUNDS_AT_ONCE; i++) {
		if (reserve(j) == 0)
			return ROOM;
		if (!evict_for(j, &own)) {
			if (own ? j->tenant->reserved > 0 : c->commits.reserved > 0)
				return NO_ROOM_YET; /* a commit that ends comes back here */
			return NO_ROOM;
		}
	}
	wake(j->tenant->cache);
	return NO_ROOM_YET;
}

/* Jobs of one tenant that want room, in their order. */
static void feed_tenant(struct cache_tenant *t)
{
	struct cache *c = t->cache;
	struct cache_job *j;

	while ((j = t->starved.first)) {
		enum room room = j->cancelled ? NO_ROOM : make_room(j);

		if (room == NO_ROOM_YET)
			return;
		pop(&t->starved);
		if (j->cancelled) {
			give_up(j);
		} else if (room == ROOM) {
			push(&c->commits.ready, j);
		} else {
			refuse(j, KVG_CODE_NO_SPACE,
				"all that could make room is pinned or may not go: release pins, "
				"lower the floor or raise "
				"host_bytes");
			finish(j);
		}
	}
}

static void feed_workers(struct cache *c)
{
	struct cache_job *j;

	while ((j = c->commits.ready.first)) {
		if (j->cancelled) {
			pop(&c->commits.ready);
			unreserve(j, 0);
			give_up(j);
			continue;
		}
		if (!workers_try_submit(c->commits.workers, &j->work))
			return;
		pop(&c->commits.ready);
		j->running = true;
	}
}

/* ---- admission ---- */

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
			refuse(j, KVG_CODE_BAD_KEY,
				"the key is not the hash of parent, layout and tokens");
			return;
		}
	}
	refuse(j, KVG_CODE_COLLISION, "the key is there with other tokens");
}

/* Decides what a new job waits for, or that it ends. */
static void admit(struct cache_job *j)
{
	struct cache *c = j->tenant->cache;
	struct cache_job *other;
	struct block *b;

	if (j->cancelled || c->commits.stopping) {
		give_up(j);
		return;
	}
	other = j->in_table ? NULL : in_flight(c, j->layout, &j->key);
	if (other) {
		push(&other->waiters, j);
		return;
	}
	b = block_find(j->tenant, j->layout->id, &j->key);
	if (b) {
		exists(j, b);
		policy_touch(j->tenant->policy, &b->node);
		finish(j);
		return;
	}
	if (!j->in_table)
		table_add(c, j);
	if (j->has_parent) {
		j->parent = block_find(j->tenant, j->layout->id, &j->parent_key);
		other = j->parent ? NULL : in_flight(c, j->layout, &j->parent_key);
		if (other && other->seq < j->seq) {
			push(&other->waiters, j);
			return;
		}
		if (!j->parent) {
			refuse(j, KVG_CODE_NO_PARENT,
				"the parent block is not in the cache: put it first and keep it "
				"pinned");
			finish(j);
			return;
		}
		j->parent->uses++;
	}
	push(&j->tenant->starved, j);
}

/* Everything that can move moves. Callbacks run only from the loop. */
static void proceed(struct cache *c)
{
	struct cache_job *j;

	do {
		while ((j = pop(&c->commits.admit)))
			admit(j);
		for (struct cache_tenant *t = c->tenants; t; t = t->next)
			feed_tenant(t);
		feed_workers(c);
	} while (c->commits.admit.first);
}

void commits_retry(struct cache *c)
{
	proceed(c);
}

static void on_timer(void *userdata)
{
	struct cache *c = userdata;

	proceed(c);
	deliver(c);
}

/* ---- packing ---- */

static int context_new(void **ret)
{
	struct worker_context *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	r = packer_new(&w->packer);
	if (r == 0)
		r = key_hasher_new(&w->hasher);
	if (r < 0) {
		packer_free(w->packer);
		free(w);
		return r;
	}
	*ret = w;
	return 0;
}

static void context_free(void *context)
{
	struct worker_context *w = context;

	packer_free(w->packer);
	key_hasher_free(w->hasher);
	free(w);
}

static struct cache_job *job_of(struct work *w)
{
	return (struct cache_job *)((char *)w - offsetof(struct cache_job, work));
}

static void run(struct work *work, void *context)
{
	struct cache_job *j = job_of(work);
	struct worker_context *w = context;
	struct kvg_key key;

	if (j->check_key) {
		key_block(w->hasher, j->has_parent ? &j->parent_key : NULL, j->layout->fingerprint,
			j->ids, j->pack.tokens, &key);
		if (memcmp(&key, &j->key, sizeof(key))) {
			refuse(j, KVG_CODE_BAD_KEY,
				"the key is not the hash of parent, layout and tokens");
			return;
		}
	}
	j->result.code = pack_run(w->packer, &j->pack);
	if (j->result.code != KVG_CODE_OK)
		refuse(j, j->result.code, j->pack.error);
}

static void publish(struct cache_job *j)
{
	struct cache *c = j->tenant->cache;
	struct block *b;
	uint64_t payload;

	if (block_publish(j->tenant, j->layout, &j->pack, j->parent, &b) < 0) {
		for (uint32_t p = 0; p < j->pack.n_planes; p++)
			if (j->pack.plane[p].extent.pages)
				pool_release(j->tenant->pool, &j->pack.plane[p].extent);
		refuse(j, KVG_CODE_NO_MEMORY, "the daemon has no memory left");
		return;
	}
	payload = block_payload(b, b->held);
	j->result.handle = b->handle;
	counter_add(j->layout->counters, COUNTER_COMMITS, 0, 1);
	counter_add(j->layout->counters, COUNTER_COMMIT_BYTES, 0, (int64_t)payload);
	if (c->on_event)
		c->on_event(c->on_event_data,
			&(struct cache_event){
				.kind = CACHE_EVENT_COMMITTED,
				.tenant = j->tenant,
				.key = b->key,
				.layout = b->layout->id,
				.handle = b->handle,
				.held = b->held,
				.bytes = payload,
			});
	evict_check(c, j->tenant);
}

static void packed(struct work *work)
{
	struct cache_job *j = job_of(work);
	bool ok = j->result.code == KVG_CODE_OK;

	unreserve(j, ok ? j->pack.used : 0);
	if (ok)
		publish(j);
	finish(j);
}

static void batch_packed(void *userdata)
{
	struct cache *c = userdata;

	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		tenant_gauges(t);
	on_timer(c);
}

/* ---- the public side ---- */

static const char *bad_argument(const struct cache_commit *q)
{
	const struct cache_layout *l = q->layout;
	bool opaque = l->identity.shape.opaque_bytes;

	if (q->tokens > l->identity.shape.tokens)
		return "tokens is more than block_tokens of the layout";
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
	return NULL;
}

static void fill(struct cache_job *j, const struct cache_commit *q)
{
	struct cache_layout *l = q->layout;
	struct stage_geometry g;

	j->shape = l->identity.shape;
	j->shape.tokens = j->pack.tokens;
	cache_layout_stage(l, q->input, j->pack.tokens, &g);
	assert(q->offset <= staging_bytes(q->staging) &&
		g.total <= staging_bytes(q->staging) - q->offset);
	j->worst = pack_worst_case(&j->shape, l->identity.n_edges, l->page_shift);
	j->pack = (struct pack_job){
		.shape = &j->shape,
		.fingerprint = l->fingerprint,
		.key = &j->key,
		.stage = staging_map(q->staging) + q->offset,
		.geometry = g,
		.input = q->input,
		.tokens = j->pack.tokens,
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
		memcpy(j->ids, j->pack.stage + g.tokens_off, g.tokens_bytes);
	j->check_key = q->token_ids && !layout_foreign(l);
}

int cache_commit(struct cache_tenant *t, const struct cache_commit *q, cache_commit_fn done,
	void *userdata, struct cache_job **ret_job)
{
	struct cache *c = t->cache;
	const uint32_t tokens = q->tokens ? q->tokens : q->layout->identity.shape.tokens;
	const char *why = bad_argument(q);
	struct cache_job *j;

	loop_assert_owner(c->loop);
	assert(q->layout->tenant == t);
	j = calloc(1, sizeof(*j) + (!why && q->token_ids ? tokens * sizeof(uint32_t) : 0));
	if (!j)
		return -ENOMEM;
	j->tenant = t;
	j->layout = q->layout;
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
		refuse(j, KVG_CODE_BAD_ARGUMENT, why);
		finish(j);
		return 0;
	}
	j->staging = staging_ref(q->staging);
	fill(j, q);
	push(&c->commits.admit, j);
	proceed(c);
	return 0;
}

void cache_commit_cancel(struct cache_job *j)
{
	loop_assert_owner(j->tenant->cache->loop);
	j->cancelled = true;
	if (!j->running && j->staging)
		j->staging = staging_unref(j->staging);
	wake(j->tenant->cache);
}

int commits_init(struct cache *c)
{
	const struct workers_ops ops = {
		.context_new = context_new,
		.context_free = context_free,
		.run = run,
		.done = packed,
		.idle = batch_packed,
		.userdata = c,
	};
	int r;

	job_list_init(&c->commits.admit);
	job_list_init(&c->commits.ready);
	job_list_init(&c->commits.finished);
	r = loop_add_timer(c->loop, on_timer, c, &c->commits.timer);
	if (r < 0)
		return r;
	return workers_new(c->loop, c->o.pack_workers, &ops, &c->commits.workers);
}

void commits_fini(struct cache *c)
{
	struct cache_job *j;

	c->commits.stopping = true;
	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		while ((j = pop(&t->starved)))
			give_up(j);
	while ((j = pop(&c->commits.ready))) {
		unreserve(j, 0);
		give_up(j);
	}
	if (c->commits.workers)
		c->commits.workers = workers_free(c->commits.workers);
	if (c->commits.timer) {
		proceed(c);
		deliver(c);
	}
	assert(!c->commits.n);
	c->commits.timer = loop_del_timer(c->commits.timer);
}
