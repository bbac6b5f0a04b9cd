/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_format: the bytes of a device of the log store - made and checked, nothing else. DISK.md has them in prose.
 * Thread: any, pure. Locks: none. Blocks: never. Errors: -EBADMSG for bytes that are not what they should be.
 *
 * All of it is little endian, and written in pages of 4096 bytes that carry their CRC32C in the last four.
 */
#ifndef KVGATE_DAEMON_MEM_DISK_FORMAT_H
#define KVGATE_DAEMON_MEM_DISK_FORMAT_H

#include <assert.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "daemon/mem/disk.h"

#define FMT_VERSION 1u
#define FMT_SUPER   "KVGDISKS"
#define FMT_HEADER  "KVGDISKH"
#define FMT_RECORDS "KVGDISKR"
#define FMT_TRAILER "KVGDISKT"
#define FMT_FIRST                                                                                  \
	(1ull << 20) /* of segment 0: what erases in larger units is not torn by the superblock */
#define FMT_SEGMENT_MIN  (64ull << 10)
#define FMT_SEGMENT_MAX  (2ull << 30) /* a plane's bytes fit 32 bits */
#define FMT_SEGMENTS_MIN 4u
#define FMT_SEGMENTS_MAX (1u << 22)
#define FMT_CRC_AT       (DISK_PAGE - 4)
#define FMT_PER_PAGE     22u
#define FMT_OVERHEAD                                                                               \
	4u /* pages of a segment that no plane lies on, at least: header, records, summary, trailer */
#define FMT_TENANT_MAX 255u

/* Page 0 of a device, and its last one. These bytes mean the same in every version. */
struct fmt_super {
	char magic[8];
	uint32_t version;
	uint32_t n_segments;
	uint8_t id[16]; /* random */
	uint64_t bytes; /* of the device, from page 0 to the superblock's copy */
	uint64_t segment_bytes;
};
static_assert(sizeof(struct fmt_super) == 48, "the superblock is 48 bytes");

/* First page of a segment; and with another magic its last one, when a summary closes it. */
struct fmt_segment {
	char magic[8];
	uint32_t version;
	uint32_t segment;
	uint8_t id[16];      /* the device's */
	uint64_t generation; /* grows with each segment that is begun */
	uint64_t salt;    /* random: nothing that lay here before passes for what lies here now */
	uint32_t summary; /* trailer: its first page, */
	uint32_t summary_pages;
	uint32_t n_records; /* and what is in it */
	uint8_t tenant_bytes;
	char tenant[FMT_TENANT_MAX];
};
static_assert(sizeof(struct fmt_segment) == 320, "a segment's header is 320 bytes");

enum fmt_type {
	FMT_PLANE = 1,
	FMT_NOTE = 2,
};
#define FMT_DEAD       1u /* flags: erased */
#define FMT_HAS_PARENT 2u
#define FMT_VOID       4u /* flags: this copy is none, another one of the same order may be good */

struct fmt_record {
	struct kvg_key key, parent;
	uint32_t order_low,
		order_high; /* of all devices together: of two records of one plane the higher one holds; equal: copies */
	uint32_t plane_bytes[KVG_PLANES_MAX];
	uint32_t plane_pairs[KVG_PLANES_MAX];
	uint32_t bytes; /* of the plane or note */
	uint32_t page;  /* where it begins, in the segment */
	uint32_t head;  /* the record page this was written to first; a summary has copies */
	uint32_t note;
	uint32_t tokens, depth, pairs;
	float mass;
	uint32_t crc; /* of a note's bytes; a plane has its own */
	uint8_t type, flags, plane, n_planes;
	uint8_t page_shift, reserved[3];
};
static_assert(sizeof(struct fmt_record) == 180, "a record is 180 bytes");

struct fmt_page {
	char magic[8];
	uint32_t version;
	uint32_t segment;
	uint8_t id[16];
	uint64_t generation, salt;
	uint32_t page;        /* of the segment: where this is */
	uint32_t sequence;    /* number of the record page in the segment, or in the summary */
	uint32_t chunk_pages; /* with all record pages; summary: 0 */
	uint16_t part, parts; /* of the record pages of one chunk */
	uint16_t n_records;
	uint16_t summary; /* 1: of a summary */
	uint32_t reserved;
	struct fmt_record record[FMT_PER_PAGE];
};
static_assert(sizeof(struct fmt_page) == 72 + 22 * 180, "a record page");
static_assert(sizeof(struct fmt_page) <= FMT_CRC_AT, "with room for its checksum");

/* Which page is meant to be looked at: whatever it says of itself has to agree. */
struct fmt_where {
	const uint8_t *id;
	uint32_t segment, segment_pages;
	uint64_t generation, salt;
};

static inline uint64_t fmt_order(const struct fmt_record *r)
{
	return (uint64_t)r->order_high << 32 | r->order_low;
}
static inline uint32_t fmt_pages(uint64_t bytes)
{
	return (uint32_t)((bytes + DISK_PAGE - 1) / DISK_PAGE);
}
static inline uint32_t fmt_parts(uint32_t n_records)
{
	return (n_records + FMT_PER_PAGE - 1) / FMT_PER_PAGE;
}

/* Writes the checksum; the last step when a page is made. */
void fmt_seal(void *page);

void fmt_super_make(const struct fmt_super *s, void *page);
/* Also -EPROTONOSUPPORT: a good one of a newer version; *ret has it. -ENOENT: nothing of ours. */
int fmt_super_check(const void *page, struct fmt_super *ret);
/* How many segments fit; 0: too small, or segment_bytes is none. */
uint32_t fmt_segments(uint64_t bytes, uint64_t segment_bytes);

/* magic: FMT_HEADER or FMT_TRAILER. where.generation and .salt are not looked at. */
void fmt_segment_make(const struct fmt_segment *s, const char *magic, void *page);
int fmt_segment_check(
	const void *page, const char *magic, const struct fmt_where *w, struct fmt_segment *ret);

/* Everything but the records, which stand there already. */
void fmt_page_make(struct fmt_page *p, const struct fmt_where *w);
/* Of the summary, or of a chunk; at `page`, as number `sequence`. Every record is within the segment and has sane numbers. */
int fmt_page_check(const struct fmt_page *p, const struct fmt_where *w, uint32_t page,
	uint32_t sequence, bool summary);

/* order, page, head and crc are left to the caller. -EINVAL: it does not fit. */
int fmt_record_make(const struct disk_record *r, struct fmt_record *ret);
void fmt_record_read(const struct fmt_record *f, struct disk_record *ret);

#endif
