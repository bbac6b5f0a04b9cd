/* SPDX-License-Identifier: Apache-2.0 */
/*
 * client_fake: the daemon's side of shared memory and socket in the test's own process, so that a test can be any
 * daemon it likes: one that answers wrongly, late, or not at all.
 * Thread: the server runs in one of its own. Locks: none; a test changes a fake only between calls.
 */
#ifndef KVGATE_TESTS_CLIENT_FAKE_H
#define KVGATE_TESTS_CLIENT_FAKE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/include/kvgate.h"
#include "proto/key.h"
#include "proto/kvgate.pb-c.h"
#include "proto/plane.h"
#include "proto/wire.h"

#define FAKE_SLOTS   64u
#define FAKE_BUCKETS 4u
#define FAKE_PINS    8u
#define FAKE_TOUCHES 8u
#define FAKE_SEGMENT 3u /* its id */
#define FAKE_SHIFT   12u

/* L 2, H 2, d 8 and 4, bf16, 16 tokens a block, three planes. */
#define FAKE_LAYERS 2u
#define FAKE_HEADS  2u
#define FAKE_K_DIM  8u
#define FAKE_V_DIM  4u
#define FAKE_TOKENS 16u
#define FAKE_PLANES 3u
#define FAKE_LAYOUT 7u

struct fake;
/* Answers one request: true = reply was filled in and goes out with fds[0..*n_fds). */
typedef bool (*fake_handler)(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds);

struct fake {
	char dir[32], socket[64];
	struct kvg_shm_index *index;
	struct kvg_shm_bucket *buckets;
	struct kvg_shm_entry *entries;
	struct kvg_shm_pins *pins;
	uint8_t *segment, *staging;
	int index_fd, index_ro, pins_fd, segment_fd, segment_ro, staging_fd, listen_fd;
	uint32_t n_slots, next_page;
	uint8_t fingerprint[32];
	struct key_hasher *hasher;

	pthread_t thread;
	fake_handler handler; /* first; when it says no, the usual answer is given */
	_Atomic int conn;     /* the accepted socket, -1 */
	bool sent_staging;
	uint64_t next_stage;
	_Atomic unsigned n_requests[32]; /* by body */
	uint64_t last_ids[8];            /* of the last abort or release */
	_Atomic unsigned n_last_ids;
};

void fake_init(struct fake *f);
/* A client of it, and its layout. */
void fake_open(struct fake *f, struct kvg_client **ret, struct kvg_layout **ret_layout);
void fake_fini(struct fake *f);

/* A sealed memfd of so many bytes, and its read-only description. */
int fake_memfd(uint64_t bytes, unsigned seals);
int fake_read_only(int fd);

/* The block `seed` with its planes in the segment; planes in `mapped` only. Returns the slot. */
uint32_t fake_put(struct fake *f, const struct kvg_key *key, uint64_t seed, unsigned mapped);
/* An entry under this key without contents. */
uint32_t fake_put_entry(struct fake *f, const struct kvg_key *key, uint32_t layout,
	unsigned n_planes, unsigned mapped);
void fake_key(uint64_t seed, struct kvg_key *ret);
uint32_t fake_token(uint64_t seed, uint32_t t);
/* Which plane pair (run, token) is in, and its rows' bytes: constant per (seed, run, token, K or V). */
uint32_t fake_plane_of(uint32_t run, uint32_t token);
uint8_t fake_byte(uint64_t seed, uint32_t run, uint32_t token, bool is_v);
uint8_t *fake_plane(struct fake *f, uint32_t slot, uint32_t plane); /* its payload */

void fake_send(struct fake *f, const Kvgate__V1__Reply *reply, const int *fds, unsigned n_fds);
bool fake_fill_usual(struct fake *f, const Kvgate__V1__Request *q, Kvgate__V1__Reply *reply,
	int *fds, unsigned *n_fds);

/* Open descriptors of this process. */
unsigned fake_count_fds(void);

#endif
