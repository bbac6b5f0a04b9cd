/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Two halves take turns, each with a stream: while one is on its way the processor fills the other.
 *
 *	half	fill: page lists, and copies of pages that the device cannot read where they are -> launch -> wait, before
 *		it is filled again
 *
 * A page is copied whole into one half, so what is read of it is read once.
 */
#include "gpu/mover/copy.h"

#include <errno.h>
#include <string.h>

#include "gates/why.h"
#include "gpu/table.h"

#define PIECE_MAX (64u << 10) /* of a range, as one page of a list */

static int pinned(
	struct copy *c, size_t bytes, void **ret, uint64_t *ret_at, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(c->device);
	CUdeviceptr at;
	int r = cu(d, ret_why, why_size, cuMemAllocHost, ret, bytes);

	if (r == 0)
		r = cu(d, ret_why, why_size, cuMemHostGetDevicePointer, &at, *ret, 0);
	if (r == 0)
		*ret_at = at;
	return r;
}

/* What is half made when this fails goes with the process. */
static int half_init(struct copy *c, struct copy_half *h, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(c->device);
	const size_t list = COPY_PAGES * sizeof(uint64_t);
	void *stage, *from, *to;
	int r = cu(d, ret_why, why_size, cuStreamCreate, &h->stream, CU_STREAM_NON_BLOCKING);

	if (r == 0)
		r = pinned(c, COPY_STAGE, &stage, &h->stage_at, ret_why, why_size);
	if (r == 0)
		r = pinned(c, list, &from, &h->from_at, ret_why, why_size);
	if (r == 0)
		r = pinned(c, list, &to, &h->to_at, ret_why, why_size);
	if (r < 0)
		return r;
	h->stage = stage;
	h->from = from;
	h->to = to;
	return 0;
}

int copy_init(struct copy *c, struct gpu_device *dev, char *ret_why, size_t why_size)
{
	int r;

	*c = (struct copy){.device = dev};
	r = gpu_move_open(dev, &c->move, ret_why, why_size);
	for (unsigned i = 0; i < 2 && r == 0; i++)
		r = half_init(c, &c->half[i], ret_why, why_size);
	return r;
}

int copy_zero(struct copy *c, const struct mover_segment *s, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(c->device);
	int r = cu(
		d, ret_why, why_size, cuMemsetD8Async, s->device, 0, s->bytes, c->half[0].stream);

	return r < 0 ? r : cu(d, ret_why, why_size, cuStreamSynchronize, c->half[0].stream);
}

static int land(struct copy *c, struct copy_half *h, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(c->device);

	if (!h->flying)
		return 0;
	h->flying = false;
	return cu(d, ret_why, why_size, cuStreamSynchronize, h->stream);
}

/* What is in the half being filled goes off, and the other one can be filled. */
static int launch(struct copy *c, char *ret_why, size_t why_size)
{
	struct copy_half *h = &c->half[c->turn];
	const struct move_args args = {
		.to = h->to_at, .from = h->from_at, .pages = h->pages, .page_bytes = h->page_bytes};
	int r;

	if (!h->pages)
		return 0;
	r = gpu_move_pages(c->move, h->stream, &args, NULL, ret_why, why_size);
	if (r < 0)
		return r;
	h->flying = true;
	h->pages = h->staged = 0;
	c->turn ^= 1;
	return land(c, &c->half[c->turn], ret_why, why_size);
}

static bool inside(uint64_t offset, uint64_t bytes, const struct mover_segment *s)
{
	return bytes <= s->bytes && offset <= s->bytes - bytes;
}

int copy_check(const struct mover_segment *from, const struct mover_segment *to,
	const struct mover_range *r, uint32_t page_shift)
{
	const uint64_t page = 1ull << (page_shift & 63);

	if (!from || !to)
		return -ENOENT;
	if (from->error || to->error)
		return from->error ? from->error : to->error;
	if (page < KVG_PAGE_MIN || page > KVG_PAGE_MAX || (r->from | r->to | r->bytes) % page ||
		to->tier != KVG_TIER_GPU || !inside(r->from, r->bytes, from) ||
		!inside(r->to, r->bytes, to))
		return -EINVAL;
	return 0;
}

int copy_range(struct copy *c, const struct mover_segment *from, const struct mover_segment *to,
	const struct mover_range *r, uint32_t page_shift, char *ret_why, size_t why_size)
{
	const uint32_t piece = 1u << page_shift < PIECE_MAX ? 1u << page_shift : PIECE_MAX;

	for (uint64_t at = 0; at < r->bytes; at += piece) {
		struct copy_half *h = &c->half[c->turn];
		const bool full = h->pages == COPY_PAGES || h->staged + piece > COPY_STAGE ||
			(h->pages && h->page_bytes != piece);
		int error = full ? launch(c, ret_why, why_size) : 0;

		if (error < 0)
			return error;
		h = &c->half[c->turn];
		h->page_bytes = piece;
		h->to[h->pages] = to->device + r->to + at;
		if (from->device) {
			h->from[h->pages] = from->device + r->from + at;
		} else {
			memcpy(h->stage + h->staged, from->host + r->from + at, piece);
			h->from[h->pages] = h->stage_at + h->staged;
			h->staged += piece;
		}
		h->pages++;
	}
	return 0;
}

int copy_finish(struct copy *c, char *ret_why, size_t why_size)
{
	int r = launch(c, ret_why, why_size);

	for (unsigned i = 0; i < 2 && r == 0; i++)
		r = land(c, &c->half[i], ret_why, why_size);
	return r;
}
