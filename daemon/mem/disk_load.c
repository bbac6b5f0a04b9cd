/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading a plane back. It is checked on the device's thread: that these bytes are a whole plane, of this key and number, and as long
 * as its record says.
 */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/mem/disk_device.h"
#include "proto/plane.h"

struct load {
	struct dev_request q;
	struct disk_load *load;
	struct disk_segment *segment;
	uint32_t item;
	uint64_t bytes;
	struct kvg_key key;
	unsigned plane;
};

int load_verify(const void *bytes, uint64_t n, const struct kvg_key *key, unsigned plane)
{
	struct plane_view v;

	if (plane_open(bytes, n, &v) < 0 || v.bytes != n || v.plane != plane ||
		memcmp((const uint8_t *)bytes + offsetof(struct kvg_plane_header, key), key,
			sizeof(*key)))
		return -EBADMSG;
	return plane_verify(bytes, n);
}

static void check(struct io_request *r)
{
	struct load *w = (struct load *)r;

	r->result = load_verify(w->q.iov.iov_base, w->bytes, &w->key, w->plane);
}

void load_count(struct disk_device *dev, int error)
{
	struct disk *d = dev->disk;

	if (error == -EBADMSG)
		d->stat.bad_planes++;
	else
		d->stat.load_errors++;
	if (disk_log_now(&d->bad_logged_at))
		log_warning(error == -EBADMSG
				? "a plane on a disk is damaged, and counts as not there"
				: "a plane cannot be read from a disk",
			"path=\"%s\" error=\"%s\" bad_planes=%llu load_errors=%llu", dev->path,
			strerror(-error), (unsigned long long)d->stat.bad_planes,
			(unsigned long long)d->stat.load_errors);
}

static void ended(struct dev_request *q, int error)
{
	struct load *w = (struct load *)q;
	struct disk_load *l = w->load;
	struct disk_segment *s = w->segment;
	struct disk *d = q->dev->disk;

	if (error < 0)
		load_count(q->dev, error);
	else
		d->stat.loaded_bytes += w->bytes;
	l->error = error;
	s->items[w->item].loads--;
	s->loads--;
	if (q->dev->failed && s->state != SEGMENT_FREE)
		q->dev->lost = true; /* a turn tells of it, if it is still there */
	free(w);
	l->done(l);
	clean_load_ended(s);
	segment_try_free(s);
}

/* It did not even begin. */
static void refuse(struct disk *d, struct disk_load *l, int error)
{
	l->error = error;
	l->next = d->refused_loads;
	d->refused_loads = l;
	disk_wake(d);
}

void load_turn(struct disk *d)
{
	struct disk_load *l = d->refused_loads, *next;

	d->refused_loads = NULL;
	for (; l; l = next) {
		next = l->next;
		l->done(l);
	}
}

void disk_load(struct disk *d, struct disk_load *l)
{
	struct disk_segment *s = segment_at(d, l->place);
	bool many = s && s->items[l->place.item].loads == UINT16_MAX;
	struct load *w = s && !many ? calloc(1, sizeof(*w)) : NULL;

	loop_assert_owner(d->o.loop);
	assert((uintptr_t)l->addr % DISK_PAGE == 0);
	if (!w) {
		refuse(d, l, !s ? -ENOENT : many ? -EAGAIN : -ENOMEM);
		return;
	}
	w->load = l;
	w->segment = s;
	w->item = l->place.item;
	w->bytes = s->items[w->item].bytes;
	w->key = *l->key;
	w->plane = l->plane;
	w->q.iov.iov_base = l->addr;
	w->q.io.check = check;
	w->q.ended = ended;
	s->items[w->item].loads++;
	s->loads++;
	dev_submit(s->dev, &w->q, IO_READ, segment_offset(s, s->items[w->item].page),
		(uint64_t)fmt_pages(w->bytes) * DISK_PAGE);
}
