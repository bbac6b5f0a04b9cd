/* SPDX-License-Identifier: Apache-2.0 */
/* A cache with a loop of its own, blocks whose every byte can be made again, and a reader as clients are. */
#ifndef KVGATE_TESTS_CACHE_FIXTURE_H
#define KVGATE_TESTS_CACHE_FIXTURE_H

#include "daemon/base/counters.h"
#include "daemon/base/loop.h"
#include "daemon/cache/cache.h"

#define FIXTURE_LAYERS 2
#define FIXTURE_HEADS  2
#define FIXTURE_DIM    16
#define FIXTURE_TOKENS 64
#define FIXTURE_PAIRS  (FIXTURE_LAYERS * FIXTURE_HEADS * FIXTURE_TOKENS)
#define FIXTURE_PLANES 4

struct fixture {
	struct cache_options o;
	struct cache_pinned pinned; /* for what o.park was passed */
	struct loop *loop;          /* may be set before, if o.park needs one */
	struct counters *counters;
	struct cache *cache;
	struct cache_tenant *tenant;
	struct cache_layout *layout;
	struct staging *staging;
	uint8_t *staging_map; /* as its client has it: read-write */
	struct key_hasher *hasher;
};

/* 4 MiB of budget in 1 MiB segments, 1024 slots, floor 1, no background eviction; fields of o may be set before. */
void fixture_options(struct fixture *f);
void fixture_start(struct fixture *f);
void fixture_stop(struct fixture *f);

/*
 * As setup and teardown of a cmocka test whose state is the fixture, `f`: FIXTURE_TEST(test). At the end every fact that is
 * kept twice must agree, and nothing may be promised to a commit.
 */
int fixture_setup(void **state);
int fixture_teardown(void **state);
#define FIXTURE_TEST_WITH(test, setup)                                                             \
	cmocka_unit_test_prestate_setup_teardown(test, setup, fixture_teardown, &f)
#define FIXTURE_TEST(test) FIXTURE_TEST_WITH(test, fixture_setup)

/* A layout without shape, gate and edges; all texts but the model's are empty. */
struct cache_layout_spec fixture_spec(const char *model);
struct cache_layout *fixture_layout(
	struct fixture *f, struct cache_tenant *t, const char *model, const char *key_namespace);
struct cache_tenant *fixture_tenant(
	struct fixture *f, const char *name, uint64_t quota, float floor);

/* Contents of block `seed`. */
void content_ids(uint64_t seed, uint32_t n, uint32_t *ret);
float content_score(uint64_t seed, uint32_t run, uint32_t token);
void content_row(uint64_t seed, uint32_t layer, uint32_t v, uint32_t head, uint32_t token,
	uint16_t ret[FIXTURE_DIM]);
void content_key(struct fixture *f, const struct cache_layout *l, uint64_t seed,
	const struct kvg_key *parent, struct kvg_key *ret);
/* Every pair of a plane payload against the contents. Returns its pairs; aborts on a difference. */
uint32_t content_check(uint64_t seed, const void *payload, uint64_t avail, uint32_t plane);

/* One staged block and its commit. */
struct put {
	struct cache_commit q;
	struct cache_job *job;
	struct cache_commit_result result;
	uint64_t seed, bytes;
	unsigned calls;
	struct staging *staging;
};
/* Stages the block: ids, scores, rows. May be changed before put_start(). */
void put_stage(struct fixture *f, struct cache_layout *l, uint64_t seed,
	const struct kvg_key *parent, struct put *ret);
void *put_memory(struct fixture *f, const struct put *p); /* of the stage, as its client sees it */
void put_start(struct fixture *f, struct cache_tenant *t, struct put *p);
void put_wait(struct fixture *f, struct put *p);
/* All of that. Code; the key in *ret_key, unless NULL. */
int put_block(struct fixture *f, struct cache_layout *l, uint64_t seed,
	const struct kvg_key *parent, struct kvg_key *ret_key);
/* Of any layout; `verify` waits for the worker. Code. */
int inspect_block(struct fixture *f, struct cache_tenant *t, const struct kvg_key *key, bool verify,
	struct cache_block_info *ret);
void run_loop(struct fixture *f, unsigned rounds);

/* A client's pin page, to be attached to a tenant. */
#define FIXTURE_PINS    512
#define FIXTURE_TOUCHES 64
struct pin_page *pin_page_new(void);
void page_pin(struct pin_page *p, uint32_t at, struct kvg_handle h);
void pin_page_free(struct pin_page *p);

#endif
