/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/cache_fixture.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/cache/tenant.h"
#include "proto/plane.h"

void fixture_options(struct fixture *f)
{
	*f = (struct fixture){
		.o =
			{
				.host_bytes = 4 << 20,
				.segment_bytes = 1 << 20,
				.index_slots = 1024,
				.high_watermark = 1.0f,
				.low_watermark = 1.0f,
				.pack_workers = 2,
				.numa_node = -1,
			},
	};
}

void fixture_start(struct fixture *f)
{
	assert(f->loop || loop_new(&f->loop) == 0);
	assert(counters_new(&f->counters) == 0);
	f->o.loop = f->loop;
	f->o.counters = f->counters;
	assert(cache_new(&f->o, &f->cache) == 0);
	assert(cache_adopt(f->cache, &f->pinned) == 0);
	assert(staging_new(64 << 20, &f->staging) == 0);
	f->staging_map = mmap(NULL, staging_bytes(f->staging), PROT_READ | PROT_WRITE, MAP_SHARED,
		staging_fd(f->staging), 0);
	assert(f->staging_map != MAP_FAILED);
	assert(key_hasher_new(&f->hasher) == 0);
	f->tenant = fixture_tenant(f, "one", f->o.host_bytes, 1.0f);
	f->layout = fixture_layout(f, f->tenant, "model", "");
}

void fixture_stop(struct fixture *f)
{
	munmap(f->staging_map, staging_bytes(f->staging));
	staging_unref(f->staging);
	key_hasher_free(f->hasher);
	cache_free(f->cache);
	counters_free(f->counters);
	loop_free(f->loop);
}

int fixture_setup(void **state)
{
	fixture_options(*state);
	fixture_start(*state);
	return 0;
}

int fixture_teardown(void **state)
{
	struct fixture *f = *state;

	assert(cache_check(f->cache) == 0);
	for (struct cache_tenant *t = cache_tenant_next(f->cache, NULL); t;
		t = cache_tenant_next(f->cache, t))
		assert(!t->reserved && !t->reserved_slots);
	assert(!f->cache->commits.n);
	fixture_stop(f);
	return 0;
}

struct cache_layout_spec fixture_spec(const char *model)
{
	return (struct cache_layout_spec){
		.id =
			{
				.model = model,
				.revision = "",
				.rope = "",
				.eviction = "",
				.key_namespace = "",
				.tp_size = 1,
			},
		.gate = "",
	};
}

struct cache_tenant *fixture_tenant(
	struct fixture *f, const char *name, uint64_t quota, float floor)
{
	struct cache_limits l = {.host_bytes = quota, .floor = floor};
	struct cache_tenant *t;

	assert(cache_tenant_open(f->cache, name, &l, &t) == 0);
	return t;
}

struct cache_layout *fixture_layout(
	struct fixture *f, struct cache_tenant *t, const char *model, const char *key_namespace)
{
	const struct kv_shape shape = {
		.layers = FIXTURE_LAYERS,
		.heads = FIXTURE_HEADS,
		.tokens = FIXTURE_TOKENS,
		.k_dim = FIXTURE_DIM,
		.v_dim = FIXTURE_DIM,
		.dtype = KVG_DTYPE_BF16,
	};
	struct cache_layout_spec s = fixture_spec(model);
	struct cache_layout *l;
	char why[160];

	(void)f;
	s.id.shape = shape;
	s.id.key_namespace = key_namespace;
	s.id.gate_digest[0] = 1;
	s.id.n_edges = FIXTURE_PLANES - 1;
	memcpy(s.id.edges, (float[]){.75f, .5f, .25f}, 3 * sizeof(float));
	if (cache_layout_register(t, &s, &l, why, sizeof(why)) != KVG_CODE_OK) {
		fprintf(stderr, "%s\n", why);
		abort();
	}
	return l;
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9ull;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebull;
	return x ^ x >> 31;
}

void content_ids(uint64_t seed, uint32_t n, uint32_t *ret)
{
	for (uint32_t i = 0; i < n; i++)
		ret[i] = (uint32_t)mix(seed * 100003 + i);
}

float content_score(uint64_t seed, uint32_t run, uint32_t token)
{
	return (float)(mix(seed << 32 ^ (uint64_t)run << 16 ^ token) >> 40) * 0x1p-24f;
}

void content_row(uint64_t seed, uint32_t layer, uint32_t v, uint32_t head, uint32_t token,
	uint16_t ret[FIXTURE_DIM])
{
	for (uint32_t i = 0; i < FIXTURE_DIM; i++)
		ret[i] = (uint16_t)mix(
			seed << 40 ^ layer << 30 ^ v << 29 ^ head << 20 ^ token << 8 ^ i);
}

void content_key(struct fixture *f, const struct cache_layout *l, uint64_t seed,
	const struct kvg_key *parent, struct kvg_key *ret)
{
	struct cache_layout_info info;
	uint32_t ids[FIXTURE_TOKENS];

	cache_layout_describe(l, &info);
	content_ids(seed, FIXTURE_TOKENS, ids);
	key_block(f->hasher, parent, info.fingerprint, ids, FIXTURE_TOKENS, ret);
}

#define SAME(fact)                                                                                 \
	do {                                                                                       \
		if (!(fact)) {                                                                     \
			fprintf(stderr, "block %llu: %s\n", (unsigned long long)seed, #fact);      \
			abort();                                                                   \
		}                                                                                  \
	} while (0)

uint32_t content_check(uint64_t seed, const void *payload, uint64_t avail, uint32_t plane)
{
	struct plane_view v;

	SAME(plane_verify(payload, avail) == 0 && plane_open(payload, avail, &v) == 0);
	SAME(plane_check_runs(&v) == 0 && v.plane == plane &&
		v.runs == FIXTURE_LAYERS * FIXTURE_HEADS);
	for (uint32_t run = 0; run < v.runs; run++)
		for (uint32_t i = v.cu[run]; i < v.cu[run + 1]; i++) {
			uint16_t k[FIXTURE_DIM], val[FIXTURE_DIM];

			content_row(
				seed, run / FIXTURE_HEADS, 0, run % FIXTURE_HEADS, v.index[i], k);
			content_row(
				seed, run / FIXTURE_HEADS, 1, run % FIXTURE_HEADS, v.index[i], val);
			SAME(!memcmp(k, v.k + i * sizeof(k), sizeof(k)));
			SAME(!memcmp(val, v.v + i * sizeof(val), sizeof(val)));
		}
	return v.pairs;
}

void *put_memory(struct fixture *f, const struct put *p)
{
	return f->staging_map + p->q.offset;
}

void put_stage(struct fixture *f, struct cache_layout *l, uint64_t seed,
	const struct kvg_key *parent, struct put *ret)
{
	struct stage_geometry g;
	uint8_t *at;
	uint16_t *row;
	float *score;

	cache_layout_stage(l, STAGE_INPUT_SCORES, FIXTURE_TOKENS, &g);
	*ret = (struct put){
		.seed = seed,
		.bytes = g.total,
		.staging = f->staging,
		.q =
			{
				.layout = l,
				.staging = f->staging,
				.input = STAGE_INPUT_SCORES,
				.tokens = FIXTURE_TOKENS,
				.token_ids = true,
				.has_parent = parent,
			},
	};
	if (parent)
		ret->q.parent = *parent;
	content_key(f, l, seed, parent, &ret->q.key);
	assert(staging_alloc(f->staging, g.total, &ret->q.offset) == 0);
	at = put_memory(f, ret);
	row = (uint16_t *)at;
	for (uint32_t layer = 0; layer < FIXTURE_LAYERS; layer++)
		for (uint32_t v = 0; v < 2; v++)
			for (uint32_t head = 0; head < FIXTURE_HEADS; head++)
				for (uint32_t t = 0; t < FIXTURE_TOKENS; t++, row += FIXTURE_DIM)
					content_row(seed, layer, v, head, t, row);
	score = (float *)(at + g.aux_off);
	for (uint32_t run = 0; run < FIXTURE_LAYERS * FIXTURE_HEADS; run++)
		for (uint32_t t = 0; t < FIXTURE_TOKENS; t++)
			*score++ = content_score(seed, run, t);
	content_ids(seed, FIXTURE_TOKENS, (uint32_t *)(at + g.tokens_off));
}

static void put_done(void *userdata, const struct cache_commit_result *r)
{
	struct put *p = userdata;

	p->result = *r;
	p->calls++;
	p->job = NULL;
	staging_release(p->staging, p->q.offset, p->bytes);
}

void put_start(struct fixture *f, struct cache_tenant *t, struct put *p)
{
	(void)f;
	assert(cache_commit(t, &p->q, put_done, p, &p->job) == 0);
	assert(!p->calls); /* never from within */
}

void put_wait(struct fixture *f, struct put *p)
{
	for (unsigned i = 0; !p->calls; i++) {
		assert(i < 5000);
		assert(loop_run_once(f->loop, 20) == 0);
	}
	assert(p->calls == 1);
}

int put_block(struct fixture *f, struct cache_layout *l, uint64_t seed,
	const struct kvg_key *parent, struct kvg_key *ret_key)
{
	struct put p;

	put_stage(f, l, seed, parent, &p);
	put_start(f, f->tenant, &p);
	put_wait(f, &p);
	if (ret_key)
		*ret_key = p.q.key;
	return p.result.code;
}

struct verified {
	struct cache_block_info info;
	bool done;
};

static void on_verified(void *userdata, const struct cache_block_info *info)
{
	struct verified *v = userdata;

	assert(!v->done);
	*v = (struct verified){*info, true};
}

int inspect_block(struct fixture *f, struct cache_tenant *t, const struct kvg_key *key, bool verify,
	struct cache_block_info *ret)
{
	struct verified v = {.done = false};
	int code = verify ? cache_verify(t, 0, key, on_verified, &v)
			  : cache_inspect(t, 0, key, ret);

	if (code || !verify)
		return code;
	assert(!v.done); /* never from within */
	for (unsigned i = 0; !v.done; i++) {
		assert(i < 5000);
		assert(loop_run_once(f->loop, 20) == 0);
	}
	*ret = v.info;
	return code;
}

void run_loop(struct fixture *f, unsigned rounds)
{
	while (rounds--)
		assert(loop_run_once(f->loop, 1) == 0);
}

struct pin_page *pin_page_new(void)
{
	struct pin_page *p = calloc(1, sizeof(*p));
	void *map =
		aligned_alloc(64, (pin_page_bytes(FIXTURE_PINS, FIXTURE_TOUCHES) + 63) / 64 * 64);

	memset(map, 0, pin_page_bytes(FIXTURE_PINS, FIXTURE_TOUCHES));
	*p = (struct pin_page){.map = map, .n_pins = FIXTURE_PINS, .n_touch = FIXTURE_TOUCHES};
	return p;
}

void page_pin(struct pin_page *p, uint32_t at, struct kvg_handle h)
{
	struct kvg_shm_pins *head = (struct kvg_shm_pins *)(uintptr_t)p->map;

	((_Atomic uint64_t *)((uint8_t *)head + pin_page_pins_off()))[at] = kvg_handle_pack(h);
	if (head->pins_high <= at)
		head->pins_high = at + 1;
}

void pin_page_free(struct pin_page *p)
{
	free((void *)(uintptr_t)p->map);
	free(p);
}
