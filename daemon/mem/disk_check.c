/* SPDX-License-Identifier: Apache-2.0 */
/* A device that no daemon has, looked at the way a daemon would; nothing is written. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/mem/disk_device.h"

#define IN_FLIGHT (16u << 20)

/* A plane's pages, in memory of this scan. */
static bool plane_good(const struct disk_device *dev, const struct disk_segment *s,
	const struct fmt_record *r, void *buffer)
{
	size_t bytes = (size_t)fmt_pages(r->bytes) * DISK_PAGE;

	return pread(dev->fd, buffer, bytes, (off_t)segment_offset(s, r->page)) == (ssize_t)bytes &&
		load_verify(buffer, r->bytes, &r->key, r->plane) == 0;
}

static void count_segment(const struct disk_device *dev, const struct disk_segment *s, void *buffer,
	struct disk_info *ret)
{
	ret->free += s->state == SEGMENT_FREE;
	ret->damaged += s->state == SEGMENT_BAD;
	if (s->state != SEGMENT_CLOSED)
		return;
	ret->closed += s->summary != 0;
	ret->open += s->summary == 0;
	for (uint32_t i = 0; i < s->n_items; i++) {
		const struct fmt_record *r = &s->found[i];

		if (r->type != FMT_PLANE || r->flags & FMT_DEAD)
			continue;
		ret->planes++;
		ret->plane_bytes += r->bytes;
		if (buffer && !plane_good(dev, s, r, buffer))
			ret->bad_planes++;
	}
}

static int count(const struct disk *d, bool planes, struct disk_info *ret)
{
	const struct disk_device *dev = d->devices[0];
	void *buffer = planes ? aligned_alloc(DISK_PAGE, dev->super.segment_bytes) : NULL;

	if (planes && !buffer)
		return -ENOMEM;
	*ret = (struct disk_info){
		.version = dev->super.version,
		.bytes = dev->super.bytes,
		.segment_bytes = dev->super.segment_bytes,
		.segments = dev->super.n_segments,
		.damaged = dev->damaged,
	};
	memcpy(ret->id, dev->super.id, sizeof(ret->id));
	for (uint32_t i = 0; i < dev->super.n_segments; i++)
		count_segment(dev, &dev->segments[i], buffer, ret);
	for (const struct disk_tenant *t = d->tenants; t; t = t->next)
		ret->tenants++;
	free(buffer);
	return 0;
}

static int read_all(struct disk *d, bool planes, struct disk_info *ret)
{
	int r = device_start(d->devices[0], &d->o, d->o.loop);

	if (r == 0)
		r = recover_read(d, d->o.loop);
	if (r == 0)
		r = count(d, planes, ret);
	return r;
}

int disk_check(const char *path, bool planes, struct disk_info *ret, char *why, size_t why_size)
{
	struct disk_options o = {.in_flight_bytes = IN_FLIGHT};
	struct disk_device *dev;
	struct disk *d;
	int r = device_open(path, false, &dev, why, why_size);

	if (r < 0)
		return r;
	r = loop_new(&o.loop);
	if (r < 0) {
		device_free(dev);
		snprintf(why, why_size, "%s", strerror(-r));
		return r;
	}
	r = disk_new(&o, &d);
	if (r == 0) {
		dev->disk = d;
		d->devices[d->n_devices++] = dev;
		r = read_all(d, planes, ret);
		disk_drop(d);
	} else {
		device_free(dev);
	}
	loop_free(o.loop);
	if (r < 0)
		snprintf(why, why_size, "cannot be read: %s", strerror(-r));
	return r;
}
