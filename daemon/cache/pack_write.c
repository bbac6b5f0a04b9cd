/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Each plane has a sink, and all are written side by side: first what is small - cu, ids, index, score - then K rows
 * run by run, then V rows run by run, each to where its plane has come to:
 *
 *	staging, K of one run   t0 t1 t2 t3 t4 t5 t6 t7 ...     read once, the next run fetched meanwhile
 *	                           |  |     |        |
 *	plane 0       ... K rows  t4 t1     |        |          best first
 *	plane 1       ... K rows           t2       ...
 *
 * The body's checksum comes out of the sink; the header carries it and is written last.
 */
#include "daemon/cache/pack_private.h"

#include <string.h>

#define STREAM_FROM (1u << 20) /* larger than a core's own caches: stored around them */

static void write_cu(struct pack *k, struct sink *s, uint32_t plane)
{
	uint32_t at = 0, n;

	for (uint32_t r = 0; r < k->runs + 1;) {
		uint32_t *cu = sink_room(s, sizeof(*cu), k->runs + 1 - r, &n);

		for (uint32_t i = 0; i < n; i++, r++) {
			cu[i] = at;
			at += r < k->runs ? run_pairs(k, r, plane) : 0;
		}
		sink_put(s, n * sizeof(*cu));
	}
	sink_align(s);
}

/* Token index, or score, of every pair of a plane. */
static void write_u16(struct pack *k, struct sink *s, uint32_t plane, bool score)
{
	const struct pack_kernels *kernels = k->packer->kernels;

	for (uint32_t r = 0; r < k->runs; r++) {
		const uint32_t *keys = run_keys(k, r, plane);
		uint32_t pairs = run_pairs(k, r, plane), n;

		for (uint32_t done = 0; done < pairs; done += n) {
			uint16_t *to = sink_room(s, sizeof(*to), pairs - done, &n);

			if (!keys)
				for (uint32_t i = 0; i < n; i++)
					to[i] = score ? KVG_SCORE_PROTECTED : (uint16_t)(done + i);
			else if (score)
				kernels->scores(keys + done, n, to);
			else
				kernels->tokens(keys + done, n, to);
			sink_put(s, n * sizeof(*to));
		}
	}
	sink_align(s);
}

static void write_ids(struct pack *k, struct sink *s)
{
	const struct pack_job *j = k->job;

	if (!j->token_ids)
		return;
	if (j->ids)
		sink_bytes(s, j->ids, (size_t)k->tokens * sizeof(*j->ids));
	else
		sink_bytes(
			s, j->stage + j->geometry.tokens_off, (size_t)k->tokens * sizeof(*j->ids));
	sink_align(s);
}

/* Where a run's K rows (V rows) lie in staging. */
static const uint8_t *run_rows(const struct pack *k, uint32_t run, bool v)
{
	size_t k_bytes = k->k_row * k->tokens, v_bytes = k->v_row * k->tokens; /* of one run */
	uint32_t layer = run / k->heads, head = run % k->heads;
	const uint8_t *rows =
		k->job->stage + k->job->geometry.kv_off + layer * k->heads * (k_bytes + v_bytes);

	return v ? rows + k->heads * k_bytes + head * v_bytes : rows + head * k_bytes;
}

/* K rows (or V rows) of all runs, each to its plane; the next run's are fetched meanwhile. */
static void write_rows(struct pack *k, bool v)
{
	size_t row = v ? k->v_row : k->k_row;

	for (uint32_t r = 0; r < k->runs; r++) {
		const uint8_t *base = run_rows(k, r, v), *next = NULL;

		if (r + 1 < k->runs)
			next = run_rows(k, r + 1, v);
		for (uint32_t p = 0; p < k->n_planes; p++)
			sink_rows(&k->packer->sink[p], base, row, run_keys(k, r, p),
				run_pairs(k, r, p), next ? next + run_begin(k, r, p) * row : NULL);
	}
	for (uint32_t p = 0; p < k->n_planes; p++)
		sink_align(&k->packer->sink[p]);
}

static void write_header(struct pack *k, uint32_t plane, uint32_t body_crc)
{
	const struct pack_job *j = k->job;
	uint64_t opaque = j->shape->opaque_bytes;
	uint8_t *to = j->plane[plane].extent.addr;
	struct kvg_plane_header h = {
		.magic = KVG_PLANE_MAGIC,
		.version = KVG_SHM_VERSION,
		.plane = (uint16_t)plane,
		.n_planes = (uint16_t)k->n_planes,
		.flags = opaque ? KVG_PLANE_OPAQUE : 0,
		.key = *j->key,
		.runs = k->runs,
		.tokens = k->tokens,
		.pairs = j->plane[plane].pairs,
		.n_token_ids = plane == 0 && j->token_ids ? k->tokens : 0,
		.k_row = opaque ? (uint32_t)opaque : (uint32_t)k->k_row,
		.v_row = opaque ? (uint32_t)(opaque >> 32) : (uint32_t)k->v_row,
		.bytes = k->geometry[plane].bytes,
		.body_crc = body_crc,
		.mass = j->plane[plane].mass,
	};

	memcpy(h.fingerprint, j->fingerprint, sizeof(h.fingerprint));
	plane_header_seal(&h);
	memcpy(to, &h, sizeof(h));
}

void pack_write(struct pack *k)
{
	struct pack_job *j = k->job;
	struct sink *sink = k->packer->sink;
	bool stream = j->geometry.kv_bytes >= k->packer->stream_from;

	for (uint32_t p = 0; p < k->n_planes; p++) {
		if (!present(j, p))
			continue;
		sink_open(&sink[p], k->packer->kernels, stream,
			(uint8_t *)j->plane[p].extent.addr + KVG_PLANE_HEADER_BYTES);
		if (k->runs)
			write_cu(k, &sink[p], p);
		if (p == 0)
			write_ids(k, &sink[p]);
		write_u16(k, &sink[p], p, false);
		write_u16(k, &sink[p], p, true);
	}
	if (j->shape->opaque_bytes) {
		sink_bytes(&sink[0], j->stage + j->geometry.kv_off, j->shape->opaque_bytes);
		sink_align(&sink[0]);
	} else {
		write_rows(k, false);
		write_rows(k, true);
	}
	for (uint32_t p = 0; p < k->n_planes; p++)
		if (present(j, p))
			write_header(k, p, sink_close(&sink[p]));
	k->packer->kernels->store_end();
}
