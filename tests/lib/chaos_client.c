/* SPDX-License-Identifier: Apache-2.0 */
/*
 * One client: does something of everything until it is killed. Any call may end with an error at any moment, as the daemon may
 * be gone; then it is asked again later. Only the daemon's own word that a block is not there counts as its loss, and only when
 * the block was acknowledged before the question and nobody had begun to purge it until the answer.
 */
#include "tests/lib/chaos.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct self {
	struct chaos_role *role;
	struct chaos_shared *shared;
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key[CHAOS_CHAINS][CHAOS_BLOCKS];
	struct kvg_pin held; /* over many other deeds, and over daemons */
	uint64_t held_seed;
	bool holds;
};

static unsigned pick(struct self *s, unsigned n)
{
	return (unsigned)rand_r(&s->role->random) % n;
}

static uint64_t seed_of(unsigned chain)
{
	return 1000u * (uint64_t)(chain + 1);
}

/* ---- a session ---- */

static void come_back(struct self *s)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);

	if (s->c)
		kvg_close(s->c);
	s->c = NULL;
	s->holds = false;
	o.socket = s->role->daemon->socket;
	o.resume_ms = 20000;
	for (unsigned i = 0; i < 24000; i++) {
		if (kvg_open(&o, &s->c) == 0) {
			if (model_try(s->c, &model_deep, &s->l) == 0)
				return;
			kvg_close(s->c);
		}
		s->c = NULL;
		usleep(5000);
	}
	fprintf(stderr, "chaos: nobody serves: %s\n", kvg_last_error(NULL));
	abort();
}

/* A session that cannot go on is replaced; everything else passes. */
static void on_error(struct self *s, ssize_t r)
{
	atomic_fetch_add(&s->shared->refused, 1);
	if (r == -ESTALE || r == -EPROTO) {
		fprintf(stderr, "chaos: a session cannot be resumed: %s\n", kvg_last_error(s->c));
		abort();
	}
	if (r == -ENOTCONN || r == -ECONNRESET || r == -EPIPE)
		kvg_resume(s->c);
}

/* ---- what is there ---- */

static void compare(struct self *s, uint64_t seed, const struct kvg_pin *pin)
{
	struct kvg_plane plane[KVG_PLANES_MAX];
	int n = kvg_planes(s->l, pin, plane);

	if (n == -ENOTCONN || n == -ECONNRESET || n == -EPIPE || n == -ECONNREFUSED ||
		n == -ETIMEDOUT) {
		on_error(s, n); /* a segment that is not mapped here yet, and nobody who has it */
		return;
	}
	content_compare(&model_deep, seed, s->l, pin);
	assert(kvg_verify(s->l, pin) == 0);
	atomic_fetch_add(&s->shared->blocks, 1);
	for (int i = 0; i < n; i++)
		atomic_fetch_add(&s->shared->bytes,
			plane[i].pairs * (model_deep.k_dim + model_deep.v_dim) * 2);
}

static void let_go(struct self *s)
{
	if (!s->holds)
		return;
	compare(s, s->held_seed, &s->held);
	kvg_unpin(s->c, &s->held, 1);
	s->holds = false;
}

struct promise {
	unsigned chain, epoch, acked;
};

static struct promise promised(const struct self *s, unsigned chain)
{
	struct promise p = {.chain = chain};

	p.epoch = atomic_load(&s->shared->chain[chain].epoch);
	p.acked = atomic_load(&s->shared->chain[chain].acked);
	return p;
}

static bool still_promised(const struct self *s, const struct promise *p)
{
	return atomic_load(&s->shared->chain[p->chain].epoch) == p->epoch;
}

/* Fewer than promised were found: what does the daemon say? */
static void ask(struct self *s, const struct promise *p, unsigned block)
{
	struct kvg_acquired got;
	ssize_t r;

	if (block >= p->acked || !still_promised(s, p))
		return;
	r = kvg_acquire(s->l, &s->key[p->chain][block], 1, 1.f, 0, &got);
	if (r < 0) {
		on_error(s, r);
		return;
	}
	if (got.code == KVG_CODE_OK)
		kvg_release(s->c, &got.handle, 1);
	else if (got.code == KVG_CODE_NO_SPACE || got.code == KVG_CODE_QUOTA)
		atomic_fetch_add(&s->shared->refused, 1);
	else if (still_promised(s, p)) {
		fprintf(stderr,
			"chaos: block %u of chain %u is lost: %s, held %x of retention %g\n", block,
			p->chain, kvg_code_name(got.code), got.held, (double)got.retention);
		atomic_fetch_add(&s->shared->lost, 1);
	}
}

/* ---- deeds ---- */

static void purge(struct self *s, unsigned chain)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct chaos_chain *of = &s->shared->chain[chain];
	struct kvg_purge_result gone;
	int r;

	let_go(s); /* two that purge what the other one holds would wait for ever */
	atomic_store(&of->purging, true);
	atomic_store(&of->acked, 0); /* whoever sees the new epoch sees this, too */
	atomic_fetch_add(&of->epoch, 1);
	o.keys = &s->key[chain][pick(s, CHAOS_BLOCKS / 2)];
	o.n_keys = 1;
	o.keep_planes = pick(s, 4) == 0;
	while ((r = kvg_purge(s->c, &o, &gone)) < 0)
		on_error(s, r);
	/* what was shrunk is put whole only after all of it is gone */
	o.keys = s->key[chain];
	o.keep_planes = 0;
	while ((r = kvg_purge(s->c, &o, &gone)) < 0 || gone.pinned) {
		if (r < 0)
			on_error(s, r);
		usleep(1000); /* somebody reads it, or it is on its way down */
	}
	atomic_store(&of->purging, false);
}

/* There already, but is it whole? What was purged may come back after a kill, in part, from a disk that had not heard of it. */
static bool is_whole(struct self *s, unsigned chain, unsigned block)
{
	struct kvg_acquired got = {.code = KVG_CODE_BUSY};
	ssize_t r;

	for (unsigned i = 0; i < 100 && got.code != KVG_CODE_OK; i++) {
		r = kvg_acquire(s->l, &s->key[chain][block], 1, 1.f, 0, &got);
		if (r < 0)
			on_error(s, r);
		if (r >= 0 &&
			(got.code == KVG_CODE_BELOW_RETENTION || got.code == KVG_CODE_NOT_FOUND))
			break;
	}
	if (got.code == KVG_CODE_OK)
		kvg_release(s->c, &got.handle, 1);
	return got.code == KVG_CODE_OK;
}

static void put(struct self *s, unsigned chain)
{
	struct chaos_chain *to = &s->shared->chain[chain];
	const unsigned n = 1 + pick(s, CHAOS_BLOCKS);

	for (unsigned b = atomic_load(&to->acked); b < n; b++) {
		struct kvg_stage stage;
		struct kvg_commit_result result = {0};
		struct kvg_commit item = {
			.stage = &stage,
			.key = s->key[chain][b],
			.parent = b ? &s->key[chain][b - 1] : NULL,
		};
		ssize_t r = kvg_stage(s->l, KVG_INPUT_SCORES, 1, &stage);

		if (r == 1) {
			content_fill(&model_deep, seed_of(chain) + b, &stage);
			r = kvg_commit(s->c, &item, 1, &result);
		}
		if (r < 0) {
			on_error(s, r);
			return;
		}
		if (result.code != KVG_CODE_OK && result.code != KVG_CODE_EXISTS) {
			atomic_fetch_add(&s->shared->refused, 1);
			return;
		}
		if (result.code == KVG_CODE_EXISTS && !is_whole(s, chain, b)) {
			purge(s, chain);
			return;
		}
		atomic_store(&to->acked, b + 1);
	}
}

static void fetch(struct self *s, unsigned chain)
{
	const struct promise p = promised(s, chain);
	struct kvg_pin pins[CHAOS_BLOCKS];
	ssize_t n = kvg_prefix_fetch(s->l, s->key[chain], CHAOS_BLOCKS, 1.f, 1.f, pins);

	if (n < 0) {
		on_error(s, n);
		return;
	}
	for (ssize_t b = 0; b < n; b++)
		compare(s, seed_of(chain) + (uint64_t)b, &pins[b]);
	kvg_unpin(s->c, pins, (size_t)n);
	ask(s, &p, (unsigned)n);
}

static void lookup(struct self *s, unsigned chain, bool hold)
{
	const unsigned b = pick(s, CHAOS_BLOCKS);
	struct kvg_pin pin;
	int r = kvg_lookup_pin(s->l, &s->key[chain][b], 0.f, &pin);

	if (r < 0)
		return; /* a miss; or below */
	compare(s, seed_of(chain) + b, &pin);
	if (!hold) {
		kvg_unpin(s->c, &pin, 1);
		return;
	}
	let_go(s);
	s->held = pin;
	s->held_seed = seed_of(chain) + b;
	s->holds = true;
}

/* Does not wait, and lets go whatever has come. */
static void start(struct self *s, unsigned chain)
{
	struct kvg_acquired got[CHAOS_BLOCKS];
	ssize_t n = kvg_acquire_start(s->l, s->key[chain], CHAOS_BLOCKS, 0.f, 1.f, 1, got, NULL);

	if (n < 0)
		on_error(s, n);
	else if (n && pick(s, 2))
		kvg_arrival_wait(s->c, 5);
	for (ssize_t b = 0; b < n; b++)
		if (kvg_release(s->c, &got[b].handle, 1) < 0)
			break; /* they went with the connection */
}

static void prefetch(struct self *s, unsigned chain)
{
	ssize_t n = kvg_prefetch(s->l, s->key[chain], CHAOS_BLOCKS, pick(s, 2) ? 1.f : 0.f);

	if (n < 0)
		on_error(s, n);
}

static void one_deed(struct self *s)
{
	static const unsigned often[CHAOS_DEEDS] = {
		[CHAOS_PUT] = 25,
		[CHAOS_FETCH] = 35,
		[CHAOS_LOOKUP] = 12,
		[CHAOS_HOLD] = 8,
		[CHAOS_START] = 8,
		[CHAOS_PREFETCH] = 8,
		[CHAOS_PURGE] = 4,
	};
	const unsigned own = s->role->number * CHAOS_OWN + pick(s, CHAOS_OWN);
	const unsigned any = pick(s, CHAOS_CHAINS);
	unsigned at = pick(s, 100), deed = 0;

	while (at >= often[deed])
		at -= often[deed++];
	if (deed == CHAOS_PUT)
		put(s, own);
	else if (deed == CHAOS_FETCH)
		fetch(s, any);
	else if (deed == CHAOS_LOOKUP || deed == CHAOS_HOLD)
		lookup(s, any, deed == CHAOS_HOLD);
	else if (deed == CHAOS_START)
		start(s, any);
	else if (deed == CHAOS_PREFETCH)
		prefetch(s, any);
	else
		purge(s, own);
	atomic_fetch_add(&s->shared->deeds[deed], 1);
}

int chaos_client(void *arg)
{
	struct self *s = calloc(1, sizeof(*s));

	assert(s);
	s->role = arg;
	s->shared = s->role->shared;
	signal(SIGABRT, SIG_DFL);
	come_back(s);
	for (unsigned i = 0; i < CHAOS_CHAINS; i++)
		chain_keys(s->l, &model_deep, seed_of(i), CHAOS_BLOCKS, s->key[i]);
	for (unsigned i = 0; i < CHAOS_OWN; i++)
		if (atomic_load(&s->shared->chain[s->role->number * CHAOS_OWN + i].purging))
			purge(s, s->role->number * CHAOS_OWN + i);
	for (;;)
		one_deed(s);
}
