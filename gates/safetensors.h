/* SPDX-License-Identifier: Apache-2.0 */
/*
 * safetensors: named tensors in one file - reader over mapped memory or a buffer, and writer.
 * Thread: an opened file is immutable, any thread reads it. Locks: none. Blocks: open and write, on the file.
 * Errors: negative errno with a text; -EBADMSG for bytes that are no such file, -ENOENT, -ENOMEM, ...
 *
 * Format: u64 header length | JSON header | data; little endian. Source: github.com/huggingface/safetensors.
 */
#ifndef KVGATE_GATES_SAFETENSORS_H
#define KVGATE_GATES_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#define SAFETENSORS_DIMS_MAX 8 /* no model goes beyond five */
#define SAFETENSORS_HEADER_MAX                                                                     \
	(8u << 20) /* some 80,000 tensors; parsed, a header takes 20 times its bytes */

enum safetensors_dtype {
	SAFETENSORS_BOOL = 1,
	SAFETENSORS_U8,
	SAFETENSORS_I8,
	SAFETENSORS_F8_E5M2,
	SAFETENSORS_F8_E4M3,
	SAFETENSORS_I16,
	SAFETENSORS_U16,
	SAFETENSORS_F16,
	SAFETENSORS_BF16,
	SAFETENSORS_I32,
	SAFETENSORS_U32,
	SAFETENSORS_F32,
	SAFETENSORS_F64,
	SAFETENSORS_I64,
	SAFETENSORS_U64,
};

/* What the file calls it ("BF16"), NULL when unknown; bytes of one element, 0 when unknown. */
const char *safetensors_dtype_name(enum safetensors_dtype dtype);
size_t safetensors_dtype_bytes(enum safetensors_dtype dtype);

struct safetensors_tensor {
	const char *name;
	enum safetensors_dtype dtype;
	unsigned ndim; /* 0: a scalar */
	uint64_t shape[SAFETENSORS_DIMS_MAX];
	const void *data; /* row-major, aligned to its element */
	uint64_t bytes;   /* product of the shape times the element, checked */
};

struct safetensors;

/*
 * Maps the file read-only and checks everything: offsets inside the file, tensors that neither overlap
 * nor leave holes, sizes that agree with shapes, no name twice. Reading a tensor of a file that is cut
 * short by somebody after that raises SIGBUS: use _parse on a copy where the file is not trusted.
 */
int safetensors_open(const char *path, struct safetensors **ret, char *ret_why, size_t why_size);

/* The same over `bytes` bytes that stay the caller's and outlive the result; 8-byte aligned. */
int safetensors_parse(
	const void *data, size_t bytes, struct safetensors **ret, char *ret_why, size_t why_size);

struct safetensors *safetensors_close(struct safetensors *st);

/* NULL when there is no such tensor, or key. */
const struct safetensors_tensor *safetensors_find(const struct safetensors *st, const char *name);
const char *safetensors_metadata(const struct safetensors *st, const char *key);

/* All tensors in the order of their names, i < safetensors_count(). */
uint32_t safetensors_count(const struct safetensors *st);
const struct safetensors_tensor *safetensors_at(const struct safetensors *st, uint32_t i);

struct safetensors_pair {
	const char *key, *value;
};

/*
 * Writes a new file and puts it in the place of `path` when it is whole and on disk. Wide elements come
 * first, so that all are aligned; otherwise the order is the caller's.
 */
int safetensors_write(const char *path, const struct safetensors_tensor *tensors,
	uint32_t n_tensors, const struct safetensors_pair *metadata, uint32_t n_metadata,
	char *ret_why, size_t why_size);

#endif
