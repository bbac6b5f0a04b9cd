// SPDX-License-Identifier: Apache-2.0
/*
 * Attention over runs of rows that lie anywhere. One warp of a block fetches, the others compute:
 *
 *	fetching warp:   item -> rows -> addresses -> cp.async into a stage of shared memory -> `full`
 *	computing warps: `full` -> S = Q K^T, online softmax, O += P V -> `empty`
 *
 * Runs are short - some tens of rows, where a plane has what one head keeps of 256 tokens - so a stage takes rows of
 * many, and nobody but the fetching warp knows. It looks at the 32 runs ahead, one a lane, and each lane finds the run
 * of its row among them by bisection; those for the next 32 rows are on their way by then. Bytes in flight are those of
 * all stages, which is far more than memory needs, so what happens between items is hidden too.
 *
 * Blocks take items as they come, but which rows are an item, and in which order parts are merged, depends on lengths
 * alone: the same input gives the same bits, wherever it lies and whoever is late.
 *
 * Decode (MW = 1): all computing warps have the same 16 query rows, and each its share of a stage's rows; they are
 * merged in shared memory when the item ends. Prefill (NW = 1): each has 16 query rows of its own, and all of the stage.
 */
#ifndef KVGATE_GPU_KERNELS_ATTEND_CUH
#define KVGATE_GPU_KERNELS_ATTEND_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "gpu/kernels/attend.h"

#define LOG2E    1.4426950408889634f
#define INFINITE __int_as_float(0x7f800000)
#define FULL     0xffffffffu
#define AHEAD    128 /* runs */

#define MERGE_WAYS    ATTEND_MERGE_WAYS /* threads that share one column's parts */

static __device__ uint32_t shared_address(const void *p)
{
	return (uint32_t)__cvta_generic_to_shared(p);
}

static __device__ void barrier_init(uint64_t *b, uint32_t count)
{
	asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(b)), "r"(count) : "memory");
}

static __device__ void barrier_arrive(uint64_t *b)
{
	asm volatile("{\n\t.reg .b64 s;\n\tmbarrier.arrive.shared.b64 s, [%0];\n}" ::"r"(shared_address(b)) : "memory");
}

/* Arrives when the copies this thread has started are there. */
static __device__ void barrier_arrive_copies(uint64_t *b)
{
	asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(b)) : "memory");
}

static __device__ void barrier_wait(uint64_t *b, uint32_t parity)
{
#if __CUDA_ARCH__ >= 900
	asm volatile("{\n\t.reg .pred p;\n"
		     "again:\n\tmbarrier.try_wait.parity.shared.b64 p, [%0], %1;\n\t@!p bra again;\n}" ::"r"(
			     shared_address(b)),
		"r"(parity) : "memory");
#else
	asm volatile("{\n\t.reg .pred p;\n"
		     "again:\n\tmbarrier.test_wait.parity.shared.b64 p, [%0], %1;\n\t@!p bra again;\n}" ::"r"(
			     shared_address(b)),
		"r"(parity) : "memory");
#endif
}

/* 16 bytes; zeros where there is no row. */
static __device__ void copy16(uint32_t to, uint64_t from, uint32_t bytes)
{
	asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

static __device__ void load_matrices(uint32_t (&r)[4], uint32_t from)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
		: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

static __device__ void load_matrices_turned(uint32_t (&r)[4], uint32_t from)
{
	asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
		: "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(from) : "memory");
}

struct of_bf16 {
	static __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
	{
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, "
			     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
			: "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
			: "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
	}
	static __device__ uint32_t pack(float low, float high)
	{
		const __nv_bfloat162 v = __floats2bfloat162_rn(low, high);

		return *reinterpret_cast<const uint32_t *>(&v);
	}
};

struct of_f16 {
	static __device__ void multiply(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1)
	{
		asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, "
			     "{%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
			: "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
			: "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
	}
	static __device__ uint32_t pack(float low, float high)
	{
		const __half2 v = __floats2half2_rn(low, high);

		return *reinterpret_cast<const uint32_t *>(&v);
	}
};

/* What the fetching warp tells of a stage. */
struct stage {
	uint32_t tile, part; /* its item's */
	uint32_t row;        /* of the group, the stage's first */
	uint32_t what;       /* rows, 0: an item without any; and flags */
};
#define STAGE_ROWS  0xffffu
#define STAGE_FIRST 0x10000u /* of its item */
#define STAGE_LAST  0x20000u
#define STAGE_END   0x40000u /* there are no more items */

/* What lies in shared memory, and where. gpu/attend.c computes the same size: attend_shared_bytes(). */
template <int D, int MW, int NW> struct layout {
	static constexpr int chunks = D / 8; /* of 16 bytes, in a row */
	static constexpr int rows = MW == 1 && D == 64 ? 128 : 64; /* of a stage */
	/* Rows that stand below each other must not meet in the banks: swizzled, or with a chunk more. */
	static constexpr bool swizzled = chunks % 8 == 0;
	static constexpr int row_chunks = swizzled ? chunks : chunks + 1;
	static constexpr int half = rows * row_chunks * 16; /* bytes of K, and of V */
	static constexpr int merge = NW > 1 ? 16 * D * 4 : 0;
	static constexpr int of_warp = rows / NW; /* rows of a stage that a computing warp takes */
	static constexpr int M = 16 * MW;
	static constexpr int computing = 32 * MW * NW;
	/* Queries stay in registers, as long as there are enough. */
	static constexpr bool keep_queries = D <= 128;

	static __device__ uint32_t at(int row, int chunk)
	{
		return swizzled ? (row * chunks + (chunk ^ (row & 7))) * 16 : (row * row_chunks + chunk) * 16;
	}
};

struct shared_head {
	uint64_t full[ATTEND_STAGES_MAX], empty[ATTEND_STAGES_MAX];
	struct stage stage[ATTEND_STAGES_MAX];
	uint64_t address[32][2]; /* of K and of V rows, while they are fetched */
	float max[4][16], sum[4][16];
};

/* ---- the fetching warp ---- */

struct window {
	uint64_t k, v;
	uint32_t first;
};

/*
 * Where heads keep little, 32 rows are of as many runs, and what is read between is enough to have driven the list out
 * of the cache: it is asked for well before it is looked at.
 */
static __device__ void expect(const struct attend_args &a, uint32_t run, uint32_t end)
{
	if (run < end)
		asm volatile("prefetch.global.L2 [%0];" ::"l"(
			reinterpret_cast<const struct attend_run *>(a.runs) + run));
}

/* The 32 runs from `run` on, one a lane. */
static __device__ struct window look_at(const struct attend_args &a, uint32_t run, uint32_t end, int lane)
{
	struct window w = {0, 0, 0xffffffffu};

	if (run + lane < end) {
		const struct attend_run *const r = reinterpret_cast<const struct attend_run *>(a.runs) + run + lane;

		w.k = __ldg(reinterpret_cast<const unsigned long long *>(&r->k));
		w.v = __ldg(reinterpret_cast<const unsigned long long *>(&r->v));
		w.first = __ldg(&r->first);
	}
	return w;
}

/* Lane by lane: which of the window's runs has the row. */
static __device__ int run_of(uint32_t first, uint32_t row)
{
	int at = 0;

#pragma unroll
	for (int step = 16; step; step /= 2) {
		const uint32_t f = __shfl_sync(FULL, first, at + step);

		if (f <= row)
			at += step;
	}
	return at;
}

/*
 * 32 rows, whose addresses are known, to a place that begins at a multiple of 8 rows. This is most of what a fetching
 * warp does: all but the sources is known before.
 */
template <class L, bool all>
static __device__ void copy_rows(const struct shared_head *h, uint32_t k_to, uint32_t v_to, int n, int lane)
{
#pragma unroll
	for (int i = 0; i < L::chunks; i++) {
		const int unit = i * 32 + lane, r = unit / L::chunks, chunk = unit % L::chunks;
		const ulonglong2 from = *reinterpret_cast<const ulonglong2 *>(h->address[r]);
		const uint32_t to = L::at(r, chunk), bytes = all || r < n ? 16 : 0;

		copy16(k_to + to, from.x + chunk * 16, bytes);
		copy16(v_to + to, from.y + chunk * 16, bytes);
	}
}

/*
 * 32 rows from `row` on, as far as they are below `end`: addresses into shared memory, then the copies. Moves the
 * window to the run of the next row.
 */
template <class L, int D>
static __device__ void fetch_rows(const struct attend_args &a, struct shared_head *h, struct window *w, uint32_t *run,
	uint32_t run_end, uint32_t row, uint32_t end, uint32_t k_to, uint32_t v_to, int lane)
{
	const uint32_t mine = min(row + lane, end - 1);
	const int at = run_of(w->first, mine);
	const uint64_t offset = (uint64_t)(mine - __shfl_sync(FULL, w->first, at)) * (D * 2);
	const uint64_t k = __shfl_sync(FULL, w->k, at) + offset, v = __shfl_sync(FULL, w->v, at) + offset;
	const int n = row < end ? min(32u, end - row) : 0;

	__syncwarp();
	h->address[lane][0] = k;
	h->address[lane][1] = v;
	__syncwarp();
	*run += __shfl_sync(FULL, at, 31);
	*w = look_at(a, *run, run_end, lane);
	expect(a, *run + AHEAD + lane, run_end);
	if (n == 32)
		copy_rows<L, true>(h, k_to, v_to, n, lane);
	else
		copy_rows<L, false>(h, k_to, v_to, n, lane);
}

/* Behind its last row a stage has zeros as far as a warp that looks at that row looks. */
template <class L, int D>
static __device__ void fetch_item(const struct attend_args &a, struct shared_head *h, uint32_t stages_at,
	const struct attend_item &item, uint32_t *s, uint32_t *phase, int lane)
{
	const uint32_t end = item.row + item.rows;
	uint32_t run = item.run, row = item.row;
	struct window w = look_at(a, run, item.run_end, lane);

	for (int i = 32; i <= AHEAD; i += 32)
		expect(a, run + i + lane, item.run_end);
	do {
		const uint32_t rows = min((uint32_t)L::rows, end - row), k_to = stages_at + *s * 2 * L::half;

		barrier_wait(&h->empty[*s], *phase ^ 1);
		const uint32_t looked_at = (rows + L::of_warp - 1) / L::of_warp * L::of_warp;

		for (uint32_t r = 0; r < looked_at; r += 32)
			fetch_rows<L, D>(a, h, &w, &run, item.run_end, row + r, row + rows, k_to + r * L::row_chunks * 16,
				k_to + L::half + r * L::row_chunks * 16, lane);
		if (lane == 0) {
			h->stage[*s] = {item.tile, item.part, row,
				rows | (row == item.row ? STAGE_FIRST : 0) | (row + rows == end ? STAGE_LAST : 0)};
			barrier_arrive(&h->full[*s]);
		}
		barrier_arrive_copies(&h->full[*s]);
		row += rows;
		if (++*s == a.stages) {
			*s = 0;
			*phase ^= 1;
		}
	} while (row < end);
}

/*
 * The next item's number. Not even the first is the block's own: a block that starts late, since another kernel has its
 * place, would have it done last.
 */
static __device__ uint32_t take_item(const struct attend_args &a, int lane)
{
	uint32_t n = 0;

	if (lane == 0)
		n = atomicAdd(&reinterpret_cast<struct attend_counters *>(a.counters)->taken, 1);
	return n;
}

template <class L, int D>
static __device__ void fetch(const struct attend_args &a, struct shared_head *h, uint32_t stages_at, int lane)
{
	struct attend_counters *const c = reinterpret_cast<struct attend_counters *>(a.counters);
	uint32_t s = 0, phase = 0, number = __shfl_sync(FULL, take_item(a, lane), 0);

	while (number < a.n_items) {
		const uint32_t next = take_item(a, lane); /* its answer is not waited for until it is needed */
		const struct attend_item item = reinterpret_cast<const struct attend_item *>(a.items)[number];

		fetch_item<L, D>(a, h, stages_at, item, &s, &phase, lane);
		number = __shfl_sync(FULL, next, 0);
	}
	barrier_wait(&h->empty[s], phase ^ 1);
	if (lane == 0) {
		h->stage[s] = {0, 0, 0, STAGE_END};
		barrier_arrive(&h->full[s]);
		/* Nobody takes after the last has found nothing: then it is as it was before. */
		if (atomicAdd(&c->left, 1) == gridDim.x - 1) {
			c->taken = 0;
			c->left = 0;
		}
	}
	barrier_arrive_copies(&h->full[s]);
}

/* ---- the computing warps ---- */

template <int D> struct state {
	float o[D / 8][4];
	float max[2], sum[2]; /* of query rows lane / 4 and lane / 4 + 8; sums are of this lane's columns */
	uint32_t q[D / 16][4];
};

/* One 16 x 16 of the queries, as the matrix instruction wants them. */
static __device__ void load_queries(const struct attend_args &a, const struct attend_tile &t, int warp_row, int D,
	int step, int lane, uint32_t (&q)[4])
{
#pragma unroll
	for (int i = 0; i < 4; i++) {
		const uint32_t r = warp_row + lane / 4 + (i & 1) * 8, row = t.row + r;
		const uint16_t *const from = reinterpret_cast<const uint16_t *>(a.q) +
			(uint64_t)(t.token + row / a.group) * a.q_stride +
			(uint64_t)(t.head * a.group + row % a.group) * D;

		q[i] = r < t.rows
			? *reinterpret_cast<const uint32_t *>(from + step * 16 + (i >> 1) * 8 + (lane % 4) * 2)
			: 0;
	}
}

template <int D> static __device__ void begin(struct state<D> *st)
{
#pragma unroll
	for (int i = 0; i < D / 8; i++)
#pragma unroll
		for (int j = 0; j < 4; j++)
			st->o[i][j] = 0.0f;
#pragma unroll
	for (int i = 0; i < 2; i++) {
		st->max[i] = -INFINITE;
		st->sum[i] = 0.0f;
	}
}

/* S = Q K^T of N rows of the stage. */
template <class T, class L, int D, int N>
static __device__ void scores(const struct attend_args &a, const struct attend_tile &t, const struct state<D> *st,
	int warp_row, uint32_t k_at, int row, int lane, float (&s)[N / 8][4])
{
#pragma unroll
	for (int i = 0; i < N / 8; i++)
#pragma unroll
		for (int j = 0; j < 4; j++)
			s[i][j] = 0.0f;
#pragma unroll
	for (int step = 0; step < D / 16; step++) {
		uint32_t q[4];

		if (L::keep_queries) {
#pragma unroll
			for (int i = 0; i < 4; i++)
				q[i] = st->q[step][i];
		} else
			load_queries(a, t, warp_row, D, step, lane, q);
#pragma unroll
		for (int n = 0; n < N; n += 16) {
			const int r = row + n + (lane & 7) + ((lane >> 4) << 3);
			uint32_t b[4];

			load_matrices(b, k_at + L::at(r, 2 * step + ((lane >> 3) & 1)));
			T::multiply(s[n / 8], q, b[0], b[1]);
			T::multiply(s[n / 8 + 1], q, b[2], b[3]);
		}
	}
}

/* Takes away what is behind the stage's rows, and what a query does not see. `row` is the number of s[0]'s first. */
template <int N>
static __device__ void mask(float (&s)[N / 8][4], uint32_t row, uint32_t end, uint32_t sees0, uint32_t sees1, int lane)
{
#pragma unroll
	for (int i = 0; i < N / 8; i++)
#pragma unroll
		for (int j = 0; j < 4; j++) {
			const uint32_t r = row + i * 8 + (lane % 4) * 2 + (j & 1);

			if (r >= end || r >= (j & 2 ? sees1 : sees0))
				s[i][j] = -INFINITE;
		}
}

/* Online softmax: s becomes exp(scale (s - max)), what is there already is scaled to the new maximum. */
template <int D, int N>
static __device__ void soften(struct state<D> *st, float (&s)[N / 8][4], float scale)
{
	float alpha[2], base[2];

#pragma unroll
	for (int i = 0; i < 2; i++) {
		float m = st->max[i];

#pragma unroll
		for (int n = 0; n < N / 8; n++)
			m = fmaxf(m, fmaxf(s[n][2 * i], s[n][2 * i + 1]));
		m = fmaxf(m, __shfl_xor_sync(FULL, m, 1));
		m = fmaxf(m, __shfl_xor_sync(FULL, m, 2));
		base[i] = m == -INFINITE ? 0.0f : m * scale;
		alpha[i] = exp2f(st->max[i] * scale - base[i]);
		st->max[i] = m;
	}
	if (__any_sync(FULL, alpha[0] != 1.0f || alpha[1] != 1.0f)) {
#pragma unroll
		for (int i = 0; i < D / 8; i++)
#pragma unroll
			for (int j = 0; j < 4; j++)
				st->o[i][j] *= alpha[j / 2];
	}
#pragma unroll
	for (int i = 0; i < 2; i++) {
		float sum = 0.0f;

#pragma unroll
		for (int n = 0; n < N / 8; n++)
#pragma unroll
			for (int j = 2 * i; j < 2 * i + 2; j++) {
				s[n][j] = exp2f(s[n][j] * scale - base[i]);
				sum += s[n][j];
			}
		st->sum[i] = st->sum[i] * alpha[i] + sum;
	}
}

/* O += P V. */
template <class T, class L, int D, int N>
static __device__ void weigh(struct state<D> *st, const float (&s)[N / 8][4], uint32_t v_at, int row, int lane)
{
#pragma unroll
	for (int n = 0; n < N; n += 16) {
		const uint32_t p[4] = {T::pack(s[n / 8][0], s[n / 8][1]), T::pack(s[n / 8][2], s[n / 8][3]),
			T::pack(s[n / 8 + 1][0], s[n / 8 + 1][1]), T::pack(s[n / 8 + 1][2], s[n / 8 + 1][3])};

#pragma unroll
		for (int c = 0; c < D / 8; c += 2) {
			uint32_t b[4];

			load_matrices_turned(b, v_at + L::at(row + n + (lane & 15), c + (lane >> 4)));
			T::multiply(st->o[c], p, b[0], b[1]);
			T::multiply(st->o[c + 1], p, b[2], b[3]);
		}
	}
}

template <int threads> static __device__ void computing_sync()
{
	asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory");
}

static __device__ float *part_at(const struct attend_args &a, uint32_t part, int M, int D)
{
	return reinterpret_cast<float *>(a.partials) + (uint64_t)part * (M * D + 2 * M);
}

/* Where the result of a tile's row goes; its lse. */
static __device__ uint64_t result_at(const struct attend_args &a, const struct attend_tile &t, uint32_t r, int D,
	uint64_t *ret_lse)
{
	const uint32_t row = t.row + r, token = t.token + row / a.group, head = t.head * a.group + row % a.group;

	*ret_lse = (uint64_t)token * a.heads * a.group + head;
	return (uint64_t)token * a.q_stride + (uint64_t)head * D;
}

/* max is that of scores as they are, in base 2 after scaling; a row that saw nothing is 0, with an lse of -inf. */
static __device__ void write_lse(const struct attend_args &a, uint64_t at, float max2, float sum)
{
	if (a.lse)
		reinterpret_cast<float *>(a.lse)[at] = sum > 0.0f ? (max2 + log2f(sum)) / LOG2E : -INFINITE;
}

template <int D> static __device__ void sum_quads(struct state<D> *st)
{
#pragma unroll
	for (int i = 0; i < 2; i++) {
		st->sum[i] += __shfl_xor_sync(FULL, st->sum[i], 1);
		st->sum[i] += __shfl_xor_sync(FULL, st->sum[i], 2);
	}
}

/* Prefill: each warp has whole rows. */
template <class T, class L, int D>
static __device__ void end_rows(const struct attend_args &a, const struct attend_tile &t, uint32_t part,
	struct state<D> *st, float scale, int warp_row, int lane)
{
	float *const at = part == ATTEND_PART_NONE ? NULL : part_at(a, part, L::M, D);

	sum_quads<D>(st);
#pragma unroll
	for (int i = 0; i < 2; i++) {
		const uint32_t r = warp_row + lane / 4 + i * 8;
		const float whole = st->sum[i] > 0.0f ? 1.0f / st->sum[i] : 0.0f;
		uint64_t to, lse;

		if (r >= t.rows)
			continue;
		to = result_at(a, t, r, D, &lse);
#pragma unroll
		for (int c = 0; c < D / 8; c++) {
			const int column = c * 8 + (lane % 4) * 2;

			if (at)
				*reinterpret_cast<float2 *>(at + r * D + column) = {st->o[c][2 * i],
					st->o[c][2 * i + 1]};
			else
				*reinterpret_cast<uint32_t *>(reinterpret_cast<uint16_t *>(a.out) + to + column) =
					T::pack(st->o[c][2 * i] * whole, st->o[c][2 * i + 1] * whole);
		}
		if (lane % 4)
			continue;
		if (at) {
			at[L::M * D + r] = st->max[i] * scale;
			at[L::M * D + L::M + r] = st->sum[i];
		} else
			write_lse(a, lse, st->max[i] * scale, st->sum[i]);
	}
}

/* Decode: the warps' shares are added up in shared memory, one warp after the other. */
template <class T, class L, int D>
static __device__ void end_shares(const struct attend_args &a, struct shared_head *h, float *merge,
	const struct attend_tile &t, uint32_t part, struct state<D> *st, float scale, int warp, int warps, int lane)
{
	float w[2];

	sum_quads<D>(st);
	if (lane % 4 == 0)
#pragma unroll
		for (int i = 0; i < 2; i++) {
			h->max[warp][lane / 4 + i * 8] = st->max[i] * scale;
			h->sum[warp][lane / 4 + i * 8] = st->sum[i];
		}
	computing_sync<L::computing>();
#pragma unroll
	for (int i = 0; i < 2; i++) {
		float most = -INFINITE;

		for (int n = 0; n < warps; n++)
			most = fmaxf(most, h->max[n][lane / 4 + i * 8]);
		w[i] = most == -INFINITE ? 0.0f : exp2f(st->max[i] * scale - most);
	}
	for (int n = 0; n < warps; n++) {
		if (n == warp)
#pragma unroll
			for (int c = 0; c < D / 8; c++)
#pragma unroll
				for (int i = 0; i < 2; i++) {
					if (lane / 4 + i * 8 >= t.rows)
						continue;
					float2 *const at = reinterpret_cast<float2 *>(
						merge + (lane / 4 + i * 8) * D + c * 8 + (lane % 4) * 2);
					float2 v = n ? *at : float2{0.0f, 0.0f};

					v.x += st->o[c][2 * i] * w[i];
					v.y += st->o[c][2 * i + 1] * w[i];
					*at = v;
				}
		computing_sync<L::computing>();
	}
	for (int unit = warp * 32 + lane; unit < (int)t.rows * (D / 4); unit += L::computing) {
		const int r = unit / (D / 4), c = unit % (D / 4) * 4;
		const float4 v = *reinterpret_cast<const float4 *>(merge + r * D + c);
		float most = -INFINITE, all = 0.0f, whole;
		uint64_t to, lse;

		for (int n = 0; n < warps; n++)
			most = fmaxf(most, h->max[n][r]);
		for (int n = 0; n < warps && most != -INFINITE; n++)
			all += exp2f(h->max[n][r] - most) * h->sum[n][r];
		whole = all > 0.0f ? 1.0f / all : 0.0f;
		if (part != ATTEND_PART_NONE) {
			float *const at = part_at(a, part, L::M, D);

			*reinterpret_cast<float4 *>(at + r * D + c) = v;
			if (c == 0) {
				at[L::M * D + r] = most;
				at[L::M * D + L::M + r] = all;
			}
			continue;
		}
		to = result_at(a, t, r, D, &lse);
		*reinterpret_cast<uint2 *>(reinterpret_cast<uint16_t *>(a.out) + to + c) = {
			T::pack(v.x * whole, v.y * whole), T::pack(v.z * whole, v.w * whole)};
		if (c == 0)
			write_lse(a, lse, most, all);
	}
}

/*
 * Merges the parts of one row of one tile, in a launch of its own behind: a block a row, four columns a thread, and
 * every MERGE_WAYS-th part, since a block that waits for one load after the other would be long at it. The order in
 * which parts are added up is the same always.
 */
template <class T, int D, int M> static __device__ void merge(const struct attend_args &a)
{
	constexpr uint64_t stride = M * D + 2 * M;
	constexpr int columns = D / 4;
	__shared__ float4 way_o[MERGE_WAYS][columns];
	constexpr int warps = MERGE_WAYS * columns / 32;
	__shared__ float way_sum[MERGE_WAYS], warp_max[warps];
	const struct attend_tile t = reinterpret_cast<const struct attend_tile *>(a.tiles)[blockIdx.x];
	const uint32_t r = blockIdx.y, way = threadIdx.y, column = threadIdx.x;
	const float *const first = part_at(a, t.part, M, D), *const max = first + M * D + r;
	float most = -INFINITE, all = 0.0f, base;
	float4 o = {0.0f, 0.0f, 0.0f, 0.0f};

	if (t.parts == 1 || r >= t.rows)
		return;
	for (uint32_t p = way * columns + column; p < t.parts; p += MERGE_WAYS * columns)
		most = fmaxf(most, max[p * stride]);
#pragma unroll
	for (int step = 16; step; step /= 2)
		most = fmaxf(most, __shfl_xor_sync(FULL, most, step));
	if ((way * columns + column) % 32 == 0)
		warp_max[(way * columns + column) / 32] = most;
	__syncthreads();
	for (int i = 0; i < warps; i++)
		most = fmaxf(most, warp_max[i]);
	base = most == -INFINITE ? 0.0f : most;
#pragma unroll 4
	for (uint32_t p = way; p < t.parts; p += MERGE_WAYS) {
		const float w = exp2f(max[p * stride] - base);
		const float4 v = *reinterpret_cast<const float4 *>(first + p * stride + r * D + column * 4);

		all += w * max[p * stride + M];
		o.x += w * v.x;
		o.y += w * v.y;
		o.z += w * v.z;
		o.w += w * v.w;
	}
	way_o[way][column] = o;
	if (column == 0)
		way_sum[way] = all;
	__syncthreads();
	if (way)
		return;
	for (int i = 1; i < MERGE_WAYS; i++) {
		all += way_sum[i];
		o.x += way_o[i][column].x;
		o.y += way_o[i][column].y;
		o.z += way_o[i][column].z;
		o.w += way_o[i][column].w;
	}
	const float whole = all > 0.0f ? 1.0f / all : 0.0f;
	uint64_t to, lse;

	to = result_at(a, t, r, D, &lse);
	*reinterpret_cast<uint2 *>(reinterpret_cast<uint16_t *>(a.out) + to + column * 4) = {
		T::pack(o.x * whole, o.y * whole), T::pack(o.z * whole, o.w * whole)};
	if (column == 0)
		write_lse(a, lse, base, all);
}

template <class T, class L, int D, int MW, int NW>
static __device__ void compute(const struct attend_args &a, struct shared_head *h, float *merge, uint32_t stages_at,
	int warp, int lane)
{
	constexpr int N = L::of_warp;
	const int warp_row = MW > 1 ? warp * 16 : 0, stage_row = NW > 1 ? warp * N : 0;
	const float scale = a.scale * LOG2E;
	struct attend_tile t;
	struct state<D> st;
	uint32_t s = 0, phase = 0, sees[2];

	for (;;) {
		struct stage now;

		barrier_wait(&h->full[s], phase);
		now = h->stage[s];
		if (now.what & STAGE_END)
			return;
		if (now.what & STAGE_FIRST) {
			t = reinterpret_cast<const struct attend_tile *>(a.tiles)[now.tile];
			begin<D>(&st);
#pragma unroll
			for (int i = 0; i < 2; i++)
				sees[i] = t.seen + (t.row + warp_row + lane / 4 + i * 8) / a.group;
			if (L::keep_queries)
#pragma unroll
				for (int i = 0; i < D / 16; i++)
					load_queries(a, t, warp_row, D, i, lane, st.q[i]);
		}
		const uint32_t k_at = stages_at + s * 2 * L::half, row = now.row + stage_row;
		const uint32_t end = now.row + (now.what & STAGE_ROWS), first_sees = t.seen + (t.row + warp_row) / a.group;
		const uint32_t last_sees = t.seen + (t.row + warp_row + 15) / a.group;

		if (row < end && row < last_sees) {
			float p[N / 8][4];

			scores<T, L, D, N>(a, t, &st, warp_row, k_at, stage_row, lane, p);
			if (row + N > end || row + N > first_sees)
				mask<N>(p, row, end, sees[0], sees[1], lane);
			soften<D, N>(&st, p, scale);
			weigh<T, L, D, N>(&st, p, k_at + L::half, stage_row, lane);
		}
		__syncwarp();
		if (lane == 0)
			barrier_arrive(&h->empty[s]);
		if (++s == a.stages) {
			s = 0;
			phase ^= 1;
		}
		if (now.what & STAGE_LAST) {
			if (NW > 1)
				end_shares<T, L, D>(a, h, merge, t, now.part, &st, scale, warp, NW, lane);
			else
				end_rows<T, L, D>(a, t, now.part, &st, scale, warp_row, lane);
			if (NW > 1) /* what is in shared memory has been read */
				computing_sync<L::computing>();
		}
	}
}

template <class T, int D, int MW, int NW> static __device__ void attend(const struct attend_args &a)
{
	using L = layout<D, MW, NW>;
	extern __shared__ __align__(128) unsigned char memory[]; /* head | merge | stages */
	constexpr int head_bytes = ATTEND_HEAD_BYTES;
	struct shared_head *const h = reinterpret_cast<struct shared_head *>(memory);
	float *const merge = reinterpret_cast<float *>(memory + head_bytes);
	const uint32_t stages_at = shared_address(memory + head_bytes + L::merge);
	const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

	static_assert(sizeof(struct shared_head) <= ATTEND_HEAD_BYTES, "the host asks for as much");
	static_assert(L::rows == ATTEND_STAGE_ROWS(MW == 1, D) && 2 * L::half == ATTEND_STAGE_BYTES(MW == 1, D) &&
			L::merge == ATTEND_MERGE_BYTES(MW == 1, D) && L::M == ATTEND_TILE_ROWS(MW == 1, D),
		"the host counts the same");
	if (threadIdx.x == 0) {
		for (uint32_t i = 0; i < a.stages; i++) {
			barrier_init(&h->full[i], 33); /* the copies of 32 lanes, and what is said of the stage */
			barrier_init(&h->empty[i], MW * NW);
		}
	}
	__syncthreads();
	if (warp == MW * NW)
		fetch<L, D>(a, h, stages_at, lane);
	else
		compute<T, L, D, MW, NW>(a, h, merge, stages_at, warp, lane);
}

#endif
