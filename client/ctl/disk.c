/* SPDX-License-Identifier: Apache-2.0 */
/* disk: makes a disk for the daemon, looks at one that no daemon has, and shows what the daemon counts of its own. */
#include "client/ctl/ctl.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "daemon/mem/disk.h"

#define WHY_BYTES 512

static int failed(const char *path, const char *why)
{
	fprintf(stderr, "kvgatectl: %s: %s\n", path, why);
	return CTL_FAILED;
}

static int format(const char *path, uint64_t bytes, uint64_t segment, bool force)
{
	char why[WHY_BYTES] = "";

	if (disk_format(path, bytes, segment, force, why, sizeof(why)) < 0)
		return failed(path, why);
	if (!ctl_options.json)
		printf("%s: %s\n", path, why);
	return CTL_OK;
}

static void print_info(const struct disk_info *i, bool planes)
{
	const struct {
		const char *name;
		uint64_t value;
	} rows[] = {{"version", i->version}, {"bytes", i->bytes},
		{"segment_bytes", i->segment_bytes}, {"segments", i->segments},
		{"closed", i->closed}, {"open", i->open}, {"free", i->free},
		{"damaged", i->damaged}, {"tenants", i->tenants}, {"planes", i->planes},
		{"plane_bytes", i->plane_bytes}, {"bad_planes", i->bad_planes}};
	struct json_object *o = json_object_new_object();

	for (size_t n = 0; n < sizeof(rows) / sizeof(rows[0]) - !planes; n++) {
		json_object_object_add(
			o, rows[n].name, json_object_new_int64((int64_t)rows[n].value));
		if (!ctl_options.json)
			printf("%-14s %llu\n", rows[n].name, (unsigned long long)rows[n].value);
	}
	if (ctl_options.json)
		ctl_json(o);
	else
		json_object_put(o);
}

static int check(const char *path, bool planes)
{
	char why[WHY_BYTES] = "";
	struct disk_info info;

	if (disk_check(path, planes, &info, why, sizeof(why)) < 0)
		return failed(path, why);
	print_info(&info, planes);
	return info.damaged || info.bad_planes ? CTL_FAILED : CTL_OK;
}

static void print_counters(const struct ctl_counters *s)
{
	struct json_object *o = json_object_new_object();
	unsigned n = 0;

	for (size_t i = 0; i < s->n; i++) {
		const struct ctl_counter *c = &s->c[i];
		bool of_disk = strstr(c->name, "disk") || !strcmp(c->tier, "disk");

		if (!of_disk)
			continue;
		n++;
		json_object_object_add(o, c->name, ctl_json_real(ctl_counters_sum(s, c->name, -1)));
		if (!ctl_options.json)
			printf("%-44s %-16s %.0f\n", c->name, c->tenant, c->value);
	}
	if (ctl_options.json)
		ctl_json(o);
	else
		json_object_put(o);
	if (!n && !ctl_options.json)
		printf("the daemon has no disk\n");
}

static int stat_(void)
{
	struct kvg_client *c = ctl_open();
	struct ctl_counters s = {0};
	int r;

	if (!c)
		return CTL_FAILED;
	r = ctl_counters_read(c, true, &s);
	if (r == 0)
		print_counters(&s);
	r = r < 0 ? ctl_failed(c, r, "stat") : CTL_OK;
	ctl_counters_fini(&s);
	kvg_close(c);
	return r;
}

int ctl_disk(int argc, char **argv)
{
	uint64_t bytes = 0, segment = 0;
	bool force = false, planes = false;
	const struct ctl_flag flags[] = {
		{"bytes", "SIZE", "format: size of the file (as it is)", CTL_SIZE, &bytes},
		{"segment", "SIZE", "format: size of its segments (64MiB)", CTL_SIZE, &segment},
		{"force", NULL, "format: overwrite what is there", CTL_SWITCH, &force},
		{"planes", NULL, "check: read and verify all planes", CTL_SWITCH, &planes},
		{0},
	};
	int n, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n == 2 && !strcmp(argv[1], "format"))
		return format(argv[2], bytes, segment, force);
	if (n == 2 && !strcmp(argv[1], "check"))
		return check(argv[2], planes);
	if (n == 2 && !strcmp(argv[1], "stat"))
		return check(argv[2], false);
	if (n == 1 && !strcmp(argv[1], "stat"))
		return stat_();
	return ctl_usage(argv[0], "wants format PATH, check PATH, or stat [PATH]");
}
