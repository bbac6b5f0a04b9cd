/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The header is checked once, when the file is opened; what stands in the table afterwards is true and
 * needs no second look:
 *
 *     0        8                     8 + n                            end
 *     | u64 n  | JSON of n bytes     | tensors, one after the other   |
 *
 * Sorted by offset, each tensor begins where the one before it ends, the first at 0 and the last at the
 * end of the file. That one rule refuses overlaps, holes, bytes after the end and offsets outside alike.
 * json-c keeps the last of two equal names; there is one colon outside of strings for each member, so
 * a name that stands twice shows as a colon too many.
 */
#include "gates/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "gates/why.h"

#define PREFIX_BYTES 8
#define DEPTH_MAX    6 /* header, tensor, shape: three; the rest is for a better message */
#define METADATA     "__metadata__"

struct safetensors {
	void *map; /* NULL when the bytes are the caller's */
	size_t map_bytes;
	const uint8_t *data;
	uint64_t data_bytes;
	struct json_object *header; /* owns all names and metadata */
	struct json_object *metadata;
	struct safetensors_tensor *tensors;
	uint32_t n_tensors;
};

struct reading {
	struct safetensors *st;
	char *why;
	size_t why_size;
};

#define bad(rd, ...) why((rd)->why, (rd)->why_size, -EBADMSG, __VA_ARGS__)

static const struct {
	const char *name;
	size_t bytes;
} dtypes[] = {
	[SAFETENSORS_BOOL] = {"BOOL", 1},
	[SAFETENSORS_U8] = {"U8", 1},
	[SAFETENSORS_I8] = {"I8", 1},
	[SAFETENSORS_F8_E5M2] = {"F8_E5M2", 1},
	[SAFETENSORS_F8_E4M3] = {"F8_E4M3", 1},
	[SAFETENSORS_I16] = {"I16", 2},
	[SAFETENSORS_U16] = {"U16", 2},
	[SAFETENSORS_F16] = {"F16", 2},
	[SAFETENSORS_BF16] = {"BF16", 2},
	[SAFETENSORS_I32] = {"I32", 4},
	[SAFETENSORS_U32] = {"U32", 4},
	[SAFETENSORS_F32] = {"F32", 4},
	[SAFETENSORS_F64] = {"F64", 8},
	[SAFETENSORS_I64] = {"I64", 8},
	[SAFETENSORS_U64] = {"U64", 8},
};
#define N_DTYPES (sizeof(dtypes) / sizeof(dtypes[0]))

const char *safetensors_dtype_name(enum safetensors_dtype dtype)
{
	return (unsigned)dtype < N_DTYPES ? dtypes[dtype].name : NULL;
}

size_t safetensors_dtype_bytes(enum safetensors_dtype dtype)
{
	return (unsigned)dtype < N_DTYPES ? dtypes[dtype].bytes : 0;
}

static enum safetensors_dtype dtype_of(const char *name)
{
	for (unsigned i = 1; i < N_DTYPES; i++)
		if (strcmp(dtypes[i].name, name) == 0)
			return (enum safetensors_dtype)i;
	return 0;
}

/* ---- header ---- */

/* Also refuses what json-c takes beyond JSON: other quotes, and comments. */
static bool count_colons(const char *text, size_t n, uint64_t *ret)
{
	bool in_string = false;

	*ret = 0;
	for (size_t i = 0; i < n; i++) {
		if (in_string && text[i] == '\\')
			i++;
		else if (text[i] == '"')
			in_string = !in_string;
		else if (!in_string && (text[i] == '\'' || text[i] == '/'))
			return false;
		else if (!in_string && text[i] == ':')
			++*ret;
	}
	return true;
}

/* Members of the header and of the objects in it; deeper ones are refused when a tensor is read. */
static uint64_t count_members(struct json_object *header)
{
	uint64_t n = 0;

	json_object_object_foreach(header, key, value)
	{
		(void)key;
		n++;
		if (json_object_is_type(value, json_type_object))
			n += (uint64_t)json_object_object_length(value);
	}
	return n;
}

static int parse_header(struct reading *rd, const char *text, size_t n)
{
	struct json_tokener *tokener;
	enum json_tokener_error error;
	uint64_t colons;

	while (n > 0 && text[n - 1] == ' ') /* padding */
		n--;
	if (n == 0 || text[0] != '{')
		return bad(rd, "not a safetensors file: no JSON header after the first 8 bytes");
	if (!count_colons(text, n, &colons))
		return bad(rd, "the JSON header is damaged: not JSON");
	tokener = json_tokener_new_ex(DEPTH_MAX);
	if (!tokener)
		return -ENOMEM;
	json_tokener_set_flags(tokener, JSON_TOKENER_STRICT | JSON_TOKENER_VALIDATE_UTF8);
	rd->st->header = json_tokener_parse_ex(tokener, text, (int)n);
	error = json_tokener_get_error(tokener);
	json_tokener_free(tokener);
	if (error != json_tokener_success)
		return bad(rd, "the JSON header is damaged: %s", json_tokener_error_desc(error));
	if (!json_object_is_type(rd->st->header, json_type_object))
		return bad(rd, "the JSON header is not an object");
	if (colons != count_members(rd->st->header))
		return bad(rd, "the header has a name twice, or an object where none belongs");
	return 0;
}

/* A member that must be a whole number >= 0. */
static bool whole_number(struct json_object *value, uint64_t *ret)
{
	int64_t n;

	if (!json_object_is_type(value, json_type_int))
		return false;
	n = json_object_get_int64(value);
	if (n < 0 || n == INT64_MAX) /* json-c answers INT64_MAX for anything above it */
		return false;
	*ret = (uint64_t)n;
	return true;
}

static int read_shape(struct reading *rd, struct json_object *shape, struct safetensors_tensor *t)
{
	uint64_t elements = 1;
	size_t n;

	if (!json_object_is_type(shape, json_type_array))
		return bad(rd, "tensor %s has no shape", t->name);
	n = json_object_array_length(shape);
	if (n > SAFETENSORS_DIMS_MAX)
		return bad(rd, "tensor %s has %zu dimensions, at most %d are read", t->name, n,
			SAFETENSORS_DIMS_MAX);
	t->ndim = (unsigned)n;
	for (size_t i = 0; i < n; i++) {
		if (!whole_number(json_object_array_get_idx(shape, i), &t->shape[i]) ||
			__builtin_mul_overflow(elements, t->shape[i], &elements))
			return bad(rd, "the shape of tensor %s is not made of sizes", t->name);
	}
	if (__builtin_mul_overflow(elements, safetensors_dtype_bytes(t->dtype), &t->bytes))
		return bad(rd, "the shape of tensor %s overflows", t->name);
	return 0;
}

static int read_tensor(struct reading *rd, const char *name, struct json_object *entry,
	struct safetensors_tensor *t)
{
	struct json_object *dtype = json_object_object_get(entry, "dtype");
	struct json_object *offsets = json_object_object_get(entry, "data_offsets");
	uint64_t begin, end;
	int r;

	t->name = name;
	if (!json_object_is_type(dtype, json_type_string) || json_object_object_length(entry) != 3)
		return bad(rd, "tensor %s: dtype, shape and data_offsets are wanted", name);
	t->dtype = dtype_of(json_object_get_string(dtype));
	if (!t->dtype)
		return bad(rd, "tensor %s has the unknown dtype %s", name,
			json_object_get_string(dtype));
	r = read_shape(rd, json_object_object_get(entry, "shape"), t);
	if (r < 0)
		return r;
	if (!json_object_is_type(offsets, json_type_array) ||
		json_object_array_length(offsets) != 2 ||
		!whole_number(json_object_array_get_idx(offsets, 0), &begin) ||
		!whole_number(json_object_array_get_idx(offsets, 1), &end))
		return bad(rd, "tensor %s has no data_offsets", name);
	if (end < begin || end > rd->st->data_bytes)
		return bad(
			rd, "tensor %s reaches beyond the end of the file: it was cut short", name);
	if (end - begin != t->bytes)
		return bad(rd, "tensor %s has %llu bytes, its shape says %llu", name,
			(unsigned long long)(end - begin), (unsigned long long)t->bytes);
	t->data = rd->st->data + begin;
	if ((uintptr_t)t->data % safetensors_dtype_bytes(t->dtype))
		return bad(rd,
			"tensor %s is not aligned to its elements; write the file again "
			"with a current safetensors library",
			name);
	return 0;
}

static int read_metadata(struct reading *rd, struct json_object *metadata)
{
	if (!json_object_is_type(metadata, json_type_object))
		return bad(rd, METADATA " is not an object");
	json_object_object_foreach(metadata, key,
		value) if (!json_object_is_type(value, json_type_string)) return bad(rd,
		METADATA ": %s is not a string", key);
	rd->st->metadata = metadata;
	return 0;
}

/* ---- table ---- */

static int by_place(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;

	if (x->data != y->data)
		return (uintptr_t)x->data < (uintptr_t)y->data ? -1 : 1;
	return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static int by_name(const void *a, const void *b)
{
	const struct safetensors_tensor *x = a, *y = b;

	return strcmp(x->name, y->name);
}

static int check_places(struct reading *rd)
{
	struct safetensors *st = rd->st;
	const uint8_t *next = st->data;

	qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), by_place);
	for (uint32_t i = 0; i < st->n_tensors; i++) {
		const struct safetensors_tensor *t = &st->tensors[i];

		if (t->data != next)
			return bad(
				rd, "tensor %s overlaps its neighbour or leaves a hole", t->name);
		next += t->bytes;
	}
	if (next != st->data + st->data_bytes)
		return bad(rd, "%llu bytes follow the last tensor",
			(unsigned long long)(st->data + st->data_bytes - next));
	return 0;
}

static int read_table(struct reading *rd)
{
	struct safetensors *st = rd->st;
	int r;

	st->tensors =
		calloc((size_t)json_object_object_length(st->header) + 1, sizeof(*st->tensors));
	if (!st->tensors)
		return -ENOMEM;
	json_object_object_foreach(st->header, name, entry)
	{
		if (strcmp(name, METADATA) == 0)
			r = read_metadata(rd, entry);
		else
			r = read_tensor(rd, name, entry, &st->tensors[st->n_tensors++]);
		if (r < 0)
			return r;
	}
	r = check_places(rd);
	if (r < 0)
		return r;
	qsort(st->tensors, st->n_tensors, sizeof(*st->tensors), by_name);
	return 0;
}

static int parse(struct reading *rd, const void *data, size_t bytes)
{
	const uint8_t *file = data;
	uint64_t n = 0;
	int r;

	if (bytes < PREFIX_BYTES)
		return bad(rd, "not a safetensors file: %zu bytes", bytes);
	for (unsigned i = 0; i < PREFIX_BYTES; i++)
		n |= (uint64_t)file[i] << (8 * i);
	if (n > bytes - PREFIX_BYTES)
		return bad(rd,
			"not a safetensors file, or cut short: a header of %llu bytes in a "
			"file of %zu",
			(unsigned long long)n, bytes);
	if (n > SAFETENSORS_HEADER_MAX)
		return bad(rd, "a header of %llu bytes, at most %u are read", (unsigned long long)n,
			SAFETENSORS_HEADER_MAX);
	rd->st->data = file + PREFIX_BYTES + n;
	rd->st->data_bytes = bytes - PREFIX_BYTES - n;
	r = parse_header(rd, (const char *)file + PREFIX_BYTES, n);
	return r < 0 ? r : read_table(rd);
}

/* ---- open, close ---- */

int safetensors_parse(
	const void *data, size_t bytes, struct safetensors **ret, char *ret_why, size_t why_size)
{
	struct reading rd = {.why = ret_why, .why_size = why_size};
	int r;

	rd.st = calloc(1, sizeof(*rd.st));
	if (!rd.st)
		return why(ret_why, why_size, -ENOMEM, "out of memory");
	r = parse(&rd, data, bytes);
	if (r < 0) {
		if (r == -ENOMEM)
			why_print(ret_why, why_size, "out of memory");
		safetensors_close(rd.st);
		return r;
	}
	*ret = rd.st;
	return 0;
}

static int map_file(const char *path, void **ret, size_t *ret_bytes)
{
	struct stat s;
	void *map;
	int fd, r = 0;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &s) < 0)
		r = -errno;
	else if (S_ISDIR(s.st_mode))
		r = -EISDIR;
	else if (!S_ISREG(s.st_mode) || s.st_size < PREFIX_BYTES)
		r = -EBADMSG;
	if (r == 0) {
		map = mmap(NULL, (size_t)s.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
		if (map == MAP_FAILED) {
			r = -errno;
		} else {
			*ret = map;
			*ret_bytes = (size_t)s.st_size;
		}
	}
	close(fd);
	return r;
}

int safetensors_open(const char *path, struct safetensors **ret, char *ret_why, size_t why_size)
{
	struct safetensors *st;
	void *map = NULL;
	size_t bytes = 0;
	int r;

	r = map_file(path, &map, &bytes);
	if (r == -EBADMSG)
		return why(ret_why, why_size, r, "not a safetensors file");
	if (r < 0)
		return why(ret_why, why_size, r, "%s", strerror(-r));
	r = safetensors_parse(map, bytes, &st, ret_why, why_size);
	if (r < 0) {
		munmap(map, bytes);
		return r;
	}
	st->map = map;
	st->map_bytes = bytes;
	*ret = st;
	return 0;
}

struct safetensors *safetensors_close(struct safetensors *st)
{
	if (!st)
		return NULL;
	if (st->map)
		munmap(st->map, st->map_bytes);
	if (st->header)
		json_object_put(st->header);
	free(st->tensors);
	free(st);
	return NULL;
}

const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name)
{
	struct safetensors_tensor key = {.name = name};

	return bsearch(&key, st->tensors, st->n_tensors, sizeof(key), by_name);
}

const char *safetensors_metadata(const struct safetensors *st, const char *key)
{
	struct json_object *value;

	if (!st->metadata || !json_object_object_get_ex(st->metadata, key, &value))
		return NULL;
	return json_object_get_string(value);
}

uint32_t safetensors_count(const struct safetensors *st)
{
	return st->n_tensors;
}

const struct safetensors_tensor *safetensors_at(const struct safetensors *st, uint32_t i)
{
	return &st->tensors[i];
}
