/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading an index without trust. Sizes come from the header once it is checked; after that every slot and bucket
 * number is compared with them before it is followed, every entry is copied before it is looked at, and every loop is
 * bounded by n_slots or n_buckets. An entry counts when its checksums are right under its generation, its planes are
 * possible, and its key leads back to it: an entry that no bucket finds was being written or removed.
 */
#include <errno.h>
#include <string.h>

#include "daemon/cache/index.h"
#include "proto/plane.h"

struct view {
	const uint8_t *map;
	struct kvg_shm_index h;
};

static bool fits(uint64_t off, uint64_t n, uint64_t size, uint64_t total)
{
	return off <= total && n <= (total - off) / size;
}

static int open_view(const void *map, uint64_t bytes, struct view *ret)
{
	struct kvg_shm_index h;

	if (bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, map, sizeof(h));
	if (memcmp(h.magic, KVG_INDEX_MAGIC, sizeof(h.magic)) || h.crc != index_crc(&h) ||
		h.version != KVG_SHM_VERSION || h.entry_bytes != sizeof(struct kvg_shm_entry))
		return -EBADMSG;
	if (h.total_bytes > bytes || h.n_buckets == 0 || (h.n_buckets & (h.n_buckets - 1)) ||
		h.n_slots == 0 || h.n_slots > INDEX_SLOTS_MAX || h.buckets_off != 4096 ||
		h.entries_off % 4096 ||
		!fits(h.buckets_off, h.n_buckets, sizeof(struct kvg_shm_bucket), h.entries_off) ||
		!fits(h.entries_off, h.n_slots, sizeof(struct kvg_shm_entry), h.total_bytes))
		return -EBADMSG;
	*ret = (struct view){.map = map, .h = h};
	return 0;
}

static void copy_entry(const struct view *v, uint32_t slot, struct kvg_shm_entry *ret)
{
	memcpy((void *)ret, v->map + v->h.entries_off + (uint64_t)slot * sizeof(*ret),
		sizeof(*ret));
}

/* Does the key's path lead to this slot? */
static bool reachable(const struct view *v, uint32_t slot, const struct kvg_key *key)
{
	const uint64_t way = (uint64_t)kvg_key_tag(key) << 32 | (slot + 1);
	uint64_t at = kvg_key_bucket(key, v->h.n_buckets);

	for (uint64_t probes = 0; probes < v->h.n_buckets; probes++) {
		uint64_t b[KVG_BUCKET_WAYS + 1];

		memcpy(b, v->map + v->h.buckets_off + at * sizeof(b), sizeof(b));
		for (unsigned w = 0; w < KVG_BUCKET_WAYS; w++)
			if (b[w] == way)
				return true;
		if (!b[KVG_BUCKET_WAYS])
			return false;
		at = (at + 1) & (v->h.n_buckets - 1);
	}
	return false;
}

static bool plane_possible(const struct kvg_shm_entry *e, uint32_t plane, uint32_t gen, bool held)
{
	struct kvg_shm_plane_ref r = e->plane[plane];

	if (r.check != plane_ref_check(&r, plane, gen))
		return false;
	return !held ||
		(r.segment && r.bytes && r.tier != KVG_TIER_NONE && r.tier <= KVG_TIER_DISK &&
			((1ull << (r.page_shift & 63)) & (KVG_PAGE_MAX * 2ull - KVG_PAGE_MIN)));
}

static bool entry_possible(
	const struct view *v, uint32_t slot, const struct kvg_shm_entry *e, uint64_t word)
{
	const uint32_t gen = kvg_word_gen(word);
	const uint8_t held = kvg_word_held(word), mapped = kvg_word_mapped(word);

	if (gen == 0 || word != kvg_word(gen, 1, held, mapped) || e->crc != entry_crc(e, gen))
		return false;
	if (e->n_planes == 0 || e->n_planes > KVG_PLANES_MAX || held == 0 || held >> e->n_planes ||
		(mapped & ~held) || e->layout == 0 || e->tokens == 0 ||
		e->tokens > KVG_TOKENS_MAX || e->parent == slot ||
		(e->parent != KVG_SLOT_NONE && e->parent >= v->h.n_slots))
		return false;
	for (uint32_t p = 0; p < e->n_planes; p++)
		if (!plane_possible(e, p, gen, held >> p & 1))
			return false;
	return reachable(v, slot, &e->key);
}

int index_scan(const void *map, uint64_t bytes, index_entry_fn fn, void *userdata,
	struct index_report *ret)
{
	struct index_report report = {0};
	struct view v;
	int r = open_view(map, bytes, &v);

	if (r < 0)
		return r;
	for (uint32_t slot = 0; slot < v.h.n_slots; slot++) {
		struct kvg_shm_entry e;
		uint64_t word;

		copy_entry(&v, slot, &e);
		word = atomic_load_explicit(&e.word, memory_order_relaxed);
		if (!(word & KVG_ENTRY_LIVE))
			continue;
		if (!entry_possible(&v, slot, &e, word)) {
			report.damaged++;
			continue;
		}
		report.live++;
		if (fn)
			fn(userdata, slot, kvg_word_gen(word), &e);
	}
	*ret = report;
	return 0;
}
