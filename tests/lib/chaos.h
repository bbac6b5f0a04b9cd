/* SPDX-License-Identifier: Apache-2.0 */
/*
 * chaos: a daemon under its keeper, with a disk below a memory that is much too small, clients that do all that clients do, and
 * kill -9 for any of them at any moment. What is served is compared byte by byte; what was acknowledged has to be there; and
 * what is left when all have gone is nothing.
 * Thread: the caller's; clients are processes. Locks: none, shared memory with one writer for each fact. Blocks: until all
 * rounds are over. Errors: counted in the result; asserts where the test itself cannot go on.
 */
#ifndef KVGATE_TESTS_CHAOS_H
#define KVGATE_TESTS_CHAOS_H

#include <stdatomic.h>

#include "tests/lib/harness.h"

#define CHAOS_CLIENTS 6
#define CHAOS_OWN     8 /* chains of a client: it alone puts and purges them */
#define CHAOS_CHAINS  (CHAOS_CLIENTS * CHAOS_OWN)
#define CHAOS_BLOCKS  8

/* What clients do, and how often it came to an end. */
enum chaos_deed {
	CHAOS_PUT,
	CHAOS_FETCH,
	CHAOS_LOOKUP,
	CHAOS_HOLD,
	CHAOS_START,
	CHAOS_PREFETCH,
	CHAOS_PURGE,
	CHAOS_DEEDS
};

/* Written by the chain's owner, read by all. */
struct chaos_chain {
	_Atomic unsigned epoch; /* goes up before a purge */
	_Atomic unsigned acked; /* leading blocks that are there */
	_Atomic bool purging;   /* a purge was begun: who finds it so begins it again */
};

struct chaos_shared {
	struct chaos_chain chain[CHAOS_CHAINS];
	_Atomic uint64_t deeds[CHAOS_DEEDS], blocks, bytes, lost, refused;
};

struct chaos {
	struct daemon_process daemon; /* its keeper */
	struct chaos_shared *shared;
	pid_t client[CHAOS_CLIENTS];
	unsigned random;
};

struct chaos_result {
	unsigned daemon_kills, early_kills; /* early: before it served */
	unsigned client_kills;
	uint64_t deeds[CHAOS_DEEDS], blocks, bytes, refused;
	uint64_t wrong; /* clients that saw a wrong byte, or anything else that cannot be */
	uint64_t lost;
	bool useless; /* something was parked that no daemon knew what to do with */
	double pages, pins, sessions,
		staging;     /* bytes, blocks that a purge of everything left, ... */
	int fds, keeper_fds; /* more than at the beginning */
};
struct chaos_options {
	unsigned rounds, seed;
	unsigned
		disk_mib; /* as much as may be written, or the log has to give up what nobody reads */
};
void chaos_run(const struct chaos_options *o, struct chaos_result *ret);

/* chaos_client.c: never returns, but for what must not be. */
struct chaos_role {
	const struct daemon_process *daemon;
	struct chaos_shared *shared;
	unsigned number, random;
};
int chaos_client(void *role);

#endif
