/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pickle_private: the stack machine of pickle.c, as far as pickle_torch.c gives meaning to what it reads.
 * Thread: of one parse. Locks: none. Blocks: never. Errors: -EBADMSG with a text, -ENOMEM.
 */
#ifndef KVGATE_GATES_PICKLE_PRIVATE_H
#define KVGATE_GATES_PICKLE_PRIVATE_H

#include <stdbool.h>

#include "gates/pickle.h"
#include "gates/why.h"

enum meaning {
	MEANS_DICT,
	MEANS_TENSOR,
	MEANS_PARAMETER,
	MEANS_STORAGE,
	MEANS_OPAQUE,
};

struct pickle_global {
	const char *module, *name;
	enum meaning meaning;
	enum safetensors_dtype dtype;
};

struct pickle_machine {
	struct pickle *p;
	const uint8_t *data;
	size_t bytes, at;
	struct pickle_value **stack; /* [bytes] */
	size_t depth;
	struct pickle_value **memo; /* [bytes] */
	char *why;
	size_t why_size;
};

#define pickle_bad(m, ...) why((m)->why, (m)->why_size, -EBADMSG, __VA_ARGS__)

/* Zeroed; lives as long as the result. */
void *pickle_allocate(struct pickle_machine *m, size_t bytes);
bool pickle_text_is(struct pickle_text t, const char *s);

/* NULL when it is none that a gate needs. */
const struct pickle_global *pickle_find_global(struct pickle_text module, struct pickle_text name);
/* What a call would have returned, made from its arguments, a tuple. */
int pickle_rebuild(struct pickle_machine *m, const struct pickle_global *g,
	const struct pickle_value *args, struct pickle_value *ret);
/* The storage that a persistent id names. */
int pickle_rebuild_storage(
	struct pickle_machine *m, const struct pickle_value *id, struct pickle_value *ret);

#endif
