/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A payload is header | cu | token ids | index | score | K | V, each section on a 64-byte line:
 *
 *   0        128      ids_off          k_off                        v_off
 *   | header | cu ... | ids (plane 0)  | index | score | K rows ... | V rows ...
 *
 * The header has its own checksum, so that sizes are right before the body is read with them.
 */
#include "proto/plane.h"

#include <errno.h>
#include <string.h>

#include <isa-l/crc.h>

static uint64_t align_up(uint64_t n)
{
	return (n + KVG_PLANE_ALIGN - 1) & ~(uint64_t)(KVG_PLANE_ALIGN - 1);
}

void plane_geometry(uint32_t runs, uint32_t pairs, uint32_t n_token_ids, uint32_t k_row,
	uint32_t v_row, uint64_t opaque_bytes, struct plane_geometry *ret)
{
	struct plane_geometry g = {.cu_off = KVG_PLANE_HEADER_BYTES};

	g.ids_off = align_up(g.cu_off + (runs ? ((uint64_t)runs + 1) * 4 : 0));
	g.index_off = align_up(g.ids_off + (uint64_t)n_token_ids * 4);
	g.score_off = align_up(g.index_off + (uint64_t)pairs * 2);
	g.k_off = align_up(g.score_off + (uint64_t)pairs * 2);
	g.v_off = align_up(g.k_off + (opaque_bytes ? opaque_bytes : (uint64_t)pairs * k_row));
	g.bytes = align_up(g.v_off + (uint64_t)pairs * v_row);
	*ret = g;
}

/* Of an opaque plane: stored in k_row (low) and v_row (high). */
static uint64_t opaque_bytes(const struct kvg_plane_header *h)
{
	return (h->flags & KVG_PLANE_OPAQUE) ? (uint64_t)h->v_row << 32 | h->k_row : 0;
}

/* Bounded before they are multiplied: whoever can compute a CRC can write any header. */
static bool rows_valid(const struct kvg_plane_header *h)
{
	return h->runs && h->runs <= (uint32_t)KVG_LAYERS_MAX * KVG_HEADS_MAX &&
		h->pairs <= (uint64_t)h->runs * h->tokens && h->k_row &&
		h->k_row <= KVG_ROW_BYTES_MAX && h->v_row && h->v_row <= KVG_ROW_BYTES_MAX;
}

static bool opaque_valid(const struct kvg_plane_header *h)
{
	uint64_t bytes = opaque_bytes(h);

	return !h->runs && !h->pairs && h->n_planes == 1 && bytes && bytes <= KVG_BLOCK_BYTES_MAX;
}

int plane_open(const void *payload, uint64_t avail, struct plane_view *ret)
{
	struct kvg_plane_header h;
	struct plane_geometry g;
	const uint8_t *p = payload;
	bool opaque;

	if (avail < KVG_PLANE_HEADER_BYTES)
		return -EBADMSG;
	memcpy(&h, p, sizeof(h));
	if (memcmp(h.magic, KVG_PLANE_MAGIC, sizeof(h.magic)) || h.version != KVG_SHM_VERSION ||
		h.header_crc != crc32c(0, &h, offsetof(struct kvg_plane_header, header_crc)) ||
		h.reserved)
		return -EBADMSG;
	if ((h.flags & ~KVG_PLANE_OPAQUE) || !h.n_planes || h.n_planes > KVG_PLANES_MAX ||
		h.plane >= h.n_planes || !h.tokens || h.tokens > KVG_TOKENS_MAX ||
		(h.n_token_ids && h.n_token_ids != h.tokens))
		return -EBADMSG;
	opaque = h.flags & KVG_PLANE_OPAQUE;
	if (opaque ? !opaque_valid(&h) : !rows_valid(&h))
		return -EBADMSG;
	plane_geometry(h.runs, h.pairs, h.n_token_ids, opaque ? 0 : h.k_row, opaque ? 0 : h.v_row,
		opaque_bytes(&h), &g);
	if (g.bytes != h.bytes || h.bytes > avail)
		return -EBADMSG;
	*ret = (struct plane_view){
		.plane = h.plane,
		.runs = h.runs,
		.tokens = h.tokens,
		.pairs = h.pairs,
		.n_token_ids = h.n_token_ids,
		.k_row = opaque ? 0 : h.k_row,
		.v_row = opaque ? 0 : h.v_row,
		.opaque = opaque,
		.opaque_bytes = opaque_bytes(&h),
		.bytes = h.bytes,
		.body_crc = h.body_crc,
		.mass = h.mass,
		.cu = (const uint32_t *)(p + g.cu_off),
		.ids = (const uint32_t *)(p + g.ids_off),
		.index = (const uint16_t *)(p + g.index_off),
		.score = (const uint16_t *)(p + g.score_off),
		.k = p + g.k_off,
		.v = p + g.v_off,
	};
	return 0;
}

int plane_verify(const void *payload, uint64_t avail)
{
	struct plane_view v;
	int r = plane_open(payload, avail, &v);

	if (r < 0)
		return r;
	if (crc32c(0, (const uint8_t *)payload + KVG_PLANE_HEADER_BYTES,
		    v.bytes - KVG_PLANE_HEADER_BYTES) != v.body_crc)
		return -EBADMSG;
	return 0;
}

int plane_check_runs(const struct plane_view *v)
{
	uint32_t at = 0;

	if (v->opaque)
		return 0;
	for (uint32_t i = 0; i <= v->runs; i++) {
		uint32_t c = v->cu[i];

		if (c < at || c - at > v->tokens || c > v->pairs || (i == 0 && c != 0))
			return -EBADMSG;
		at = c;
	}
	if (at != v->pairs)
		return -EBADMSG;
	for (uint32_t i = 0; i < v->pairs; i++)
		if (v->index[i] >= v->tokens)
			return -EBADMSG;
	return 0;
}

void plane_header_seal(struct kvg_plane_header *h)
{
	h->header_crc = crc32c(0, h, offsetof(struct kvg_plane_header, header_crc));
}

uint32_t crc32c(uint32_t crc, const void *data, size_t n)
{
	const uint8_t *p = data;

	crc = ~crc;
	while (n) { /* ISA-L counts in int and takes a pointer it does not write through */
		size_t step = n < (1u << 30) ? n : (1u << 30);

		crc = crc32_iscsi((unsigned char *)(uintptr_t)p, (int)step, crc);
		p += step;
		n -= step;
	}
	return ~crc;
}

uint16_t plane_ref_check(const struct kvg_shm_plane_ref *r, uint32_t plane, uint32_t gen)
{
	uint32_t salt[2] = {plane, gen};
	uint32_t c = crc32c(0, r, offsetof(struct kvg_shm_plane_ref, check));

	c = crc32c(c, salt, sizeof(salt));
	return (uint16_t)(c ^ c >> 16);
}

uint32_t entry_crc(const struct kvg_shm_entry *e, uint32_t gen)
{
	uint32_t c = crc32c(0, &gen, sizeof(gen));
	size_t from = offsetof(struct kvg_shm_entry, key);

	return crc32c(c, (const uint8_t *)e + from, offsetof(struct kvg_shm_entry, crc) - from);
}

uint32_t replicas_crc(const struct kvg_shm_replicas *h)
{
	return crc32c(0, h, offsetof(struct kvg_shm_replicas, crc));
}

uint32_t index_crc(const struct kvg_shm_index *h)
{
	return crc32c(0, h, offsetof(struct kvg_shm_index, crc));
}
