/* SPDX-License-Identifier: Apache-2.0 */
/* status: who we are to the daemon, how full the tenant is, what its layouts look like; with --counters all of them. */
#include "client/ctl/ctl.h"

#include <stdio.h>
#include <string.h>

static const char *prose_of(const char *name)
{
#define COUNTER(id, counter, kind, split, prose)                                                   \
	if (!strcmp(name, counter))                                                                \
		return prose;
#include "daemon/base/counters.def"
#undef COUNTER
	return "";
}

struct status {
	struct kvg_session_info session;
	struct kvg_policy policy;
	struct ctl_counters counters;
	struct json_object *layouts, *floors; /* with --json */
	unsigned n_layouts;
	struct json_object *devices; /* with --json */
	char no_device[300];
};

static void print_layout(void *userdata, const struct kvg_layout_entry *l)
{
	struct status *s = userdata;
	const char *dtype = kvg_dtype_name(l->dtype);
	char shape[64];

	if (s->layouts) {
		json_object_array_add(s->layouts, ctl_json_layout(l));
		return;
	}
	if (!s->n_layouts++)
		printf("\n%-6s %-28s %-24s %6s %7s %6s %6s  %s\n", "LAYOUT", "MODEL", "BLOCK",
			"TOKENS", "PAGE", "PLANES", "FLOOR", "GATE");
	if (l->opaque_bytes)
		snprintf(shape, sizeof(shape), "opaque %s", ctl_bytes((double)l->opaque_bytes).s);
	else
		snprintf(shape, sizeof(shape), "%ux%u x %u/%u %s", l->layers, l->heads, l->k_dim,
			l->v_dim, dtype ? dtype : "?");
	printf("%-6u %-28s %-24s %6u %7s %6u %6.2f  %s\n", l->id, l->model, shape, l->block_tokens,
		ctl_bytes(l->page_bytes).s, l->n_edges + 1, l->floor, l->gate[0] ? l->gate : "-");
}

static void take_floor(void *userdata, const char *model, float floor)
{
	struct status *s = userdata;

	if (s->floors)
		json_object_object_add(s->floors, model, ctl_json_real(floor));
	else
		printf("         %.2f for %s\n", floor, model);
}

static struct json_object *json_counters(const struct ctl_counters *s)
{
	struct json_object *list = json_object_new_array();

	for (size_t i = 0; i < s->n; i++) {
		const struct ctl_counter *c = &s->c[i];
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "name", json_object_new_string(c->name));
		json_object_object_add(o, "tenant", json_object_new_string(c->tenant));
		json_object_object_add(o, "model", json_object_new_string(c->model));
		json_object_object_add(o, "tier", json_object_new_string(c->tier));
		json_object_object_add(o, "plane", json_object_new_int(c->plane));
		json_object_object_add(o, "value", ctl_json_real(c->value));
		json_object_array_add(list, o);
	}
	return list;
}

static void print_json(const struct status *s)
{
	struct json_object *o = json_object_new_object(), *p = json_object_new_object();

	json_object_object_add(o, "daemon", json_object_new_string(s->session.daemon));
	json_object_object_add(o, "tenant", json_object_new_string(s->session.tenant));
	json_object_object_add(o, "admin", json_object_new_boolean(s->session.admin));
	json_object_object_add(
		p, "host_bytes", json_object_new_int64((int64_t)s->policy.host_bytes));
	json_object_object_add(p, "host_used", json_object_new_int64((int64_t)s->policy.host_used));
	json_object_object_add(p, "high_watermark", ctl_json_real(s->policy.high_watermark));
	json_object_object_add(p, "low_watermark", ctl_json_real(s->policy.low_watermark));
	json_object_object_add(p, "floor", ctl_json_real(s->policy.floor));
	json_object_object_add(p, "model_floors", s->floors);
	json_object_object_add(o, "policy", p);
	json_object_object_add(o, "layouts", s->layouts);
	json_object_object_add(o, "devices", s->devices);
	json_object_object_add(o, "no_device", json_object_new_string(s->no_device));
	json_object_object_add(o, "counters", json_counters(&s->counters));
	ctl_json(o);
}

static void print_device(void *userdata, const struct kvg_device_entry *d)
{
	struct status *s = userdata;
	struct json_object *o;
	char uuid[33];

	if (!s->devices) {
		printf("gpu %-4u %s: %s of %s in planes, %s on their way; kvgate-mover %s%s\n",
			d->ordinal, d->name, ctl_bytes((double)d->used).s,
			ctl_bytes((double)d->limit).s, ctl_bytes((double)d->copying).s,
			d->ready ? "ready" : "not ready: ",
			d->ready            ? ""
				: d->why[0] ? d->why
					    : "it starts");
		return;
	}
	for (unsigned i = 0; i < sizeof(d->uuid); i++)
		snprintf(uuid + 2 * i, 3, "%02x", d->uuid[i]);
	o = json_object_new_object();
	json_object_object_add(o, "ordinal", json_object_new_int64(d->ordinal));
	json_object_object_add(o, "uuid", json_object_new_string(uuid));
	json_object_object_add(o, "name", json_object_new_string(d->name));
	json_object_object_add(o, "bytes", json_object_new_int64((int64_t)d->bytes));
	json_object_object_add(o, "limit", json_object_new_int64((int64_t)d->limit));
	json_object_object_add(o, "segments", json_object_new_int64((int64_t)d->segments));
	json_object_object_add(o, "used", json_object_new_int64((int64_t)d->used));
	json_object_object_add(o, "copying", json_object_new_int64((int64_t)d->copying));
	json_object_object_add(o, "mover_starts", json_object_new_int64((int64_t)d->starts));
	json_object_object_add(o, "mover", json_object_new_int64(d->mover));
	json_object_object_add(o, "ready", json_object_new_boolean(d->ready));
	json_object_object_add(o, "why", json_object_new_string(d->why));
	json_object_array_add(s->devices, o);
}

static int read_devices(struct kvg_client *c, struct status *s)
{
	int r = kvg_devices(c, print_device, s, s->no_device, sizeof(s->no_device));

	if (r == 0 && !s->devices && s->no_device[0])
		printf("gpu      none: %s\n", s->no_device);
	return r;
}

static void print_planes(const struct ctl_counters *c)
{
	double all = ctl_counters_sum(c, "kvgate_plane_bytes", -1);

	for (int p = 0; p < KVG_PLANES_MAX && all > 0; p++) {
		double n = ctl_counters_sum(c, "kvgate_plane_bytes", p);
		double evicted = ctl_counters_sum(c, "kvgate_evicted_bytes_total", p);
		char bar[32];

		if (n == 0 && evicted == 0)
			continue;
		ctl_bar(bar, sizeof(bar), 24, n / all);
		printf("plane %d  %s %10s  evicted %s\n", p, bar, ctl_bytes(n).s,
			ctl_bytes(evicted).s);
	}
}

/* Nothing, where there is no such tier or nothing ever went down. */
static void print_disk(const struct ctl_counters *c)
{
	double bytes = ctl_counters_tier(c, "kvgate_bytes", "disk"),
	       down = ctl_counters_sum(c, "kvgate_demoted_planes_total", -1),
	       up = ctl_counters_sum(c, "kvgate_promoted_planes_total", -1);

	if (bytes > 0 || down > 0 || up > 0)
		printf("disk     %s; %s planes went down, %s came up\n", ctl_bytes(bytes).s,
			ctl_count(down).s, ctl_count(up).s);
}

static void print_summary(struct status *s)
{
	const struct ctl_counters *c = &s->counters;
	double used = (double)s->policy.host_used, quota = (double)s->policy.host_bytes;

	printf("daemon   %s\ntenant   %s%s\n", s->session.daemon, s->session.tenant,
		s->session.admin ? " (admin)" : "");
	printf("memory   %s of %s (%s); eviction from %s down to %s\n", ctl_bytes(used).s,
		ctl_bytes(quota).s, ctl_percent(quota > 0 ? used / quota : 0).s,
		ctl_percent(s->policy.high_watermark).s, ctl_percent(s->policy.low_watermark).s);
	print_disk(c);
	printf("blocks   %s, %s payload\n", ctl_count(ctl_counters_sum(c, "kvgate_blocks", -1)).s,
		ctl_bytes(ctl_counters_sum(c, "kvgate_plane_bytes", -1)).s);
	printf("commits  %s done, %s were there already, %s refused\n",
		ctl_count(ctl_counters_sum(c, "kvgate_commits_total", -1)).s,
		ctl_count(ctl_counters_sum(c, "kvgate_commit_exists_total", -1)).s,
		ctl_count(ctl_counters_sum(c, "kvgate_commit_refused_total", -1)).s);
	printf("reads    %s blocks touched, %s through the socket\n",
		ctl_count(ctl_counters_sum(c, "kvgate_touches_total", -1)).s,
		ctl_count(ctl_counters_sum(c, "kvgate_acquires_total", -1)).s);
	printf("evicted  %s blocks, %s planes\n",
		ctl_count(ctl_counters_sum(c, "kvgate_evicted_blocks_total", -1)).s,
		ctl_count(ctl_counters_sum(c, "kvgate_evicted_planes_total", -1)).s);
	printf("sessions %s open, %s staged\n",
		ctl_count(ctl_counters_sum(c, "kvgate_sessions", -1)).s,
		ctl_bytes(ctl_counters_sum(c, "kvgate_staging_bytes", -1)).s);
	print_planes(c);
}

static void print_counters(const struct ctl_counters *s)
{
	printf("\n");
	for (size_t i = 0; i < s->n; i++) {
		const struct ctl_counter *c = &s->c[i];
		char label[320], plane[24] = "";

		if (c->plane >= 0)
			snprintf(plane, sizeof(plane), " plane=%d", c->plane);
		snprintf(label, sizeof(label), "%s tenant=%s%s%s%s%s%s", c->name, c->tenant,
			c->model[0] ? " model=" : "", c->model, c->tier[0] ? " tier=" : "", c->tier,
			plane);
		printf("%-84s %14.0f  %s\n", label, c->value, prose_of(c->name));
	}
}

static int run(struct kvg_client *c, struct status *s, bool all, bool every)
{
	int r;

	kvg_session(c, &s->session);
	r = ctl_counters_read(c, all, &s->counters);
	if (r < 0)
		return ctl_failed(c, r, "counters");
	if (ctl_options.json) {
		s->layouts = json_object_new_array();
		s->floors = json_object_new_object();
		s->devices = json_object_new_array();
	}
	r = kvg_policy(
		c, &s->policy); /* without the models' floors: they are printed in their place */
	if (r < 0)
		return ctl_failed(c, r, "policy");
	if (!ctl_options.json) {
		print_summary(s);
		printf("floor    %.2f%s\n", s->policy.floor,
			s->policy.floor >= 1 ? " (lossless: only whole blocks leave)" : "");
	}
	r = read_devices(c, s);
	if (r < 0)
		return ctl_failed(c, r, "devices");
	s->policy = (struct kvg_policy){
		.size = sizeof(s->policy), .model_floor = take_floor, .userdata = s};
	r = kvg_policy(c, &s->policy);
	if (r == 0)
		r = kvg_layouts(c, NULL, print_layout, s);
	if (r < 0)
		return ctl_failed(c, r, "layouts");
	if (ctl_options.json)
		print_json(s);
	else if (every)
		print_counters(&s->counters);
	return CTL_OK;
}

int ctl_status(int argc, char **argv)
{
	bool all = false, every = false;
	const struct ctl_flag flags[] = {
		{"all", NULL, "counters of every tenant (admins)", CTL_SWITCH, &all},
		{"counters", NULL, "every counter, with what it counts", CTL_SWITCH, &every},
		{0},
	};
	struct status s = {
		.session = KVG_OPTIONS_INIT(kvg_session_info),
		.policy = KVG_OPTIONS_INIT(kvg_policy),
	};
	struct kvg_client *c;
	int n, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n)
		return ctl_usage(argv[0], "takes no '%s'", argv[1]);
	c = ctl_open();
	if (!c)
		return CTL_FAILED;
	status = run(c, &s, all, every);
	ctl_counters_fini(&s.counters);
	kvg_close(c);
	return status;
}
