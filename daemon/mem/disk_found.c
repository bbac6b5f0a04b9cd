/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What recovery found, told to the owner. Of several records of one plane - it was stored again, or it was moved and the old
 * segment was not free yet: the same order - the latest holds, and when that one is dead, so are the others. A copy that a
 * power cut may have left half written, with another one behind it, is read before it is believed.
 */
#include <errno.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/base/log.h"
#include "daemon/base/order.h"
#include "daemon/mem/disk_device.h"
#include "proto/plane.h"

#define AHEAD 8u /* records whose memory is asked for before it is looked at */

enum ref_flag {
	REF_NOTE = 1,
	REF_COUNTS = 2, /* a plane that is not void */
	REF_DEAD = 4,
	REF_GOOD = 8,   /* it was read */
	REF_HOLDS = 16, /* of the records of its plane this one counts */
};

/* What is looked at of a record over and over: the record itself is in no cache. */
struct ref {
	uint64_t order;
	struct disk_segment *segment;
	uint32_t item;
	uint32_t hash; /* of the plane that this is a record of */
	uint8_t flags;
};

struct bucket {
	uint32_t hash;
	uint32_t ref; /* 1 + number of the one that holds */
};

/* Of one tenant, and a hash table over them. */
struct refs {
	struct ref *ref;
	size_t n, buckets;
	struct bucket *bucket;
	struct ordered *turn; /* [n]: latest first */
	struct bulk memory;   /* all of it */
};

static const struct fmt_record *record_of(const struct ref *r)
{
	return &r->segment->found[r->item];
}

static void prefetch_record(const struct fmt_record *r)
{
	for (size_t at = 0; at < sizeof(*r); at += 64)
		__builtin_prefetch((const uint8_t *)r + at);
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

/* Keys are hashes, mostly; an engine that brings its own may have them begin, or end, alike. */
static uint32_t hash_of(const struct fmt_record *r)
{
	uint64_t word[4], h = r->plane;

	static_assert(sizeof(word) == sizeof(r->key), "all of the key");
	memcpy(word, &r->key, sizeof(word));
	for (unsigned i = 0; i < 4; i++) {
		h = (h ^ word[i]) * 0x9e3779b97f4a7c15ull;
		h ^= h >> 32;
	}
	return (uint32_t)h;
}

static uint8_t flags_of(const struct fmt_record *r)
{
	if (r->type == FMT_NOTE)
		return REF_NOTE;
	return (uint8_t)((r->flags & FMT_VOID ? 0 : REF_COUNTS) |
		(r->flags & FMT_DEAD ? REF_DEAD : 0));
}

static void collect(struct disk_segment *s, void *userdata)
{
	struct refs *l = userdata;

	for (uint32_t i = 0; i < s->n_items; i++, l->n++) {
		const struct fmt_record *r = &s->found[i];

		if (i + 2 * AHEAD < s->n_items)
			prefetch_record(r + 2 * AHEAD);
		l->ref[l->n] = (struct ref){
			.segment = s,
			.item = i,
			.order = fmt_order(r),
			.flags = flags_of(r),
			.hash = hash_of(r),
		};
		l->turn[l->n] =
			(struct ordered){.key = ~l->ref[l->n].order, .number = (uint32_t)l->n};
	}
}

static void *refs_alloc(struct refs *l, size_t n, size_t each)
{
	return bulk_alloc(&l->memory, alignof(max_align_t), (n ? n : 1) * each);
}

static int refs_make(struct disk *d, const struct disk_tenant *t, struct refs *ret)
{
	struct refs l = {.buckets = 16};
	struct ordered *spare;

	each_segment(d, t, count, &l);
	if (l.n >= UINT32_MAX / 4) /* buckets have 32-bit numbers */
		return -ENOMEM;
	while (l.buckets < 2 * l.n)
		l.buckets *= 2;
	l.ref = refs_alloc(&l, l.n, sizeof(*l.ref));
	l.bucket = refs_alloc(&l, l.buckets, sizeof(*l.bucket));
	l.turn = refs_alloc(&l, l.n, sizeof(*l.turn));
	spare = refs_alloc(&l, l.n, sizeof(*spare));
	if (!l.ref || !l.bucket || !l.turn || !spare) {
		bulk_free(&l.memory);
		return -ENOMEM;
	}
	memset(l.bucket, 0, l.buckets * sizeof(*l.bucket));
	l.n = 0;
	each_segment(d, t, collect, &l);
	l.turn = order_sort(l.turn, spare, l.n);
	*ret = l;
	return 0;
}

static struct bucket *first_bucket(const struct refs *l, const struct ref *ref)
{
	return &l->bucket[ref->hash & (l->buckets - 1)];
}

static bool same_plane(const struct fmt_record *a, const struct fmt_record *b)
{
	return a->plane == b->plane && !memcmp(&a->key, &b->key, sizeof(a->key));
}

/* The bucket of the plane that this is a record of. Records are looked at only where hashes agree. */
static struct bucket *bucket_of(const struct refs *l, const struct ref *ref)
{
	struct bucket *b = first_bucket(l, ref);

	while (b->ref &&
		!(b->hash == ref->hash &&
			same_plane(record_of(&l->ref[b->ref - 1]), record_of(ref))))
		b = &l->bucket[(size_t)(b + 1 - l->bucket) & (l->buckets - 1)];
	return b;
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

static void holds(struct refs *l, struct bucket *b, struct ref *r)
{
	if (b->ref)
		l->ref[b->ref - 1].flags &= (uint8_t)~REF_HOLDS;
	r->flags |= REF_HOLDS;
	*b = (struct bucket){.hash = r->hash, .ref = (uint32_t)(r - l->ref) + 1};
}

/* After all later ones. */
static void settle(struct refs *l, struct ref *r)
{
	struct bucket *bucket = bucket_of(l, r);
	struct ref *first;

	if (!bucket->ref) {
		holds(l, bucket, r);
		return;
	}
	first = &l->ref[bucket->ref - 1];
	if (first->order == r->order && (first->flags ^ r->flags) & REF_DEAD) {
		/* an erasure that no sync has waited for: then there would be no other copy */
		if (first->flags & REF_DEAD)
			holds(l, bucket, r);
		return;
	}
	if (first->flags & (REF_DEAD | REF_GOOD) ||
		(first->order != r->order && first->segment->summary))
		return;
	if (plane_good(first))
		first->flags |= REF_GOOD;
	else
		holds(l, bucket, r);
}

static void settle_all(struct refs *l)
{
	for (size_t i = 0; i < l->n; i++) {
		struct ref *r = &l->ref[l->turn[i].number];

		if (i + AHEAD < l->n)
			__builtin_prefetch(first_bucket(l, &l->ref[l->turn[i + AHEAD].number]), 1);
		if (r->flags & REF_COUNTS)
			settle(l, r);
	}
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
		const struct ref *at = &l->ref[l->turn[i].number];
		const struct fmt_record *rec = record_of(at);
		bool known = !(at->flags & REF_NOTE);

		for (size_t k = 0; k < n && !known; k++)
			known = told[k] == rec->note;
		if (known || note_read(at, buffer) < 0)
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
	else
		item_forget(s, at->item);
}

/* Those that do not hold are made void, or they would be found when the better one is gone. */
static void tell_planes(const struct disk_found *f, void *owner, const struct refs *l)
{
	for (size_t i = 0; i < l->n; i++) {
		const struct ref *at = &l->ref[l->turn[i].number];

		if (i + AHEAD < l->n)
			prefetch_record(record_of(&l->ref[l->turn[i + AHEAD].number]));
		if (!(at->flags & REF_COUNTS))
			continue;
		if (!(at->flags & REF_HOLDS))
			edit_void(at->segment, at->item, NULL);
		else if (!(at->flags & REF_DEAD))
			tell_plane(f, owner, at);
	}
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
	settle_all(&l);
	if (r == 0)
		tell_planes(f, t->owner, &l);
	bulk_free(&l.memory);
	return r;
}

/* The records are not needed any more, and segments on which nothing lives can go. */
static void finish(struct disk *d, bool sweep)
{
	d->recovered = true;
	for (unsigned i = 0; i < d->n_devices; i++)
		for (uint32_t k = 0; k < d->devices[i]->super.n_segments; k++) {
			struct disk_segment *s = &d->devices[i]->segments[k];

			s->found = NULL;
			if (sweep)
				segment_try_free(s);
		}
	bulk_free(&d->found);
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
