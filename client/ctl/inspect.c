/* SPDX-License-Identifier: Apache-2.0 */
/* inspect: one block, plane by plane. A key may be cut short like a git hash; then the list is searched for it. */
#include "client/ctl/ctl.h"

#include <stdio.h>
#include <string.h>

struct search {
	const char *prefix;
	struct kvg_key found;
	uint32_t layout;
	unsigned n;
};

static int match(void *userdata, const struct kvg_block_entry *b)
{
	struct search *s = userdata;
	char hex[65];

	kvg_key_to_hex(&b->key, hex);
	if (!strncmp(hex, s->prefix, strlen(s->prefix))) {
		s->found = b->key;
		s->layout = b->layout;
		s->n++;
	}
	return s->n > 1;
}

/* Negative: found; otherwise the exit status. */
static int resolve(struct kvg_client *c, const char *text, struct kvg_inspect_options *o)
{
	struct kvg_list_options list = KVG_OPTIONS_INIT(kvg_list_options);
	struct search s = {.prefix = text};
	int r;

	if (kvg_key_from_hex(text, &o->key) == 0)
		return -1;
	if (!text[0] || strspn(text, "0123456789abcdef") != strlen(text))
		return ctl_usage("inspect", "'%s' is no key: up to 64 digits 0-9a-f", text);
	list.tenant = o->tenant;
	list.layout = o->layout;
	r = kvg_list(c, &list, match, &s);
	if (r < 0)
		return ctl_failed(c, r, "list");
	if (s.n != 1) {
		fprintf(stderr, "kvgatectl: %s\n",
			s.n ? "more than one block begins like that; give more digits"
			    : "no block begins like that; kvgatectl ls shows what is there");
		return CTL_FAILED;
	}
	o->key = s.found;
	o->layout = s.layout;
	return -1;
}

static void print_block(
	const struct kvg_block_entry *b, const struct kvg_layout_entry *l, bool verify)
{
	char hex[65];

	kvg_key_to_hex(&b->key, hex);
	printf("key       %s\n", hex);
	if (b->has_parent)
		kvg_key_to_hex(&b->parent, hex);
	printf("parent    %s\n", b->has_parent ? hex : "none, a root");
	printf("layout    %u, %s\n", b->layout, l->model);
	printf("place     slot %u generation %u, depth %u, %u children\n", b->handle.slot,
		b->handle.gen, b->depth, b->children);
	printf("holds     %u tokens, %s of the pairs, %s; %u pins\n", b->tokens,
		ctl_percent(b->retention).s, ctl_bytes((double)b->bytes).s, b->pins);
	printf("\n%-6s %-16s %-8s %9s %10s %8s %8s %10s %s\n", "PLANE", "SCORES", "TIER", "PAIRS",
		"BYTES", "SEGMENT", "PAGE", "VALUE", verify ? "CHECKSUM" : "");
	for (uint32_t i = 0; i < b->n_planes; i++) {
		const struct kvg_plane_entry *p = &b->planes[i];
		char band[48];

		if (l->n_edges == 0)
			snprintf(band, sizeof(band), "all");
		else if (p->plane < l->n_edges)
			snprintf(band, sizeof(band), ">= %.4g", l->edges[p->plane]);
		else
			snprintf(band, sizeof(band), "< %.4g", l->edges[l->n_edges - 1]);
		printf("%-6u %-16s %-8s %9u %10s %8u %8u %10.3g %s\n", p->plane, band,
			ctl_tier(p->tier), p->pairs, ctl_bytes((double)p->bytes).s, p->segment,
			p->page, p->value,
			!verify || !p->tier   ? ""
				: p->verified ? "right"
					      : "WRONG");
	}
}

int ctl_inspect(int argc, char **argv)
{
	struct kvg_inspect_options o = KVG_OPTIONS_INIT(kvg_inspect_options);
	struct kvg_block_entry b = KVG_OPTIONS_INIT(kvg_block_entry);
	struct kvg_layout_entry l = KVG_OPTIONS_INIT(kvg_layout_entry);
	bool verify = false;
	uint64_t layout = 0;
	const struct ctl_flag flags[] = {
		{"verify", NULL, "read every byte and compare checksums", CTL_SWITCH, &verify},
		{"layout", "ID", "of this layout", CTL_NUMBER, &layout},
		{"tenant", "NAME", "another tenant's (admins)", CTL_TEXT, &o.tenant},
		{0},
	};
	struct kvg_client *c;
	int n, r, status = ctl_parse(argc, argv, flags, &n);

	if (status >= 0)
		return status;
	if (n != 1)
		return ctl_usage(argv[0], "wants one KEY");
	c = ctl_open();
	if (!c)
		return CTL_FAILED;
	o.verify = verify;
	o.layout = (uint32_t)layout;
	status = resolve(c, argv[1], &o);
	if (status < 0) {
		r = kvg_inspect(c, &o, &b, &l);
		if (r < 0) {
			status = ctl_failed(c, r, argv[1]);
		} else if (ctl_options.json) {
			struct json_object *j = ctl_json_block(&b);

			json_object_object_add(j, "layout_info", ctl_json_layout(&l));
			ctl_json(j);
			status = CTL_OK;
		} else {
			print_block(&b, &l, verify);
			status = CTL_OK;
		}
	}
	kvg_close(c);
	return status;
}
