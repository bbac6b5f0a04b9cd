/* SPDX-License-Identifier: Apache-2.0 */
/*
 * figure: one line of JSON for each thing measured, compared with its row of bounds.def; and the clock and the order
 * statistics that every bench needs.
 * Thread: one. Locks: none. Blocks: no. Errors: asserts on a figure that is no number.
 */
#ifndef KVGATE_TESTS_BENCH_FIGURE_H
#define KVGATE_TESTS_BENCH_FIGURE_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FIGURE_NONE NAN /* there is no such number */

struct figure_line {
	const char *suite, *name, *unit;
	double value;
	double limit; /* the rival's figure; FIGURE_NONE: the bound, where it is one of the value */
	double ratio; /* FIGURE_NONE: value / limit */
	bool unbound; /* measured on something else than the bound was given for */
};

/* Prints the line; `what` explains the limit, the bound is added. A bound that is missed is named on stderr. */
void figure_print(const struct figure_line *f, const char *what, ...)
	__attribute__((format(printf, 2, 3)));
/* Exit status of a bench: 1 when a figure printed so far missed its bound. */
int figure_status(void);

double figure_now_us(void);
/* Of the calling thread: what computes is compared by it, so that others on the machine do not count. */
double figure_cpu_us(void);
/* These sort the values. */
double figure_median(double *values, size_t n);
double figure_quantile(double *values, size_t n, double q);

#endif
