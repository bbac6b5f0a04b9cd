// SPDX-License-Identifier: Apache-2.0
/*
 * What may go stands in a binary heap, least recently used first: a block with droppable planes stands
 * for its last plane, a leaf at its floor for itself. A block with children and nothing to drop is in the
 * policy but not in the heap; it comes back when its last child goes.
 */
#include "daemon/cache/policy.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

struct policy {
	uint64_t clock;
	size_t n, size;		/* entries of the heap; nodes there is room for */
	size_t nodes;
	struct policy_node **heap;
};

enum { LAST_USE, POSITION };	/* words of private_; POSITION is 1 + index in the heap, 0 = not there */

static bool before(const struct policy_node *a, const struct policy_node *b)
{
	return a->private_[LAST_USE] < b->private_[LAST_USE];
}

static void place(struct policy *p, size_t i, struct policy_node *n)
{
	p->heap[i] = n;
	n->private_[POSITION] = i + 1;
}

static void sift(struct policy *p, size_t i, struct policy_node *n)
{
	while (i && before(n, p->heap[(i - 1) / 2])) {
		place(p, i, p->heap[(i - 1) / 2]);
		i = (i - 1) / 2;
	}
	for (size_t child; (child = 2 * i + 1) < p->n; i = child) {
		if (child + 1 < p->n && before(p->heap[child + 1], p->heap[child]))
			child++;
		if (!before(p->heap[child], n))
			break;
		place(p, i, p->heap[child]);
	}
	place(p, i, n);
}

static bool may_go(const struct policy_node *n)
{
	return n->held > n->droppable_from || !n->children;
}

/* Puts n where it belongs after any change. */
static void settle(struct policy *p, struct policy_node *n)
{
	size_t i = n->private_[POSITION];

	if (may_go(n)) {
		sift(p, i ? i - 1 : p->n++, n);
	} else if (i) {
		struct policy_node *last = p->heap[--p->n];

		n->private_[POSITION] = 0;
		if (last != n)
			sift(p, i - 1, last);
	}
}

int policy_new(struct policy **ret)
{
	struct policy *p = calloc(1, sizeof(*p));

	if (!p)
		return -ENOMEM;
	*ret = p;
	return 0;
}

struct policy *policy_free(struct policy *p)
{
	if (p) {
		free(p->heap);
		free(p);
	}
	return NULL;
}

int policy_insert(struct policy *p, struct policy_node *n)
{
	assert(n->n_planes && n->n_planes <= KVG_PLANES_MAX);
	if (p->nodes == p->size) {
		size_t size = p->size ? 2 * p->size : 64;
		struct policy_node **heap = reallocarray(p->heap, size, sizeof(*heap));

		if (!heap)
			return -ENOMEM;
		p->heap = heap;
		p->size = size;
	}
	p->nodes++;
	n->held = n->n_planes;
	n->children = 0;
	n->private_[POSITION] = 0;
	n->private_[LAST_USE] = ++p->clock;
	if (n->parent) {
		n->parent->children++;
		settle(p, n->parent);
	}
	settle(p, n);
	return 0;
}

void policy_touch(struct policy *p, struct policy_node *n)
{
	n->private_[LAST_USE] = ++p->clock;
	settle(p, n);
}

void policy_remove(struct policy *p, struct policy_node *n, bool remember)
{
	(void)remember;
	assert(!n->children);
	n->children = 1;	/* nothing of it may go any more */
	n->held = 0;
	settle(p, n);
	n->children = 0;
	p->nodes--;
	if (n->parent) {
		n->parent->children--;
		settle(p, n->parent);
	}
}

void policy_shrink(struct policy *p, struct policy_node *n, uint32_t held)
{
	assert(held && held <= n->held);
	n->held = held;
	settle(p, n);
}

void policy_restore(struct policy *p, struct policy_node *n, uint32_t held)
{
	assert(held > n->held && held <= n->n_planes);
	if (!n->held) { /* was removed */
		p->nodes++;
		if (n->parent) {
			n->parent->children++;
			settle(p, n->parent);
		}
	}
	n->held = held;
	n->private_[LAST_USE] = ++p->clock;
	settle(p, n);
}

void policy_set_droppable(struct policy *p, struct policy_node *n, uint32_t droppable_from)
{
	assert(droppable_from);
	n->droppable_from = droppable_from;
	settle(p, n);
}

struct policy_node *policy_victim(struct policy *p, uint32_t *ret_keep)
{
	if (!p->n)
		return NULL;

	struct policy_node *n = p->heap[0];

	*ret_keep = n->held > n->droppable_from ? n->held - 1 : 0;
	return n;
}

void policy_defer(struct policy *p, struct policy_node *n)
{
	n->private_[LAST_USE] = ++p->clock;
	settle(p, n);
}

double policy_value(const struct policy *p, const struct policy_node *n, uint32_t plane)
{
	assert(plane < n->n_planes);
	return (double)n->mass[plane] / (double)(1 + p->clock - n->private_[LAST_USE]);
}
