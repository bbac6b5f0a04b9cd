/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/bench/figure.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum compared {
	VALUE,
	RATIO
};
enum direction {
	AT_MOST,
	AT_LEAST
};

static const struct bound {
	const char *suite, *name;
	enum compared compared;
	enum direction direction;
	double bound;
} bounds[] = {
#define BOUND(suite, name, compared, direction, bound) {#suite, #name, compared, direction, bound},
#include "tests/bench/bounds.def"
#undef BOUND
};

static int status;

static const struct bound *bound_of(const struct figure_line *f)
{
	for (size_t i = 0; !f->unbound && i < sizeof(bounds) / sizeof(bounds[0]); i++)
		if (!strcmp(bounds[i].name, f->name)) {
			assert(!strcmp(bounds[i].suite, f->suite));
			return &bounds[i];
		}
	return NULL;
}

static const char *direction_name(const struct bound *b)
{
	return b->direction == AT_MOST ? "at most" : "at least";
}

static void compare(const struct bound *b, const struct figure_line *f)
{
	const double got = b->compared == RATIO ? f->ratio : f->value;

	if (b->direction == AT_MOST ? got <= b->bound : got >= b->bound)
		return;
	fprintf(stderr, "%s: %s%.6g, must be %s %g\n", f->name,
		b->compared == RATIO ? "a ratio of " : "", got, direction_name(b), b->bound);
	status = 1;
}

/* JSON has no NAN. */
static void put_number(const char *key, double number)
{
	if (isnan(number))
		printf(",\"%s\":null", key);
	else
		printf(",\"%s\":%.6g", key, number);
}

void figure_print(const struct figure_line *given, const char *what, ...)
{
	const struct bound *b = bound_of(given);
	struct figure_line f = *given;
	va_list ap;

	if (isnan(f.limit) && b && b->compared == VALUE)
		f.limit = b->bound;
	if (isnan(f.ratio) && f.limit > 0)
		f.ratio = f.value / f.limit;
	assert(isfinite(f.value) && !isinf(f.limit) && !isinf(f.ratio));
	printf("{\"suite\":\"%s\",\"name\":\"%s\"", f.suite, f.name);
	put_number("value", f.value);
	printf(",\"unit\":\"%s\"", f.unit);
	put_number("limit", f.limit);
	printf(",\"limit_what\":\"");
	va_start(ap, what);
	vprintf(what, ap);
	va_end(ap);
	if (b)
		printf("; %s must be %s %g", b->compared == RATIO ? "the ratio" : "it",
			direction_name(b), b->bound);
	printf("\"");
	put_number("ratio", f.ratio);
	printf("}\n");
	fflush(stdout);
	if (b)
		compare(b, &f);
}

int figure_status(void)
{
	return status;
}

static double clock_us(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

double figure_now_us(void)
{
	return clock_us(CLOCK_MONOTONIC);
}

double figure_cpu_us(void)
{
	return clock_us(CLOCK_THREAD_CPUTIME_ID);
}

static int by_value(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double figure_quantile(double *values, size_t n, double q)
{
	assert(n > 0);
	qsort(values, n, sizeof(*values), by_value);
	return values[(size_t)(q * (double)(n - 1))];
}

double figure_median(double *values, size_t n)
{
	assert(n > 0);
	qsort(values, n, sizeof(*values), by_value);
	return values[n / 2];
}
