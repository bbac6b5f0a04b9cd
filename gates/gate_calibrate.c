/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Edge i is the n-th best score, n = retained[i] of all, rounded: exactly so many pairs score at least
 * the edge when no two score the same.
 */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate.h"

const float gate_default_retained[6] = {.05f, .10f, .20f, .30f, .50f, .75f};

static int descending(const void *a, const void *b)
{
	float x = *(const float *)a, y = *(const float *)b;

	return x < y ? 1 : x > y ? -1 : 0;
}

static bool usable(const float *scores, uint64_t n, const float *retained, uint32_t n_retained)
{
	for (uint32_t i = 0; i < n_retained; i++)
		if (!(retained[i] > 0 && retained[i] < 1) ||
			(i > 0 && !(retained[i] > retained[i - 1])))
			return false;
	for (uint64_t i = 0; i < n; i++)
		if (isnan(scores[i]))
			return false;
	return n > 0;
}

int gate_quantiles(const float *scores, uint64_t n, const float *retained, uint32_t n_retained,
	float *ret_edges)
{
	float *sorted;

	if (!usable(scores, n, retained, n_retained))
		return -EINVAL;
	sorted = malloc(n * sizeof(*sorted));
	if (!sorted)
		return -ENOMEM;
	memcpy(sorted, scores, n * sizeof(*sorted));
	qsort(sorted, n, sizeof(*sorted), descending);
	for (uint32_t i = 0; i < n_retained; i++) {
		uint64_t at = (uint64_t)llround((double)retained[i] * (double)n);

		ret_edges[i] = sorted[at > 0 ? at - 1 : 0];
	}
	free(sorted);
	return 0;
}
