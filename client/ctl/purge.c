/* SPDX-License-Identifier: Apache-2.0 */
/* purge: takes away what is named, and nothing when nothing is named. */
#include "client/ctl/ctl.h"

#include <stdio.h>
#include <stdlib.h>

static void print_result(const struct kvg_purge_result *r)
{
	if (ctl_options.json) {
		struct json_object *o = json_object_new_object();

		json_object_object_add(o, "blocks", json_object_new_int64((int64_t)r->blocks));
		json_object_object_add(o, "planes", json_object_new_int64((int64_t)r->planes));
		json_object_object_add(o, "bytes", json_object_new_int64((int64_t)r->bytes));
		json_object_object_add(o, "pinned", json_object_new_int64((int64_t)r->pinned));
		ctl_json(o);
		return;
	}
	printf("%llu blocks, %llu planes, %s freed", (unsigned long long)r->blocks,
		(unsigned long long)r->planes, ctl_bytes((double)r->bytes).s);
	if (r->pinned)
		printf("; %llu pinned blocks stayed", (unsigned long long)r->pinned);
	printf("\n");
}

static int parse_keys(char **words, int n, struct kvg_key *ret)
{
	for (int i = 0; i < n; i++)
		if (kvg_key_from_hex(words[i], &ret[i]) < 0)
			return ctl_usage("purge",
				"'%s' is no key: 64 digits (kvgatectl ls --full-keys)", words[i]);
	return -1;
}

int ctl_purge(int argc, char **argv)
{
	struct kvg_purge_options o = KVG_OPTIONS_INIT(kvg_purge_options);
	struct kvg_purge_result result;
	uint64_t layout = 0, keep = 0;
	bool all = false;
	const struct ctl_flag flags[] = {
		{"all", NULL, "every block of the tenant, or of --layout", CTL_SWITCH, &all},
		{"layout", "ID", "only this layout", CTL_NUMBER, &layout},
		{"keep-planes", "N", "keep planes 0 to N-1; 0: whole blocks", CTL_NUMBER, &keep},
		{"tenant", "NAME", "another tenant's (admins)", CTL_TEXT, &o.tenant},
		{0},
	};
	struct kvg_key *keys;
	struct kvg_client *c;
	int n, r, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (all == (n > 0))
		return ctl_usage(argv[0], "wants KEYs, or --all to take every block away");
	if (keep > KVG_PLANES_MAX)
		return ctl_usage(argv[0], "--keep-planes is 0 to %u", KVG_PLANES_MAX);
	keys = calloc((size_t)n + 1, sizeof(*keys));
	if (!keys)
		return CTL_FAILED;
	status = parse_keys(argv + 1, n, keys);
	c = status < 0 ? ctl_open() : NULL;
	if (c) {
		o.layout = (uint32_t)layout;
		o.keep_planes = (uint32_t)keep;
		o.keys = n ? keys : NULL;
		o.n_keys = (size_t)n;
		r = kvg_purge(c, &o, &result);
		if (r == 0)
			print_result(&result);
		status = r < 0 ? ctl_failed(c, r, "purge") : CTL_OK;
	} else if (status < 0) {
		status = CTL_FAILED;
	}
	kvg_close(c);
	free(keys);
	return status;
}
