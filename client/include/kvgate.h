/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libkvgate: the KV cache of this machine, shared with other processes through kvgated.
 * Thread: a client handle and all that hangs on it belong to one thread at a time; open one per thread.
 * Locks: none, and no threads or signal handlers of its own. Blocks: where a function says so.
 * Errors: 0 or a negative errno; kvg_last_error() says what happened and what to do, kvg_last_code()
 * the daemon's code (enum kvg_code). Usable from C99 and C++.
 *
 * Words: a pair is one token's K row and V row in one layer and one KV head; a block all pairs of
 * block_tokens consecutive tokens, immutable once committed; a plane the pairs of one block whose scores
 * fall into one band, plane 0 the best; a run the pairs of one (layer, head) inside a plane, in
 * descending score, so that any threshold is a prefix of each run. Retention: the share of pairs held.
 */
#ifndef KVGATE_H
#define KVGATE_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "kvgate-types.h"

#ifdef __cplusplus
/* Designated initializers came with C++20, and warn of what they leave out. */
template <typename T> inline T kvg_options_init()
{
	T options = T();

	options.size = sizeof(T);
	return options;
}

extern "C" {
#endif

#define KVG_API __attribute__((visibility("default")))

struct kvg_client; /* one connection: the lock on everything it holds */
struct kvg_layout; /* a registered layout, owned by its client */

/* Option structs begin with their size; set it with KVG_OPTIONS_INIT(name), so that they can grow. */
#ifdef __cplusplus
#define KVG_OPTIONS_INIT(type) kvg_options_init<struct type>()
#else
/* clang-format off */
#define KVG_OPTIONS_INIT(type) {.size = sizeof(struct type)}
/* clang-format on */
#endif

/* ---- connection -------------------------------------------------------------------------- */

struct kvg_options {
	size_t size;
	const char *socket; /* NULL: $KVGATE_SOCKET, then /run/kvgated/kvgated.sock */
	const char *name;   /* shown in the daemon's log; NULL: the program's name */
	uint32_t
		pins; /* blocks held at once; 0: as many as the daemon gives a session. May get fewer */
	int control;    /* no index, no pins: for tools */
	int timeout_ms; /* of calls that block; 0: 10 s, -1: none */
	int resume_ms;  /* > 0: calls that find the daemon gone wait so long for the next one */
};

/*
 * Connects and says hello; o may be NULL. Blocks for one round trip. -ECONNREFUSED, -ENOENT: no daemon
 * there; -EPROTO: no common version; -EACCES; -EBADMSG: shared memory that is not what it should be.
 * The text of a failure is kvg_last_error(NULL).
 */
KVG_API int kvg_open(const struct kvg_options *o, struct kvg_client **ret);
/* Everything held is taken back by the daemon; pointers into planes and stages end. NULL is fine. */
KVG_API void kvg_close(struct kvg_client *c);
/*
 * After a restart of the daemon (calls fail with -ECONNRESET, -EPIPE or -ENOTCONN): connects anew and takes this session
 * up again. 0: what is pinned was pinned all the while; layouts, keys and pointers into planes are as they were. Gone are
 * stages, pins of kvg_acquire(), and the answers of commits in flight, whose functions are told so. -ESTALE: the daemon
 * has nothing of it any more: close, and open a new client; what was pinned can be read until then. -ECONNREFUSED,
 * -ENOENT: no daemon yet. kvg_options.resume_ms makes calls and lookups do this by themselves. Blocks.
 */
KVG_API int kvg_resume(struct kvg_client *c);
/* Of the last failed call; c NULL: of a call without a client (kvg_open, kvg_gate_*), per thread. */
KVG_API const char *kvg_last_error(const struct kvg_client *c);
/* enum kvg_code of the last refusal, 0 when it was not the daemon that refused. */
KVG_API int kvg_last_code(const struct kvg_client *c);
KVG_API const char *kvg_tenant(const struct kvg_client *c);
KVG_API const char *kvg_version(void);

struct kvg_session_info {
	size_t size;
	uint64_t id;
	const char *tenant;
	const char *daemon;     /* program and version; both strings live as long as the client */
	uint64_t staging_bytes; /* quota of this session */
	uint32_t pins;          /* granted */
	uint32_t protocol;
	int admin; /* may see and change other tenants */
};
KVG_API void kvg_session(const struct kvg_client *c, struct kvg_session_info *ret);

/* For an event loop: readable when kvg_dispatch() has something to do. Owned by the client. */
KVG_API int kvg_fd(const struct kvg_client *c);
/*
 * Takes in replies and events without blocking and runs callbacks, which may call anything but
 * kvg_close(). 0, or the error that ended the connection.
 */
KVG_API int kvg_dispatch(struct kvg_client *c);

/* ---- layout: what a block looks like, and under which identity --------------------------- */

struct kvg_layout_options {
	size_t size;
	const char *model;         /* id, e.g. "Qwen/Qwen3-8B" */
	const char *revision;      /* NULL or a digest of the weights */
	uint32_t layers, heads;    /* heads: KV heads per layer on this rank */
	uint32_t k_dim, v_dim;     /* of one head, in elements */
	uint32_t dtype;            /* enum kvg_dtype */
	uint32_t block_tokens;     /* 0: 256 */
	uint32_t tp_rank, tp_size; /* size 0: 1 */
	const char *rope;          /* rope settings, as the engine writes them */
	const char *eviction;      /* settings under which the KV was computed; NULL = none */
	const char *key_namespace; /* given: keys are the engine's own 32-byte hashes */
	const char *gate; /* name in the daemon's config; NULL = none or the client's own */
	/* With edges and 32 bytes of digest the client scores by itself. */
	const uint8_t *gate_digest;
	const float *edges; /* of the bands, descending; planes = n_edges + 1 */
	uint32_t n_edges;
	const uint32_t *ungated_layers; /* all of their pairs are protected */
	uint32_t n_ungated;
	uint32_t hidden_dtype; /* bf16 or f32 when the daemon is to score hidden states */
	uint64_t opaque_bytes; /* > 0: opaque blocks; layers .. dtype are 0 */
	/*
	 * [n_edges] share of all pairs at or above each edge, by calibration; ascending. A retention floor then
	 * means the best pairs of the model; NULL: it means the best of each block by itself.
	 */
	const float *retained;
};
struct kvg_layout_info {
	size_t size;
	uint32_t id, layers, heads, k_dim, v_dim, dtype, block_tokens, page_bytes;
	uint32_t n_planes, gated_layers, hidden;
	uint8_t fingerprint[32], gate_digest[32];
	float edges[KVG_PLANES_MAX - 1];
	float floor; /* retention floor when it was registered */
	uint64_t opaque_bytes;
};
/*
 * Registers a layout, or finds an equal one. Blocks for one round trip. -EINVAL with the number that does
 * not add up, or a gate that does not fit. Lives as long as the client.
 */
KVG_API int kvg_layout(
	struct kvg_client *c, const struct kvg_layout_options *o, struct kvg_layout **ret);
KVG_API void kvg_layout_describe(const struct kvg_layout *l, struct kvg_layout_info *ret);

/* ---- keys: SHA-256 over parent, layout fingerprint and token ids ------------------------- */

/*
 * Keys of the n_tokens / block_tokens full blocks of a prompt, chained from parent (NULL: a root).
 * Returns their number.
 */
KVG_API size_t kvg_key_chain(const struct kvg_layout *l, const struct kvg_key *parent,
	const uint32_t *tokens, size_t n_tokens, struct kvg_key *ret);
/* The key of one block of n_tokens tokens (a last, shorter block too). */
KVG_API void kvg_key_block(const struct kvg_layout *l, const struct kvg_key *parent,
	const uint32_t *tokens, size_t n_tokens, struct kvg_key *ret);

/* ---- reading: no system call, once the segments that are hit are mapped ------------------ */

/* A pinned block: it stays readable until kvg_unpin, whatever the daemon does. Plain value. */
struct kvg_pin {
	struct kvg_handle handle;
	uint32_t index; /* in the pin page */
	uint8_t mapped; /* plane bits readable now; fixed while pinned */
	uint8_t held;   /* plane bits held in any tier */
	uint16_t n_planes;
	uint32_t tokens;
	float retention; /* share of the block's pairs in `mapped` */
};

/*
 * 0 and a pin, or -ENOENT (a miss), -ENODATA (it is there, but less than min_retention is mapped: kvg_prefix_fetch()
 * brings up what lies in a lower tier), -EAGAIN (no pin free), -ENOTCONN (the daemon is gone: connect again), -EOPNOTSUPP
 * (a control session). Sets no error text. No system call.
 */
KVG_API int kvg_lookup_pin(
	struct kvg_layout *l, const struct kvg_key *key, float min_retention, struct kvg_pin *ret);
/*
 * Pins the longest prefix of keys that is there, or as much of it as there are pins. Returns the number
 * pinned. No system call.
 */
KVG_API size_t kvg_prefix_pin(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, struct kvg_pin *ret_pins);
/* How many leading keys are there, without pinning. No system call. */
KVG_API size_t kvg_prefix_lookup(struct kvg_layout *l, const struct kvg_key *keys, size_t n);
/*
 * The same from tokens: keys, pins, and the stored token ids compared. ret_keys (may be NULL) gets the keys
 * of all n_tokens / block_tokens blocks. -EINVAL for layouts with a key namespace. Maps segments not
 * seen yet (blocks).
 */
KVG_API ssize_t kvg_prefix_pin_tokens(struct kvg_layout *l, const uint32_t *tokens, size_t n_tokens,
	float min_retention, struct kvg_pin *ret_pins, struct kvg_key *ret_keys);
/*
 * kvg_prefix_pin() that also reads from lower tiers: what is mapped is pinned without a system call; where less than
 * min_retention of a block is, or less than `want` although more is held, the daemon brings up `want` of its pairs (0:
 * min_retention; at least the best plane; best planes first). Blocks as long as that takes, then; kvg_options.timeout_ms
 * holds for 64 blocks at a time. What cannot be brought up ends the prefix only when less than min_retention is mapped.
 * The number pinned; a negative errno only when nothing is.
 */
KVG_API ssize_t kvg_prefix_fetch(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, float want, struct kvg_pin *ret_pins);
/* The same for kvg_prefix_pin_tokens(). */
KVG_API ssize_t kvg_prefix_fetch_tokens(struct kvg_layout *l, const uint32_t *tokens,
	size_t n_tokens, float min_retention, float want, struct kvg_pin *ret_pins,
	struct kvg_key *ret_keys);
/* Pins that are not held (any more) are left alone. No system call. */
KVG_API void kvg_unpin(struct kvg_client *c, const struct kvg_pin *pins, size_t n);

/* One plane of a pinned block. Pointers into read-only shared memory, valid until unpin. */
struct kvg_plane {
	uint32_t plane, pairs;
	const uint32_t *cu; /* [layers * heads + 1]; run (l, h) = pairs cu[l*H+h] .. cu[l*H+h+1] */
	const uint16_t *index;  /* [pairs] token index within the block */
	const uint16_t *score;  /* [pairs] f16, descending within a run; +inf = protected */
	const void *k, *v;      /* [pairs][k_dim], [pairs][v_dim] */
	const uint32_t *tokens; /* plane 0: the block's token ids, if they were stored; else NULL */
	uint64_t bytes;
	uint64_t
		opaque_bytes; /* opaque blocks: so many bytes are at k; the other pointers are NULL */
};
/*
 * Planes of pin->mapped, best first, bands without pairs left out. Checks headers and bounds, in the same
 * time for every size; kvg_verify() reads the rest. Returns their number, or -EBADMSG (damaged),
 * -EINVAL (not pinned). Maps segments not seen yet (blocks for one round trip).
 */
KVG_API int kvg_planes(
	struct kvg_layout *l, const struct kvg_pin *pin, struct kvg_plane ret[KVG_PLANES_MAX]);
/* CRC32C, runs and indices of every mapped plane; reads all bytes. -EBADMSG. */
KVG_API int kvg_verify(struct kvg_layout *l, const struct kvg_pin *pin);

/*
 * Dense [layers][2][heads][tokens][dim] of one block (K rows, then V rows of each layer); pairs that are
 * not there are left untouched. ret_present (may be NULL): [layers][heads][tokens] bytes, 1 = there.
 * dst_bytes: size of dst. -ENOSPC.
 */
KVG_API int kvg_gather_dense(struct kvg_layout *l, const struct kvg_pin *pin, void *dst,
	size_t dst_bytes, uint8_t *ret_present);
/*
 * Flat varlen over a context of n blocks: for every run (l, h) its pairs of all blocks one after another.
 * k: [sum][k_dim], v: [sum][v_dim], positions (may be NULL): [sum] token positions from the start of
 * pins[0], cu: [layers * heads + 1]. With k NULL only cu is filled (for sizing). sum_max: rows that
 * fit. -ENOSPC.
 */
KVG_API int kvg_gather_flat(struct kvg_layout *l, const struct kvg_pin *pins, size_t n, void *k,
	void *v, uint32_t *positions, uint32_t *cu, size_t sum_max);

/* ---- selection over pinned planes: Fast KVzip (arXiv 2601.17668), AdaKV, kvpress --------- */

struct kvg_select_options {
	size_t size;
	const char *rule; /* "pair", "layer", "head", "adakv-layer", "kvpress", "absolute" */
	double retained;  /* share that is kept, 0 to 1 */
	/*
	 * absolute: score >= threshold. With KVzap's scores only where the last 128 tokens of the
	 * context are protected (kvg_commit): without them answers fall apart.
	 */
	float threshold;
	uint32_t floor; /* pairs kept of every (block, layer, head) at least */
};
/*
 * ret_len[(block * KVG_PLANES_MAX + plane) * layers * heads + run]: leading pairs of that run that are
 * kept. -EINVAL for a rule that does not exist.
 */
KVG_API int kvg_select(struct kvg_layout *l, const struct kvg_pin *pins, size_t n,
	const struct kvg_select_options *o, uint32_t *ret_len);

/* ---- writing ----------------------------------------------------------------------------- */

enum kvg_input {
	KVG_INPUT_NONE = 0,   /* no scores: every pair is protected, one plane */
	KVG_INPUT_SCORES = 1, /* f32 [layers][heads][tokens]; +inf = protected; no NaN or -inf */
	KVG_INPUT_HIDDEN = 2  /* [gated layers][tokens][hidden], scored by the daemon's gate */
};

/* A staged block: write kv, aux and tokens; then commit. Private to this process until then. */
struct kvg_stage {
	uint64_t id;
	void *kv; /* [layers][2][heads][tokens][dim], or the opaque bytes */
	size_t kv_bytes;
	void *aux; /* scores or hidden states, as enum kvg_input says; else NULL */
	size_t aux_bytes;
	/* [tokens] token ids. Layouts with a key namespace, and opaque ones: NULL it before commit when none
	 * were written. */
	uint32_t *tokens;
	uint32_t n_tokens; /* block_tokens, or fewer after kvg_stage_tokens() */
};
/*
 * Reserves up to n stages. Blocks for one round trip. Returns their number (fewer near the quota), -EDQUOT
 * when none. Every stage ends with commit, abort, or the connection.
 */
KVG_API ssize_t kvg_stage(
	struct kvg_layout *l, enum kvg_input input, size_t n, struct kvg_stage *ret);
/* Repoints kv, aux and tokens for a block of fewer tokens (the packed form of that many). -EINVAL. */
KVG_API int kvg_stage_tokens(
	struct kvg_layout *l, enum kvg_input input, struct kvg_stage *s, uint32_t n_tokens);
KVG_API int kvg_abort(struct kvg_client *c, const struct kvg_stage *stages, size_t n);

struct kvg_commit {
	const struct kvg_stage *stage;
	struct kvg_key key;
	const struct kvg_key *parent; /* NULL: a root */
	/*
	 * So many first and so many last tokens of the block are protected in every layer and head,
	 * whatever their scores or hidden states say: system prompt, recent window. Together n_tokens
	 * at most, or the item is refused.
	 */
	uint32_t protect_first, protect_last;
};
struct kvg_commit_result {
	int code; /* enum kvg_code: OK and EXISTS mean it is there */
	struct kvg_handle handle;
	char error[160]; /* "" with OK and EXISTS */
};
/*
 * Blocks until every item is published or refused; items in order, parents before children. 0: look at
 * the results. Each stage is used up whatever its result. On a negative errno items may or may not be
 * there; look them up.
 */
KVG_API int kvg_commit(struct kvg_client *c, const struct kvg_commit *items, size_t n,
	struct kvg_commit_result *ret);
/* error: 0, or the errno that kept the results from coming; results live as long as the call. */
typedef void (*kvg_commit_fn)(void *userdata, int64_t ticket, int error,
	const struct kvg_commit_result *results, size_t n);
/*
 * The same for up to 256 items without waiting: fn runs once, in kvg_dispatch(). Returns a ticket > 0
 * or a negative errno. The stages must not be written to any more.
 */
KVG_API int64_t kvg_commit_start(struct kvg_client *c, const struct kvg_commit *items, size_t n,
	kvg_commit_fn fn, void *userdata);

/* ---- through the socket: acquire for other tiers, hints, events -------------------------- */

struct kvg_acquired {
	int code; /* enum kvg_code: OK, NOT_FOUND, BELOW_RETENTION, NO_SPACE, CORRUPT, QUOTA ... */
	struct kvg_handle handle;
	float retention;       /* share of the pairs that is held, in all tiers together */
	uint32_t held, mapped; /* plane bits */
};
/*
 * Pins by the daemon's count until kvg_release, and reads from lower tiers: when it returns, min_retention of each block
 * that was acquired is mapped, and its best plane in any case. Planes are read through a pin, as those of every block are:
 * kvg_lookup_pin(), kvg_planes(), kvg_unpin(), kvg_release(); the last two in either order. prefix: stop at the first
 * miss. ret: [n]. Returns the number acquired. Blocks for one round trip per 256 keys, or until what has to come up is
 * there. -EBUSY: 32 requests of this client have planes on their way.
 */
KVG_API ssize_t kvg_acquire(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, int prefix, struct kvg_acquired *ret);
/*
 * The same without waiting: pins what is held, and planes come up meanwhile, best first, until `want` of each block is
 * mapped (0: min_retention; at least the best plane). ret_coming ([n], may be NULL): plane bits that are on their way.
 * Blocks for one round trip per 256 keys.
 */
KVG_API ssize_t kvg_acquire_start(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, float want, int prefix, struct kvg_acquired *ret, uint8_t *ret_coming);
/* Readable when planes of kvg_acquire_start() came up, or did not; -ENOENT before its first call. Owned by the client. */
KVG_API int kvg_arrival_fd(const struct kvg_client *c);
/*
 * Waits until something arrived since the last time, and clears kvg_arrival_fd(); look afterwards. 1, or 0 when time is up
 * (0: does not wait, -1: no limit). -ENOENT; -ENOTCONN: the daemon is gone, and what was acquired with it.
 */
KVG_API int kvg_arrival_wait(struct kvg_client *c, int timeout_ms);
/*
 * What an acquired block holds now: bits of `mapped` come with the planes, bits of `held` go when a plane cannot be read.
 * A plane that finds no room changes neither: kvg_acquire() of that block says so, and does not wait where nothing comes.
 * 0, -ESTALE: it is not there any more; -ENOTCONN, -EOPNOTSUPP (a control session). Sets no error text. No system call.
 */
KVG_API int kvg_acquired_look(
	const struct kvg_client *c, struct kvg_handle handle, struct kvg_acquired *ret);
KVG_API int kvg_release(struct kvg_client *c, const struct kvg_handle *handles, size_t n);
/*
 * A hint that these will be read: counts as a use, and brings up `retention` of each (0: the best plane) without waiting
 * for it. Returns how many are there. Blocks for one round trip per 256 keys.
 */
KVG_API ssize_t kvg_prefetch(
	struct kvg_layout *l, const struct kvg_key *keys, size_t n, float retention);

/* ---- planes on a GPU ----------------------------------------------------------------------- */

/*
 * The daemon keeps replicas of planes on the GPUs it was told to use. What is pinned is pinned there, too; what is not there is
 * still in memory, and kvg_planes() reads it. Needs libcuda, which is opened at run time.
 */
struct kvg_device; /* a GPU as one client uses it, owned by that client */

struct kvg_device_options {
	size_t size;
	void *context; /* CUcontext; NULL: the one that is current on this thread. It outlives the device */
	const char *library; /* path of libcuda; NULL: libcuda.so.1 */
};
/*
 * The device of that context; o may be NULL. Blocks for a round trip, and at first for what libcuda takes to start. -ENODEV: no
 * context; -ENOENT: no libcuda, or the daemon does not use this GPU; kvg_last_error() says why.
 */
KVG_API int kvg_device_open(
	struct kvg_client *c, const struct kvg_device_options *o, struct kvg_device **ret);
/* Pointers into its planes end: nothing that was launched with them runs any more. kvg_close() does it for all. NULL is fine. */
KVG_API void kvg_device_close(struct kvg_device *d);

/*
 * kvg_acquire() that has `want` of each block copied to the device, best planes first, and returns when that is there, or does
 * not come. What is on the device is what kvg_device_planes() finds; less than was wanted is no error. kvg_release() as ever.
 */
KVG_API ssize_t kvg_device_acquire(struct kvg_device *d, struct kvg_layout *l,
	const struct kvg_key *keys, size_t n, float min_retention, float want, int prefix,
	struct kvg_acquired *ret);
/* kvg_prefetch() to the device: begins, and does not wait. Returns how many blocks are there. Blocks for one round trip per 256 keys. */
KVG_API ssize_t kvg_device_prefetch(struct kvg_device *d, struct kvg_layout *l,
	const struct kvg_key *keys, size_t n, float want);

/* As struct kvg_plane; addresses (CUdeviceptr) in read-only memory of the device, valid until unpin. 0: it has no such part. */
struct kvg_device_plane {
	uint32_t plane, pairs;
	uint64_t payload, bytes; /* all of it, the header first */
	uint64_t cu;             /* u32 [layers * heads + 1] */
	uint64_t index, score;   /* u16 [pairs] */
	uint64_t k, v;           /* [pairs][k_dim], [pairs][v_dim]; opaque: the bytes are at k */
};
/*
 * Planes of a pinned block that the device has, best first. Returns their number, 0: none is there now. No system call, but for one
 * round trip and a mapping when a plane lies in a segment not seen before (blocks). -EINVAL: not pinned; -EBADMSG: damaged;
 * -ENOTCONN: the daemon was restarted, see kvg_resume(); -ENODEV: it does not use this device any more.
 */
KVG_API int kvg_device_planes(struct kvg_device *d, struct kvg_layout *l, const struct kvg_pin *pin,
	struct kvg_device_plane ret[KVG_PLANES_MAX]);

/* A GPU of the daemon's. */
struct kvg_device_entry {
	size_t size;
	uint32_t device, ordinal;
	uint8_t uuid[16];
	char name[96], why[256]; /* why: it is not ready */
	uint64_t bytes, limit, segments, used,
		copying; /* of the device, for segments; of segments, of planes, on their way */
	uint64_t starts; /* of kvgate-mover */
	uint32_t mover;  /* its process; 0: there is none */
	int ready;
};
typedef void (*kvg_device_fn)(void *userdata, const struct kvg_device_entry *d);
/* Every GPU that the daemon uses. ret_why (why_size bytes, may be NULL): why there is none, or "". Blocks for one round trip. */
KVG_API int kvg_devices(
	struct kvg_client *c, kvg_device_fn fn, void *userdata, char *ret_why, size_t why_size);

struct kvg_event {
	int kind; /* 0 lost (count says how many), 1 committed, 2 shrunk, 3 evicted */
	const char *tenant;
	struct kvg_key key;
	uint32_t layout, held; /* held: plane bits after the event */
	struct kvg_handle handle;
	uint64_t bytes, count; /* bytes: committed or freed */
};
typedef void (*kvg_event_fn)(void *userdata, const struct kvg_event *e);
/* events: bits of 1 << kind, 0 = stop; fn runs in kvg_dispatch(). Blocks for one round trip. */
KVG_API int kvg_subscribe(struct kvg_client *c, uint32_t events, kvg_event_fn fn, void *userdata);

/* ---- gates: score where the hidden states are (arXiv 2601.17668, 2601.07891) ------------- */

struct kvg_gate;
/* Fast KVzip `.pt`, our safetensors, or KVzap. Blocks on the file. Text: kvg_last_error(NULL). */
KVG_API int kvg_gate_open(const char *path, struct kvg_gate **ret);
KVG_API void kvg_gate_close(struct kvg_gate *g);
/* Any output may be NULL. groups: query heads per KV head; hidden: D; n_edges 0: not calibrated. */
KVG_API void kvg_gate_describe(const struct kvg_gate *g, uint32_t *layers, uint32_t *heads,
	uint32_t *groups, uint32_t *hidden, uint8_t digest[32], uint32_t *n_edges,
	float edges[KVG_PLANES_MAX - 1]);
/* Share of all pairs at or above each edge, ascending: for kvg_layout_options. Returns n_edges. */
KVG_API uint32_t kvg_gate_retained(const struct kvg_gate *g, float ret[KVG_PLANES_MAX - 1]);
/*
 * x: [tokens][hidden] bf16 or f32, the input of gated layer `layer`'s attention after its norm; ret:
 * [heads][tokens] f32. exact: the reference's rounding. One thread per gate. -EINVAL, -ENOMEM.
 */
KVG_API int kvg_gate_score(struct kvg_gate *g, uint32_t layer, const void *x, uint32_t dtype,
	uint32_t tokens, int exact, float *ret);

/* ---- control: kvgatectl is built on these alone; kvg_options.control is enough ----------- */

struct kvg_policy {
	size_t size;
	const char *tenant, *model; /* NULL: own tenant, its default */
	float floor;                /* 0: leave */
	uint64_t host_bytes;        /* 0: leave */
	float high_watermark, low_watermark;
	uint64_t host_used; /* out */
	/* Called for every model with a floor of its own; may be NULL. */
	void (*model_floor)(void *userdata, const char *model, float floor);
	void *userdata;
};
/* Sets the fields that are not 0, then fills them all in. Blocks. -EACCES, -EINVAL, -ENOENT. */
KVG_API int kvg_policy(struct kvg_client *c, struct kvg_policy *inout);

struct kvg_purge_options {
	size_t size;
	const char *tenant;         /* NULL: own */
	uint32_t layout;            /* 0: all */
	const struct kvg_key *keys; /* NULL: all of the layout */
	size_t n_keys;
	uint32_t keep_planes; /* 0: whole blocks */
};
struct kvg_purge_result {
	uint64_t blocks, planes, bytes, pinned;
};
/* Takes away now, whatever the floor says; what is pinned stays and is counted. Blocks. */
KVG_API int kvg_purge(
	struct kvg_client *c, const struct kvg_purge_options *o, struct kvg_purge_result *ret);

/* tier "", plane -1: not split by it. Strings are valid inside the callback. */
typedef void (*kvg_counter_fn)(void *userdata, const char *name, const char *tenant,
	const char *model, const char *tier, int plane, double value);
/* Every counter of the tenant that is not 0 (all tenants with `all`, for admins). Blocks. */
KVG_API int kvg_stat(struct kvg_client *c, int all, kvg_counter_fn fn, void *userdata);

/* A registered layout as the daemon knows it. */
struct kvg_layout_entry {
	size_t size;
	uint32_t id, layers, heads, k_dim, v_dim, dtype, block_tokens, page_bytes, n_edges;
	float edges[KVG_PLANES_MAX - 1];
	float floor;
	uint64_t opaque_bytes;
	uint8_t fingerprint[32];
	char model[256], gate[64]; /* cut when longer */
};
typedef void (*kvg_layout_fn)(void *userdata, const struct kvg_layout_entry *l);
/* Every layout of the tenant (NULL: own). Blocks. */
KVG_API int kvg_layouts(struct kvg_client *c, const char *tenant, kvg_layout_fn fn, void *userdata);

struct kvg_plane_entry {
	uint32_t plane, pairs;
	uint64_t bytes;
	uint32_t tier; /* 0: dropped, 1 host, 2 GPU, 3 disk */
	uint32_t segment, page;
	int verified; /* kvg_inspect with verify: 1 = checksum compared now and right */
	double value;
};
struct kvg_block_entry {
	size_t size;
	struct kvg_key key, parent;
	int has_parent;
	uint32_t layout, tokens, depth, pins, children;
	struct kvg_handle handle;
	float retention;
	uint64_t bytes;    /* held, payload */
	double value;      /* of its least plane: the lowest goes first */
	uint32_t n_planes; /* kvg_inspect; 0 in lists */
	struct kvg_plane_entry planes[KVG_PLANES_MAX];
};
struct kvg_list_options {
	size_t size;
	const char *tenant; /* NULL: own */
	uint32_t layout;    /* 0: all */
};
/* Not 0: stop. */
typedef int (*kvg_block_fn)(void *userdata, const struct kvg_block_entry *b);
/* Every block; one that comes or goes meanwhile may be seen or not. Blocks, a round trip per page. */
KVG_API int kvg_list(
	struct kvg_client *c, const struct kvg_list_options *o, kvg_block_fn fn, void *userdata);

struct kvg_inspect_options {
	size_t size;
	const char *tenant; /* NULL: own */
	struct kvg_key key;
	uint32_t layout; /* 0: any */
	int verify;      /* read every byte and compare checksums */
};
/* One block with its planes, and its layout (may be NULL). Set the sizes of both. Blocks. -ENOENT. */
KVG_API int kvg_inspect(struct kvg_client *c, const struct kvg_inspect_options *o,
	struct kvg_block_entry *ret, struct kvg_layout_entry *ret_layout);

/* ---- small tools ------------------------------------------------------------------------- */

KVG_API const char *kvg_dtype_name(uint32_t dtype);     /* "bf16"; NULL when unknown */
KVG_API uint32_t kvg_dtype_from_name(const char *name); /* 0 when unknown */
KVG_API void kvg_key_to_hex(const struct kvg_key *k, char ret[65]);
KVG_API int kvg_key_from_hex(const char *hex, struct kvg_key *ret); /* -EINVAL */

#ifdef __cplusplus
}
#endif

#endif
