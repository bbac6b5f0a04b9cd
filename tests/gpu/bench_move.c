/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What moving pages by kernel reaches of the link, and what it costs a decode that runs beside it. Pages lie in random
 * order on both sides; the link is a copy of one large pinned buffer. With an argument: all kernels and numbers of blocks.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "gpu/attend.h"
#include "gpu/move.h"
#include "gpu/vmm.h"
#include "tests/bench/figure.h"
#include "tests/gpu/planes.h"
#include "tests/gpu/rig.h"

#define BYTES ((size_t)1 << 30)
#define RUNS  9

struct bench {
	struct rig rig;
	struct gpu_move *move;
	char *host;
	uint64_t host_address;
	CUdeviceptr device;
	double link[2]; /* GB/s: up (to the device), down */

	const struct gpu_move_how *how;
	struct move_args args;
};

static void must(int r, const char *why)
{
	if (r < 0)
		rig_die("%s", why);
}

static void setup(struct bench *b)
{
	const int fd = memfd_create("pages", MFD_CLOEXEC);
	char why[GPU_WHY_BYTES];

	rig_init(&b->rig);
	must(gpu_move_open(b->rig.device, &b->move, why, sizeof(why)), why);
	if (fd < 0 || ftruncate(fd, BYTES) < 0)
		rig_die("no memory for pages");
	b->host = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	planes_random(b->host, BYTES / 64, KVG_DTYPE_BF16, 1.0f, 1);
	for (size_t i = BYTES / 32; i < BYTES; i += BYTES / 32)
		__builtin_memcpy(b->host + i, b->host, BYTES / 32);
	must(gpu_host_map(b->rig.device, b->host, BYTES, true, &b->host_address, why, sizeof(why)),
		why);
	b->device = rig_alloc(&b->rig, BYTES);
	rig_cu(&b->rig, cuMemcpyHtoD, b->device, b->host, BYTES);
}

struct link {
	struct rig *rig;
	CUdeviceptr to, from;
};

static void copy_link(void *arg)
{
	const struct link *l = arg;

	rig_cu(l->rig, cuMemcpyAsync, l->to, l->from, BYTES, l->rig->stream);
}

static void measure_link(struct bench *b)
{
	struct link l = {.rig = &b->rig};
	void *pinned;

	rig_cu(&b->rig, cuMemAllocHost, &pinned, BYTES);
	__builtin_memcpy(pinned, b->host, BYTES);
	l.to = b->device;
	l.from = (CUdeviceptr)(uintptr_t)pinned;
	b->link[0] = (double)BYTES / rig_time(&b->rig, RUNS, copy_link, NULL, &l) * 1e-3;
	l.to = l.from;
	l.from = b->device;
	b->link[1] = (double)BYTES / rig_time(&b->rig, RUNS, copy_link, NULL, &l) * 1e-3;
	rig_cu(&b->rig, cuMemFreeHost, pinned);
}

static CUdeviceptr list_of(struct bench *b, uint64_t base, uint32_t page, uint64_t seed)
{
	const uint32_t n = BYTES / page;
	uint64_t *list = malloc(n * sizeof(*list)), state = rig_seed(seed);
	CUdeviceptr at;

	for (uint32_t i = 0; i < n; i++) {
		const uint32_t j = rig_below(&state, i + 1);

		list[i] = list[j];
		list[j] = base + (uint64_t)i * page;
	}
	at = rig_upload(&b->rig, list, n * sizeof(*list));
	free(list);
	return at;
}

static void move(void *arg)
{
	struct bench *b = arg;
	char why[GPU_WHY_BYTES];

	must(gpu_move_pages(b->move, b->rig.stream, &b->args, b->how, why, sizeof(why)), why);
}

static void set_pages(struct bench *b, uint32_t page, bool down)
{
	b->args = (struct move_args){.pages = BYTES / page, .page_bytes = page, .to_host = down};
	b->args.to = list_of(b, down ? b->host_address : b->device, page, 3);
	b->args.from = list_of(b, down ? b->device : b->host_address, page, 4);
}

static void free_pages(struct bench *b)
{
	rig_free(&b->rig, b->args.to);
	rig_free(&b->rig, b->args.from);
}

static double move_GBps(struct bench *b, const struct gpu_move_how *how)
{
	b->how = how;
	return (double)BYTES / rig_time(&b->rig, RUNS, move, NULL, b) * 1e-3;
}

static void measure_move(struct bench *b)
{
	static const uint32_t pages[] = {16384, 65536};

	for (int i = 0; i < 4; i++) {
		const bool down = i & 1;
		const uint32_t page = pages[i / 2];
		char name[32];

		set_pages(b, page, down);
		snprintf(name, sizeof(name), "move_%uKiB_%s_GBps", page / 1024,
			down ? "down" : "up");
		figure_print(&(struct figure_line){"gpu", name, "GB/s", move_GBps(b, NULL),
				     b->link[down], FIGURE_NONE},
			"one copy of a pinned buffer, %s", gpu_device_info(b->rig.device)->name);
		free_pages(b);
	}
}

static const struct gpu_move_how hows[] = {{false, 4}, {false, 8}, {false, 12}, {false, 24},
	{true, 3, 8192}, {true, 4, 8192}, {true, 5, 8192}, {true, 6, 8192}, {true, 12, 2048}};
#define HOWS (sizeof(hows) / sizeof(hows[0]))

static void sweep(struct bench *b)
{
	static const uint32_t pages[] = {4096, 16384, 65536};

	for (int i = 0; i < 6; i++) {
		set_pages(b, pages[i / 2], i & 1);
		for (size_t n = 0; n < HOWS; n++)
			fprintf(stderr, "%6u %-4s %s, %u blocks of %u: %.1f GB/s\n", pages[i / 2],
				i & 1 ? "down" : "up", hows[n].bulk ? "bulk" : "plain",
				hows[n].blocks, hows[n].piece, move_GBps(b, &hows[n]));
		free_pages(b);
	}
}

/* ---- a decode beside it ---- */

struct beside {
	struct bench *bench;
	struct rig rig; /* with a stream of its own */
	struct gpu_attend *kernels;
	struct gpu_attend_plan *plan;
	struct gpu_attend_io io;
};

static void decode(void *arg)
{
	struct beside *s = arg;
	char why[GPU_WHY_BYTES];

	must(gpu_attend(s->plan, s->rig.stream, &s->io, why, sizeof(why)), why);
}

/* 128K tokens of 8 heads, planes of 7. */
static void setup_decode(struct beside *s)
{
	const struct attend_shape shape = {8, 4, 128, KVG_DTYPE_BF16};
	const struct planes_shape of_planes = {1, 8, 128, KVG_DTYPE_BF16, 131072, 256, 7};
	struct planes planes;
	struct attend_plan *plan;
	char why[GPU_WHY_BYTES];
	CUdeviceptr region;

	planes_init(&planes, &of_planes, NULL, 9);
	region = rig_alloc(&s->rig, planes.bytes);
	for (uint64_t at = 0; at < planes.bytes; at += BYTES)
		rig_cu(&s->rig, cuMemcpyAsync, region + at, s->bench->device,
			planes.bytes - at < BYTES ? planes.bytes - at : BYTES, s->rig.stream);
	must(gpu_attend_open(s->rig.device, &shape, &s->kernels, why, sizeof(why)), why);
	must(attend_plan_new(&shape, gpu_device_info(s->rig.device)->processors, &plan), "plan");
	must(attend_plan_sequence(plan, 1, 0), "plan");
	planes_plan(&planes, region, 0, 7, NULL, plan);
	must(attend_plan_seal(plan), "plan");
	must(gpu_attend_upload(s->kernels, plan, &s->plan, why, sizeof(why)), why);
	attend_plan_free(plan);
	planes_fini(&planes);
	s->io = (struct gpu_attend_io){.q = s->bench->device,
		.out = rig_alloc(&s->rig, 8 * 4 * 128 * 2),
		.scale = 1.0f / sqrtf(128.0f)};
}

static void measure_beside(struct bench *b, const struct gpu_move_how *how, bool sweeping)
{
	struct beside s = {.bench = b, .rig = b->rig};
	double alone, worst = 0.0;

	rig_cu(&b->rig, cuStreamCreate, &s.rig.stream, CU_STREAM_NON_BLOCKING);
	setup_decode(&s);
	alone = rig_time(&s.rig, 101, decode, NULL, &s);
	for (int down = 0; down < 2; down++) {
		double us;

		set_pages(b, 16384, down);
		b->how = how;
		for (int i = 0; i < 10; i++)
			move(b);
		us = rig_time(&s.rig, 101, decode, NULL, &s);
		if (b->rig.driver->cuStreamQuery(b->rig.stream) != CUDA_ERROR_NOT_READY)
			rig_die("pages were no longer moving when the decodes were done");
		rig_sync(&b->rig);
		free_pages(b);
		worst = us > worst ? us : worst;
		if (sweeping)
			fprintf(stderr, "decode beside %s, %s %u blocks %u: %.1f us, alone %.1f\n",
				down ? "down" : "up", how && how->bulk ? "bulk" : "plain",
				how ? how->blocks : 0, how ? how->piece : 0, us, alone);
	}
	if (!sweeping)
		figure_print(&(struct figure_line){"gpu", "move_decode_slowdown", "us", worst,
				     alone, FIGURE_NONE},
			"a decode over 128K tokens, alone, %s",
			gpu_device_info(b->rig.device)->name);
	gpu_attend_plan_free(s.plan);
	gpu_attend_close(s.kernels);
}

int main(int argc, char **argv)
{
	struct bench b = {0};

	(void)argv;
	setup(&b);
	measure_link(&b);
	if (argc > 1) {
		fprintf(stderr, "link: up %.1f, down %.1f GB/s\n", b.link[0], b.link[1]);
		sweep(&b);
		for (size_t i = 0; i < HOWS; i++)
			measure_beside(&b, &hows[i], true);
		return 0;
	}
	measure_move(&b);
	measure_beside(&b, NULL, false);
	return figure_status();
}
