/* SPDX-License-Identifier: Apache-2.0 */
/* Compiled as C99 and as C++, never linked: what a program outside the tree does with kvgate.h. */
#include "kvgate.h"

int main(void)
{
	struct kvg_options o = KVG_OPTIONS_INIT(kvg_options);
	struct kvg_layout_options lo = KVG_OPTIONS_INIT(kvg_layout_options);
	struct kvg_client *c;
	struct kvg_layout *l;
	struct kvg_key key;
	struct kvg_pin pin;

	o.name = "example";
	lo.model = "model";
	lo.dtype = KVG_DTYPE_BF16;
	if (kvg_open(&o, &c) < 0 || kvg_layout(c, &lo, &l) < 0)
		return KVG_CODE_INTERNAL;
	kvg_key_block(l, 0, 0, 0, &key);
	if (kvg_lookup_pin(l, &key, 1.0f, &pin) == 0)
		kvg_unpin(c, &pin, 1);
	kvg_close(c);
	return KVG_CODE_OK;
}
