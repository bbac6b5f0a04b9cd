// SPDX-License-Identifier: Apache-2.0
/*
 * The value of what may go is
 *
 *	worth(class, age)  x  attention mass it holds  /  its bytes
 *
 * where worth is the best rate of future uses per unit of time kept that blocks like this one, as long unused as this
 * one, have been seen to reach (policy_learn.c). Nothing in it is tuned to a workload: it learns how each class behaves,
 * from what it keeps and from what it evicted, and orders by recency until it has. What tells classes apart:
 *
 *	hits		most blocks are never used again; each use makes the next likelier
 *	turn, run	a chain that was continued twice is a conversation; what came at once in a
 *			long prompt is a document
 *	superseded	a prompt took another way at a fork above it: edited, retried, or the next turn of a
 *			conversation whose last block was not yet full. In a conversation what was left
 *			behind is dead; under a shared system prompt it is not. So the forks are told
 *			apart by their width, and the rest is learned.
 *	last		nothing ever followed: mostly a prompt's unfinished last block
 *	kin		what else comes under the same fork, see policy_traits.c: applications differ
 *
 * All but the first are the prefix tree's gift: a cache of unrelated keys has hits and age only, as in LHD (NSDI 2018),
 * or two queues and ghosts, as in S3-FIFO (SOSP 2023). `superseded` holds for whole subtrees, and is pushed down when
 * it comes to be. A marked block's descendants are marked, and only a use takes a mark away, so each is set
 * at most once a use, and the walk is paid for by the uses.
 *
 * None of them is free: a run's length, once it is known, won .07 to .45 points on nine of 28 synthetic
 * and derived points, lost .1 to .2 on three, and a whole one where conversations alternate with batch
 * jobs and half of them fit (trace_synthetic.py phases, 10,000 blocks: 43.9 %, LRU 45.0 %).
 *
 * Two kinds of thing may go: the last plane of a block, as far as its floor allows, and a leaf with all that is left of
 * it. Planes go first. Whoever set a floor of .3 said that the other 70 % are worth less than a miss: a block that is
 * gone has to be computed again, one at its floor answers nearly as well as a whole one.
 *
 * With a tier below nothing is given up by going there, so floors do not count and the least valuable thing sinks first, be
 * it the last plane of a block or a block (policy_least()).
 *
 * Order. Value changes with age, and not always downwards: a young block's may rise, so no queue or heap stays sorted.
 * Like LHD, the victim is the least of a sample of those that may go (64 at random, and the runners-up of earlier
 * samples, which brings the choice close to the true least). The choice is deterministic, and exact while
 * there are no more than the sample takes.
 *
 *	insert -> [young] --patience--> [may go] <-- last child left, use, new floor
 *	                                 |    ^
 *	                       defer     v    | patience; or nothing else may go
 *	                             [deferred]
 *
 * A leaf that was just used is likely to be continued at once by the same request, and to evict it would break the chain
 * under its writer's hands. So it is left alone for a while, but for its planes: some times as long as chains were seen
 * to take from one block to the next. When nothing else is left, the young go as well. Deferred blocks (pinned ones) sit
 * out until then, too, and policy_victim() says NULL once before it offers them again.
 */
#include "daemon/cache/policy.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "daemon/cache/policy_ghost.h"
#include "daemon/cache/policy_learn.h"
#include "daemon/cache/policy_traits.h"

#define SAMPLE       64
#define SHELF        16    /* runners-up that are looked at again */
#define GHOSTS_MIN   16384 /* evicted blocks remembered: this many, or so many times what is held */
#define GHOSTS_TIMES 4
#define WIDTH_NARROW 8    /* children of a fork that is */
#define WIDTH_FORK   32   /* from here on siblings have nothing to do with each other */
#define PATIENCE     8    /* times the usual pause between blocks of a chain */
#define PAUSE_SHARE  16.0 /* of a new pause in the usual one: 1 / this */

enum {
	LIST_NONE,
	LIST_YOUNG,
	LIST_DEFERRED,
	LIST_HELD, /* on its way down */
	N_LISTS
};

struct list {
	struct policy_node *first, *last;
};

/* What may go: own.at[] says where in each. */
enum step {
	STEP_PLANE, /* its last plane, which the floor gives up */
	STEP_BLOCK, /* all that is left */
	STEP_SINK,  /* its last plane, to a tier below */
	N_STEPS
};

struct steps {
	struct policy_node **node;
	size_t n;
	unsigned n_shelf;
	struct policy_node *shelf[SHELF];
};

struct policy {
	uint64_t clock; /* uses so far */
	uint64_t random;
	double pause;
	size_t nodes, room;
	struct steps may[N_STEPS];
	struct list list[N_LISTS];
	struct learn *learn;
	struct ghosts ghosts;
	struct policy_kin kin; /* children of all forks */
	bool lower;            /* there is a tier below */
};

/* ---- who may go ------------------------------------------------------------------------------- */

static bool may_go(const struct policy *p, const struct policy_node *n, enum step step)
{
	const bool sits_out = n->own.list == LIST_DEFERRED || n->own.list == LIST_HELD;

	switch (step) {
	case STEP_PLANE:
		return n->held > n->droppable_from && !sits_out;
	case STEP_SINK:
		return p->lower && n->held > 1 && !sits_out;
	default:
		return n->held && !n->children && n->own.list == LIST_NONE;
	}
}

static void list_take(struct policy *p, struct policy_node *n)
{
	struct list *l = &p->list[n->own.list];

	if (n->own.list == LIST_NONE)
		return;
	*(n->own.before ? &n->own.before->own.behind : &l->first) = n->own.behind;
	*(n->own.behind ? &n->own.behind->own.before : &l->last) = n->own.before;
	n->own.list = LIST_NONE;
}

static void shelf_take(struct steps *s, const struct policy_node *n)
{
	for (unsigned i = 0; i < s->n_shelf; i++)
		if (s->shelf[i] == n) {
			s->shelf[i] = s->shelf[--s->n_shelf];
			return;
		}
}

static void bench(struct steps *s, struct policy_node *n, enum step step)
{
	struct policy_node *last = s->node[s->n - 1];

	s->node[n->own.at[step] - 1] = last;
	last->own.at[step] = n->own.at[step];
	n->own.at[step] = 0;
	s->n--;
	shelf_take(s, n);
}

/* Puts n where it belongs after any change. */
static void settle(struct policy *p, struct policy_node *n)
{
	for (enum step step = 0; step < N_STEPS; step++) {
		struct steps *s = &p->may[step];
		const bool belongs = may_go(p, n, step);

		if (belongs && !n->own.at[step]) {
			s->node[s->n++] = n;
			n->own.at[step] = s->n;
		} else if (!belongs && n->own.at[step]) {
			bench(s, n, step);
		}
	}
}

static void wait_in(struct policy *p, struct policy_node *n, uint8_t list)
{
	struct list *l = &p->list[list];

	list_take(p, n);
	n->own.list = list;
	n->own.wakes = p->clock + (uint64_t)(PATIENCE * p->pause);
	n->own.behind = NULL;
	n->own.before = l->last;
	*(l->last ? &l->last->own.behind : &l->first) = n;
	l->last = n;
	settle(p, n);
}

/* ---- traits ----------------------------------------------------------------------------------- */

/* A trait changed and it was not a use. */
static void reclass(struct policy *p, struct policy_node *n)
{
	uint16_t class = traits_class(n);

	if (class == n->own.class)
		return;
	learn_leave(p->learn, n->own.class, n->own.last_use);
	learn_enter(p->learn, class, n->own.last_use);
	n->own.class = class;
}

static void mark(struct policy *p, struct policy_node *top, uint8_t superseded)
{
	struct policy_node *n = top;

	for (;;) {
		bool fresh = n->own.superseded < superseded;

		if (fresh) {
			n->own.superseded = superseded;
			reclass(p, n);
		}
		if (fresh && n->own.first_child) {
			n = n->own.first_child;
			continue;
		}
		while (n != top && !n->own.next)
			n = n->parent;
		if (n == top)
			return;
		n = n->own.next;
	}
}

/* A prompt went from parent to n: what it went to before was left behind. */
static void take_way(struct policy *p, struct policy_node *n)
{
	struct policy_node *parent = n->parent;

	if (!parent || parent->own.recent == n)
		return;
	if (parent->own.recent && parent->own.width < WIDTH_FORK)
		mark(p, parent->own.recent,
			parent->own.width < WIDTH_NARROW ? SUPERSEDED_NARROW : SUPERSEDED_WIDE);
	parent->own.recent = n;
}

/* What came at once has an end now, and its blocks, which had only counted on from one to the next, a length. Told once. */
static void tell_length(struct policy *p, struct policy_node *end)
{
	for (struct policy_node *n = end; n && n->own.run && !n->own.length; n = n->parent) {
		n->own.length = end->own.run;
		reclass(p, n);
	}
}

/* Those whose patience is over: nothing followed them. */
static void grow_up(struct policy *p, bool all)
{
	struct policy_node *n;

	while ((n = p->list[LIST_YOUNG].first) && (all || n->own.wakes <= p->clock)) {
		list_take(p, n);
		n->own.last = !n->own.width;
		if (n->own.last && !n->own.hits)
			tell_length(p, n);
		reclass(p, n);
		settle(p, n);
	}
}

static void wake_deferred(struct policy *p, bool all)
{
	struct policy_node *n;

	while ((n = p->list[LIST_DEFERRED].first) && (all || n->own.wakes <= p->clock)) {
		list_take(p, n);
		settle(p, n);
	}
}

static void advance(struct policy *p)
{
	p->clock++;
	learn_advance(p->learn, p->clock, p->nodes + p->ghosts.alive, p->nodes);
	grow_up(p, false);
	wake_deferred(p, false);
}

/* ---- the tree --------------------------------------------------------------------------------- */

static void link_child(struct policy *p, struct policy_node *n)
{
	struct policy_node *parent = n->parent;

	if (!parent)
		return;
	n->own.prev = NULL;
	n->own.next = parent->own.first_child;
	if (n->own.next)
		n->own.next->own.prev = n;
	parent->own.first_child = n;
	parent->children++;
	settle(p, parent);
}

static void unlink_child(struct policy *p, struct policy_node *n)
{
	struct policy_node *parent = n->parent;

	if (!parent)
		return;
	*(n->own.prev ? &n->own.prev->own.next : &parent->own.first_child) = n->own.next;
	if (n->own.next)
		n->own.next->own.prev = n->own.prev;
	if (parent->own.recent == n)
		parent->own.recent = NULL;
	parent->children--;
	settle(p, parent);
}

/* A chain was continued: tells how long that takes, and that parent was not its end. */
static void continued(struct policy *p, struct policy_node *parent)
{
	if (!parent->own.width++)
		p->pause += ((double)(p->clock - parent->own.last_use) - p->pause) / PAUSE_SHARE;
	if (parent->own.last) {
		parent->own.last = false;
		reclass(p, parent);
	}
}

/* ---- contract --------------------------------------------------------------------------------- */

int policy_new(struct policy **ret)
{
	struct policy *p = calloc(1, sizeof(*p));
	int r;

	if (!p)
		return -ENOMEM;
	r = learn_new(&p->learn);
	if (r < 0) {
		free(p);
		return r;
	}
	ghosts_init(&p->ghosts);
	p->random = 0x9e3779b97f4a7c15ull;
	p->pause = 1;
	*ret = p;
	return 0;
}

struct policy *policy_free(struct policy *p)
{
	if (p) {
		ghosts_fini(&p->ghosts);
		learn_free(p->learn);
		for (enum step step = 0; step < N_STEPS; step++)
			free(p->may[step].node);
		free(p);
	}
	return NULL;
}

static int make_room(struct policy *p)
{
	size_t room = p->room ? 2 * p->room : 64;

	if (p->nodes < p->room)
		return 0;
	for (enum step step = 0; step < N_STEPS; step++) {
		struct steps *s = &p->may[step];
		struct policy_node **node = reallocarray(s->node, room, sizeof(*node));

		if (!node)
			return -ENOMEM;
		s->node = node;
	}
	p->room = room;
	return 0;
}

int policy_insert(struct policy *p, struct policy_node *n)
{
	const struct policy_node *parent = n->parent;
	struct ghost was;
	int r = make_room(p);

	assert(n->n_planes && n->n_planes <= KVG_PLANES_MAX && n->droppable_from);
	if (r < 0)
		return r;
	advance(p);
	p->nodes++;
	n->held = n->n_planes;
	n->children = 0;
	n->own = (struct policy_own){.last_use = p->clock};
	if (ghosts_take(&p->ghosts, n->key_hash, &was)) {
		learn_reuse(p->learn, was.class, was.last_use, p->clock);
		n->own.hits = was.hits + 1;
		n->own.turn = was.turn;
		n->own.run = was.run;
	} else if (parent) {
		n->own.turn = parent->own.turn + (parent->own.hits > 0);
		n->own.run = parent->own.hits ? 0 : parent->own.run + 1;
	}
	n->own.kin = traits_kin(&p->kin, parent);
	if (!n->own.hits)
		traits_born(&p->kin, n->parent);
	else if (n->own.hits == 1)
		traits_used(&p->kin, n->parent);
	n->own.class = traits_class(n);
	learn_enter(p->learn, n->own.class, p->clock);
	if (n->parent)
		continued(p, n->parent);
	link_child(p, n);
	take_way(p, n);
	wait_in(p, n, LIST_YOUNG);
	return 0;
}

void policy_touch(struct policy *p, struct policy_node *n)
{
	advance(p);
	learn_reuse(p->learn, n->own.class, n->own.last_use, p->clock);
	if (!n->own.hits++)
		traits_used(&p->kin, n->parent);
	n->own.superseded = SUPERSEDED_NO;
	n->own.last_use = p->clock;
	n->own.class = traits_class(n);
	learn_enter(p->learn, n->own.class, p->clock);
	take_way(p, n);
	if (!n->children && n->own.list != LIST_DEFERRED && n->own.list != LIST_HELD)
		wait_in(p, n, LIST_YOUNG);
}

static bool remember(struct policy *p, const struct policy_node *n)
{
	const struct ghost ghost = {
		.key_hash = n->key_hash,
		.last_use = n->own.last_use,
		.hits = n->own.hits,
		.turn = n->own.turn,
		.run = n->own.run,
		.class = n->own.class,
	};
	size_t limit = GHOSTS_TIMES * p->nodes;
	struct ghost old;

	if (limit < GHOSTS_MIN)
		limit = GHOSTS_MIN;
	/* two for one: so it comes down to a limit that fell, in bounded steps */
	for (unsigned i = 0; i < 2 && ghosts_forget(&p->ghosts, limit - 1, &old); i++)
		learn_leave(p->learn, old.class, old.last_use);
	return ghosts_add(&p->ghosts, &ghost);
}

void policy_remove(struct policy *p, struct policy_node *n, bool remembered)
{
	assert(!n->children && n->held);
	n->held = 0;
	list_take(p, n);
	settle(p, n);
	unlink_child(p, n);
	p->nodes--;
	if (!remembered || !remember(p, n))
		learn_leave(p->learn, n->own.class, n->own.last_use);
}

void policy_shrink(struct policy *p, struct policy_node *n, uint32_t held)
{
	assert(held && held <= n->held);
	n->held = held;
	settle(p, n);
}

void policy_restore(struct policy *p, struct policy_node *n, uint32_t held)
{
	struct ghost was;

	assert(held > n->held && held <= n->n_planes);
	if (!n->held) { /* was removed */
		p->nodes++;
		if (!ghosts_take(&p->ghosts, n->key_hash, &was))
			learn_enter(p->learn, n->own.class, n->own.last_use);
		link_child(p, n);
	}
	n->held = held;
	wait_in(p, n, LIST_DEFERRED);
}

void policy_set_droppable(struct policy *p, struct policy_node *n, uint32_t droppable_from)
{
	assert(droppable_from);
	n->droppable_from = droppable_from;
	settle(p, n);
}

void policy_defer(struct policy *p, struct policy_node *n)
{
	wait_in(p, n, LIST_DEFERRED);
}

void policy_hold(struct policy *p, struct policy_node *n)
{
	wait_in(p, n, LIST_HELD);
}

void policy_let_go(struct policy *p, struct policy_node *n)
{
	if (n->own.list == LIST_HELD)
		list_take(p, n);
	settle(p, n);
}

void policy_grow(struct policy *p, struct policy_node *n, uint32_t held)
{
	assert(n->held && held >= n->held && held <= n->n_planes);
	n->held = held;
	settle(p, n);
}

void policy_set_lower(struct policy *p)
{
	assert(!p->nodes);
	p->lower = true;
}

/* ---- the least -------------------------------------------------------------------------------- */

static double worth(const struct policy *p, const struct policy_node *n)
{
	return learn_worth(p->learn, n->own.class, p->clock - n->own.last_use);
}

static double value(const struct policy *p, const struct policy_node *n, enum step step)
{
	uint32_t from = step == STEP_BLOCK ? 0 : n->held - 1;
	double mass = 0, bytes = 0;

	for (uint32_t i = from; i < n->held; i++) {
		mass += (double)n->mass[i];
		bytes += (double)n->bytes[i];
	}
	return worth(p, n) * mass / (bytes > 1 ? bytes : 1);
}

struct offer {
	struct policy_node *node;
	double value;
};

static bool less(const struct offer *a, const struct offer *b)
{
	if (a->value != b->value)
		return a->value < b->value;
	return a->node->own.last_use < b->node->own.last_use;
}

/* best[] is sorted, the least first; keeps SHELF + 1 of them, each once. */
static unsigned consider(const struct policy *p, enum step step, struct offer *best,
	unsigned n_best, struct policy_node *n)
{
	struct offer new = {n, value(p, n, step)};
	unsigned i;

	for (i = 0; i < n_best; i++)
		if (best[i].node == n)
			return n_best;
	if (n_best <= SHELF)
		n_best++;
	else if (!less(&new, &best[SHELF]))
		return n_best;
	for (i = n_best - 1; i && less(&new, &best[i - 1]); i--)
		best[i] = best[i - 1];
	best[i] = new;
	return n_best;
}

static uint64_t next_random(struct policy *p)
{
	p->random ^= p->random << 13;
	p->random ^= p->random >> 7;
	p->random ^= p->random << 17;
	return p->random;
}

static struct policy_node *least(struct policy *p, enum step step)
{
	struct steps *s = &p->may[step];
	struct offer best[SHELF + 1];
	unsigned n_best = 0;

	for (unsigned i = 0; i < s->n_shelf; i++)
		n_best = consider(p, step, best, n_best, s->shelf[i]);
	if (s->n <= SAMPLE)
		for (size_t i = 0; i < s->n; i++)
			n_best = consider(p, step, best, n_best, s->node[i]);
	else
		for (unsigned i = 0; i < SAMPLE; i++)
			n_best = consider(
				p, step, best, n_best, s->node[(next_random(p) >> 32) % s->n]);
	s->n_shelf = 0;
	for (unsigned i = 0; i < n_best && i < SHELF; i++)
		s->shelf[s->n_shelf++] = best[i].node;
	return best[0].node;
}

struct policy_node *policy_victim(struct policy *p, bool whole, uint32_t *ret_keep)
{
	struct policy_node *n;

	if (!whole && p->may[STEP_PLANE].n) {
		n = least(p, STEP_PLANE);
		*ret_keep = n->held - 1;
		return n;
	}
	if (!p->may[STEP_BLOCK].n)
		grow_up(p, true);
	if (!p->may[STEP_BLOCK].n) {
		wake_deferred(p, true);
		return NULL;
	}
	*ret_keep = 0;
	return least(p, STEP_BLOCK);
}

struct policy_node *policy_least(struct policy *p, uint32_t *ret_keep)
{
	struct policy_node *plane, *block;

	if (!p->may[STEP_SINK].n && !p->may[STEP_BLOCK].n)
		grow_up(p, true);
	plane = p->may[STEP_SINK].n ? least(p, STEP_SINK) : NULL;
	block = p->may[STEP_BLOCK].n ? least(p, STEP_BLOCK) : NULL;
	if (!plane && !block) {
		wake_deferred(p, true);
		return NULL;
	}
	if (plane && (!block || value(p, plane, STEP_SINK) <= value(p, block, STEP_BLOCK))) {
		*ret_keep = plane->held - 1;
		return plane;
	}
	*ret_keep = 0;
	return block;
}

double policy_worth(const struct policy *p, const struct policy_node *n)
{
	return worth(p, n);
}

double policy_value(const struct policy *p, const struct policy_node *n, uint32_t plane)
{
	assert(plane < n->n_planes);
	return worth(p, n) * (double)n->mass[plane] /
		(n->bytes[plane] ? (double)n->bytes[plane] : 1);
}
