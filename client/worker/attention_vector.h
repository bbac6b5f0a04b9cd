/* SPDX-License-Identifier: Apache-2.0 */
/*
 * attention_vector: one step of attention with vectors of LANES floats; included once for each
 * width.
 * Thread: as attention.h. Locks: none. Blocks: never. Errors: none.
 *
 * The includer defines LANES, TARGET (function attribute), NAME(x) and QUERIES, how many queries
 * share what is loaded. NAME(from_f16) and NAME(from_bf16), which load a vector of halves. The
 * other vectors are those of GCC and clang.
 *
 * Rows are widened to f32 and K is turned over, so that a vector holds one dimension of LANES
 * rows: a score is then a chain of multiply-adds without any sum across lanes.
 *
 * Meanwhile the next tile's rows are asked for, one each AHEAD rounds of multiply-adds: see
 * ahead_row().
 */
typedef float NAME(vf) __attribute__((vector_size(LANES * 4)));
typedef int32_t NAME(vi) __attribute__((vector_size(LANES * 4)));

#define VF      NAME(vf)
#define VI      NAME(vi)
#define LOAD    NAME(load)
#define STORE   NAME(store)
#define INLINE  static inline __attribute__((always_inline)) TARGET
#define VECTORS (TILE / LANES)
#define AHEAD   (256 / (LANES * QUERIES))
#define WIDE    4 /* vectors of scores, or of a row of V, that are worked on together */

#if LANES == 16
#define EACH_LANE(f, s)                                                                            \
	f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s), f(8, s), f(9, s),  \
		f(10, s), f(11, s), f(12, s), f(13, s), f(14, s), f(15, s)
#else
#define EACH_LANE(f, s) f(0, s), f(1, s), f(2, s), f(3, s), f(4, s), f(5, s), f(6, s), f(7, s)
#endif
#define LANE_INDEX(l, s) (l)
#define LANE_SWAP(l, s)  ((l) ^ (s))
#define LANE_LOW(l, s)   ((l) & (s) ? LANES + (l) - (s) : (l))
#define LANE_HIGH(l, s)  ((l) & (s) ? LANES + (l) : (l) + (s))

INLINE VF NAME(load)(const float *p)
{
	VF v;

	memcpy(&v, p, sizeof(v));
	return v;
}

INLINE void NAME(store)(float *p, VF v)
{
	memcpy(p, &v, sizeof(v));
}

INLINE VF NAME(all)(float f)
{
	return f - (VF){0};
}

INLINE VF NAME(choose)(VI mask, VF a, VF b)
{
	return (VF)(((VI)a & mask) | ((VI)b & ~mask));
}

/*
 * exp(x) for x <= 0, to 1e-7 of it; 0 below -87. Cody and Waite's reduction, then the polynomial
 * of cephes' expf.
 */
INLINE VF NAME(exp)(VF x)
{
	const VF magic = NAME(all)(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
	const VF n = (x * 1.44269504f + magic) - magic;
	const VF r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
	VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;

	p = p * r + 8.3334519073e-3f;
	p = p * r + 4.1665795894e-2f;
	p = p * r + 1.6666665459e-1f;
	p = p * r + 5.0000001201e-1f;
	p = p * r * r + r + 1.0f;
	p = (VF)((VI)p + (__builtin_convertvector(n, VI) << 23));
	return NAME(choose)(x > -87.0f, p, (VF){0});
}

/*
 * Each lane and the one `s` lanes off: what one step of a reduction across lanes adds or
 * compares.
 */
#define SWAP(v, s) __builtin_shufflevector(v, v, EACH_LANE(LANE_SWAP, s))

INLINE float NAME(sum)(VF v)
{
#if LANES == 16
	v += SWAP(v, 8);
#endif
	v += SWAP(v, 4);
	v += SWAP(v, 2);
	v += SWAP(v, 1);
	return v[0];
}

INLINE VF NAME(larger)(VF a, VF b)
{
	return NAME(choose)(a > b, a, b);
}

INLINE float NAME(max)(VF v)
{
#if LANES == 16
	v = NAME(larger)(v, SWAP(v, 8));
#endif
	v = NAME(larger)(v, SWAP(v, 4));
	v = NAME(larger)(v, SWAP(v, 2));
	v = NAME(larger)(v, SWAP(v, 1));
	return v[0];
}

INLINE VF NAME(widen)(const void *row, uint32_t c, uint32_t dtype)
{
	if (dtype == KVG_DTYPE_F32)
		return LOAD((const float *)row + c);
	if (dtype == KVG_DTYPE_BF16)
		return NAME(from_bf16)((const uint16_t *)row + c);
	return NAME(from_f16)((const uint16_t *)row + c);
}

/* The end of a row of n that fills no vector, and zeros. */
INLINE VF NAME(widen_rest)(const void *row, uint32_t c, uint32_t n, uint32_t dtype)
{
	const uint32_t size = dtype == KVG_DTYPE_F32 ? 4 : 2;
	float rest[LANES] = {0.0f};

	memcpy(rest, (const char *)row + c * size, (n - c) * size);
	return NAME(widen)(rest, 0, dtype);
}

/*
 * One round of turning a square over: exchanges its quarters of side s in every block of side 2
 * s.
 */
#define TURN(r, s)                                                                                 \
	do {                                                                                       \
		_Pragma("GCC unroll 16") for (int i_ = 0; i_ < LANES; i_++)                        \
		{                                                                                  \
			if (i_ & (s))                                                              \
				continue;                                                          \
			const VF a_ = r[i_], b_ = r[i_ + (s)];                                     \
                                                                                                   \
			r[i_] = __builtin_shufflevector(a_, b_, EACH_LANE(LANE_LOW, s));           \
			r[i_ + (s)] = __builtin_shufflevector(a_, b_, EACH_LANE(LANE_HIGH, s));    \
		}                                                                                  \
	} while (0)

INLINE void NAME(turn)(float *dst, VF r[LANES])
{
	TURN(r, 1);
	TURN(r, 2);
	TURN(r, 4);
#if LANES == 16
	TURN(r, 8);
#endif
#pragma GCC unroll 16
	for (int i = 0; i < LANES; i++)
		STORE(dst + (size_t)i * TILE, r[i]);
}

/* Behind the tile's last row that row is taken again: no query sees it. */
INLINE void NAME(load_k)(struct attention *a, const struct tile *t, uint32_t dtype)
{
	for (uint32_t j = 0; j < t->n; j += LANES) {
		const void *row[LANES];
		VF r[LANES];
		uint32_t c = 0;

		for (uint32_t i = 0; i < LANES; i++)
			row[i] = t->k[j + i < t->n ? j + i : t->n - 1];
		for (; c + LANES <= a->k_dim; c += LANES) {
#pragma GCC unroll 16
			for (uint32_t i = 0; i < LANES; i++)
				r[i] = NAME(widen)(row[i], c, dtype);
			NAME(turn)(a->k_dims + (size_t)c * TILE + j, r);
		}
		if (c < a->k_dim) {
			for (uint32_t i = 0; i < LANES; i++)
				r[i] = NAME(widen_rest)(row[i], c, a->k_dim, dtype);
			NAME(turn)(a->k_dims + (size_t)c * TILE + j, r);
		}
	}
}

INLINE void NAME(load_v)(struct attention *a, const struct tile *t, uint32_t dtype)
{
	for (uint32_t j = 0; j < t->n; j++) {
		float *to = a->v_rows + (size_t)j * a->v_pad;
		uint32_t c = 0;

		if (j % 4 == 0)
			ahead_row(a);
		for (; c + LANES <= a->v_dim; c += LANES)
			STORE(to + c, NAME(widen)(t->v[j], c, dtype));
		if (c < a->v_dim)
			STORE(to + c, NAME(widen_rest)(t->v[j], c, a->v_dim, dtype));
	}
}

INLINE void NAME(load_tile)(struct attention *a, const struct tile *t)
{
	if (t->dtype == KVG_DTYPE_F32) {
		NAME(load_k)(a, t, KVG_DTYPE_F32);
		NAME(load_v)(a, t, KVG_DTYPE_F32);
	} else if (t->dtype == KVG_DTYPE_BF16) {
		NAME(load_k)(a, t, KVG_DTYPE_BF16);
		NAME(load_v)(a, t, KVG_DTYPE_BF16);
	} else {
		NAME(load_k)(a, t, KVG_DTYPE_F16);
		NAME(load_v)(a, t, KVG_DTYPE_F16);
	}
}

/* Scores of `queries` queries from `first` on with WIDE vectors of rows, from row j on. */
INLINE void NAME(scores)(struct attention *a, const struct head *h, uint32_t first,
	uint32_t queries, uint32_t j, float p[QUERIES][TILE])
{
	VF s[QUERIES][WIDE];

#pragma GCC unroll 4
	for (uint32_t i = 0; i < queries; i++)
#pragma GCC unroll 4
		for (uint32_t w = 0; w < WIDE; w++)
			s[i][w] = (VF){0};
	for (uint32_t c = 0; c < a->k_dim; c++) {
		const float *k = a->k_dims + (size_t)c * TILE + j;

		if (c % AHEAD == 0)
			ahead_row(a);
#pragma GCC unroll 4
		for (uint32_t i = 0; i < queries; i++) {
			const VF q = NAME(all)(h->q[(size_t)(first + i) * a->k_pad + c]);

#pragma GCC unroll 4
			for (uint32_t w = 0; w < WIDE; w++)
				s[i][w] += q * LOAD(k + w * LANES);
		}
	}
#pragma GCC unroll 4
	for (uint32_t i = 0; i < queries; i++)
#pragma GCC unroll 4
		for (uint32_t w = 0; w < WIDE; w++)
			STORE(&p[i][j + w * LANES], s[i][w]);
}

/*
 * Scores to exp(score - max), zero for what the query does not see. Returns what acc is to be
 * scaled by.
 */
INLINE float NAME(soften)(struct head *h, const struct tile *t, uint32_t query, float p[TILE])
{
	const VI lane = {EACH_LANE(LANE_INDEX, 0)};
	const int32_t visible = (int32_t)tile_visible(h, t, query);
	VF s[VECTORS], m = NAME(all)(h->max[query]), sum = {0};
	float scale, max;

#pragma GCC unroll 8
	for (int w = 0; w < VECTORS; w++) {
		s[w] = NAME(choose)(
			lane + w * LANES < visible, LOAD(p + w * LANES), NAME(all)(NOTHING_SEEN));
		m = NAME(larger)(s[w], m);
	}
	max = NAME(max)(m);
	scale = NAME(exp)(NAME(all)(h->max[query] - max))[0];
#pragma GCC unroll 8
	for (int w = 0; w < VECTORS; w++) {
		s[w] = NAME(choose)(
			lane + w * LANES < visible, NAME(exp)(s[w] - NAME(all)(max)), (VF){0});
		sum += s[w];
		STORE(p + w * LANES, s[w]);
	}
	h->sum[query] = h->sum[query] * scale + NAME(sum)(sum);
	h->max[query] = max;
	return scale;
}

/*
 * acc = scale acc + p v for `queries` queries and `wide` vectors of dimensions from c on. The
 * tile is summed by itself first: sums of 64, and then of tiles, lose less than one long sum.
 */
INLINE void NAME(values)(struct attention *a, struct head *h, uint32_t first, uint32_t queries,
	uint32_t c, uint32_t wide, uint32_t n, float p[QUERIES][TILE], const float scale[QUERIES])
{
	VF sum[QUERIES][WIDE];

#pragma GCC unroll 4
	for (uint32_t i = 0; i < queries; i++)
#pragma GCC unroll 4
		for (uint32_t w = 0; w < wide; w++)
			sum[i][w] = (VF){0};
	for (uint32_t j = 0; j < n; j++) {
		const float *v = a->v_rows + (size_t)j * a->v_pad + c;

		if (j % (2 * AHEAD) == 0)
			ahead_row(a);
#pragma GCC unroll 4
		for (uint32_t i = 0; i < queries; i++)
#pragma GCC unroll 4
			for (uint32_t w = 0; w < wide; w++)
				sum[i][w] += p[i][j] * LOAD(v + w * LANES);
	}
#pragma GCC unroll 4
	for (uint32_t i = 0; i < queries; i++)
#pragma GCC unroll 4
		for (uint32_t w = 0; w < wide; w++) {
			float *acc = h->acc + (size_t)(first + i) * a->v_pad + c + w * LANES;

			STORE(acc, LOAD(acc) * scale[i] + sum[i][w]);
		}
}

INLINE void NAME(queries)(
	struct attention *a, const struct tile *t, uint32_t first, uint32_t queries)
{
	struct head *h = &a->head[t->head];
	float p[QUERIES][TILE] __attribute__((aligned(64)));
	float scale[QUERIES];
	uint32_t c = 0;

	if (tile_visible(h, t, first + queries - 1) == 0)
		return;
	for (uint32_t j = 0; j < TILE; j += WIDE * LANES)
		NAME(scores)(a, h, first, queries, j, p);
	for (uint32_t i = 0; i < queries; i++)
		scale[i] = NAME(soften)(h, t, first + i, p[i]);
	for (; c + WIDE * LANES <= a->v_pad; c += WIDE * LANES)
		NAME(values)(a, h, first, queries, c, WIDE, t->n, p, scale);
	for (; c + 2 * LANES <= a->v_pad; c += 2 * LANES)
		NAME(values)(a, h, first, queries, c, 2, t->n, p, scale);
	for (; c < a->v_pad; c += LANES)
		NAME(values)(a, h, first, queries, c, 1, t->n, p, scale);
}

TARGET void NAME(attention_step)(struct attention *a, const struct tile *t)
{
	const struct head *h = &a->head[t->head];
	uint32_t first = 0;

	NAME(load_tile)(a, t);
	for (; first + QUERIES <= h->n; first += QUERIES)
		NAME(queries)(a, t, first, QUERIES);
	for (; first + 2 <= h->n; first += 2)
		NAME(queries)(a, t, first, 2);
	if (first < h->n)
		NAME(queries)(a, t, first, 1);
}

#undef VF
#undef VI
#undef LOAD
#undef STORE
#undef INLINE
#undef VECTORS
#undef WIDE
#undef AHEAD
#undef EACH_LANE
#undef LANE_INDEX
#undef LANE_SWAP
#undef SWAP
#undef LANE_LOW
#undef LANE_HIGH
#undef TURN
