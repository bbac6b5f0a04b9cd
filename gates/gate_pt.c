/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The official container: a zip with P/data.pkl, which describes, and P/data/KEY, which holds the bytes.
 * The description is {"module": [{name: tensor} per gated layer], ...}; what else stands in it (losses,
 * accuracies) is not read. Every tensor becomes one named layers.{l}.{name} over the archive's own bytes.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "gates/gate_private.h"
#include "gates/pickle.h"
#include "gates/why.h"
#include "gates/zip.h"

#define DESCRIPTION "/data.pkl"
#define NAME_BYTES  96u /* "layers.1023." and the longest tensor name that is copied */

struct reading {
	struct zip *zip;
	const char *prefix; /* "gate/" */
	size_t prefix_bytes;
	struct pickle *pickle;
	struct safetensors_tensor *tensors;
	char (*names)[NAME_BYTES];
	uint32_t n;
	uint64_t bytes_left; /* tensors together are no larger than the file */
	char *why;
	size_t why_size;
};

#define bad(rd, ...) why((rd)->why, (rd)->why_size, -EBADMSG, __VA_ARGS__)

static int find_prefix(struct reading *rd)
{
	const size_t tail = strlen(DESCRIPTION);

	for (uint32_t i = 0; i < zip_count(rd->zip); i++) {
		const struct zip_member *m = zip_at(rd->zip, i);

		if (m->name_bytes < tail ||
			memcmp(m->name + m->name_bytes - tail, DESCRIPTION, tail) != 0)
			continue;
		if (rd->prefix)
			return bad(rd, "two data.pkl in one archive");
		rd->prefix = m->name;
		rd->prefix_bytes = m->name_bytes - tail + 1;
	}
	if (!rd->prefix)
		return bad(rd, "a zip archive without data.pkl is not from torch.save");
	return 0;
}

static int read_member(
	struct reading *rd, const char *name, int name_bytes, const struct zip_member **ret)
{
	char *full;
	int n, r;

	n = asprintf(&full, "%.*s%.*s", (int)rd->prefix_bytes, rd->prefix, name_bytes, name);
	if (n < 0)
		return -ENOMEM;
	r = zip_read(rd->zip, full, (size_t)n, ret, rd->why, rd->why_size);
	free(full);
	return r;
}

static int check_byte_order(struct reading *rd)
{
	const struct zip_member *m;
	int r = read_member(rd, "byteorder", 9, &m);

	if (r == -ENOENT) /* older writers: always little */
		return 0;
	if (r == 0 && (m->bytes != 6 || memcmp(m->data, "little", 6) != 0))
		return bad(rd, "the archive was written big-endian; save it on a usual machine");
	return r;
}

static int read_tensor(struct reading *rd, uint32_t layer, const struct pickle_text *name,
	const struct pickle_tensor *p)
{
	struct safetensors_tensor *t = &rd->tensors[rd->n];
	size_t element = safetensors_dtype_bytes(p->storage->dtype);
	const struct zip_member *m;
	char key[64];
	int n, r;

	n = snprintf(
		rd->names[rd->n], NAME_BYTES, "layers.%u.%.*s", layer, (int)name->bytes, name->s);
	if (n >= (int)NAME_BYTES || strlen(rd->names[rd->n]) != (size_t)n)
		return bad(rd, "layer %u has a tensor that no gate has", layer);
	n = snprintf(key, sizeof(key), "data/%.*s", (int)p->storage->key.bytes, p->storage->key.s);
	r = n < (int)sizeof(key) ? read_member(rd, key, n, &m) : -ENOENT;
	if (r == -ENOENT)
		return bad(rd, "%s: its bytes are not in the archive", rd->names[rd->n]);
	if (r < 0)
		return r;
	if (p->storage->count > m->bytes / element)
		return bad(rd, "%s: its storage is larger than the archive's member",
			rd->names[rd->n]);
	if (p->count * element > rd->bytes_left)
		return bad(rd, "the tensors together are larger than the file: they share bytes");
	rd->bytes_left -= p->count * element;
	*t = (struct safetensors_tensor){
		.name = rd->names[rd->n],
		.dtype = p->storage->dtype,
		.ndim = p->ndim,
		.data = m->data + p->offset * element,
		.bytes = p->count * element,
	};
	memcpy(t->shape, p->shape, sizeof(t->shape));
	rd->n++;
	return 0;
}

static int read_layer(struct reading *rd, uint32_t layer, const struct pickle_value *dict)
{
	const struct pickle_item *key;
	int r;

	if (dict->kind != PICKLE_DICT)
		return bad(rd, "layer %u of \"module\" is not a dict of tensors", layer);
	for (key = dict->items.first; key; key = key->next->next) {
		const struct pickle_value *value = key->next->value;

		if (key->value->kind != PICKLE_TEXT || value->kind != PICKLE_TENSOR)
			return bad(rd, "layer %u holds something that is not a tensor", layer);
		r = read_tensor(rd, layer, &key->value->text, value->tensor);
		if (r < 0)
			return r;
	}
	return 0;
}

static int by_name(const void *a, const void *b)
{
	return strcmp(((const struct safetensors_tensor *)a)->name,
		((const struct safetensors_tensor *)b)->name);
}

static int read_layers(struct reading *rd, const struct pickle_value *layers)
{
	const struct pickle_item *item;
	uint64_t n = 0;
	uint32_t layer = 0;
	int r;

	if (!layers || layers->kind != PICKLE_LIST)
		return bad(rd, "no list \"module\" in it: not a Fast KVzip gate");
	if (layers->items.n > KVG_LAYERS_MAX)
		return bad(rd, "%u layers, at most %u are read", layers->items.n, KVG_LAYERS_MAX);
	for (item = layers->items.first; item; item = item->next)
		n += item->value->kind == PICKLE_DICT ? item->value->items.n / 2 : 0;
	if (n > GATE_PARTS_MAX * KVG_LAYERS_MAX)
		return bad(rd, "%llu tensors are more than any gate has", (unsigned long long)n);
	rd->tensors = calloc(n ? n : 1, sizeof(*rd->tensors));
	rd->names = calloc(n ? n : 1, sizeof(*rd->names));
	if (!rd->tensors || !rd->names)
		return -ENOMEM;
	for (item = layers->items.first; item; item = item->next) {
		r = read_layer(rd, layer++, item->value);
		if (r < 0)
			return r;
	}
	qsort(rd->tensors, rd->n, sizeof(*rd->tensors), by_name);
	for (uint32_t i = 1; i < rd->n; i++)
		if (by_name(&rd->tensors[i - 1], &rd->tensors[i]) == 0)
			return bad(rd, "%s stands twice", rd->tensors[i].name);
	return 0;
}

static int read_archive(struct reading *rd, const void *data, size_t bytes)
{
	const struct zip_member *m;
	int r;

	r = zip_open(data, bytes, &rd->zip, rd->why, rd->why_size);
	if (r == 0)
		r = find_prefix(rd);
	if (r == 0)
		r = check_byte_order(rd);
	if (r == 0)
		r = read_member(rd, "data.pkl", 8, &m);
	if (r == 0)
		r = pickle_parse(m->data, m->bytes, &rd->pickle, rd->why, rd->why_size);
	if (r == 0)
		r = read_layers(rd, pickle_lookup(pickle_root(rd->pickle), "module"));
	return r;
}

int gate_read_pt(const void *data, size_t bytes, struct gate **ret, char *ret_why, size_t why_size)
{
	struct reading rd = {.bytes_left = bytes, .why = ret_why, .why_size = why_size};
	int r;

	r = read_archive(&rd, data, bytes);
	if (r == -ENOMEM)
		why_print(ret_why, why_size, "out of memory");
	if (r == 0)
		r = gate_build(rd.tensors, rd.n, ret, ret_why, why_size);
	free(rd.names);
	free(rd.tensors);
	pickle_free(rd.pickle);
	zip_close(rd.zip);
	return r;
}
