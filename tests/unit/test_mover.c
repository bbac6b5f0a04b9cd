/* SPDX-License-Identifier: Apache-2.0 */
/* Planes go down, the least valuable first, and come back with every byte; what the tier below loses is a miss. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <errno.h>

#include "daemon/cache/evictor.h"
#include "daemon/cache/tenant.h"
#include "tests/unit/cache_fixture.h"
#include "tests/unit/disk_ram.h"

#define BLOCKS    400 /* several times what fits */
#define CHAIN     8
#define IN_FLIGHT (1u << 20)

static struct fixture f;
static const char *const path[] = {"ram"};
static struct kvg_key key[BLOCKS];

static void start(uint64_t slots, uint64_t in_flight)
{
	fixture_options(&f);
	if (slots)
		f.o.index_slots = slots;
	f.o.disk = (struct cache_disk_options){
		.paths = path, .n_paths = 1, .in_flight_bytes = in_flight};
	fixture_start(&f);
}

static int setup(void **state)
{
	*state = &f;
	disk_ram_reset();
	start(0, IN_FLIGHT);
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	run_loop(&f, 20);
	assert_int_equal(cache_check(f.cache), 0);
	fixture_stop(&f);
	return 0;
}

static struct block *find(unsigned i)
{
	return block_find(f.tenant, f.layout->id, &key[i]);
}

static int put(unsigned i, uint64_t seed)
{
	return put_block(&f, f.layout, seed, i % CHAIN ? &key[i - 1] : NULL, &key[i]);
}

static void fill(void)
{
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	run_loop(&f, 50);
}

/* A leaf of which nothing is in memory. */
static unsigned cold_leaf(void)
{
	unsigned i = 0;

	while (i < BLOCKS && (find(i)->mapped || find(i)->n_children))
		i++;
	assert_true(i < BLOCKS);
	return i;
}

/* ---- a reader ---- */

struct reader {
	struct cache_fetch fetch;
	struct cache_tenant *tenant; /* NULL: the fixture's */
	struct kvg_handle handle;
	uint8_t planes; /* that ended */
	uint64_t after; /* so many loads the first of them did */
};

static void on_arrived(struct cache_fetch *fetch, uint8_t planes)
{
	struct reader *r = (struct reader *)((char *)fetch - offsetof(struct reader, fetch));

	const struct block *b = block_get(r->tenant ? r->tenant : f.tenant, r->handle);

	assert_true(planes && !(r->planes & planes));
	if (!r->planes)
		r->after = disk_ram.loads;
	assert_int_equal(
		b->mapped, block_best(b, plane_count(b->mapped))); /* nothing behind a gap */
	r->planes |= planes;
}

static void ask(unsigned i, float min, float want, struct reader *r)
{
	struct cache_block_result at;

	*r = (struct reader){.fetch = {.arrived = on_arrived}};
	assert_int_equal(cache_acquire(f.tenant, f.layout, &key[i], min, &at), KVG_CODE_OK);
	r->handle = at.handle;
	cache_fetch(f.tenant, at.handle, want, &r->fetch);
}

static void wait_for(struct reader *r)
{
	for (unsigned n = 0; r->fetch.waiting && n < 10000; n++)
		loop_run_once(f.loop, 10);
	assert_int_equal(r->fetch.waiting, 0);
}

static void check_content(unsigned i, float retention)
{
	const struct block *b = find(i);
	uint64_t pairs = 0;

	assert_non_null(b);
	for (uint32_t p = 0; p < b->n_planes; p++)
		if (b->mapped >> p & 1)
			pairs += content_check(
				i, b->plane[p].extent.addr, extent_bytes(&b->plane[p].extent), p);
	assert_true((double)pairs >= (double)retention * (double)b->pairs * (1 - 1e-6));
}

static void read_all(unsigned i)
{
	struct reader r;

	ask(i, 1.0f, 1.0f, &r);
	wait_for(&r);
	assert_int_equal(r.fetch.error, 0);
	check_content(i, 1.0f);
	cache_release(f.tenant, r.handle);
}

/* ---- down and up ---- */

static void test_nothing_is_lost(void **state)
{
	unsigned below = 0, split = 0;

	(void)state;
	fill();
	assert_int_equal(cache_check(f.cache), 0);
	for (unsigned i = 0; i < BLOCKS; i++) {
		const struct block *b = find(i);

		assert_non_null(b);
		assert_true(b->held == b->planes && block_retention(b) == 1.0f);
		below += !b->mapped;
		split += b->mapped && b->mapped != b->held;
	}
	assert_true(below > BLOCKS / 8 && split > BLOCKS / 8);
	assert_true(f.tenant->used <= f.o.host_bytes);
	for (unsigned i = 0; i < BLOCKS; i++)
		read_all(i);
	assert_int_equal(cache_check(f.cache), 0);
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_true(find(i)->held == find(i)->planes);
}

/* What came up did not change, as nothing ever does, and goes down again without being written. */
static void test_clean_sinks_for_nothing(void **state)
{
	uint64_t stores;

	(void)state;
	fill();
	for (unsigned i = 0; i < BLOCKS; i++)
		read_all(i);
	stores = disk_ram.stores;
	for (unsigned i = 0; i < BLOCKS; i++)
		read_all(i);
	assert_true(disk_ram.stores - stores < BLOCKS / 4); /* some had never been written */
}

static void test_best_planes_of_all_come_first(void **state)
{
	struct reader r[32];
	unsigned others = 0, n = 0, last = 0;

	(void)state;
	fill();
	disk_ram.loads = 0;
	for (unsigned i = 0; i < BLOCKS && n < 32; i++)
		if (!find(i)->mapped)
			ask(last = i, 1.0f, 1.0f, &r[n++]);
	assert_int_equal(n, 32);
	for (unsigned i = 0; i < 32; i++)
		wait_for(&r[i]);
	for (unsigned i = 0; i < 32; i++)
		others += disk_ram.order[i] != 0;
	assert_int_equal(others, 0);
	check_content(last, 1.0f);
	for (unsigned i = 0; i < 32; i++)
		cache_release(f.tenant, r[i].handle);
}

/* Who wants everything is passed by those who came later and want little, but not by all of them. */
static void test_who_wants_everything(void **state)
{
	struct reader all, r[BLOCKS];
	unsigned n = 0, cold[BLOCKS], next = 0;

	teardown(state);
	start(0, 32 << 10);
	fill();
	for (unsigned i = 0; i < BLOCKS; i++)
		if (!find(i)->mapped)
			cold[n++] = i;
	assert_true(n > 100);
	disk_ram.loads = 0;
	ask(cold[next++], 1.0f, 1.0f, &all);
	/* somebody else is always there, and wants one plane */
	while (all.fetch.waiting && next < n) {
		for (unsigned k = 0; k < 3 && next < n; k++, next++)
			ask(cold[next], 0.f, 0.f, &r[next]);
		loop_run_once(f.loop, 10);
	}
	assert_int_equal(all.fetch.waiting, 0);
	assert_int_equal(all.fetch.error, 0);
	assert_true(next < n);
	while (--next > 0) {
		wait_for(&r[next]);
		cache_release(f.tenant, r[next].handle);
	}
	cache_release(f.tenant, all.handle);
}

/* A tenant who asks for much keeps nobody waiting who asks for little. */
static void test_tenants_take_turns(void **state)
{
	struct cache_tenant *other;
	struct cache_layout *layout;
	struct reader many[64], one = {.fetch = {.arrived = on_arrived}};
	struct cache_block_result at;
	struct put theirs_put;
	struct kvg_key theirs;
	unsigned n = 0;

	(void)state;
	other = fixture_tenant(&f, "two", f.o.host_bytes, 1.0f);
	layout = fixture_layout(&f, other, "model", "");
	put_stage(&f, layout, 9000, NULL, &theirs_put);
	put_start(&f, other, &theirs_put);
	put_wait(&f, &theirs_put);
	assert_int_equal(theirs_put.result.code, KVG_CODE_OK);
	content_key(&f, layout, 9000, NULL, &theirs);
	fill();
	for (unsigned i = 0; i < 100 && block_find(other, layout->id, &theirs)->mapped; i++) {
		evict_round(other, 1 << 20, 0);
		run_loop(&f, 5);
	}
	assert_int_equal(block_find(other, layout->id, &theirs)->mapped, 0);
	disk_ram.loads = 0;
	for (unsigned i = 0; i < BLOCKS && n < 64; i++)
		if (!find(i)->mapped)
			ask(i, 1.0f, 1.0f, &many[n++]);
	assert_int_equal(n, 64);
	assert_int_equal(cache_acquire(other, layout, &theirs, 1.0f, &at), KVG_CODE_OK);
	one.tenant = other;
	one.handle = at.handle;
	cache_fetch(other, at.handle, 1.0f, &one.fetch);
	wait_for(&one);
	assert_true(one.after <= 4);
	cache_release(other, at.handle);
	for (unsigned i = 0; i < n; i++) {
		wait_for(&many[i]);
		cache_release(f.tenant, many[i].handle);
	}
}

static void test_part_of_a_block(void **state)
{
	struct reader r;
	unsigned i;

	(void)state;
	fill();
	i = cold_leaf();
	ask(i, .2f, .2f, &r);
	wait_for(&r);
	check_content(i, .2f);
	assert_true(find(i)->mapped != find(i)->held);
	cache_release(f.tenant, r.handle);
	ask(i, 0.0f, 0.0f, &r);
	assert_int_equal(r.fetch.waiting, 0); /* the best plane is there */
	cache_release(f.tenant, r.handle);
}

/* Who has it pinned while it is on its way down keeps it. */
static void test_read_on_the_way_down(void **state)
{
	struct pin_page *page = pin_page_new();
	unsigned sinking = 0, n = 0;

	(void)state;
	cache_pins_attach(f.tenant, page);
	disk_ram.hold_stores = true;
	for (; n < 60; n++)
		assert_int_equal(put(n, n), KVG_CODE_OK);
	assert_int_equal(evict_round(f.tenant, 400000, 0), EVICTED_LATER);
	for (unsigned i = 0; i < n; i++)
		if (find(i)->sinking) {
			page_pin(page, sinking++, find(i)->handle);
			assert_true(find(i)->mapped == find(i)->held);
		}
	assert_true(sinking > 0);
	disk_ram.hold_stores = false;
	disk_ram_let_go(f.cache->disk);
	run_loop(&f, 20);
	for (unsigned i = 0; i < n; i++)
		assert_true(find(i)->mapped == find(i)->held && !find(i)->sinking);
	assert_true(disk_ram_live() > 0);
	cache_pins_detach(f.tenant, page);
	pin_page_free(page);
}

/* Who reads it by the socket meanwhile keeps it, too, though nothing is pinned when it has arrived. */
static void test_touched_on_the_way_down(void **state)
{
	unsigned sinking = 0;
	bool sank[60];

	(void)state;
	disk_ram.hold_stores = true;
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	evict_round(f.tenant, 400000, 0);
	for (unsigned i = 0; i < 60; i++) {
		sank[i] = find(i)->sinking;
		sinking += sank[i];
		if (sank[i])
			assert_true(cache_present(f.tenant, &key[i]));
	}
	assert_true(sinking > 0);
	disk_ram.hold_stores = false;
	disk_ram_let_go(f.cache->disk);
	run_loop(&f, 20);
	for (unsigned i = 0; i < 60; i++)
		assert_true(!sank[i] || find(i)->mapped == find(i)->planes);
}

/* A disk wants much under way: who has to wait for a byte sends what keeps it busy. */
static void test_ahead(void **state)
{
	(void)state;
	disk_ram.hold_stores = true;
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	assert_int_equal(evict_round(f.tenant, 1, 0), EVICTED_LATER);
	assert_true(f.tenant->sinking >= f.tenant->quota / 16);
	disk_ram.hold_stores = false;
	disk_ram_let_go(f.cache->disk);
}

/* Planes are shown best first, in whatever order they come. */
static void test_out_of_order(void **state)
{
	struct reader r;
	unsigned i;

	(void)state;
	fill();
	i = cold_leaf();
	disk_ram.last_load_first = true;
	disk_ram.hold_loads = true;
	ask(i, 1.0f, 1.0f, &r);
	run_loop(&f, 5);
	disk_ram.hold_loads = false;
	disk_ram_let_go(f.cache->disk);
	assert_int_equal(cache_check(f.cache), 0);
	wait_for(&r);
	check_content(i, 1.0f);
	cache_release(f.tenant, r.handle);
}

/* ---- what does not work ---- */

/* Damage is a miss of that plane and of what is worse; what is better can still be read. */
static void test_damage(void **state)
{
	struct cache_block_result at;
	struct reader r;
	unsigned i;

	(void)state;
	fill();
	i = cold_leaf();
	disk_ram_damage(&key[i], 1);
	ask(i, 1.0f, 1.0f, &r);
	wait_for(&r);
	assert_int_equal(r.fetch.error, -EBADMSG);
	assert_int_equal(cache_look(f.tenant, r.handle, &at), KVG_CODE_OK);
	assert_int_equal(at.mapped, 1);
	assert_int_equal(at.held, 1);
	check_content(i, .1f);
	cache_release(f.tenant, r.handle);
	assert_int_equal(
		cache_acquire(f.tenant, f.layout, &key[i], 1.0f, &at), KVG_CODE_BELOW_RETENTION);
	run_loop(&f, 20);
	assert_int_equal(find(i)->held, 1);
}

static void test_damaged_best_plane(void **state)
{
	struct reader r;
	unsigned i;

	(void)state;
	fill();
	i = cold_leaf();
	disk_ram_damage(&key[i], 0);
	ask(i, 1.0f, 1.0f, &r);
	wait_for(&r);
	assert_int_equal(r.fetch.error, -EBADMSG);
	assert_null(find(i)); /* a miss at once, whoever has it pinned */
	cache_release(f.tenant, r.handle);
	run_loop(&f, 20);
	assert_int_equal(put(i, i), KVG_CODE_OK); /* and can be put anew */
	check_content(i, 1.0f);
}

/* Whole bytes, the right key, and not of this layout. */
static void test_forged(void **state)
{
	struct reader r;
	unsigned i;

	(void)state;
	fill();
	i = cold_leaf();
	disk_ram_forge(&key[i], 0);
	ask(i, 1.0f, 1.0f, &r);
	wait_for(&r);
	assert_int_equal(r.fetch.error, -EBADMSG);
	assert_null(find(i));
	cache_release(f.tenant, r.handle);
}

static void test_read_error(void **state)
{
	struct reader r;
	unsigned i;

	(void)state;
	fill();
	i = cold_leaf();
	disk_ram.load_error = -EIO;
	ask(i, 1.0f, 1.0f, &r);
	wait_for(&r);
	disk_ram.load_error = 0;
	assert_int_equal(r.fetch.error, -EIO);
	assert_null(find(i));
	cache_release(f.tenant, r.handle);
}

/* A disk that takes nothing is as good as none: blocks leave for good, leaf before root. */
static void test_refusals(void **state)
{
	static const int refusals[] = {-ENOSPC, -EDQUOT, -EROFS};

	(void)state;
	for (unsigned k = 0; k < 3; k++) {
		unsigned there = 0;

		disk_ram.refuse_store = refusals[k];
		for (unsigned i = 0; i < BLOCKS; i++)
			assert_int_equal(put(i, 1000 * (k + 1) + i), KVG_CODE_OK);
		for (unsigned i = 0; i < BLOCKS; i++)
			there += find(i) != NULL;
		assert_true(there > 0 && there < BLOCKS);
		assert_int_equal(disk_ram.stores, 0);
		assert_int_equal(cache_check(f.cache), 0);
	}
}

/* Writes fail, and nothing leaves memory because of them; when the disk says so, blocks go. */
static void test_write_errors(void **state)
{
	(void)state;
	disk_ram.store_error = -EIO;
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	for (unsigned n = 0; n < 20; n++) {
		evict_round(f.tenant, 400000, 0);
		run_loop(&f, 5);
	}
	assert_true(disk_ram.stores > 0);
	for (unsigned i = 0; i < 60; i++)
		assert_true(find(i) && find(i)->mapped == find(i)->planes);
	disk_ram.refuse_store = -EROFS;
	assert_int_equal(evict_round(f.tenant, 400000, 0), EVICTED_SOME);
}

/* The disk takes no more, and what lies there hangs on blocks in memory: those go with all of it, none without its parent. */
static void test_refused_with_blocks_below(void **state)
{
	static struct kvg_key more[BLOCKS];
	unsigned gone = 0;

	(void)state;
	fill();
	disk_ram.refuse_store = -EROFS;
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(put_block(&f, f.layout, 5000 + i, i % CHAIN ? &more[i - 1] : NULL,
					 &more[i]),
			KVG_CODE_OK);
	assert_int_equal(cache_check(f.cache), 0);
	for (unsigned i = 0; i < BLOCKS; i++) {
		gone += !find(i);
		assert_true(!find(i) || i % CHAIN == 0 || find(i - 1));
	}
	assert_true(gone > 0);
}

/* The disk is nearly full of better things: what is worth less than they goes for good, and is not written. */
static void test_admission(void **state)
{
	unsigned there = 0;

	(void)state;
	disk_ram.free_segments = 0;
	f.tenant->below_worth = 1e30;
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	for (unsigned i = 0; i < BLOCKS; i++)
		there += find(i) != NULL;
	assert_int_equal(disk_ram.stores, 0);
	assert_true(there > 0 && there < BLOCKS);
	f.tenant->below_worth = 0;
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(put(i, 5000 + i), KVG_CODE_OK);
	assert_true(disk_ram.stores > 0);
}

/* The log makes room: what was read since it was written stays, the rest goes with all that hangs on it. */
static void test_the_log_gives_up(void **state)
{
	unsigned there = 0;

	(void)state;
	fill();
	for (unsigned i = 0; i < CHAIN; i++)
		find(i)->used = UINT8_MAX;
	assert_true(disk_ram_clean(f.cache->disk) > 0);
	run_loop(&f, 4 * BLOCKS);
	assert_int_equal(cache_check(f.cache), 0);
	for (unsigned i = 0; i < CHAIN; i++)
		assert_true(find(i) && find(i)->held);
	for (unsigned i = CHAIN; i < BLOCKS; i++) {
		const struct block *b = find(i);

		there += b != NULL;
		assert_true(!b || b->held == b->mapped);
		assert_true(!b || i % CHAIN == 0 || find(i - 1));
	}
	assert_true(there > 0 && there < BLOCKS - CHAIN);
}

static void test_purge_erases(void **state)
{
	struct cache_purge_result gone;

	(void)state;
	fill();
	cache_purge(f.tenant, 0, NULL, 0, &gone);
	assert_int_equal(gone.blocks, BLOCKS);
	assert_int_equal(f.tenant->n_blocks, 0);
	assert_int_equal(disk_ram_live(), 0);
	assert_true(disk_ram.erased > 0);
}

static void purged(void *userdata, const struct cache_purge_result *r)
{
	*(struct cache_purge_result *)userdata = *r;
}

/* What is on its way is not forgotten by a purge. */
static void test_purge_waits(void **state)
{
	const struct cache_purge_request q = {0};
	struct cache_purge_result gone = {0};

	(void)state;
	disk_ram.hold_stores = true;
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	evict_round(f.tenant, 400000, 0);
	assert_true(f.tenant->sinking > 0);
	assert_int_equal(cache_purge_start(f.tenant, &q, purged, &gone), 0);
	run_loop(&f, 50);
	assert_int_equal(gone.blocks, 0);
	disk_ram.hold_stores = false;
	disk_ram_let_go(f.cache->disk);
	for (unsigned n = 0; !gone.blocks && n < 1000; n++)
		loop_run_once(f.loop, 10);
	assert_int_equal(gone.blocks, 60);
	assert_int_equal(gone.pinned, 0);
	assert_int_equal(disk_ram_live(), 0);
}

/* Slots run out before memory does: blocks that are only below make way, too. */
static void test_slots(void **state)
{
	(void)state;
	fixture_stop(&f);
	disk_ram_reset();
	start(128, IN_FLIGHT);
	fill();
	assert_true(f.tenant->n_blocks <= 128 && f.tenant->n_blocks > 64);
}

/* ---- the next daemon, to which nobody keeps memory ---- */

static void drained(void *userdata)
{
	*(bool *)userdata = true;
}

static void restart(void)
{
	assert_int_equal(cache_check(f.cache), 0);
	fixture_stop(&f);
	start(0, IN_FLIGHT);
}

static void test_cold_start(void **state)
{
	bool done = false;

	(void)state;
	fill();
	cache_drain(f.cache, loop_now_ns() + 60000000000ull, drained, &done);
	for (unsigned n = 0; !done && n < 10000; n++)
		loop_run_once(f.loop, 10);
	assert_true(done);
	restart();
	assert_int_equal(f.tenant->n_blocks, BLOCKS);
	assert_int_equal(f.tenant->used, 0);
	for (unsigned i = 0; i < BLOCKS; i++)
		read_all(i);
}

/* What is written of a chain begins at its root. */
static void test_drain_in_part(void **state)
{
	bool done = false;
	unsigned whole = 0;

	(void)state;
	for (unsigned i = 0; i < 64; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	disk_ram.stores_max = 100;
	cache_drain(f.cache, loop_now_ns() + 60000000000ull, drained, &done);
	for (unsigned n = 0; !done && n < 1000; n++)
		loop_run_once(f.loop, 10);
	assert_true(done);
	assert_int_equal(disk_ram.stores, 100);
	disk_ram.stores_max = 0;
	restart();
	for (unsigned i = 0; i < 64; i++)
		whole += find(i) && find(i)->held == find(i)->planes;
	assert_int_equal(whole, 100 / FIXTURE_PLANES);
}

static void test_drain_in_no_time(void **state)
{
	bool done = false;

	(void)state;
	for (unsigned i = 0; i < 60; i++)
		assert_int_equal(put(i, i), KVG_CODE_OK);
	cache_drain(f.cache, loop_now_ns(), drained, &done);
	for (unsigned n = 0; !done && n < 1000; n++)
		loop_run_once(f.loop, 10);
	assert_true(done);
	assert_int_equal(disk_ram.stores, 0);
}

/* Without a drain: what had gone down, as far as it hangs together. */
static void test_crash_start(void **state)
{
	unsigned there = 0, planes = 0, before;

	(void)state;
	fill();
	before = disk_ram_live();
	restart();
	for (unsigned i = 0; i < BLOCKS; i++)
		planes += find(i) ? plane_count(find(i)->held) : 0;
	assert_int_equal(disk_ram_live(), planes);
	assert_true(before > planes); /* what is worth nothing without the rest */
	assert_int_equal(disk_ram.erased, before - planes);
	for (unsigned i = 0; i < BLOCKS; i++) {
		struct reader r;

		if (!find(i))
			continue;
		there++;
		assert_true(i % CHAIN == 0 || find(i - 1));
		ask(i, 0.0f, 1.0f, &r);
		wait_for(&r);
		assert_int_equal(r.fetch.error, 0);
		check_content(i, 0.0f);
		assert_true(find(i)->mapped == find(i)->held);
		cache_release(f.tenant, r.handle);
	}
	assert_true(there > 0 && there < BLOCKS);
}

int main(void)
{
#define T(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
	const struct CMUnitTest tests[] = {
		T(test_nothing_is_lost),
		T(test_clean_sinks_for_nothing),
		T(test_best_planes_of_all_come_first),
		T(test_who_wants_everything),
		T(test_tenants_take_turns),
		T(test_part_of_a_block),
		T(test_read_on_the_way_down),
		T(test_touched_on_the_way_down),
		T(test_ahead),
		T(test_out_of_order),
		T(test_damage),
		T(test_forged),
		T(test_damaged_best_plane),
		T(test_read_error),
		T(test_refusals),
		T(test_write_errors),
		T(test_refused_with_blocks_below),
		T(test_admission),
		T(test_the_log_gives_up),
		T(test_purge_erases),
		T(test_purge_waits),
		T(test_slots),
		T(test_cold_start),
		T(test_drain_in_part),
		T(test_drain_in_no_time),
		T(test_crash_start),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
