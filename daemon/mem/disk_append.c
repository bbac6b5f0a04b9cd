/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Writing. A tenant has one open segment on each device for what is stored, and one for what cleaning moves (`class`): what
 * was moved is older, and dies together. A chunk is put together in memory until it is full or the turn of the loop is over:
 *
 *	[header, in the first chunk][record page ...][note or plane][plane] ...
 *
 * and is one write. Where it lies is settled when it is submitted; that it fits is settled before, with the summary that
 * will have to close the segment.
 *
 * Chunks of a segment may end in any order, and are believed in theirs: recovery finds a chunk by the one before. So one that
 * fails takes those behind it along, and the segment is closed with what stood before. What failed may stand there all the same,
 * in part or as a whole: its records are made void, or a start would find what was stored elsewhere since, and erased.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"
#include "proto/plane.h"

struct entry {
	struct disk_store *store; /* NULL: a note, */
	void *note;               /* in pages of its own */
	uint64_t order;           /* 0: a new one */
};

struct chunk {
	struct dev_request q; /* first: ended() casts */
	struct chunk *next;
	struct disk_segment *segment;
	struct fmt_record *records;
	struct entry *entries;
	uint32_t n, size;
	uint32_t data_pages;
	uint32_t first_item;
	void *meta;
	struct iovec *iov;
	struct epoch *epoch;
	bool over;
	int error;
};

/* What a store brings along. */
struct need {
	struct disk_store *store;
	const void *note;
	size_t note_bytes;
	uint32_t pages; /* of the plane */
	uint64_t order;
};

uint32_t device_reserve(const struct disk_device *dev)
{
	return dev->super.n_segments >= 16 ? 2 : 1;
}

static bool has_note(const struct open_part *o, uint32_t note)
{
	for (uint32_t i = 0; i < o->n_notes; i++)
		if (o->notes[i] == note)
			return true;
	return false;
}

static bool pages_fit(const struct disk_device *dev, uint32_t next_page, uint32_t items, uint32_t n,
	uint64_t data)
{
	return next_page + fmt_parts(n) + data + fmt_parts(items + n) + 1 <= dev->segment_pages;
}

static bool fits_empty(const struct disk_device *dev, const struct need *w)
{
	return pages_fit(
		dev, 1, 0, 1 + (w->note_bytes > 0), (uint64_t)w->pages + fmt_pages(w->note_bytes));
}

/* With what is being filled. */
static bool fits(const struct disk_segment *s, const struct need *w)
{
	const struct open_part *o = s->open;
	const struct chunk *c = o->filling;
	bool note = w->note_bytes && !has_note(o, w->store->record.note);
	uint32_t n = (c ? c->n : 0) + 1 + note;
	uint64_t data = (uint64_t)(c ? c->data_pages : 0) + w->pages +
		(note ? fmt_pages(w->note_bytes) : 0);

	if (o->full || o->poisoned || (c && (n > CHUNK_ENTRIES || data * DISK_PAGE > CHUNK_BYTES)))
		return false;
	return pages_fit(s->dev, o->next_page, s->n_items, n, data);
}

/* ---- the end of a chunk ---- */

static void chunk_free(struct chunk *c)
{
	for (uint32_t i = 0; i < c->n; i++)
		free(c->entries[i].note);
	free(c->records);
	free(c->entries);
	free(c->meta);
	free(c->iov);
	free(c);
}

static void chunk_good(struct chunk *c)
{
	struct disk_segment *s = c->segment;

	if (s->class || s->tenant->gone)
		return; /* cleaning will say */
	for (uint32_t i = 0; i < c->n; i++)
		if (c->entries[i].store)
			item_adopt(s, c->first_item + i, c->entries[i].store->item);
}

static void chunk_void(struct chunk *c)
{
	struct disk_segment *s = c->segment;

	for (uint32_t i = c->first_item; i < s->n_items && i - c->first_item < c->n; i++)
		edit_void(s, i, NULL);
}

/* In their order; the stores' owners are told, and may do anything. */
static void chunk_over(struct chunk *c)
{
	struct disk_segment *s = c->segment;
	struct disk_tenant *t = s->tenant;
	struct disk *d = t->disk;

	if (s->open->poisoned && c->error == 0)
		c->error = -EIO;
	if (c->error < 0) {
		s->open->poisoned = true;
		chunk_void(c);
	}
	if (c->error == 0)
		chunk_good(c);
	for (uint32_t i = 0; i < c->n; i++) {
		struct disk_store *st = c->entries[i].store;

		if (!st)
			continue;
		st->error = c->error < 0 ? c->error : t->gone ? -ECANCELED : 0;
		st->place = st->error ? (struct disk_place){0} : item_place(s, c->first_item + i);
		if (s->class == 0)
			d->in_flight -= (uint64_t)fmt_pages(st->record.bytes) * DISK_PAGE;
		st->done(st);
	}
	s->dev->writing -= (uint64_t)c->data_pages * DISK_PAGE;
	op_end(d, c->epoch, 0);
	chunk_free(c);
	d->room_wanted = true;
	disk_wake(d);
}

static void seal(struct disk_segment *s);

static void chunk_ended(struct dev_request *q, int error)
{
	struct chunk *c = (struct chunk *)q;
	struct disk_segment *s = c->segment;
	struct disk_tenant *t = s->tenant;
	struct open_part *o = s->open;

	c->over = true;
	c->error = error;
	device_wrote(s->dev, error);
	if (error < 0)
		log_warning("a write to a disk failed", "path=\"%s\" error=\"%s\"", s->dev->path,
			strerror(-error));
	while (o->first && o->first->over) {
		struct chunk *first = o->first;

		o->first = first->next;
		if (!o->first)
			o->end = &o->first;
		chunk_over(first);
		t->n_chunks--;
	}
	if (o->poisoned && !o->full)
		append_seal(s);
	else if (o->full && !o->first && !o->filling)
		seal(s);
}

/* ---- closing a segment ---- */

struct sealing {
	struct dev_request q;
	struct disk_segment *segment;
	uint32_t summary;
};

static void closed(struct disk_segment *s)
{
	struct open_part *o = s->open;

	s->open = NULL;
	free(o->records);
	free(o->notes);
	free(o);
	s->state = SEGMENT_CLOSED;
	s->dev->fresh = true;
	if (s->edit_queued)
		disk_wake(s->dev->disk);
	segment_try_free(s);
}

static void sealed(struct dev_request *q, int error)
{
	struct sealing *w = (struct sealing *)q;
	struct disk_segment *s = w->segment;

	device_wrote(s->dev, error);
	if (error == 0)
		s->summary = w->summary;
	else
		log_warning(
			"a segment stays without a summary: the next start reads it chunk by chunk",
			"path=\"%s\" error=\"%s\"", s->dev->path, strerror(-error));
	free((void *)q->iov.iov_base);
	free(w);
	closed(s);
	disk_wake(s->dev->disk);
}

static void summary_make(struct disk_segment *s, uint8_t *pages, uint32_t n)
{
	const struct fmt_where w = segment_where(s);
	struct fmt_segment t = {
		.version = FMT_VERSION,
		.segment = s->number,
		.generation = s->generation,
		.salt = s->salt,
		.summary = s->dev->segment_pages - 1 - n,
		.summary_pages = n,
		.n_records = s->n_items,
		.tenant_bytes = (uint8_t)strlen(s->tenant->name),
	};

	for (uint32_t i = 0; i < n; i++) {
		struct fmt_page *p = (struct fmt_page *)(pages + (size_t)i * DISK_PAGE);
		uint32_t from = i * FMT_PER_PAGE, k = s->n_items - from;

		p->page = t.summary + i;
		p->sequence = i;
		p->parts = 1;
		p->summary = 1;
		p->n_records = (uint16_t)(k < FMT_PER_PAGE ? k : FMT_PER_PAGE);
		memcpy(p->record, s->open->records + from, p->n_records * sizeof(p->record[0]));
		for (uint32_t j = 0; j < p->n_records; j++) {
			s->items[from + j].flags &= (uint8_t)~ITEM_TODO_SUMMARY;
			p->record[j].flags |= item_flags(&s->items[from + j]);
		}
		fmt_page_make(p, &w);
	}
	memcpy(t.id, w.id, sizeof(t.id));
	memcpy(t.tenant, s->tenant->name, t.tenant_bytes);
	fmt_segment_make(&t, FMT_TRAILER, pages + (size_t)n * DISK_PAGE);
}

static void seal(struct disk_segment *s)
{
	uint32_t n = fmt_parts(s->n_items);
	uint64_t bytes = ((uint64_t)n + 1) * DISK_PAGE;
	struct sealing *w;
	void *pages;

	if ((!s->live && !s->loads) || s->dev->no_writes) {
		closed(s);
		return;
	}
	w = calloc(1, sizeof(*w));
	pages = w ? aligned_alloc(DISK_PAGE, bytes) : NULL;
	if (!pages) {
		free(w);
		closed(s);
		return;
	}
	memset(pages, 0, bytes);
	summary_make(s, pages, n);
	s->state = SEGMENT_SEALING;
	w->segment = s;
	w->summary = s->dev->segment_pages - 1 - n;
	w->q.iov.iov_base = pages;
	w->q.ended = sealed;
	dev_submit(s->dev, &w->q, IO_WRITE, segment_offset(s, w->summary), bytes);
}

void append_seal(struct disk_segment *s)
{
	struct disk_tenant *t = s->tenant;

	assert(s->state == SEGMENT_OPEN && !s->open->full);
	s->open->full = true;
	if (t->open[s->dev->number][s->class] == s)
		t->open[s->dev->number][s->class] = NULL;
	if (!s->open->first && !s->open->filling)
		seal(s);
}

/* ---- submitting a chunk ---- */

static void header_make(struct disk_segment *s, void *page)
{
	struct fmt_segment h = {
		.version = FMT_VERSION,
		.segment = s->number,
		.generation = s->generation,
		.salt = s->salt,
		.tenant_bytes = (uint8_t)strlen(s->tenant->name),
	};

	memcpy(h.id, s->dev->super.id, sizeof(h.id));
	memcpy(h.tenant, s->tenant->name, h.tenant_bytes);
	fmt_segment_make(&h, FMT_HEADER, page);
}

static void items_make(struct chunk *c)
{
	struct disk_segment *s = c->segment;
	uint32_t at = s->open->next_page + fmt_parts(c->n);

	for (uint32_t i = 0; i < c->n; i++) {
		struct fmt_record *r = &c->records[i];
		uint64_t order = c->entries[i].order ? c->entries[i].order : ++s->dev->disk->order;

		r->order_low = (uint32_t)order;
		r->order_high = (uint32_t)(order >> 32);
		r->head = s->open->next_page + i / FMT_PER_PAGE;
		r->page = at;
		at += fmt_pages(r->bytes);
		s->items[s->n_items + i] = (struct disk_item){
			.page = r->page,
			.bytes = r->bytes,
			.head = r->head,
			.plane = r->plane,
			.flags = r->type == FMT_NOTE ? ITEM_NOTE : 0,
		};
	}
	memcpy(s->open->records + s->n_items, c->records, c->n * sizeof(*c->records));
	s->n_items += c->n;
}

static void pages_make(struct chunk *c, uint8_t *pages)
{
	struct open_part *o = c->segment->open;
	const struct fmt_where w = segment_where(c->segment);
	uint32_t parts = fmt_parts(c->n);

	for (uint32_t i = 0; i < parts; i++) {
		struct fmt_page *p = (struct fmt_page *)(pages + (size_t)i * DISK_PAGE);
		uint32_t from = i * FMT_PER_PAGE, k = c->n - from;

		p->page = o->next_page + i;
		p->sequence = o->next_sequence++;
		p->chunk_pages = parts + c->data_pages;
		p->part = (uint16_t)i;
		p->parts = (uint16_t)parts;
		p->n_records = (uint16_t)(k < FMT_PER_PAGE ? k : FMT_PER_PAGE);
		memcpy(p->record, c->records + from, p->n_records * sizeof(p->record[0]));
		fmt_page_make(p, &w);
	}
}

static void vectors_make(struct chunk *c, size_t meta_bytes)
{
	uint32_t n = 0;

	c->iov[n++] = (struct iovec){c->meta, meta_bytes};
	for (uint32_t i = 0; i < c->n; i++) {
		const struct entry *e = &c->entries[i];
		const void *from = e->store ? e->store->addr : e->note;

		c->iov[n++] = (struct iovec){(void *)(uintptr_t)from,
			(size_t)fmt_pages(c->records[i].bytes) * DISK_PAGE};
	}
	c->q.io.iov = c->iov;
	c->q.io.n_iov = n;
}

static void submit(struct disk_segment *s)
{
	struct open_part *o = s->open;
	struct chunk *c = o->filling;
	struct disk *d = s->dev->disk;
	uint32_t head = !o->header, parts = fmt_parts(c->n);
	size_t meta = ((size_t)head + parts) * DISK_PAGE;
	uint64_t bytes = meta + (uint64_t)c->data_pages * DISK_PAGE;

	o->filling = NULL;
	if (s->tenant->filling == s)
		s->tenant->filling = NULL;
	c->first_item = s->n_items;
	*o->end = c;
	o->end = &c->next;
	c->q.ended = chunk_ended;
	c->meta = aligned_alloc(DISK_PAGE, meta);
	c->iov = calloc(c->n + 1, sizeof(*c->iov));
	if (!c->meta || !c->iov || segment_reserve(s, c->n) < 0) {
		dev_fail(s->dev, &c->q, -ENOMEM);
		return;
	}
	memset(c->meta, 0, meta);
	if (head)
		header_make(s, c->meta);
	items_make(c);
	pages_make(c, (uint8_t *)c->meta + (size_t)head * DISK_PAGE);
	vectors_make(c, meta);
	o->header = true;
	dev_submit(s->dev, &c->q, IO_WRITE, segment_offset(s, o->next_page - head), bytes);
	o->next_page += parts + c->data_pages;
	if (s->class)
		d->stat.moved_bytes += bytes;
	else
		d->stat.stored_bytes += bytes;
	d->wear -= (double)(s->class ? bytes
				     : meta); /* the planes' were counted when they were let in */
}

void append_flush(struct disk *d)
{
	while (d->filling) {
		struct disk_segment *s = d->filling;

		d->filling = s->next_filling;
		s->listed = false;
		if (s->open && s->open->filling)
			submit(s);
	}
}

/* ---- putting a chunk together ---- */

static struct chunk *chunk_of(struct disk_segment *s)
{
	struct chunk *c = s->open->filling;

	if (!c) {
		c = calloc(1, sizeof(*c));
		if (!c)
			return NULL;
		c->segment = s;
	}
	if (c->n + 2 > c->size) {
		uint32_t size = c->size ? c->size * 2 : 8;
		void *r = realloc(c->records, size * sizeof(*c->records)), *e = NULL;

		if (r)
			c->records = r;
		e = realloc(c->entries, size * sizeof(*c->entries));
		if (e)
			c->entries = e;
		if (r && e)
			c->size = size;
	}
	if (c->n + 2 > c->size) {
		if (!s->open->filling)
			chunk_free(c);
		return NULL;
	}
	return c;
}

static int add_note(struct chunk *c, const struct need *w)
{
	struct open_part *o = c->segment->open;
	size_t room = (size_t)fmt_pages(w->note_bytes) * DISK_PAGE;
	uint8_t *copy;

	if (o->n_notes == o->notes_size) {
		uint32_t size = o->notes_size ? o->notes_size * 2 : 4;
		void *p = realloc(o->notes, size * sizeof(*o->notes));

		if (!p)
			return -ENOMEM;
		o->notes = p;
		o->notes_size = size;
	}
	copy = aligned_alloc(DISK_PAGE, room);
	if (!copy)
		return -ENOMEM;
	memset(copy, 0, room);
	memcpy(copy, w->note, w->note_bytes);
	o->notes[o->n_notes++] = w->store->record.note;
	c->records[c->n] = (struct fmt_record){
		.type = FMT_NOTE,
		.note = w->store->record.note,
		.bytes = (uint32_t)w->note_bytes,
		.crc = crc32c(0, w->note, w->note_bytes),
	};
	c->entries[c->n++] = (struct entry){.note = copy};
	c->data_pages += fmt_pages(w->note_bytes);
	return 0;
}

static int add(struct disk_segment *s, const struct need *w)
{
	struct disk_tenant *t = s->tenant;
	struct chunk *c = chunk_of(s);
	bool first = c && !s->open->filling;
	uint32_t before = c ? c->data_pages : 0;
	int r = c ? 0 : -ENOMEM;

	if (r == 0 && w->note_bytes && !has_note(s->open, w->store->record.note))
		r = add_note(c, w);
	if (r == 0) {
		r = fmt_record_make(&w->store->record, &c->records[c->n]);
		assert(r == 0); /* disk_store() has tried */
		c->entries[c->n++] = (struct entry){.store = w->store, .order = w->order};
		c->data_pages += w->pages;
	} else if (first && c) {
		chunk_free(c);
	}
	if (r < 0)
		return r;
	if (first) {
		c->epoch = op_begin(t->disk);
		s->open->filling = c;
		if (!s->class)
			t->filling = s;
		t->n_chunks++;
		if (!s->listed) {
			s->listed = true;
			s->next_filling = t->disk->filling;
			t->disk->filling = s;
		}
	}
	s->dev->writing += (uint64_t)(c->data_pages - before) * DISK_PAGE;
	disk_wake(t->disk);
	return 0;
}

/* ---- where to ---- */

static bool may_open(
	const struct disk_tenant *t, const struct disk_device *dev, unsigned class, bool *ret_limit)
{
	if (class)
		return dev->n_free > 0;
	if (t->limit && (t->n_segments + 1ull) * dev->super.segment_bytes > t->limit) {
		*ret_limit = true;
		return false;
	}
	return dev->n_free > device_reserve(dev);
}

static struct disk_device *choose(struct disk_tenant *t, const struct need *w, unsigned class,
	struct disk_device *only, int *ret_error)
{
	struct disk *d = t->disk;
	struct disk_device *best = NULL;
	bool limit = false, any = false, large = true;

	for (unsigned i = 0; i < d->n_devices; i++) {
		struct disk_device *dev = d->devices[(d->next_device + i) % d->n_devices];
		struct disk_segment *s = t->open[dev->number][class];

		if (dev->failed || dev->no_writes || (only && dev != only))
			continue;
		any = true;
		if (!fits_empty(dev, w))
			continue;
		large = false;
		if (!(s && fits(s, w)) && !may_open(t, dev, class, &limit))
			continue;
		if (!best || dev->writing < best->writing)
			best = dev;
	}
	if (best) {
		d->next_device = best->number + 1;
		return best;
	}
	t->wants_room = t->wants_room || limit;
	*ret_error = !any ? -EROFS : large ? -EFBIG : -ENOSPC;
	return NULL;
}

int append_store(struct disk_tenant *t, struct disk_store *store, unsigned class,
	struct disk_device *only, uint64_t order)
{
	struct disk *d = t->disk;
	struct need w = {.store = store, .pages = fmt_pages(store->record.bytes), .order = order};
	struct disk_segment *s = only ? t->open[only->number][class] : t->filling;
	struct disk_device *dev;
	int r = -ENOSPC;

	if (d->o.owner.note)
		w.note_bytes = d->o.owner.note(t->owner, store->record.note, &w.note);
	if (w.note_bytes > DISK_NOTE_MAX)
		return -EINVAL;
	if (s && s->open->filling) {
		if (fits(s, &w))
			return add(s, &w);
		submit(s);
	}
	dev = choose(t, &w, class, only, &r);
	if (!dev)
		return r;
	s = t->open[dev->number][class];
	if (s && !fits(s, &w)) {
		append_seal(s);
		s = NULL;
	}
	if (!s)
		s = segment_take(dev, t, class);
	return s ? add(s, &w) : -ENOMEM;
}
