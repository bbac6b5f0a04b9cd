/* SPDX-License-Identifier: Apache-2.0 */
/* Everything else that gpu/functions.def names: there, and never a success. */
#include <cuda.h>

#define TEXT_OF(name) #name
#define TEXT(name)    TEXT_OF(name) /* as <cuda.h> turned it */

#define FUNCTION(name)                                                                             \
	__attribute__((weak, visibility("default")))                                               \
	CUresult rest_##name(void) __asm__(TEXT(name));                                            \
	CUresult rest_##name(void)                                                                 \
	{                                                                                          \
		return CUDA_ERROR_NOT_SUPPORTED;                                                   \
	}
#include "gpu/functions.def"
