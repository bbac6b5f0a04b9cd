/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_fixture: disks in a folder of their own, planes to put on them, and an owner who knows which he has.
 * Thread: the test's. Locks: none. Blocks: until what was asked for is done. Errors: asserts.
 */
#ifndef KVGATE_TESTS_DISK_FIXTURE_H
#define KVGATE_TESTS_DISK_FIXTURE_H

#include "daemon/base/loop.h"
#include "daemon/io/io.h"
#include "daemon/mem/disk.h"

#define PLANES_MAX  4096u
#define TENANTS_MAX 8u
#define FIX_DEVICES 4u
#define SEGMENT     (64u << 10)
#define NOTE_TEXT   "a layout, in the words of the cache"

/* One plane of the test's; the item that the disk knows it by. */
struct plane {
	struct fixture *f;
	uint32_t id, tenant;
	uint32_t bytes;
	bool wanted; /* keep() says so */
	bool there;  /* acknowledged, and not forgotten */
	bool lost;   /* moved() said nowhere */
	bool busy;   /* its store is under way */
	bool erased;
	bool durable; /* a sync has said so */
	unsigned found;
	struct disk_place at;
	struct disk_store store;
	void *payload;
	int error;
};

struct fixture {
	struct loop *loop;
	struct disk *d;
	char dir[64];
	char path[FIX_DEVICES][96];
	unsigned n_devices;
	struct disk_options o;
	struct disk_tenant *tenant[TENANTS_MAX];
	struct plane plane[PLANES_MAX];
	unsigned kept, dropped, moved, rooms, notes, in_flight;
	unsigned bad;
};

/* Formats n devices of so many segments. */
void fix_new(struct fixture *f, unsigned n_devices, uint32_t segments);
void fix_free(struct fixture *f);
void fix_open(struct fixture *f);  /* recovers; tenants "t0", "t1" ... are there */
void fix_close(struct fixture *f); /* as the daemon does at its end */
/* As if it had been killed; cut: and the machine's power had gone. */
void fix_kill(struct fixture *f, bool cut);

/* bytes: about as many; the same id makes the same plane. */
struct plane *plane_of(struct fixture *f, uint32_t id, uint32_t tenant, uint32_t bytes);
int plane_store(struct plane *p); /* begins; the result of disk_store() */
int plane_put(struct plane *p);   /* and waits */
int plane_get(struct plane *p);   /* loads and compares; error of the load */
void fix_wait(struct fixture *f); /* until no store is under way */
int fix_sync(struct fixture *f);
struct disk_stat fix_stat(struct fixture *f);

#endif
