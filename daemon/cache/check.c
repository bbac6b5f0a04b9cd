/* SPDX-License-Identifier: Apache-2.0 */
/* Every fact that is kept twice, compared. For tests, and for whoever suspects a defect. */
#include <errno.h>
#include <string.h>

#include "daemon/base/log.h"
#include "daemon/cache/tenant.h"
#include "proto/plane.h"

struct sums {
	uint64_t blocks, pages;
	bool broken;
};

#define HOLDS(s, fact)                                                                             \
	do {                                                                                       \
		if (!(fact)) {                                                                     \
			log_error("invariant broken", "fact=\"%s\"", #fact);                       \
			(s)->broken = true;                                                        \
		}                                                                                  \
	} while (0)

static void check_block(struct sums *s, const struct block *b)
{
	const struct cache_tenant *t = b->tenant;
	const struct kvg_shm_entry *e = index_entry(t->index, b->handle.slot);
	const uint64_t word = atomic_load(&e->word);
	const uint8_t shown = block_shown(b);
	uint32_t children = 0;

	HOLDS(s, t->by_slot[b->handle.slot] == b);
	HOLDS(s, word == kvg_word(b->handle.gen, shown != 0, shown, block_readable(b)));
	HOLDS(s, !memcmp(&e->key, &b->key, sizeof(b->key)) && e->layout == b->layout->id);
	HOLDS(s, !shown || index_find(t->index, b->layout->id, &b->key) == b->handle.slot);
	HOLDS(s, e->parent == (b->parent ? b->parent->handle.slot : KVG_SLOT_NONE));
	HOLDS(s,
		!b->parent || (b->parent->layout == b->layout && b->depth == b->parent->depth + 1));
	HOLDS(s, b->held && (b->held & 1) && !(b->held & ~b->planes) && !b->batch);
	HOLDS(s, b->held == block_best(b, plane_count(b->held)));
	HOLDS(s, b->mapped == block_best(b, b->node.held) && !(b->mapped & ~b->held));
	HOLDS(s, !(b->held & ~(b->mapped | block_below(b))) || b->hidden);
	for (const struct block *child = b->children.first; child; child = child->next) {
		children++;
		HOLDS(s, child->parent == b);
	}
	HOLDS(s, children == b->n_children && b->node.children <= children);
	HOLDS(s, !b->mapped == (b->below_link != NULL));
	for (uint32_t p = 0; p < b->n_planes; p++) {
		const struct kvg_shm_plane_ref *r = &e->plane[p];
		const struct block_plane *plane = &b->plane[p];
		struct plane_view v;

		HOLDS(s, r->check == plane_ref_check(r, p, b->handle.gen));
		HOLDS(s, r->pairs == plane->pairs && r->bytes == plane->bytes);
		if (!(b->held >> p & 1)) {
			HOLDS(s, r->tier == KVG_TIER_NONE);
			continue;
		}
		if (!(b->mapped >> p & 1)) {
			HOLDS(s, r->tier == KVG_TIER_DISK || b->hidden);
			continue;
		}
		HOLDS(s, r->tier == plane->extent.tier);
		HOLDS(s, r->segment == plane->extent.segment && r->page == plane->extent.page);
		HOLDS(s,
			plane_open(plane->extent.addr, extent_bytes(&plane->extent), &v) == 0 &&
				v.plane == p && v.pairs == plane->pairs && v.bytes == plane->bytes);
	}
	s->blocks++;
	s->pages += block_pages(b, b->mapped);
}

int cache_check(struct cache *c)
{
	struct sums all = {0};
	struct pool_stat st;
	uint64_t lifting = 0;

	loop_assert_owner(c->loop);
	for (struct cache_tenant *t = c->tenants; t; t = t->next) {
		struct sums s = {.broken = all.broken};
		uint64_t slots = 0;

		for (struct block *b = t->roots.first ? block_first(&t->roots) : NULL; b;
			b = block_next(b))
			check_block(&s, b);
		for (uint64_t i = 0; i < index_slots_used_end(t->index); i++)
			slots += t->by_slot[i] != NULL;
		HOLDS(&s, s.blocks == t->n_blocks && slots == s.blocks);
		HOLDS(&s, s.pages == t->used);
		HOLDS(&s, index_check(t->index) == 0);
		HOLDS(&s, replicas_agree(t));
		pool_tenant_stat(t->pool, &st);
		HOLDS(&s,
			t->reserved ||
				st.used == t->used + t->lifting); /* workers allocate meanwhile */
		lifting += t->lifting;
		all.pages += s.pages;
		all.broken = s.broken;
	}
	pool_stat(c->pool, &st);
	HOLDS(&all,
		st.used + st.reserved == all.pages + lifting + c->commits.reserved || c->commits.n);
	HOLDS(&all, st.used + st.reserved <= st.budget);
	HOLDS(&all, c->used == all.pages);
	return all.broken ? -EBADMSG : 0;
}
