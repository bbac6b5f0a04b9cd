// SPDX-License-Identifier: Apache-2.0
/*
 * For every class and every age (four bins an octave) two numbers are kept: how many blocks were used again at that
 * age, and for how long blocks were there that could have been. Their quotient is the hazard: the chance of use
 * per unit of time. Held or evicted makes no difference to either, so what is learned does not depend on what
 * was evicted; a policy that learned only from what it keeps would confirm itself.
 *
 * Exposure is integrated in ticks. Blocks of one class whose last use fell into the same span of time are one
 * number; spans grow with their distance from now (neighbours merge while together they are shorter than a quarter of
 * their age), so there are a few dozen of them however long the memory reaches.
 *
 * Worth of a class at an age is Gittins' index for a job that may be dropped at any moment:
 *
 *	worth(a) = max over b > a of	P(used before b | not before a) / E[time until used or b]
 *
 * the best rate of hits per time of occupancy that any plan for this block can promise. It needs no horizon, and it
 * handles what a hazard alone gets wrong: a block that is never used in its first minute and often in its
 * second is kept through the first if that pays. Dropping the block of least worth is what LHD (Beckmann et al.,
 * NSDI 2018) does with a density averaged over the ages at which it happens to evict; the index has no such feedback.
 *
 * Blocks come in chains, so a class sees far fewer independent events than blocks, and young classes see none. So
 * estimates are shrunk towards simpler ones, each a weight in hits:
 *
 *	hazard of (class, age)		 <- 200 -  factor of class x of class in band x hazard of all at that age
 *	factor of class in band		           product of the factors of its traits in that band of ages
 *	factor of a trait's value in band <- 50 -  1
 *	factor of class			 <-  50 -  product of the factors of its traits
 *	factor of a trait's value	 <-  10 -  1
 *	hazard of all at an age		 <-  16 -  0.1 / age, which orders by recency
 *
 * With no experience the policy is LRU. The bands (two octaves of age each) are there because a factor that is the same
 * at all ages is wrong in a way that more experience does not mend: the hazard of all falls about as 1 / age, since
 * those used often leave the old ages to the others, but of blocks that are equally popular it does not fall at
 * all. Without bands, what is used often looks worthless when its turn is a little late, and S3-FIFO, which only
 * counts, is better under Zipf.
 *
 * What is sensitive. The weights are not: four times all of them (before there were bands) costs .1 to .4 points
 * here and there, bands of one octave as little. More classes are: each thins out the others, and finer hit counts, or the last pause between
 * uses as one more trait, lost as often as they won. So is the memory of what was evicted: four times as much of
 * it costs small caches up to .9 points on some workloads and wins up to .6 on others. Experience fades with a half-life of a few
 * turnovers of everything that is known, so a change of workload is followed.
 */
#include "daemon/cache/policy_learn.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BINS          128 /* ages up to 2^32 */
#define BAND_BINS     8   /* two octaves */
#define BANDS         (BINS / BAND_BINS)
#define SPANS         128
#define MERGE_BELOW   4  /* spans: merge while shorter than age / 4 */
#define TICKS_HELD    64 /* a tick is this part of what is held */
#define TICK_MIN      16
#define ESTIMATE_MIN  1024 /* uses between two estimates: bounds their cost per use */
#define ESTIMATE_TICK 8
#define HALF_LIFE     4 /* turnovers of what is known */
#define KNOWN_MIN     65536

#define WEIGHT_AGE   200.0
#define WEIGHT_CLASS 50.0
#define WEIGHT_TRAIT 10.0
#define WEIGHT_BAND  50.0
#define WEIGHT_ALL   16.0
#define PRIOR_HAZARD 0.1

static const uint32_t levels[N_TRAITS] = {5, 4, 8, N_SUPERSEDED, 2, N_KIN};
#define LEVELS_MAX 8
#define CLASSES    (5 * 4 * 8 * 3 * 2 * 3)

struct class
{
	double hits[BINS], exposure[BINS];
	float worth[BINS];
	uint32_t population[SPANS];
	double factor, band[BANDS];
	bool active;
};

/* Hits a class had, and hits it would have had if it were what is assumed so far. */
struct tally {
	double had, expected;
};

struct learn {
	uint64_t now, next_tick, last_tick, next_estimate, last_estimate;
	uint64_t since[SPANS]; /* span i: last uses in [since[i], since[i + 1]) */
	unsigned n_spans;
	unsigned n_active;
	uint16_t active[CLASSES];
	double width[BINS], hazard[BINS]; /* of an age bin; of all classes */
	struct class *class;
	struct tally tally[CLASSES]; /* by place among the active; of use during an estimate only */
	double fit[CLASSES];
};

static unsigned bin_of(uint64_t age)
{
	unsigned octave;

	if (!age)
		return 0;
	octave = 63 - (unsigned)__builtin_clzll(age);
	return octave >= BINS / 4 ? BINS - 1 : 4 * octave + (unsigned)((age << 2 >> octave) & 3);
}

static double bin_start(unsigned b)
{
	return ldexp(1 + .25 * (b & 3), (int)(b / 4));
}

/* 0, 1, 2, then octaves. */
static uint32_t octaves(uint32_t v)
{
	return v < 3 ? v : 33 - (uint32_t)__builtin_clz(v - 1);
}

uint16_t learn_class(const uint32_t trait[N_TRAITS])
{
	const uint32_t level[N_TRAITS] = {
		[TRAIT_HITS] = octaves(trait[TRAIT_HITS]),
		[TRAIT_TURN] = octaves(trait[TRAIT_TURN]),
		[TRAIT_RUN] = 31 - (uint32_t)__builtin_clz(trait[TRAIT_RUN] + 1),
		[TRAIT_SUPERSEDED] = trait[TRAIT_SUPERSEDED],
		[TRAIT_LAST] = trait[TRAIT_LAST],
		[TRAIT_KIN] = trait[TRAIT_KIN],
	};
	uint32_t class = 0;

	for (unsigned i = 0; i < N_TRAITS; i++) {
		uint32_t last = levels[i] - 1;

		class = class * levels[i] + (level[i] < last ? level[i] : last);
	}
	return (uint16_t) class;
}

static void levels_of(uint16_t class, uint32_t ret[N_TRAITS])
{
	for (unsigned i = N_TRAITS; i-- > 0; class /= levels[i])
		ret[i] = class % levels[i];
}

int learn_new(struct learn **ret)
{
	struct learn *l = calloc(1, sizeof(*l));

	if (!l)
		return -ENOMEM;
	l->class =
		calloc(CLASSES, sizeof(*l->class)); /* pages of classes never seen stay untouched */
	if (!l->class) {
		free(l);
		return -ENOMEM;
	}
	for (unsigned b = 0; b < BINS; b++) {
		l->width[b] = bin_start(b + 1) - bin_start(b);
		l->hazard[b] = PRIOR_HAZARD / bin_start(b + 1);
	}
	l->n_spans = 1;
	l->next_tick = TICK_MIN;
	*ret = l;
	return 0;
}

struct learn *learn_free(struct learn *l)
{
	if (l) {
		free(l->class);
		free(l);
	}
	return NULL;
}

/* ---- the worth of a class --------------------------------------------------------------------- */

/* Keeping a block from some age to a later one: uses, time and the share left, per block that is there at its start. */
struct stretch {
	double uses, time, left;
};

/* A band's factor stands for its middle; from there to the next it changes evenly. */
static double between(const double *band, unsigned b)
{
	/* in half bins, from the middle of the band before the first */
	const unsigned x = 2 * b + 1 + BAND_BINS;
	const unsigned i = x / (2 * BAND_BINS);
	const double part = (double)(x % (2 * BAND_BINS)) / (2 * BAND_BINS);
	const double low = band[i ? i - 1 : 0], high = band[i < BANDS ? i : BANDS - 1];

	return low + (high - low) * part;
}

/*
 * The best plan from an age on is the first stretch of the concave hull over (time, uses) from there. Built from
 * the oldest age down: a bin takes in the stretches behind it for as long as they pay more than it does.
 */
static void appraise(const struct learn *l, struct class *c)
{
	struct stretch hull[BINS];
	unsigned n = 0;

	for (unsigned b = BINS; b-- > 0;) {
		double prior = c->factor * between(c->band, b) * l->hazard[b];
		double rate =
			prior * (c->hits[b] + WEIGHT_AGE) / (prior * c->exposure[b] + WEIGHT_AGE);
		double dies = -expm1(-rate * l->width[b]);
		struct stretch s = {dies, dies / rate, 1 - dies};

		for (; n && hull[n - 1].uses * s.time > s.uses * hull[n - 1].time; n--) {
			s.uses += s.left * hull[n - 1].uses;
			s.time += s.left * hull[n - 1].time;
			s.left *= hull[n - 1].left;
		}
		hull[n++] = s;
		c->worth[b] = (float)(s.uses / s.time);
	}
}

static void activate(struct learn *l, uint16_t class)
{
	struct class *c = &l->class[class];

	if (c->active)
		return;
	c->active = true;
	c->factor = 1;
	for (unsigned b = 0; b < BANDS; b++)
		c->band[b] = 1;
	l->active[l->n_active++] = class;
	appraise(l, c);
}

/* ---- estimates -------------------------------------------------------------------------------- */

/* l->fit := product of the factors of the traits' values, found by turns until they agree well enough. */
static void fit_traits(struct learn *l, double weight)
{
	double factor[N_TRAITS][LEVELS_MAX];
	uint32_t level[N_TRAITS];

	for (unsigned t = 0; t < N_TRAITS; t++)
		for (unsigned v = 0; v < LEVELS_MAX; v++)
			factor[t][v] = 1;
	for (unsigned i = 0; i < l->n_active; i++)
		l->fit[i] = 1;
	for (unsigned step = 0; step < 3 * N_TRAITS; step++) {
		const unsigned t = step % N_TRAITS;
		struct tally sum[LEVELS_MAX] = {0};

		for (unsigned i = 0; i < l->n_active; i++) {
			levels_of(l->active[i], level);
			sum[level[t]].had += l->tally[i].had;
			sum[level[t]].expected +=
				l->tally[i].expected * l->fit[i] / factor[t][level[t]];
		}
		for (unsigned i = 0; i < l->n_active; i++) {
			levels_of(l->active[i], level);
			l->fit[i] *= (sum[level[t]].had + weight) /
				(sum[level[t]].expected + weight) / factor[t][level[t]];
		}
		for (unsigned v = 0; v < LEVELS_MAX; v++)
			factor[t][v] = (sum[v].had + weight) / (sum[v].expected + weight);
	}
}

/* Fills l->tally for ages in [from, to) and returns the sum of what classes had and would have had. */
static double count(struct learn *l, unsigned from, unsigned to)
{
	double sum = 0;

	for (unsigned i = 0; i < l->n_active; i++) {
		const struct class *c = &l->class[l->active[i]];
		struct tally t = {0};

		for (unsigned b = from; b < to; b++) {
			t.had += c->hits[b];
			t.expected += c->exposure[b] * l->hazard[b];
		}
		t.expected *= c->factor;
		l->tally[i] = t;
		sum += t.had + t.expected;
	}
	return sum;
}

static void fit_classes(struct learn *l)
{
	for (unsigned i = 0; i < l->n_active; i++)
		l->class[l->active[i]].factor = 1;
	count(l, 0, BINS);
	fit_traits(l, WEIGHT_TRAIT);
	for (unsigned i = 0; i < l->n_active; i++)
		l->class[l->active[i]].factor = l->fit[i] * (l->tally[i].had + WEIGHT_CLASS) /
			(l->tally[i].expected * l->fit[i] + WEIGHT_CLASS);
	for (unsigned band = 0; band < BANDS; band++) {
		if (count(l, band * BAND_BINS, (band + 1) * BAND_BINS) < 1)
			continue;
		fit_traits(l, WEIGHT_BAND);
		for (unsigned i = 0; i < l->n_active; i++)
			l->class[l->active[i]].band[band] = l->fit[i];
	}
}

static void estimate(struct learn *l, size_t known)
{
	const double fade = exp2(-(double)(l->now - l->last_estimate) /
		(HALF_LIFE * (double)(known > KNOWN_MIN ? known : KNOWN_MIN)));
	struct tally all[BINS] = {0};

	for (unsigned i = 0; i < l->n_active; i++) {
		struct class *c = &l->class[l->active[i]];

		for (unsigned b = 0; b < BINS; b++) {
			all[b].had += c->hits[b] *= fade;
			all[b].expected += c->exposure[b] *= fade;
		}
	}
	for (unsigned b = 0; b < BINS; b++) {
		double prior = PRIOR_HAZARD / bin_start(b + 1);

		l->hazard[b] =
			prior * (all[b].had + WEIGHT_ALL) / (prior * all[b].expected + WEIGHT_ALL);
	}
	fit_classes(l);
	for (unsigned i = 0; i < l->n_active; i++)
		appraise(l, &l->class[l->active[i]]);
	l->last_estimate = l->now;
}

/* ---- time ------------------------------------------------------------------------------------- */

static void merge_span(struct learn *l, unsigned s)
{
	const unsigned after = l->n_spans - s - 2;

	for (unsigned i = 0; i < l->n_active; i++) {
		uint32_t *p = l->class[l->active[i]].population;

		p[s] += p[s + 1];
		memmove(&p[s + 1], &p[s + 2], after * sizeof(*p));
		p[l->n_spans - 1] = 0;
	}
	memmove(&l->since[s + 1], &l->since[s + 2], after * sizeof(*l->since));
	l->n_spans--;
}

static void new_span(struct learn *l)
{
	for (unsigned s = l->n_spans - 1; s-- > 0;) {
		uint64_t end = s + 2 < l->n_spans ? l->since[s + 2] : l->now;

		if ((end - l->since[s]) * MERGE_BELOW <= l->now - end)
			merge_span(l, s);
	}
	if (l->n_spans == SPANS)
		merge_span(l, 0);
	l->since[l->n_spans++] = l->now;
}

/*
 * How the ages a span's blocks went through in this tick fall into bins, per block. A block is as old as from the span's
 * end to the tick's start when it is youngest, and from start to end when it is oldest; evenly in between
 * is near enough. The youngest span is the tick itself: a block of it was there for half the time, mostly young.
 */
static unsigned spread(const struct learn *l, unsigned s, double ret[BINS])
{
	const double dt = (double)(l->now - l->last_tick);
	const bool young = s == l->n_spans - 1;
	const double low = young ? 0 : (double)(l->last_tick - l->since[s + 1]);
	const double high = young ? dt : (double)(l->now - l->since[s]);
	const unsigned first = bin_of((uint64_t)low);
	unsigned b = first;

	for (; b < BINS && (b == first || bin_start(b) < high); b++) {
		double from = fmax(low, bin_start(b));
		double to = b == BINS - 1 ? high : fmin(high, bin_start(b + 1));
		double part = fmax(0, to - from);

		ret[b] = young ? part * (1 - (from + to) / (2 * dt)) : part * dt / (high - low);
	}
	return b;
}

static void tick(struct learn *l)
{
	for (unsigned s = 0; s < l->n_spans; s++) {
		double part[BINS];
		const bool young = s == l->n_spans - 1;
		const unsigned first = young ? 0 : bin_of(l->last_tick - l->since[s + 1]);
		const unsigned end = spread(l, s, part);

		for (unsigned i = 0; i < l->n_active; i++) {
			struct class *c = &l->class[l->active[i]];

			for (unsigned b = first; c->population[s] && b < end; b++)
				c->exposure[b] += part[b] * c->population[s];
		}
	}
	l->last_tick = l->now;
	new_span(l);
}

void learn_advance(struct learn *l, uint64_t now, size_t known, size_t held)
{
	const uint64_t part = held / TICKS_HELD;

	assert(now >= l->now);
	l->now = now;
	if (now < l->next_tick)
		return;
	tick(l);
	l->next_tick = now + (part > TICK_MIN ? part : TICK_MIN);
	if (now < l->next_estimate)
		return;
	estimate(l, known);
	l->next_estimate =
		now + (part > ESTIMATE_MIN / ESTIMATE_TICK ? part * ESTIMATE_TICK : ESTIMATE_MIN);
}

/* ---- classes ---------------------------------------------------------------------------------- */

static unsigned span_of(const struct learn *l, uint64_t t)
{
	unsigned low = 0, high = l->n_spans;

	while (high - low > 1) {
		unsigned mid = (low + high) / 2;

		if (l->since[mid] <= t)
			low = mid;
		else
			high = mid;
	}
	return low;
}

void learn_enter(struct learn *l, uint16_t class, uint64_t last_use)
{
	activate(l, class);
	l->class[class].population[span_of(l, last_use)]++;
}

/* The tick will not see a block that leaves before it ends. */
static void expose_short(struct class *c, double age)
{
	for (unsigned b = 0; b < BINS - 1 && bin_start(b) < age; b++)
		c->exposure[b] += fmin(bin_start(b + 1), age) - bin_start(b);
}

void learn_leave(struct learn *l, uint16_t class, uint64_t last_use)
{
	const unsigned span = span_of(l, last_use);
	struct class *c = &l->class[class];

	assert(c->population[span]);
	c->population[span]--;
	if (span == l->n_spans - 1)
		expose_short(c, (double)(l->now - last_use));
}

void learn_reuse(struct learn *l, uint16_t class, uint64_t last_use, uint64_t now)
{
	learn_leave(l, class, last_use);
	l->class[class].hits[bin_of(now - last_use)]++;
}

double learn_worth(const struct learn *l, uint16_t class, uint64_t age)
{
	return (double)l->class[class].worth[bin_of(age)];
}
