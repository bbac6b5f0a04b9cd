/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A tenant has an index, segments, an order of value and limits of its own; nothing of it is ever another's. What may
 * be set while it runs - floors, quota, watermarks - takes effect at once for decisions; the order learns of a new
 * floor by a walk over all blocks, a few thousand a tick, because it may be a million.
 *
 * Limits come from the configuration with every session that opens. They are taken over when the configuration itself
 * changed; what was set at run time stays otherwise.
 */
#include "daemon/cache/tenant.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "daemon/base/log.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/keep.h"

#define WALK_SLOTS    4096     /* of a tick: well below a millisecond */
#define TOUCHES_MAX   1024     /* taken at once, and a page's more: well below a millisecond */
#define SURVEY_AGE_NS 20000000 /* what people look at may be so old */

/* ---- life ---- */

/* Not what the next daemon will have: that stays as it is, for it and for those who read. */
static void free_blocks(struct cache_tenant *t)
{
	struct block *b, *next;

	for (b = t->roots.first ? block_first(&t->roots) : NULL; b; b = next) {
		next = block_next(b);
		b->pins = 0;
		if (t->catalog) {
			block_leave(b);
			continue;
		}
		index_set_planes(t->index, b->handle.slot, 0, 0);
		block_free(b, false);
	}
}

static struct cache_tenant *tenant_free(struct cache_tenant *t)
{
	struct model_floor *m;

	replicas_leave(t);
	free_blocks(t);
	assert(!t->n_blocks && (t->catalog || !t->used) && !t->reserved);
	for (uint32_t i = 0; i < t->n_layouts; i++)
		layout_free(t->layouts[i]);
	while ((m = t->models)) {
		t->models = m->next;
		free(m->model);
		free(m);
	}
	policy_free(t->policy);
	pool_tenant_free(t->pool);
	if (t->by_slot)
		munmap(t->by_slot, index_slots(t->index) * sizeof(*t->by_slot));
	if (t->disk)
		disk_tenant_free(t->disk);
	keep_forget(t);
	index_free(t->index);
	free(t->name);
	free(t);
	return NULL;
}

void tenants_free(struct cache *c)
{
	while (c->tenants) {
		struct cache_tenant *t = c->tenants;

		c->tenants = t->next;
		tenant_free(t);
	}
}

static int map_slots(struct cache_tenant *t)
{
	void *p = mmap(NULL, index_slots(t->index) * sizeof(*t->by_slot), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		return -errno;
	t->by_slot = p;
	return 0;
}

int tenant_make(struct cache *c, const char *name, struct index *index, struct cache_tenant **ret)
{
	struct cache_tenant *t = calloc(1, sizeof(*t)), **end = &c->tenants;
	int r = -ENOMEM;

	if (!t)
		return -ENOMEM;
	t->cache = c;
	t->index = index;
	job_list_init(&t->starved);
	t->purges.end = &t->purges.first;
	t->below_end = &t->below;
	lifts_init(&t->lifts);
	t->high = c->o.high_watermark;
	t->low = c->o.low_watermark;
	t->name = strdup(name);
	if (!t->name)
		goto error;
	r = counters_scope(c->counters, name, "", &t->counters);
	if (r == 0 && !index)
		r = index_new(c->o.index_slots, &t->index);
	if (r == 0)
		r = pool_tenant_new(c->pool, &t->pool);
	if (r == 0)
		r = policy_new(&t->policy);
	if (r == 0)
		r = map_slots(t);
	if (r == 0)
		r = mover_tenant(t);
	if (r == 0 && !index)
		r = keep_tenant(t);
	if (r < 0)
		goto error;
	while (*end)
		end = &(*end)->next;
	*ret = *end = t;
	return 0;
error:
	if (index)
		t->index = NULL; /* the caller's still; of these slots nothing is mapped */
	tenant_free(t);
	return r;
}

void tenant_floors_changed(struct cache_tenant *t)
{
	for (uint32_t i = 0; i < t->n_layouts; i++)
		t->layouts[i]->floor = tenant_floor(t, t->layouts[i]->identity.model);
	t->refloor = index_slots_used_end(t->index);
}

int cache_tenant_open(
	struct cache *c, const char *name, const struct cache_limits *l, struct cache_tenant **ret)
{
	struct cache_tenant *t = cache_tenant_find(c, name);
	int r;

	if (!t) {
		r = tenant_make(c, name, NULL, &t);
		if (r < 0)
			return r;
	}
	cache_tenant_limit(t, l);
	*ret = t;
	return 0;
}

void cache_tenant_limit(struct cache_tenant *t, const struct cache_limits *l)
{
	assert(l->host_bytes && l->floor > 0 && l->floor <= 1);
	if (l->host_bytes != t->configured.host_bytes) {
		t->quota = l->host_bytes;
		evict_check(t->cache, t);
	}
	if (t->disk)
		disk_tenant_limit(t->disk, l->disk_bytes);
	if (l->floor != t->configured.floor) {
		t->floor = l->floor;
		tenant_floors_changed(t);
	}
	t->configured = *l;
	keep_policy(t);
}

bool cache_tenant_idle(const struct cache_tenant *t)
{
	loop_assert_owner(t->cache->loop);
	return !t->n_blocks && !t->reserved && !t->lifting && !t->reserved_slots &&
		!t->pins.pages && !t->starved.first;
}

void cache_tenant_close(struct cache_tenant *t)
{
	struct cache_tenant **at = &t->cache->tenants;

	assert(cache_tenant_idle(t));
	while (*at != t)
		at = &(*at)->next;
	*at = t->next;
	tenant_free(t);
}

struct cache_tenant *cache_tenant_find(struct cache *c, const char *name)
{
	struct cache_tenant *t = c->tenants;

	loop_assert_owner(c->loop);
	while (t && strcmp(t->name, name))
		t = t->next;
	return t;
}

struct cache_tenant *cache_tenant_next(struct cache *c, struct cache_tenant *after)
{
	return after ? after->next : c->tenants;
}

const char *cache_tenant_name(const struct cache_tenant *t)
{
	return t->name;
}

uint32_t cache_tenant_number(const struct cache_tenant *t)
{
	return t->number;
}

int cache_tenant_index_fd(const struct cache_tenant *t)
{
	return index_fd(t->index);
}

/* ---- floors, quota, watermarks ---- */

static struct model_floor *model_find(const struct cache_tenant *t, const char *model)
{
	struct model_floor *m = t->models;

	while (m && strcmp(m->model, model))
		m = m->next;
	return m;
}

float tenant_floor(const struct cache_tenant *t, const char *model)
{
	const struct model_floor *m = t->models ? model_find(t, model) : NULL;

	return m ? m->floor : t->floor;
}

static int model_add(struct cache_tenant *t, const char *model, struct model_floor **ret)
{
	struct model_floor **at = &t->models, *m;
	unsigned n = 0;

	for (; *at; at = &(*at)->next)
		n++;
	if (n == TENANT_MODELS_MAX)
		return -ENOSPC;
	m = calloc(1, sizeof(*m));
	if (!m)
		return -ENOMEM;
	m->model = strdup(model);
	if (!m->model) {
		free(m);
		return -ENOMEM;
	}
	*at = *ret = m;
	return 0;
}

static const char *bad_policy(const struct cache_tenant *t, const struct cache_policy *p)
{
	float high = p->high_watermark != 0 ? p->high_watermark : t->high;
	float low = p->low_watermark != 0 ? p->low_watermark : t->low;

	if (p->floor != 0 && !(p->floor > 0 && p->floor <= 1))
		return "floor must be above 0 and at most 1";
	if (!(high > 0 && high <= 1) || !(low > 0 && low <= 1))
		return "watermarks must be above 0 and at most 1";
	if (low > high)
		return "the low watermark must not be above the high one";
	if (p->host_bytes > t->cache->o.host_bytes)
		return "host_bytes is more than the host_bytes of all tenants together";
	return NULL;
}

int cache_policy_set(struct cache_tenant *t, const char *model, const struct cache_policy *p,
	char *ret_why, size_t why_size)
{
	const char *why = bad_policy(t, p);
	struct model_floor *m = NULL;

	loop_assert_owner(t->cache->loop);
	if (!why && model[0] && p->floor != 0) {
		m = model_find(t, model);
		if (!m && model_add(t, model, &m) < 0)
			why = "too many models have a floor of their own";
	}
	if (why) {
		snprintf(ret_why, why_size, "%s", why);
		return KVG_CODE_BAD_ARGUMENT;
	}
	if (p->floor != 0) {
		if (m)
			tenant_set_model(t, model, p->floor, m->configured);
		else
			t->floor = p->floor;
		tenant_floors_changed(t);
	}
	if (p->host_bytes)
		t->quota = p->host_bytes;
	if (p->high_watermark != 0)
		t->high = p->high_watermark;
	if (p->low_watermark != 0)
		t->low = p->low_watermark;
	keep_policy(t);
	evict_ask_again(t->cache);
	evict_check(t->cache, t);
	return KVG_CODE_OK;
}

int cache_policy_configure(struct cache_tenant *t, const char *model, const struct cache_policy *p,
	char *ret_why, size_t why_size)
{
	const struct model_floor *m = model[0] ? model_find(t, model) : NULL;
	struct cache_policy news = {0};
	int code;

	if (model[0] && p->floor != 0 && !(m && m->configured == p->floor))
		news.floor = p->floor;
	if (!model[0] && p->high_watermark != t->configured_high)
		news.high_watermark = p->high_watermark;
	if (!model[0] && p->low_watermark != t->configured_low)
		news.low_watermark = p->low_watermark;
	code = cache_policy_set(t, model, &news, ret_why, why_size);
	if (code != KVG_CODE_OK)
		return code;
	if (!model[0]) {
		t->configured_high = p->high_watermark;
		t->configured_low = p->low_watermark;
		keep_policy(t);
	} else if (news.floor != 0) {
		tenant_set_model(t, model, p->floor, p->floor);
	}
	return KVG_CODE_OK;
}

static bool forget_model(struct cache_tenant *t, const char *model)
{
	for (struct model_floor **at = &t->models; *at; at = &(*at)->next) {
		struct model_floor *m = *at;

		if (strcmp(m->model, model))
			continue;
		*at = m->next;
		free(m->model);
		free(m);
		return true;
	}
	return false;
}

void cache_policy_forget(struct cache_tenant *t, const char *model)
{
	loop_assert_owner(t->cache->loop);
	if (!forget_model(t, model))
		return;
	keep_model(t, model, 0, 0);
	tenant_floors_changed(t);
}

int tenant_set_model(struct cache_tenant *t, const char *model, float floor, float configured)
{
	struct model_floor *m = model_find(t, model);
	int r;

	if (floor == 0) {
		forget_model(t, model);
		return 0;
	}
	r = m ? 0 : model_add(t, model, &m);
	if (r < 0)
		return r;
	m->floor = floor;
	m->configured = configured;
	keep_model(t, model, floor, configured);
	return 0;
}

void cache_policy_get(const struct cache_tenant *t, const char *model, struct cache_policy *ret)
{
	*ret = (struct cache_policy){
		.floor = model[0] ? tenant_floor(t, model) : t->floor,
		.host_bytes = t->quota,
		.high_watermark = t->high,
		.low_watermark = t->low,
		.host_used = t->used,
	};
}

const char *cache_policy_model(const struct cache_tenant *t, unsigned i, float *ret_floor)
{
	const struct model_floor *m = t->models;

	while (m && i--)
		m = m->next;
	if (!m)
		return NULL;
	*ret_floor = m->floor;
	return m->model;
}

/* ---- who read what ---- */

static void touch(void *userdata, struct kvg_handle h)
{
	struct cache_tenant *t = userdata;
	struct block *b = block_get(t, h);

	if (b)
		block_touch(b);
}

static void count_touches(struct cache_tenant *t, const struct pins_drained *d)
{
	if (d->touches)
		counter_add(t->counters, COUNTER_TOUCHES, 0, (int64_t)d->touches);
	if (d->lost)
		counter_add(t->counters, COUNTER_TOUCHES_LOST, 0, (int64_t)d->lost);
}

void tenant_drain(struct cache_tenant *t)
{
	struct pins_drained d = {0};

	pins_drain(&t->pins, TOUCHES_MAX, touch, t, &d);
	count_touches(t, &d);
}

void cache_pins_attach(struct cache_tenant *t, struct pin_page *p)
{
	loop_assert_owner(t->cache->loop);
	pins_attach(&t->pins, p);
}

void cache_pins_detach(struct cache_tenant *t, struct pin_page *p)
{
	struct pins_drained d = {0};

	loop_assert_owner(t->cache->loop);
	pins_drain_page(p, touch, t, &d);
	count_touches(t, &d);
	pins_detach(&t->pins, p);
	evict_ask_again(t->cache);
	evict_check(t->cache, t);
}

static void survey(void *userdata, struct kvg_handle h)
{
	struct cache_tenant *t = userdata;
	struct block *b = block_get(t, h);

	if (!b)
		return;
	if (b->seen_stamp != t->survey)
		b->seen_pins = 0;
	b->seen_stamp = t->survey;
	b->seen_pins++;
}

void tenant_survey(struct cache_tenant *t)
{
	uint64_t now = loop_now_ns();

	if (t->survey && now - t->survey_at_ns < SURVEY_AGE_NS)
		return;
	t->survey++;
	t->survey_at_ns = now;
	pins_each(&t->pins, survey, t);
}

/* ---- now and then ---- */

void tenant_gauges(struct cache_tenant *t)
{
	struct pool_stat st;

	t->gauges_stale = false;
	pool_tenant_stat(t->pool, &st);
	counter_set(t->counters, COUNTER_SEGMENTS, KVG_TIER_HOST, (int64_t)st.segments);
	counter_set(t->counters, COUNTER_RESIDENT, KVG_TIER_HOST, (int64_t)st.resident);
}

static void walk_floors(struct cache_tenant *t)
{
	for (unsigned n = 0; t->refloor && n < WALK_SLOTS; n++) {
		struct block *b = t->by_slot[--t->refloor];

		if (b && b->node.held)
			policy_set_droppable(
				t->policy, &b->node, block_droppable_from(b, b->layout->floor));
	}
}

void tenant_tick(struct cache_tenant *t)
{
	tenant_drain(t);
	walk_floors(t);
	index_sweep(t->index);
	replicas_tick(t);
	tenant_gauges(t);
	evict_check(t->cache, t);
}
