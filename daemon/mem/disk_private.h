/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_private: what the files of the log store share. disk.c has the model.
 * Thread: the loop's thread. Locks: none. Blocks: what says so. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_MEM_DISK_PRIVATE_H
#define KVGATE_DAEMON_MEM_DISK_PRIVATE_H

#include "daemon/base/loop.h"
#include "daemon/io/io.h"
#include "daemon/mem/bulk.h"
#include "daemon/mem/disk.h"
#include "daemon/mem/disk_format.h"

#define CHUNK_BYTES   (4u << 20) /* of one write; a larger plane is a chunk of its own */
#define CHUNK_ENTRIES 512u       /* with record pages less than IO_VECTORS_MAX vectors */
#define CLASSES       2u
#define SEGMENT_NONE  UINT32_MAX

struct disk_device;
struct disk_segment;
struct epoch;
struct chunk;
struct clean;

/* A request of ours. ended() gets the result, and the request is the caller's again. */
struct dev_request {
	struct io_request io;
	struct iovec iov;
	struct disk_device *dev;
	void (*ended)(struct dev_request *q, int error);
	struct epoch *epoch; /* of a sync */
};

/* Begun, and not known to be over: what a disk_sync() waits for. Then the devices are synced. */
struct epoch {
	struct epoch *next;
	struct disk *disk;
	uint64_t number;
	unsigned ops, waiting;
	int error; /* of one that has to be told to the syncs */
	struct disk_sync *syncs, **syncs_end;
	struct dev_request sync[DISK_DEVICES_MAX];
};

enum item_flag {
	ITEM_LIVE = 1,
	ITEM_NOTE = 2,
	ITEM_ERASED = 4,        /* asked for */
	ITEM_TODO_HEAD = 8,     /* and not written yet: in the chunk's record page, */
	ITEM_TODO_SUMMARY = 16, /* in the summary */
	ITEM_MOVING = 32,       /* cleaning keeps it */
	ITEM_MOVED = 64,        /* and it has another place now */
	ITEM_FORGOTTEN =
		128, /* nobody's, and a start would find it, unless it is erased or moved */
};

/* One record of a segment, in the order they were written. */
struct disk_item {
	void *item; /* the owner's */
	uint32_t page, bytes;
	uint32_t head;
	uint16_t loads; /* in flight */
	uint8_t plane, flags;
};

enum segment_state {
	SEGMENT_FREE,
	SEGMENT_OPEN,
	SEGMENT_SEALING,
	SEGMENT_CLOSED,
	SEGMENT_FREEING,
	SEGMENT_BAD, /* could not be freed: its header is still there */
};

/* Of a segment that is written to. */
struct open_part {
	struct fmt_record *records; /* [n_items of the segment] */
	uint32_t size;
	uint32_t next_page; /* where the next chunk goes */
	uint32_t next_sequence;
	uint32_t *notes; /* that lie in it */
	uint32_t n_notes, notes_size;
	struct chunk *first, **end; /* written, and not ended; in their order */
	struct chunk *filling;
	bool header; /* written, or about to be */
	bool full, poisoned;
};

struct disk_segment {
	struct disk_device *dev;
	struct disk_tenant *tenant;
	enum segment_state state;
	uint32_t number;
	uint64_t generation, salt;
	struct disk_item *items;
	uint32_t n_items, items_size;
	uint32_t summary; /* its first page; 0: none */
	uint32_t live;
	uint64_t live_bytes; /* in whole pages */
	uint32_t loads;
	uint64_t judged; /* the cleaning pass that found nothing to gain here */
	struct open_part *open;
	bool class; /* 1: of what was moved */
	bool cleaning, editing, edit_queued;
	bool forgetful; /* it may have ITEM_FORGOTTEN */
	bool again; /* a record could not be changed, or all of it not be freed: the next sync tries again */
	bool listed; /* in disk.filling */
	struct disk_segment *next_filling;
	struct epoch *edit_epoch; /* of edits that wait */
	struct epoch
		*free_epoch; /* nothing lives here, and it has to be free before this one is over */
	uint32_t edit_from;  /* no item before has something to do */
	struct disk_segment *next; /* free list; list of edits */
	struct fmt_record *found; /* [n_items], of disk.found; from disk_open() to disk_recover() */
};

struct disk_device {
	struct disk *disk;
	unsigned number;
	char *path;
	int fd;
	struct io *io; /* NULL: requests wait in `parked` */
	struct io_request *parked, **parked_end;
	struct fmt_super super;
	uint32_t segment_pages;
	struct disk_segment *segments;
	struct disk_segment *free, **free_end;
	uint32_t n_free, n_freeing;
	uint64_t writing;        /* bytes in flight */
	unsigned write_failures; /* in a row */
	unsigned io_failures;
	bool probing, no_writes;
	bool failed, lost; /* given up; and its planes have to be told of */
	struct clean *clean;
	uint64_t pass, idle_pass;
	bool stuck;        /* a pass of cleaning found nothing to gain, */
	uint64_t stuck_at; /* then */
	bool fresh;        /* there is something that this pass has not seen */
	uint64_t damaged;
};

struct disk_tenant {
	struct disk *disk;
	struct disk_tenant *next;
	char *name;
	void *owner;
	bool claimed;        /* by disk_tenant_new() */
	bool gone;           /* disk_tenant_free() */
	struct epoch *epoch; /* gone: holds it until nothing is left */
	uint32_t n_segments;
	uint32_t n_chunks;
	uint64_t limit, used;
	struct disk_segment *open[DISK_DEVICES_MAX][CLASSES];
	struct disk_segment *filling; /* where a chunk of what is stored is being put together */
	bool wants_room;              /* he is at his limit */
};

struct disk {
	struct disk_options o;
	struct loop_timer *timer; /* NULL: disk_close() turns by itself */
	bool turn_wanted, closing, recovered;
	bool refused, room_wanted; /* a store was; and something ended since */
	bool again;                /* some segment has that to do */
	bool unsure; /* records that are not believed here stay, on a device that takes no more writes */
	struct disk_device *devices[DISK_DEVICES_MAX];
	unsigned n_devices, next_device;
	struct disk_tenant *tenants;
	struct io_request *deferred, **deferred_end; /* done without a device, in the next turn */
	struct disk_load *refused_loads;
	struct disk_segment *filling; /* chunks that this turn submits */
	struct disk_segment *edits, **edits_end;
	struct epoch *epochs, *epoch; /* oldest, and the one that is now */
	uint64_t order;               /* of the latest record or segment */
	uint64_t in_flight, in_flight_max;
	unsigned n_requests;
	double wear, wear_max; /* bytes that may be written now */
	uint64_t wear_at;
	uint64_t bad_logged_at, refused_logged_at;
	struct disk_stat stat;
	struct bulk found; /* what was read at the start, until it was told */
};

/* ---- disk.c ---- */

void disk_turn(struct disk *d);
void disk_wake(struct disk *d);                        /* a turn comes */
void disk_defer(struct disk *d, struct io_request *r); /* done() comes in it */
void disk_deliver(struct disk *d);                     /* it came */
struct epoch *op_begin(struct disk *d);
/* A part of something that is still going on. Syncs end in order: of two epochs the older one serves both. */
struct epoch *op_join(struct epoch *e);
void op_end(struct disk *d, struct epoch *e,
	int error);              /* error: is told to the syncs that wait for it */
bool disk_log_now(uint64_t *at); /* once in 10 s */
int disk_new(const struct disk_options *o, struct disk **ret); /* without devices */
/* Frees all of it and writes nothing, as if the process had been killed. For tests, and the end of disk_close(). */
void disk_drop(struct disk *d);

/* ---- disk_segment.c ---- */

/* A free one becomes the tenant's open one. NULL: no memory, or none is free. */
struct disk_segment *segment_take(struct disk_device *dev, struct disk_tenant *t, unsigned class);
int segment_reserve(struct disk_segment *s, uint32_t more); /* room for so many items */
void segment_add_free(struct disk_segment *s);
void segment_try_free(struct disk_segment *s); /* when nothing is on it and nobody looks at it */
void segment_free_for(
	struct disk_segment *s, struct epoch *e); /* the same, as a part of what is in e */
void segment_clear(struct disk_segment *s);       /* its memory */
void item_adopt(struct disk_segment *s, uint32_t i, void *item); /* it is live, and the owner's */
void item_drop(struct disk_segment *s, uint32_t i);              /* a live one is not any more */
void item_forget(struct disk_segment *s, uint32_t i);            /* ITEM_FORGOTTEN */
struct disk_segment *segment_at(struct disk *d, struct disk_place p); /* NULL: it names nothing */

/* What has to stand in its record. */
static inline uint8_t item_flags(const struct disk_item *it)
{
	return it->flags & ITEM_ERASED ? FMT_DEAD : it->flags & ITEM_MOVED ? FMT_VOID : 0;
}
static inline struct fmt_where segment_where(const struct disk_segment *s)
{
	return (struct fmt_where){
		.id = s->dev->super.id,
		.segment = s->number,
		.segment_pages = s->dev->segment_pages,
		.generation = s->generation,
		.salt = s->salt,
	};
}
static inline uint64_t segment_offset(const struct disk_segment *s, uint32_t page)
{
	return FMT_FIRST + s->number * s->dev->super.segment_bytes + (uint64_t)page * DISK_PAGE;
}
static inline struct disk_place item_place(const struct disk_segment *s, uint32_t i)
{
	return (struct disk_place){(uint16_t)(s->dev->number + 1), s->number, i};
}

/* ---- disk_append.c ---- */

/* dev: only there; NULL: anywhere. order: of what is moved; 0: it is new. -EFBIG: larger than a segment. */
int append_store(struct disk_tenant *t, struct disk_store *s, unsigned class,
	struct disk_device *dev, uint64_t order);
void append_flush(struct disk *d); /* submits what is being filled */
void append_seal(struct disk_segment
		*s); /* nothing more goes into it; closed when what is in flight has ended */
uint32_t device_reserve(
	const struct disk_device *dev); /* free segments that only cleaning may take */

/* ---- disk_load.c ---- */

/* On any thread: a whole plane, this one. -EBADMSG. */
int load_verify(const void *bytes, uint64_t n, const struct kvg_key *key, unsigned plane);
void load_turn(struct disk *d);
void load_count(struct disk_device *dev, int error); /* of a plane that could not be read */

/* ---- disk_clean.c ---- */

void clean_turn(struct disk_device *dev);
void clean_load_ended(struct disk_segment *s);
void clean_free(struct disk_device *dev);

/* ---- disk_edit.c ---- */

void edit_erase(
	struct disk_segment *s, uint32_t item, struct epoch *e); /* NULL: the one that is now */
void edit_void(struct disk_segment *s, uint32_t item, struct epoch *e); /* it has been moved */
void edit_again(struct disk *d); /* what has failed; in the epoch that is now */
void edit_turn(struct disk *d);

/* ---- disk_recover.c, disk_found.c ---- */

/* What is on the devices, all of them at once; their requests end through `loop`. Blocks. */
int recover_read(struct disk *d, struct loop *loop);
void recover_forget(struct disk *d); /* all of it */
struct disk_tenant *tenant_find(struct disk *d, const char *name);
struct disk_tenant *tenant_add(struct disk *d, const char *name);

#endif
