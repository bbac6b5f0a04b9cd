/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_planes_ratio: one token's attention over a context that lies in planes, all of it
 * kept, beside the same kernel over the same pairs lying densely by head. One layer of a model
 * like Qwen3-8B (8 KV heads, 4 query heads each, head size 128, bf16), 16,384 tokens of context:
 * 64 MiB, more than the caches hold. Blocks have 256 tokens, and 7 planes with the shares that
 * the default bands give; a pair's band and its place in the run are random, as scores make them.
 * The two are timed in turns; the median of the turns' ratios is given. Time is the thread's own,
 * which computes and reads memory and never waits for anything else: what a busy machine takes
 * away from a turn is not counted.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "client/worker/attention.h"
#include "proto/map.h"
#include "proto/plane.h"
#include "proto/shape.h"
#include "tests/bench/figure.h"

enum {
	HEADS = 8,
	GROUP = 4,
	DIM = 128,
	BLOCK = 256,
	BLOCKS = 64,
	TOKENS = BLOCK * BLOCKS,
	PLANES = 7,
	PAGE = 65536,
	TURNS = 41,
	ROW = DIM * 2
};

/* Upper ends of the bands, in 1/1000 of a block's pairs. */
static const uint32_t band_end[PLANES] = {50, 100, 200, 300, 500, 750, 1000};

/* Runs of each head, and the memory they lie in. */
struct kv {
	struct kv_run run[HEADS][BLOCKS * PLANES];
	uint32_t n_runs[HEADS];
	uint8_t *memory;
};

static uint64_t random_state = 1;

static uint32_t random_below(uint32_t n)
{
	random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
	return (uint32_t)((random_state >> 33) % n);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void fill(void *rows, size_t bytes)
{
	uint16_t *half = rows;

	for (size_t i = 0; i < bytes / 2; i++)
		half[i] = bf16_from_f32((float)random_below(2048) / 1024.0f - 1.0f);
}

/* Shared memory behind a file descriptor for both, as the daemon's is, in huge pages where there are any. */
static void *memory_new(size_t bytes)
{
	const int fd = memfd_create("attention", MFD_CLOEXEC);
	void *memory;

	if (fd < 0 || ftruncate(fd, (off_t)bytes) < 0)
		abort();
	if (map_shared(fd, bytes, PROT_READ | PROT_WRITE, &memory) < 0)
		abort();
	map_huge(memory, bytes);
	close(fd);
	return memory;
}

static void make_dense(struct kv *kv)
{
	kv->memory = memory_new((size_t)2 * HEADS * TOKENS * ROW);
	fill(kv->memory, (size_t)2 * HEADS * TOKENS * ROW);
	for (uint32_t h = 0; h < HEADS; h++) {
		kv->run[h][0] = (struct kv_run){.k = kv->memory + (size_t)2 * h * TOKENS * ROW,
			.v = kv->memory + (size_t)(2 * h + 1) * TOKENS * ROW,
			.n = TOKENS};
		kv->n_runs[h] = 1;
	}
}

/* One plane's payload as the daemon writes it; returns its bytes in whole pages. */
static size_t make_plane(struct kv *kv, uint8_t *payload, const uint32_t rows[HEADS])
{
	struct plane_geometry g;
	uint32_t pairs = 0, at = 0;

	for (uint32_t h = 0; h < HEADS; h++)
		pairs += rows[h];
	plane_geometry(HEADS, pairs, 0, ROW, ROW, 0, &g);
	fill(payload + g.k_off, (size_t)pairs * ROW);
	fill(payload + g.v_off, (size_t)pairs * ROW);
	for (uint32_t h = 0; h < HEADS; at += rows[h++])
		if (rows[h])
			kv->run[h][kv->n_runs[h]++] =
				(struct kv_run){.k = payload + g.k_off + (size_t)at * ROW,
					.v = payload + g.v_off + (size_t)at * ROW,
					.n = rows[h]};
	return (g.bytes + PAGE - 1) / PAGE * PAGE;
}

static void make_planes(struct kv *kv)
{
	uint8_t *at;

	kv->memory = memory_new((size_t)3 * HEADS * TOKENS * ROW);
	at = kv->memory;
	for (uint32_t block = 0; block < BLOCKS; block++) {
		uint32_t rows[PLANES][HEADS] = {0};

		for (uint32_t h = 0; h < HEADS; h++)
			for (uint32_t i = 0; i < BLOCK; i++) {
				const uint32_t share = random_below(1000);
				uint32_t plane = 0;

				while (share >= band_end[plane])
					plane++;
				rows[plane][h]++;
			}
		for (uint32_t plane = 0; plane < PLANES; plane++)
			at += make_plane(kv, at, rows[plane]);
	}
}

static double time_attention(struct attention *a, const struct kv *kv, const float *q, float *out)
{
	struct kv_rows rows[HEADS];
	const double start = now();

	for (uint32_t h = 0; h < HEADS; h++)
		rows[h] = (struct kv_rows){
			.run = kv->run[h], .n_runs = kv->n_runs[h], .dtype = KVG_DTYPE_BF16};
	attention_begin(a, q, GROUP, GROUP, 0);
	attention_rows(a, rows);
	attention_end(a, out, 0);
	return now() - start;
}

static int compare(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static double median(double *values)
{
	qsort(values, TURNS, sizeof(*values), compare);
	return values[TURNS / 2];
}

int main(void)
{
	static struct kv dense, planes;
	static float q[HEADS * GROUP * DIM], out[HEADS * GROUP * DIM];
	const double gigabytes = 2e-9 * HEADS * TOKENS * ROW;
	double of_dense[TURNS], of_planes[TURNS], ratio[TURNS];
	struct attention *a;

	if (attention_new(HEADS, DIM, DIM, attention_isa_best(), &a) < 0)
		return 1;
	for (uint32_t i = 0; i < HEADS * GROUP * DIM; i++)
		q[i] = (float)random_below(2048) / 1024.0f - 1.0f;
	make_dense(&dense);
	make_planes(&planes);
	time_attention(a, &dense, q, out);
	time_attention(a, &planes, q, out);
	for (int i = 0; i < TURNS; i++) {
		const double d = time_attention(a, &dense, q, out);
		const double p = time_attention(a, &planes, q, out);

		ratio[i] = d / p;
		of_dense[i] = gigabytes / d;
		of_planes[i] = gigabytes / p;
	}
	const double r = median(ratio);

	figure_print(&(struct figure_line){"core", "attention_planes_ratio", "ratio", r,
			     median(of_dense), r},
		"dense KV, GB/s (planes: %.2f)", median(of_planes));
	attention_free(a);
	return figure_status();
}
