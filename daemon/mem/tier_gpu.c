/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A segment is one VMM allocation, made and exported without a context, so it costs nothing but itself and its
 * memory is whole from the start: there is nothing to back and nothing to punch. What a device has less of than a host is room, so
 * the limit counts segments, not pages in use.
 *
 * The descriptor is the memory. Only the process that made an allocation can export it, so the one descriptor is
 * what clients are given, what is parked for the next daemon, and all that the next daemon gets; it tells neither size
 * nor device, both of which are kept beside it. A client that maps it may choose to map it for writing: unlike a memfd it has
 * no read-only description. libkvgate maps read-only; who does not can spoil what its own tenant has on the device, and no
 * other's, and nothing that the host holds.
 */
#include "daemon/mem/tier_gpu.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "gpu/device.h"
#include "gpu/vmm.h"
#include "proto/shm.h"

static_assert(sizeof(((struct tier_gpu *)0)->name) == sizeof(((struct gpu_device_info *)0)->name),
	"a name is copied whole");
static_assert(TIER_GPU_TEXT >= GPU_WHY_BYTES, "room for the reasons of gpu/");

static struct tier_gpu *gpu(const struct tier_ops *t)
{
	return (struct tier_gpu *)(uintptr_t)t; /* ops is the first member */
}

/* Charges it. -ENOSPC. */
static int charge(struct tier_gpu *g, uint64_t bytes)
{
	uint64_t open = atomic_load(&g->open);

	do
		if (bytes > g->limit || open > g->limit - bytes)
			return -ENOSPC;
	while (!atomic_compare_exchange_weak(&g->open, &open, open + bytes));
	return 0;
}

static int gpu_open(const struct tier_ops *t, const struct tier_request *q, struct tier_memory *ret)
{
	struct tier_gpu *g = gpu(t);
	char text[TIER_GPU_TEXT];
	int fd = -1, r;

	if (q->bytes % g->granularity)
		return -EINVAL;
	r = charge(g, q->bytes);
	if (r < 0)
		return r;
	r = gpu_vmm_create(g->driver, g->ordinal, q->bytes, &fd, text, sizeof(text));
	if (r < 0) {
		atomic_fetch_sub(&g->open, q->bytes);
		return r == -ENOMEM ? -ENOSPC
				    : r; /* the device's own room is used up, by whomever */
	}
	*ret = (struct tier_memory){
		.bytes = q->bytes, .fd = fd, .client_fd = fd, .set_aside = true, .fresh = true};
	return 0;
}

static int gpu_adopt(
	const struct tier_ops *t, const struct tier_request *q, int fd, struct tier_memory *ret)
{
	struct tier_gpu *g = gpu(t);

	if (!q->bytes || q->bytes % g->granularity || (q->bytes & (q->bytes - 1)))
		return -EBADMSG;
	atomic_fetch_add(&g->open, q->bytes); /* it is there, whatever the limit is by now */
	*ret = (struct tier_memory){
		.bytes = q->bytes, .fd = fd, .client_fd = fd, .set_aside = true};
	return 0;
}

static int gpu_whole(
	const struct tier_ops *t, const struct tier_memory *m, uint64_t offset, uint64_t bytes)
{
	(void)t, (void)m, (void)offset, (void)bytes;
	return 0;
}

static void gpu_unmap(const struct tier_ops *t, struct tier_memory *m)
{
	(void)t, (void)m;
}

static void gpu_close(const struct tier_ops *t, struct tier_memory *m)
{
	if (m->client_fd >= 0)
		atomic_fetch_sub(&gpu(t)->open, m->bytes);
	if (m->fd >= 0)
		close(m->fd);
	m->fd = m->client_fd = -1;
}

int tier_gpu_open_driver(const char *library, struct gpu_driver **ret, int *ret_devices,
	char *ret_why, size_t why_size)
{
	int r = gpu_driver_open_as(library, ret, ret_why, why_size);

	if (r == 0)
		*ret_devices = gpu_device_count(*ret);
	return r;
}

struct gpu_driver *tier_gpu_close_driver(struct gpu_driver *d)
{
	return gpu_driver_close(d);
}

int tier_gpu_init(struct tier_gpu *g, const struct gpu_driver *d, int ordinal, uint64_t limit,
	char *ret_why, size_t why_size)
{
	struct gpu_device_info info;
	int r = gpu_device_query(d, ordinal, &info, ret_why, why_size);

	if (r < 0)
		return r;
	*g = (struct tier_gpu){
		.ops =
			{
				.name = "gpu",
				.tier = KVG_TIER_GPU,
				.open = gpu_open,
				.adopt = gpu_adopt,
				.back = gpu_whole,
				.punch = gpu_whole,
				.unmap = gpu_unmap,
				.close = gpu_close,
			},
		.driver = d,
		.ordinal = ordinal,
		.bytes = info.bytes,
		.granularity = info.granularity,
		.limit = limit,
	};
	memcpy(g->uuid, info.uuid, sizeof(g->uuid));
	memcpy(g->name, info.name, sizeof(g->name));
	return 0;
}
