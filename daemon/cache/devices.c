/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The GPUs that the options name, each with a pool of its memory and a mover. What cannot be used is logged with its reason, and is not
 * there; the host's memory goes on without.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/replica_private.h"

/* What of a segment's size a device can do: a power of two, not more than it may have. */
static uint64_t segment_bytes(const struct tier_gpu *g, uint64_t wanted)
{
	while (wanted > g->limit)
		wanted /= 2;
	return wanted < g->granularity ? 0 : wanted;
}

/* Ids are the pool's own, whoever's segment it is. */
static int find_segment(void *userdata, uint8_t tier, uint32_t id, struct pool_segment *ret)
{
	const struct device *d = userdata;

	for (struct cache_tenant *t = d->cache->tenants; t; t = t->next) {
		const struct replica_set *s = replica_set_find(t, d->number);
		struct pool_tenant *p = tier == KVG_TIER_HOST ? t->pool : s ? s->pool : NULL;

		if (p && pool_segment_get(p, id, ret) == 0)
			return 0;
	}
	return -ENOENT;
}

static void segment_filled(void *userdata, uint8_t tier, uint32_t id)
{
	const struct device *d = userdata;

	for (struct cache_tenant *t = d->cache->tenants; t && tier == KVG_TIER_GPU; t = t->next) {
		const struct replica_set *s = replica_set_find(t, d->number);

		if (s)
			pool_segment_filled(s->pool, id);
	}
}

static struct device *device_free(struct device *d)
{
	copier_free(d->copier);
	pool_free(d->pool);
	free(d);
	return NULL;
}

static int device_new(
	struct cache *c, int ordinal, struct device **ret, char *ret_why, size_t why_size)
{
	const struct cache_gpu_options *o = &c->o.gpu;
	struct device *d = calloc(1, sizeof(*d));
	struct pool_options pool = {.numa_node = -1, .huge_pages = true, .watch = replica_watch};
	int r;

	if (!d)
		return -ENOMEM;
	d->cache = c;
	d->number = c->devices.n;
	r = tier_gpu_init(&d->gpu, c->devices.driver, ordinal, o->bytes, ret_why, why_size);
	if (r < 0) {
		free(d);
		return r;
	}
	pool.tier = &d->gpu.ops;
	pool.budget = d->gpu.limit;
	pool.segment_bytes = d->segment_bytes = segment_bytes(&d->gpu, c->o.segment_bytes);
	if (!pool.segment_bytes) {
		snprintf(ret_why, why_size,
			"gpu_bytes, or segment_bytes, is less than the %llu bytes that a segment "
			"has at least there",
			(unsigned long long)d->gpu.granularity);
		free(d);
		return -EINVAL;
	}
	r = pool_new(&pool, &d->pool);
	if (r == 0)
		r = copier_new(
			&(struct copier_options){
				.loop = c->loop,
				.program = o->mover,
				.library = o->library,
				.ordinal = ordinal,
				.pause_ns = o->mover_pause_ns,
				.segment = find_segment,
				.filled = segment_filled,
				.process = replica_keep_mover,
				.userdata = d,
			},
			&d->copier);
	if (r < 0)
		return device_free(d), r;
	*ret = d;
	return 0;
}

/* A device that cannot be used costs that device. */
static int add(struct cache *c, int ordinal)
{
	struct devices *all = &c->devices;
	char why[TIER_GPU_TEXT] = "";
	struct device *d;
	int r = device_new(c, ordinal, &d, why, sizeof(why));

	if (r < 0) {
		log_error("a GPU is not used", "device=%d why=\"%s\"", ordinal,
			why[0] ? why : strerror(-r));
		snprintf(all->why, sizeof(all->why), "device %d: %.*s", ordinal,
			(int)sizeof(all->why) - 32, why[0] ? why : strerror(-r));
		return r == -ENOMEM ? r : 0;
	}
	all->at[all->n++] = d;
	return 0;
}

static int add_listed(struct cache *c, const char *list)
{
	int r = 0;

	for (const char *at = list; *at && r == 0; at += *at == ',') {
		char *end;
		const long ordinal = strtol(at, &end, 10);

		if (end == at || ordinal < 0 || ordinal > 1000 || (*end && *end != ',')) {
			snprintf(c->devices.why, sizeof(c->devices.why),
				"gpu_devices is \"%.60s\": use all, or numbers separated by ','",
				list);
			log_error("no GPU is used", "why=\"%s\"", c->devices.why);
			return 0;
		}
		if (c->devices.n < TIER_GPUS_MAX)
			r = add(c, (int)ordinal);
		at = end;
	}
	return r;
}

int devices_init(struct cache *c)
{
	const struct cache_gpu_options *o = &c->o.gpu;
	struct devices *d = &c->devices;
	int n, r;

	if (!o->devices || !o->devices[0])
		return 0;
	r = tier_gpu_open_driver(o->library, &d->driver, &n, d->why, sizeof(d->why));
	if (r < 0) {
		log_warning("no GPU is used", "why=\"%s\"", d->why);
		return r == -ENOMEM ? r : 0;
	}
	if (strcmp(o->devices, "all"))
		return add_listed(c, o->devices);
	for (int i = 0; i < n && i < TIER_GPUS_MAX && r == 0; i++)
		r = add(c, i);
	return r;
}

/* What was on its way is not there. */
static void stop_copies(struct replica_set *s)
{
	for (struct replica *r = s->first, *next; r; r = next) {
		next = r->next;
		if (!r->coming)
			continue;
		while (r->waiters)
			cache_fetch_cancel(r->waiters);
		r->job.done(&r->job, -ESHUTDOWN);
	}
}

void devices_stop(struct cache *c)
{
	for (unsigned i = 0; i < c->devices.n; i++)
		c->devices.at[i]->copier = copier_free(c->devices.at[i]->copier);
	for (struct cache_tenant *t = c->tenants; t; t = t->next)
		for (struct replica_set *s = t->replicas; s; s = s->next)
			stop_copies(s);
}

void devices_fini(struct cache *c)
{
	struct devices *d = &c->devices;

	while (d->n)
		device_free(d->at[--d->n]);
	d->driver = tier_gpu_close_driver(d->driver);
}

void devices_tick(struct cache *c)
{
	for (unsigned i = 0; i < c->devices.n; i++)
		if (c->devices.at[i]->copier)
			copier_sweep(c->devices.at[i]->copier);
}

bool cache_device_get(const struct cache *c, unsigned device, struct cache_device_info *ret)
{
	const struct device *d = device < c->devices.n ? c->devices.at[device] : NULL;
	struct copier_stat s = {0};

	if (!d)
		return false;
	if (d->copier)
		copier_stat(d->copier, &s);
	*ret = (struct cache_device_info){
		.ordinal = d->gpu.ordinal,
		.bytes = d->gpu.bytes,
		.limit = d->gpu.limit,
		.segments = atomic_load(&d->gpu.open),
		.used = d->used,
		.copying = d->copying,
		.starts = s.starts,
		.mover = (int)s.pid,
		.ready = s.ready,
	};
	memcpy(ret->uuid, d->gpu.uuid, sizeof(ret->uuid));
	memcpy(ret->name, d->gpu.name, sizeof(ret->name));
	memcpy(ret->why, s.why, sizeof(ret->why));
	return true;
}

const char *cache_devices_why(const struct cache *c)
{
	return c->devices.n ? "" : c->devices.why;
}
