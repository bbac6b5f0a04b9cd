/* SPDX-License-Identifier: Apache-2.0 */
/*
 * block: one committed block - its planes' extents, its place in the tree, its entry in the index.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_CACHE_BLOCK_H
#define KVGATE_DAEMON_CACHE_BLOCK_H

#include "daemon/cache/cache.h"
#include "daemon/cache/policy.h"
#include "daemon/mem/disk.h"
#include "daemon/mem/pool.h"

struct block;
struct lift;
struct pack_job;

struct block_list {
	struct block *first;
};

/* In memory, below, or in both: then nothing has to be written when it leaves memory. */
struct block_plane {
	struct extent extent;    /* pages 0: not in memory */
	struct disk_place place; /* nowhere: not below */
	uint64_t bytes;          /* 0: the plane has no pairs and never was anywhere */
	uint32_t pairs;
};

/*
 * Planes without pairs take no memory and no part in the order: node.n_planes counts the others, and node plane i
 * is the i-th bit of `planes`. held and mapped are the best ones of `planes`, so many and no others; a block is in the policy as long as any is
 * mapped, and node.held counts those.
 */
struct block {
	struct policy_node node;
	struct kvg_handle handle;
	struct kvg_key key;
	struct cache_tenant *tenant;
	struct cache_layout *layout;
	struct block *parent;
	struct block_list children;
	struct block *next, **link; /* in the parent's children, or the tenant's roots */
	uint32_t tokens, depth;
	uint32_t n_children; /* that are not about to go */
	uint32_t pins;       /* through the socket */
	uint32_t
		uses; /* commits in flight that need this block as parent, verifications, moves between tiers */
	uint32_t seen_pins; /* by the last survey, see tenant_survey() */
	uint64_t seen_stamp;
	uint32_t batch;    /* 1 + place among the victims of a running batch */
	uint32_t n_planes; /* as committed */
	uint8_t planes;    /* bits: those that held pairs when committed */
	uint8_t held;      /* bits: still there, in whatever tier */
	uint8_t mapped;    /* bits: of them, in memory */
	uint8_t hidden;    /* bits: damaged, or behind what is; readers do not see them */
	uint8_t sinking;   /* bits: on their way down */
	uint8_t leaving;   /* bits: have arrived there, and are to leave memory */
	uint8_t used;      /* bits: read since they were written below, or kept there */
	uint16_t replicas; /* bits: devices that have planes of it, or will */
	bool touched;      /* since planes of it were last sent down */
	bool lost;         /* in the mover's list of blocks that lost planes */
	struct lift *lift; /* on its way up; NULL */
	struct block *below_next,
		**below_link; /* in the tenant's list of blocks that are not in memory at all */
	struct block *lost_next;
	uint64_t published; /* the how-manieth of its tenant */
	uint64_t pairs;
	struct block_plane plane[]; /* [n_planes] */
};

/* Where they come from; at the end there are none. */
void blocks_init(struct cache *c);
void blocks_fini(struct cache *c);

static inline struct block *block_of(struct policy_node *n)
{
	return (struct block *)((char *)n - offsetof(struct block, node));
}

/*
 * Publishes what was packed; takes the extents over on success. parent NULL: a root. A slot of the index was set aside
 * before. -ENOMEM, -ENOSPC: too many keys begin like this one.
 */
int block_publish(struct cache_tenant *t, struct cache_layout *l, const struct pack_job *packed,
	struct block *parent, struct block **ret);
/*
 * As it stands in the index already, under this handle: the planes in `there` lie in these extents, those of them that are not
 * `shown` are hidden; those in `below` are said to lie below, and have no place yet. -ENOMEM.
 */
struct block_found {
	struct kvg_handle handle;
	const struct kvg_shm_entry *entry;
	uint8_t there, shown, below;
	struct extent extent[KVG_PLANES_MAX];
	float mass[KVG_PLANES_MAX];
};
int block_adopt(struct cache_tenant *t, struct cache_layout *l, const struct block_found *f,
	struct block *parent, struct block **ret);
/* Of a block that the tier below knows of, not in the index or the tree yet; planes have no place. */
struct block *block_of_record(
	struct cache_tenant *t, struct cache_layout *l, const struct disk_record *r);
/* It, again; or: */
void block_unmake(struct block *b);
/* `held` lies below, nothing of it is mapped. -ENOSPC: no slot for it. */
int block_enter_below(struct block *b, struct block *parent);
/* Hidden from readers, out of the policy, unpinned and childless: gives everything back. erase: no restart finds it again. */
void block_free(struct block *b, bool erase);
/* The daemon goes down and leaves index and pages to the next one: the struct alone goes, children first. */
void block_leave(struct block *b);
/* The same for planes that readers do not see any more. */
void block_drop_planes(struct block *b, uint8_t planes, bool erase);
/* These planes are below, and readers do not see them in memory any more: their pages go. */
void block_unmap(struct block *b, uint8_t planes);
/* The plane has come up to where plane.extent says, and all that are better are mapped. -ENOMEM. */
int block_map(struct block *b, uint32_t plane);
/* It lies there as well now; nowhere: not any more. The disk is not told. */
void block_place(struct block *b, uint32_t plane, struct disk_place at);
/* These are not needed below any more. erase: no restart finds them again. */
void block_forget(struct block *b, uint8_t planes, bool erase);
/* Below were found more planes of it, so that these are held; what lies below and is not among them is forgotten. */
void block_regain(struct block *b, uint8_t held);
/* Readers see these planes, but for what is hidden. */
void block_show(struct block *b, uint8_t held, uint8_t mapped);
/* For good: nobody who has not pinned them gets to see these planes. */
void block_hide(struct block *b, uint8_t planes);
static inline uint8_t block_shown(const struct block *b)
{
	return b->held & (uint8_t)~b->hidden;
}
static inline uint8_t block_readable(const struct block *b)
{
	return b->mapped & (uint8_t)~b->hidden;
}
/* The best planes that together hold this share of the pairs, one at least; all, if they hold less. */
uint8_t block_share(const struct block *b, float retention);
/* Planes (bits) that the tier below has. */
uint8_t block_below(const struct block *b);
/* It was read. */
void block_touch(struct block *b);

/* NULL: not there, or hidden. */
struct block *block_find(struct cache_tenant *t, uint32_t layout, const struct kvg_key *key);
struct block *block_get(struct cache_tenant *t, struct kvg_handle h); /* NULL when it is gone */

/* Bits of the best n planes that have pairs, and how many of those bits there are. */
uint8_t block_best(const struct block *b, uint32_t n);
static inline uint32_t plane_count(uint8_t planes)
{
	return (uint32_t)__builtin_popcount(planes);
}
float block_retention(const struct block *b);
uint64_t block_payload(const struct block *b, uint8_t planes);
uint64_t block_pages(const struct block *b, uint8_t planes); /* bytes, of memory */

/* Node planes that must stay: the fewest best ones that hold >= floor of the pairs. */
uint32_t block_droppable_from(const struct block *b, float floor);

/* All blocks, children before their parents: start with block_first(), NULL at the end. */
struct block *block_first(struct block_list *roots);
struct block *block_next(const struct block *b);

/* The stored token ids against these. ids NULL, or none stored: nothing is known, so nothing differs. */
bool block_tokens_differ(const struct block *b, const uint32_t *ids, uint32_t n);

#endif
