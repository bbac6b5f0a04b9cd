/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The workers' part of a commit, and what is made of their results. A worker has the job to itself while it runs: it verifies
 * the key on the job's own copy of the token ids, which is the copy that is stored, and packs. If that made a segment, the
 * worker waits until the keeper has it: what is published is to be there for the next daemon.
 */
#include "daemon/base/log.h"
#include "daemon/base/park.h"
#include "daemon/cache/evictor.h"
#include "daemon/cache/job.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

#define SETTLE_MS 1000 /* a keeper that does not read for so long keeps nobody from working */

struct worker_context {
	struct packer *packer;
	struct key_hasher *hasher;
};

static int context_new(void **ret)
{
	struct worker_context *w = calloc(1, sizeof(*w));
	int r;

	if (!w)
		return -ENOMEM;
	r = packer_new(&w->packer);
	if (r == 0)
		r = key_hasher_new(&w->hasher);
	if (r < 0) {
		packer_free(w->packer);
		free(w);
		return r;
	}
	*ret = w;
	return 0;
}

static void context_free(void *context)
{
	struct worker_context *w = context;

	packer_free(w->packer);
	key_hasher_free(w->hasher);
	free(w);
}

/*
 * A client's pages are not in this process's page tables yet. One call puts them there in half the time that the faults
 * of packing would take; where the kernel does not know it (before Linux 5.14), they come by faults.
 */
static void map_ahead(const struct pack_job *p)
{
	madvise((void *)(uintptr_t)p->stage, p->geometry.total, MADV_POPULATE_READ);
}

static void run(struct work *work, void *context)
{
	struct cache_job *j = job_of(work);
	struct worker_context *w = context;
	struct kvg_key key;

	if (j->check_key) {
		key_block(w->hasher, j->has_parent ? &j->parent_key : NULL, j->layout->fingerprint,
			j->ids, j->pack.tokens, &key);
		if (memcmp(&key, &j->key, sizeof(key))) {
			job_refuse(j, KVG_CODE_BAD_KEY,
				"the key is not the hash of parent, layout and tokens");
			return;
		}
	}
	map_ahead(&j->pack);
	j->result.code = pack_run(w->packer, &j->pack);
	if (j->result.code != KVG_CODE_OK)
		job_refuse(j, j->result.code, j->pack.error);
	else if (j->tenant->catalog)
		park_settle(j->tenant->cache->o.park, SETTLE_MS);
}

static void discard(struct cache_job *j)
{
	for (uint32_t p = 0; p < j->pack.n_planes; p++)
		if (j->pack.plane[p].extent.pages)
			pool_release(j->tenant->pool, &j->pack.plane[p].extent);
}

static void publish(struct cache_job *j)
{
	struct cache *c = j->tenant->cache;
	struct block *b;
	uint64_t payload;
	int r = block_publish(j->tenant, j->layout, &j->pack, j->parent, &b);

	if (r < 0) {
		discard(j);
		job_refuse(j, r == -ENOSPC ? KVG_CODE_NO_SPACE : KVG_CODE_NO_MEMORY,
			r == -ENOSPC ? "too many keys begin alike: use hashes"
				     : "the daemon has no memory left");
		return;
	}
	payload = block_payload(b, b->held);
	j->result.handle = b->handle;
	counter_add(j->layout->counters, COUNTER_COMMITS, 0, 1);
	counter_add(j->layout->counters, COUNTER_COMMIT_BYTES, 0, (int64_t)payload);
	if (c->on_event)
		c->on_event(c->on_event_data,
			&(struct cache_event){
				.kind = CACHE_EVENT_COMMITTED,
				.tenant = j->tenant,
				.key = b->key,
				.layout = b->layout->id,
				.handle = b->handle,
				.held = b->held,
				.bytes = payload,
			});
	evict_check(c, j->tenant);
}

/* Not the client's fault. It may come with every commit: said less and less often. */
static void say_defect(const struct cache_job *j)
{
	uint64_t n = ++j->tenant->cache->commits.defects;

	if ((n & (n - 1)) == 0)
		log_error("commit failed", "tenant=%s model=%s why=\"%s\" so_far=%llu",
			j->tenant->name, j->layout->identity.model, j->result.error,
			(unsigned long long)n);
}

static void packed(struct work *work)
{
	struct cache_job *j = job_of(work);
	bool ok = j->result.code == KVG_CODE_OK;

	if (j->result.code == KVG_CODE_INTERNAL)
		say_defect(j);
	commit_unreserve(j, ok ? j->pack.used : 0);
	if (ok && j->cancelled) { /* its staging memory may have served something else meanwhile */
		discard(j);
		job_refuse(j, KVG_CODE_SHUTTING_DOWN, "cancelled");
	} else if (ok) {
		publish(j);
	}
	j->tenant->gauges_stale = true;
	job_finish(j);
}

void commit_prepare(struct cache_job *j)
{
	j->work.run = run;
	j->work.done = packed;
}

int commit_workers_new(struct cache *c, void (*idle)(void *cache))
{
	const struct workers_ops ops = {
		.context_new = context_new,
		.context_free = context_free,
		.idle = idle,
		.userdata = c,
	};

	return workers_new(c->loop, c->o.pack_workers, &ops, &c->commits.workers);
}
