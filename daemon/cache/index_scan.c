/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Reading an index without trust. Sizes come from the header once it is checked; after that every slot and bucket
 * number is compared with them before it is followed, every entry is copied before it is looked at, and every loop is
 * bounded by n_slots or n_buckets. An entry counts when its checksums are right under its generation, its planes are
 * possible, and its key leads back to it: an entry that no bucket finds was being written or removed.
 */
#include <errno.h>
#include <string.h>

#include "daemon/cache/index_private.h"
#include "proto/plane.h"

static bool fits(uint64_t off, uint64_t n, uint64_t size, uint64_t total)
{
	return off <= total && n <= (total - off) / size;
}

int index_view_open(const void *map, uint64_t bytes, struct index_view *ret)
{
	struct kvg_shm_index h;

	if (bytes < sizeof(h))
		return -EBADMSG;
	memcpy(&h, map, sizeof(h));
	if (memcmp(h.magic, KVG_INDEX_MAGIC, sizeof(h.magic)))
		return -EBADMSG;
	if (h.version != KVG_SHM_VERSION) /* whose header may be another one */
		return -EPROTONOSUPPORT;
	if (h.crc != index_crc(&h) || h.entry_bytes != sizeof(struct kvg_shm_entry))
		return -EBADMSG;
	if (h.total_bytes > bytes || h.n_buckets == 0 || (h.n_buckets & (h.n_buckets - 1)) ||
		h.n_slots == 0 || h.n_slots > INDEX_SLOTS_MAX || h.buckets_off != 4096 ||
		h.entries_off % 4096 ||
		!fits(h.buckets_off, h.n_buckets, sizeof(struct kvg_shm_bucket), h.entries_off) ||
		!fits(h.entries_off, h.n_slots, sizeof(struct kvg_shm_entry), h.total_bytes))
		return -EBADMSG;
	*ret = (struct index_view){.map = map, .h = h};
	return 0;
}

static void copy_entry(const struct index_view *v, uint32_t slot, struct kvg_shm_entry *ret)
{
	memcpy((void *)ret, v->map + v->h.entries_off + (uint64_t)slot * sizeof(*ret),
		sizeof(*ret));
}

/* Does the key's path lead to this slot? */
static bool reachable(const struct index_view *v, uint32_t slot, const struct kvg_key *key)
{
	const uint64_t way = index_way(key, slot);
	uint64_t at = kvg_key_bucket(key, v->h.n_buckets);

	for (uint64_t probes = 0; probes < v->h.n_buckets && probes < INDEX_PROBES_MAX; probes++) {
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
	return (!held && r.tier == KVG_TIER_NONE) ||
		(r.segment && r.bytes && r.tier != KVG_TIER_NONE && r.tier <= KVG_TIER_DISK &&
			((1ull << (r.page_shift & 63)) & (KVG_PAGE_MAX * 2ull - KVG_PAGE_MIN)));
}

static bool fields_possible(const struct index_view *v, uint32_t slot,
	const struct kvg_shm_entry *e, uint32_t gen, uint8_t held)
{
	if (e->crc != entry_crc(e, gen) || e->n_planes == 0 || e->n_planes > KVG_PLANES_MAX ||
		held >> e->n_planes || e->layout == 0 || e->tokens == 0 ||
		e->tokens > KVG_TOKENS_MAX || e->parent == slot ||
		(e->parent != KVG_SLOT_NONE && e->parent >= v->h.n_slots))
		return false;
	for (uint32_t p = 0; p < e->n_planes; p++)
		if (!plane_possible(e, p, gen, held >> p & 1))
			return false;
	return true;
}

enum index_verdict index_judge(const struct index_view *v, uint32_t slot, struct kvg_shm_entry *ret)
{
	uint8_t held, mapped;
	uint64_t word;
	uint32_t gen;
	bool possible;

	copy_entry(v, slot, ret);
	word = atomic_load_explicit(&ret->word, memory_order_relaxed);
	gen = kvg_word_gen(word);
	held = kvg_word_held(word);
	mapped = kvg_word_mapped(word);
	if (!(word & KVG_ENTRY_LIVE)) {
		possible = gen && word == kvg_word(gen, 0, 0, 0) &&
			fields_possible(v, slot, ret, gen, 0);
		return possible && reachable(v, slot, &ret->key) ? INDEX_WHOLE : INDEX_FREE;
	}
	possible = gen && held && !(mapped & ~held) && word == kvg_word(gen, 1, held, mapped) &&
		fields_possible(v, slot, ret, gen, held);
	if (!possible)
		return INDEX_DAMAGED;
	return reachable(v, slot, &ret->key) ? INDEX_WHOLE : INDEX_UNFINISHED;
}

int index_scan(const void *map, uint64_t bytes, index_entry_fn fn, void *userdata,
	struct index_report *ret)
{
	struct index_report report = {0};
	struct index_view v;
	int r = index_view_open(map, bytes, &v);

	if (r < 0)
		return r;
	for (uint32_t slot = 0; slot < v.h.n_slots; slot++) {
		struct kvg_shm_entry e;
		enum index_verdict verdict = index_judge(&v, slot, &e);
		uint64_t word = atomic_load_explicit(&e.word, memory_order_relaxed);

		if (!(word & KVG_ENTRY_LIVE))
			continue;
		if (verdict != INDEX_WHOLE) {
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
