/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A replica is a block's planes on one device, the best ones, each in pages of that device's pool.
 *
 *	replicate	pages from the pool, job to the copier, block->uses++	plane is `coming`: nobody sees it
 *	done		place refs, larger word, block->uses--			plane is `there`
 *	drop		smaller word (the index said so before, and nobody has it pinned), pages back
 *	pressure	smaller word, fence, scan, pages back			replica_room.c
 *
 * As long as planes are on their way the block is in use, so neither it nor a plane of it goes on the host: what the mover reads is
 * what was committed. What goes on the host goes here in the same step, after the same look at the pins: a reader takes from a
 * device only what the word that he pinned holds. A plane that the host sends down to the disk stays on the device.
 *
 * Nothing here is needed: every failure ends with a plane that is not there.
 */
#include "daemon/cache/replica.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/replica_private.h"
#include "proto/plane.h"

#define COPYING_SHARE 4 /* of a device, 1 / this may be on its way */
#define ROOM_ROUNDS   8 /* for one plane */

struct replica_set *replica_set_find(const struct cache_tenant *t, unsigned device)
{
	struct replica_set *s = t->replicas;

	while (s && s->device->number != device)
		s = s->next;
	return s;
}

/* ---- the set's ring ---- */

static void ring_add(struct replica *r)
{
	struct replica_set *s = r->set;

	r->next = NULL;
	r->prev = s->last;
	if (s->last)
		s->last->next = r;
	else
		s->first = r;
	s->last = r;
}

static void ring_take(struct replica *r)
{
	struct replica_set *s = r->set;

	if (r->prev)
		r->prev->next = r->next;
	else
		s->first = r->next;
	if (r->next)
		r->next->prev = r->prev;
	else
		s->last = r->prev;
}

void replica_to_back(struct replica *r)
{
	ring_take(r);
	ring_add(r);
}

/* ---- life ---- */

static void account(struct replica *r, uint64_t bytes, int sign)
{
	r->set->used += (uint64_t)sign * bytes;
	r->set->device->used += (uint64_t)sign * bytes;
	counter_add(r->block->layout->counters, COUNTER_BYTES, KVG_TIER_GPU, sign * (int64_t)bytes);
}

static struct replica *replica_new(struct replica_set *s, struct block *b)
{
	struct replica *r = calloc(1, sizeof(*r));

	if (!r)
		return NULL;
	r->set = s;
	r->block = b;
	s->by_slot[b->handle.slot] = r;
	b->replicas |= (uint16_t)(1u << s->device->number);
	ring_add(r);
	return r;
}

static void replica_free(struct replica *r)
{
	struct replica_set *s = r->set;

	assert(!r->there && !r->coming && !r->waiters);
	s->by_slot[r->block->handle.slot] = NULL;
	r->block->replicas &= (uint16_t) ~(1u << s->device->number);
	ring_take(r);
	free(r);
}

static void give_pages(struct replica *r, uint8_t planes)
{
	for (uint32_t p = 0; p < r->block->n_planes; p++)
		if (planes >> p & 1) {
			account(r, extent_bytes(&r->extent[p]), -1);
			pool_release(r->set->pool, &r->extent[p]);
			r->extent[p] = (struct extent){0};
		}
}

void replica_release(struct replica *r, uint8_t planes)
{
	assert(!(planes & ~r->there));
	give_pages(r, planes);
	r->there &= (uint8_t)~planes;
	r->hidden &= (uint8_t)~planes;
	if (!r->there && !r->coming)
		replica_free(r);
}

void replicas_drop(struct block *b, uint8_t planes)
{
	for (struct replica_set *s = b->replicas ? b->tenant->replicas : NULL; s; s = s->next) {
		struct replica *r = replica_of(s, b);
		const uint8_t gone = r ? r->there & planes : 0;

		if (!gone)
			continue;
		assert(!r->coming);
		replica_table_set(&s->table, b->handle, r->there & (uint8_t) ~(gone | r->hidden));
		replica_release(r, gone);
	}
}

/* ---- sets ---- */

void replica_set_free(struct replica_set *s)
{
	struct replica_set **at = &s->tenant->replicas;

	while (*at && *at != s)
		at = &(*at)->next;
	if (*at)
		*at = s->next;
	while (s->first) {
		struct replica *r = s->first;

		assert(!r->coming);
		for (uint32_t p = 0; p < r->block->n_planes; p++)
			if (r->there >> p & 1)
				account(r, extent_bytes(&r->extent[p]), -1);
		r->there = r->hidden = 0;
		replica_free(r);
	}
	pool_tenant_free(s->pool);
	replica_forget_table(s);
	replica_table_fini(&s->table);
	if (s->by_slot)
		munmap(s->by_slot, index_slots(s->tenant->index) * sizeof(*s->by_slot));
	free(s);
}

int replica_set_new(struct cache_tenant *t, struct device *d, int fd, struct replica_set **ret)
{
	struct replica_set *s = calloc(1, sizeof(*s));
	void *p;
	int r;

	if (!s)
		return -ENOMEM;
	s->tenant = t;
	s->device = d;
	s->table.fd = s->table.read_fd = -1;
	p = mmap(NULL, index_slots(t->index) * sizeof(*s->by_slot), PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	r = p == MAP_FAILED ? -errno : 0;
	s->by_slot = r == 0 ? p : NULL;
	if (r == 0)
		r = fd < 0 ? replica_table_new(&s->table, t->index, d->gpu.uuid)
			   : replica_table_adopt(&s->table, t->index, d->gpu.uuid, fd);
	if (r == 0)
		r = pool_tenant_new(d->pool, &s->pool);
	if (r < 0) {
		if (fd >= 0)
			s->table.fd = -1; /* the caller's still */
		replica_set_free(s);
		return r;
	}
	s->next = t->replicas;
	t->replicas = s;
	replica_keep_table(s, fd < 0);
	*ret = s;
	return 0;
}

void replicas_leave(struct cache_tenant *t)
{
	while (t->replicas)
		replica_set_free(t->replicas);
}

static bool agrees(const struct replica *r)
{
	const struct block *b = r->block;
	const struct kvg_shm_replica *e = &r->set->table.entries[b->handle.slot];
	const uint8_t shown = r->there & (uint8_t)~r->hidden;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct kvg_shm_plane_ref *ref = &e->plane[p];
		const struct extent *x = &r->extent[p];

		if (!x->pages != !((r->there | r->coming) >> p & 1))
			return false;
		if (shown >> p & 1 &&
			(ref->segment != x->segment || ref->page != x->page ||
				ref->bytes != b->plane[p].bytes ||
				ref->check != plane_ref_check(ref, p, b->handle.gen)))
			return false;
	}
	return replica_of(r->set, b) == r && b->replicas >> r->set->device->number & 1 &&
		!(r->there & r->coming) && !(r->there & ~b->held) && !(r->hidden & ~r->there) &&
		!(r->coming && !b->uses) &&
		e->word == (shown ? kvg_word(b->handle.gen, 1, 0, shown) : 0);
}

bool replicas_agree(const struct cache_tenant *t)
{
	for (const struct replica_set *s = t->replicas; s; s = s->next) {
		uint64_t used = 0;
		struct pool_stat st;

		for (const struct replica *r = s->first; r; r = r->next) {
			if (!agrees(r))
				return false;
			for (uint32_t p = 0; p < r->block->n_planes; p++)
				used += extent_bytes(&r->extent[p]);
		}
		pool_tenant_stat(s->pool, &st);
		if (used != s->used || used != st.used)
			return false;
	}
	return true;
}

void replicas_tick(struct cache_tenant *t)
{
	uint64_t segments = 0, bytes = 0;
	struct pool_stat st;

	for (struct replica_set *s = t->replicas; s; s = s->next) {
		pool_tenant_stat(s->pool, &st);
		segments += st.segments;
		bytes += st.segments * s->device->segment_bytes;
	}
	if (!t->replicas)
		return;
	counter_set(t->counters, COUNTER_SEGMENTS, KVG_TIER_GPU, (int64_t)segments);
	counter_set(t->counters, COUNTER_RESIDENT, KVG_TIER_GPU, (int64_t)bytes);
}

int replica_adopt(struct replica_set *s, struct block *b, uint8_t there, uint8_t hidden,
	const struct extent extent[KVG_PLANES_MAX])
{
	struct replica *r = replica_new(s, b);

	if (!r)
		return -ENOMEM;
	r->there = there;
	r->hidden = hidden;
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (there >> p & 1) {
			r->extent[p] = extent[p];
			account(r, extent_bytes(&r->extent[p]), 1);
		}
	return 0;
}

/* ---- the end of a copy ---- */

static void tell(struct replica *r, uint8_t planes, int error)
{
	struct cache_fetch *f, *next;

	for (f = r->waiters; f; f = next) {
		const uint8_t mine = f->waiting & planes;

		next = f->next;
		if (!mine)
			continue;
		f->waiting &= (uint8_t)~mine;
		if (error)
			f->error = error;
		if (!f->waiting) {
			*f->link = f->next;
			if (f->next)
				f->next->link = f->link;
			f->link = NULL;
		}
		f->arrived(f, mine);
	}
}

static void show(struct replica *r, uint8_t planes)
{
	struct block *b = r->block;

	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct extent *e = &r->extent[p];

		if (!(planes >> p & 1))
			continue;
		replica_table_place(&r->set->table, b->handle, p,
			&(struct kvg_shm_plane_ref){.bytes = b->plane[p].bytes,
				.segment = e->segment,
				.page = e->page,
				.pairs = b->plane[p].pairs,
				.tier = KVG_TIER_GPU,
				.page_shift = e->page_shift});
		counter_add(b->layout->counters, COUNTER_REPLICATED, p, 1);
	}
	r->there |= planes;
	replica_table_set(&r->set->table, b->handle, r->there & (uint8_t)~r->hidden);
}

static void on_copied(struct copier_job *job, int error)
{
	struct replica *r = (struct replica *)((char *)job - offsetof(struct replica, job));
	struct block *b = r->block;
	const uint8_t came = r->coming;
	/* what was found damaged on the way is of no use to anybody */
	const uint8_t good = error ? 0 : came & block_shown(b);

	r->set->device->copying -= job->bytes;
	r->coming = 0;
	b->uses--;
	give_pages(r, came & (uint8_t)~good);
	if (good)
		show(r, good);
	if (error)
		counter_add(b->layout->counters, COUNTER_REPLICAS_FAILED, 0, 1);
	tell(r, came, error);
	evict_ask_again(b->tenant->cache);
	if (!r->there)
		replica_free(r);
}

/* ---- asking ---- */

static int take_pages(struct replica *r, uint32_t p)
{
	struct replica_set *s = r->set;
	struct cache *c = s->tenant->cache;
	struct block *b = r->block;
	const uint64_t bytes = extent_bytes(&b->plane[p].extent), limit = c->o.gpu.tenant_bytes;
	int error = -ENOSPC;

	for (unsigned n = 0; n <= ROOM_ROUNDS && error == -ENOSPC; n++) {
		if (n && !replica_make_room(s, bytes, replica_worth(b, p)))
			break;
		if (limit && s->used + bytes > limit)
			continue;
		pool_reserve(s->device->pool, 0); /* what another tenant left empty is closed */
		error = pool_alloc(s->pool, bytes, b->plane[p].extent.page_shift, &r->extent[p]);
	}
	if (error == 0)
		account(r, bytes, 1);
	return error;
}

static void add_range(struct replica *r, uint32_t p)
{
	const struct extent *from = &r->block->plane[p].extent, *to = &r->extent[p];

	r->job.range[r->job.n++] = (struct mover_range){
		.from = (uint64_t)from->page << from->page_shift,
		.to = (uint64_t)to->page << to->page_shift,
		.bytes = extent_bytes(from),
		.from_segment = from->segment,
		.to_segment = to->segment,
		.from_tier = KVG_TIER_HOST,
		.to_tier = KVG_TIER_GPU,
	};
	r->job.page_shift = from->page_shift;
	r->job.bytes += extent_bytes(from);
	r->coming |= (uint8_t)(1u << p);
}

/* The best of them that there is room for. */
static int begin(struct replica *r, uint8_t planes)
{
	struct device *d = r->set->device;
	int error = 0;

	r->job.n = 0;
	r->job.bytes = 0;
	r->block->uses++; /* while room is made, too */
	for (uint32_t p = 0; p < r->block->n_planes && error == 0; p++) {
		if (!(planes >> p & 1))
			continue;
		error = take_pages(r, p);
		if (error == 0)
			add_range(r, p);
	}
	if (!r->coming) {
		r->block->uses--;
		return error;
	}
	r->job.done = on_copied;
	d->copying += r->job.bytes;
	copier_start(d->copier, &r->job);
	return error;
}

static void wait_for(struct replica *r, uint8_t planes, struct cache_fetch *f)
{
	f->waiting = planes;
	f->next = r->waiters;
	f->link = &r->waiters;
	if (f->next)
		f->next->link = &f->next;
	r->waiters = f;
}

/* Planes that are on their way; *ret_error: why others are not. */
static uint8_t replicate(struct replica_set *s, struct block *b, float retention,
	struct replica **ret, int *ret_error)
{
	struct device *d = s->device;
	const uint8_t wanted = block_share(b, retention) & block_readable(b);
	struct replica *r = replica_of(s, b);
	uint8_t missing = wanted & (uint8_t) ~(r ? r->there | r->coming : 0);

	if (r)
		replica_to_back(r);
	if (missing && r && r->coming) { /* one copy of a block at a time */
		*ret_error = -EBUSY;
		missing = 0;
	}
	if (missing && d->copying >= d->gpu.limit / COPYING_SHARE) {
		*ret_error = -EBUSY;
		missing = 0;
	}
	if (missing && !d->copier) {
		*ret_error = -ENODEV;
		missing = 0;
	}
	if (missing && !r) {
		r = replica_new(s, b);
		if (!r) {
			*ret_error = -ENOMEM;
			return 0;
		}
	}
	if (missing)
		*ret_error = begin(r, missing);
	if (r && !r->there && !r->coming) {
		replica_free(r);
		return 0;
	}
	*ret = r;
	return r ? r->coming & wanted : 0;
}

uint8_t cache_replicate(struct cache_tenant *t, struct kvg_handle h, unsigned device,
	float retention, struct cache_fetch *f)
{
	struct replica_set *s = replica_set_find(t, device);
	struct block *b;
	struct replica *r = NULL;
	uint8_t coming;
	int error = 0;

	loop_assert_owner(t->cache->loop);
	if (f) {
		f->waiting = 0;
		f->link = NULL;
	}
	b = block_get(t, h);
	coming = s && b ? replicate(s, b, retention, &r, &error) : 0;
	if (f) {
		f->error = error;
		if (coming)
			wait_for(r, coming, f);
	}
	return coming;
}

uint8_t cache_replicas(struct cache_tenant *t, struct kvg_handle h, unsigned device)
{
	const struct replica_set *s = replica_set_find(t, device);
	const struct block *b = block_get(t, h);
	const struct replica *r = s && b ? replica_of(s, b) : NULL;

	return r ? r->there & (uint8_t)~r->hidden & block_shown(b) : 0;
}

int cache_device_open(struct cache_tenant *t, unsigned device, int *ret_fd)
{
	struct devices *d = &t->cache->devices;
	struct replica_set *s = replica_set_find(t, device);
	int r = 0;

	loop_assert_owner(t->cache->loop);
	if (device >= d->n)
		return -ENOENT;
	if (!s)
		r = replica_set_new(t, d->at[device], -1, &s);
	if (r == 0)
		*ret_fd = s->table.read_fd;
	return r;
}

int cache_device_segment(
	struct cache_tenant *t, unsigned device, uint32_t id, struct cache_segment_info *ret)
{
	const struct replica_set *s = replica_set_find(t, device);
	struct pool_segment p;
	int r = s ? pool_segment_get(s->pool, id, &p) : -ENOENT;

	if (r == 0 && p.fresh) /* what the device had there is still in it */
		r = -ENOENT;
	if (r == 0)
		*ret = (struct cache_segment_info){.id = p.id,
			.page_shift = p.page_shift,
			.tier = p.tier,
			.bytes = p.bytes,
			.fd = p.fd};
	return r;
}
