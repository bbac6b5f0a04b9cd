/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk: the tier below memory - planes in logs on files or block devices.
 * Thread: the loop's thread. Locks: none. Blocks: disk_open() reads summaries, disk_close() ends what is in flight; nothing else.
 * Errors: negative errno.
 *
 * A device is an array of segments of one size. A segment belongs to one tenant for as long as anything is in it. Planes are
 * appended in chunks: record pages that say what follows, then the planes' pages; when a segment is full, a summary -
 * all record pages again - closes it. daemon/mem/DISK.md has the bytes. Everything is checksummed, nothing on a device is believed, and
 * nothing is believed to be on it before it is: done() of a store comes when planes and records are written (a dead daemon loses none of
 * it), and disk_sync() says when a power cut does not either.
 */
#ifndef KVGATE_DAEMON_MEM_DISK_H
#define KVGATE_DAEMON_MEM_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "proto/shm.h"

struct loop;
struct io_fault; /* daemon/io/io.h */
struct disk;
struct disk_tenant;

#define DISK_DEVICES_MAX 16
#define DISK_PAGE        4096u
#define DISK_NOTE_MAX    (64u << 10)

/* Where a plane lies. device 0: nowhere; else 1 + number of the device. */
struct disk_place {
	uint16_t device;
	uint32_t segment; /* of the device */
	uint32_t item;    /* in the segment, disk's own */
};
static inline bool disk_there(struct disk_place p)
{
	return p.device != 0;
}

/* What is recorded of a plane: enough to find it again without reading it, and to make its block anew. */
struct disk_record {
	struct kvg_key key, parent; /* parent zeros: a root */
	uint32_t note;              /* of the tenant: the layout it is of */
	uint32_t tokens, depth;     /* of the block */
	uint32_t pairs;             /* of the plane */
	uint64_t bytes;             /* payload */
	float mass;
	uint8_t plane, n_planes;
	uint8_t page_shift; /* of the extent it came from, and goes back to */
	bool has_parent;
	/* of the planes of its block, which may lie elsewhere: 0 where there are no pairs */
	uint64_t plane_bytes[KVG_PLANES_MAX];
	uint32_t plane_pairs[KVG_PLANES_MAX];
};

/* ---- the tier ----------------------------------------------------------------------------------- */

struct disk_owner {
	/*
	 * The log needs room and has come to this plane, which `item` was given for: true keeps it (it is moved elsewhere), false means that it
	 * is forgotten, and its place names nothing from now on. May not call back.
	 */
	bool (*keep)(void *item, unsigned plane);
	/* It was moved, or (place nowhere) could not be read: it is lost. May not call back. */
	void (*moved)(void *item, unsigned plane, struct disk_place to);
	/* Bytes of a note that this tenant has announced; at most DISK_NOTE_MAX. They are written once into each segment that refers to them. */
	size_t (*note)(void *tenant_owner, uint32_t note, const void **ret);
	/* Something ended that may let stores be admitted which were refused (-EAGAIN, -ENOSPC). On the loop's thread, not from within a call. */
	void (*room)(void *userdata);
	void *userdata;
};

struct disk_options {
	struct loop *loop;
	const char *const *paths; /* [n_paths]: files made by disk_format(), or block devices */
	unsigned n_paths;
	uint64_t in_flight_bytes; /* each device */
	bool uring, sqpoll, iopoll, discard;
	uint64_t write_bytes_per_day; /* the wear budget, all devices together; 0: none */
	struct disk_owner owner;
	const struct io_fault *fault; /* NULL */
};
/*
 * Opens and locks all devices and reads their summaries. A device that cannot be used is said in the log, with what to do, and
 * left out; ret_bad counts them. -ENODEV: none is left. -ENOMEM.
 */
int disk_open(const struct disk_options *o, struct disk **ret, unsigned *ret_bad);
/* Ends what is in flight, closes open segments with summaries, syncs. NULL. */
struct disk *disk_close(struct disk *d);

/*
 * What was found, once, after disk_open() and before anything is stored: for each tenant his notes, then his planes, newest first.
 * plane() returns the item that disk_owner's functions get for it, NULL: it is nobody's, and forgotten. 0, or what a function returned.
 */
struct disk_found {
	int (*tenant)(void *userdata, const char *name,
		void **ret_tenant_owner); /* -ENOENT: all of his is forgotten */
	int (*note)(void *userdata, void *tenant_owner, uint32_t note, const void *bytes, size_t n);
	void *(*plane)(void *userdata, void *tenant_owner, const struct disk_record *r,
		struct disk_place at);
	void *userdata;
};
int disk_recover(struct disk *d, const struct disk_found *f);

/* name: up to 255 bytes; what was recovered under this name is his. owner: for note(). */
int disk_tenant_new(struct disk *d, const char *name, void *owner, struct disk_tenant **ret);
/* Everything of his that is still there is erased. NULL. */
struct disk_tenant *disk_tenant_free(struct disk_tenant *t);
void disk_tenant_limit(struct disk_tenant *t, uint64_t bytes); /* of segments; 0: no limit */
uint64_t disk_tenant_used(const struct disk_tenant *t);        /* bytes of planes */

/* ---- planes ------------------------------------------------------------------------------------- */

/* Embedded; the caller's until done(). */
struct disk_store {
	struct disk_store *next;
	struct disk_tenant *tenant;
	struct disk_record record;
	const void *
		addr; /* the plane's pages: aligned to and readable up to a multiple of DISK_PAGE; nobody changes them until done() */
	void *item;   /* for disk_owner's functions */
	struct disk_place place; /* the result */
	int error;               /* 0, or negative errno: it is not stored */
	void (*done)(
		struct disk_store *s); /* on the loop's thread, never from within disk_store() */
};
/*
 * Planes that are stored in one turn of the loop lie together. Refused at once: -ENOSPC no room, or the tenant's limit; -EDQUOT the wear
 * budget of the day is used up; -EAGAIN as much is in flight as may be (owner.room() comes); -EROFS no device takes writes any more.
 */
int disk_store(struct disk *d, struct disk_store *s);

struct disk_load {
	struct disk_load *next;
	struct disk_place place;
	void *addr; /* aligned to DISK_PAGE; as many bytes as the payload has, rounded up to it, are written */
	const struct kvg_key *key; /* with `plane`, what has to be found there */
	unsigned plane;
	int error; /* -EBADMSG: not these bytes (checksum, or another plane); -EIO and others: the device */
	void (*done)(struct disk_load *l); /* on the loop's thread, never from within disk_load() */
};
/* The checksum is verified on the device's thread. The place is not forgotten or moved meanwhile. */
void disk_load(struct disk *d, struct disk_load *l);

/* The place names nothing any more. A restart may find it again. */
void disk_forget(struct disk *d, struct disk_place p);
/* The same for good: no restart finds it again, once disk_sync() is done. */
void disk_erase(struct disk *d, struct disk_place p);
/*
 * The same of all his planes that places do not name any more: those that were forgotten, and those that nobody took when they were
 * found. Who erases a plane for good has to, for an older copy of it may be among them. true: there were some.
 */
bool disk_erase_forgotten(struct disk_tenant *t);

/*
 * done when everything that was stored, and erased, before is durable. After an error a restart may find again what was erased, and
 * the next one tries again.
 */
struct disk_sync {
	struct disk_sync *next;
	unsigned waiting; /* disk's own */
	int error;
	void (*done)(struct disk_sync *s);
};
void disk_sync(struct disk *d, struct disk_sync *s);

struct disk_stat {
	uint64_t capacity, live, free_segments,
		segments; /* bytes; live: of planes that places name */
	uint64_t stored_bytes, moved_bytes, loaded_bytes,
		discarded_bytes; /* ever, by this process */
	uint64_t stores_refused, load_errors, bad_planes;
	unsigned devices, failed; /* failed: in use once, and given up */
};
void disk_stat(const struct disk *d, struct disk_stat *ret);

/* ---- for kvgatectl and tests: a device that no daemon has ------------------------------------------ */

struct disk_info {
	uint32_t version;
	uint8_t id[16];
	uint64_t bytes, segment_bytes, segments;
	uint64_t closed, open, free, damaged; /* segments */
	uint64_t planes, plane_bytes, bad_planes, tenants;
};
/* Makes a device of `bytes` (0: as large as the file or block device is). why: text for a person. -EEXIST: it is one already, and not `force`. */
int disk_format(const char *path, uint64_t bytes, uint64_t segment_bytes, bool force, char *why,
	size_t why_size);
/* planes: reads all of them as well. -EBUSY: a daemon has it. -EPROTONOSUPPORT: a newer format. -EBADMSG: none of ours. */
int disk_check(const char *path, bool planes, struct disk_info *ret, char *why, size_t why_size);

#endif
