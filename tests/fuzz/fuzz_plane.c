/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A plane as a disk, a network or a mad writer may return it. The first byte says how much of it is put right
 * before it is looked at - magic and version, checksums, the size - so that the checks behind each are reached. What
 * plane_open() and plane_check_runs() accept must be readable to the last byte and fit select_planes().
 */
#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/plane.h"

enum {
	FIX_START = 1, /* magic, version, zeros behind the header */
	FIX_BYTES = 2, /* the size that the other fields ask for */
	FIX_CRC = 4,
};

static void put_right(uint8_t *p, size_t n, unsigned fix)
{
	struct kvg_plane_header h;
	struct plane_geometry g;

	if (n < KVG_PLANE_HEADER_BYTES)
		return;
	memcpy(&h, p, sizeof(h));
	if (fix & FIX_START) {
		memcpy(h.magic, KVG_PLANE_MAGIC, sizeof(h.magic));
		h.version = KVG_SHM_VERSION;
	}
	if (fix & FIX_BYTES) {
		bool opaque = h.flags & KVG_PLANE_OPAQUE;

		plane_geometry(h.runs, h.pairs, h.n_token_ids, opaque ? 0 : h.k_row,
			opaque ? 0 : h.v_row, opaque ? (uint64_t)h.v_row << 32 | h.k_row : 0, &g);
		h.bytes = g.bytes;
	}
	if (fix & FIX_CRC) {
		if (h.bytes >= KVG_PLANE_HEADER_BYTES && h.bytes <= n)
			h.body_crc = crc32c(
				0, p + KVG_PLANE_HEADER_BYTES, h.bytes - KVG_PLANE_HEADER_BYTES);
		plane_header_seal(&h);
	}
	memcpy(p, &h, sizeof(h));
}

static uint64_t sum;

static void read_all(const void *p, uint64_t n)
{
	for (uint64_t i = 0; i < n; i++)
		sum += ((const uint8_t *)p)[i];
}

static void follow_runs(const struct plane_view *v)
{
	for (uint32_t run = 0; run < v->runs; run++) {
		assert(v->cu[run] <= v->cu[run + 1] && v->cu[run + 1] - v->cu[run] <= v->tokens);
		for (uint32_t i = v->cu[run]; i < v->cu[run + 1]; i++) {
			assert(v->index[i] < v->tokens);
			read_all(v->k + (uint64_t)i * v->k_row, v->k_row);
			read_all(v->v + (uint64_t)i * v->v_row, v->v_row);
			sum += v->score[i];
		}
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
	struct plane_view v;
	void *p;

	if (!n || posix_memalign(&p, 64, n) != 0)
		return 0;
	memcpy(p, data + 1, n - 1);
	put_right(p, n - 1, data[0]);
	if (plane_open(p, n - 1, &v) == 0) {
		assert(v.bytes <= n - 1 && (v.opaque || v.runs));
		read_all(v.ids, (uint64_t)v.n_token_ids * 4);
		if (v.opaque)
			read_all(v.k, v.opaque_bytes);
		else if (plane_check_runs(&v) == 0)
			follow_runs(&v);
	} else {
		assert(plane_verify(p, n - 1) < 0);
	}
	plane_verify(p, n - 1);
	free(p);
	return 0;
}
