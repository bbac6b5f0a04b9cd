/* SPDX-License-Identifier: Apache-2.0 */
/* One snapshot of the daemon's counters, kept flat: there are some dozens, sums over them are what is shown. */
#include "client/ctl/ctl.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reading {
	struct ctl_counters *to;
	int error;
};

static void take(void *userdata, const char *name, const char *tenant, const char *model,
	const char *tier, int plane, double value)
{
	struct reading *r = userdata;
	struct ctl_counters *s = r->to;
	struct ctl_counter *c;

	if (s->n == s->size) {
		size_t size = s->size ? s->size * 2 : 64;

		c = realloc(s->c, size * sizeof(*c));
		if (!c) {
			r->error = -ENOMEM;
			return;
		}
		s->c = c;
		s->size = size;
	}
	c = &s->c[s->n++];
	snprintf(c->name, sizeof(c->name), "%s", name);
	snprintf(c->tenant, sizeof(c->tenant), "%s", tenant);
	snprintf(c->model, sizeof(c->model), "%s", model);
	snprintf(c->tier, sizeof(c->tier), "%s", tier);
	c->plane = plane;
	c->value = value;
}

int ctl_counters_read(struct kvg_client *c, bool all, struct ctl_counters *ret)
{
	struct reading r = {.to = ret};
	int e;

	ret->n = 0;
	e = kvg_stat(c, all, take, &r);
	return e < 0 ? e : r.error;
}

void ctl_counters_fini(struct ctl_counters *s)
{
	free(s->c);
	*s = (struct ctl_counters){0};
}

double ctl_counters_sum(const struct ctl_counters *s, const char *name, int plane)
{
	double sum = 0;

	for (size_t i = 0; i < s->n; i++)
		if (!strcmp(s->c[i].name, name) && (plane < 0 || s->c[i].plane == plane))
			sum += s->c[i].value;
	return sum;
}

double ctl_counters_tier(const struct ctl_counters *s, const char *name, const char *tier)
{
	double sum = 0;

	for (size_t i = 0; i < s->n; i++)
		if (!strcmp(s->c[i].name, name) && !strcmp(s->c[i].tier, tier))
			sum += s->c[i].value;
	return sum;
}
