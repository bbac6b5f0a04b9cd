/* SPDX-License-Identifier: Apache-2.0 */
/*
 * parked: the names under which fds are kept over a restart - what each is, and whose.
 * Thread: pure values, any. Locks: none. Blocks: never. Errors: false.
 *
 *	kvg-c-TENANT					catalog; tenants are numbered
 *	kvg-i-TENANT					index
 *	kvg-s-TENANT-ID-SHIFT				segment, its pages of 1 << SHIFT bytes
 *	kvg-t-TENANT-DEVICE-DEVICE			table of replicas on a device, which is 16 bytes of UUID in two numbers
 *	kvg-g-TENANT-ID-SHIFT-BYTES-DEVICE-DEVICE	segment of so many bytes there
 *	kvg-m-0-DEVICE-DEVICE				the process that may write to it
 *	kvg-p-TENANT-SESSION-PINS-TOUCHES-UID-PID	pin page, and the process that writes it
 *	kvg-q-TENANT-SESSION				that process's pidfd
 */
#ifndef KVGATE_DAEMON_CACHE_PARKED_H
#define KVGATE_DAEMON_CACHE_PARKED_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/base/park.h"

#define PARKED_NUMBERS 6

enum parked_kind {
	PARKED_CATALOG = 'c',
	PARKED_INDEX = 'i',
	PARKED_SEGMENT = 's',
	PARKED_REPLICAS = 't',
	PARKED_GPU_SEGMENT = 'g',
	PARKED_MOVER = 'm',
	PARKED_PINS = 'p',
	PARKED_PROCESS = 'q',
};

enum { /* places of the numbers */
	PARKED_TENANT = 0,
	PARKED_ID = 1, /* of the segment, of the session */
	PARKED_SHIFT = 2,
	PARKED_BYTES = 3,
	PARKED_GPU_DEVICE = 4, /* of a segment there */
	PARKED_DEVICE = 1,     /* of all else */
	PARKED_N_PINS = 2,
	PARKED_N_TOUCH,
	PARKED_UID,
	PARKED_PID,
};

struct parked {
	enum parked_kind kind;
	uint64_t n[PARKED_NUMBERS];
};

void parked_name(const struct parked *p, char ret[PARK_NAME_MAX + 1]);
/* False: not a name that parked_name() makes. */
bool parked_parse(const char *name, struct parked *ret);

#endif
