/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Erasing for good: a record gets its DEAD flag where it lies, in the record page of its chunk and in the summary. One page at
 * a time is read, changed and written for each segment, with all the records of it that wait. A segment on which nothing
 * lives is not edited but freed: that takes all its records along.
 *
 * Not while the summary is being written: it has the flag of what was erased before, and is edited after.
 *
 * What fails is told to the sync that waits for it, and tried again for the next one: who erases a newer copy then has to be sure
 * of the older ones as well.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"

struct edit {
	struct dev_request q;
	struct disk_segment *segment;
	struct epoch *epoch;
	struct fmt_page *page;
	uint32_t at;    /* page */
	uint32_t first; /* item: the one it is read for; summary: of its first record */
	bool summary;
};

static void next_page(struct edit *e);

static void queue(struct disk_segment *s)
{
	struct disk *d = s->dev->disk;

	if (s->edit_queued)
		return;
	s->edit_queued = true;
	s->next = NULL;
	*d->edits_end = s;
	d->edits_end = &s->next;
	disk_wake(d);
}

static void want(struct disk_segment *s, uint32_t i, uint8_t flag, struct epoch *now)
{
	s->items[i].flags |= flag | ITEM_TODO_HEAD | ITEM_TODO_SUMMARY;
	if (i < s->edit_from)
		s->edit_from = i;
	if (!s->edit_epoch) {
		s->edit_epoch = now ? op_join(now) : op_begin(s->dev->disk);
	} else if (now && now->number < s->edit_epoch->number) {
		op_end(s->dev->disk, s->edit_epoch, 0);
		s->edit_epoch = op_join(now);
	}
	queue(s);
}

void edit_erase(struct disk_segment *s, uint32_t i, struct epoch *e)
{
	want(s, i, ITEM_ERASED, e);
}

void edit_void(struct disk_segment *s, uint32_t i, struct epoch *e)
{
	want(s, i, ITEM_MOVED, e);
}

static void over(struct edit *e, int error)
{
	struct disk_segment *s = e->segment;
	struct disk *d = s->dev->disk;

	s->editing = false;
	if (s->edit_queued)
		disk_wake(d); /* more came meanwhile */
	else
		segment_free_for(s, e->epoch);
	op_end(d, e->epoch, error);
	free(e->page);
	free(e);
}

/* The items whose records stand on this page, from e->first on. */
static bool on_page(const struct edit *e, uint32_t i)
{
	const struct disk_segment *s = e->segment;

	return i < s->n_items && i - e->first < FMT_PER_PAGE &&
		(e->summary || s->items[i].head == e->at);
}

static void failed(struct edit *e, int error)
{
	struct disk_segment *s = e->segment;

	for (uint32_t i = e->first; on_page(e, i); i++)
		if (item_flags(&s->items[i]))
			s->items[i].flags |= e->summary ? ITEM_TODO_SUMMARY : ITEM_TODO_HEAD;
	if (e->first < s->edit_from)
		s->edit_from = e->first;
	s->again = s->dev->disk->again = true;
	log_warning("something that was erased may be found again after a restart",
		"path=\"%s\" segment=%u error=\"%s\"", e->segment->dev->path, e->segment->number,
		strerror(-error));
	over(e, error);
}

static void written(struct dev_request *q, int error)
{
	struct edit *e = (struct edit *)q;

	device_wrote(q->dev, error);
	if (error < 0)
		failed(e, error);
	else
		next_page(e);
}

/* good: the page is one. A damaged one is believed by nobody, and there is nothing to do to it. */
static void mark(struct edit *e, bool good)
{
	uint8_t todo = e->summary ? ITEM_TODO_SUMMARY : ITEM_TODO_HEAD;

	for (uint32_t i = e->first; on_page(e, i); i++) {
		struct disk_item *it = &e->segment->items[i];

		if (good && it->flags & todo && i - e->first < e->page->n_records)
			e->page->record[i - e->first].flags |= item_flags(it);
		it->flags &= (uint8_t)~todo;
	}
}

static void page_read(struct dev_request *q, int error)
{
	struct edit *e = (struct edit *)q;
	struct disk_segment *s = e->segment;
	const struct fmt_where w = segment_where(s);
	bool good = error == 0 &&
		fmt_page_check(e->page, &w, e->at, e->page->sequence, e->summary) == 0;

	if (error < 0) {
		failed(e, error);
		return;
	}
	mark(e, good);
	if (!good) {
		next_page(e);
		return;
	}
	fmt_seal(e->page);
	q->ended = written;
	dev_submit(s->dev, q, IO_WRITE, segment_offset(s, e->at), DISK_PAGE);
}

static bool find(struct edit *e)
{
	struct disk_segment *s = e->segment;
	uint8_t todo = ITEM_TODO_HEAD | (s->summary ? ITEM_TODO_SUMMARY : 0);
	uint32_t i = s->edit_from;

	while (i < s->n_items && !(s->items[i].flags & todo))
		i++;
	s->edit_from = i;
	if (i == s->n_items)
		return false;
	e->summary = !(s->items[i].flags & ITEM_TODO_HEAD);
	e->at = e->summary ? s->summary + i / FMT_PER_PAGE : s->items[i].head;
	e->first = e->summary ? i - i % FMT_PER_PAGE : i;
	while (!e->summary && e->first > 0 && s->items[e->first - 1].head == e->at)
		e->first--;
	return true;
}

static void next_page(struct edit *e)
{
	struct disk_segment *s = e->segment;

	if (s->state == SEGMENT_CLOSED && !s->live && !s->loads && !s->cleaning &&
		!s->edit_queued) {
		over(e, 0); /* frees it */
		return;
	}
	if (!find(e)) {
		over(e, 0);
		return;
	}
	e->q.ended = page_read;
	dev_submit(s->dev, &e->q, IO_READ, segment_offset(s, e->at), DISK_PAGE);
}

void edit_again(struct disk *d)
{
	if (!d->again)
		return;
	d->again = false;
	for (unsigned n = 0; n < d->n_devices; n++)
		for (uint32_t i = 0; i < d->devices[n]->super.n_segments; i++) {
			struct disk_segment *s = &d->devices[n]->segments[i];

			if (!s->again)
				continue;
			s->again = false;
			if (s->state ==
				SEGMENT_FREEING) /* just being tried, in an older epoch or this one */
				continue;
			if (!s->edit_epoch)
				s->edit_epoch = op_begin(d);
			queue(s);
		}
}

/* false: it has to wait. */
static bool start(struct disk_segment *s)
{
	struct edit *e;

	if (s->editing || s->state == SEGMENT_SEALING)
		return false;
	s->edit_queued = false;
	s->editing = true;
	e = calloc(1, sizeof(*e));
	if (e)
		e->page = aligned_alloc(DISK_PAGE, DISK_PAGE);
	if (!e || !e->page) {
		free(e);
		s->editing = false;
		op_end(s->dev->disk, s->edit_epoch, -ENOMEM);
		s->edit_epoch = NULL;
		return true;
	}
	e->segment = s;
	e->epoch = s->edit_epoch;
	e->q.iov.iov_base = e->page;
	s->edit_epoch = NULL;
	next_page(e);
	return true;
}

void edit_turn(struct disk *d)
{
	struct disk_segment *s = d->edits, *next;

	d->edits = NULL;
	d->edits_end = &d->edits;
	for (; s; s = next) {
		next = s->next;
		if (!start(s)) {
			s->next = NULL;
			*d->edits_end = s;
			d->edits_end = &s->next;
		}
	}
}
