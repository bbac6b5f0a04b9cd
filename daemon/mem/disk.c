/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The log store: what is promised in disk.h, put together from
 *
 *	disk_format    the bytes, made and checked
 *	disk_device    a file or block device: lock, superblock, requests, and whether it still answers
 *	disk_segment   the life of a segment
 *	disk_append    chunks: stores of one turn of the loop in one write
 *	disk_load      reading a plane back
 *	disk_edit      DEAD flags of what was erased
 *	disk_clean     room
 *	disk_recover   reading summaries; disk_found tells the owner of them
 *	disk_check     for kvgatectl
 *
 * Everything runs on the loop's thread, in turns: what stores, forgets and ends of requests leave to do is done when the timer
 * brings the next turn. So no function of an owner is ever called from within one of ours that he called.
 *
 * Epochs answer a sync: whatever changes a device counts in the epoch in which it was begun. When everything of an epoch, and of
 * those before, is over, its syncs go to the devices.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"

#define LOG_EVERY_NS 10000000000u
#define DAY_SECONDS  86400.0

/* ---- turns ---- */

void disk_wake(struct disk *d)
{
	if (d->turn_wanted)
		return;
	d->turn_wanted = true;
	if (d->timer)
		loop_arm(d->timer, 0, 0);
}

void disk_defer(struct disk *d, struct io_request *r)
{
	r->next = NULL;
	*d->deferred_end = r;
	d->deferred_end = &r->next;
	disk_wake(d);
}

void disk_deliver(struct disk *d)
{
	struct io_request *r = d->deferred, *next;

	d->deferred = NULL;
	d->deferred_end = &d->deferred;
	for (; r; r = next) {
		next = r->next;
		r->done(r);
	}
}

bool disk_log_now(uint64_t *at)
{
	uint64_t now = loop_now_ns();

	if (*at && now - *at < LOG_EVERY_NS)
		return false;
	*at = now;
	return true;
}

/* A device that was given up: what is being loaded is told of when the load ends. */
static void tell_lost(struct disk *d, struct disk_device *dev)
{
	dev->lost = false;
	for (uint32_t k = 0; k < dev->super.n_segments; k++) {
		struct disk_segment *s = &dev->segments[k];

		for (uint32_t i = 0; s->live && i < s->n_items; i++) {
			if (!(s->items[i].flags & ITEM_LIVE) || s->items[i].loads)
				continue;
			item_drop(s, i);
			d->o.owner.moved(
				s->items[i].item, s->items[i].plane, (struct disk_place){0});
		}
	}
}

static void reap_tenants(struct disk *d)
{
	struct disk_tenant **at = &d->tenants, *t;

	while ((t = *at)) {
		if (!t->gone || t->n_segments || t->n_chunks) {
			at = &t->next;
			continue;
		}
		*at = t->next;
		op_end(d, t->epoch, 0);
		free(t->name);
		free(t);
	}
}

static void epochs_turn(struct disk *d);

void disk_turn(struct disk *d)
{
	d->turn_wanted = false;
	disk_deliver(d);
	load_turn(d);
	append_flush(d);
	edit_turn(d);
	for (unsigned i = 0; i < d->n_devices; i++) {
		if (d->devices[i]->lost)
			tell_lost(d, d->devices[i]);
		clean_turn(d->devices[i]);
	}
	reap_tenants(d);
	epochs_turn(d);
	if (d->room_wanted && !d->closing) {
		bool refused = d->refused;

		d->room_wanted = d->refused = false;
		if (refused && d->o.owner.room)
			d->o.owner.room(d->o.owner.userdata);
	}
}

static void on_timer(void *userdata)
{
	disk_turn(userdata);
}

/* ---- epochs and syncs ---- */

static struct epoch *epoch_new(struct disk *d)
{
	struct epoch *e = calloc(1, sizeof(*e));

	if (e) {
		e->disk = d;
		e->syncs_end = &e->syncs;
	}
	return e;
}

struct epoch *op_join(struct epoch *e)
{
	e->ops++;
	return e;
}

struct epoch *op_begin(struct disk *d)
{
	return op_join(d->epoch);
}

void op_end(struct disk *d, struct epoch *e, int error)
{
	assert(e->ops);
	e->ops--;
	if (error < 0)
		e->error = error;
	if (!e->ops && e != d->epoch)
		disk_wake(d);
}

static void synced_all(struct epoch *e)
{
	struct disk_sync *s = e->syncs, *next;

	for (; s; s = next) {
		next = s->next;
		s->error = e->error ? e->error : e->disk->unsure ? -EROFS : 0;
		s->done(s);
	}
	free(e);
}

static void synced(struct dev_request *q, int error)
{
	struct epoch *e = q->epoch;

	if (error < 0 && !q->dev->failed)
		device_no_writes(q->dev, "a sync has failed", error);
	if (error < 0)
		e->error = error;
	if (!--e->waiting)
		synced_all(e);
}

static void epoch_sync(struct epoch *e)
{
	struct disk *d = e->disk;

	e->waiting = 1; /* ours, so that it cannot end meanwhile */
	for (unsigned i = 0; i < d->n_devices; i++) {
		if (d->devices[i]->failed)
			continue;
		e->waiting++;
		e->sync[i].epoch = e;
		e->sync[i].ended = synced;
		dev_submit(d->devices[i], &e->sync[i], IO_SYNC, 0, 0);
	}
	if (e->waiting == 1)
		e->error = -EIO;
	if (!--e->waiting)
		synced_all(e);
}

static void epochs_turn(struct disk *d)
{
	if (d->epoch->syncs) {
		struct epoch *e = epoch_new(d);

		if (e) { /* else another turn will find the memory */
			e->number = d->epoch->number + 1;
			d->epoch->next = e;
			d->epoch = e;
		}
	}
	while (d->epochs != d->epoch && !d->epochs->ops) {
		struct epoch *e = d->epochs;

		d->epochs = e->next;
		epoch_sync(e);
	}
}

void disk_sync(struct disk *d, struct disk_sync *s)
{
	s->next = NULL;
	s->error = 0;
	edit_again(d);
	*d->epoch->syncs_end = s;
	d->epoch->syncs_end = &s->next;
	disk_wake(d);
}

/* ---- tenants ---- */

struct disk_tenant *tenant_find(struct disk *d, const char *name)
{
	for (struct disk_tenant *t = d->tenants; t; t = t->next)
		if (!t->gone && !strcmp(t->name, name))
			return t;
	return NULL;
}

struct disk_tenant *tenant_add(struct disk *d, const char *name)
{
	struct disk_tenant *t = calloc(1, sizeof(*t));

	if (t)
		t->name = strdup(name);
	if (!t || !t->name) {
		free(t);
		return NULL;
	}
	t->disk = d;
	t->next = d->tenants;
	d->tenants = t;
	return t;
}

int disk_tenant_new(struct disk *d, const char *name, void *owner, struct disk_tenant **ret)
{
	struct disk_tenant *t;

	if (!name[0] || strlen(name) > FMT_TENANT_MAX)
		return -EINVAL;
	t = tenant_find(d, name);
	if (t && t->claimed)
		return -EEXIST;
	if (!t)
		t = tenant_add(d, name);
	if (!t)
		return -ENOMEM;
	t->claimed = true;
	t->owner = owner;
	*ret = t;
	return 0;
}

static void segment_erase(struct disk_segment *s)
{
	for (uint32_t i = 0; s->live && i < s->n_items; i++)
		if (s->items[i].flags & ITEM_LIVE)
			item_drop(s, i);
	if (s->state == SEGMENT_OPEN && !s->open->full)
		append_seal(s);
	else
		segment_try_free(s);
}

struct disk_tenant *disk_tenant_free(struct disk_tenant *t)
{
	struct disk *d;

	if (!t)
		return NULL;
	d = t->disk;
	t->gone = true;
	t->epoch = op_begin(d);
	append_flush(d);
	for (unsigned i = 0; i < d->n_devices; i++)
		for (uint32_t k = 0; k < d->devices[i]->super.n_segments; k++)
			if (d->devices[i]->segments[k].tenant == t)
				segment_erase(&d->devices[i]->segments[k]);
	disk_wake(d);
	return NULL;
}

void disk_tenant_limit(struct disk_tenant *t, uint64_t bytes)
{
	t->limit = bytes;
}

uint64_t disk_tenant_used(const struct disk_tenant *t)
{
	return t->used;
}

/* ---- planes ---- */

/* Bytes that may be written in a day come evenly; an hour's worth may come at once. */
static bool worn(struct disk *d, uint64_t bytes)
{
	uint64_t now = loop_now_ns();

	if (!d->o.write_bytes_per_day)
		return false;
	d->wear +=
		(double)(now - d->wear_at) / 1e9 * ((double)d->o.write_bytes_per_day / DAY_SECONDS);
	d->wear_at = now;
	if (d->wear > d->wear_max)
		d->wear = d->wear_max;
	return d->wear < (double)bytes && d->wear < d->wear_max;
}

static int admit(struct disk *d, struct disk_store *s, uint64_t bytes)
{
	struct fmt_record f;
	int r = fmt_record_make(&s->record, &f);

	if (r < 0)
		return r;
	if (d->closing || s->tenant->gone)
		return -EROFS;
	if (d->in_flight && d->in_flight + bytes > d->in_flight_max)
		return -EAGAIN;
	if (worn(d, bytes))
		return -EDQUOT;
	return append_store(s->tenant, s, 0, NULL, 0);
}

int disk_store(struct disk *d, struct disk_store *s)
{
	uint64_t bytes = (uint64_t)fmt_pages(s->record.bytes) * DISK_PAGE;
	int r;

	loop_assert_owner(d->o.loop);
	assert((uintptr_t)s->addr % DISK_PAGE == 0);
	recover_forget(d);
	r = admit(d, s, bytes);
	if (r == 0) {
		d->in_flight += bytes;
		d->wear -= (double)bytes;
		return 0;
	}
	d->stat.stores_refused++;
	if (r == -EAGAIN || r == -ENOSPC) {
		d->refused = true;
		disk_wake(d); /* cleaning */
	}
	return r;
}

static void forget(struct disk *d, struct disk_place p, bool erase)
{
	struct disk_segment *s = segment_at(d, p);

	loop_assert_owner(d->o.loop);
	if (!s)
		return; /* lost meanwhile */
	item_drop(s, p.item);
	if (erase)
		edit_erase(s, p.item, NULL);
	segment_try_free(s);
}

void disk_forget(struct disk *d, struct disk_place p)
{
	forget(d, p, false);
}

void disk_erase(struct disk *d, struct disk_place p)
{
	forget(d, p, true);
}

/* true: there were some. */
static bool erase_forgotten(struct disk_segment *s)
{
	bool any = false;

	s->forgetful = false;
	for (uint32_t i = 0; i < s->n_items; i++)
		if (s->items[i].flags & ITEM_FORGOTTEN && !item_flags(&s->items[i])) {
			edit_erase(s, i, NULL);
			any = true;
		}
	return any;
}

bool disk_erase_forgotten(struct disk_tenant *t)
{
	struct disk *d = t->disk;
	bool any = false;

	loop_assert_owner(d->o.loop);
	for (unsigned n = 0; n < d->n_devices; n++)
		for (uint32_t k = 0; k < d->devices[n]->super.n_segments; k++) {
			struct disk_segment *s = &d->devices[n]->segments[k];

			if (s->tenant == t && s->forgetful && s->state != SEGMENT_FREEING)
				any |= erase_forgotten(s);
		}
	return any;
}

void disk_stat(const struct disk *d, struct disk_stat *ret)
{
	*ret = d->stat;
	ret->devices = d->n_devices;
	for (unsigned i = 0; i < d->n_devices; i++) {
		const struct disk_device *dev = d->devices[i];

		if (dev->failed)
			continue;
		ret->capacity += dev->super.n_segments * dev->super.segment_bytes;
		ret->segments += dev->super.n_segments;
		ret->free_segments += dev->n_free;
	}
}

/* ---- opening and closing ---- */

int disk_new(const struct disk_options *o, struct disk **ret)
{
	struct disk *d = calloc(1, sizeof(*d));

	if (!d)
		return -ENOMEM;
	d->o = *o;
	d->o.paths = NULL;
	d->deferred_end = &d->deferred;
	d->edits_end = &d->edits;
	d->wear = d->wear_max = (double)o->write_bytes_per_day / 24;
	d->wear_at = loop_now_ns();
	d->epochs = d->epoch = epoch_new(d);
	if (!d->epoch) {
		free(d);
		return -ENOMEM;
	}
	*ret = d;
	return 0;
}

static void open_devices(struct disk *d, const struct disk_options *o, unsigned *ret_bad)
{
	char why[256];

	for (unsigned i = 0; i < o->n_paths; i++) {
		struct disk_device *dev;
		int r = d->n_devices == DISK_DEVICES_MAX
			? -E2BIG
			: device_open(o->paths[i], true, &dev, why, sizeof(why));

		if (r < 0) {
			(*ret_bad)++;
			log_error("a disk is left out", "path=\"%s\" why=\"%s\"", o->paths[i],
				r == -E2BIG ? "there are 16 already" : why);
			continue;
		}
		dev->disk = d;
		dev->number = d->n_devices;
		d->devices[d->n_devices++] = dev;
	}
	d->in_flight_max = o->in_flight_bytes * d->n_devices;
}

static int start_devices(struct disk *d, struct loop *loop)
{
	for (unsigned i = 0; i < d->n_devices; i++) {
		int r = device_start(d->devices[i], &d->o, loop);

		if (r < 0)
			return r;
	}
	return 0;
}

static void stop_devices(struct disk *d)
{
	for (unsigned i = 0; i < d->n_devices; i++)
		device_stop(d->devices[i]);
}

/* With a loop of its own, so that nothing else of the daemon's runs meanwhile. */
static int read_devices(struct disk *d)
{
	uint64_t start = loop_now_ns();
	struct loop *own;
	int r = loop_new(&own);

	if (r < 0)
		return r;
	r = start_devices(d, own);
	if (r == 0)
		r = recover_read(d, own);
	stop_devices(d);
	loop_free(own);
	for (unsigned i = 0; i < d->n_devices; i++)
		log_info("disk", "path=\"%s\" bytes=%llu segments=%u free=%u ms=%llu",
			d->devices[i]->path, (unsigned long long)d->devices[i]->super.bytes,
			d->devices[i]->super.n_segments, d->devices[i]->n_free,
			(unsigned long long)((loop_now_ns() - start) / 1000000));
	return r;
}

int disk_open(const struct disk_options *o, struct disk **ret, unsigned *ret_bad)
{
	unsigned bad = 0;
	struct disk *d;
	int r = disk_new(o, &d);

	if (r < 0)
		return r;
	open_devices(d, o, &bad);
	r = d->n_devices ? read_devices(d) : -ENODEV;
	if (r == 0)
		r = start_devices(d, o->loop);
	if (r == 0)
		r = loop_add_timer(o->loop, on_timer, d, &d->timer);
	*ret_bad = bad;
	if (r < 0) {
		disk_drop(d);
		return r;
	}
	if (d->turn_wanted)
		loop_arm(d->timer, 0, 0);
	*ret = d;
	return 0;
}

void disk_drop(struct disk *d)
{
	d->timer = loop_del_timer(d->timer);
	d->closing = true;
	for (unsigned i = 0; i < d->n_devices; i++)
		device_abandon(d->devices[i]);
	while (d->n_requests || d->turn_wanted)
		disk_turn(d);
	for (unsigned i = 0; i < d->n_devices; i++) {
		clean_free(d->devices[i]);
		device_free(d->devices[i]);
	}
	while (d->tenants) {
		struct disk_tenant *t = d->tenants;

		d->tenants = t->next;
		free(t->name);
		free(t);
	}
	while (d->epochs) {
		struct epoch *e = d->epochs;

		d->epochs = e->next;
		free(e);
	}
	bulk_free(&d->found);
	free(d);
}

static void settle(struct disk *d, struct loop *loop)
{
	while (d->n_requests || d->turn_wanted)
		if (d->turn_wanted)
			disk_turn(d);
		else
			loop_run_once(loop, -1);
}

static void on_last_sync(struct disk_sync *s)
{
	(void)s; /* settle() has waited for it */
}

static void close_on(struct disk *d, struct loop *loop)
{
	struct disk_sync last = {.done = on_last_sync};

	settle(d, loop);
	for (struct disk_tenant *t = d->tenants; t; t = t->next)
		for (unsigned i = 0; i < d->n_devices; i++)
			for (unsigned k = 0; k < CLASSES; k++)
				if (t->open[i][k])
					append_seal(t->open[i][k]);
	settle(d, loop);
	disk_sync(d, &last);
	settle(d, loop);
}

struct disk *disk_close(struct disk *d)
{
	struct loop *own;

	if (!d)
		return NULL;
	loop_assert_owner(d->o.loop);
	append_flush(d);
	d->closing = true;
	d->timer = loop_del_timer(d->timer);
	if (loop_new(&own) < 0) {
		disk_drop(d);
		return NULL;
	}
	stop_devices(d);
	if (start_devices(d, own) == 0)
		close_on(d, own);
	stop_devices(d);
	disk_drop(d);
	loop_free(own);
	return NULL;
}
