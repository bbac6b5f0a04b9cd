/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/disk_ram.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/loop.h"
#include "proto/plane.h"

#define NOTES_MAX 64

struct disk_tenant {
	char name[256];
	void *owner;
	struct disk *disk;
	struct disk_tenant *next;
};

struct stored {
	struct disk_record record;
	char tenant[256];
	void *bytes, *item;
	bool there;
};

struct noted {
	char tenant[256];
	uint32_t number;
	size_t n;
	uint8_t bytes[DISK_NOTE_MAX];
};

struct disk {
	struct disk_owner owner;
	struct loop_timer *timer;
	struct disk_store *stores, **stores_end;
	struct disk_load *loads, **loads_end;
	struct disk_sync *syncs;
	struct disk_tenant *tenants;
};

struct disk_ram disk_ram = {.free_segments = 8, .segments = 8};
static struct stored item[DISK_RAM_ITEMS];
static unsigned n_items;
static struct noted *notes[NOTES_MAX];
static unsigned n_notes;

void disk_ram_reset(void)
{
	for (unsigned i = 0; i < n_items; i++)
		free(item[i].bytes);
	for (unsigned i = 0; i < n_notes; i++)
		free(notes[i]);
	memset(item, 0, sizeof(item));
	n_items = n_notes = 0;
	disk_ram = (struct disk_ram){.free_segments = 8, .segments = 8};
}

static uint64_t padded(uint64_t bytes)
{
	return (bytes + DISK_PAGE - 1) & ~(uint64_t)(DISK_PAGE - 1);
}

static void take_note(struct disk *d, const struct disk_store *s)
{
	struct noted *n;
	const void *bytes;

	for (unsigned i = 0; i < n_notes; i++)
		if (notes[i]->number == s->record.note &&
			!strcmp(notes[i]->tenant, s->tenant->name))
			return;
	assert(n_notes < NOTES_MAX);
	n = notes[n_notes++] = calloc(1, sizeof(*n));
	strcpy(n->tenant, s->tenant->name);
	n->number = s->record.note;
	n->n = d->owner.note(s->tenant->owner, s->record.note, &bytes);
	assert(n->n && n->n <= sizeof(n->bytes));
	memcpy(n->bytes, bytes, n->n);
}

static void end_store(struct disk *d, struct disk_store *s)
{
	struct stored *to = &item[n_items];

	s->error = disk_ram.store_error;
	if (!s->error) {
		assert(n_items < DISK_RAM_ITEMS);
		take_note(d, s);
		to->record = s->record;
		strcpy(to->tenant, s->tenant->name);
		to->bytes = malloc(padded(s->record.bytes));
		memcpy(to->bytes, s->addr, padded(s->record.bytes));
		to->item = s->item;
		to->there = true;
		s->place = (struct disk_place){.device = 1, .item = n_items++};
	}
	s->done(s);
}

static void end_load(struct disk_load *l)
{
	const struct stored *from = &item[l->place.item];
	const uint64_t bytes = padded(from->record.bytes);

	assert(from->there);
	disk_ram.order[disk_ram.loads++ % DISK_RAM_ITEMS] = l->plane;
	memcpy(l->addr, from->bytes, bytes);
	l->error = disk_ram.load_error;
	if (!l->error &&
		(plane_verify(l->addr, bytes) < 0 || from->record.plane != l->plane ||
			memcmp(&from->record.key, l->key, sizeof(*l->key))))
		l->error = -EBADMSG;
	l->done(l);
}

static struct disk_load *reversed(struct disk_load *l)
{
	struct disk_load *first = NULL;

	while (l) {
		struct disk_load *next = l->next;

		l->next = first;
		first = l;
		l = next;
	}
	return first;
}

void disk_ram_let_go(struct disk *d)
{
	struct disk_store *s = d->stores;
	struct disk_load *l = d->loads;
	struct disk_sync *y = d->syncs;

	d->stores = NULL;
	d->stores_end = &d->stores;
	d->loads = NULL;
	d->loads_end = &d->loads;
	d->syncs = NULL;
	while (s) {
		struct disk_store *next = s->next;

		end_store(d, s);
		s = next;
	}
	if (disk_ram.last_load_first)
		l = reversed(l);
	while (l) {
		struct disk_load *next = l->next;

		end_load(l);
		l = next;
	}
	while (y) {
		struct disk_sync *next = y->next;

		y->done(y);
		y = next;
	}
}

static void on_timer(void *userdata)
{
	struct disk *d = userdata;
	const bool stores = disk_ram.hold_stores, loads = disk_ram.hold_loads;
	struct disk_store *s = NULL;
	struct disk_load *l = NULL;

	if (stores) {
		s = d->stores;
		d->stores = NULL;
	}
	if (loads) {
		l = d->loads;
		d->loads = NULL;
	}
	disk_ram_let_go(d);
	if (s) {
		d->stores = s;
		for (d->stores_end = &d->stores; *d->stores_end;
			d->stores_end = &(*d->stores_end)->next)
			;
	}
	if (l) {
		d->loads = l;
		for (d->loads_end = &d->loads; *d->loads_end; d->loads_end = &(*d->loads_end)->next)
			;
	}
}

int disk_open(const struct disk_options *o, struct disk **ret, unsigned *ret_bad)
{
	struct disk *d = calloc(1, sizeof(*d));

	assert(d);
	d->owner = o->owner;
	d->stores_end = &d->stores;
	d->loads_end = &d->loads;
	assert(loop_add_timer(o->loop, on_timer, d, &d->timer) == 0);
	*ret_bad = 0;
	*ret = d;
	return 0;
}

struct disk *disk_close(struct disk *d)
{
	if (!d)
		return NULL;
	while (d->stores || d->loads || d->syncs)
		disk_ram_let_go(d);
	loop_del_timer(d->timer);
	while (d->tenants)
		disk_tenant_free(d->tenants);
	free(d);
	return NULL;
}

int disk_recover(struct disk *d, const struct disk_found *f)
{
	(void)d;
	for (unsigned i = 0; i < n_notes; i++) {
		void *owner;

		if (f->tenant(f->userdata, notes[i]->tenant, &owner) == 0)
			f->note(f->userdata, owner, notes[i]->number, notes[i]->bytes, notes[i]->n);
	}
	for (unsigned i = n_items; i-- > 0;) {
		void *owner;

		if (!item[i].there || f->tenant(f->userdata, item[i].tenant, &owner) < 0)
			continue;
		item[i].item = f->plane(f->userdata, owner, &item[i].record,
			(struct disk_place){.device = 1, .item = i});
		item[i].there = item[i].item != NULL;
	}
	return 0;
}

int disk_tenant_new(struct disk *d, const char *name, void *owner, struct disk_tenant **ret)
{
	struct disk_tenant *t = calloc(1, sizeof(*t));

	assert(t && strlen(name) < sizeof(t->name));
	strcpy(t->name, name);
	t->owner = owner;
	t->disk = d;
	t->next = d->tenants;
	*ret = d->tenants = t;
	return 0;
}

struct disk_tenant *disk_tenant_free(struct disk_tenant *t)
{
	struct disk_tenant **at = &t->disk->tenants;

	while (*at != t)
		at = &(*at)->next;
	*at = t->next;
	free(t);
	return NULL;
}

void disk_tenant_limit(struct disk_tenant *t, uint64_t bytes)
{
	(void)t;
	(void)bytes;
}

int disk_store(struct disk *d, struct disk_store *s)
{
	if (disk_ram.refuse_store)
		return disk_ram.refuse_store;
	if (disk_ram.stores_max && disk_ram.stores >= disk_ram.stores_max)
		return -ENOSPC;
	disk_ram.stores++;
	s->next = NULL;
	*d->stores_end = s;
	d->stores_end = &s->next;
	loop_arm(d->timer, 0, 0);
	return 0;
}

void disk_load(struct disk *d, struct disk_load *l)
{
	assert(disk_there(l->place));
	l->next = NULL;
	*d->loads_end = l;
	d->loads_end = &l->next;
	loop_arm(d->timer, 0, 0);
}

void disk_forget(struct disk *d, struct disk_place p)
{
	(void)d;
	assert(item[p.item].there);
	item[p.item].there = false;
	item[p.item].item = NULL;
}

void disk_erase(struct disk *d, struct disk_place p)
{
	disk_forget(d, p);
	disk_ram.erased++;
}

bool disk_erase_forgotten(struct disk_tenant *t)
{
	(void)t;
	return false; /* nothing is found again here */
}

void disk_sync(struct disk *d, struct disk_sync *s)
{
	s->error = 0;
	s->next = d->syncs;
	d->syncs = s;
	loop_arm(d->timer, 0, 0);
}

void disk_stat(const struct disk *d, struct disk_stat *ret)
{
	(void)d;
	*ret = (struct disk_stat){
		.free_segments = disk_ram.free_segments,
		.segments = disk_ram.segments,
		.live = disk_ram_live(),
	};
}

unsigned disk_ram_clean(struct disk *d)
{
	unsigned asked = 0;

	for (unsigned i = 0; i < n_items; i++) {
		if (!item[i].there)
			continue;
		asked++;
		if (!d->owner.keep(item[i].item, item[i].record.plane))
			item[i].there = false;
	}
	return asked;
}

unsigned disk_ram_live(void)
{
	unsigned n = 0;

	for (unsigned i = 0; i < n_items; i++)
		n += item[i].there;
	return n;
}

static struct stored *next_copy(const struct kvg_key *key, unsigned plane, unsigned *at)
{
	for (; *at < n_items; ++*at)
		if (item[*at].there && item[*at].record.plane == plane &&
			!memcmp(&item[*at].record.key, key, sizeof(*key)))
			return &item[(*at)++];
	return NULL;
}

void disk_ram_damage(const struct kvg_key *key, unsigned plane)
{
	struct stored *s;

	for (unsigned at = 0; (s = next_copy(key, plane, &at));)
		((uint8_t *)s->bytes)[s->record.bytes - 1] ^= 1;
}

void disk_ram_forge(const struct kvg_key *key, unsigned plane)
{
	struct stored *s;

	for (unsigned at = 0; (s = next_copy(key, plane, &at));) {
		struct kvg_plane_header h;

		memcpy(&h, s->bytes, sizeof(h));
		h.fingerprint[0] ^= 1;
		plane_header_seal(&h);
		memcpy(s->bytes, &h, sizeof(h));
	}
}
