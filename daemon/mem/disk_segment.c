/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The life of a segment:
 *
 *	FREE -> OPEN -> SEALING -> CLOSED -> FREEING -> FREE
 *	  segment_take()  append_seal()  segment_try_free()
 *
 * A segment is free when neither its first nor its last page says that it is anything: both are overwritten with zeros, and it
 * goes back to the list only when both writes have ended. What stands in one that could not be overwritten would be found
 * again: it is tried again for the next sync. On a device that takes no more writes it is BAD until the next start, and no sync
 * is sure of anything that was erased.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"

static _Alignas(DISK_PAGE) uint8_t zeros[DISK_PAGE];

struct disk_segment *segment_at(struct disk *d, struct disk_place p)
{
	struct disk_segment *s;
	struct disk_device *dev;

	if (!p.device || p.device > d->n_devices)
		return NULL;
	dev = d->devices[p.device - 1];
	if (p.segment >= dev->super.n_segments)
		return NULL;
	s = &dev->segments[p.segment];
	return p.item < s->n_items && s->items[p.item].flags & ITEM_LIVE ? s : NULL;
}

static void *grow(void *old, uint32_t size, size_t each)
{
	return realloc(old, size * each);
}

int segment_reserve(struct disk_segment *s, uint32_t more)
{
	uint32_t want = s->n_items + more, size = want < 32 ? 32 : want + want / 2;
	void *p;

	if (want > s->items_size) {
		p = grow(s->items, size, sizeof(*s->items));
		if (!p)
			return -ENOMEM;
		s->items = p;
		s->items_size = size;
	}
	if (s->open && want > s->open->size) {
		p = grow(s->open->records, size, sizeof(*s->open->records));
		if (!p)
			return -ENOMEM;
		s->open->records = p;
		s->open->size = size;
	}
	return 0;
}

void segment_add_free(struct disk_segment *s)
{
	struct disk_device *dev = s->dev;

	s->state = SEGMENT_FREE;
	s->next = NULL;
	*dev->free_end = s;
	dev->free_end = &s->next;
	dev->n_free++;
}

struct disk_segment *segment_take(struct disk_device *dev, struct disk_tenant *t, unsigned class)
{
	struct disk_segment *s = dev->free;
	struct open_part *open = s ? calloc(1, sizeof(*open)) : NULL;

	if (!open || getentropy(&s->salt, sizeof(s->salt)) < 0) {
		free(open);
		return NULL;
	}
	dev->free = s->next;
	if (!dev->free)
		dev->free_end = &dev->free;
	dev->n_free--;
	open->next_page = 1;
	open->end = &open->first;
	s->next = NULL;
	s->state = SEGMENT_OPEN;
	s->open = open;
	s->class = class;
	s->generation = ++dev->disk->order;
	s->tenant = t;
	t->n_segments++;
	t->open[dev->number][class] = s;
	disk_wake(dev->disk); /* to see whether it is time to clean */
	return s;
}

void segment_clear(struct disk_segment *s)
{
	if (s->open) {
		free(s->open->records);
		free(s->open->notes);
		free(s->open);
	}
	free(s->items);
	*s = (struct disk_segment){
		.dev = s->dev,
		.number = s->number,
		.state = s->state,
		.listed = s->listed,
		.next_filling = s->next_filling,
	};
}

void item_adopt(struct disk_segment *s, uint32_t i, void *item)
{
	struct disk_item *it = &s->items[i];

	it->flags |= ITEM_LIVE;
	it->item = item;
	s->live++;
	s->live_bytes += (uint64_t)fmt_pages(it->bytes) * DISK_PAGE;
	s->tenant->used += it->bytes;
	s->dev->disk->stat.live += it->bytes;
}

void item_forget(struct disk_segment *s, uint32_t i)
{
	s->items[i].flags |= ITEM_FORGOTTEN;
	s->forgetful = true;
}

void item_drop(struct disk_segment *s, uint32_t i)
{
	struct disk_item *it = &s->items[i];

	assert(it->flags & ITEM_LIVE && s->live);
	it->flags &= (uint8_t)~ITEM_LIVE;
	item_forget(s, i);
	s->live--;
	s->live_bytes -= (uint64_t)fmt_pages(it->bytes) * DISK_PAGE;
	s->tenant->used -= it->bytes;
	s->dev->disk->stat.live -= it->bytes;
	s->judged = 0;
	s->dev->fresh = true;
}

/* ---- freeing ---- */

struct freeing {
	struct disk_segment *segment;
	struct epoch *epoch;
	unsigned waiting;
	int error;
	struct dev_request first, last, discard;
};

static void freed(struct freeing *f)
{
	struct disk_segment *s = f->segment;
	struct disk *d = s->dev->disk;
	struct disk_tenant *t = s->tenant;

	s->dev->n_freeing--;
	if (f->error == 0) {
		segment_clear(s);
		segment_add_free(s);
		t->wants_room = false;
		t->n_segments--;
		d->room_wanted = true;
	} else {
		s->state = SEGMENT_CLOSED;
		s->again = d->again = true;
	}
	disk_wake(d);
	op_end(d, f->epoch, f->error);
	free(f);
}

static void discarded(struct dev_request *q, int error)
{
	struct freeing *f = (struct freeing *)((char *)q - offsetof(struct freeing, discard));

	if (error == 0)
		q->dev->disk->stat.discarded_bytes += q->io.bytes;
	freed(f); /* a discard that failed has cost nothing */
}

static void zeroed(struct freeing *f, int error)
{
	struct disk_segment *s = f->segment;
	struct disk_device *dev = s->dev;

	device_wrote(dev, error);
	if (error < 0)
		f->error = error;
	if (--f->waiting)
		return;
	if (f->error < 0)
		log_warning("a part of a disk cannot be given back yet",
			"path=\"%s\" segment=%u error=\"%s\"", dev->path, s->number,
			strerror(-f->error));
	if (f->error < 0 || !dev->disk->o.discard) {
		freed(f);
		return;
	}
	f->discard.ended = discarded;
	dev_submit(dev, &f->discard, IO_DISCARD, segment_offset(s, 1),
		dev->super.segment_bytes - 2 * DISK_PAGE);
}

static void zeroed_first(struct dev_request *q, int error)
{
	zeroed((struct freeing *)((char *)q - offsetof(struct freeing, first)), error);
}

static void zeroed_last(struct dev_request *q, int error)
{
	zeroed((struct freeing *)((char *)q - offsetof(struct freeing, last)), error);
}

void segment_try_free(struct disk_segment *s)
{
	segment_free_for(s, NULL);
}

/* Somebody still looks at it: the epoch waits with it. */
static void free_later(struct disk_segment *s, struct epoch *e)
{
	struct epoch *old = s->free_epoch;

	if (!e || s->live || s->state != SEGMENT_CLOSED || (old && old->number <= e->number))
		return;
	s->free_epoch = op_join(e);
	if (old)
		op_end(s->dev->disk, old, 0);
}

static void give_up(struct disk_segment *s)
{
	struct disk *d = s->dev->disk;

	if (s->free_epoch)
		op_end(d, s->free_epoch, -EROFS);
	d->unsure = true;
	s->tenant->n_segments--;
	segment_clear(s);
	s->state = SEGMENT_BAD;
}

void segment_free_for(struct disk_segment *s, struct epoch *e)
{
	struct disk_device *dev = s->dev;
	struct freeing *f;

	free_later(s, e);
	if (s->state != SEGMENT_CLOSED || s->live || s->loads || s->cleaning || s->editing ||
		s->edit_queued)
		return;
	s->state = SEGMENT_FREEING;
	f = dev->no_writes ? NULL : calloc(1, sizeof(*f));
	if (!f) {
		give_up(s);
		return;
	}
	dev->n_freeing++;
	f->segment = s;
	f->epoch = s->free_epoch ? s->free_epoch : op_begin(dev->disk);
	s->free_epoch = NULL;
	f->waiting = 2;
	f->first.iov.iov_base = f->last.iov.iov_base = zeros;
	f->first.ended = zeroed_first;
	f->last.ended = zeroed_last;
	dev_submit(dev, &f->first, IO_WRITE, segment_offset(s, 0), DISK_PAGE);
	dev_submit(dev, &f->last, IO_WRITE, segment_offset(s, dev->segment_pages - 1), DISK_PAGE);
}
