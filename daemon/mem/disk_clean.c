/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Room. When few segments of a device are free, or a tenant is at his limit, the closed segment that costs least is looked
 * at: the owner says of each plane on it whether it is worth keeping, what is not is forgotten at once. If that leaves something to
 * gain, the rest is moved to his open segment for moved planes, and the segment is freed:
 *
 *	judge -> { record page, plane -> bounce memory -> append } ... -> sync -> tell the owner -> free
 *
 * Until the sync the old place holds: it is loaded from, forgotten and erased there, and a power cut finds it. What was moved is
 * not live in its new segment before; a hold (as if it were being loaded) keeps that segment meanwhile.
 *
 * A segment on which nearly everything is kept is not moved but judged, and left for this pass. When a pass has nothing left
 * the device is stuck: stores get -ENOSPC, and only segments that were closed since, or of which something was forgotten, are looked
 * at; all of them after a second, since what is worth keeping changes with time.
 *
 * One segment of a device at a time takes at most one free segment and gives one back, so that the reserve is enough.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"

#define BOUNCE_BYTES    (8u << 20)
#define JUDGED_PER_TURN 4u
#define PASS_NS         1000000000u

struct move {
	struct dev_request q; /* first: ended() casts */
	struct move *next;
	struct clean *clean;
	struct disk_store store;
	uint32_t item;
	uint64_t order; /* stays what it was: no later one is hidden by it */
	void *bounce;
};

struct clean {
	struct disk_device *dev;
	struct disk_segment *victim; /* NULL: idle */
	struct epoch *epoch;
	uint32_t next;         /* item */
	struct dev_request q;  /* record pages, and the sync */
	struct fmt_page *page; /* of the records */
	uint32_t page_at;      /* 0: not read */
	bool use_head;         /* the summary is none, or damaged */
	bool reading, telling;
	unsigned moving;
	uint64_t moving_bytes;
	struct move *moved; /* stored, and not told */
	int error;
};

static void advance(struct clean *c);

/* ---- which one ---- */

static bool is_low(const struct disk_device *dev)
{
	return dev->n_free + dev->n_freeing <=
		device_reserve(dev) + 1 + dev->super.n_segments / 100;
}

static bool somebody_wants(const struct disk *d)
{
	for (const struct disk_tenant *t = d->tenants; t; t = t->next)
		if (t->wants_room)
			return true;
	return false;
}

/* Least to move first, in sixteenths; of those the oldest. */
static bool cheaper(const struct disk_segment *a, const struct disk_segment *b)
{
	uint64_t unit = a->dev->super.segment_bytes / 16;
	uint64_t x = a->live_bytes / unit, y = b->live_bytes / unit;

	return x < y || (x == y && a->generation < b->generation);
}

static struct disk_segment *pick(struct disk_device *dev, bool low)
{
	struct disk_segment *best = NULL;

	for (uint32_t i = 0; i < dev->super.n_segments; i++) {
		struct disk_segment *s = &dev->segments[i];

		if (s->state != SEGMENT_CLOSED || s->judged == dev->pass || s->loads ||
			s->editing || s->edit_queued || !(low || s->tenant->wants_room))
			continue;
		if (!best || cheaper(s, best))
			best = s;
	}
	return best;
}

/* Half full, and nobody writes to it: closed, it can be cleaned. */
static bool close_idle(struct disk_device *dev)
{
	struct disk_segment *best = NULL;

	for (uint32_t i = 0; i < dev->super.n_segments; i++) {
		struct disk_segment *s = &dev->segments[i];

		if (s->state == SEGMENT_OPEN && !s->class && !s->open->full && !s->open->first &&
			!s->open->filling && s->n_items &&
			(!best || s->generation < best->generation))
			best = s;
	}
	if (!best || dev->idle_pass == dev->pass)
		return false;
	dev->idle_pass = dev->pass;
	append_seal(best);
	return true;
}

/* ---- judging ---- */

/* What is not kept is forgotten. true: there is something to gain. */
static bool judge(struct disk_segment *s)
{
	struct disk_device *dev = s->dev;
	const struct disk_owner *o = &dev->disk->o.owner;
	uint64_t usable = dev->segment_pages - FMT_OVERHEAD, kept;

	for (uint32_t i = 0; s->live && i < s->n_items; i++) {
		struct disk_item *it = &s->items[i];

		if (!(it->flags & ITEM_LIVE))
			continue;
		if (it->loads || o->keep(it->item, it->plane))
			it->flags |= ITEM_MOVING;
		else
			item_drop(s, i);
	}
	kept = s->live_bytes / DISK_PAGE + fmt_parts(s->live);
	return kept * 8 <= usable * 7;
}

static void unmark(struct disk_segment *s)
{
	for (uint32_t i = 0; i < s->n_items; i++)
		s->items[i].flags &= (uint8_t)~ITEM_MOVING;
}

static bool begin(struct disk_device *dev, struct disk_segment *s)
{
	struct clean *c = dev->clean;

	if (!c) {
		c = dev->clean = calloc(1, sizeof(*c));
		if (!c)
			return false;
		c->dev = dev;
	}
	if (!c->page)
		c->page = aligned_alloc(DISK_PAGE, DISK_PAGE);
	if (!c->page)
		return false;
	c->victim = s;
	c->epoch = op_begin(dev->disk);
	c->next = c->page_at = 0;
	c->error = 0;
	c->use_head = !s->summary;
	s->cleaning = true;
	advance(c);
	return true;
}

/* ---- the end ---- */

static void end(struct clean *c)
{
	struct disk_segment *s = c->victim;
	struct disk_device *dev = c->dev;

	c->victim = NULL;
	c->telling = false;
	s->cleaning = false;
	if (s->live) { /* not all of it could be moved: what was must not be found here */
		unmark(s);
		s->judged = dev->pass;
		for (uint32_t i = 0; i < s->n_items; i++)
			if (s->items[i].flags & ITEM_MOVED)
				edit_void(s, i, c->epoch);
	}
	segment_free_for(s, c->epoch);
	op_end(dev->disk, c->epoch, 0);
	disk_wake(dev->disk);
}

static void tell_one(struct clean *c, struct move *m)
{
	struct disk_segment *from = c->victim;
	struct disk_segment *to = &c->dev->segments[m->store.place.segment];
	struct disk_item *it = &from->items[m->item];
	void *item = it->item;

	to->loads--;
	if (it->flags & ITEM_LIVE) {
		item_drop(from, m->item);
		it->flags |= ITEM_MOVED;
		item_adopt(to, m->store.place.item, item);
		c->dev->disk->o.owner.moved(item, it->plane, m->store.place);
	} else {
		if (it->flags & ITEM_ERASED)
			edit_erase(to, m->store.place.item, c->epoch);
		else
			item_forget(to, m->store.place.item);
		segment_try_free(to);
	}
	free(m);
}

/* Those that are being loaded wait for it. */
static void tell(struct clean *c)
{
	struct move *m = c->moved, *next;

	c->moved = NULL;
	for (; m; m = next) {
		next = m->next;
		if (c->victim->items[m->item].loads) {
			m->next = c->moved;
			c->moved = m;
		} else {
			tell_one(c, m);
		}
	}
	if (!c->moved)
		end(c);
}

void clean_load_ended(struct disk_segment *s)
{
	struct clean *c = s->dev->clean;

	if (c && c->victim == s && c->telling)
		tell(c);
}

static void synced(struct dev_request *q, int error)
{
	struct clean *c = q->dev->clean;

	if (error < 0)
		device_no_writes(q->dev, "a sync has failed", error);
	c->reading = false;
	c->telling = true;
	tell(c);
}

static void finish(struct clean *c)
{
	if (!c->moved) {
		end(c);
		return;
	}
	memset(&c->q, 0, sizeof(c->q));
	c->q.ended = synced;
	c->telling = false;
	c->reading = true; /* q is in use, and nothing else is to be begun */
	dev_submit(c->dev, &c->q, IO_SYNC, 0, 0);
}

/* ---- moving ---- */

static void lose(struct clean *c, uint32_t i)
{
	struct disk_segment *s = c->victim;
	struct disk_item *it = &s->items[i];

	if (!(it->flags & ITEM_LIVE) || it->loads || c->dev->failed)
		return;
	item_drop(s, i);
	c->dev->disk->o.owner.moved(it->item, it->plane, (struct disk_place){0});
}

static void move_over(struct move *m, bool keep)
{
	struct clean *c = m->clean;

	c->moving--;
	c->moving_bytes -= (uint64_t)fmt_pages(m->store.record.bytes) * DISK_PAGE;
	free(m->bounce);
	m->bounce = NULL;
	if (keep) {
		m->next = c->moved;
		c->moved = m;
	} else {
		free(m);
	}
	advance(c);
}

static void move_stored(struct disk_store *st)
{
	struct move *m = (struct move *)((char *)st - offsetof(struct move, store));
	struct clean *c = m->clean;

	if (st->error < 0)
		c->error = st->error;
	else
		c->dev->segments[st->place.segment].loads++; /* the hold */
	move_over(m, st->error == 0);
}

static void move_check(struct io_request *r)
{
	const struct move *m = (const struct move *)r;

	r->result = load_verify(
		m->bounce, m->store.record.bytes, &m->store.record.key, m->store.record.plane);
}

static void move_read(struct dev_request *q, int error)
{
	struct move *m = (struct move *)q;
	struct clean *c = m->clean;
	struct disk_segment *s = c->victim;

	if (error < 0) {
		load_count(c->dev, error);
		lose(c, m->item);
	} else if (s->items[m->item].flags & ITEM_LIVE) {
		m->store.tenant = s->tenant;
		m->store.addr = m->bounce;
		m->store.item = s->items[m->item].item;
		m->store.done = move_stored;
		error = append_store(s->tenant, &m->store, 1, c->dev, m->order);
		if (error == 0)
			return;
		c->error = error;
	}
	move_over(m, false);
}

static int move_start(struct clean *c, uint32_t i, const struct fmt_record *rec)
{
	struct move *m = calloc(1, sizeof(*m));
	uint64_t room = (uint64_t)fmt_pages(rec->bytes) * DISK_PAGE;

	if (m)
		m->bounce = aligned_alloc(DISK_PAGE, room);
	if (!m || !m->bounce) {
		free(m);
		return -ENOMEM;
	}
	m->clean = c;
	m->item = i;
	fmt_record_read(rec, &m->store.record);
	m->order = fmt_order(rec);
	m->q.iov.iov_base = m->bounce;
	m->q.io.check = move_check;
	m->q.ended = move_read;
	c->moving++;
	c->moving_bytes += room;
	dev_submit(c->dev, &m->q, IO_READ, segment_offset(c->victim, rec->page), room);
	return 0;
}

/* ---- the records of what is moved ---- */

static uint32_t record_page(const struct clean *c, uint32_t i)
{
	return c->use_head ? c->victim->items[i].head : c->victim->summary + i / FMT_PER_PAGE;
}

/* On the page that was read; NULL: it is not the one. */
static const struct fmt_record *record_of(const struct clean *c, uint32_t i)
{
	const struct disk_segment *s = c->victim;
	const struct fmt_record *r;
	uint32_t k = i % FMT_PER_PAGE;

	if (c->use_head)
		for (k = 0; k < i && s->items[i - k - 1].head == s->items[i].head;)
			k++;
	if (k >= c->page->n_records)
		return NULL;
	r = &c->page->record[k];
	return r->type == FMT_PLANE && r->page == s->items[i].page && r->bytes == s->items[i].bytes
		? r
		: NULL;
}

static void page_read(struct dev_request *q, int error)
{
	struct clean *c = q->dev->clean;
	const struct fmt_where w = segment_where(c->victim);

	c->reading = false;
	if (error == 0)
		error = fmt_page_check(c->page, &w, c->page_at, c->page->sequence, !c->use_head);
	if (error < 0) {
		c->page_at = 0;
		if (!c->use_head)
			c->use_head = true;
		else if (error == -EBADMSG)
			lose(c, c->next++);
		else
			c->error = error;
	}
	advance(c);
}

static void advance(struct clean *c)
{
	struct disk_segment *s = c->victim;

	while (!c->reading && !c->error && c->next < s->n_items) {
		struct disk_item *it = &s->items[c->next];
		const struct fmt_record *r;

		if ((it->flags & (ITEM_LIVE | ITEM_MOVING)) != (ITEM_LIVE | ITEM_MOVING)) {
			c->next++;
			continue;
		}
		if (c->page_at != record_page(c, c->next)) {
			memset(&c->q, 0, sizeof(c->q));
			c->page_at = record_page(c, c->next);
			c->reading = true;
			c->q.iov.iov_base = c->page;
			c->q.ended = page_read;
			dev_submit(
				c->dev, &c->q, IO_READ, segment_offset(s, c->page_at), DISK_PAGE);
			return;
		}
		if (c->moving && c->moving_bytes + it->bytes > BOUNCE_BYTES)
			return;
		r = record_of(c, c->next);
		if (!r && !c->use_head)
			c->use_head = true;
		else if (!r)
			lose(c, c->next++);
		else
			c->error = move_start(c, c->next++, r);
	}
	if (!c->reading && !c->moving)
		finish(c);
}

/* ---- turns ---- */

static void stuck(struct disk_device *dev)
{
	struct disk *d = dev->disk;

	if (!dev->stuck)
		dev->stuck_at = loop_now_ns();
	dev->stuck = true;
	dev->fresh = false;
	for (struct disk_tenant *t = d->tenants; t; t = t->next)
		t->wants_room = false;
}

static bool step(struct disk_device *dev, bool low)
{
	struct disk_segment *s = pick(dev, low);

	if (!s) {
		if (!low || !close_idle(dev))
			stuck(dev);
		return false;
	}
	if (judge(s) && s->live) {
		begin(dev, s);
		return false;
	}
	if (s->live) {
		unmark(s);
		s->judged = dev->pass;
		return true;
	}
	segment_try_free(s);
	return false;
}

void clean_turn(struct disk_device *dev)
{
	struct disk *d = dev->disk;
	bool low = is_low(dev);

	if (dev->no_writes || d->closing || (dev->clean && dev->clean->victim) ||
		(!low && !somebody_wants(d)))
		return;
	if (!dev->pass || (dev->stuck && loop_now_ns() - dev->stuck_at >= PASS_NS)) {
		dev->stuck = false;
		dev->pass++;
	}
	if (dev->stuck && !dev->fresh)
		return;
	for (unsigned i = 0; i < JUDGED_PER_TURN; i++)
		if (!step(dev, low))
			return;
	disk_wake(d);
}

void clean_free(struct disk_device *dev)
{
	struct clean *c = dev->clean;

	if (!c)
		return;
	while (c->moved) {
		struct move *m = c->moved;

		c->moved = m->next;
		free(m);
	}
	free(c->page);
	free(c);
	dev->clean = NULL;
}
