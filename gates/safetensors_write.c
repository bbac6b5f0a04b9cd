/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A file is written beside its place under a temporary name, synced, and renamed over it: a reader sees
 * the old file or the new one, never a part. The header is padded with spaces to a multiple of 8 bytes,
 * and tensors stand in order of element size, the widest first, so that each is aligned to its elements.
 */
#include "gates/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "gates/why.h"

#define HEADER_ALIGN 8

struct written {
	const struct safetensors_tensor *tensor;
	uint32_t order;
	uint64_t begin;
};

static int widest_first(const void *a, const void *b)
{
	const struct written *x = a, *y = b;
	size_t p = safetensors_dtype_bytes(x->tensor->dtype);
	size_t q = safetensors_dtype_bytes(y->tensor->dtype);

	if (p != q)
		return p > q ? -1 : 1;
	return x->order < y->order ? -1 : 1;
}

static struct written *lay_out(const struct safetensors_tensor *tensors, uint32_t n)
{
	struct written *w = calloc(n ? n : 1, sizeof(*w));
	uint64_t at = 0;

	if (!w)
		return NULL;
	for (uint32_t i = 0; i < n; i++)
		w[i] = (struct written){.tensor = &tensors[i], .order = i};
	qsort(w, n, sizeof(*w), widest_first);
	for (uint32_t i = 0; i < n; i++) {
		w[i].begin = at;
		at += w[i].tensor->bytes;
	}
	return w;
}

/* json-c takes over what is put in; a value that could not be made is NULL and shows as null. */
static struct json_object *array_of(const uint64_t *values, unsigned n)
{
	struct json_object *array = json_object_new_array();

	for (unsigned i = 0; array && i < n; i++)
		json_object_array_add(array, json_object_new_int64((int64_t)values[i]));
	return array;
}

static struct json_object *describe(const struct written *w)
{
	const uint64_t offsets[2] = {w->begin, w->begin + w->tensor->bytes};
	struct json_object *o = json_object_new_object();

	if (!o)
		return NULL;
	json_object_object_add(
		o, "dtype", json_object_new_string(safetensors_dtype_name(w->tensor->dtype)));
	json_object_object_add(o, "shape", array_of(w->tensor->shape, w->tensor->ndim));
	json_object_object_add(o, "data_offsets", array_of(offsets, 2));
	return o;
}

static struct json_object *header_of(const struct written *w, uint32_t n,
	const struct safetensors_pair *metadata, uint32_t n_metadata)
{
	struct json_object *header = json_object_new_object(), *o;

	if (!header)
		return NULL;
	if (n_metadata > 0) {
		o = json_object_new_object();
		for (uint32_t i = 0; o && i < n_metadata; i++)
			json_object_object_add(
				o, metadata[i].key, json_object_new_string(metadata[i].value));
		json_object_object_add(header, "__metadata__", o);
	}
	for (uint32_t i = 0; i < n; i++)
		json_object_object_add(header, w[i].tensor->name, describe(&w[i]));
	return header;
}

static bool put(int fd, const void *data, size_t n)
{
	const char *p = data;

	while (n > 0) {
		ssize_t done = write(fd, p, n);

		if (done < 0 && errno == EINTR)
			continue;
		if (done < 0)
			return false;
		p += done;
		n -= (size_t)done;
	}
	return true;
}

static int put_all(int fd, struct json_object *header, const struct written *w, uint32_t n)
{
	static const char spaces[HEADER_ALIGN + 1] = "        ";
	const char *text;
	uint8_t prefix[8];
	size_t length, pad;

	text = json_object_to_json_string_length(
		header, JSON_C_TO_STRING_PLAIN | JSON_C_TO_STRING_NOSLASHESCAPE, &length);
	if (!text)
		return -ENOMEM;
	pad = -length % HEADER_ALIGN;
	for (unsigned i = 0; i < sizeof(prefix); i++)
		prefix[i] = (uint8_t)((uint64_t)(length + pad) >> (8 * i));
	if (!put(fd, prefix, sizeof(prefix)) || !put(fd, text, length) || !put(fd, spaces, pad))
		return -errno;
	for (uint32_t i = 0; i < n; i++)
		if (!put(fd, w[i].tensor->data, w[i].tensor->bytes))
			return -errno;
	return fsync(fd) < 0 ? -errno : 0;
}

static int write_beside(
	const char *path, struct json_object *header, const struct written *w, uint32_t n)
{
	char *temporary;
	int fd, r;

	if (asprintf(&temporary, "%s.new-%ld", path, (long)getpid()) < 0)
		return -ENOMEM;
	fd = open(temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (fd < 0) {
		r = -errno;
		free(temporary);
		return r;
	}
	r = put_all(fd, header, w, n);
	if (close(fd) < 0 && r == 0)
		r = -errno;
	if (r == 0 && rename(temporary, path) < 0)
		r = -errno;
	if (r < 0)
		unlink(temporary);
	free(temporary);
	return r;
}

int safetensors_write(const char *path, const struct safetensors_tensor *tensors,
	uint32_t n_tensors, const struct safetensors_pair *metadata, uint32_t n_metadata,
	char *ret_why, size_t why_size)
{
	struct json_object *header = NULL;
	struct written *w;
	int r = -ENOMEM;

	w = lay_out(tensors, n_tensors);
	if (w)
		header = header_of(w, n_tensors, metadata, n_metadata);
	if (header)
		r = write_beside(path, header, w, n_tensors);
	if (header)
		json_object_put(header);
	free(w);
	return r < 0 ? why(ret_why, why_size, r, "%s: %s", path, strerror(-r)) : 0;
}
