/* SPDX-License-Identifier: Apache-2.0 */
/*
 * message: what the daemon and kvgate-mover say to each other, over the one SOCK_SEQPACKET pair that the mover is born with.
 * Thread: plain values. Locks: none. Blocks: never. Errors: whoever reads checks version, kind and length, and ends at others.
 *
 *	mover	READY, or FAILED with a text, and its end	-> IMPORT (one descriptor each), FORGET, COPY, in their order
 *		DONE for each COPY				<-
 *
 * Both ends are of one build: another version is refused, never translated.
 */
#ifndef KVGATE_GPU_MOVER_MESSAGE_H
#define KVGATE_GPU_MOVER_MESSAGE_H

#include <stdint.h>

#include "proto/shm.h"

#define MOVER_VERSION 1u
#define MOVER_FD      3 /* the mover's end */
#define MOVER_TEXT    256
#define MOVER_COPIES  64u /* of one message; a block has KVG_PLANES_MAX */

enum mover_kind {
	MOVER_READY = 1,
	MOVER_FAILED = 2,
	MOVER_IMPORT = 3,
	MOVER_FORGET = 4,
	MOVER_COPY = 5,
	MOVER_DONE = 6,
};

struct mover_head {
	uint32_t version, kind;
};

/* READY: text is the device's name; FAILED: why. */
struct mover_state {
	struct mover_head head;
	char text[MOVER_TEXT];
};

/* Before the first COPY that names it; the descriptor comes with it. A host segment is only read. */
struct mover_import {
	struct mover_head head;
	uint64_t bytes;
	uint32_t segment;
	uint8_t tier;  /* KVG_TIER_HOST or KVG_TIER_GPU: each has ids of its own */
	uint8_t whole; /* host: none of its pages ever goes, so they may be pinned */
	uint8_t fresh; /* GPU: to be zeroed before anything else */
	uint8_t zero;
};

struct mover_forget {
	struct mover_head head;
	uint32_t segment;
	uint8_t tier, zero[3];
};

struct mover_range {
	uint64_t from, to; /* offsets, multiples of the page */
	uint64_t bytes;    /* the same */
	uint32_t from_segment, to_segment;
	uint8_t from_tier, to_tier; /* to: KVG_TIER_GPU */
	uint8_t zero[6];
};

struct mover_copy {
	struct mover_head head;
	uint64_t job;
	uint32_t n;
	uint32_t page_shift;
	struct mover_range range[MOVER_COPIES]; /* n of them are sent */
};

/* All of it is there, for everybody who looks from now on; or error, a negative errno, and nothing is known of it. */
struct mover_done {
	struct mover_head head;
	uint64_t job;
	int32_t error;
	uint32_t zero;
	char text[MOVER_TEXT];
};

union mover_message {
	struct mover_head head;
	struct mover_state state;
	struct mover_import import;
	struct mover_forget forget;
	struct mover_copy copy;
	struct mover_done done;
};

#endif
