/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Pages by lists, by both kernels, against the twin: host to device, device to host, within the device; from a mapping
 * that cannot be written. Destinations are poisoned, and what is not in a list must stay so.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/move.h"
#include "gpu/vmm.h"
#include "tests/gpu/rig.h"

#define ROUNDS 24

/* A memory of n pages, as the device and as the host has it. */
struct side {
	bool of_device;
	uint64_t address; /* the device's */
	char *host;       /* of the device's: a copy that the twin works on */
	int fd;
	void *read_only;
	uint64_t read_only_address;
};

struct round {
	struct rig *rig;
	struct gpu_move *move;
	size_t page, n;
};

static void must(int r, const char *why)
{
	if (r < 0)
		rig_die("%s", why);
}

static void side_init(struct side *s, const struct round *r, bool of_device, uint64_t *state)
{
	const size_t bytes = (r->page * r->n + 4095) / 4096 * 4096;
	char why[GPU_WHY_BYTES];

	*s = (struct side){.of_device = of_device, .fd = memfd_create("pages", MFD_CLOEXEC)};
	if (s->fd < 0 || ftruncate(s->fd, bytes) < 0)
		rig_die("no memory for pages");
	s->host = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	s->read_only = mmap(NULL, bytes, PROT_READ, MAP_SHARED, s->fd, 0);
	for (size_t i = 0; i < bytes / 8; i++)
		((uint64_t *)(void *)s->host)[i] = rig_random(state);
	if (of_device) {
		s->address = rig_upload(r->rig, s->host, bytes);
		return;
	}
	must(gpu_host_map(r->rig->device, s->host, bytes, true, &s->address, why, sizeof(why)),
		why);
	must(gpu_host_map(r->rig->device, s->read_only, bytes, false, &s->read_only_address, why,
		     sizeof(why)),
		why);
}

static void side_fini(struct side *s, const struct round *r)
{
	const size_t bytes = (r->page * r->n + 4095) / 4096 * 4096;
	char why[GPU_WHY_BYTES];

	if (s->of_device)
		rig_free(r->rig, s->address);
	else {
		must(gpu_host_unmap(r->rig->device, s->host, why, sizeof(why)), why);
		must(gpu_host_unmap(r->rig->device, s->read_only, why, sizeof(why)), why);
	}
	munmap(s->host, bytes);
	munmap(s->read_only, bytes);
	close(s->fd);
}

static void shuffle(uint32_t *order, size_t n, uint64_t *state)
{
	for (size_t i = 0; i < n; i++) {
		const size_t j = rig_below(state, i + 1);

		order[i] = order[j];
		order[j] = i;
	}
}

static void move_once(const struct round *r, struct side *to, struct side *from,
	const struct gpu_move_how *how, size_t pages, uint64_t *state)
{
	const size_t bytes = r->page * r->n;
	uint64_t list[4][r->n ? r->n : 1];
	uint32_t order[2][r->n];
	struct move_args args = {.pages = pages, .page_bytes = r->page, .to_host = !to->of_device},
			 twin = args;
	char *got = malloc(bytes), why[GPU_WHY_BYTES];
	const uint64_t source = from->of_device ? from->address : from->read_only_address;

	shuffle(order[0], r->n, state);
	shuffle(order[1], r->n, state);
	for (size_t i = 0; i < pages; i++) {
		list[0][i] = to->address + order[0][i] * r->page;
		list[1][i] = source + order[1][i] * r->page;
		list[2][i] = (uint64_t)(uintptr_t)to->host + order[0][i] * r->page;
		list[3][i] = (uint64_t)(uintptr_t)from->host + order[1][i] * r->page;
	}
	args.to = rig_upload(r->rig, list[0], pages * 8);
	args.from = rig_upload(r->rig, list[1], pages * 8);
	memset(to->host, RIG_POISON, bytes);
	if (to->of_device)
		rig_poison(r->rig, to->address, bytes);
	must(gpu_move_pages(r->move, r->rig->stream, &args, how, why, sizeof(why)), why);
	rig_sync(r->rig);
	if (to->of_device)
		rig_download(r->rig, got, to->address, bytes);
	else
		memcpy(got, to->host, bytes);
	memset(to->host, RIG_POISON, bytes);
	twin.to = (uint64_t)(uintptr_t)list[2];
	twin.from = (uint64_t)(uintptr_t)list[3];
	move_twin(&twin);
	if (memcmp(got, to->host, bytes))
		rig_die("%zu of %zu pages of %zu bytes, %s to %s, %s with %u blocks: not what the "
			"twin has",
			pages, r->n, r->page, from->of_device ? "device" : "host",
			to->of_device ? "device" : "host", how && how->bulk ? "bulk" : "plain",
			how ? how->blocks : 0);
	free(got);
	rig_free(r->rig, args.to);
	rig_free(r->rig, args.from);
}

static void test_round(struct rig *rig, struct gpu_move *m, uint64_t seed)
{
	static const size_t sizes[] = {16, 48, 4096, 16384, 20480, 65536, 262144};
	const bool bulk = gpu_device_info(rig->device)->major >= 9;
	uint64_t state = rig_seed(seed);
	struct round r = {.rig = rig, .move = m, .page = sizes[rig_below(&state, 7)]};
	struct side to, from;

	r.n = 1 + rig_below(&state, r.page > 65536 ? 20 : 100);
	side_init(&to, &r, rig_below(&state, 2), &state);
	side_init(&from, &r, rig_below(&state, 2), &state);
	for (int i = 0; i < 3; i++) {
		const struct gpu_move_how how = {.bulk = bulk && i == 1,
			.blocks = 1 + rig_below(&state, 40),
			.piece = 1024u << rig_below(&state, 4)};

		move_once(&r, &to, &from, i ? &how : NULL, rig_below(&state, r.n + 1), &state);
	}
	side_fini(&to, &r);
	side_fini(&from, &r);
}

static void test_refusals(struct rig *rig, struct gpu_move *m)
{
	struct move_args args = {.pages = 1, .page_bytes = 24};
	char why[GPU_WHY_BYTES] = "";

	if (gpu_move_pages(m, rig->stream, &args, NULL, why, sizeof(why)) != -EINVAL ||
		!strstr(why, "24"))
		rig_die("a page size that is no multiple of 16 is refused with a text");
	args.page_bytes = 0;
	if (gpu_move_pages(m, rig->stream, &args, NULL, why, sizeof(why)) != -EINVAL)
		rig_die("no page size at all");
	args = (struct move_args){.page_bytes = 4096};
	if (gpu_move_pages(m, rig->stream, &args, NULL, why, sizeof(why)) != 0)
		rig_die("no pages: nothing to do");
}

int main(void)
{
	const int rounds = getenv("KVGATE_SMALL") ? 4 : ROUNDS;
	char why[GPU_WHY_BYTES];
	struct gpu_move *m;
	struct rig r;

	rig_init(&r);
	must(gpu_move_open(r.device, &m, why, sizeof(why)), why);
	for (int i = 0; i < rounds; i++)
		test_round(&r, m, 1000 + i);
	test_refusals(&r, m);
	gpu_move_close(m);
	rig_fini(&r);
	printf("ok: %d rounds\n", rounds);
	return 0;
}
