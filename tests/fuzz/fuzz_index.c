/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A damaged index at adoption: a small whole one, overwritten at places the input chooses, its header's checksum made
 * right again every other time so that the sizes are met as well. The scan may refuse or skip, never fault or loop.
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "daemon/cache/index.h"
#include "proto/plane.h"

enum {
	SLOTS = 24,
	BLOCKS = 16
};

static uint8_t *whole;
static size_t whole_bytes;

static void make_whole(void)
{
	struct index *x;
	struct stat st;

	assert(index_new(SLOTS, &x) == 0);
	for (uint32_t i = 0; i < BLOCKS; i++) {
		struct index_block b = {
			.key.b = {[0] = (uint8_t)(i / 9), [8] = (uint8_t)i},
			.layout = 1,
			.parent = i ? i - 1 : KVG_SLOT_NONE,
			.tokens = 16,
			.depth = i,
			.n_planes = 2,
			.held = 3,
			.mapped = 3,
			.plane = {{.bytes = 4096,
					  .segment = 1,
					  .page = i,
					  .pairs = 1,
					  .tier = 1,
					  .page_shift = 12},
				{.bytes = 4096,
					.segment = 2,
					.page = i,
					.pairs = 1,
					.tier = 1,
					.page_shift = 12}},
		};
		struct kvg_handle h;

		assert(index_insert(x, &b, &h) == 0);
	}
	assert(fstat(index_fd(x), &st) == 0);
	whole_bytes = (size_t)st.st_size;
	whole = malloc(whole_bytes);
	assert(whole && pread(index_fd(x), whole, whole_bytes, 0) == st.st_size);
	index_free(x);
}

static void see(void *userdata, uint32_t slot, uint32_t gen, const struct kvg_shm_entry *e)
{
	unsigned *n = userdata;

	assert(gen && slot < SLOTS && e->n_planes && e->n_planes <= KVG_PLANES_MAX);
	++*n;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct index_report report;
	uint8_t *map;
	size_t bytes;
	unsigned seen = 0;

	if (!whole)
		make_whole();
	if (n < 2)
		return 0;
	bytes = data[0] & 1 ? whole_bytes : whole_bytes * data[1] / 256;
	map = malloc(bytes + 1); /* exactly as long, so that a sanitizer sees one byte too far */
	assert(map);
	memcpy(map, whole, bytes);
	for (size_t i = 2; i + 3 <= n; i += 3) {
		size_t at = ((size_t)data[i] << 8 | data[i + 1]) % (bytes + 1);

		if (at < bytes)
			map[at] ^= data[i + 2];
	}
	if (data[0] & 2 && bytes >= sizeof(struct kvg_shm_index)) {
		struct kvg_shm_index h;

		memcpy((void *)&h, map, sizeof(h));
		h.crc = index_crc(&h);
		memcpy(map, (void *)&h, sizeof(h));
	}
	if (index_scan(map, bytes, see, &seen, &report) == 0)
		assert(seen == report.live && report.live + report.damaged <= SLOTS);
	free(map);
	return 0;
}
