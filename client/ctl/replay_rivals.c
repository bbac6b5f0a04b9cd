/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What to compare with, under the same rule of hits:
 *
 * LRU, block by block, as most caches of this kind have it. S3-FIFO (Yang et al., SOSP 2023): a tenth of the room
 * for newcomers, who move on when they are used more than once, and a ghost queue that lets returning blocks in
 * at once. And the optimum: the block whose next use lies farthest ahead goes, of equals the deepest, possibly the one that just
 * came. A block's ancestors are used whenever it is, so this keeps prefixes whole by itself, and no order that
 * does not know the future can do better.
 */
#include "client/ctl/replay.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>

#define NONE UINT32_MAX

const char *const replay_policy_name[N_REPLAY_POLICIES] = {"kvgate", "lru", "s3fifo", "optimum"};

int replay_run(const struct trace *t, enum replay_policy policy, const struct replay_setup *setup,
	struct replay_result *ret)
{
	if (!setup->capacity || setup->capacity > UINT32_MAX || !setup->block_bytes ||
		setup->block_bytes > UINT32_MAX || !(setup->floor > 0 && setup->floor <= 1))
		return -EINVAL;
	*ret = (struct replay_result){.references = t->n, .retention = 1};
	switch (policy) {
	case REPLAY_KVGATE:
		return replay_kvgate(t, setup, ret);
	case REPLAY_LRU:
		return replay_lru(t, setup->capacity, ret);
	case REPLAY_S3FIFO:
		return replay_s3fifo(t, setup->capacity, ret);
	case REPLAY_OPTIMUM:
		return replay_optimum(t, setup->capacity, ret);
	default:
		return -EINVAL;
	}
}

/* ---- LRU -------------------------------------------------------------------------------------- */

struct lru {
	struct place {
		uint32_t before, behind;
		bool there;
	} * at;
	uint32_t oldest, latest;
};

static void lru_unlink(struct lru *l, uint32_t b)
{
	struct place *p = &l->at[b];

	*(p->before != NONE ? &l->at[p->before].behind : &l->oldest) = p->behind;
	*(p->behind != NONE ? &l->at[p->behind].before : &l->latest) = p->before;
	p->there = false;
}

static void lru_append(struct lru *l, uint32_t b)
{
	l->at[b] = (struct place){l->latest, NONE, true};
	*(l->latest != NONE ? &l->at[l->latest].behind : &l->oldest) = b;
	l->latest = b;
}

int replay_lru(const struct trace *t, uint64_t capacity, struct replay_result *ret)
{
	struct lru l = {.oldest = NONE, .latest = NONE};

	l.at = calloc(t->n_blocks, sizeof(*l.at));
	if (!l.at)
		return -ENOMEM;
	for (size_t i = 0; i < t->n_requests; i++) {
		for (size_t j = t->start[i]; j < t->start[i + 1] && l.at[t->block[j]].there; j++)
			ret->hits++;
		for (size_t j = t->start[i]; j < t->start[i + 1]; j++) {
			if (l.at[t->block[j]].there)
				lru_unlink(&l, t->block[j]);
			else
				ret->held++;
			lru_append(&l, t->block[j]);
			if (ret->held > capacity) {
				lru_unlink(&l, l.oldest);
				ret->held--;
			}
		}
	}
	free(l.at);
	return 0;
}

/* ---- S3-FIFO ---------------------------------------------------------------------------------- */

struct fifo {
	uint32_t *ring;
	size_t first, n, size;
};

static int fifo_init(struct fifo *f, size_t size)
{
	*f = (struct fifo){.ring = malloc(size * sizeof(*f->ring)), .size = size};
	return f->ring ? 0 : -ENOMEM;
}

static void fifo_push(struct fifo *f, uint32_t b)
{
	f->ring[(f->first + f->n++) % f->size] = b;
}

static uint32_t fifo_pop(struct fifo *f)
{
	uint32_t b = f->ring[f->first];

	f->first = (f->first + 1) % f->size;
	f->n--;
	return b;
}

struct s3fifo {
	struct fifo small, main, ghost;
	size_t small_room, main_room;
	struct s3_block {
		bool there;
		uint8_t uses;    /* 0 to 3 */
		uint32_t ghosts; /* entries of the ghost queue that are this block's */
	} * block;
};

static void s3_evict_main(struct s3fifo *s)
{
	for (;;) {
		uint32_t b = fifo_pop(&s->main);

		if (!s->block[b].uses) {
			s->block[b].there = false;
			return;
		}
		s->block[b].uses--;
		fifo_push(&s->main, b);
	}
}

static void s3_evict_small(struct s3fifo *s)
{
	uint32_t b = fifo_pop(&s->small);

	if (s->block[b].uses > 1 && s->main_room) {
		s->block[b].uses = 0;
		if (s->main.n >= s->main_room)
			s3_evict_main(s);
		fifo_push(&s->main, b);
		return;
	}
	s->block[b].there = false;
	if (!s->main_room)
		return;
	if (s->ghost.n == s->main_room)
		s->block[fifo_pop(&s->ghost)].ghosts--;
	fifo_push(&s->ghost, b);
	s->block[b].ghosts++;
}

static void s3_use(struct s3fifo *s, uint32_t b)
{
	struct s3_block *block = &s->block[b];

	if (block->there) {
		block->uses += block->uses < 3;
		return;
	}
	while (s->small.n + s->main.n >= s->small_room + s->main_room)
		if (s->small.n >= s->small_room || !s->main.n)
			s3_evict_small(s);
		else
			s3_evict_main(s);
	block->there = true;
	block->uses = 0;
	fifo_push(block->ghosts ? &s->main : &s->small, b);
}

int replay_s3fifo(const struct trace *t, uint64_t capacity, struct replay_result *ret)
{
	const size_t small = capacity >= 10 ? capacity / 10 : 1;
	/* room for one block is one queue: nothing moves on, and no ghosts are kept */
	struct s3fifo s = {.small_room = small, .main_room = capacity - small};
	int r = 0;

	s.block = calloc(t->n_blocks, sizeof(*s.block));
	if (!s.block || fifo_init(&s.small, capacity + 1) < 0 ||
		fifo_init(&s.main, capacity + 1) < 0 || fifo_init(&s.ghost, capacity + 1) < 0)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < t->n_requests; i++) {
		for (size_t j = t->start[i]; j < t->start[i + 1] && s.block[t->block[j]].there; j++)
			ret->hits++;
		for (size_t j = t->start[i]; j < t->start[i + 1]; j++)
			s3_use(&s, t->block[j]);
	}
	ret->held = s.small.n + s.main.n;
	free(s.block);
	free(s.small.ring);
	free(s.main.ring);
	free(s.ghost.ring);
	return r;
}

/* ---- the optimum ------------------------------------------------------------------------------ */

/* A heap of uses, farthest first. A block's older entries stay in it and are passed over: its key has changed. */
struct optimum {
	struct due {
		uint64_t key; /* request of the next use, depth */
		uint32_t block;
	} * heap;
	size_t n;
	uint64_t *key; /* by block, 0 = not there */
};

#define DEPTH_BITS 20
#define NEVER      (UINT64_MAX >> DEPTH_BITS)

static void due_push(struct optimum *o, struct due d)
{
	size_t i = o->n++;

	for (; i && o->heap[(i - 1) / 2].key < d.key; i = (i - 1) / 2)
		o->heap[i] = o->heap[(i - 1) / 2];
	o->heap[i] = d;
}

static struct due due_pop(struct optimum *o)
{
	struct due top = o->heap[0], d = o->heap[--o->n];
	size_t i = 0, child;

	while ((child = 2 * i + 1) < o->n) {
		child += child + 1 < o->n && o->heap[child + 1].key > o->heap[child].key;
		if (o->heap[child].key <= d.key)
			break;
		o->heap[i] = o->heap[child];
		i = child;
	}
	o->heap[i] = d;
	return top;
}

static void optimum_use(struct optimum *o, uint32_t block, uint64_t next, size_t depth)
{
	const uint64_t deepest = (1u << DEPTH_BITS) - 1;

	o->key[block] = next << DEPTH_BITS | (depth < deepest ? depth : deepest);
	due_push(o, (struct due){o->key[block], block});
}

/* next[j]: the request in which the block of reference j is used again. */
static int next_uses(const struct trace *t, uint64_t **ret)
{
	uint64_t *next = malloc(t->n * sizeof(*next));
	uint64_t *later = malloc(t->n_blocks * sizeof(*later));

	if (!next || !later) {
		free(next);
		free(later);
		return -ENOMEM;
	}
	for (uint32_t b = 0; b < t->n_blocks; b++)
		later[b] = NEVER;
	for (size_t i = t->n_requests; i-- > 0;) {
		for (size_t j = t->start[i]; j < t->start[i + 1]; j++)
			next[j] = later[t->block[j]];
		for (size_t j = t->start[i]; j < t->start[i + 1]; j++)
			later[t->block[j]] = i;
	}
	free(later);
	*ret = next;
	return 0;
}

int replay_optimum(const struct trace *t, uint64_t capacity, struct replay_result *ret)
{
	struct optimum o = {0};
	uint64_t *next = NULL;
	int r = next_uses(t, &next);

	o.heap = malloc(t->n * sizeof(*o.heap));
	o.key = calloc(t->n_blocks, sizeof(*o.key));
	if (!o.heap || !o.key)
		r = -ENOMEM;
	for (size_t i = 0; r == 0 && i < t->n_requests; i++) {
		for (size_t j = t->start[i]; j < t->start[i + 1] && o.key[t->block[j]]; j++)
			ret->hits++;
		for (size_t j = t->start[i]; j < t->start[i + 1]; j++) {
			ret->held += !o.key[t->block[j]];
			optimum_use(&o, t->block[j], next[j], j - t->start[i]);
			while (ret->held > capacity) {
				struct due d = due_pop(&o);

				if (o.key[d.block] != d.key)
					continue;
				o.key[d.block] = 0;
				ret->held--;
			}
		}
	}
	free(o.heap);
	free(o.key);
	free(next);
	return r;
}
