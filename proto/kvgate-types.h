/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kvgate-types: the values that the public API and the shared layouts have in common. Installed.
 * Thread: pure values, any. Locks: none. Blocks: never. Errors: none.
 */
#ifndef KVGATE_TYPES_H
#define KVGATE_TYPES_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVG_KEY_BYTES  32
#define KVG_PLANES_MAX 8 /* planes of one block */

/* Identity of a block: SHA-256 over parent, layout and tokens, or an engine's own 32-byte hash. */
struct kvg_key {
	uint8_t b[KVG_KEY_BYTES];
};

/* {slot, generation}: names one block for as long as it lives; never names another one. */
struct kvg_handle {
	uint32_t slot;
	uint32_t gen; /* never 0 */
};

enum kvg_dtype {
	KVG_DTYPE_BF16 = 1,
	KVG_DTYPE_F16 = 2,
	KVG_DTYPE_F32 = 3,
	KVG_DTYPE_FP8_E4M3 = 4,
	KVG_DTYPE_FP8_E5M2 = 5
};

/* Codes in replies; the table kvgate-errors.def says what each means and what to do. */
enum kvg_code {
#define KVG_ERROR(number, name, prose) KVG_CODE_##name = number,
#include "kvgate-errors.def"
#undef KVG_ERROR
	KVG_CODE_LIMIT_ = 0x7fffffff
};

#define KVG_TYPES_API __attribute__((visibility("default")))
/* "BAD_LAYOUT"; "UNKNOWN" for a number from a newer daemon. */
KVG_TYPES_API const char *kvg_code_name(int code);
/* What it means and what to do. */
KVG_TYPES_API const char *kvg_code_prose(int code);

#ifdef __cplusplus
}
#endif

#endif
