/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What recovery found, told to the owner. Of several records of one plane - it was stored again, or it was moved and the old
 * segment was not free yet: the same order - the latest holds, and when that one is dead, so are the others. A copy that a
 * power cut may have left half written, with another one behind it, is read before it is believed.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"
#include "proto/plane.h"

struct ref {
	struct disk_segment *segment;
	uint64_t order;
	uint32_t item;
	uint32_t hash;   /* of the plane that this is a record of */
	uint32_t bucket; /* of it; set by settle() */
	bool dead, good; /* good: it was read */
};

/* Of one tenant, latest first; and a hash table over them. */
struct refs {
	struct ref *ref;
	size_t n, buckets;
	uint32_t *bucket; /* 1 + number */
};

static const struct fmt_record *record_of(const struct ref *r)
{
	return &r->segment->found[r->item];
}

static int latest_first(const void *a, const void *b)
{
	const struct ref *x = a, *y = b;

	return x->order < y->order ? 1 : x->order > y->order ? -1 : 0;
}

typedef void (*segment_fn)(struct disk_segment *s, void *userdata);
static void each_segment(struct disk *d, const struct disk_tenant *t, segment_fn fn, void *userdata)
{
	for (unsigned i = 0; i < d->n_devices; i++)
		for (uint32_t k = 0; k < d->devices[i]->super.n_segments; k++) {
			struct disk_segment *s = &d->devices[i]->segments[k];

			if (s->state == SEGMENT_CLOSED && s->tenant == t && s->found)
				fn(s, userdata);
		}
}

static void count(struct disk_segment *s, void *userdata)
{
	((struct refs *)userdata)->n += s->n_items;
}

static void collect(struct disk_segment *s, void *userdata)
{
	struct refs *l = userdata;

	for (uint32_t i = 0; i < s->n_items; i++)
		l->ref[l->n++] = (struct ref){
			.segment = s,
			.item = i,
			.order = fmt_order(&s->found[i]),
			.dead = s->found[i].flags & FMT_DEAD,
			.hash = crc32c(
				s->found[i].plane, &s->found[i].key, sizeof(s->found[i].key)),
		};
}

static int refs_make(struct disk *d, const struct disk_tenant *t, struct refs *ret)
{
	struct refs l = {.buckets = 16};

	each_segment(d, t, count, &l);
	if (l.n >= UINT32_MAX / 4) /* buckets have 32-bit numbers */
		return -ENOMEM;
	while (l.buckets < 2 * l.n)
		l.buckets *= 2;
	l.ref = calloc(l.n ? l.n : 1, sizeof(*l.ref));
	l.bucket = calloc(l.buckets, sizeof(*l.bucket));
	if (!l.ref || !l.bucket) {
		free(l.ref);
		free(l.bucket);
		return -ENOMEM;
	}
	l.n = 0;
	each_segment(d, t, collect, &l);
	qsort(l.ref, l.n, sizeof(*l.ref), latest_first);
	*ret = l;
	return 0;
}

static void refs_free(struct refs *l)
{
	free(l->ref);
	free(l->bucket);
}

/* The bucket of the plane that this is a record of. Records are looked at only where hashes agree: they are in no cache. */
static uint32_t bucket_of(const struct refs *l, const struct ref *ref)
{
	const struct fmt_record *r = record_of(ref);
	size_t at = ref->hash & (l->buckets - 1);

	for (; l->bucket[at]; at = (at + 1) & (l->buckets - 1)) {
		const struct ref *taken = &l->ref[l->bucket[at] - 1];
		const struct fmt_record *other = record_of(taken);

		if (taken->hash == ref->hash && other->plane == r->plane &&
			!memcmp(&other->key, &r->key, sizeof(r->key)))
			break;
	}
	return (uint32_t)at;
}

static bool plane_good(const struct ref *at)
{
	const struct fmt_record *r = record_of(at);
	size_t bytes = (size_t)fmt_pages(r->bytes) * DISK_PAGE;
	void *buffer = aligned_alloc(DISK_PAGE, bytes);
	bool good = buffer &&
		pread(at->segment->dev->fd, buffer, bytes,
			(off_t)segment_offset(at->segment, r->page)) == (ssize_t)bytes &&
		load_verify(buffer, r->bytes, &r->key, r->plane) == 0;

	free(buffer);
	return good;
}

/* Number n, after all later ones. */
static void settle(struct refs *l, size_t n)
{
	struct ref *r = &l->ref[n], *first;
	uint32_t *bucket;

	r->bucket = bucket_of(l, r);
	bucket = &l->bucket[r->bucket];
	if (!*bucket) {
		*bucket = (uint32_t)n + 1;
		return;
	}
	first = &l->ref[*bucket - 1];
	if (first->order == r->order && first->dead != r->dead) {
		if (first->dead) /* an erasure that no sync has waited for: then there would be no other copy */
			*bucket = (uint32_t)n + 1;
		return;
	}
	if (first->dead || first->good || (first->order != r->order && first->segment->summary))
		return;
	first->good = plane_good(first);
	if (!first->good)
		*bucket = (uint32_t)n + 1;
}

/* ---- notes ---- */

static int note_read(const struct ref *at, uint8_t *buffer)
{
	const struct fmt_record *r = record_of(at);
	size_t bytes = (size_t)fmt_pages(r->bytes) * DISK_PAGE;
	ssize_t n = pread(
		at->segment->dev->fd, buffer, bytes, (off_t)segment_offset(at->segment, r->page));

	if (n != (ssize_t)bytes)
		return n < 0 ? -errno : -EIO;
	return crc32c(0, buffer, r->bytes) == r->crc ? 0 : -EBADMSG;
}

/* Each once, from whichever copy is good. */
static int tell_notes(const struct disk_found *f, void *owner, const struct refs *l)
{
	uint8_t *buffer = aligned_alloc(DISK_PAGE, DISK_NOTE_MAX);
	uint32_t *told = NULL;
	size_t n = 0;
	int r = buffer ? 0 : -ENOMEM;

	for (size_t i = 0; r == 0 && i < l->n; i++) {
		const struct fmt_record *rec = record_of(&l->ref[i]);
		bool known = rec->type != FMT_NOTE;

		for (size_t k = 0; k < n && !known; k++)
			known = told[k] == rec->note;
		if (known || note_read(&l->ref[i], buffer) < 0)
			continue;
		if (!(n & (n - 1))) {
			void *p = realloc(told, (n ? n * 2 : 1) * sizeof(*told));

			if (!p) {
				r = -ENOMEM;
				break;
			}
			told = p;
		}
		told[n++] = rec->note;
		r = f->note ? f->note(f->userdata, owner, rec->note, buffer, rec->bytes) : 0;
	}
	free(told);
	free(buffer);
	return r;
}

/* ---- planes ---- */

static void tell_plane(const struct disk_found *f, void *owner, const struct ref *at)
{
	struct disk_segment *s = at->segment;
	struct disk_record rec;
	void *item;

	fmt_record_read(record_of(at), &rec);
	item = f->plane(f->userdata, owner, &rec, item_place(s, at->item));
	if (item)
		item_adopt(s, at->item, item);
}

static bool counts(const struct ref *r)
{
	return record_of(r)->type == FMT_PLANE && !(record_of(r)->flags & FMT_VOID);
}

static int tell_tenant(struct disk *d, struct disk_tenant *t, const struct disk_found *f)
{
	struct refs l;
	int r = f->tenant(f->userdata, t->name, &t->owner);

	if (r < 0)
		return r == -ENOENT ? 0 : r;
	r = refs_make(d, t, &l);
	if (r < 0)
		return r;
	r = tell_notes(f, t->owner, &l);
	for (size_t i = 0; i < l.n; i++)
		if (counts(&l.ref[i]))
			settle(&l, i);
	for (size_t i = 0; r == 0 && i < l.n; i++) {
		struct ref *at = &l.ref[i];

		if (!counts(at))
			continue;
		if (l.bucket[at->bucket] != i + 1)
			edit_void(at->segment, at->item,
				NULL); /* or it would be found when the better one is gone */
		else if (!at->dead)
			tell_plane(f, t->owner, at);
	}
	refs_free(&l);
	return r;
}

/* The records are not needed any more, and segments on which nothing lives can go. */
static void finish(struct disk *d, bool sweep)
{
	d->recovered = true;
	for (unsigned i = 0; i < d->n_devices; i++)
		for (uint32_t k = 0; k < d->devices[i]->super.n_segments; k++) {
			struct disk_segment *s = &d->devices[i]->segments[k];

			free(s->found);
			s->found = NULL;
			if (sweep)
				segment_try_free(s);
		}
}

int disk_recover(struct disk *d, const struct disk_found *f)
{
	int r = 0;

	if (d->recovered)
		return 0;
	for (struct disk_tenant *t = d->tenants; t && r == 0; t = t->next)
		r = tell_tenant(d, t, f);
	finish(d, r == 0); /* what could not be told stays on the devices */
	return r;
}

void recover_forget(struct disk *d)
{
	if (!d->recovered)
		finish(d, true);
}
