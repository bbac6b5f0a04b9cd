/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Which kernel, with how many blocks, is what was measured on an H100 beside a decode that needs all of the device's
 * memory bandwidth. Up, to the device, the plain one costs it least for what it moves; down, the one that copies in
 * bulk reaches the link with the fewest stores under way.
 */
#include "gpu/move.h"

#include <errno.h>
#include <stdlib.h>

#include "gates/why.h"
#include "gpu/table.h"

#define BULK_THREADS 32
#define BULK_TARGET  90 /* code for less has an empty kernel of this name */

struct gpu_move {
	struct gpu_device *device;
	struct gpu_module *module;
	struct CUfunc_st *plain, *bulk; /* bulk: NULL where there is none */
};

static int open_bulk(struct gpu_move *m, char *ret_why, size_t why_size)
{
	const struct gpu_driver *d = gpu_device_driver(m->device);
	struct CUfunc_st *bulk;
	int target, r;

	r = gpu_module_function(m->module, "move_pages_bulk", MOVE_BULK_STAGES * MOVE_PIECE_MAX,
		&bulk, ret_why, why_size);
	if (r == 0)
		r = cu(d, ret_why, why_size, cuFuncGetAttribute, &target,
			CU_FUNC_ATTRIBUTE_PTX_VERSION, bulk);
	if (r == 0 && target >= BULK_TARGET)
		m->bulk = bulk;
	return r;
}

int gpu_move_open(struct gpu_device *dev, struct gpu_move **ret, char *ret_why, size_t why_size)
{
	struct gpu_move *m = calloc(1, sizeof(*m));
	int r;

	if (!m)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	m->device = dev;
	r = gpu_module_load(dev, "move", &m->module, ret_why, why_size);
	if (r == 0)
		r = gpu_module_function(m->module, "move_pages", 0, &m->plain, ret_why, why_size);
	if (r == 0)
		r = open_bulk(m, ret_why, why_size);
	if (r < 0) {
		gpu_move_close(m);
		return r;
	}
	*ret = m;
	return 0;
}

struct gpu_move *gpu_move_close(struct gpu_move *m)
{
	if (m)
		gpu_module_free(m->module);
	free(m);
	return NULL;
}

static struct gpu_move_how best(const struct gpu_move *m, bool to_host)
{
	if (!to_host)
		return (struct gpu_move_how){.blocks = 12};
	if (!m->bulk)
		return (struct gpu_move_how){.blocks = 32};
	return (struct gpu_move_how){.bulk = true, .blocks = 4, .piece = MOVE_PIECE_MAX};
}

int gpu_move_pages(struct gpu_move *m, struct CUstream_st *stream, const struct move_args *args,
	const struct gpu_move_how *how, char *ret_why, size_t why_size)
{
	const struct gpu_move_how by = how ? *how : best(m, args->to_host);
	struct gpu_launch l = {.stream = stream, .grid = {by.blocks}};
	struct move_args with = *args;

	if (args->page_bytes % MOVE_ALIGN || !args->page_bytes)
		return why(ret_why, why_size, -EINVAL, "pages of %u bytes cannot be moved",
			args->page_bytes);
	if (by.bulk &&
		(!m->bulk || by.piece % MOVE_ALIGN || !by.piece || by.piece > MOVE_PIECE_MAX))
		return why(ret_why, why_size, -EOPNOTSUPP,
			"this device does not copy in bulk, or not pieces of %u bytes", by.piece);
	if (!args->pages)
		return 0;
	l.function = by.bulk ? m->bulk : m->plain;
	l.block[0] = by.bulk ? BULK_THREADS : MOVE_THREADS;
	l.shared = by.bulk ? MOVE_BULK_STAGES * by.piece : 0;
	with.piece = by.piece;
	return gpu_launch(m->device, &l, &with, ret_why, why_size);
}
