/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Rounds of stores, forgets, erases and cleaning on devices that misbehave, each ended by a kill or a power cut: what a sync had
 * acknowledged is found and right, what was erased before it is not found, and nothing that is loaded is ever wrong.
 * KVGATE_CHAOS_ROUNDS multiplies the rounds.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/base/log.h"
#include "tests/unit/disk_fixture.h"

enum {
	PLANES = 120
};

static struct fixture f;
static uint64_t seed;

static uint32_t rnd(uint32_t below)
{
	seed = seed * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((seed >> 33) % below);
}

/* What a test may rely on, of one plane. */
struct promise {
	bool kept;   /* a sync came after it was stored, and nobody has given it up */
	bool erased; /* a sync came after it was erased, and it was not stored again since */
	bool open;   /* it was erased, or stored, and no sync came since */
};
static struct promise promise[PLANES];

static void erase(struct plane *p)
{
	disk_erase(f.d, p->at);
	p->there = false;
	promise[p->id] = (struct promise){.open = true};
	p->erased = true;
}

static void sync_all(void)
{
	fix_wait(&f);
	if (fix_sync(&f) < 0) { /* so what was erased since the last one may be found again */
		for (uint32_t i = 0; i < PLANES; i++) {
			f.plane[i].erased = f.plane[i].erased && !promise[i].open;
			promise[i].kept = promise[i].kept && f.plane[i].there;
		}
		return;
	}
	for (uint32_t i = 0; i < PLANES; i++) {
		promise[i].kept = f.plane[i].there;
		promise[i].erased = !f.plane[i].there && f.plane[i].erased;
		promise[i].open = false;
	}
}

static void step(bool pressure)
{
	struct plane *p = plane_of(&f, rnd(PLANES), 0, 1);
	uint32_t what = rnd(100);

	p->wanted = !pressure || rnd(4) == 0;
	if (p->busy)
		return;
	if (!p->there) {
		if (what < 70 && plane_store(p) == 0) {
			promise[p->id] = (struct promise){.open = true};
			p->erased = false;
		}
	} else if (what < 30) {
		erase(p);
	} else if (what < 60) {
		int r = plane_get(p); /* compares the bytes */

		if (r == -EBADMSG && p->there)
			erase(p);
	}
	if (rnd(8) == 0)
		loop_run_once(f.loop, 0);
	if (rnd(40) == 0)
		sync_all();
	/* what cleaning dropped is nobody's promise */
	for (uint32_t i = 0; i < PLANES; i++)
		if (!f.plane[i].there && promise[i].kept)
			promise[i].kept = false;
}

/* harm: what is read may be damaged or unreadable, so anything may be lost, but nothing may be wrong. */
static void check(bool harm)
{
	for (uint32_t i = 0; i < PLANES; i++) {
		struct plane *p = &f.plane[i];
		int r;

		if (promise[i].kept && !harm)
			assert_true(p->there);
		if (promise[i].erased && !harm)
			assert_false(p->there);
		if (!p->there)
			continue;
		r = plane_get(p);
		assert_true(r == 0 || r == -EBADMSG || (r == -EIO && harm));
		if (promise[i].kept && !harm)
			assert_int_equal(r, 0);
		if (r < 0) {
			disk_erase(f.d, p->at);
			p->there = false;
		}
	}
	memset(promise, 0, sizeof(promise));
	for (uint32_t i = 0; i < PLANES; i++)
		f.plane[i].erased = false;
	if (fix_sync(&f) == 0)
		for (uint32_t i = 0; i < PLANES; i++)
			promise[i].kept = f.plane[i].there;
}

static unsigned rounds(unsigned n)
{
	const char *more = getenv("KVGATE_CHAOS_ROUNDS");

	return n * (more && atoi(more) > 0 ? (unsigned)atoi(more) : 1);
}

static void setup(uint64_t of, uint32_t segments, unsigned devices)
{
	seed = of;
	log_set_level(LOG_LEVEL_ERROR);
	fix_new(&f, devices, segments);
	memset(promise, 0, sizeof(promise));
	for (uint32_t i = 0; i < PLANES; i++)
		plane_of(&f, i, i % 3, 1000 + rnd(9000));
}

static void reopen(void)
{
	for (uint32_t i = 0; i < PLANES; i++)
		f.plane[i].wanted = true; /* until everything has been looked at */
	fix_open(&f);
	assert_int_equal(f.bad, 0);
}

static void run(const struct io_fault *fault, unsigned n, bool pressure, bool harm)
{
	for (unsigned i = 0; i < n; i++) {
		struct io_fault now = *fault;

		now.seed = seed ^ i;
		f.o.fault = rnd(4) && fault->hold_writes ? &now : fault->hold_writes ? NULL : &now;
		reopen();
		check(harm);
		for (uint32_t k = 20 + rnd(300); k; k--)
			step(pressure);
		if (rnd(5) == 0)
			sync_all();
		if (f.o.fault && f.o.fault->hold_writes) {
			fix_kill(&f, true);
		} else if (rnd(2)) {
			fix_kill(&f, false);
		} else {
			fix_close(&f);
		}
	}
	f.o.fault = NULL;
	reopen();
	check(harm);
	fix_free(&f);
}

static void test_power_cut(void **state)
{
	const struct io_fault fault = {.hold_writes = true};

	(void)state;
	setup(1, 40, 1);
	run(&fault, rounds(60), false, false);
}

static void test_power_cut_cleaning(void **state)
{
	const struct io_fault fault = {.hold_writes = true};

	(void)state;
	setup(2, 16, 2);
	run(&fault, rounds(60), true, false);
}

static void test_flips(void **state)
{
	const struct io_fault fault = {
		.hold_writes = true, .read_flip = 20000, .write_flip = 20000};

	(void)state;
	setup(3, 24, 1);
	run(&fault, rounds(40), true, true);
}

/* Writes fail, in part or altogether, and the device is full now and then: what a sync has answered for holds all the same. */
static void test_write_errors(void **state)
{
	const struct io_fault fault = {
		.hold_writes = true, .write_error = 20000, .no_space = 20000};

	(void)state;
	setup(4, 40, 2);
	run(&fault, rounds(150), false, false);
	setup(5, 16, 1);
	run(&fault, rounds(150), true, false);
}

static void test_read_errors(void **state)
{
	const struct io_fault fault = {.hold_writes = true,
		.read_error = 20000,
		.read_flip = 5000,
		.write_error = 5000,
		.no_space = 5000};

	(void)state;
	setup(6, 24, 1);
	run(&fault, rounds(40), true, true);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_power_cut),
		cmocka_unit_test(test_power_cut_cleaning),
		cmocka_unit_test(test_flips),
		cmocka_unit_test(test_write_errors),
		cmocka_unit_test(test_read_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
