/* SPDX-License-Identifier: Apache-2.0 */
/* policy: without operands what is in force; NAME=VALUE changes it first. */
#include "client/ctl/ctl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* NAME=VALUE into p. Negative: taken; otherwise the exit status. */
static int take(const char *word, struct kvg_policy *p)
{
	const char *value = strchr(word, '=');
	size_t n = value ? (size_t)(value - word) : 0;
	double share;
	char *end;

	if (!value)
		return ctl_usage("policy", "'%s' is not NAME=VALUE", word);
	value++;
	if (n == 10 && !strncmp(word, "host_bytes", n)) {
		if (ctl_parse_size(value, &p->host_bytes) < 0 || !p->host_bytes)
			return ctl_usage(
				"policy", "host_bytes wants a size such as 16GiB, not '%s'", value);
		return -1;
	}
	share = strtod(value, &end);
	if (end == value || *end || !(share > 0 && share <= 1))
		return ctl_usage("policy", "'%s' wants a share above 0 and at most 1", word);
	if (n == 5 && !strncmp(word, "floor", n))
		p->floor = (float)share;
	else if (n == 4 && !strncmp(word, "high", n))
		p->high_watermark = (float)share;
	else if (n == 3 && !strncmp(word, "low", n))
		p->low_watermark = (float)share;
	else
		return ctl_usage("policy", "no setting '%.*s': use floor, host_bytes, high, low",
			(int)n, word);
	return -1;
}

static void add_floor(void *userdata, const char *model, float floor)
{
	json_object_object_add(userdata, model, ctl_json_real(floor));
}

static void print_policy(const struct kvg_policy *p, struct json_object *floors)
{
	if (ctl_options.json) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "floor", ctl_json_real(p->floor));
		json_object_object_add(
			o, "host_bytes", json_object_new_int64((int64_t)p->host_bytes));
		json_object_object_add(
			o, "host_used", json_object_new_int64((int64_t)p->host_used));
		json_object_object_add(o, "high_watermark", ctl_json_real(p->high_watermark));
		json_object_object_add(o, "low_watermark", ctl_json_real(p->low_watermark));
		json_object_object_add(o, "model_floors", json_object_get(floors));
		ctl_json(o);
		return;
	}
	printf("floor       %.2f%s\n", p->floor,
		p->floor >= 1 ? "  lossless: only whole blocks leave" : "");
	json_object_object_foreach(floors, model, value)
		printf("            %.2f  for %s\n", json_object_get_double(value), model);
	printf("host_bytes  %s, %s used\n", ctl_bytes((double)p->host_bytes).s,
		ctl_bytes((double)p->host_used).s);
	printf("high        %.2f  eviction starts\nlow         %.2f  eviction stops\n",
		p->high_watermark, p->low_watermark);
}

int ctl_policy(int argc, char **argv)
{
	struct kvg_policy p = KVG_OPTIONS_INIT(kvg_policy);
	const struct ctl_flag flags[] = {
		{"model", "NAME", "the floor of this model; 0 operands: what is in force for it",
			CTL_TEXT, &p.model},
		{"tenant", "NAME", "another tenant's (admins)", CTL_TEXT, &p.tenant},
		{0},
	};
	struct kvg_client *c;
	int n, r, status = ctl_parse(argc, argv, flags, &n);

	for (int i = 0; i < n && status < 0; i++)
		status = take(argv[1 + i], &p);
	if (status >= 0)
		return status;
	c = ctl_open();
	if (!c)
		return CTL_FAILED;
	p.userdata = json_object_new_object();
	p.model_floor = add_floor;
	r = kvg_policy(c, &p);
	if (r == 0)
		print_policy(&p, p.userdata);
	status = r < 0 ? ctl_failed(c, r, "policy") : CTL_OK;
	json_object_put(p.userdata);
	kvg_close(c);
	return status;
}
