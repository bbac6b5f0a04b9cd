/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The rules themselves are gates/select.c, the same code that the daemon has; here pins become its views. Runs are
 * checked whole before it follows them, since a threshold reads every score anyway.
 */
#include "client/lib/client.h"

#include <errno.h>
#include <stdlib.h>

#include "gates/select.h"

static int params(
	struct kvg_client *c, const struct kvg_select_options *options, struct select_params *ret)
{
	struct kvg_select_options o;
	int rule, r = options_copy(c, &o, sizeof(o), options);

	if (r < 0)
		return r;
	rule = o.rule ? select_rule_from_name(o.rule) : 0;
	if (rule == 0)
		return client_fail(c, -EINVAL, 0,
			"rule '%s': use pair, layer, head, adakv-layer, kvpress or absolute",
			o.rule ? o.rule : "");
	if (rule != SELECT_ABSOLUTE && !(o.retained >= 0.0 && o.retained <= 1.0))
		return client_fail(c, -EINVAL, 0, "retained must be 0 to 1, not %g", o.retained);
	*ret = (struct select_params){
		.rule = (enum select_rule)rule,
		.retained = o.retained,
		.threshold = o.threshold,
		.floor = o.floor,
	};
	return 0;
}

static int open_blocks(
	struct kvg_layout *l, const struct kvg_pin *pins, size_t n, struct select_block *ret)
{
	for (size_t i = 0; i < n; i++) {
		unsigned bits;
		int r = pin_views(l, &pins[i], ret[i].plane, &bits);

		if (r < 0)
			return r;
		for (unsigned p = 0; p < KVG_PLANES_MAX; p++)
			if (!(bits >> p & 1))
				ret[i].plane[p] = (struct plane_view){0};
			else if (plane_check_runs(&ret[i].plane[p]) < 0)
				return client_fail(l->client, -EBADMSG, KVG_CODE_CORRUPT,
					"block {%u, %u} plane %u has runs that cannot be; purge it",
					pins[i].handle.slot, pins[i].handle.gen, p);
		ret[i].n_planes = pins[i].n_planes;
	}
	return 0;
}

int kvg_select(struct kvg_layout *l, const struct kvg_pin *pins, size_t n,
	const struct kvg_select_options *o, uint32_t *ret_len)
{
	struct select_params p;
	struct select_block *blocks;
	int r;

	if (l->shape.opaque_bytes || n > UINT32_MAX)
		return client_fail(
			l->client, -EINVAL, 0, "opaque blocks have no scores to select by");
	r = params(l->client, o, &p);
	if (r < 0 || n == 0)
		return r;
	blocks = calloc(n, sizeof(*blocks));
	if (!blocks)
		return client_fail(l->client, -ENOMEM, 0, "out of memory");
	r = open_blocks(l, pins, n, blocks);
	if (r == 0) {
		r = select_planes(
			&p, blocks, (uint32_t)n, l->shape.layers, l->shape.heads, ret_len);
		if (r < 0)
			client_fail(l->client, r, 0,
				r == -ENOMEM ? "out of memory" : "the blocks do not fit together");
	}
	free(blocks);
	return r;
}
