/* SPDX-License-Identifier: Apache-2.0 */
/* A configuration of any bytes is taken or refused with a text; what is taken adds up. */
#include <assert.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "daemon/base/options.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char why[300] = "";
	struct options *o;
	FILE *f;

	if (size == 0 || options_new(&o) < 0)
		return 0;
	f = fmemopen((void *)(uintptr_t)data, size, "r");
	assert(f);
	if (options_read(o, f, "fuzz", why, sizeof(why)) < 0 ||
		options_check(o, why, sizeof(why)) < 0) {
		assert(strlen(why) > 5);
	} else {
		assert(o->host_bytes >= 1 << 20 && o->host_bytes <= o->machine_bytes);
		assert((o->segment_bytes & (o->segment_bytes - 1)) == 0);
		assert(o->floor > 0 && o->floor <= 1);
		for (size_t i = 0; i < o->n_tenants; i++)
			assert(o->tenants[i].limits.host_bytes <= o->host_bytes);
	}
	fclose(f);
	options_free(o);
	return 0;
}
