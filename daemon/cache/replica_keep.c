/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Replicas over a restart. A table and segments are parked when they come to be; of the mover its process is, because it
 * may outlive the daemon by a moment, and a copy that it was in the middle of goes to pages that nobody is said to have.
 *
 * The next daemon ends that process first. Then a plane is there if everything says so: the block is there, under this
 * generation, and holds that plane; the entry's word and the ref's check say so; size and pairs are the plane's; it lies in a segment
 * of this tenant and device, and no other plane lies there. Else it is not, which costs a copy.
 *
 * A plane that the word does not show any more, of a block that somebody pins, was perhaps about to be put back: its reader may be at
 * it still. Its pages stay out of use until nobody pins it, and are not shown.
 */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/park.h"
#include "daemon/cache/parked.h"
#include "daemon/cache/replica_private.h"
#include "daemon/mem/pool_adopt.h"
#include "proto/plane.h"

#define MOVER_ENDS_MS 5000 /* a driver may take long to let a process go */

/* ---- what is put into the keeper's hands ---- */

static struct parked parked_of(const struct device *d, enum parked_kind kind, uint64_t tenant)
{
	struct parked p = {.kind = kind, .n = {tenant}};
	const unsigned at = kind == PARKED_GPU_SEGMENT ? PARKED_GPU_DEVICE : PARKED_DEVICE;

	memcpy(&p.n[at], d->gpu.uuid, sizeof(d->gpu.uuid));
	return p;
}

static void segment_name(
	const struct replica_set *s, uint32_t id, unsigned page_shift, char ret[PARK_NAME_MAX + 1])
{
	struct parked p = parked_of(s->device, PARKED_GPU_SEGMENT, s->tenant->number);

	p.n[PARKED_ID] = id;
	p.n[PARKED_SHIFT] = page_shift;
	p.n[PARKED_BYTES] = s->device->segment_bytes;
	parked_name(&p, ret);
}

static void segment_added(void *owner, uint32_t id, unsigned page_shift, int fd)
{
	struct replica_set *s = owner;
	char name[PARK_NAME_MAX + 1];

	if (id > atomic_load(&s->table.head->last_segment))
		atomic_store(&s->table.head->last_segment, id);
	segment_name(s, id, page_shift, name);
	park_put(s->tenant->cache->o.park, name, fd);
}

static void segment_removed(void *owner, uint32_t id, unsigned page_shift)
{
	struct replica_set *s = owner;
	char name[PARK_NAME_MAX + 1];

	segment_name(s, id, page_shift, name);
	park_drop(s->tenant->cache->o.park, name);
}

const struct pool_watch replica_watch = {.added = segment_added, .removed = segment_removed};

static void table_name(const struct replica_set *s, char ret[PARK_NAME_MAX + 1])
{
	const struct parked p = parked_of(s->device, PARKED_REPLICAS, s->tenant->number);

	parked_name(&p, ret);
}

void replica_keep_table(struct replica_set *s, bool fresh)
{
	char name[PARK_NAME_MAX + 1];

	if (!s->tenant->catalog)
		return;
	pool_tenant_own(s->pool, s);
	table_name(s, name);
	if (fresh)
		park_put(s->tenant->cache->o.park, name, s->table.fd);
}

void replica_forget_table(struct replica_set *s)
{
	char name[PARK_NAME_MAX + 1];

	if (!s->tenant->catalog || s->table.fd < 0)
		return;
	table_name(s, name);
	park_drop(s->tenant->cache->o.park, name);
}

void replica_keep_mover(void *device, int pidfd)
{
	struct device *d = device;
	const struct parked p = parked_of(d, PARKED_MOVER, 0);
	struct park *park = d->cache->o.park;
	char name[PARK_NAME_MAX + 1];

	if (!park || !park_active(park))
		return;
	parked_name(&p, name);
	if (pidfd >= 0)
		park_put(park, name, pidfd);
	else
		park_drop(park, name);
}

/* ---- what the last daemon left ---- */

static bool is_of(const struct device *d, const struct parked *p)
{
	const unsigned at = p->kind == PARKED_GPU_SEGMENT ? PARKED_GPU_DEVICE : PARKED_DEVICE;

	return !memcmp(&p->n[at], d->gpu.uuid, sizeof(d->gpu.uuid));
}

/* False: it does not end. */
static bool end_process(int pidfd)
{
	struct pollfd p = {.fd = pidfd, .events = POLLIN};

	syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, NULL, 0);
	return poll(&p, 1, MOVER_ENDS_MS) == 1;
}

/* It went by the name that our own mover has by now: that one is put again. */
void devices_adopt(struct cache *c)
{
	struct parked p;
	const char *name;

	for (unsigned at = 0; c->o.park && (name = park_name(c->o.park, at)); at++) {
		struct copier_stat s;
		bool ended;
		int fd;

		if (!parked_parse(name, &p) || p.kind != PARKED_MOVER)
			continue;
		fd = park_take(c->o.park, at);
		if (fd < 0)
			continue;
		ended = end_process(fd);
		close(fd);
		park_drop(c->o.park, name);
		for (unsigned i = 0; i < c->devices.n; i++) {
			struct device *d = c->devices.at[i];

			if (!is_of(d, &p))
				continue;
			d->haunted |= !ended;
			copier_stat(d->copier, &s);
			if (s.pidfd >= 0)
				park_put(c->o.park, name, s.pidfd);
		}
		if (!ended)
			log_error("the last daemon's kvgate-mover does not end: what it had on its "
				  "GPU is not used",
				"name=%s", name);
	}
}

/* *ret -1: there is none, or it cannot be used. */
static void take_fd(struct cache *c, unsigned at, const char *name, int *ret)
{
	*ret = park_take(c->o.park, at);
	if (*ret < 0)
		log_warning("a file descriptor of a GPU is there twice", "name=%s", name);
}

static void refuse(struct cache *c, const char *name, int fd)
{
	log_warning("what the last daemon had on a GPU cannot be taken over", "name=%s", name);
	park_drop(c->o.park, name);
	close(fd);
}

static int adopt_table(struct cache_tenant *t, struct device *d, struct replica_set **ret)
{
	struct cache *c = t->cache;
	struct parked p;
	const char *name;

	*ret = NULL;
	for (unsigned at = 0; (name = park_name(c->o.park, at)); at++) {
		int fd, r;

		if (!parked_parse(name, &p) || p.kind != PARKED_REPLICAS ||
			p.n[PARKED_TENANT] != t->number || !is_of(d, &p) || *ret)
			continue;
		take_fd(c, at, name, &fd);
		if (fd < 0)
			continue;
		r = d->haunted ? -EBADMSG : replica_set_new(t, d, fd, ret);
		if (r == -EBADMSG)
			refuse(c, name, fd);
		else if (r < 0)
			return close(fd), r;
	}
	return 0;
}

static int add_segments(struct replica_set *s, struct pool_adoption *a)
{
	struct cache *c = s->tenant->cache;
	struct parked p;
	const char *name;

	for (unsigned at = 0; (name = park_name(c->o.park, at)); at++) {
		int fd, r;

		if (!parked_parse(name, &p) || p.kind != PARKED_GPU_SEGMENT ||
			p.n[PARKED_TENANT] != s->tenant->number || !is_of(s->device, &p))
			continue;
		take_fd(c, at, name, &fd);
		if (fd < 0)
			continue;
		r = p.n[PARKED_ID] > atomic_load(&s->table.head->last_segment) ||
				p.n[PARKED_SHIFT] > 63 ||
				p.n[PARKED_BYTES] != s->device->segment_bytes
			? -EBADMSG
			: pool_adoption_add(a, (uint32_t)p.n[PARKED_ID],
				  (unsigned)p.n[PARKED_SHIFT], p.n[PARKED_BYTES], fd);
		if (r == -ENOMEM)
			return close(fd), r;
		if (r < 0)
			refuse(c, name, fd);
	}
	return 0;
}

struct found {
	uint8_t shown, hidden;
	struct extent extent[KVG_PLANES_MAX];
};

/* Its refs as they are, of planes that the block holds. */
static void look(const struct replica_set *s, const struct block *b, bool pinned, struct found *ret)
{
	const struct kvg_shm_replica *e = &s->table.entries[b->handle.slot];
	const uint64_t word = atomic_load_explicit(&e->word, memory_order_relaxed);
	const bool live = (word & KVG_ENTRY_LIVE) && kvg_word_gen(word) == b->handle.gen;

	*ret = (struct found){0};
	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];
		const bool shown = live && kvg_word_mapped(word) >> p & 1;

		if (!(b->held >> p & 1) || !(shown || pinned) || r->tier != KVG_TIER_GPU ||
			r->check != plane_ref_check(r, p, b->handle.gen) ||
			r->bytes != b->plane[p].bytes || r->pairs != b->plane[p].pairs ||
			r->page_shift < 12 || r->page_shift > 21)
			continue;
		ret->extent[p] = (struct extent){
			.segment = r->segment,
			.page = r->page,
			.pages = (uint32_t)((r->bytes + (1ull << r->page_shift) - 1) >>
				r->page_shift),
			.page_shift = r->page_shift,
		};
		if (shown)
			ret->shown |= (uint8_t)(1u << p);
		else
			ret->hidden |= (uint8_t)(1u << p);
	}
}

/* What lies nowhere is not there. */
static void claim(struct pool_adoption *a, struct found *f)
{
	for (uint32_t p = 0; p < KVG_PLANES_MAX; p++) {
		const uint8_t bit = (uint8_t)(1u << p);

		if ((f->shown | f->hidden) & bit && pool_adoption_mark(a, &f->extent[p]) < 0) {
			f->shown &= (uint8_t)~bit;
			f->hidden &= (uint8_t)~bit;
		}
		f->extent[p].addr = NULL;
	}
}

static int settle(struct replica_set *s, struct pool_adoption *a, struct block *b, struct found *f)
{
	for (uint32_t p = 0; p < KVG_PLANES_MAX; p++) {
		const uint8_t bit = (uint8_t)(1u << p);

		if (!((f->shown | f->hidden) & bit))
			continue;
		if (pool_adoption_clashes(a, &f->extent[p])) {
			f->shown &= (uint8_t)~bit;
			f->hidden &= (uint8_t)~bit;
		} else {
			pool_adoption_take(a, &f->extent[p]);
		}
	}
	replica_table_set(&s->table, b->handle, f->shown);
	return f->shown | f->hidden
		? replica_adopt(s, b, f->shown | f->hidden, f->hidden, f->extent)
		: 0;
}

static int adopt_planes(
	struct replica_set *s, struct pool_adoption *a, const struct cache_pinned *pinned)
{
	const uint32_t end = (uint32_t)index_slots_used_end(s->tenant->index);
	struct found *found = calloc((size_t)end + 1, sizeof(*found));
	uint64_t n = 0;
	int r = 0;

	if (!found)
		return -ENOMEM;
	for (uint32_t slot = 0; slot < end; slot++) {
		const struct block *b = s->tenant->by_slot[slot];

		if (!b)
			continue;
		look(s, b,
			pinned && pinned->pinned &&
				pinned->pinned(pinned->userdata, s->tenant->number, b->handle),
			&found[slot]);
		claim(a, &found[slot]);
	}
	for (uint32_t slot = 0; slot < end && r == 0; slot++) {
		struct block *b = s->tenant->by_slot[slot];

		if (b)
			r = settle(s, a, b, &found[slot]);
		else if (atomic_load_explicit(&s->table.entries[slot].word, memory_order_relaxed))
			replica_table_set(&s->table, (struct kvg_handle){.slot = slot}, 0);
		n += b && found[slot].shown;
	}
	free(found);
	log_info("a tenant's replicas are taken over from the last daemon",
		"tenant=%s device=%d blocks=%llu", s->tenant->name, s->device->gpu.ordinal,
		(unsigned long long)n);
	return r;
}

int replicas_adopt(struct cache_tenant *t, const struct cache_pinned *pinned)
{
	int r = 0;

	for (unsigned i = 0; i < t->cache->devices.n && t->cache->o.park && r == 0; i++) {
		struct pool_adoption *a;
		struct replica_set *s;

		r = adopt_table(t, t->cache->devices.at[i], &s);
		if (r < 0 || !s)
			continue;
		r = pool_adoption_new(s->pool, &a);
		if (r < 0)
			break;
		r = add_segments(s, a);
		if (r == 0)
			r = adopt_planes(s, a, pinned);
		if (r == 0)
			pool_adoption_finish(a, atomic_load(&s->table.head->last_segment) + 1);
		pool_adoption_free(a);
	}
	return r;
}
