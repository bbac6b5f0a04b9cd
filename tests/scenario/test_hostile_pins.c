/* SPDX-License-Identifier: Apache-2.0 */
/* A client writes whatever it likes into its pin page: nobody else notices. */
#include <assert.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/shm.h"
#include "tests/lib/harness.h"
#include "tests/lib/raw.h"

#define CHAINS 200

/* Opens a session by hand and returns its pin page, mapped for writing. */
static uint8_t *open_pin_page(const struct daemon_process *d, size_t *ret_bytes, int *ret_sock)
{
	Kvgate__V1__Request q = KVGATE__V1__REQUEST__INIT;
	Kvgate__V1__Hello h = KVGATE__V1__HELLO__INIT;
	struct raw_reply r;
	struct stat st;
	uint8_t *page;

	*ret_sock = raw_connect(d);
	h.version_min = h.version_max = 1;
	q.id = 1;
	q.body_case = KVGATE__V1__REQUEST__BODY_HELLO;
	q.hello = &h;
	raw_send(*ret_sock, &q);
	assert(raw_recv(*ret_sock, &r) && r.n_fds == 2);
	assert(fstat(r.fds[1], &st) == 0);
	assert(ftruncate(r.fds[1], 0) < 0); /* sealed: the daemon cannot be hit by SIGBUS */
	assert(ftruncate(r.fds[1], st.st_size * 2) < 0);
	page = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, r.fds[1], 0);
	assert(page != MAP_FAILED);
	*ret_bytes = (size_t)st.st_size;
	raw_reply_free(&r);
	return page;
}

struct attack {
	const struct daemon_process *d;
	int kind;
};

static int scribble(void *arg)
{
	const struct attack *a = arg;
	size_t bytes;
	int sock;
	uint8_t *page = open_pin_page(a->d, &bytes, &sock);
	struct timespec until, now;

	srand((unsigned)a->kind);
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += 2;
	do {
		switch (a->kind) {
		case 0: /* noise everywhere, header included */
			for (size_t i = 0; i < 4096; i++)
				page[(size_t)rand() % bytes] = (uint8_t)rand();
			break;
		case 1:
			memset(page, 0xff, bytes);
			break;
		case 2: /* pins every slot there could be, of every generation up to 4 */
			for (size_t i = 0; i < (bytes - 128) / 8; i++)
				((uint64_t *)(page + 128))[i] = (uint64_t)(1 + i % 4) << 32 | i / 4;
			((struct kvg_shm_pins *)page)->pins_high = 0xffffffffu;
			break;
		default: /* holes: the pages go away under the daemon */
			madvise(page, bytes, MADV_REMOVE);
			memset(page, 0x55, bytes / 2);
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < until.tv_sec);
	close(sock);
	return 0;
}

static void test_scribbled_pin_pages(void **state)
{
	struct daemon_process d;
	struct attack attacks[4];
	pid_t pids[4];
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key;
	uint64_t put = 0;

	(void)state;
	daemon_start(&d, "[memory]\nhost_bytes = 8MiB\nsegment_bytes = 4MiB\nindex_slots = 4096\n");
	c = client_open(&d);
	l = model_register(c, &model_small);
	for (int i = 0; i < 4; i++) {
		attacks[i] = (struct attack){.d = &d, .kind = i};
		pids[i] = child_start(0, scribble, &attacks[i]);
	}
	for (int round = 0; round < 3; round++)
		for (uint64_t i = 0; i < CHAINS; i++) {
			struct kvg_pin pin;
			/* one attacker of the same tenant may pin everything: then it is NO_SPACE, never worse */
			int code =
				chain_put(c, l, &model_small, 1000u * (uint64_t)round + i, 1, &key);

			assert_true(code == KVG_CODE_OK || code == KVG_CODE_NO_SPACE ||
				code == KVG_CODE_EXISTS);
			if (code == KVG_CODE_OK && kvg_lookup_pin(l, &key, 0.f, &pin) == 0) {
				content_compare(&model_small, 1000u * (uint64_t)round + i, l, &pin);
				kvg_unpin(c, &pin, 1);
				put++;
			}
		}
	for (int i = 0; i < 4; i++)
		assert_int_equal(child_wait(pids[i]), 0);
	assert_true(put > 0);
	client_wait_counter(c, "kvgate_sessions", 1);
	/* with the attackers gone, so are their pins */
	for (uint64_t i = 0; i < CHAINS; i++)
		assert_int_equal(chain_put(c, l, &model_small, 90000 + i, 1, &key), KVG_CODE_OK);
	kvg_close(c);
	assert_int_equal(daemon_stop(&d), 0);
	daemon_cleanup(&d);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_scribbled_pin_pages),
	};
	return cmocka_run_group_tests(tests, NULL, NULL);
}
