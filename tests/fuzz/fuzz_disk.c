/* SPDX-License-Identifier: Apache-2.0 */
/* Pages of a disk, with a good checksum around whatever the input says: they may be refused, what is taken is within bounds. */
#include <assert.h>
#include <stdint.h>
#include <string.h>

#include "daemon/mem/disk_format.h"

enum {
	PAGES = 16
};

static void super(const uint8_t *page)
{
	struct fmt_super s;

	if (fmt_super_check(page, &s) == 0)
		assert(s.n_segments >= FMT_SEGMENTS_MIN && s.n_segments <= FMT_SEGMENTS_MAX &&
			FMT_FIRST + s.n_segments * s.segment_bytes + DISK_PAGE <= s.bytes);
}

static void segment(const uint8_t *page, const struct fmt_where *w)
{
	struct fmt_segment s;

	if (fmt_segment_check(page, FMT_HEADER, w, &s) == 0)
		assert(s.tenant_bytes && !memchr(s.tenant, 0, s.tenant_bytes));
	if (fmt_segment_check(page, FMT_TRAILER, w, &s) == 0)
		assert(s.summary && s.summary + s.summary_pages == PAGES - 1 &&
			s.n_records <= s.summary_pages * FMT_PER_PAGE);
}

static void records(const struct fmt_page *p, const struct fmt_where *w)
{
	struct disk_record r;
	struct fmt_record again;

	for (int summary = 0; summary < 2; summary++) {
		if (fmt_page_check(p, w, p->page, p->sequence, summary) < 0)
			continue;
		assert(p->n_records <= FMT_PER_PAGE && p->part < p->parts);
		assert(summary || (p->page - p->part) + p->chunk_pages <= PAGES - 1);
		for (unsigned i = 0; i < p->n_records; i++) {
			assert(p->record[i].page + fmt_pages(p->record[i].bytes) <= PAGES - 1);
			if (p->record[i].type != FMT_PLANE)
				continue;
			fmt_record_read(&p->record[i], &r);
			assert(r.mass >= 0 && fmt_record_make(&r, &again) == 0);
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	static const uint8_t id[16] = "an id of sixteen";
	const struct fmt_where w = {
		.id = id, .segment = 3, .segment_pages = PAGES, .generation = 5, .salt = 7};
	static _Alignas(8) uint8_t page[DISK_PAGE];
	struct fmt_page *p = (struct fmt_page *)page;

	if (n < 1)
		return 0;
	memset(page, 0, sizeof(page));
	memcpy(page, data + 1, n - 1 < FMT_CRC_AT ? n - 1 : FMT_CRC_AT);
	switch (data[0] % 4) {
	case 0:
		memcpy(page, FMT_SUPER, 8);
		break;
	case 1:
	case 2:
		memcpy(page, data[0] % 4 == 1 ? FMT_HEADER : FMT_TRAILER, 8);
		p->version = FMT_VERSION;
		p->segment = w.segment;
		memcpy(p->id, id, sizeof(id));
		break;
	default:
		fmt_page_make(p, &w);
	}
	fmt_seal(page);
	super(page);
	segment(page, &w);
	records(p, &w);
	return 0;
}
