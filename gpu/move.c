/* SPDX-License-Identifier: Apache-2.0 */
#include "gpu/move.h"

#include <errno.h>
#include <stdlib.h>

#include "gates/why.h"

#define PLAIN_THREADS 512
#define BULK_THREADS  32
#define BULK_SHARED   (8 * 8192) /* BULK_STAGES * BULK_BYTES of kernels/move.cu */

struct gpu_move {
	struct gpu_device *device;
	struct gpu_module *module;
	struct CUfunc_st *plain, *bulk;
};

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
	if (r == 0 && gpu_device_info(dev)->major >= 9)
		r = gpu_module_function(
			m->module, "move_pages_bulk", BULK_SHARED, &m->bulk, ret_why, why_size);
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

int gpu_move_pages(struct gpu_move *m, struct CUstream_st *stream, const struct move_args *args,
	const struct gpu_move_how *how, char *ret_why, size_t why_size)
{
	static const struct gpu_move_how best = {.bulk = false, .blocks = 16};
	const struct gpu_move_how *const by = how ? how : &best;
	struct gpu_launch l = {.stream = stream, .grid = {by->blocks}};

	if (args->page_bytes % MOVE_ALIGN || !args->page_bytes)
		return why(ret_why, why_size, -EINVAL, "pages of %u bytes cannot be moved",
			args->page_bytes);
	if (by->bulk && !m->bulk)
		return why(ret_why, why_size, -EOPNOTSUPP, "this device does not copy in bulk");
	if (!args->pages)
		return 0;
	l.function = by->bulk ? m->bulk : m->plain;
	l.block[0] = by->bulk ? BULK_THREADS : PLAIN_THREADS;
	l.shared = by->bulk ? BULK_SHARED : 0;
	return gpu_launch(m->device, &l, args, ret_why, why_size);
}
