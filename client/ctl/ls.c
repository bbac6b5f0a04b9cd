/* SPDX-License-Identifier: Apache-2.0 */
/* ls: blocks as the daemon walks them. Printed as they come, so that a million of them need no memory here. */
#include "client/ctl/ctl.h"

#include <stdio.h>

struct listing {
	uint64_t limit, n;
	bool full_keys;
};

static int print_block(void *userdata, const struct kvg_block_entry *b)
{
	struct listing *l = userdata;
	char hex[65];

	if (ctl_options.json) {
		struct json_object *o = ctl_json_block(b);

		printf("%s\n%s", l->n ? "," : "",
			json_object_to_json_string_ext(o, JSON_C_TO_STRING_PLAIN));
		json_object_put(o);
	} else {
		kvg_key_to_hex(&b->key, hex);
		if (!l->full_keys)
			hex[16] = '\0';
		if (!l->n)
			printf("%-*s %6s %5s %6s %9s %10s %8s %5s %10s\n", l->full_keys ? 64 : 16,
				"KEY", "LAYOUT", "DEPTH", "TOKENS", "RETENTION", "BYTES",
				"CHILDREN", "PINS", "VALUE");
		printf("%s %6u %5u %6u %9s %10s %8u %5u %10.3g\n", hex, b->layout, b->depth,
			b->tokens, ctl_percent(b->retention).s, ctl_bytes((double)b->bytes).s,
			b->children, b->pins, b->value);
	}
	return ++l->n == l->limit;
}

int ctl_ls(int argc, char **argv)
{
	struct listing l = {0};
	struct kvg_list_options o = KVG_OPTIONS_INIT(kvg_list_options);
	uint64_t layout = 0;
	const struct ctl_flag flags[] = {
		{"layout", "ID", "only this layout", CTL_NUMBER, &layout},
		{"tenant", "NAME", "another tenant's (admins)", CTL_TEXT, &o.tenant},
		{"limit", "N", "at most so many", CTL_NUMBER, &l.limit},
		{"full-keys", NULL, "all 64 digits of a key", CTL_SWITCH, &l.full_keys},
		{0},
	};
	struct kvg_client *c;
	int n, r, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n)
		return ctl_usage(argv[0], "takes no '%s'", argv[1]);
	c = ctl_open();
	if (!c)
		return CTL_FAILED;
	o.layout = (uint32_t)layout;
	if (ctl_options.json)
		printf("[");
	r = kvg_list(c, &o, print_block, &l);
	if (ctl_options.json)
		printf("\n]\n");
	status = r < 0 ? ctl_failed(c, r, "list") : CTL_OK;
	if (r == 0 && !l.n && !ctl_options.json)
		printf("no blocks\n");
	kvg_close(c);
	return status;
}
