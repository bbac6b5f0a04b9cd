/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pickle: what torch.save writes about a state dict, read without executing anything.
 * Thread: one parse is one thread's; the result is immutable. Locks: none. Blocks: never.
 * Errors: -EBADMSG with a text that names what was refused, -ENOMEM.
 *
 * Known are protocol 2's dicts, lists, tuples, texts and numbers, OrderedDict, tensors and their storages.
 * NumPy values are skipped over as PICKLE_OPAQUE. Any other class, function or instruction is refused.
 */
#ifndef KVGATE_GATES_PICKLE_H
#define KVGATE_GATES_PICKLE_H

#include <stddef.h>
#include <stdint.h>

#include "gates/safetensors.h"

#define PICKLE_BYTES_MAX                                                                           \
	(1u << 20) /* 64 layers take 80 KB; values take up to 100 times their bytes */

enum pickle_kind {
	PICKLE_NONE,
	PICKLE_NUMBER, /* whole; True and False are 1 and 0 */
	PICKLE_TEXT,
	PICKLE_TUPLE,
	PICKLE_LIST,
	PICKLE_DICT, /* items: key, value, key, value ... */
	PICKLE_STORAGE,
	PICKLE_TENSOR,
	PICKLE_OPAQUE,
	PICKLE_GLOBAL,
	PICKLE_MARK, /* on the stack only, never in a result */
};

struct pickle_text {
	const char *s; /* not terminated, inside the pickle */
	uint32_t bytes;
};

struct pickle_item {
	struct pickle_value *value;
	struct pickle_item *next;
};

struct pickle_storage {
	struct pickle_text key; /* the member data/KEY */
	enum safetensors_dtype dtype;
	uint64_t count;
};

struct pickle_tensor {
	const struct pickle_storage *storage;
	uint64_t offset; /* in elements; offset + count <= storage->count */
	uint64_t count;
	unsigned ndim;
	uint64_t shape[SAFETENSORS_DIMS_MAX]; /* row-major, without gaps */
};

struct pickle_value {
	enum pickle_kind kind;
	union {
		int64_t number;
		struct pickle_text text;
		struct {
			struct pickle_item *first, *last;
			uint32_t n;
		} items;
		struct pickle_storage storage;
		struct pickle_tensor *tensor;
		const struct pickle_global *global;
	};
};

struct pickle;

/* `data` stays the caller's and outlives the result. */
int pickle_parse(
	const void *data, size_t bytes, struct pickle **ret, char *ret_why, size_t why_size);
struct pickle *pickle_free(struct pickle *p);
const struct pickle_value *pickle_root(const struct pickle *p);

/* The value of a text key, NULL when there is none; of two equal keys the later one counts. */
const struct pickle_value *pickle_lookup(const struct pickle_value *dict, const char *key);

#endif
