/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading what is on the devices. For each segment, many at a time:
 *
 *	its end -> a trailer? -> the rest of the summary, unless it came along -> closed, with these records
 *	           none, or the summary is damaged -> its beginning -> a header? -> chunk by chunk, up to the first that is none
 *	                                                               none -> free
 *
 * Whatever is read is checked by disk_format; a count never allocates more than what was read.
 */
#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"

#define SCANS      64u /* of a device, at a time */
#define TAIL_PAGES 16u /* a summary that fits needs no second read: of up to some 330 planes */
#define WALK_PAGES 8u

struct recovery {
	struct disk *disk;
	struct bulk buffers;
	unsigned active;
	int error; /* no memory */
};

struct scan {
	struct dev_request q;
	struct recovery *recovery;
	struct disk_device *dev;
	uint32_t *next; /* of the device's segments: who is the next to be looked at */
	struct disk_segment *segment;
	struct fmt_segment is; /* generation 0: neither trailer nor header has been seen */
	uint8_t *tail;         /* [TAIL_PAGES], of recovery.buffers */
	uint8_t *large;        /* what does not fit there is read to */
	uint32_t large_pages;
	uint8_t *buffer; /* one of the two: what is read, */
	uint32_t page, pages;
	uint32_t sequence;
	struct fmt_record *found;
	uint32_t n_found, found_size;
};

static void scan_next(struct scan *s);
static void walk_read(struct dev_request *q, int error);

/* ---- small parts ---- */

static void scan_read(
	struct scan *s, uint32_t page, uint32_t pages, void (*then)(struct dev_request *, int))
{
	if (pages > TAIL_PAGES && pages > s->large_pages) {
		free(s->large);
		s->large = aligned_alloc(DISK_PAGE, (size_t)pages * DISK_PAGE);
		s->large_pages = s->large ? pages : 0;
	}
	s->buffer = pages > TAIL_PAGES ? s->large : s->tail;
	s->page = page;
	s->pages = pages;
	s->q.iov.iov_base = s->buffer;
	s->q.io.iov = NULL;
	s->q.ended = then;
	if (!s->buffer)
		dev_fail(s->dev, &s->q, -ENOMEM);
	else
		dev_submit(s->dev, &s->q, IO_READ, segment_offset(s->segment, page),
			(uint64_t)pages * DISK_PAGE);
}

static struct fmt_where where(const struct scan *s)
{
	struct fmt_where w = segment_where(s->segment);

	w.generation = s->is.generation;
	w.salt = s->is.salt;
	return w;
}

static const struct fmt_page *read_page(const struct scan *s, uint32_t page)
{
	return (const struct fmt_page *)(s->buffer + (size_t)(page - s->page) * DISK_PAGE);
}

/* A smaller room is left behind, until all of it goes. */
static int room_for(struct scan *s, uint32_t n)
{
	struct fmt_record *to;

	if (n <= s->found_size)
		return 0;
	to = bulk_alloc(&s->recovery->disk->found, alignof(struct fmt_record), n * sizeof(*to));
	if (!to)
		return -ENOMEM;
	if (s->n_found)
		memcpy(to, s->found, s->n_found * sizeof(*to));
	s->found = to;
	s->found_size = n;
	return 0;
}

static int take_records(struct scan *s, const struct fmt_page *p)
{
	uint32_t n = s->n_found + p->n_records;

	if (n > s->found_size && room_for(s, n + n / 2) < 0)
		return -ENOMEM;
	memcpy(s->found + s->n_found, p->record, p->n_records * sizeof(p->record[0]));
	s->n_found = n;
	return 0;
}

/* ---- the end of a scan ---- */

static struct disk_tenant *tenant_of(struct disk *d, const struct fmt_segment *is)
{
	char name[FMT_TENANT_MAX + 1];
	struct disk_tenant *t;

	memcpy(name, is->tenant, is->tenant_bytes);
	name[is->tenant_bytes] = 0;
	t = tenant_find(d, name);
	return t ? t : tenant_add(d, name);
}

static int take_items(struct disk *d, struct disk_segment *seg)
{
	seg->items = calloc(seg->n_items ? seg->n_items : 1, sizeof(*seg->items));
	if (!seg->items)
		return -ENOMEM;
	seg->items_size = seg->n_items;
	for (uint32_t i = 0; i < seg->n_items; i++) {
		const struct fmt_record *r = &seg->found[i];

		seg->items[i] = (struct disk_item){
			.page = r->page,
			.bytes = r->bytes,
			.head = r->head,
			.plane = r->plane,
			.flags = (uint8_t)((r->type == FMT_NOTE ? ITEM_NOTE : 0) |
				(r->flags & FMT_DEAD ? ITEM_ERASED : 0)),
		};
		if (fmt_order(r) > d->order)
			d->order = fmt_order(r);
	}
	return 0;
}

/* Somebody's segment, with these records. */
static void scan_taken(struct scan *s, uint32_t summary)
{
	struct disk *d = s->recovery->disk;
	struct disk_segment *seg = s->segment;

	seg->state = SEGMENT_CLOSED;
	seg->generation = s->is.generation;
	seg->salt = s->is.salt;
	seg->summary = summary;
	seg->tenant = tenant_of(d, &s->is);
	if (s->n_found) {
		seg->found = s->found;
		seg->n_items = s->n_found;
		s->found = NULL;
		s->found_size = 0;
	}
	if (!seg->tenant || take_items(d, seg) < 0) {
		s->recovery->error = -ENOMEM;
		seg->n_items = 0;
		seg->state = SEGMENT_BAD;
	} else {
		seg->tenant->n_segments++;
	}
	if (s->is.generation > d->order)
		d->order = s->is.generation;
	scan_next(s);
}

static void scan_failed(struct scan *s, int error)
{
	if (error == -ENOMEM)
		s->recovery->error = error;
	else
		log_warning("a part of a disk cannot be read, it is not used any more",
			"path=\"%s\" segment=%u error=\"%s\"", s->dev->path, s->segment->number,
			strerror(-error));
	s->segment->state = SEGMENT_BAD;
	scan_next(s);
}

/* ---- chunk by chunk ---- */

static void walk_on(struct scan *s)
{
	uint32_t left = s->segment->dev->segment_pages - 1;

	if (s->page + 2 > left)
		scan_taken(s, 0);
	else
		scan_read(s, s->page, left - s->page < WALK_PAGES ? left - s->page : WALK_PAGES,
			walk_read);
}

/* At s->page; all of its record pages have been read. A damaged one after the first costs only what stands on it. */
static void walk_chunk(struct scan *s)
{
	const struct fmt_where w = where(s);
	const struct fmt_page *first = read_page(s, s->page);

	for (uint32_t i = 0; i < first->parts; i++) {
		const struct fmt_page *p = read_page(s, s->page + i);

		if (fmt_page_check(p, &w, s->page + i, s->sequence + i, false) < 0) {
			s->dev->damaged++;
			continue;
		}
		if (take_records(s, p) < 0) {
			scan_failed(s, -ENOMEM);
			return;
		}
	}
	s->sequence += first->parts;
	s->page += first->chunk_pages;
	walk_on(s);
}

static void walk_read(struct dev_request *q, int error)
{
	struct scan *s = (struct scan *)q;
	const struct fmt_where w = where(s);
	const struct fmt_page *p = (const struct fmt_page *)s->buffer;

	if (error < 0)
		scan_failed(s, error);
	else if (fmt_page_check(p, &w, s->page, s->sequence, false) < 0 || p->part)
		scan_taken(s, 0);
	else if (p->parts > s->pages)
		scan_read(s, s->page, p->parts, walk_read);
	else
		walk_chunk(s);
}

static void header_read(struct dev_request *q, int error)
{
	struct scan *s = (struct scan *)q;
	const struct fmt_where w = segment_where(s->segment);
	struct fmt_segment h;

	if (error < 0) {
		scan_failed(s, error);
		return;
	}
	if (fmt_segment_check(s->buffer, FMT_HEADER, &w, &h) == 0) {
		s->is = h;
	} else if (!s->is.generation) {
		if (!memcmp(s->buffer, FMT_HEADER, 8) &&
			!memcmp(s->buffer + offsetof(struct fmt_segment, id), w.id, 16))
			s->dev->damaged++;
		segment_add_free(s->segment);
		scan_next(s);
		return;
	}
	s->page = 1;
	walk_on(s);
}

/* ---- a closed segment ---- */

static void to_header(struct scan *s)
{
	s->n_found = 0;
	scan_read(s, 0, 1, header_read);
}

static void summary_take(struct scan *s)
{
	const struct fmt_where w = where(s);
	/* all its pages have been read: no more than they can hold */
	const int none = room_for(s, s->is.n_records);

	for (uint32_t i = 0; i < s->is.summary_pages; i++) {
		const struct fmt_page *p = read_page(s, s->is.summary + i);
		int r = none ? none : fmt_page_check(p, &w, s->is.summary + i, i, true);

		if (r == 0)
			r = take_records(s, p);
		if (r == -ENOMEM) {
			scan_failed(s, r);
			return;
		}
		if (r < 0 || (i + 1 < s->is.summary_pages && p->n_records != FMT_PER_PAGE)) {
			s->dev->damaged++;
			to_header(s);
			return;
		}
	}
	if (s->n_found != s->is.n_records)
		to_header(s);
	else
		scan_taken(s, s->is.summary);
}

static void summary_read(struct dev_request *q, int error)
{
	struct scan *s = (struct scan *)q;

	if (error == -ENOMEM)
		scan_failed(s, error);
	else if (error < 0)
		to_header(s);
	else
		summary_take(s);
}

static void tail_read(struct dev_request *q, int error)
{
	struct scan *s = (struct scan *)q;
	const struct fmt_where w = segment_where(s->segment);
	uint32_t last = s->dev->segment_pages - 1;

	if (error == -ENOMEM)
		scan_failed(s, error);
	else if (error < 0 ||
		fmt_segment_check((const void *)read_page(s, last), FMT_TRAILER, &w, &s->is) < 0)
		to_header(s);
	else if (s->is.summary >= s->page)
		summary_take(s);
	else
		scan_read(s, s->is.summary, s->is.summary_pages, summary_read);
}

/* ---- all of them ---- */

static void scan_next(struct scan *s)
{
	uint32_t last = s->dev->segment_pages - 1;

	if (*s->next == s->dev->super.n_segments || s->recovery->error < 0) {
		s->recovery->active--;
		free(s->large);
		free(s);
		return;
	}
	s->segment = &s->dev->segments[(*s->next)++];
	s->is.generation = 0;
	s->n_found = s->sequence = 0;
	scan_read(s, last + 1 - TAIL_PAGES, TAIL_PAGES, tail_read);
}

static void scans_start(struct recovery *r, struct disk_device *dev, uint32_t *next)
{
	for (unsigned i = 0; i < SCANS && i < dev->super.n_segments; i++) {
		struct scan *s = calloc(1, sizeof(*s));

		void *tail = bulk_alloc(&r->buffers, DISK_PAGE, TAIL_PAGES * DISK_PAGE);

		if (!s || !tail) {
			free(s);
			r->error = -ENOMEM;
			return;
		}
		s->recovery = r;
		s->tail = tail;
		s->dev = dev;
		s->next = next;
		r->active++;
		scan_next(s);
	}
}

int recover_read(struct disk *d, struct loop *loop)
{
	struct recovery r = {.disk = d};
	uint32_t next[DISK_DEVICES_MAX] = {0};

	for (unsigned i = 0; i < d->n_devices; i++)
		scans_start(&r, d->devices[i], &next[i]);
	while (r.active)
		if (d->deferred)
			disk_deliver(d);
		else
			loop_run_once(loop, -1);
	for (unsigned i = 0; i < d->n_devices; i++)
		if (d->devices[i]->damaged)
			log_warning("records of a disk are damaged, what they say of is lost",
				"path=\"%s\" pages=%llu", d->devices[i]->path,
				(unsigned long long)d->devices[i]->damaged);
	bulk_free(&r.buffers);
	return r.error;
}
