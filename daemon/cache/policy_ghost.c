// SPDX-License-Identifier: Apache-2.0
/*
 * A ring in the order of eviction, and a hash over it. Who comes back leaves a hole in the ring, which is passed over
 * when it becomes the oldest. The ring starts small and doubles until it holds twice the limit, so at least half of a full
 * ring is memory and not holes.
 */
#include "daemon/cache/policy_ghost.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SIZE_MIN  1024
#define SIZE_MAX_ (1u << 30) /* indices are 32 bits wide */

void ghosts_init(struct ghosts *g)
{
	*g = (struct ghosts){0};
}

void ghosts_fini(struct ghosts *g)
{
	free(g->ring);
	free(g->bucket);
	ghosts_init(g);
}

static uint32_t *bucket_of(const struct ghosts *g, uint64_t key_hash)
{
	return &g->bucket[key_hash * 0x9e3779b97f4a7c15ull >> 32 & (g->size - 1)];
}

static void unlink_at(struct ghosts *g, uint32_t i)
{
	uint32_t *link = bucket_of(g, g->ring[i].key_hash);

	while (*link != i + 1)
		link = &g->ring[*link - 1].next;
	*link = g->ring[i].next;
	g->ring[i].alive = false;
	g->alive--;
}

static void append(struct ghosts *g, const struct ghost *new)
{
	const uint32_t i = (uint32_t)((g->first + g->n++) & (g->size - 1));
	uint32_t *link = bucket_of(g, new->key_hash);

	g->ring[i] = *new;
	g->ring[i].alive = true;
	g->ring[i].next = *link;
	*link = i + 1;
	g->alive++;
}

static bool grow(struct ghosts *g)
{
	struct ghosts bigger = {.size = g->size ? 2 * g->size : SIZE_MIN};

	if (bigger.size > SIZE_MAX_)
		return false;
	bigger.ring = malloc(bigger.size * sizeof(*bigger.ring));
	bigger.bucket = calloc(bigger.size, sizeof(*bigger.bucket));
	if (!bigger.ring || !bigger.bucket) {
		ghosts_fini(&bigger);
		return false;
	}
	for (size_t i = 0; i < g->n; i++) {
		const struct ghost *old = &g->ring[(g->first + i) & (g->size - 1)];

		if (old->alive)
			append(&bigger, old);
	}
	ghosts_fini(g);
	*g = bigger;
	return true;
}

static void pass_holes(struct ghosts *g)
{
	while (g->n && !g->ring[g->first].alive) {
		g->first = (g->first + 1) & (g->size - 1);
		g->n--;
	}
}

bool ghosts_forget(struct ghosts *g, size_t limit, struct ghost *ret)
{
	pass_holes(g);
	if (!g->n || (g->alive <= limit && (g->n < g->size || g->size / 2 < limit)))
		return false;
	*ret = g->ring[g->first];
	unlink_at(g, (uint32_t)g->first);
	pass_holes(g);
	return true;
}

bool ghosts_add(struct ghosts *g, const struct ghost *new)
{
	if (g->n == g->size && !grow(g))
		return false;
	append(g, new);
	return true;
}

bool ghosts_take(struct ghosts *g, uint64_t key_hash, struct ghost *ret)
{
	if (!g->size)
		return false;
	for (uint32_t i = *bucket_of(g, key_hash); i; i = g->ring[i - 1].next)
		if (g->ring[i - 1].key_hash == key_hash) {
			*ret = g->ring[i - 1];
			unlink_at(g, i - 1);
			return true;
		}
	return false;
}
