/* SPDX-License-Identifier: Apache-2.0 */
/* The contract of daemon/mem/disk.h in memory: what the mover is tested against, with every answer in the test's hand. */
#ifndef KVGATE_TESTS_DISK_RAM_H
#define KVGATE_TESTS_DISK_RAM_H

#include "daemon/mem/disk.h"

#define DISK_RAM_ITEMS 8192

extern struct disk_ram {
	bool hold_stores, hold_loads; /* they end when disk_ram_let_go() says so */
	int refuse_store;             /* what disk_store() answers */
	int store_error, load_error;  /* how they end */
	uint64_t stores_max;          /* not 0: from so many on, disk_store() answers -ENOSPC */
	bool last_load_first;         /* loads end in the opposite order */
	uint64_t free_segments, segments;
	uint64_t stores, loads, erased; /* so far */
	unsigned order[DISK_RAM_ITEMS]; /* planes in the order of their loads */
} disk_ram;

void disk_ram_reset(void); /* and forgets all that is stored */
void disk_ram_let_go(struct disk *d);
/* The log has come to every plane: those that are not kept are gone. Returns how many were asked about. */
unsigned disk_ram_clean(struct disk *d);
unsigned disk_ram_live(void);
/* Each stored copy of this plane is, by its header, of another layout. */
void disk_ram_forge(const struct kvg_key *key, unsigned plane);
/* One byte of each stored copy of this plane is another. */
void disk_ram_damage(const struct kvg_key *key, unsigned plane);

#endif
