/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay: what the daemon's eviction policy makes of a trace, and what others make of it.
 * Thread: any, one per call. Locks: none. Blocks: on the trace file. Errors: negative errno, with text where it helps.
 *
 * A trace is in the Mooncake format (FAST 2025): one JSON object a line, `hash_ids` holds one number per block, and equal numbers
 * are equal prefixes up to and including that block. A block is a hit only if every earlier block of its request
 * hit; afterwards every block of the request is used, or inserted where it was missing.
 */
#ifndef KVGATE_CLIENT_CTL_REPLAY_H
#define KVGATE_CLIENT_CTL_REPLAY_H

#include <stddef.h>
#include <stdint.h>

#include "proto/shm.h"

struct trace {
	uint32_t *block; /* of all requests in a row, numbered from 0 */
	size_t n, room;  /* references */
	size_t *start;   /* of request i; start[n_requests] = n */
	size_t n_requests, start_room;
	uint32_t n_blocks; /* different ones */
};

/* -EINVAL and -ENOMEM, -ENOENT...: ret_why says what and in which line. */
int trace_read(const char *path, struct trace *ret, char *ret_why, size_t why_size);
void trace_fini(struct trace *t);

enum replay_policy {
	REPLAY_KVGATE,
	REPLAY_LRU,
	REPLAY_S3FIFO,
	REPLAY_OPTIMUM, /* knows the future: the block that is needed last goes first */
	N_REPLAY_POLICIES
};
extern const char *const replay_policy_name[N_REPLAY_POLICIES];

struct replay_setup {
	uint64_t capacity;    /* whole blocks */
	uint64_t block_bytes; /* kvgate: of a whole block, all planes */
	double floor; /* kvgate: share of its pairs below which a block is not shrunk; 1 = lossless */
};

struct replay_result {
	uint64_t references, hits;
	uint64_t held;    /* blocks at the end */
	double retention; /* kvgate: share of their pairs that blocks still had when they were hit */
};

/* -EINVAL: a setup that cannot be; -ENOMEM. */
int replay_run(const struct trace *t, enum replay_policy policy, const struct replay_setup *setup,
	struct replay_result *ret);

/* replay_kvgate.c and replay_rivals.c, for replay_run(). */
int replay_kvgate(
	const struct trace *t, const struct replay_setup *setup, struct replay_result *ret);
int replay_lru(const struct trace *t, uint64_t capacity, struct replay_result *ret);
int replay_s3fifo(const struct trace *t, uint64_t capacity, struct replay_result *ret);
int replay_optimum(const struct trace *t, uint64_t capacity, struct replay_result *ret);

#endif
