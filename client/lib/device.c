/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planes on a GPU. The daemon's table says which planes of a block the device has and where; a pinned block's stay there, so that
 * an address is: load the entry's word, copy a ref, compare its check, add an offset. What a plane consists of follows from
 * the layout and the ref's numbers, and nothing is read from the device.
 *
 * A table holds more than a pin protects: planes that the pinned index word does not hold are on their way out (proto/shm.h).
 *
 * Segments are imported once, read-only, in the context that the caller gave, and found by their ids, which count up from
 * 1. One that the daemon gave back stays imported until the device is closed.
 *
 * After a restart of the daemon the table may be another one. It is the same file where the daemon took it over; else
 * nothing that was imported is known any more, but stays mapped, since kernels may still read it.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "gpu/vmm.h"

#define IDS_MAX (1u << 20) /* a segment is at least 1 MiB: a TiB of them */

struct device_segment {
	uint64_t base, bytes; /* base 0: not imported */
	uint32_t page_shift;
};

struct kvg_device {
	struct kvg_device *next;
	struct kvg_client *client;
	struct gpu_driver *driver;
	struct gpu_device *gpu;
	uint32_t number; /* the daemon's; 0: it does not use it any more */
	const struct kvg_shm_replicas *head;
	const struct kvg_shm_replica *entries;
	uint64_t n_slots, bytes;
	ino_t table;               /* which file it is */
	struct device_segment *at; /* [n] by id */
	uint32_t n;
	struct device_segment *old; /* [n_old] of a daemon that is gone */
	uint32_t n_old;
};

/* ---- the table ---- */

static const char *table_check(const struct kvg_client *c, const struct kvg_shm_replicas *h,
	const uint8_t *uuid, uint64_t bytes)
{
	if (memcmp(h->magic, KVG_REPLICAS_MAGIC, sizeof(h->magic)) || h->crc != replicas_crc(h))
		return "the table of replicas has no valid header";
	if (h->version != KVG_SHM_VERSION || h->entry_bytes != sizeof(struct kvg_shm_replica))
		return "the table of replicas has another version; update the older side";
	if (h->total_bytes > bytes || h->entries_off % 64 || h->entries_off < sizeof(*h) ||
		h->entries_off > bytes || h->n_slots != c->index.n_slots ||
		h->n_slots > (bytes - h->entries_off) / sizeof(struct kvg_shm_replica))
		return "the sizes in the table of replicas do not add up";
	if (memcmp(h->instance, c->index.head->instance, sizeof(h->instance)) ||
		memcmp(h->device, uuid, sizeof(h->device)))
		return "the table of replicas is another tenant's, or of another device";
	return NULL;
}

static void table_unmap(struct kvg_device *d)
{
	if (d->head)
		munmap((void *)(uintptr_t)d->head, d->bytes);
	d->head = NULL;
	d->entries = NULL;
}

/* In the place of the one that is there. */
static int table_map(struct kvg_device *d, int fd)
{
	struct kvg_client *c = d->client;
	struct kvg_shm_replicas h;
	const char *why;
	struct stat st;
	void *map;
	int r;

	if (fstat(fd, &st) < 0 || (uint64_t)st.st_size < sizeof(h))
		return client_fail(c, -EBADMSG, 0, "the table of replicas is too short");
	r = shared_map(fd, (uint64_t)st.st_size, false, &map, &why);
	if (r < 0)
		return client_fail(c, r, 0, "replicas: %s", why);
	memcpy(&h, map, sizeof(h));
	why = table_check(c, &h, gpu_device_info(d->gpu)->uuid, (uint64_t)st.st_size);
	if (why) {
		munmap(map, (size_t)st.st_size);
		return client_fail(c, -EBADMSG, 0, "%s", why);
	}
	table_unmap(d);
	d->head = map;
	d->entries = (const void *)((const uint8_t *)map + h.entries_off);
	d->n_slots = h.n_slots;
	d->bytes = (uint64_t)st.st_size;
	d->table = st.st_ino;
	return 0;
}

static int ask(struct kvg_device *d)
{
	Kvgate__V1__Device m = KVGATE__V1__DEVICE__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	int r;

	m.uuid.len = sizeof(gpu_device_info(d->gpu)->uuid);
	m.uuid.data = (uint8_t *)(uintptr_t)gpu_device_info(d->gpu)->uuid;
	q.body_case = KVGATE__V1__REQUEST__BODY_DEVICE;
	q.device = &m;
	r = client_call(d->client, &q, &reply);
	if (r < 0)
		return r;
	if (reply.n_fds != 1 || !reply.msg->device->device)
		r = client_end(d->client, -EPROTO, "a device reply without its table");
	else
		r = table_map(d, reply.fds[0]);
	if (r == 0)
		d->number = reply.msg->device->device;
	reply_fini(&reply);
	return r;
}

/* ---- segments ---- */

/* Nothing is found in them any more. */
static void segments_retire(struct kvg_device *d)
{
	for (uint32_t i = 0; i < d->n; i++) {
		struct device_segment *more;

		if (!d->at[i].base)
			continue;
		more = reallocarray(d->old, d->n_old + 1, sizeof(*more));
		if (!more)
			continue; /* stays mapped until the context ends */
		d->old = more;
		d->old[d->n_old++] = d->at[i];
	}
	free(d->at);
	d->at = NULL;
	d->n = 0;
}

static int segment_room(struct kvg_device *d, uint32_t id)
{
	uint32_t n = d->n ? d->n : 64;
	struct device_segment *more;

	if (id >= IDS_MAX)
		return client_fail(d->client, -EPROTO, 0, "segment %u of a device", id);
	while (n <= id)
		n *= 2;
	if (n == d->n)
		return 0;
	more = reallocarray(d->at, n, sizeof(*more));
	if (!more)
		return client_fail(d->client, -ENOMEM, 0, "out of memory");
	memset(more + d->n, 0, (n - d->n) * sizeof(*more));
	d->at = more;
	d->n = n;
	return 0;
}

static int import(struct kvg_device *d, const Kvgate__V1__SegmentInfo *info, int fd)
{
	char why[GPU_WHY_BYTES];
	struct device_segment *s;
	int r;

	if (!info->segment || info->tier != KVG_TIER_GPU || info->page_shift < 12 ||
		info->page_shift > 21)
		return client_fail(d->client, -EPROTO, 0, "segment %u: tier %u, page shift %u",
			info->segment, info->tier, info->page_shift);
	r = segment_room(d, info->segment);
	if (r < 0)
		return r;
	s = &d->at[info->segment];
	if (s->base)
		return 0;
	r = gpu_vmm_map(d->gpu, fd, info->bytes, false, &s->base, why, sizeof(why));
	if (r < 0) {
		s->base = 0;
		return client_fail(d->client, r, 0, "segment %u: %s", info->segment, why);
	}
	s->bytes = info->bytes;
	s->page_shift = info->page_shift;
	return 0;
}

static int segments_import(struct kvg_device *d, uint32_t *ids, size_t n)
{
	Kvgate__V1__MapSegments m = KVGATE__V1__MAP_SEGMENTS__INIT;
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	struct reply reply;
	int r;

	m.segments = ids;
	m.n_segments = n;
	m.device = d->number;
	q.body_case = KVGATE__V1__REQUEST__BODY_MAP_SEGMENTS;
	q.map_segments = &m;
	r = client_call(d->client, &q, &reply);
	if (r < 0)
		return r;
	for (size_t i = 0; i < reply.msg->map_segments->n_segments && r == 0; i++)
		r = import(d, reply.msg->map_segments->segments[i], reply.fds[i]);
	reply_fini(&reply);
	return r;
}

/* ---- life ---- */

static void device_free(struct kvg_device *d)
{
	char why[GPU_WHY_BYTES];

	segments_retire(d);
	for (uint32_t i = 0; i < d->n_old; i++)
		gpu_vmm_unmap(d->gpu, d->old[i].base, d->old[i].bytes, why, sizeof(why));
	free(d->old);
	table_unmap(d);
	gpu_device_close(d->gpu);
	gpu_driver_close(d->driver);
	free(d);
}

int kvg_device_open(
	struct kvg_client *c, const struct kvg_device_options *o, struct kvg_device **ret)
{
	struct kvg_device_options mine;
	char why[GPU_WHY_BYTES];
	struct kvg_device *d;
	int r = options_copy(c, &mine, sizeof(mine), o);

	if (r < 0)
		return r;
	if (!c->index.head)
		return client_fail(c, -EOPNOTSUPP, 0, "a control session has no planes to read");
	d = calloc(1, sizeof(*d));
	if (!d)
		return client_fail(c, -ENOMEM, 0, "out of memory");
	d->client = c;
	r = gpu_driver_open_as(
		mine.library ? mine.library : GPU_LIBRARY, &d->driver, why, sizeof(why));
	if (r == 0)
		r = gpu_device_here(d->driver, mine.context, &d->gpu, why, sizeof(why));
	if (r < 0)
		client_fail(c, r, 0, "%s", why);
	else
		r = ask(d);
	if (r < 0) {
		device_free(d);
		return r;
	}
	d->next = c->devices;
	c->devices = d;
	*ret = d;
	return 0;
}

void kvg_device_close(struct kvg_device *d)
{
	struct kvg_device **at;

	if (!d)
		return;
	for (at = &d->client->devices; *at != d;)
		at = &(*at)->next;
	*at = d->next;
	device_free(d);
}

void devices_fini(struct kvg_client *c)
{
	while (c->devices)
		kvg_device_close(c->devices);
}

/* That the daemon has no such device any more is told by kvg_device_planes(). */
int devices_open_again(struct kvg_client *c)
{
	for (struct kvg_device *d = c->devices; d; d = d->next) {
		const ino_t before = d->table;
		int r;

		d->number = 0;
		r = ask(d);
		if (r == 0 && d->table == before)
			continue;
		segments_retire(d);
		if (r < 0 && r != -ENOENT && r != -EBADMSG)
			return r;
	}
	return 0;
}

/* ---- planes ---- */

/* Token ids stand in plane 0 or do not; the payload's size tells. False: it is neither. */
static bool parts_of(const struct kvg_layout *l, const struct kvg_pin *pin, unsigned plane,
	const struct kvg_shm_plane_ref *ref, struct plane_geometry *ret)
{
	for (int ids = 0; ids <= (plane == 0); ids++) {
		plane_geometry(l->runs, ref->pairs, ids ? pin->tokens : 0, l->k_row, l->v_row,
			l->shape.opaque_bytes, ret);
		if (ret->bytes == ref->bytes)
			return true;
	}
	return false;
}

static int damaged(
	struct kvg_device *d, const struct kvg_pin *pin, unsigned plane, const char *what)
{
	return client_fail(d->client, -EBADMSG, KVG_CODE_CORRUPT,
		"block {%u, %u} plane %u on a device: %s", pin->handle.slot, pin->handle.gen, plane,
		what);
}

static int plane_fill(struct kvg_device *d, const struct kvg_layout *l, const struct kvg_pin *pin,
	unsigned plane, const struct kvg_shm_plane_ref *ref, struct kvg_device_plane *ret)
{
	const struct device_segment *s = ref->segment < d->n ? &d->at[ref->segment] : NULL;
	const uint64_t off = (uint64_t)ref->page << (ref->page_shift & 31);
	const bool opaque = l->shape.opaque_bytes > 0;
	struct plane_geometry g;
	uint64_t at;

	if (!s || !s->base)
		return damaged(d, pin, plane, "the daemon does not know its segment");
	if (ref->page_shift != s->page_shift || off > s->bytes || ref->bytes > s->bytes - off)
		return damaged(d, pin, plane, "it lies outside its segment");
	if (!parts_of(l, pin, plane, ref, &g))
		return damaged(d, pin, plane, "it has another size");
	at = s->base + off;
	*ret = (struct kvg_device_plane){
		.plane = plane,
		.pairs = ref->pairs,
		.payload = at,
		.bytes = ref->bytes,
		.cu = opaque ? 0 : at + g.cu_off,
		.index = opaque ? 0 : at + g.index_off,
		.score = opaque ? 0 : at + g.score_off,
		.k = at + g.k_off,
		.v = opaque ? 0 : at + g.v_off,
	};
	return 0;
}

/* Refs of what the device has of it. Bits of these, or why there are none. */
static int read_refs(struct kvg_device *d, const struct kvg_pin *pin, struct kvg_shm_plane_ref *ret)
{
	const struct kvg_shm_replica *e = &d->entries[pin->handle.slot];
	const uint64_t word = atomic_load_explicit(&e->word, memory_order_acquire);
	unsigned bits = kvg_word_mapped(word) & pin->held;

	if (!(word & KVG_ENTRY_LIVE) || kvg_word_gen(word) != pin->handle.gen)
		return 0;
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) {
		if (!(bits >> p & 1))
			continue;
		ret[p] = plane_ref_read(&e->plane[p]);
		if (ret[p].check != plane_ref_check(&ret[p], p, pin->handle.gen))
			return damaged(d, pin, p, "its reference is damaged");
	}
	return (int)bits;
}

static int may_read(struct kvg_device *d, const struct kvg_pin *pin)
{
	struct kvg_client *c = d->client;

	if (!pin_is_held(c, pin))
		return client_fail(c, -EINVAL, 0, "not a pin that is held");
	if (c->lookup_error ||
		atomic_load_explicit(&c->index.head->epoch, memory_order_relaxed) != c->epoch)
		return client_fail(c, -ENOTCONN, 0, "the daemon was restarted: kvg_resume()");
	if (!d->number)
		return client_fail(c, -ENODEV, 0, "the daemon does not use this GPU any more");
	return 0;
}

int kvg_device_planes(struct kvg_device *d, struct kvg_layout *l, const struct kvg_pin *pin,
	struct kvg_device_plane ret[KVG_PLANES_MAX])
{
	struct kvg_shm_plane_ref ref[KVG_PLANES_MAX];
	uint32_t missing[KVG_PLANES_MAX];
	size_t n_missing = 0;
	int bits, n = 0, r = may_read(d, pin);

	if (r < 0)
		return r;
	bits = read_refs(d, pin, ref);
	if (bits <= 0)
		return bits;
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++)
		if (bits >> p & 1 && (ref[p].segment >= d->n || !d->at[ref[p].segment].base))
			missing[n_missing++] = ref[p].segment;
	if (n_missing) {
		r = segments_import(d, missing, n_missing);
		if (r < 0)
			return r;
	}
	for (unsigned p = 0; p < KVG_PLANES_MAX; p++) {
		if (!(bits >> p & 1))
			continue;
		r = plane_fill(d, l, pin, p, &ref[p], &ret[n]);
		if (r < 0)
			return r;
		n++;
	}
	return n;
}

/* ---- asking for them ---- */

ssize_t kvg_device_acquire(struct kvg_device *d, struct kvg_layout *l, const struct kvg_key *keys,
	size_t n, float min_retention, float want, int prefix, struct kvg_acquired *ret)
{
	const struct wish w = {.min_retention = min_retention,
		.want = want,
		.prefix = prefix,
		.device = d->number};

	if (!d->number)
		return client_fail(
			d->client, -ENODEV, 0, "the daemon does not use this GPU any more");
	return acquire_all(l, keys, n, &w, ret, NULL);
}

ssize_t kvg_device_prefetch(struct kvg_device *d, struct kvg_layout *l, const struct kvg_key *keys,
	size_t n, float want)
{
	if (!d->number)
		return client_fail(
			d->client, -ENODEV, 0, "the daemon does not use this GPU any more");
	return prefetch_all(l, keys, n, want, d->number);
}
