/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tenant: what the cache keeps for each tenant, and what all tenants share; private to daemon/cache.
 * Thread: the control thread. Locks: none. Blocks: never. Errors: negative errno.
 */
#ifndef KVGATE_DAEMON_CACHE_TENANT_H
#define KVGATE_DAEMON_CACHE_TENANT_H

#include "daemon/base/counters.h"
#include "daemon/base/loop.h"
#include "daemon/cache/block.h"
#include "daemon/cache/cache.h"
#include "daemon/cache/commit.h"
#include "daemon/cache/index.h"
#include "daemon/cache/layout.h"
#include "daemon/cache/mover.h"
#include "daemon/cache/pins.h"
#include "daemon/cache/policy.h"
#include "daemon/cache/purge.h"
#include "daemon/cache/replica.h"
#include "daemon/cache/verify.h"
#include "daemon/mem/pool.h"
#include "daemon/mem/slab.h"

#define TENANT_MODELS_MAX 256 /* floors of their own; an administrator's, so few */

struct model_floor {
	char *model;
	float floor;
	float configured; /* what the configuration said last; 0: nothing */
	struct model_floor *next;
};

struct cache_tenant {
	struct cache *cache;
	char *name;
	struct cache_tenant *next;
	struct counter_scope *counters; /* model "" */

	struct index *index;
	struct catalog *catalog; /* NULL: nobody keeps it */
	uint32_t number;         /* of what is kept */
	struct pool_tenant *pool;
	struct policy *policy;
	struct pins pins;

	struct block **by_slot;  /* [slots], sparse */
	struct block_list roots; /* blocks without parent */
	uint64_t n_blocks;
	uint64_t publications; /* ever */
	struct block *below,
		**below_end; /* blocks of which nothing is in memory; who left first at the front */

	struct cache_layout *layouts[LAYOUTS_MAX]; /* (id - 1) % LAYOUTS_MAX */
	uint32_t n_layouts;

	struct cache_limits configured; /* what the configuration said last, these and the next */
	float configured_high, configured_low;
	uint64_t quota;
	float floor, high, low;
	struct model_floor *models;
	uint64_t refloor; /* slots below still have droppable_from of an older floor */

	uint64_t used;           /* page bytes of blocks */
	uint64_t reserved;       /* page bytes promised to commits in flight */
	uint64_t reserved_slots; /* one each */

	struct replica_set *replicas; /* on each device that it has opened */
	struct disk_tenant *disk;     /* NULL: there is no tier below */
	uint64_t sinking;             /* page bytes on their way down, which are still used here */
	uint64_t lifting;             /* page bytes on their way up, which are not used yet */
	struct lifts lifts;           /* blocks of which planes are to come up */
	double below_worth; /* what blocks were worth that the tier below gave up lately */
	struct job_list
		starved;  /* commits that wait for room and for the workers, in their order */
	uint64_t served;  /* bytes that were packed, or a later start: who has least is next */
	uint64_t not_fed; /* the last commits.feeding that found no room */
	struct purges purges;

	bool gauges_stale;
	bool evicting;        /* above the high watermark, on the way to the low one */
	uint64_t asked;       /* the question that passed_over belongs to, see evict_ask_again() */
	uint64_t passed_over; /* victims found pinned in a row, without one that went */
	uint64_t evict_turn;  /* the last turn of evict_anyone() that asked here */
	uint64_t survey;      /* stamp of the last look at all pins */
	uint64_t survey_at_ns;
};

struct cache {
	struct cache_options o;
	struct loop *loop;
	struct counters *counters;
	struct pool *pool;
	struct slab blocks[KVG_PLANES_MAX]; /* by how many planes they have, less one */
	struct cache_gate *gates;
	struct cache_tenant *tenants;
	uint32_t last_number; /* that a tenant has, or had */
	struct key_hasher *hasher;
	struct commits commits;
	struct verifications verify;
	struct disk *disk; /* the tier below; NULL: none */
	struct mover mover;
	struct devices devices;
	struct cache_tenant *purging, **purging_end; /* tenants with purges, by turns */
	struct loop_timer *purge_timer;              /* armed while there are any */
	struct cache_purge *purges_syncing; /* all is gone, but the tier below has not noted it */

	uint64_t used; /* by all tenants */

	struct loop_timer *tick_timer, *tick_rest_timer; /* touches, floors that changed, gauges */
	struct cache_tenant *ticking;                    /* the next one that is due in this tick */
	unsigned sweeps;

	struct loop_timer *evict_timer;  /* armed while somebody is above a watermark */
	bool evicting;                   /* all tenants together are */
	bool evict_stuck;                /* somebody above a watermark, and all of it pinned */
	bool evict_asking;               /* evict_anyone() has not asked everybody yet */
	struct cache_tenant *evict_next; /* evict_on_timer() goes on here */
	uint64_t evict_turn, question;   /* of evict_anyone(), of evict_ask_again() */
	uint64_t evict_question;         /* the question when that turn began */
	uint64_t rounds_turn;            /* the turn of the loop that `rounds` belongs to */
	unsigned rounds;                 /* of eviction */

	cache_event_fn on_event;
	void *on_event_data;
};

/* The floor in force for a model. */
float tenant_floor(const struct cache_tenant *t, const char *model);
/* Takes the touch rings in: before anything is decided or shown that depends on who read what. */
void tenant_drain(struct cache_tenant *t);
/* Counts every pin, in pages and through the socket, into block->seen_pins. Cheap when done a moment ago. */
void tenant_survey(struct cache_tenant *t);
void tenant_gauges(struct cache_tenant *t);
/* A tenth of a second went by. */
void tenant_tick(struct cache_tenant *t);
void tenants_free(struct cache *c);
/* For a name that no tenant has. index NULL: it is made, and kept; else it is taken on success. */
int tenant_make(struct cache *c, const char *name, struct index *index, struct cache_tenant **ret);
/* The floor of this model; 0: it has none of its own any more. -ENOSPC, -ENOMEM. */
int tenant_set_model(struct cache_tenant *t, const char *model, float floor, float configured);
void tenant_floors_changed(struct cache_tenant *t);

#endif
