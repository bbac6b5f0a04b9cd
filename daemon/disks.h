/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disks: which files and devices the tier below memory is on, as the configuration names them.
 * Thread: the one that builds the daemon. Locks: none. Blocks: on the file system, where a file is made.
 * Errors: negative errno with a text that says what to do.
 */
#ifndef KVGATE_DAEMON_DISKS_H
#define KVGATE_DAEMON_DISKS_H

#include <stddef.h>

#include "daemon/mem/disk.h"

struct options; /* daemon/base/options.h */

struct disks {
	char *path[DISK_DEVICES_MAX];
	unsigned n;
};

/* Relative paths are under `state` ($STATE_DIRECTORY; NULL: there is none); files that are not there are made with disk_size. */
int disks_init(struct disks *d, const struct options *o, const char *state, char *ret_why,
	size_t why_size);
void disks_fini(struct disks *d);

#endif
