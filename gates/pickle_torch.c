/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the names in a gate's pickle stand for. A name is a row of `globals` or the file is refused; what
 * Python would make by calling it is made here from the arguments, which are looked at first.
 */
#include <errno.h>
#include <string.h>

#include "gates/pickle_private.h"

#define bad pickle_bad

static const struct pickle_global globals[] = {
	{"collections", "OrderedDict", MEANS_DICT, 0},
	{"torch._utils", "_rebuild_tensor_v2", MEANS_TENSOR, 0},
	{"torch._utils", "_rebuild_parameter", MEANS_PARAMETER, 0},
	{"torch", "BFloat16Storage", MEANS_STORAGE, SAFETENSORS_BF16},
	{"torch", "HalfStorage", MEANS_STORAGE, SAFETENSORS_F16},
	{"torch", "FloatStorage", MEANS_STORAGE, SAFETENSORS_F32},
	{"torch", "DoubleStorage", MEANS_STORAGE, SAFETENSORS_F64},
	{"torch", "LongStorage", MEANS_STORAGE, SAFETENSORS_I64},
	{"torch", "IntStorage", MEANS_STORAGE, SAFETENSORS_I32},
	{"numpy", "ndarray", MEANS_OPAQUE, 0},
	{"numpy", "dtype", MEANS_OPAQUE, 0},
	{"numpy.core.multiarray", "_reconstruct", MEANS_OPAQUE, 0},
	{"numpy.core.multiarray", "scalar", MEANS_OPAQUE, 0},
	{"numpy._core.multiarray", "_reconstruct", MEANS_OPAQUE, 0},
	{"numpy._core.multiarray", "scalar", MEANS_OPAQUE, 0},
	{"_codecs", "encode", MEANS_OPAQUE, 0},
};

const struct pickle_global *pickle_find_global(struct pickle_text module, struct pickle_text name)
{
	for (size_t i = 0; i < sizeof(globals) / sizeof(globals[0]); i++)
		if (pickle_text_is(module, globals[i].module) &&
			pickle_text_is(name, globals[i].name))
			return &globals[i];
	return NULL;
}

/* Copies the first `n` items of a tuple; false when there are fewer. */
static bool unpack(const struct pickle_value *tuple, unsigned n, struct pickle_value **ret)
{
	const struct pickle_item *item;

	if (tuple->kind != PICKLE_TUPLE || tuple->items.n < n)
		return false;
	item = tuple->items.first;
	for (unsigned i = 0; i < n; i++, item = item->next)
		ret[i] = item->value;
	return true;
}

/* ("storage", torch.FloatStorage, "12", "cuda:0", 4096); where it once was does not matter. */
int pickle_rebuild_storage(
	struct pickle_machine *m, const struct pickle_value *id, struct pickle_value *ret)
{
	struct pickle_value *part[5];

	if (!unpack(id, 5, part) || part[0]->kind != PICKLE_TEXT ||
		!pickle_text_is(part[0]->text, "storage") || part[1]->kind != PICKLE_GLOBAL ||
		part[1]->global->meaning != MEANS_STORAGE || part[2]->kind != PICKLE_TEXT ||
		part[4]->kind != PICKLE_NUMBER || part[4]->number < 0)
		return bad(m, "pickle: not a storage, at byte %zu", m->at);
	ret->kind = PICKLE_STORAGE;
	ret->storage = (struct pickle_storage){
		.key = part[2]->text,
		.dtype = part[1]->global->dtype,
		.count = (uint64_t)part[4]->number,
	};
	return 0;
}

static bool read_sizes(const struct pickle_value *tuple, uint64_t *ret, unsigned *ret_n)
{
	struct pickle_value *part[SAFETENSORS_DIMS_MAX];

	if (tuple->kind != PICKLE_TUPLE || tuple->items.n > SAFETENSORS_DIMS_MAX)
		return false;
	*ret_n = tuple->items.n;
	unpack(tuple, *ret_n, part);
	for (unsigned i = 0; i < *ret_n; i++) {
		if (part[i]->kind != PICKLE_NUMBER || part[i]->number < 0)
			return false;
		ret[i] = (uint64_t)part[i]->number;
	}
	return true;
}

/* _rebuild_tensor_v2(storage, offset, size, stride, ...) */
static int rebuild_tensor(
	struct pickle_machine *m, const struct pickle_value *args, struct pickle_value *ret)
{
	struct pickle_tensor *t = pickle_allocate(m, sizeof(*t));
	uint64_t stride[SAFETENSORS_DIMS_MAX];
	struct pickle_value *part[4];
	unsigned n;

	if (!t)
		return -ENOMEM;
	if (!unpack(args, 4, part) || part[0]->kind != PICKLE_STORAGE ||
		part[1]->kind != PICKLE_NUMBER || part[1]->number < 0 ||
		!read_sizes(part[2], t->shape, &t->ndim) || !read_sizes(part[3], stride, &n) ||
		n != t->ndim)
		return bad(m, "pickle: not a tensor, at byte %zu", m->at);
	t->storage = &part[0]->storage;
	t->offset = (uint64_t)part[1]->number;
	t->count = 1;
	for (unsigned i = t->ndim; i-- > 0;) {
		if (t->shape[i] != 1 && stride[i] != t->count)
			return bad(m,
				"pickle: a tensor is not contiguous; save it after .contiguous()");
		if (__builtin_mul_overflow(t->count, t->shape[i], &t->count))
			return bad(m, "pickle: a tensor's shape overflows");
	}
	if (t->offset > t->storage->count || t->count > t->storage->count - t->offset)
		return bad(m, "pickle: a tensor is larger than its storage");
	ret->kind = PICKLE_TENSOR;
	ret->tensor = t;
	return 0;
}

int pickle_rebuild(struct pickle_machine *m, const struct pickle_global *g,
	const struct pickle_value *args, struct pickle_value *ret)
{
	struct pickle_value *part;

	switch (g->meaning) {
	case MEANS_DICT:
		if (args->items.n != 0)
			return bad(m, "pickle: an OrderedDict that is not empty when made");
		ret->kind = PICKLE_DICT;
		return 0;
	case MEANS_TENSOR:
		return rebuild_tensor(m, args, ret);
	case MEANS_PARAMETER:
		if (!unpack(args, 1, &part) || part->kind != PICKLE_TENSOR)
			return bad(m, "pickle: a parameter without a tensor");
		*ret = *part;
		return 0;
	case MEANS_OPAQUE:
		ret->kind = PICKLE_OPAQUE;
		return 0;
	case MEANS_STORAGE:
		break;
	}
	return bad(m, "pickle: %s.%s is called, which no gate needs; refused", g->module, g->name);
}
