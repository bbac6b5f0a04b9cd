/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Lookup and pin without a system call.
 *
 * The daemon alone writes the index, which is mapped here read-only; this session alone writes its pin page, which
 * the daemon reads. They meet in two places, and one pair of full fences makes both safe - the hazard
 * pointer's argument:
 *
 *	reader (here)                              evictor (daemon)
 *	1  word = entry.word, LIVE?                a  entry.word = smaller word
 *	2  compare entry.key                       b  full fence
 *	3  pin[i] = {slot, generation}             c  scan all pin pages for the slot
 *	4  full fence                              d  none: the planes are free
 *	5  word = entry.word again                    one: put the old word back
 *
 * Of the stores a and 3, one comes first in the order of the fences. If 3 does, c sees the pin and the evictor
 * backs off. If a does, 5 sees the smaller word, and with it the truth: planes that are not in it were never
 * ours. So after 5, with the generation of 1 and LIVE, the planes in THAT word stay where they are until
 * the pin is cleared; a smaller word that is taken back later costs us nothing but those planes.
 *
 * Between 1 and 5 the slot may be reused under us, and 2 may compare half of a new key. It does no harm:
 * inserting raises the generation, 5 notices, and what 2 said is thrown away. The same double look makes
 * a lookup that pins nothing exact at the moment of its second look.
 *
 * What is read of an entry is read once, in relaxed atomic words, into a local. Fields behind the first cache
 * line are looked at only after 5, when nobody changes them any more.
 *
 * An index does not know that its daemon is gone. The next daemon raises the index's epoch when it adopts it; it has this
 * pin page, but no connection of ours: every lookup compares the epoch with the one of its session.
 *
 * Speed is misses: one line for the bucket, one for the entry's identity. A batch prefetches the buckets of
 * all its keys, then the entries that their tags name, and then walks over warm lines; its pins share one fence.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <string.h>

#include "proto/plane.h"

/* Prefetched at once: enough to keep every fill buffer busy, few enough to stay in L1. */
#define WARM_KEYS 32u

static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "the shared words are lock free");
static_assert(offsetof(struct kvg_shm_entry, plane) == 64, "an entry's identity is one cache line");

/* One 8-byte word of shared memory that is not declared atomic. */
static uint64_t word_at(const void *p)
{
	return __atomic_load_n((const uint64_t *)p, __ATOMIC_RELAXED);
}

static bool key_equal(const struct kvg_shm_entry *e, const struct kvg_key *key)
{
	uint64_t differs = 0, mine;

	for (unsigned i = 0; i < sizeof(key->b); i += 8) {
		memcpy(&mine, key->b + i, 8);
		differs |= mine ^ word_at(e->key.b + i);
	}
	return differs == 0;
}

static uint64_t entry_word(const struct kvg_shm_entry *e)
{
	return atomic_load_explicit(&e->word, memory_order_acquire);
}

/* The slot of a live block with this key and layout, and the word it had; KVG_SLOT_NONE. */
static uint32_t find(
	const struct index_map *m, uint32_t layout, const struct kvg_key *key, uint64_t *ret_word)
{
	const uint64_t tag = kvg_key_tag(key);
	uint64_t at = kvg_key_bucket(key, m->n_buckets);

	for (uint64_t probes = 0; probes < m->n_buckets; probes++) {
		const struct kvg_shm_bucket *b = &m->buckets[at];

		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++) {
			uint64_t way = atomic_load_explicit(&b->way[w], memory_order_acquire);
			uint32_t slot = (uint32_t)way - 1; /* an empty way becomes SLOT_NONE */
			const struct kvg_shm_entry *e;
			uint64_t word;

			if (way >> 32 != tag || slot >= m->n_slots)
				continue;
			e = &m->entries[slot];
			word = entry_word(e);
			if ((word & KVG_ENTRY_LIVE) && key_equal(e, key) &&
				__atomic_load_n(&e->layout, __ATOMIC_RELAXED) == layout) {
				*ret_word = word;
				return slot;
			}
		}
		if (!atomic_load_explicit(&b->overflow, memory_order_acquire))
			break;
		at = (at + 1) & (m->n_buckets - 1);
	}
	return KVG_SLOT_NONE;
}

/* Brings the lines that find() will touch for n keys under way, all at once. */
static void warm(const struct index_map *m, const struct kvg_key *keys, size_t n)
{
	for (size_t i = 0; i < n; i++)
		__builtin_prefetch(&m->buckets[kvg_key_bucket(&keys[i], m->n_buckets)]);
	for (size_t i = 0; i < n; i++) {
		const struct kvg_shm_bucket *b =
			&m->buckets[kvg_key_bucket(&keys[i], m->n_buckets)];
		const uint64_t tag = kvg_key_tag(&keys[i]);

		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++) {
			uint64_t way = atomic_load_explicit(&b->way[w], memory_order_relaxed);

			if (way >> 32 == tag && way << 32)
				__builtin_prefetch(&m->entries[(uint32_t)way - 1]);
		}
	}
}

/* 0, or why this session may not look anything up. */
static int may_lookup(struct kvg_client *c)
{
	if (!c->lookup_error &&
		atomic_load_explicit(&c->index.head->epoch, memory_order_relaxed) == c->epoch)
		return 0;
	if (c->lookup_error == -EOPNOTSUPP)
		return c->lookup_error;
	return c->resume_ms && client_revive(c) == 0 ? 0 : -ENOTCONN;
}

/* ---- pins ---- */

/* Publishes a pin; the caller fences. KVG_SLOT_NONE: none free. */
static uint32_t pin_publish(struct pin_map *p, struct kvg_handle h)
{
	uint32_t i;

	if (p->n_free) {
		i = p->free[--p->n_free];
	} else if (p->high < p->n_pins) {
		i = p->high++;
		atomic_store_explicit(&p->head->pins_high, p->high, memory_order_relaxed);
	} else {
		return KVG_SLOT_NONE;
	}
	atomic_store_explicit(&p->pin[i], kvg_handle_pack(h), memory_order_relaxed);
	return i;
}

static void pin_clear(struct pin_map *p, uint32_t i)
{
	atomic_store_explicit(&p->pin[i], 0, memory_order_release);
	p->free[p->n_free++] = i;
}

/* Tells the daemon that the block was read. When the ring overruns, the daemon counts what it lost. */
static void touch(struct pin_map *p, struct kvg_handle h)
{
	atomic_store_explicit(
		&p->touch[p->touch_head & p->touch_mask], kvg_handle_pack(h), memory_order_relaxed);
	atomic_store_explicit(&p->head->touch_head, ++p->touch_head, memory_order_release);
}

/* Share of the block's pairs in the planes `mapped`. */
static float retention(const struct kvg_shm_entry *e, uint32_t n_planes, unsigned mapped)
{
	uint64_t all = 0, there = 0;

	if (mapped == (1u << n_planes) - 1)
		return 1.0f;
	for (uint32_t p = 0; p < n_planes; p++) {
		uint32_t pairs = __atomic_load_n(&e->plane[p].pairs, __ATOMIC_RELAXED);

		all += pairs;
		there += mapped >> p & 1 ? pairs : 0;
	}
	return all ? (float)((double)there / (double)all) : 0.0f;
}

/*
 * Step 5, after the fence: what the published pin `p` really holds. Clears it when that is not enough: less than
 * min_retention, or less than `want` while a lower tier has more.
 */
static int pin_settle(struct kvg_client *c, float min_retention, float want, struct kvg_pin *p)
{
	const struct kvg_shm_entry *e = &c->index.entries[p->handle.slot];
	const uint64_t word = entry_word(e);
	uint32_t n_planes = __atomic_load_n(&e->n_planes, __ATOMIC_RELAXED);

	if (kvg_word_gen(word) != p->handle.gen || !(word & KVG_ENTRY_LIVE) || n_planes == 0 ||
		n_planes > KVG_PLANES_MAX) {
		pin_clear(&c->pins, p->index);
		return -ENOENT;
	}
	p->mapped = kvg_word_mapped(word);
	p->held = kvg_word_held(word);
	p->n_planes = (uint16_t)n_planes;
	p->tokens = __atomic_load_n(&e->tokens, __ATOMIC_RELAXED);
	p->retention = retention(e, n_planes, p->mapped);
	if (p->mapped == 0 || p->retention < min_retention ||
		(p->retention < want && (p->held & ~p->mapped))) {
		pin_clear(&c->pins, p->index);
		return -ENODATA;
	}
	touch(&c->pins, p->handle);
	return 0;
}

/* Steps 1 to 3. */
static int pin_try(struct kvg_layout *l, const struct kvg_key *key, struct kvg_pin *ret)
{
	struct kvg_client *c = l->client;
	uint64_t word;
	uint32_t slot = find(&c->index, l->id, key, &word);

	if (slot == KVG_SLOT_NONE)
		return -ENOENT;
	ret->handle = (struct kvg_handle){.slot = slot, .gen = kvg_word_gen(word)};
	ret->index = pin_publish(&c->pins, ret->handle);
	return ret->index == KVG_SLOT_NONE ? -EAGAIN : 0;
}

int kvg_lookup_pin(
	struct kvg_layout *l, const struct kvg_key *key, float min_retention, struct kvg_pin *ret)
{
	struct kvg_pin p;
	int r = may_lookup(l->client);

	if (r == 0)
		r = pin_try(l, key, &p);
	if (r < 0)
		return r;
	atomic_thread_fence(memory_order_seq_cst);
	r = pin_settle(l->client, min_retention, 0, &p);
	if (r == 0)
		*ret = p;
	return r;
}

/* One batch: its keys published together, with one fence. Returns how many are pinned. */
static size_t pin_batch(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, float want, struct kvg_pin *p, int *ret_why)
{
	struct kvg_client *c = l->client;
	size_t published = 0, settled = 0;
	int why = 0, refused = 0;

	warm(&c->index, keys, n);
	while (published < n && (why = pin_try(l, &keys[published], &p[published])) == 0)
		published++;
	atomic_thread_fence(memory_order_seq_cst);
	while (settled < published &&
		(refused = pin_settle(c, min_retention, want, &p[settled])) == 0)
		settled++;
	for (size_t i = settled + 1; i < published;
		i++) /* pin_settle() cleared the one it refused */
		pin_clear(&c->pins, p[i].index);
	*ret_why = refused ? refused : why;
	return settled;
}

size_t prefix_pin(struct kvg_layout *l, const struct kvg_key *keys, size_t n, float min_retention,
	float want, struct kvg_pin *ret_pins, int *ret_why)
{
	size_t done = 0;

	*ret_why = may_lookup(l->client);
	while (done < n && *ret_why == 0)
		done += pin_batch(l, keys + done, n - done < WARM_KEYS ? n - done : WARM_KEYS,
			min_retention, want, ret_pins + done, ret_why);
	return done;
}

size_t kvg_prefix_pin(struct kvg_layout *l, const struct kvg_key *keys, size_t n,
	float min_retention, struct kvg_pin *ret_pins)
{
	int why;

	return prefix_pin(l, keys, n, min_retention, 0, ret_pins, &why);
}

size_t pins_left(const struct kvg_client *c)
{
	return c->pins.n_free + (c->pins.n_pins - c->pins.high);
}

int kvg_acquired_look(
	const struct kvg_client *c, struct kvg_handle handle, struct kvg_acquired *ret)
{
	const struct kvg_shm_entry *e;
	uint32_t n_planes;
	uint64_t word;

	if (c->lookup_error)
		return c->lookup_error;
	if (atomic_load_explicit(&c->index.head->epoch, memory_order_relaxed) != c->epoch)
		return -ENOTCONN;
	if (handle.slot >= c->index.n_slots)
		return -ESTALE;
	e = &c->index.entries[handle.slot];
	word = entry_word(e);
	n_planes = __atomic_load_n(&e->n_planes, __ATOMIC_RELAXED);
	if (kvg_word_gen(word) != handle.gen || !(word & KVG_ENTRY_LIVE) || n_planes == 0 ||
		n_planes > KVG_PLANES_MAX)
		return -ESTALE;
	*ret = (struct kvg_acquired){
		.code = KVG_CODE_OK,
		.handle = handle,
		.retention = retention(e, n_planes, kvg_word_held(word)),
		.held = kvg_word_held(word),
		.mapped = kvg_word_mapped(word),
	};
	return 0;
}

size_t kvg_prefix_lookup(struct kvg_layout *l, const struct kvg_key *keys, size_t n)
{
	const struct index_map *m = &l->client->index;
	size_t done = 0;

	if (may_lookup(l->client) < 0)
		return 0;
	for (; done < n; done++) {
		uint64_t word;
		uint32_t slot;

		if (done % WARM_KEYS == 0)
			warm(m, keys + done, n - done < WARM_KEYS ? n - done : WARM_KEYS);
		slot = find(m, l->id, &keys[done], &word);
		if (slot == KVG_SLOT_NONE)
			break;
		atomic_thread_fence(
			memory_order_acquire); /* the key was read before the word is looked at again */
		if (kvg_word_gen(entry_word(&m->entries[slot])) != kvg_word_gen(word))
			break;
	}
	return done;
}

void kvg_unpin(struct kvg_client *c, const struct kvg_pin *pins, size_t n)
{
	for (size_t i = n;
		i-- > 0;) { /* the first pin lands on top of the stack, and is the next one used */
		const struct kvg_pin *p = &pins[i];

		if (p->index < c->pins.high &&
			atomic_load_explicit(&c->pins.pin[p->index], memory_order_relaxed) ==
				kvg_handle_pack(p->handle))
			pin_clear(&c->pins, p->index);
	}
}
