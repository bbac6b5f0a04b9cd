/* SPDX-License-Identifier: Apache-2.0 */
/* A cache without a tier below memory: what is held is mapped, and nothing is ever on its way. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "daemon/base/loop.h"
#include "daemon/cache/tenant.h"
#include "daemon/mem/disk.h"

int disk_format(const char *path, uint64_t bytes, uint64_t segment_bytes, bool force, char *why,
	size_t why_size)
{
	(void)path;
	(void)bytes;
	(void)segment_bytes;
	(void)force;
	snprintf(why, why_size, "there is no tier below memory in this build");
	return -ENOSYS;
}

uint8_t cache_fetch(
	struct cache_tenant *t, struct kvg_handle h, float retention, struct cache_fetch *f)
{
	(void)t;
	(void)h;
	(void)retention;
	(void)f;
	return 0;
}

void cache_fetch_cancel(struct cache_fetch *f)
{
	(void)f;
}

int cache_look(struct cache_tenant *t, struct kvg_handle h, struct cache_block_result *ret)
{
	struct block *b = block_get(t, h);

	if (!b)
		return KVG_CODE_NOT_FOUND;
	*ret = (struct cache_block_result){
		.handle = h,
		.retention = block_retention(b),
		.held = block_shown(b),
		.mapped = block_shown(b),
	};
	return KVG_CODE_OK;
}

struct drain {
	struct loop_work work;
	void (*done)(void *userdata);
	void *userdata;
};

static void drained(struct loop_work *w)
{
	struct drain d = *(struct drain *)w;

	free(w);
	d.done(d.userdata);
}

void cache_drain(
	struct cache *c, uint64_t deadline_ns, void (*done)(void *userdata), void *userdata)
{
	struct drain *d = malloc(sizeof(*d));

	(void)deadline_ns;
	if (!d) {
		done(userdata);
		return;
	}
	*d = (struct drain){{.fn = drained}, done, userdata};
	loop_post(c->loop, &d->work);
}
