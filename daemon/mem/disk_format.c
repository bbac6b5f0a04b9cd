/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Whoever can write to the device can write a good checksum, so a page that passes it is still checked field by field: what
 * is within the segment, and what others will use as a count or an index.
 */
#include "daemon/mem/disk_format.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#include "proto/plane.h"

void fmt_seal(void *page)
{
	uint32_t crc = crc32c(0, page, FMT_CRC_AT);

	memcpy((uint8_t *)page + FMT_CRC_AT, &crc, sizeof(crc));
}

static bool sealed(const void *page)
{
	uint32_t crc;

	memcpy(&crc, (const uint8_t *)page + FMT_CRC_AT, sizeof(crc));
	return crc == crc32c(0, page, FMT_CRC_AT);
}

/* ---- the superblock ---- */

uint32_t fmt_segments(uint64_t bytes, uint64_t segment_bytes)
{
	uint64_t n;

	if (segment_bytes < FMT_SEGMENT_MIN || segment_bytes > FMT_SEGMENT_MAX ||
		segment_bytes % DISK_PAGE || bytes < FMT_FIRST + DISK_PAGE)
		return 0;
	n = (bytes - FMT_FIRST - DISK_PAGE) / segment_bytes;
	if (n < FMT_SEGMENTS_MIN)
		return 0;
	return n < FMT_SEGMENTS_MAX ? (uint32_t)n : FMT_SEGMENTS_MAX;
}

void fmt_super_make(const struct fmt_super *s, void *page)
{
	memset(page, 0, DISK_PAGE);
	memcpy(page, s, sizeof(*s));
	memcpy(page, FMT_SUPER, 8);
	fmt_seal(page);
}

int fmt_super_check(const void *page, struct fmt_super *ret)
{
	struct fmt_super s;

	memcpy(&s, page, sizeof(s));
	if (memcmp(s.magic, FMT_SUPER, sizeof(s.magic)))
		return -ENOENT;
	if (!sealed(page))
		return -EBADMSG;
	if (s.version > FMT_VERSION) {
		*ret = s;
		return -EPROTONOSUPPORT;
	}
	if (s.version != FMT_VERSION || s.bytes % DISK_PAGE || s.bytes > INT64_MAX ||
		!s.n_segments || s.n_segments != fmt_segments(s.bytes, s.segment_bytes))
		return -EBADMSG;
	*ret = s;
	return 0;
}

/* ---- header and trailer of a segment ---- */

void fmt_segment_make(const struct fmt_segment *s, const char *magic, void *page)
{
	memset(page, 0, DISK_PAGE);
	memcpy(page, s, sizeof(*s));
	memcpy(page, magic, 8);
	fmt_seal(page);
}

int fmt_segment_check(
	const void *page, const char *magic, const struct fmt_where *w, struct fmt_segment *ret)
{
	struct fmt_segment s;

	memcpy(&s, page, sizeof(s));
	if (memcmp(s.magic, magic, sizeof(s.magic)) || !sealed(page))
		return -EBADMSG;
	if (s.version != FMT_VERSION || s.segment != w->segment ||
		memcmp(s.id, w->id, sizeof(s.id)) || !s.generation || !s.tenant_bytes ||
		memchr(s.tenant, 0, s.tenant_bytes))
		return -EBADMSG;
	if (!memcmp(magic, FMT_TRAILER, 8) &&
		(!s.summary || s.summary >= w->segment_pages - 1 ||
			s.summary_pages != w->segment_pages - 1 - s.summary ||
			s.summary_pages != fmt_parts(s.n_records)))
		return -EBADMSG;
	*ret = s;
	return 0;
}

/* ---- records ---- */

void fmt_page_make(struct fmt_page *p, const struct fmt_where *w)
{
	memcpy(p->magic, FMT_RECORDS, sizeof(p->magic));
	p->version = FMT_VERSION;
	p->segment = w->segment;
	memcpy(p->id, w->id, sizeof(p->id));
	p->generation = w->generation;
	p->salt = w->salt;
	fmt_seal(p);
}

/* Pages first .. first + fmt_pages(bytes) - 1 lie between header and trailer. */
static bool within(uint32_t first, uint32_t bytes, const struct fmt_where *w)
{
	return bytes && first >= 2 && first < w->segment_pages - 1 &&
		fmt_pages(bytes) <= w->segment_pages - 1 - first;
}

static bool record_good(const struct fmt_record *r, const struct fmt_where *w)
{
	if (!within(r->page, r->bytes, w) || !r->head || r->head >= r->page)
		return false;
	if (r->type == FMT_NOTE)
		return r->bytes <= DISK_NOTE_MAX;
	return r->type == FMT_PLANE && r->n_planes && r->n_planes <= KVG_PLANES_MAX &&
		r->plane < r->n_planes && r->page_shift >= 12 && r->page_shift <= 21 && r->tokens &&
		r->tokens <= KVG_TOKENS_MAX;
}

int fmt_page_check(const struct fmt_page *p, const struct fmt_where *w, uint32_t page,
	uint32_t sequence, bool summary)
{
	if (memcmp(p->magic, FMT_RECORDS, sizeof(p->magic)) || !sealed(p))
		return -EBADMSG;
	if (p->version != FMT_VERSION || p->segment != w->segment ||
		memcmp(p->id, w->id, sizeof(p->id)) || p->generation != w->generation ||
		p->salt != w->salt || p->page != page || p->sequence != sequence ||
		p->summary != summary || !p->n_records || p->n_records > FMT_PER_PAGE ||
		p->part >= p->parts)
		return -EBADMSG;
	if (!summary &&
		(p->part > page || page - p->part >= w->segment_pages ||
			p->chunk_pages > w->segment_pages - 1 - (page - p->part) ||
			p->chunk_pages <= p->parts))
		return -EBADMSG;
	for (unsigned i = 0; i < p->n_records; i++)
		if (!record_good(&p->record[i], w) || (!summary && p->record[i].head != page))
			return -EBADMSG;
	return 0;
}

int fmt_record_make(const struct disk_record *r, struct fmt_record *ret)
{
	struct fmt_record f = {
		.key = r->key,
		.note = r->note,
		.bytes = (uint32_t)r->bytes,
		.tokens = r->tokens,
		.depth = r->depth,
		.pairs = r->pairs,
		.mass = r->mass,
		.type = FMT_PLANE,
		.plane = r->plane,
		.n_planes = r->n_planes,
		.page_shift = r->page_shift,
	};

	if (r->has_parent) {
		f.parent = r->parent;
		f.flags |= FMT_HAS_PARENT;
	}
	if (!r->bytes || r->bytes > FMT_SEGMENT_MAX || !r->n_planes ||
		r->n_planes > KVG_PLANES_MAX || r->plane >= r->n_planes || r->page_shift < 12 ||
		r->page_shift > 21 || !r->tokens || r->tokens > KVG_TOKENS_MAX)
		return -EINVAL;
	for (unsigned i = 0; i < KVG_PLANES_MAX; i++) {
		if (r->plane_bytes[i] > UINT32_MAX)
			return -EINVAL;
		f.plane_bytes[i] = (uint32_t)r->plane_bytes[i];
		f.plane_pairs[i] = r->plane_pairs[i];
	}
	*ret = f;
	return 0;
}

void fmt_record_read(const struct fmt_record *f, struct disk_record *ret)
{
	*ret = (struct disk_record){
		.key = f->key,
		.parent = f->parent,
		.note = f->note,
		.tokens = f->tokens,
		.depth = f->depth,
		.pairs = f->pairs,
		.bytes = f->bytes,
		.mass = isfinite(f->mass) && f->mass >= 0 ? f->mass : 0,
		.plane = f->plane,
		.n_planes = f->n_planes,
		.page_shift = f->page_shift,
		.has_parent = f->flags & FMT_HAS_PARENT,
	};
	for (unsigned i = 0; i < KVG_PLANES_MAX; i++) {
		ret->plane_bytes[i] = f->plane_bytes[i];
		ret->plane_pairs[i] = f->plane_pairs[i];
	}
}
