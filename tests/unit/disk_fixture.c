/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/disk_fixture.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/mem/disk_device.h"
#include "proto/plane.h"

/* ---- planes ---- */

static void key_make(uint32_t id, struct kvg_key *ret)
{
	memset(ret, 0, sizeof(*ret));
	for (unsigned i = 0; i < sizeof(ret->b); i++)
		ret->b[i] = (uint8_t)((id + 1) * 2654435761u >> (i % 4) * 8) ^ (uint8_t)i;
	memcpy(ret->b, &id, sizeof(id));
}

static void payload_make(struct plane *p)
{
	struct disk_record *r = &p->store.record;
	struct plane_geometry g;
	struct kvg_plane_header *h;
	uint32_t *words;

	plane_geometry(1, r->pairs, 0, 64, 64, 0, &g);
	r->bytes = p->bytes = (uint32_t)g.bytes;
	p->payload =
		aligned_alloc(DISK_PAGE, ((size_t)g.bytes + DISK_PAGE - 1) / DISK_PAGE * DISK_PAGE);
	assert(p->payload);
	memset(p->payload, 0, ((size_t)g.bytes + DISK_PAGE - 1) / DISK_PAGE * DISK_PAGE);
	words = p->payload;
	for (size_t i = KVG_PLANE_HEADER_BYTES / 4; i < g.bytes / 4; i++)
		words[i] = (uint32_t)(p->id * 40503u + i * 2654435761u);
	h = p->payload;
	*h = (struct kvg_plane_header){
		.version = KVG_SHM_VERSION,
		.plane = r->plane,
		.n_planes = r->n_planes,
		.key = r->key,
		.runs = 1,
		.tokens = r->tokens,
		.pairs = r->pairs,
		.k_row = 64,
		.v_row = 64,
		.bytes = g.bytes,
		.body_crc = crc32c(0, (const uint8_t *)p->payload + KVG_PLANE_HEADER_BYTES,
			g.bytes - KVG_PLANE_HEADER_BYTES),
		.mass = r->mass,
	};
	memcpy(h->magic, KVG_PLANE_MAGIC, sizeof(h->magic));
	plane_header_seal(h);
}

struct plane *plane_of(struct fixture *f, uint32_t id, uint32_t tenant, uint32_t bytes)
{
	struct plane *p = &f->plane[id];
	struct disk_record *r = &p->store.record;

	assert(id < PLANES_MAX);
	if (p->payload)
		return p;
	*p = (struct plane){.f = f, .id = id, .tenant = tenant, .wanted = true};
	key_make(id / 2, &r->key);
	if (id % 3) {
		r->has_parent = true;
		key_make(id + 100000, &r->parent);
	}
	r->plane = id % 2;
	r->n_planes = 2;
	r->note = 1 + tenant;
	r->tokens = 20000;
	r->depth = id;
	r->pairs = bytes / 132 ? bytes / 132 : 1;
	r->mass = (float)(id % 7) / 7;
	r->page_shift = 12;
	r->plane_pairs[r->plane] = r->pairs;
	payload_make(p);
	r->plane_bytes[r->plane] = r->bytes;
	return p;
}

static void stored(struct disk_store *s)
{
	struct plane *p = s->item;

	p->busy = false;
	p->f->in_flight--;
	p->error = s->error;
	if (s->error == 0) {
		p->there = true;
		p->lost = p->erased = false;
		p->at = s->place;
		assert(disk_there(p->at));
	}
}

int plane_store(struct plane *p)
{
	int r;

	assert(!p->busy);
	p->store.tenant = p->f->tenant[p->tenant];
	p->store.addr = p->payload;
	p->store.item = p;
	p->store.done = stored;
	r = disk_store(p->f->d, &p->store);
	if (r == 0) {
		p->busy = true;
		p->f->in_flight++;
	}
	return r;
}

void fix_wait(struct fixture *f)
{
	while (f->in_flight)
		loop_run_once(f->loop, -1);
}

int plane_put(struct plane *p)
{
	int r = plane_store(p);

	if (r < 0)
		return r;
	while (p->busy)
		loop_run_once(p->f->loop, -1);
	return p->error;
}

static void loaded(struct disk_load *l)
{
	l->place.device = 0;
}

int plane_get(struct plane *p)
{
	size_t room = ((size_t)p->bytes + DISK_PAGE - 1) / DISK_PAGE * DISK_PAGE;
	struct disk_load l = {
		.place = p->at,
		.addr = aligned_alloc(DISK_PAGE, room),
		.key = &p->store.record.key,
		.plane = p->store.record.plane,
		.done = loaded,
	};

	assert(l.addr);
	memset(l.addr, 0xee, room);
	disk_load(p->f->d, &l);
	assert(l.place.device == p->at.device);
	while (l.place.device)
		loop_run_once(p->f->loop, -1);
	if (l.error == 0)
		assert(!memcmp(l.addr, p->payload, p->bytes));
	free(l.addr);
	return l.error;
}

struct wait_sync {
	struct disk_sync s;
	bool over;
};

static void synced(struct disk_sync *s)
{
	((struct wait_sync *)s)->over = true;
}

int fix_sync(struct fixture *f)
{
	struct wait_sync w = {.s.done = synced};

	disk_sync(f->d, &w.s);
	assert(!w.over);
	while (!w.over)
		loop_run_once(f->loop, -1);
	return w.s.error;
}

/* ---- the owner ---- */

static bool keep(void *item, unsigned plane)
{
	struct plane *p = item;

	assert(p->there && p->store.record.plane == plane);
	if (p->wanted) {
		p->f->kept++;
		return true;
	}
	p->f->dropped++;
	p->there = false;
	return false;
}

static void moved(void *item, unsigned plane, struct disk_place to)
{
	struct plane *p = item;

	assert(p->there && p->store.record.plane == plane);
	p->f->moved++;
	p->at = to;
	if (!disk_there(to)) {
		p->there = false;
		p->lost = true;
	}
}

static size_t note(void *owner, uint32_t id, const void **ret)
{
	assert((uintptr_t)owner == id);
	*ret = NOTE_TEXT;
	return sizeof(NOTE_TEXT);
}

static void room(void *userdata)
{
	((struct fixture *)userdata)->rooms++;
}

static int found_tenant(void *userdata, const char *name, void **ret)
{
	unsigned long n = strtoul(name + 1, NULL, 10);

	(void)userdata;
	assert(name[0] == 't' && n < TENANTS_MAX);
	*ret = (void *)(n + 1);
	return 0;
}

static int found_note(void *userdata, void *owner, uint32_t id, const void *bytes, size_t n)
{
	struct fixture *f = userdata;

	assert((uintptr_t)owner == id && n == sizeof(NOTE_TEXT) && !memcmp(bytes, NOTE_TEXT, n));
	f->notes |= 1u << id;
	return 0;
}

static void *found_plane(
	void *userdata, void *owner, const struct disk_record *r, struct disk_place at)
{
	struct fixture *f = userdata;
	struct plane *p = &f->plane[r->depth];

	if (!(f->notes & 1u << (uintptr_t)owner))
		return NULL; /* a torn chunk: the record is there, and what it refers to is not */
	assert(r->depth < PLANES_MAX && p->payload && p->tenant + 1 == (uintptr_t)owner);
	assert(!memcmp(r, &p->store.record, sizeof(*r)));
	assert(!p->found++);
	p->there = true;
	p->at = at;
	return p;
}

/* ---- devices ---- */

void fix_new(struct fixture *f, unsigned n_devices, uint32_t segments)
{
	char why[256];

	*f = (struct fixture){.n_devices = n_devices};
	strcpy(f->dir,
		access("/dev/shm", W_OK) == 0 ? "/dev/shm/kvgate-disk-XXXXXX"
					      : "/tmp/kvgate-disk-XXXXXX");
	assert(mkdtemp(f->dir));
	for (unsigned i = 0; i < n_devices; i++) {
		snprintf(f->path[i], sizeof(f->path[i]), "%s/disk%u", f->dir, i);
		assert(disk_format(f->path[i], FMT_FIRST + (uint64_t)segments * SEGMENT + DISK_PAGE,
			       SEGMENT, false, why, sizeof(why)) == 0);
	}
	assert(loop_new(&f->loop) == 0);
	f->o = (struct disk_options){
		.loop = f->loop,
		.n_paths = n_devices,
		.in_flight_bytes = 1 << 20,
		.owner = {keep, moved, note, room, f},
	};
}

void fix_open(struct fixture *f)
{
	const struct disk_found found = {found_tenant, found_note, found_plane, f};
	const char *paths[FIX_DEVICES];
	char name[8];
	int r;

	for (unsigned i = 0; i < f->n_devices; i++)
		paths[i] = f->path[i];
	for (unsigned i = 0; i < PLANES_MAX; i++) {
		f->plane[i].found = 0;
		f->plane[i].there = f->plane[i].busy = false;
	}
	f->in_flight = f->notes = 0;
	f->o.paths = paths;
	r = disk_open(&f->o, &f->d, &f->bad);
	assert(r == 0);
	r = disk_recover(f->d, &found);
	assert(r == 0);
	for (uintptr_t i = 0; i < TENANTS_MAX; i++) {
		snprintf(name, sizeof(name), "t%u", (unsigned)i);
		r = disk_tenant_new(f->d, name, (void *)(i + 1), &f->tenant[i]);
		assert(r == 0);
	}
}

void fix_close(struct fixture *f)
{
	f->d = disk_close(f->d);
}

void fix_kill(struct fixture *f, bool cut)
{
	for (unsigned i = 0; cut && i < f->d->n_devices; i++)
		io_fault_cut(f->d->devices[i]->io);
	disk_drop(f->d);
	f->d = NULL;
}

void fix_free(struct fixture *f)
{
	fix_close(f);
	for (unsigned i = 0; i < PLANES_MAX; i++)
		free(f->plane[i].payload);
	for (unsigned i = 0; i < f->n_devices; i++)
		unlink(f->path[i]);
	rmdir(f->dir);
	f->loop = loop_free(f->loop);
}

struct disk_stat fix_stat(struct fixture *f)
{
	struct disk_stat st;

	disk_stat(f->d, &st);
	return st;
}
