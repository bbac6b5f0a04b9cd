/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cache: tenants, layouts, blocks - everything below the protocol and above memory.
 * Thread: the control thread owns it; pack workers are inside and report back through the loop.
 * Locks: none here (the page pool has its own). Blocks: never on clients or disks.
 * Errors: negative errno for the daemon's own trouble, enum kvg_code for answers to a client.
 */
#ifndef KVGATE_DAEMON_CACHE_CACHE_H
#define KVGATE_DAEMON_CACHE_CACHE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "gates/gate.h"
#include "proto/key.h"
#include "proto/kvgate-types.h"
#include "proto/shm.h"

struct cache;
struct cache_tenant;
struct cache_layout;
struct counters; /* daemon/base/counters.h */
struct io_fault; /* daemon/io/io.h */
struct loop;     /* daemon/base/loop.h */
struct park;     /* daemon/base/park.h */

struct cache_options {
	struct loop *loop;
	struct counters *counters;
	struct park *park;   /* NULL: nobody keeps fds over a restart */
	uint64_t host_bytes; /* all tenants together, pages in use */
	uint64_t segment_bytes;
	uint64_t index_slots;                /* per tenant */
	float high_watermark, low_watermark; /* of a tenant's quota and of host_bytes */
	unsigned pack_workers;
	int numa_node;   /* -1: the kernel's default policy */
	bool huge_pages; /* hugetlb when reserved, else THP */
	bool prefault;   /* fault memory in by a background thread */
	enum gate_arithmetic arithmetic;
	struct cache_disk_options {
		const char *const *paths; /* [n_paths]; 0: no tier below memory */
		unsigned n_paths;
		uint64_t in_flight_bytes;     /* of each device */
		uint64_t write_bytes_per_day; /* 0: no limit */
		bool uring, sqpoll, iopoll, discard;
		bool admit_all; /* what is worth less than what has to go for it, too */
		const struct io_fault *fault; /* NULL; for tests */
	} disk;
	struct cache_gpu_options {
		const char *devices;   /* NULL, "": none; "all"; ordinals, separated by ',' */
		const char *library;   /* libcuda */
		const char *mover;     /* path of kvgate-mover */
		uint64_t bytes;        /* of each device */
		uint64_t tenant_bytes; /* of each device and tenant; 0: no limit */
		uint64_t
			mover_pause_ns; /* the longest before a mover is started again; 0: as it is */
	} gpu;
};

int cache_new(const struct cache_options *o, struct cache **ret);
struct cache *cache_free(struct cache *c); /* every session is gone by then */
/* Of host_bytes, all tenants together. */
void cache_set_watermarks(struct cache *c, float high, float low);

/* Gates by the name clients give at registration; the cache owns the gate from here on. -EEXIST. */
int cache_add_gate(struct cache *c, const char *name, struct gate *g);
/* Gate reload (SIGHUP): names that are gone stay for layouts that use them, but take no new layout. */
void cache_retire_gates(struct cache *c);

/*
 * Takes over what the last daemon parked: tenants with layouts, blocks and what was set for them; then what lies on disk. Once, before anybody is
 * served, when the gates are there. `pinned`: does a pin page that is kept hold this handle? NULL: none does. -ENOMEM and other trouble of
 * the daemon's own; what cannot be taken over is logged, counted and dropped.
 */
struct cache_pinned {
	bool (*pinned)(void *userdata, uint32_t tenant_number, struct kvg_handle h);
	void *userdata;
};
int cache_adopt(struct cache *c, const struct cache_pinned *p);
/* 0: nothing of it is kept. */
uint32_t cache_tenant_number(const struct cache_tenant *t);

struct cache_limits {
	uint64_t host_bytes; /* quota of the tenant */
	uint64_t disk_bytes; /* 0: no limit */
	float floor;         /* default retention floor, (0, 1] */
};
/* Found by name or made; lives until it is closed. Limits are taken over in both cases. */
int cache_tenant_open(
	struct cache *c, const char *name, const struct cache_limits *l, struct cache_tenant **ret);
/* The configuration may have changed. What was set at run time stays as long as it says the same. */
void cache_tenant_limit(struct cache_tenant *t, const struct cache_limits *l);
/* Nothing is kept for it and nobody reads it: it may be closed, which forgets all that was set for it. */
bool cache_tenant_idle(const struct cache_tenant *t);
void cache_tenant_close(struct cache_tenant *t);
struct cache_tenant *cache_tenant_find(struct cache *c, const char *name);
struct cache_tenant *cache_tenant_next(
	struct cache *c, struct cache_tenant *after); /* NULL = first */
const char *cache_tenant_name(const struct cache_tenant *t);
int cache_tenant_index_fd(const struct cache_tenant *t); /* borrowed, read-only description */

/* ---- layouts ------------------------------------------------------------------------------ */

struct cache_layout_spec {
	struct layout_identity
		id;            /* strings borrowed; gate_digest and edges as the client gave them */
	const char *gate;      /* "" = none, or the client's own digest and edges in id */
	bool gate_assigned;    /* an administrator tied it to this model, whatever its file says */
	uint32_t hidden_dtype; /* 0, bf16 or f32 */
	const uint32_t *ungated_layers;
	uint32_t n_ungated;
	uint32_t n_retained; /* 0, or n_edges: what share of all pairs lies at or above each edge */
	float retained[KVG_PLANES_MAX - 1];
};
/* An equal layout is found again. KVG_CODE_OK, BAD_LAYOUT, BAD_GATE, BAD_ARGUMENT with text in ret_why; QUOTA. */
int cache_layout_register(struct cache_tenant *t, const struct cache_layout_spec *s,
	struct cache_layout **ret, char *ret_why, size_t why_size);
struct cache_layout *cache_layout_get(struct cache_tenant *t, uint32_t id); /* NULL */
struct cache_layout *cache_layout_at(
	struct cache_tenant *t, unsigned i); /* i = 0, 1, ...; NULL at the end */
/*
 * Whoever names a layout by its id later on holds it, blocks and commits hold theirs; one that nobody holds makes way when
 * the tenant has no room for another, and its id names nothing from then on.
 */
void cache_layout_hold(struct cache_layout *l);
void cache_layout_drop(struct cache_layout *l);

struct cache_layout_info {
	uint32_t id;
	struct layout_identity
		identity; /* strings borrowed from the layout; edges and digest in force */
	uint8_t fingerprint[32];
	const char *gate;
	const struct gate_info *gate_info; /* NULL without a daemon-side gate */
	uint32_t hidden_dtype;
	uint32_t gated_layers; /* layers minus ungated */
	uint32_t page_bytes;
	float floor; /* in force now */
	bool foreign_keys;
};
void cache_layout_describe(const struct cache_layout *l, struct cache_layout_info *ret);
/* Geometry of one stage of this layout; tokens 0: of a full block. */
void cache_layout_stage(const struct cache_layout *l, enum stage_input input, uint32_t tokens,
	struct stage_geometry *ret);

/* ---- pins --------------------------------------------------------------------------------- */

/* A session's pin page as the daemon sees it; attached while the session lives. */
struct pin_page {
	const struct kvg_shm_pins *map; /* shared with the client: read once, clamp */
	uint32_t n_pins, n_touch;       /* the daemon's own copy of the geometry */
	uint64_t touch_tail;            /* up to where touches were taken */
	struct pin_page *next, *prev;   /* the cache's list */
};
/*
 * Where the parts of a page lie: header | pins | touch ring, fixed by the counts alone, so that the daemon never asks
 * the page itself. n_touch is a power of two.
 */
static inline uint32_t pin_page_pins_off(void)
{
	return sizeof(struct kvg_shm_pins);
}
static inline uint32_t pin_page_touch_off(uint32_t n_pins)
{
	return (uint32_t)(sizeof(struct kvg_shm_pins) + (n_pins * sizeof(uint64_t) + 63) / 64 * 64);
}
static inline uint32_t pin_page_bytes(uint32_t n_pins, uint32_t n_touch)
{
	return pin_page_touch_off(n_pins) + n_touch * (uint32_t)sizeof(uint64_t);
}
void cache_pins_attach(struct cache_tenant *t, struct pin_page *p);
void cache_pins_detach(struct cache_tenant *t, struct pin_page *p);

/*
 * Pins through the socket, by reference count. KVG_CODE_OK, NOT_FOUND, BELOW_RETENTION: what is held in all tiers together is
 * less. retention is of what is held; what of it is not mapped is for cache_fetch().
 */
struct cache_block_result {
	struct kvg_handle handle;
	float retention;
	uint32_t held, mapped;
};
int cache_acquire(struct cache_tenant *t, const struct cache_layout *l, const struct kvg_key *key,
	float min_retention, struct cache_block_result *ret);
int cache_release(struct cache_tenant *t, struct kvg_handle h);

/*
 * Brings planes up from lower tiers, the best first, until those that are mapped hold this share of the block's pairs, or all that is
 * held is. Returns the planes (bits) that are on their way, 0: there is nothing to wait for. f NULL: a hint. Whoever waits has
 * the block pinned.
 */
struct cache_fetch {
	struct cache_fetch *next, **link; /* the cache's own */
	uint8_t waiting;                  /* planes that f still waits for */
	int error; /* why a plane did not come: -ENOSPC everything is pinned, -EBADMSG, -EIO it is lost */
	/* These have ended: mapped, or not (see error). On the control thread; may not call back. f->waiting 0: the last call. */
	void (*arrived)(struct cache_fetch *f, uint8_t planes);
};
uint8_t cache_fetch(
	struct cache_tenant *t, struct kvg_handle h, float retention, struct cache_fetch *f);
void cache_fetch_cancel(
	struct cache_fetch *f); /* nobody waits any more; what is under way goes on */
/* What a block that is pinned holds now. KVG_CODE_OK, NOT_FOUND. */
int cache_look(struct cache_tenant *t, struct kvg_handle h, struct cache_block_result *ret);
/* In any layout (l NULL) or in this one. Counts as a touch. */
bool cache_present_in(
	struct cache_tenant *t, const struct cache_layout *l, const struct kvg_key *key);
bool cache_present(struct cache_tenant *t, const struct kvg_key *key);

/* ---- commit ------------------------------------------------------------------------------- */

/* Staging memory of one session. Referenced by the session and by every job in flight; unmapped by the last. */
struct staging;
int staging_new(uint64_t bytes, struct staging **ret); /* sealed memfd, mapped here */
struct staging *staging_ref(struct staging *s);
struct staging *staging_unref(struct staging *s);
int staging_fd(const struct staging *s); /* borrowed, for the client: read-write */
uint64_t staging_bytes(const struct staging *s);
/* A run of bytes (4 KiB multiples). -ENOSPC. Owner: the control thread. Free punches the pages out. */
int staging_alloc(struct staging *s, uint64_t bytes, uint64_t *ret_offset);
void staging_release(struct staging *s, uint64_t offset, uint64_t bytes);
/* Its two halves: the slow one, which any thread may do, and then the quick one of the control thread. */
void staging_punch(struct staging *s, uint64_t offset, uint64_t bytes);
void staging_free_run(struct staging *s, uint64_t offset, uint64_t bytes);
/* Memory in it beyond what is reserved: the client wrote where nothing is. 0 when that is not known. */
uint64_t staging_excess(const struct staging *s);
/* Takes memory away where nothing is reserved, in some runs of a call; never where something is. */
void staging_sweep(struct staging *s);

struct cache_commit {
	struct cache_layout *layout;
	struct staging *staging; /* referenced by the job until done */
	uint64_t offset;         /* of the stage */
	enum stage_input input;
	uint32_t tokens;
	uint32_t protect_first, protect_last; /* tokens; together at most `tokens` */
	bool token_ids;
	bool has_parent;
	struct kvg_key key, parent;
};
struct cache_commit_result {
	int code;                 /* enum kvg_code */
	struct kvg_handle handle; /* with OK and EXISTS */
	char error[160];
};
typedef void (*cache_commit_fn)(void *userdata, const struct cache_commit_result *r);
struct cache_job;
/*
 * Starts one commit; done runs later on the control thread, exactly once, in the order of submission for
 * commits of one layout whose parent is still in flight (a child waits for its parent's job). A job that
 * was cancelled calls nobody and publishes nothing, even when it was being packed: its staging memory may
 * serve something else at once. *ret_job is valid until done or cancelled.
 */
int cache_commit(struct cache_tenant *t, const struct cache_commit *c, cache_commit_fn done,
	void *userdata, struct cache_job **ret_job);
void cache_commit_cancel(struct cache_job *j);

/* ---- reading, shrinking, policy ------------------------------------------------------------- */

struct cache_plane_info {
	uint32_t pairs, segment, page;
	uint64_t bytes;
	uint8_t tier; /* the highest that has it */
	double value;
	bool verified;
};
struct cache_block_info {
	struct kvg_key key, parent;
	bool has_parent;
	uint32_t layout, tokens, depth, pins, children, n_planes;
	struct kvg_handle handle;
	float retention;
	uint64_t bytes;
	double value;
	struct cache_plane_info plane[KVG_PLANES_MAX];
};
/*
 * Walks blocks: *cursor 0 starts, 0 again at the end. layout 0 = all. False when there is no further one, or, with
 * *cursor above 0, when *looks slots were looked at and none of them fits; what is left of *looks is for the next call.
 */
bool cache_list_next(struct cache_tenant *t, uint32_t layout, uint64_t *cursor, uint32_t *looks,
	struct cache_block_info *ret);
/* layout 0: of any. Nothing is said to be verified. KVG_CODE_OK, NOT_FOUND. */
int cache_inspect(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	struct cache_block_info *ret);
/*
 * The same, after a worker has read all bytes of it: planes that are whole are `verified`. What is damaged is hidden from
 * readers before done is told, and goes. done runs later on the control thread, exactly once, unless cache_silence().
 * KVG_CODE_OK, NOT_FOUND; -ENOMEM.
 */
typedef void (*cache_verify_fn)(void *userdata, const struct cache_block_info *info);
int cache_verify(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	cache_verify_fn done, void *userdata);

struct cache_purge_result {
	uint64_t blocks, planes, bytes, pinned;
};
struct cache_purge_request {
	uint32_t layout;            /* 0: all layouts */
	uint32_t keep_planes;       /* 0: whole blocks with everything below them */
	const struct kvg_key *keys; /* copied */
	size_t n;                   /* 0: everything of the layout */
};
/*
 * A slice with every turn of the loop; purges of one tenant one after the other. Blocks that are published after this call
 * stay, and so do the ancestors of such a block: they count as pinned. done runs later on the control thread, exactly
 * once, unless cache_silence(). -ENOMEM.
 */
typedef void (*cache_purge_fn)(void *userdata, const struct cache_purge_result *r);
int cache_purge_start(struct cache_tenant *t, const struct cache_purge_request *q,
	cache_purge_fn done, void *userdata);
/* All of it in one call: for programs that serve nobody meanwhile. key NULL: everything of the layout. */
void cache_purge(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key,
	uint32_t keep_planes, struct cache_purge_result *ret);
/* Nobody waits any more for any verification or purge; those under way go on. */
void cache_silence(struct cache *c);

/*
 * The daemon is about to end and memory may not outlive it: writes what is worth most to the tier below, until all of it is there or the
 * deadline (CLOCK_MONOTONIC) is past; then syncs. done once, on the control thread. Without such a tier it comes with the next turn.
 */
void cache_drain(
	struct cache *c, uint64_t deadline_ns, void (*done)(void *userdata), void *userdata);

struct cache_policy {
	float floor;
	uint64_t host_bytes;
	float high_watermark, low_watermark;
	uint64_t host_used; /* read only */
};
/* model "" = the tenant's default. Zero fields leave what is. KVG_CODE_OK, BAD_ARGUMENT with text. */
int cache_policy_set(struct cache_tenant *t, const char *model, const struct cache_policy *p,
	char *ret_why, size_t why_size);
/* The same, in the words of the configuration: counts only where it says something else than the last time. */
int cache_policy_configure(struct cache_tenant *t, const char *model, const struct cache_policy *p,
	char *ret_why, size_t why_size);
/* The model has no floor of its own any more: the tenant's holds. */
void cache_policy_forget(struct cache_tenant *t, const char *model);
void cache_policy_get(const struct cache_tenant *t, const char *model, struct cache_policy *ret);
/* Models with a floor of their own, i = 0, 1, ...; NULL at the end. */
const char *cache_policy_model(const struct cache_tenant *t, unsigned i, float *ret_floor);

/* ---- events ------------------------------------------------------------------------------- */

enum cache_event_kind { /* as Kvgate__V1__EventKind has them */
	CACHE_EVENT_COMMITTED = 1,
	CACHE_EVENT_SHRUNK = 2,
	CACHE_EVENT_EVICTED = 3,
};
struct cache_event {
	enum cache_event_kind kind;
	struct cache_tenant *tenant;
	struct kvg_key key;
	uint32_t layout;
	struct kvg_handle handle;
	uint32_t held;
	uint64_t bytes;
};
/* May not call back into the cache. */
typedef void (*cache_event_fn)(void *userdata, const struct cache_event *e);
void cache_on_event(struct cache *c, cache_event_fn fn, void *userdata);

/* ---- segments ------------------------------------------------------------------------------ */

struct cache_segment_info {
	uint32_t id, page_shift;
	uint8_t tier;
	uint64_t bytes;
	int fd; /* borrowed, read-only description */
};
int cache_segment_get(
	struct cache_tenant *t, uint32_t id, struct cache_segment_info *ret); /* -ENOENT */

/* ---- devices ------------------------------------------------------------------------------- */

/*
 * A device holds replicas: planes that the host, or the disk, holds as well. So nothing is lost with it, and what it holds can go
 * at any time, but for what is pinned: the same pins protect a block wherever it lies. Devices are numbered from 0.
 */
struct cache_device_info {
	int ordinal;
	uint8_t uuid[16];
	char name[96];
	uint64_t bytes, limit, segments, used; /* the device's, of segments, that are, in use */
	uint64_t copying;                      /* bytes on their way */
	uint64_t starts;                       /* of kvgate-mover */
	int mover;                             /* its pid; 0: there is none */
	bool ready;
	char why[256]; /* not ready: why */
};
bool cache_device_get(const struct cache *c, unsigned device, struct cache_device_info *ret);
/* Why there is no device at all, "" where none is wanted. */
const char *cache_devices_why(const struct cache *c);
/* The tenant's table of replicas there, borrowed, read-only description. -ENOENT, -ENOMEM, .. */
int cache_device_open(struct cache_tenant *t, unsigned device, int *ret_fd);
int cache_device_segment(
	struct cache_tenant *t, unsigned device, uint32_t id, struct cache_segment_info *ret);
/*
 * As cache_fetch(), of what is mapped: the best planes that hold this share of the pairs are copied to the device. Who waits is
 * told of the planes that are there, or not: -ENOSPC, -EBUSY (more is on its way than may be: ask again), -ENODEV, -EIO. None of
 * it is an error of the block.
 */
uint8_t cache_replicate(struct cache_tenant *t, struct kvg_handle h, unsigned device,
	float retention, struct cache_fetch *f);
/* Planes (bits) that the device has, and readers see. */
uint8_t cache_replicas(struct cache_tenant *t, struct kvg_handle h, unsigned device);

/* For tests and debugging, walks everything: 0, or -EBADMSG and a line in the log for each invariant that is broken. */
int cache_check(struct cache *c);

#endif
