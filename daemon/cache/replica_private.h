/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replica_private: what devices.c, replica.c, replica_room.c and replica_table.c share.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_CACHE_REPLICA_PRIVATE_H
#define KVGATE_DAEMON_CACHE_REPLICA_PRIVATE_H

#include "daemon/cache/tenant.h"
#include "daemon/mem/copier.h"

struct device {
	struct tier_gpu gpu;
	struct cache *cache;
	unsigned number;
	bool haunted; /* somebody of the last daemon's may still write to what it had there */
	struct pool *pool;
	struct copier *copier;
	uint64_t segment_bytes;
	uint64_t used, copying; /* bytes of pages: in replicas, those on their way among them */
};

/* The memfd that clients map: proto/shm.h, struct kvg_shm_replicas. */
struct replica_table {
	int fd, read_fd;
	struct kvg_shm_replicas *head;
	struct kvg_shm_replica *entries;
	uint64_t n_slots, bytes;
};
/* One that the last daemon made; the fd is taken on success. -EBADMSG. */
int replica_table_adopt(
	struct replica_table *t, const struct index *x, const uint8_t device[16], int fd);
int replica_table_new(struct replica_table *t, const struct index *x, const uint8_t device[16]);
void replica_table_fini(struct replica_table *t);
/* Planes that readers see from now on, of the block that has this handle. */
void replica_table_set(struct replica_table *t, struct kvg_handle h, uint8_t planes);
/* Of a plane that readers do not see. */
void replica_table_place(struct replica_table *t, struct kvg_handle h, uint32_t plane,
	const struct kvg_shm_plane_ref *r);

/* A block's planes on one device. */
struct replica {
	struct copier_job job;
	struct replica_set *set;
	struct block *block;
	struct replica *next, *prev; /* of the set's, the next to be looked at first */
	struct cache_fetch *waiters;
	uint8_t there; /* bits: readers see them */
	uint8_t hidden; /* bits of `there`: not shown, and perhaps read by who had pinned them before the daemon began */
	uint8_t coming; /* bits: on their way; the block is in use meanwhile */
	struct extent extent[KVG_PLANES_MAX];
};

/* A tenant's on one device. */
struct replica_set {
	struct replica_set *next; /* of the tenant's */
	struct cache_tenant *tenant;
	struct device *device;
	struct pool_tenant *pool;
	struct replica_table table;
	struct replica **by_slot; /* [slots], sparse */
	struct replica *first, *last;
	uint64_t used; /* as the device's */
};

/* fd -1: with a new table. -EBADMSG: of an fd that is none; it is the caller's still. */
int replica_set_new(struct cache_tenant *t, struct device *d, int fd, struct replica_set **ret);
/* With all it has, as if the daemon ended. */
void replica_set_free(struct replica_set *s);
/* Planes of the block that lie there already. */
int replica_adopt(struct replica_set *s, struct block *b, uint8_t there, uint8_t hidden,
	const struct extent extent[KVG_PLANES_MAX]);
/* replica_keep.c: segments go into the keeper's hands as they come; and the mover's process. */
extern const struct pool_watch replica_watch;
/* fresh: the keeper does not have it yet. */
void replica_keep_table(struct replica_set *s, bool fresh);
void replica_forget_table(struct replica_set *s);
void replica_keep_mover(void *device, int pidfd);

struct replica_set *replica_set_find(const struct cache_tenant *t, unsigned device);
static inline struct replica *replica_of(const struct replica_set *s, const struct block *b)
{
	return s->by_slot[b->handle.slot];
}
/* Their pages go; who sees them has been asked. The replica goes when nothing is left of it. */
void replica_release(struct replica *r, uint8_t planes);
void replica_to_back(struct replica *r);

/* Room for `bytes` of a plane that is worth so much a byte, by what is worth less. False: there is none to be had. */
bool replica_make_room(struct replica_set *s, uint64_t bytes, double worth);
/* Of this plane, a byte; as the order of eviction on the host has it. */
double replica_worth(const struct block *b, uint32_t plane);

#endif
