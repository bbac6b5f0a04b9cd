/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A block may have a GiB, and a checksum over that takes a tenth of a second: work for a pack worker. The block is in use
 * (block.uses) as long as it is read, so that nothing of it goes meanwhile; each plane is a piece of work of its own,
 * behind those commits that came before it.
 *
 * A plane that fails its checksum is worse than none. It is hidden from readers at once, with the planes behind it; with
 * plane 0 the whole block is, so that its key is a miss and the block can be put anew. Then a purge takes away what is
 * hidden, and the descendants of a block that is. What a pin holds stays in memory, hidden, until pressure finds it
 * unpinned: those who have it pinned keep what they have, and nobody else gets it.
 */
#include "daemon/cache/verify.h"

#include <errno.h>
#include <stdlib.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/purge.h"
#include "daemon/cache/tenant.h"
#include "daemon/cache/workers.h"
#include "proto/plane.h"

struct verification {
	struct work work;
	struct verification *next;
	struct block *block; /* in use */
	uint32_t plane;      /* the one that is read now */
	bool good;           /* what the worker found */
	uint8_t bad;         /* bits */
	cache_verify_fn done;
	void *userdata;
	struct cache_block_info info;
};

static struct verification *of(struct work *w)
{
	return (struct verification *)((char *)w - offsetof(struct verification, work));
}

static void read_plane(struct work *w, void *context)
{
	struct verification *v = of(w);
	const struct extent none = {0};
	const struct extent *e = v->plane < v->block->n_planes ? &v->block->plane[v->plane].extent
							       : &none;

	(void)context;
	v->good = !e->pages ||
		plane_verify(e->addr, extent_bytes(e)) == 0; /* 0: nothing of it is in memory */
}

/* The next plane from `p` on that is in memory; n_planes when there is none. */
static uint32_t next_mapped(const struct block *b, uint32_t p)
{
	while (p < b->n_planes && !(b->mapped >> p & 1))
		p++;
	return p;
}

static void take_away(struct block *b, uint8_t bad)
{
	const uint32_t keep = (uint32_t)__builtin_ctz(bad);

	counter_add(b->layout->counters, COUNTER_CORRUPT, 0, plane_count(bad));
	block_hide(b, (uint8_t)(b->held & (UINT8_MAX << keep)));
	purge_lost(b, keep,
		EVICT_CORRUPT); /* without memory for that, pressure takes it, being hidden */
}

static void finish(struct cache *c)
{
	struct verification *v = c->verify.first;
	struct block *b = v->block;

	c->verify.first = v->next;
	if (!c->verify.first)
		c->verify.end = &c->verify.first;
	b->uses--;
	evict_ask_again(c);
	if (v->bad)
		take_away(b, v->bad);
	if (v->done)
		v->done(v->userdata, &v->info);
	free(v);
}

static void read_done(struct work *w)
{
	struct verification *v = of(w);
	struct cache *c = v->block->tenant->cache;

	c->verify.running = false;
	if (v->plane == v->block->n_planes) {
		finish(c);
		return;
	}
	v->info.plane[v->plane].verified = v->good;
	v->bad |= (uint8_t)(!v->good << v->plane);
	v->plane = next_mapped(v->block, v->plane + 1);
	if (v->plane == v->block->n_planes || c->commits.stopping)
		finish(c);
}

void verifications_feed(struct cache *c)
{
	if (!c->verify.first || c->verify.running || c->commits.stopping ||
		workers_full(c->commits.workers))
		return;
	workers_submit(c->commits.workers, &c->verify.first->work);
	c->verify.running = true;
}

int verify_start(
	struct block *b, const struct cache_block_info *info, cache_verify_fn done, void *userdata)
{
	struct cache *c = b->tenant->cache;
	struct verification *v = calloc(1, sizeof(*v));

	if (!v)
		return -ENOMEM;
	v->work.run = read_plane;
	v->work.done = read_done;
	v->block = b;
	v->plane = next_mapped(b, 0);
	v->done = done;
	v->userdata = userdata;
	v->info = *info;
	b->uses++;
	*c->verify.end = v;
	c->verify.end = &v->next;
	verifications_feed(c);
	return 0;
}

void verifications_init(struct cache *c)
{
	c->verify.end = &c->verify.first;
}

void verifications_silence(struct cache *c)
{
	for (struct verification *v = c->verify.first; v; v = v->next)
		v->done = NULL;
}

void verifications_stop(struct cache *c)
{
	verifications_silence(c);
	while (c->verify.first && !c->verify.running)
		finish(c);
}
