/* SPDX-License-Identifier: Apache-2.0 */
/*
 * disk_device: one file or block device of the log store - lock, superblock, requests.
 * Thread: the loop's thread. Locks: none, but flock() on the device. Blocks: opening does. Errors: negative errno, and text for a person.
 */
#ifndef KVGATE_DAEMON_MEM_DISK_DEVICE_H
#define KVGATE_DAEMON_MEM_DISK_DEVICE_H

#include "daemon/mem/disk_private.h"

#define DISK_SEGMENT_DEFAULT (64ull << 20)

/* Opens, locks, reads the superblock. */
int device_open(const char *path, bool write, struct disk_device **ret, char *why, size_t size);
struct disk_device *device_free(struct disk_device *dev); /* its io is gone already */
/* Requests can be made, their ends come through `loop`. */
int device_start(struct disk_device *dev, const struct disk_options *o, struct loop *loop);
void device_stop(struct disk_device *dev);    /* waits for what is in flight, and reports it */
void device_abandon(struct disk_device *dev); /* and what is submitted from now on fails */

/* The iovec is the request's own unless io.iov was set. ended() is never called from within. */
void dev_submit(struct disk_device *dev, struct dev_request *q, enum io_op op, uint64_t offset,
	uint64_t bytes);
void dev_fail(struct disk_device *dev, struct dev_request *q,
	int error);                                    /* as if it had been submitted */
void device_wrote(struct disk_device *dev, int error); /* a chunk's write has ended */
void device_no_writes(struct disk_device *dev, const char *why, int error);

/* Parts of device_open(), for those who check a device. */
int device_open_file(const char *path, bool write, bool *ret_direct, char *why, size_t size);
int device_lock(int fd, char *why, size_t size);
int device_size(int fd, uint64_t *ret);
int device_super(int fd, struct fmt_super *ret, char *why, size_t size);

#endif
