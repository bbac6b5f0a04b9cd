/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The daemon is trusted to keep its promises, not to be the daemon of the same version: every size that later code
 * relies on is checked here once, against the size that the kernel reports for a file that can no longer shrink.
 * From then on an offset below these limits can be followed without asking again.
 */
#include "client/lib/attach.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "proto/map.h"
#include "proto/plane.h"

static int refuse(const char **ret_why, const char *why)
{
	*ret_why = why;
	return -EBADMSG;
}

int shared_map(int fd, uint64_t bytes, bool writable, void **ret, const char **ret_why)
{
	struct stat st;
	int flags = fcntl(fd, F_GETFL), seals = fcntl(fd, F_GET_SEALS);
	int r;

	if (flags < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || seals < 0)
		return refuse(ret_why, "shared memory is not a memfd");
	if ((flags & O_ACCMODE) != (writable ? O_RDWR : O_RDONLY))
		return refuse(ret_why, "shared memory is open in the wrong mode");
	if (!(seals & F_SEAL_SHRINK))
		return refuse(ret_why, "shared memory is not sealed against shrinking");
	if (bytes == 0 || st.st_size < 0 || bytes > (uint64_t)st.st_size || bytes > SIZE_MAX)
		return refuse(ret_why, "shared memory is shorter than announced");
	r = map_shared(fd, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, ret);
	if (r < 0)
		*ret_why = "mmap failed: out of address space or of map areas (vm.max_map_count)";
	return r;
}

/* n items of `size` bytes from `off` lie inside `total`. */
static bool fits(uint64_t off, uint64_t n, uint64_t size, uint64_t total)
{
	return off <= total && n <= (total - off) / size;
}

static int index_check(const struct kvg_shm_index *h, uint64_t size, const char **ret_why)
{
	if (memcmp(h->magic, KVG_INDEX_MAGIC, sizeof(h->magic)) || h->crc != index_crc(h))
		return refuse(ret_why, "the index has no valid header");
	if (h->version != KVG_SHM_VERSION || h->entry_bytes != sizeof(struct kvg_shm_entry))
		return refuse(ret_why, "the index has another version; update the older side");
	if (h->total_bytes > size || h->n_buckets == 0 || (h->n_buckets & (h->n_buckets - 1)) ||
		h->n_slots == 0 || h->n_slots >= KVG_SLOT_NONE || h->buckets_off % 64 ||
		h->entries_off % 64 || h->buckets_off < sizeof(*h) ||
		!fits(h->buckets_off, h->n_buckets, sizeof(struct kvg_shm_bucket),
			h->total_bytes) ||
		!fits(h->entries_off, h->n_slots, sizeof(struct kvg_shm_entry), h->total_bytes))
		return refuse(ret_why, "the sizes in the index do not add up");
	return 0;
}

static int file_size(int fd, uint64_t least, uint64_t *ret, const char **ret_why)
{
	struct stat st;

	if (fstat(fd, &st) < 0 || st.st_size < 0 || (uint64_t)st.st_size < least)
		return refuse(ret_why, "shared memory is shorter than its header");
	*ret = (uint64_t)st.st_size;
	return 0;
}

int index_map_init(struct index_map *m, int fd, const char **ret_why)
{
	struct kvg_shm_index h;
	uint64_t size;
	void *map;
	int r;

	*m = (struct index_map){0};
	r = file_size(fd, sizeof(h), &size, ret_why);
	if (r < 0)
		return r;
	r = shared_map(fd, size, false, &map, ret_why);
	if (r < 0)
		return r;
	memcpy(&h, map, sizeof(h));
	r = index_check(&h, size, ret_why);
	if (r < 0) {
		munmap(map, size);
		return r;
	}
	madvise(map, size, MADV_HUGEPAGE); /* a hint: where the kernel refuses, small pages do */
	*m = (struct index_map){
		.head = map,
		.buckets = (const void *)((const uint8_t *)map + h.buckets_off),
		.entries = (const void *)((const uint8_t *)map + h.entries_off),
		.n_buckets = h.n_buckets,
		.n_slots = h.n_slots,
		.bytes = size,
	};
	return 0;
}

void index_map_fini(struct index_map *m)
{
	if (m->head)
		munmap((void *)(uintptr_t)m->head, m->bytes);
	*m = (struct index_map){0};
}

static int pins_check(const struct kvg_shm_pins *h, uint64_t size, const char **ret_why)
{
	if (memcmp(h->magic, KVG_PIN_MAGIC, sizeof(h->magic)) || h->version != KVG_SHM_VERSION)
		return refuse(ret_why, "the pin page has no valid header, or another version");
	if (h->total_bytes > size || h->n_pins == 0 || h->n_touch == 0 ||
		(h->n_touch & (h->n_touch - 1)) || h->pins_off % 8 || h->touch_off % 8 ||
		h->pins_off < sizeof(*h) || h->touch_off < sizeof(*h) ||
		!fits(h->pins_off, h->n_pins, sizeof(uint64_t), h->total_bytes) ||
		!fits(h->touch_off, h->n_touch, sizeof(uint64_t), h->total_bytes))
		return refuse(ret_why, "the sizes in the pin page do not add up");
	return 0;
}

int pin_map_init(struct pin_map *m, int fd, const char **ret_why)
{
	struct kvg_shm_pins h;
	uint64_t size;
	uint32_t *stack;
	void *map;
	int r;

	*m = (struct pin_map){0};
	r = file_size(fd, sizeof(h), &size, ret_why);
	if (r < 0)
		return r;
	r = shared_map(fd, size, true, &map, ret_why);
	if (r < 0)
		return r;
	memcpy(&h, map, sizeof(h));
	r = pins_check(&h, size, ret_why);
	if (r < 0)
		goto unmap;
	stack = malloc(h.n_pins * sizeof(*stack));
	if (!stack) {
		*ret_why = "out of memory";
		r = -ENOMEM;
		goto unmap;
	}
	*m = (struct pin_map){
		.head = map,
		.pin = (void *)((uint8_t *)map + h.pins_off),
		.touch = (void *)((uint8_t *)map + h.touch_off),
		.n_pins = h.n_pins,
		.touch_mask = h.n_touch - 1,
		.touch_head = h.touch_head,
		.free = stack,
		.bytes = size,
	};
	return 0;
unmap:
	munmap(map, size);
	return r;
}

void pin_map_fini(struct pin_map *m)
{
	if (m->head)
		munmap(m->head, m->bytes);
	free(m->free);
	*m = (struct pin_map){0};
}
