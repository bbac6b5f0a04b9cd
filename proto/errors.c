/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/kvgate-types.h"

const char *kvg_code_name(int code)
{
	switch (code) {
#define KVG_ERROR(number, name, prose)                                                             \
	case number:                                                                               \
		return #name;
#include "proto/kvgate-errors.def"
#undef KVG_ERROR
	}
	return "UNKNOWN";
}

const char *kvg_code_prose(int code)
{
	switch (code) {
#define KVG_ERROR(number, name, prose)                                                             \
	case number:                                                                               \
		return prose;
#include "proto/kvgate-errors.def"
#undef KVG_ERROR
	}
	return "an error code this version does not know";
}
