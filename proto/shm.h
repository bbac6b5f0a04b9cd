/* SPDX-License-Identifier: Apache-2.0 */
/*
 * shm: byte layouts shared through memory - index, pin page, plane. See PROTOCOL.md.
 * Thread: the daemon writes index and planes, one client writes its pin page. Locks: none, the
 * ordering rules below. Blocks: never. Errors: readers copy a value once, check it, then use it.
 *
 * Everything is little endian, offsets and no pointers. Numbers are never reused: a change of a
 * layout is a new version, and both sides refuse a version they do not know.
 */
#ifndef KVGATE_PROTO_SHM_H
#define KVGATE_PROTO_SHM_H

#include <assert.h>
#include <stdatomic.h>
#include <stdint.h>

#include "proto/shape.h"

#define KVG_SHM_VERSION  2
#define KVG_PAGE_MIN     4096u /* the kernel's page; nothing smaller can be punched */
#define KVG_PAGE_DEFAULT 65536u
#define KVG_PAGE_MAX     (2u << 20)

static inline uint64_t kvg_handle_pack(struct kvg_handle h)
{
	return (uint64_t)h.gen << 32 | h.slot;
}
static inline struct kvg_handle kvg_handle_unpack(uint64_t v)
{
	return (struct kvg_handle){.slot = (uint32_t)v, .gen = (uint32_t)(v >> 32)};
}

/* ---- index: header page | buckets | entries ---------------------------------------------- */

#define KVG_INDEX_MAGIC "KVGINDEX"

struct kvg_shm_index {
	char magic[8];
	uint32_t version;
	uint32_t entry_bytes; /* sizeof(struct kvg_shm_entry) */
	uint64_t n_buckets;   /* a power of two */
	uint64_t n_slots;
	uint64_t buckets_off; /* 4096 */
	uint64_t entries_off; /* multiple of 4096 */
	uint64_t total_bytes;
	uint8_t instance[16]; /* random, chosen when the index was created */
	uint32_t crc;         /* CRC32C of the bytes before this field */
	/*
	 * Grows when a daemon adopts the index: it knows nothing of the pin pages of older sessions. A
	 * client compares it at every lookup with the value at hello, and must connect again.
	 */
	_Atomic uint32_t epoch;
};
static_assert(sizeof(struct kvg_key) == KVG_KEY_BYTES, "a key is 32 bytes");
static_assert(sizeof(struct kvg_shm_index) == 80, "index header is 80 bytes");

/*
 * A key's bucket is its first 8 bytes (little endian) & (n_buckets - 1), then the next ones as long as
 * `overflow` of the bucket just searched is not 0. A way is tag << 32 | slot + 1 (0 = empty), tag = key
 * bytes 8..11. Ways never move while their block lives.
 */
#define KVG_BUCKET_WAYS 7
struct kvg_shm_bucket {
	_Atomic uint64_t way[KVG_BUCKET_WAYS];
	_Atomic uint64_t overflow; /* live keys that probed past this bucket */
};
static_assert(sizeof(struct kvg_shm_bucket) == 64, "a bucket is one cache line");

static inline uint64_t kvg_key_bucket(const struct kvg_key *k, uint64_t n_buckets)
{
	uint64_t v;
	__builtin_memcpy(&v, k->b, 8);
	return v & (n_buckets - 1);
}
static inline uint32_t kvg_key_tag(const struct kvg_key *k)
{
	uint32_t v;
	__builtin_memcpy(&v, k->b + 8, 4);
	return v;
}

enum kvg_tier {
	KVG_TIER_NONE = 0, /* dropped: pairs and bytes say what it was */
	KVG_TIER_HOST = 1,
	KVG_TIER_GPU = 2,
	KVG_TIER_DISK = 3,
};

/* Where one plane lies. Immutable while the plane's bit in `mapped` is set and the block is pinned. */
struct kvg_shm_plane_ref {
	uint64_t bytes;   /* payload, header included */
	uint32_t segment; /* id, never reused within an index instance; 0 = none */
	uint32_t page;    /* first page in the segment */
	uint32_t pairs;
	uint8_t tier;       /* enum kvg_tier */
	uint8_t page_shift; /* page bytes = 1 << page_shift */
	uint16_t check;     /* folded CRC32C of the fields above, plane number and generation */
};
static_assert(sizeof(struct kvg_shm_plane_ref) == 24, "a plane ref is 24 bytes");

/*
 * entry.word: bits 63..32 generation, 16 LIVE, 15..8 planes held in any tier, 7..0 planes mapped
 * (readable in a segment a client can map). Written with release, read with acquire. Reader: load
 * word (LIVE?), compare key, publish the pin, full fence, load word again: the same generation and
 * still LIVE means pinned, and the planes in THAT word stay where they are until unpin. Writer that
 * takes planes away: store the smaller word, full fence, scan every pin page; a pin for the slot
 * means put the old word back. Generation grows by one at each insert into the slot.
 */
#define KVG_ENTRY_LIVE (1ull << 16)
static inline uint32_t kvg_word_gen(uint64_t w)
{
	return (uint32_t)(w >> 32);
}
static inline uint8_t kvg_word_held(uint64_t w)
{
	return (uint8_t)(w >> 8);
}
static inline uint8_t kvg_word_mapped(uint64_t w)
{
	return (uint8_t)w;
}
static inline uint64_t kvg_word(uint32_t gen, int live, uint8_t held, uint8_t mapped)
{
	return (uint64_t)gen << 32 | (live ? KVG_ENTRY_LIVE : 0) | (uint64_t)held << 8 | mapped;
}

#define KVG_SLOT_NONE UINT32_MAX
struct kvg_shm_entry {
	_Atomic uint64_t word;
	struct kvg_key key;
	uint32_t layout;   /* id of the layout within the tenant */
	uint32_t parent;   /* slot of the parent block, KVG_SLOT_NONE at a root */
	uint32_t tokens;   /* tokens in this block (<= shape.tokens) */
	uint32_t depth;    /* blocks before this one in its chain */
	uint32_t n_planes; /* planes it was committed with */
	uint32_t crc;      /* CRC32C of generation and of the fields above but word */
	struct kvg_shm_plane_ref plane[KVG_PLANES_MAX];
};
static_assert(sizeof(struct kvg_shm_entry) == 256, "an entry is four cache lines");

/* ---- replicas: header page | entries ------------------------------------------------------ */

#define KVG_REPLICAS_MAGIC "KVGREPLI"

/*
 * What of a tenant's blocks one device has as well: an entry for each slot of the index, in a memfd of its own for each
 * device. The index says what there is; this says only where else it lies.
 */
struct kvg_shm_replicas {
	char magic[8];
	uint32_t version;
	uint32_t entry_bytes; /* sizeof(struct kvg_shm_replica) */
	uint64_t n_slots;     /* of the index */
	uint64_t entries_off; /* multiple of 4096 */
	uint64_t total_bytes;
	uint8_t instance[16];          /* of the index */
	uint8_t device[16];            /* UUID */
	uint32_t crc;                  /* CRC32C of the bytes before this field */
	_Atomic uint32_t last_segment; /* the greatest id that was given; the daemon's own note */
};
static_assert(sizeof(struct kvg_shm_replicas) == 80, "the replicas' header is 80 bytes");

/*
 * word: bits 63..32 generation of the block, 16 LIVE, 7..0 planes that the device has. Reader: with the block pinned, load
 * word (acquire); of the same generation, the planes in it that the pinned index word holds, too, lie in device memory where
 * plane[] says, and stay there until unpin. Writer: as for the index, with the same pins: refs, then the larger word with
 * release; to take away the smaller word, full fence, scan.
 */
struct kvg_shm_replica {
	_Atomic uint64_t word;
	uint64_t reserved[7];
	struct kvg_shm_plane_ref
		plane[KVG_PLANES_MAX]; /* tier KVG_TIER_GPU; pairs as in the index */
};
static_assert(sizeof(struct kvg_shm_replica) == 256, "a replica's entry is four cache lines");

/* ---- pin page: header | pins | touch ring ------------------------------------------------- */

#define KVG_PIN_MAGIC "KVGPINPG"

/*
 * One memfd per session, written by its client, read by the daemon, trusted for nothing: the daemon
 * keeps the geometry itself and clamps what it reads. A pin is a packed handle, 0 = free. The touch
 * ring tells the daemon which blocks were read: write entry[head % n], then head + 1 (release).
 */
struct kvg_shm_pins {
	char magic[8];
	uint32_t version;
	uint32_t n_pins;
	uint32_t n_touch; /* a power of two */
	uint32_t pins_off;
	uint32_t touch_off;
	uint32_t total_bytes;
	_Atomic uint32_t pins_high; /* pins at and above this were never used */
	uint32_t reserved[7];
	_Atomic uint64_t touch_head;
	uint64_t reserved2[7];
};
static_assert(sizeof(struct kvg_shm_pins) == 128, "the pin page's header is 128 bytes");

/* ---- plane: header | cu | tokens | index | score | K | V ----------------------------------- */

#define KVG_PLANE_MAGIC  "KVGPLANE"
#define KVG_PLANE_OPAQUE 1u
#define KVG_PLANE_ALIGN  64u

struct kvg_plane_header {
	char magic[8];
	uint16_t version;
	uint16_t plane; /* 0 = best */
	uint16_t n_planes;
	uint16_t flags;
	uint8_t fingerprint[32];
	struct kvg_key key;
	uint32_t runs;        /* layers * heads; 0 when opaque */
	uint32_t tokens;      /* tokens in the block */
	uint32_t pairs;       /* pairs in this plane */
	uint32_t n_token_ids; /* token ids stored here: `tokens` in plane 0, else 0 */
	uint32_t k_row;       /* bytes; opaque: low half of the opaque byte count */
	uint32_t v_row;       /* bytes; opaque: high half */
	uint64_t bytes;       /* of the whole payload, this header included */
	uint32_t body_crc;    /* CRC32C of everything from KVG_PLANE_HEADER_BYTES on */
	float mass;           /* share of the block's attention mass, for the daemon's policy */
	uint32_t reserved;    /* 0 */
	uint32_t header_crc;  /* CRC32C of the header up to here */
};
static_assert(sizeof(struct kvg_plane_header) == 128, "plane header is 128 bytes");
#define KVG_PLANE_HEADER_BYTES 128u /* the body starts here */

#define KVG_SCORE_PROTECTED 0x7c00u /* f16 +inf: kept by every rule and not counted by it */

#endif
