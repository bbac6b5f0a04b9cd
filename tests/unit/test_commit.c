/* SPDX-License-Identifier: Apache-2.0 */
/* Commits: in whatever order they come, what is published is whole, and each is answered once. */
#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/cache/block.h"
#include "daemon/cache/job.h"
#include "daemon/cache/pack.h"
#include "daemon/cache/tenant.h"
#include "tests/unit/cache_fixture.h"

static struct fixture f;

static float *scores_of(struct put *p)
{
	struct stage_geometry g;

	cache_layout_stage(p->q.layout, STAGE_INPUT_SCORES, FIXTURE_TOKENS, &g);
	return (float *)((uint8_t *)put_memory(&f, p) + g.aux_off);
}

static _Atomic uint32_t *ids_of(struct put *p)
{
	struct stage_geometry g;

	cache_layout_stage(p->q.layout, STAGE_INPUT_SCORES, FIXTURE_TOKENS, &g);
	return (_Atomic uint32_t *)((uint8_t *)put_memory(&f, p) + g.tokens_off);
}

/* A whole chain at once, children before anything is packed; answers come in order. */
static void test_chain_in_flight(void **state)
{
	enum {
		N = 30
	};
	struct put p[N];
	struct kvg_key parent;
	unsigned answered = 0;

	(void)state;
	for (uint64_t i = 0; i < N; i++) {
		put_stage(&f, f.layout, i, i ? &parent : NULL, &p[i]);
		parent = p[i].q.key;
		put_start(&f, f.tenant, &p[i]);
	}
	while (answered < N) {
		assert_int_equal(loop_run_once(f.loop, 100), 0);
		for (unsigned i = 1; i < N; i++)
			assert_true(p[i].calls <= p[i - 1].calls);
		for (answered = 0; answered < N && p[answered].calls; answered++)
			;
	}
	for (unsigned i = 0; i < N; i++) {
		struct block *b = block_get(f.tenant, p[i].result.handle);

		assert_int_equal(p[i].result.code, KVG_CODE_OK);
		assert_true(b && b->depth == i && b->uses == 0);
		assert_true(!i || b->parent == block_get(f.tenant, p[i - 1].result.handle));
	}
}

static void test_parent_fails(void **state)
{
	struct put p[4];

	(void)state;
	for (uint64_t i = 0; i < 4; i++) {
		put_stage(&f, f.layout, i, i ? &p[i - 1].q.key : NULL, &p[i]);
		if (i == 1)
			scores_of(&p[1])[17] = NAN;
		put_start(&f, f.tenant, &p[i]);
	}
	put_wait(&f, &p[3]);
	assert_int_equal(p[0].result.code, KVG_CODE_OK);
	assert_int_equal(p[1].result.code, KVG_CODE_BAD_SCORES);
	assert_int_equal(p[2].result.code, KVG_CODE_NO_PARENT);
	assert_int_equal(p[3].result.code, KVG_CODE_NO_PARENT);
	assert_true(p[2].result.error[0] && p[2].result.handle.gen == 0);
	assert_int_equal(put_block(&f, f.layout, 1, &p[0].q.key, NULL), KVG_CODE_OK);
}

static void test_duplicates(void **state)
{
	enum {
		N = 10
	};
	struct put p[N];
	unsigned ok = 0;

	(void)state;
	for (int i = 0; i < N; i++) {
		put_stage(&f, f.layout, 7, NULL, &p[i]);
		if (i == 0)
			scores_of(&p[0])[3] =
				-INFINITY; /* the first fails: another takes its place */
		put_start(&f, f.tenant, &p[i]);
	}
	for (int i = 0; i < N; i++) {
		put_wait(&f, &p[i]);
		ok += p[i].result.code == KVG_CODE_OK;
		assert_true(i == 0 ? p[i].result.code == KVG_CODE_BAD_SCORES
				   : p[i].result.code == KVG_CODE_OK ||
					p[i].result.code == KVG_CODE_EXISTS);
		assert_true(i < 2 || p[i].result.handle.gen == p[1].result.handle.gen);
	}
	assert_int_equal(ok, 1);
	assert_int_equal(f.tenant->n_blocks, 1);
	assert_int_equal(counter_get(f.layout->counters, COUNTER_COMMIT_EXISTS, 0), N - 2);
}

static void test_keys(void **state)
{
	struct cache_layout *foreign = fixture_layout(&f, f.tenant, "model", "engine");
	struct put p;

	(void)state;
	put_stage(&f, f.layout, 1, NULL, &p);
	p.q.key.b[30] ^= 1;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_BAD_KEY);
	put_stage(&f, f.layout, 1, NULL, &p);
	ids_of(&p)[5]++;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_BAD_KEY);
	assert_int_equal(f.tenant->n_blocks, 0);
	assert_int_equal(put_block(&f, f.layout, 1, NULL, NULL), KVG_CODE_OK);
	put_stage(&f, f.layout, 1, NULL,
		&p); /* the key is there, these are not its tokens: it is not their key */
	ids_of(&p)[5]++;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_BAD_KEY);

	for (int i = 0; i < 3;
		i++) { /* an engine's own hash is believed, but not with other tokens */
		put_stage(&f, foreign, i == 1 ? 9 : 8, NULL, &p);
		memset(&p.q.key, 0x42, sizeof(p.q.key));
		put_start(&f, f.tenant, &p);
		put_wait(&f, &p);
		assert_int_equal(p.result.code,
			i == 0           ? KVG_CODE_OK
				: i == 1 ? KVG_CODE_COLLISION
					 : KVG_CODE_EXISTS);
		assert_int_equal(p.result.handle.gen != 0, i != 1);
	}
	put_stage(&f, foreign, 8, NULL, &p); /* its own parent */
	memset(&p.q.key, 0x43, sizeof(p.q.key));
	p.q.parent = p.q.key;
	p.q.has_parent = true;
	put_start(&f, f.tenant, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_NO_PARENT);
	assert_int_equal(counter_get(foreign->counters, COUNTER_COLLISIONS, 0), 1);
}

/* Two foreign blocks that name each other as parents, behind a job both wait for: nobody waits for ever. */
static void test_parents_in_a_circle(void **state)
{
	struct cache_layout *foreign = fixture_layout(&f, f.tenant, "model", "engine");
	struct put first, twin, other;

	(void)state;
	put_stage(&f, foreign, 1, NULL, &first);
	scores_of(&first)[0] = NAN;
	put_stage(&f, foreign, 1, NULL, &twin);
	put_stage(&f, foreign, 2, NULL, &other);
	twin.q.has_parent = other.q.has_parent = true;
	twin.q.parent = other.q.key;
	other.q.parent = twin.q.key;
	put_start(&f, f.tenant, &first);
	put_start(&f, f.tenant, &twin);
	put_start(&f, f.tenant, &other);
	put_wait(&f, &first);
	put_wait(&f, &twin);
	put_wait(&f, &other);
	assert_int_equal(twin.result.code, KVG_CODE_NO_PARENT);
	assert_int_equal(other.result.code, KVG_CODE_NO_PARENT);
}

static void test_bad_arguments(void **state)
{
	struct put p;

	(void)state;
	for (int i = 0; i < 4; i++) {
		put_stage(&f, f.layout, 1, NULL, &p);
		if (i == 0)
			p.q.tokens = FIXTURE_TOKENS + 1;
		else if (i == 1)
			p.q.input = STAGE_INPUT_HIDDEN;
		else if (i == 2)
			p.q.token_ids = false;
		else
			p.q.input = 77;
		put_start(&f, f.tenant, &p);
		put_wait(&f, &p);
		assert_int_equal(p.result.code, KVG_CODE_BAD_ARGUMENT);
		assert_true(p.result.error[0]);
	}
}

/* While the daemon reads, the client changes the ids: whatever is stored is what the key says. */
struct flipper {
	_Atomic uint32_t *ids;
	_Atomic bool stop;
};

static void *flip(void *arg)
{
	struct flipper *x = arg;

	while (!atomic_load(&x->stop))
		atomic_fetch_xor(&x->ids[13], 1);
	return NULL;
}

static void test_ids_change_under_us(void **state)
{
	unsigned ok = 0;

	(void)state;
	for (uint64_t i = 0; i < 60; i++) {
		struct flipper x = {0};
		struct put p;
		pthread_t thread;

		put_stage(&f, f.layout, i, NULL, &p);
		x.ids = ids_of(&p);
		assert_int_equal(pthread_create(&thread, NULL, flip, &x), 0);
		put_start(&f, f.tenant, &p);
		while (!p.calls)
			loop_run_once(f.loop, 10);
		atomic_store(&x.stop, true);
		pthread_join(thread, NULL);
		if (p.result.code == KVG_CODE_OK) {
			const struct block *b = block_get(f.tenant, p.result.handle);
			uint32_t ids[FIXTURE_TOKENS];

			content_ids(i, FIXTURE_TOKENS, ids);
			assert_true(pack_tokens_equal(b->plane[0].extent.addr,
				extent_bytes(&b->plane[0].extent), ids, FIXTURE_TOKENS));
			ok++;
		} else {
			assert_int_equal(p.result.code, KVG_CODE_BAD_KEY);
		}
	}
	assert_true(ok > 0);
}

static void never(void *userdata, const struct cache_commit_result *r)
{
	(void)userdata;
	(void)r;
	fail();
}

static void test_cancel(void **state)
{
	enum {
		N = 40
	};
	struct put p[N], last;
	struct cache_job *job[N];

	(void)state;
	for (uint64_t i = 0; i < N; i++) {
		put_stage(&f, f.layout, i, i % 4 ? &p[i - 1].q.key : NULL, &p[i]);
		assert_int_equal(cache_commit(f.tenant, &p[i].q, never, NULL, &job[i]), 0);
	}
	put_stage(
		&f, f.layout, N - 1, &p[N - 2].q.key, &last); /* waits for one that is cancelled */
	put_start(&f, f.tenant, &last);
	for (int i = 0; i < N; i++) {
		cache_commit_cancel(job[i]);
		memset(put_memory(&f, &p[i]), 0x5a,
			p[i].bytes); /* the stage is somebody else's now */
	}
	put_wait(&f, &last);
	assert_true(last.result.code == KVG_CODE_NO_PARENT || last.result.code == KVG_CODE_OK ||
		last.result.code == KVG_CODE_EXISTS);
	while (f.cache->commits.n)
		loop_run_once(f.loop, 10);
	for (uint64_t i = 0; i < N; i++) {
		struct block *b = block_find(f.tenant, f.layout->id, &p[i].q.key);

		for (uint32_t plane = 0; b && plane < FIXTURE_PLANES; plane++)
			content_check(i, b->plane[plane].extent.addr, b->plane[plane].bytes, plane);
	}
}

/* The cache is taken down with commits in every state. */
static void test_free_with_commits_in_flight(void **state)
{
	struct put p;
	struct cache_job *job;

	(void)state;
	for (uint64_t i = 0; i < 200; i++) {
		put_stage(&f, f.layout, i, i % 4 ? &p.q.key : NULL, &p);
		assert_int_equal(cache_commit(f.tenant, &p.q, never, NULL, &job), 0);
		cache_commit_cancel(job);
	}
	fixture_stop(&f);
	fixture_options(&f);
	fixture_start(&f);
}

/* More in flight than the budget could ever reserve: they take turns. */
static void test_more_than_fits(void **state)
{
	enum {
		N = 300
	};
	static struct put p[N];
	const uint64_t worst = pack_worst_case(
		&f.layout->identity.shape, FIXTURE_PLANES - 1, f.layout->page_shift);

	(void)state;
	assert_true(worst * N > 2 * f.o.host_bytes);
	for (uint64_t i = 0; i < N; i++) {
		put_stage(&f, f.layout, i, i % 3 ? &p[i - 1].q.key : NULL, &p[i]);
		put_start(&f, f.tenant, &p[i]);
		assert_int_equal(cache_check(f.cache), 0);
	}
	for (int i = 0; i < N; i++) {
		put_wait(&f, &p[i]);
		assert_int_equal(p[i].result.code, KVG_CODE_OK);
	}
	assert_true(f.tenant->n_blocks < N);
}

enum {
	CROWD = 200
};

/* Puts `late` of another tenant behind a crowd. Returns how many of the crowd no worker had yet. */
static unsigned stand_behind(struct put p[CROWD], uint64_t seed, struct put *late)
{
	unsigned waiting = 0;

	for (uint64_t i = 0; i < CROWD; i++)
		put_stage(&f, f.layout, seed + i, NULL, &p[i]);
	for (uint64_t i = 0; i < CROWD; i++)
		put_start(&f, f.tenant, &p[i]);
	for (const struct cache_job *j = f.tenant->starved.first; j; j = j->next)
		waiting++;
	put_start(&f, late->q.layout->tenant, late);
	return waiting;
}

/* A tenant with hundreds of commits in flight costs another's single one no more than what the workers have already. */
static void test_tenants_take_turns(void **state)
{
	static struct put p[CROWD];
	struct cache_tenant *other = fixture_tenant(&f, "other", 1 << 20, 1.0f);
	struct cache_layout *l = fixture_layout(&f, other, "model", "");
	unsigned waiting = 0;

	(void)state;
	/* When this thread did not get to run, the workers may have been through: then that try shows nothing. */
	for (uint64_t try = 0; waiting <= CROWD / 2; try++) {
		unsigned before = 0;
		struct put late;

		assert_true(try < 50);
		put_stage(&f, l, try, NULL, &late);
		waiting = stand_behind(p, 1000 * try, &late);
		put_wait(&f, &late);
		for (int i = 0; i < CROWD; i++)
			before += p[i].calls;
		assert_int_equal(late.result.code, KVG_CODE_OK);
		/* what the workers were fed at once with it and right behind it may be told in the same batch */
		assert_true(before <= CROWD - waiting + 64);
		for (int i = 0; i < CROWD; i++)
			put_wait(&f, &p[i]);
	}
}

static void test_no_space(void **state)
{
	struct cache_block_result r;
	struct kvg_key key[200];
	struct kvg_handle held[200];
	unsigned n = 0;
	int code;

	(void)state;
	for (;; n++) {
		assert_true(n < 200);
		code = put_block(&f, f.layout, n, NULL, &key[n]);
		if (code != KVG_CODE_OK)
			break;
		assert_int_equal(cache_acquire(f.tenant, f.layout, &key[n], 1.0f, &r), KVG_CODE_OK);
		held[n] = r.handle;
	}
	assert_int_equal(code, KVG_CODE_NO_SPACE); /* everything is pinned */
	assert_int_equal(cache_release(f.tenant, held[5]), KVG_CODE_OK);
	assert_int_equal(put_block(&f, f.layout, 1000, NULL, NULL), KVG_CODE_OK);
	assert_false(cache_present(f.tenant, &key[5]));
	assert_true(cache_present(f.tenant, &key[4]));
	for (unsigned i = 0; i < n; i++)
		cache_release(f.tenant, held[i]);
}

static void test_larger_than_the_quota(void **state)
{
	struct cache_tenant *t = fixture_tenant(&f, "small", 8192, 1.0f);
	struct cache_layout *l = fixture_layout(&f, t, "model", "");
	struct put p;

	(void)state;
	put_stage(&f, l, 1, NULL, &p);
	put_start(&f, t, &p);
	put_wait(&f, &p);
	assert_int_equal(p.result.code, KVG_CODE_NO_SPACE);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		FIXTURE_TEST(test_chain_in_flight),
		FIXTURE_TEST(test_parent_fails),
		FIXTURE_TEST(test_duplicates),
		FIXTURE_TEST(test_keys),
		FIXTURE_TEST(test_parents_in_a_circle),
		FIXTURE_TEST(test_bad_arguments),
		FIXTURE_TEST(test_ids_change_under_us),
		FIXTURE_TEST(test_cancel),
		FIXTURE_TEST(test_free_with_commits_in_flight),
		FIXTURE_TEST(test_more_than_fits),
		FIXTURE_TEST(test_tenants_take_turns),
		FIXTURE_TEST(test_no_space),
		FIXTURE_TEST(test_larger_than_the_quota),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
