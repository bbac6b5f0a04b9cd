/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Planes on a GPU as a client has them: daemon, mover and library, over LIBCUDA - a driver without a GPU, or the real one
 * (tests/gpu). Bytes on the device against those of memory; movers that are killed under load; a daemon that is, under its keeper.
 */
#include <assert.h>
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "gpu/device.h"
#include "gpu/table.h"
#include "tests/lib/harness.h"

enum {
	BLOCKS = 24,
	KILLS = 60 /* each costs the pause before the next start */
};

static struct daemon_process d;
static struct gpu_driver *driver;
static struct gpu_device *gpu;
static char config[1000];

static const char *library(void)
{
	return getenv("KVGATE_TEST_LIBCUDA") ? getenv("KVGATE_TEST_LIBCUDA") : LIBCUDA;
}

static const char *mover(void)
{
	return getenv("KVGATE_TEST_MOVER") ? getenv("KVGATE_TEST_MOVER") : MOVER;
}

static const char *configured(const char *devices, const char *bytes)
{
	snprintf(config, sizeof(config),
		"[memory]\nhost_bytes = 64MiB\nsegment_bytes = 4MiB\nindex_slots = 1024\nprefault "
		"= no\n"
		"[gpu]\ndevices = %s\nbytes = %s\nlibrary = %s\nmover = %s\n",
		devices, bytes, library(), mover());
	return config;
}

static int setup(void **state)
{
	char why[GPU_WHY_BYTES];

	(void)state;
	if (gpu_driver_open_as(library(), &driver, why, sizeof(why)) < 0 ||
		gpu_device_open(driver, 0, &gpu, why, sizeof(why)) < 0) {
		fprintf(stderr, "%s\n", why);
		exit(77);
	}
	return 0;
}

static int teardown(void **state)
{
	(void)state;
	gpu = gpu_device_close(gpu);
	driver = gpu_driver_close(driver);
	return 0;
}

/* ---- a client ---- */

struct user {
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_device *device;
	struct kvg_key key[BLOCKS];
};

static void user_init(struct user *u, uint64_t seed)
{
	const struct kvg_device_options o = {.size = sizeof(o), .library = library()};

	u->c = client_open(&d);
	u->l = model_register(u->c, &model_deep);
	assert_int_equal(chain_put(u->c, u->l, &model_deep, seed, BLOCKS, u->key), KVG_CODE_OK);
	if (kvg_device_open(u->c, &o, &u->device) < 0)
		fail_msg("%s", kvg_last_error(u->c));
}

static void user_fini(struct user *u)
{
	kvg_device_close(u->device);
	kvg_close(u->c);
}

static void same(uint64_t device, const void *host, size_t bytes)
{
	static uint8_t got[8 << 20];

	assert_true(bytes <= sizeof(got));
	assert_int_equal(driver->cuMemcpyDtoH(got, device, bytes), CUDA_SUCCESS);
	assert_memory_equal(got, host, bytes);
}

/* Every part of every plane that the device has of it; their bits. */
static unsigned compare(struct user *u, const struct kvg_pin *pin)
{
	struct kvg_device_plane on[KVG_PLANES_MAX];
	struct kvg_plane in[KVG_PLANES_MAX];
	const struct test_model *m = &model_deep;
	unsigned bits = 0;
	int n = kvg_device_planes(u->device, u->l, pin, on);
	int all = kvg_planes(u->l, pin, in);

	if (n < 0)
		fail_msg("%s", kvg_last_error(u->c));
	assert_true(all > 0 && n <= all);
	for (int i = 0; i < n; i++) {
		const struct kvg_device_plane *a = &on[i];
		const struct kvg_plane *b = &in[i];

		assert_true(a->plane == b->plane && a->pairs == b->pairs && a->bytes == b->bytes);
		same(a->cu, b->cu, (m->layers * m->heads + 1) * sizeof(uint32_t));
		same(a->index, b->index, a->pairs * sizeof(uint16_t));
		same(a->score, b->score, a->pairs * sizeof(uint16_t));
		same(a->k, b->k, a->pairs * m->k_dim * 2ul);
		same(a->v, b->v, a->pairs * m->v_dim * 2ul);
		bits |= 1u << a->plane;
	}
	return bits;
}

static void release(struct user *u, const struct kvg_acquired *got, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (got[i].code == KVG_CODE_OK)
			assert_int_equal(kvg_release(u->c, &got[i].handle, 1), 0);
}

/* ---- */

static double now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void test_read(void **state)
{
	struct kvg_acquired got[BLOCKS];
	struct kvg_device_plane planes[KVG_PLANES_MAX];
	struct kvg_pin pin[BLOCKS];
	struct user u;
	double us;

	(void)state;
	daemon_start(&d, configured("0", "32MiB"));
	user_init(&u, 1);
	assert_int_equal(kvg_prefix_pin(u.l, u.key, BLOCKS, 0, pin), BLOCKS);
	assert_int_equal(compare(&u, &pin[0]), 0); /* nobody asked for it */
	assert_int_equal(kvg_device_acquire(u.device, u.l, u.key, 1, 0, 1e-6f, 0, got), 1);
	assert_int_equal(compare(&u, &pin[0]), 1); /* its best plane */
	release(&u, got, 1);
	assert_int_equal(kvg_device_acquire(u.device, u.l, u.key, BLOCKS, 0, 1, 1, got), BLOCKS);
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(compare(&u, &pin[i]), pin[i].held);
	release(&u, got, BLOCKS);
	pin[1].held = 1; /* as if the others had been on their way out when it was pinned */
	assert_int_equal(compare(&u, &pin[1]), 1);
	pin[1].held = pin[0].held;
	us = now_us();
	for (unsigned i = 0; i < 1000 * BLOCKS; i++)
		assert_true(kvg_device_planes(u.device, u.l, &pin[i % BLOCKS], planes) > 0);
	print_message("kvg_device_planes: %.2f us\n", (now_us() - us) / 1000 / BLOCKS);
	kvg_unpin(u.c, pin, BLOCKS);
	assert_int_equal(kvg_device_planes(u.device, u.l, &pin[0], planes), -EINVAL);
	assert_true(client_counter(u.c, "kvgate_replicated_planes_total") >= BLOCKS);
	user_fini(&u);
	daemon_check_alive(&d);
	daemon_stop(&d);
	daemon_cleanup(&d);
}

static void note(void *userdata, const struct kvg_device_entry *e)
{
	*(struct kvg_device_entry *)userdata = *e;
}

/* Less room than there is to hold, movers killed at any moment: what the device is said to have it has. */
static void test_kills(void **state)
{
	struct kvg_device_entry e = {0};
	unsigned seed = 5, kills = 0, found = 0;
	uint64_t killed = 0;
	struct user u;
	char why[100];

	(void)state;
	daemon_start(&d, configured("all", "4MiB"));
	user_init(&u, 1);
	while (kills < KILLS) {
		const unsigned i = rand_r(&seed) % BLOCKS;
		struct kvg_pin pin;

		kvg_device_prefetch(u.device, u.l, &u.key[i], 1, (float)(rand_r(&seed) % 4) / 3);
		if (rand_r(&seed) % 4 == 0) {
			assert_int_equal(kvg_devices(u.c, note, &e, why, sizeof(why)), 0);
			/* one that only starts now and then: the pause before the next doubles with each */
			if (e.mover && e.starts != killed &&
				rand_r(&seed) % (e.ready ? 60 : 2000) == 0) {
				killed = e.starts;
				kills += kill((pid_t)e.mover, SIGKILL) == 0;
			}
		}
		assert_int_equal(kvg_lookup_pin(u.l, &u.key[rand_r(&seed) % BLOCKS], 1, &pin), 0);
		found += compare(&u, &pin) != 0;
		kvg_unpin(u.c, &pin, 1);
	}
	for (unsigned i = 0; i < BLOCKS; i++) { /* and no block lost a byte */
		struct kvg_pin pin;

		assert_int_equal(kvg_lookup_pin(u.l, &u.key[i], 1, &pin), 0);
		assert_int_equal(kvg_verify(u.l, &pin), 0);
		assert_true(content_compare(&model_deep, 1 + i, u.l, &pin) > 0);
		kvg_unpin(u.c, &pin, 1);
	}
	print_message("%u kills, %u looks found planes\n", kills, found);
	assert_true(found > KILLS);
	user_fini(&u);
	daemon_check_alive(&d);
	daemon_stop(&d);
	daemon_cleanup(&d);
}

/* Killed under its keeper, with copies on their way: what was there is there, at the same addresses, and it goes on. */
static void test_restart(void **state)
{
	static const char *const keeper[] = {"--keeper", NULL};
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_device_options device = {.size = sizeof(device), .library = library()};
	struct kvg_device_plane before[KVG_PLANES_MAX], after[KVG_PLANES_MAX];
	struct kvg_acquired got[BLOCKS];
	struct kvg_pin pin[BLOCKS];
	struct user u;

	(void)state;
	daemon_spawn(&d, configured("0", "16MiB"), keeper);
	assert_true(daemon_wait_ready(&d));
	o.socket = d.socket;
	o.resume_ms = 20000;
	assert_int_equal(kvg_open(&o, &u.c), 0);
	u.l = model_register(u.c, &model_deep);
	assert_int_equal(chain_put(u.c, u.l, &model_deep, 1, BLOCKS, u.key), KVG_CODE_OK);
	assert_int_equal(kvg_device_open(u.c, &device, &u.device), 0);
	assert_int_equal(kvg_prefix_pin(u.l, u.key, BLOCKS, 1, pin), BLOCKS);
	assert_int_equal(
		kvg_device_acquire(u.device, u.l, u.key, BLOCKS / 2, 0, 1, 1, got), BLOCKS / 2);
	assert_true(kvg_device_planes(u.device, u.l, &pin[0], before) > 0);
	for (unsigned life = 0; life < 5; life++) {
		kvg_device_prefetch(u.device, u.l, u.key, BLOCKS, 1);
		usleep(life * 700);
		kill(daemon_serving(&d), SIGKILL);
		while (kvg_resume(u.c) < 0)
			usleep(10000);
		assert_true(kvg_device_planes(u.device, u.l, &pin[0], after) > 0);
		assert_true(after[0].k == before[0].k && after[0].payload == before[0].payload);
		for (unsigned i = 0; i < BLOCKS / 2; i++)
			assert_int_equal(compare(&u, &pin[i]), pin[i].held);
		for (unsigned i = BLOCKS / 2; i < BLOCKS; i++)
			compare(&u, &pin[i]);
	}
	assert_int_equal(kvg_device_acquire(u.device, u.l, u.key, BLOCKS, 0, 1, 1, got), BLOCKS);
	for (unsigned i = 0; i < BLOCKS; i++)
		assert_int_equal(compare(&u, &pin[i]), pin[i].held);
	user_fini(&u);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

/* A daemon without any says so, and why, and serves. */
static void test_none(void **state)
{
	static const struct {
		const char *devices, *says;
	} cases[] = {{"9", "device 9"}, {"none", "gpu_devices"}, {"", ""}};
	struct kvg_device_options o = {.size = sizeof(o), .library = library()};

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct kvg_device_entry e = {0};
		struct kvg_device *device = NULL;
		struct kvg_key key;
		struct kvg_client *c;
		char why[300];

		daemon_start(&d, configured(cases[i].devices, "4MiB"));
		c = client_open(&d);
		assert_int_equal(kvg_devices(c, note, &e, why, sizeof(why)), 0);
		assert_true(!e.size && strstr(why, cases[i].says));
		assert_int_equal(kvg_device_open(c, &o, &device), -ENOENT);
		assert_non_null(strstr(kvg_last_error(c), "GPU"));
		assert_int_equal(
			chain_put(c, model_register(c, &model_small), &model_small, 1, 1, &key),
			KVG_CODE_OK);
		kvg_close(c);
		daemon_stop(&d);
		daemon_cleanup(&d);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_read),
		cmocka_unit_test(test_kills),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_none),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
